"""Keys of `training` that do not go together."""

import pytest

from asyncfeded.config import load_config


def load(tmp_path, *overrides, limits="limits.updates = 9"):
    (tmp_path / "run.toml").write_text(limits)
    return load_config(tmp_path / "run.toml", [f"training.{text}" for text in overrides])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["unit=steps"], 'unit = "steps" needs training.steps'),
        (["steps=5"], 'steps = 5, but K counts epochs; set training.unit = "steps", or leave steps out'),
        (["optimizer=adamw", "momentum=0.9"], "momentum = 0.9 is that of sgd, but optimizer = adamw; .*optimizer_options"),
        (["optimizer_options.lr=1"], "optimizer_options has lr; set training.learning_rate"),
        (["optimizer=Adam", "optimizer_options.weight_decay=1"], "has weight_decay; set training.weight_decay"),
        (["optimizer_options.momentum=1"], "optimizer_options has momentum; set training.momentum"),
        (["optimizer_options.params=1"], "optimizer_options has params; which the program gives"),
        (["schedule_length=5"], "schedule_length = 5, but schedule = constant; set training.schedule to linear or cosine"),
        (["learning_rate_end=0.1"], "learning_rate_end = 0.1, but schedule = constant"),
        (["schedule_over=run"], "schedule_over = run, but schedule = constant"),
        (["schedule=cosine"], r"schedule = cosine over steps needs training.schedule_length, in steps of a client"),
        (["schedule=cosine", "schedule_over=rounds"], "over rounds needs training.schedule_length, in rounds of a client"),
        (["schedule=linear", "schedule_over=run", "schedule_length=5"], "schedule_length = 5, but a schedule over the run"),
        (["schedule=linear", "warmup=5", "schedule_length=5"], "warmup = 5 leaves nothing of schedule_length = 5 steps"),
        (["precision=half"], "training.precision = 'half': input should be 'float32', 'bf16' or 'fp16'"),
        (["clip_norm=-1"], "training.clip_norm = -1"),
        (["accumulate=0"], "training.accumulate = 0"),
    ],
    ids=str,
)  # fmt: skip
def test_keys_that_make_no_sense_together_are_told(tmp_path, overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        load(tmp_path, *overrides)


def test_a_schedule_over_the_run_needs_a_run_whose_end_is_known(tmp_path):
    keys = ["schedule=linear", "schedule_over=run"]
    with pytest.raises(ValueError, match=r'schedule_over = "run" needs limits.updates or limits.seconds'):
        load(tmp_path, *keys, limits="limits.target = 0.9")
    assert load(tmp_path, *keys).training.schedule_over == "run"


def test_options_of_an_optimizer_are_read_from_the_command_line_and_back_from_toml(tmp_path):
    loaded = load(tmp_path, "optimizer=AdamW", "optimizer_options.betas=[0.9, 0.95]", "optimizer_options.amsgrad=true")
    assert loaded.training.optimizer == "adamw"
    assert loaded.training.optimizer_options == {"betas": [0.9, 0.95], "amsgrad": True}
    (tmp_path / "again.toml").write_text(loaded.to_toml())
    assert load_config(tmp_path / "again.toml", []) == loaded


@pytest.mark.parametrize(("overrides", "K"), [([], 2), (["epochs=5"], 5), (["unit=steps", "steps=70"], 70)])
def test_the_first_K_is_that_of_the_unit(tmp_path, overrides, K):
    assert load(tmp_path, *overrides).training.first == K
