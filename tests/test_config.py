"""From TOML and overrides to a checked config, and what a person reads when something is wrong."""

import json
import re
from pathlib import Path

import pytest

from asyncfeded import rules, tasks
from asyncfeded.config import Config, Settings, describe_keys, load_config, meanings, section
from asyncfeded.override import setting

MINIMAL = "[limits]\nupdates = 5\n"
ROWS = {key: json.loads(default) for key, default, _ in describe_keys(Config)}


@pytest.fixture
def toml(tmp_path):
    """Writes a TOML file; gives its path."""

    def write(text=MINIMAL):
        path = tmp_path / "run.toml"
        path.write_text(text)
        return path

    return write


# --- reading


def test_a_minimal_file_gets_the_defaults(toml):
    assert load_config(toml(), []) == Config(limits={"updates": 5})


def test_values_of_the_file_are_taken(toml):
    config = load_config(toml(MINIMAL + "[training]\nepochs = 3\n[task]\nname = 'digits'\nalpha = 0.5\n"), [])
    assert config.training.epochs == 3
    assert config.task == {"name": "digits", "alpha": 0.5}


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=3", lambda c: c.seed == 3),
        (" seed = 3", lambda c: c.seed == 3),
        ("training.learning_rate=1e-3", lambda c: c.training.learning_rate == 0.001),
        ("heterogeneity.slowdown=[1, 2.5]", lambda c: c.heterogeneity.slowdown == (1.0, 2.5)),
        ("wait=spin", lambda c: c.wait == "spin"),
        ("wait='spin'", lambda c: c.wait == "spin"),
        ("run_dir=runs/a=b", lambda c: c.run_dir == "runs/a=b"),
        ("run_dir=", lambda c: c.run_dir == ""),
        ("limits={updates = 2, seconds = 3}", lambda c: (c.limits.updates, c.limits.seconds) == (2, 3)),
        ("task={name = 'shakespeare', train = 'a'}", lambda c: c.task == {"name": "shakespeare", "train": "a"}),
    ],
)
def test_an_override_takes_toml_or_a_bare_word(toml, override, value):
    assert value(load_config(toml(), [override]))


NOT_TOML = [
    "8123_4",
    "81234",
    "007",
    "1e3",
    "0x1f",
    "+1",
    "inf",
    "nan",
    "true",
    "2026-11-25",
    "[a]",
    "{a = 1}",
    "a # b",
    " a",
]
"""Texts that TOML would read as something else, or as part of it, or not at all."""


@pytest.mark.parametrize("text", NOT_TOML)
def test_a_key_that_holds_text_takes_text_as_typed(toml, text):
    assert load_config(toml(), [f"run_dir={text}"]).run_dir == text
    assert load_config(toml(), [f"replay={text}", "clock=replay", "clients=1"]).replay == text


@pytest.mark.parametrize("text", NOT_TOML)
def test_a_key_of_a_task_that_holds_a_path_takes_it_as_typed(toml, text):
    given = load_config(toml(), [f"task.test={text}", f"task.train={text}", "task.name=federated_h5", "task.classes=1_0"])
    task = tasks.load_task(given.task)
    assert (str(task.train), str(task.test), task.classes) == (str(Path(text)), str(Path(text)), 10)
    given = load_config(toml(), [f"task.test={text}", "task.name=images", "task.data=a"])  # a path that may be left out
    assert str(tasks.load_task(given.task).test) == str(Path(text))


@pytest.mark.parametrize("text", [*NOT_TOML, '"', "'a'", '"a"', "\\", "ä\t€", ""])
def test_a_setting_is_the_override_that_gives_a_key_a_text(toml, text):
    assert load_config(toml(), [setting("run_dir", text)]).run_dir == text


@pytest.mark.parametrize("value", ["8123_4", "1e3", "true", "2026-11-25"])
def test_a_file_must_have_text_in_quotes(toml, value):
    with pytest.raises(ValueError, match=r"run_dir = .*: expected text; put it in quotes"):
        load_config(toml(f"run_dir = {value}\n" + MINIMAL), [])


def test_a_section_that_an_override_gives_can_be_changed_by_the_next(toml):
    config = load_config(toml(), ["training={epochs = 3}", "training.momentum=0.5"])
    assert (config.training.epochs, config.training.momentum) == (3, 0.5)


def test_the_schema_of_the_rule_reads_what_is_given_for_its_keys(toml):
    given = load_config(toml(), ["rule.lambda=0.5", "rule.distance=mahalanobis"])
    assert rules.load_rule(given.rule).model_dump(by_alias=True) | {"lambda": 0.5, "distance": "mahalanobis"} == (
        rules.load_rule(given.rule).model_dump(by_alias=True)
    )


def test_the_last_override_of_a_key_counts(toml):
    assert load_config(toml(), ["seed=3", "seed=4"]).seed == 4


@pytest.mark.parametrize("overrides", [["task.name=other", "task.size=2"], ["task.size=2", "task.name=other"]])
def test_another_task_clears_the_keys_of_the_one_before_in_any_order(toml, overrides):
    path = toml(MINIMAL + "[task]\nname = 'digits'\nalpha = 0.5\n")
    assert load_config(path, overrides).task == {"name": "other", "size": "2"}


def test_the_same_task_again_keeps_its_keys(toml):
    path = toml(MINIMAL + "[task]\nname = 'digits'\nalpha = 0.5\n")
    assert load_config(path, ["task.name=digits"]).task == {"name": "digits", "alpha": 0.5}


def test_another_task_leaves_the_rule_alone(toml):
    path = toml(MINIMAL + "[rule]\nname = 'asyncfeded'\nkappa = 0.5\n")
    assert load_config(path, ["task.name=other"]).rule == {"name": "asyncfeded", "kappa": 0.5}


# --- messages


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=1", "unknown key sed; did you mean seed?"),
        ("training.epoch=1", "unknown key training.epoch; did you mean epochs?"),
        ("limits.zzz=1", "unknown key limits.zzz; known here: updates, seconds, target"),
        ("limits.updates=0", "limits: no limit is set, the run would never end: set limits.updates, limits.seconds or"),
        ("limits.updates=many", "limits.updates = 'many': input should be a valid integer"),
        ("limits.updates=true", "limits.updates = 'true': input should be a valid integer"),
        ("checkpoint.every_s=true", "checkpoint.every_s = 'true': input should be a valid number"),
        ("heterogeneity.slowdown=[1, true]", "heterogeneity.slowdown.1 = 'true': input should be a valid number"),
        ("limits.updates=1.5", "limits.updates = 1.5: input should be a valid integer"),
        ("limits.seconds=-1", "limits.seconds = -1: input should be greater than or equal to 0"),
        ("limits.seconds=nan", "limits.seconds = nan: input should be a finite number"),
        ("limits.seconds=inf", "limits.seconds = inf: input should be a finite number"),
        (
            "limits.accuracy=0.9",
            "unknown key limits.accuracy; it is limits.target now, of the metric that evaluation.metric names",
        ),
        ("limits=3", "limits = 3: expected a section, with keys such as limits.KEY"),
        ("task=digits", "task = 'digits': expected a section, with keys such as task.name"),
        ("training.last_batch=merge", "training.last_batch = 'merge': input should be 'keep', 'drop' or 'join'"),
        ("training.learning_rate=nan", "training.learning_rate = nan: input should be a finite number"),
        ("training.momentum=1", "training.momentum = 1: input should be less than 1"),
        (
            "ranks_per_client=0",
            "ranks_per_client = '0': input should be greater than or equal to 1, or input should be 'node'",
        ),
        ("wait=never", "wait = 'never': input should be 'auto', 'spin' or 'yield'"),
        ("device=gpu", "device: expected the device auto, cpu, or a GPU as torch names it (cuda, xpu, cuda:1), got 'gpu'"),
        (
            "device=cpu:0",
            "device: expected the device auto, cpu, or a GPU as torch names it (cuda, xpu, cuda:1), got 'cpu:0'",
        ),
        (
            "device=cuda:first",
            "device: expected the device auto, cpu, or a GPU as torch names it (cuda, xpu, cuda:1), got 'cuda:first'",
        ),
        ("heterogeneity.slowdown=[1, 0.5]", "heterogeneity.slowdown: expected a list of numbers, each at least 1"),
        ("heterogeneity.slowdown=[]", "heterogeneity.slowdown: expected a list of numbers, each at least 1"),
        ("heterogeneity.slowdown=[nan]", "heterogeneity.slowdown.0 = nan: input should be a finite number"),
    ],
)
def test_a_wrong_key_or_value_is_told_with_its_override(toml, override, message):
    path = toml()
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the whole text is compared
        load_config(path, [override])
    assert str(caught.value).startswith(f"override {override!r}: {message}")
    assert "\n" not in str(caught.value)


def test_every_fault_is_told_at_once(toml):
    with pytest.raises(ValueError, match=r"(?s)seed = -1.*\n.*training\.epochs = 0.*\n.*unknown key foo"):
        load_config(toml(), ["training.epochs=0", "seed=-1", "foo=1"])


@pytest.mark.parametrize("key", ["training.epochs", "training.batch_size", "evaluation.batch_size", "threads", "clients"])
def test_a_number_that_no_message_can_hold_is_refused(toml, key):
    with pytest.raises(ValueError, match=rf"{key} = {2**31}: input should be less than or equal to {2**31 - 1}"):
        load_config(toml(), [f"{key}={2**31}"])
    with pytest.raises(ValueError, match=rf"heterogeneity.epochs.0 = {2**31}"):
        load_config(toml(), [f"heterogeneity.epochs=[{2**31}]"])


def test_a_full_pixel_is_a_number_or_a_word(toml):
    for word, scale in (("255", 255.0), ("as_is", "as_is"), ("auto", "auto")):
        given = load_config(toml(), ["task.name=femnist", "task.train=a", "task.test=b", f"task.scale={word}"])
        assert tasks.load_task(given.task).scale == scale


def test_a_file_without_a_limit_is_refused(toml):
    with pytest.raises(ValueError, match="no limit is set"):
        load_config(toml("seed = 1\n"), [])


def test_a_file_that_is_not_toml_is_refused_with_the_place(toml):
    with pytest.raises(ValueError, match=r"run\.toml: is not TOML: .*line 2"):
        load_config(toml("seed = 1\n[limits\n"), [])


def test_a_file_that_is_not_text_is_refused(toml):
    path = toml()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"run\.toml: "):
        load_config(path, [])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.toml: no such file"):
        load_config(tmp_path / "none.toml", [])


@pytest.mark.parametrize("override", ["seed", "=3", " =3", ""])
def test_an_override_without_key_or_value_is_refused(toml, override):
    with pytest.raises(ValueError, match=rf"override '{override}': expected key=value or section\.key=value"):
        load_config(toml(), [override])


def test_an_override_below_something_that_is_no_section_is_refused(toml):
    with pytest.raises(ValueError, match=r"override 'limits\.updates\.x=1': limits\.updates is not a section"):
        load_config(toml(), ["limits.updates.x=1"])


def test_an_unknown_key_called_name_is_told_as_that_and_nothing_else(toml):
    with pytest.raises(ValueError, match=r"^[^\n]*unknown key name;[^\n]*$"):
        load_config(toml(), ["name=mine"])


@pytest.mark.parametrize("load", [rules.load_rule, tasks.load_task], ids=["rule", "task"])
@pytest.mark.parametrize("name", [["a"], {"a": 1}, 3])
def test_a_name_that_is_not_a_word_is_refused(load, name):
    with pytest.raises(ValueError, match=r"\.name = .*expected one of"):
        load({"name": name})


# --- writing


def test_toml_gives_the_same_config_back(toml):
    overrides = ["training.epochs=3", "rule.lambda=0.5", "heterogeneity.slowdown=[1,2]", "device=cuda:1", "task.deep.er=1"]
    config = load_config(toml(), overrides)
    assert load_config(toml(config.to_toml()), []) == config


def test_toml_holds_the_defaults_too():
    assert "learning_rate = 0.05" in Config(limits={"updates": 5}).to_toml()


OTHER = {
    "run_dir": "elsewhere",
    "device": "cpu",
    "server_device": "auto",
    "wait": "spin",
    "limits.updates": 6,
    "faults.on_death": "abort",
    "faults.bad_loss": "take",
    "record.trackers": ["wandb"],
    "training.last_batch": "join",
    "training.optimizer_state": "kept",
    "training.optimizer_options": {"nesterov": True},
    "training.precision": "bf16",
    "training.sync_batch_norm": True,
    "training.compile": True,
    "training.channels_last": True,
}
NEED_OTHER_KEYS = {
    "clock",
    "replay",
    "bases",
    "bases_dir",
    *(f"training.{key}" for key in ("unit", "steps", "schedule", "schedule_over", "schedule_length", "learning_rate_end")),
}


@pytest.mark.parametrize("key", [key for key in ROWS if key not in NEED_OTHER_KEYS])
def test_the_digest_ignores_folder_device_and_checkpoints_and_nothing_else(toml, key):
    default = ROWS[key]
    other = OTHER.get(key, [2] if isinstance(default, list) else 7 if isinstance(default, int) else 0.5)
    changed = load_config(toml(), [f"{key}={'{nesterov=true}' if isinstance(other, dict) else json.dumps(other)}"])
    same = changed.digest() == load_config(toml(), []).digest()
    assert same == (key.partition(".")[0] in ("run_dir", "device", "checkpoint"))


def test_the_digest_counts_the_clock(toml):
    wall, virtual = (load_config(toml(), [f"clock={clock}", "clients=3"]) for clock in ("wall", "virtual"))
    assert wall.digest() != virtual.digest()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["clock=virtual"], "clock = virtual needs clients = N"),
        (["clock=replay", "replay=runs/a"], "clock = replay needs clients = N"),
        (["clock=replay", "clients=2"], "type asyncfeded replay RUN_DIR"),
        (["replay=runs/a"], "type asyncfeded replay RUN_DIR"),
        (["bases=disk"], "bases = disk and bases_dir = FOLDER go together"),
        (["bases_dir=runs"], "bases = disk and bases_dir = FOLDER go together"),
        (["bases=disk", "bases_dir=runs"], r"bases = disk needs clock = virtual \(or replay\)"),
    ],
)
def test_an_ordered_clock_needs_what_its_order_is_made_of(toml, overrides, words):
    with pytest.raises(ValueError, match=words):
        load_config(toml(), overrides)


@pytest.mark.parametrize("key", ["task.alpha", "rule.kappa"])
def test_the_digest_counts_the_keys_of_task_and_rule(toml, key):
    assert load_config(toml(), [f"{key}=0.25"]).digest() != load_config(toml(), [f"{key}=0.5"]).digest()


def test_the_digest_does_not_depend_on_the_order_of_keys(toml):
    one = load_config(toml(), ["task.name=a", "task.b=1", "task.c=2"])
    two = load_config(toml(), ["task.name=a", "task.c=2", "task.b=1"])
    assert one.digest() == two.digest()
    assert len(one.digest()) == 32


# --- meanings


def leaves(kind, prefix=""):
    for name, field in kind.model_fields.items():
        if isinstance(field.default, Settings):
            yield from leaves(type(field.default), f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_is_described():
    assert set(ROWS) == set(leaves(Config)) - {"task", "rule"}
    assert all(meaning.strip() for _, _, meaning in describe_keys(Config))


def test_a_description_gives_key_default_and_meaning():
    assert ("limits.updates", "0", "Updates merged into the global model. 0: no limit.") in describe_keys(Config)


def test_a_description_names_the_alias_and_what_is_required():
    assert any(key == "rule.lambda" for key, _, _ in describe_keys(rules.RULES["asyncfeded"], "rule."))
    assert ("train", "required") in [row[:2] for row in describe_keys(tasks.TASKS["federated_h5"])]


def sections(kind=Settings):
    for sub in kind.__subclasses__():
        if sub.__module__.startswith("asyncfeded."):
            yield sub
            yield from sections(sub)


@pytest.mark.parametrize("kind", list(sections()), ids=lambda kind: kind.__name__)
def test_every_field_of_every_section_has_a_meaning(kind):
    assert kind.__doc__
    told = meanings(kind)
    silent = [
        name for name, field in kind.model_fields.items() if name not in told and not isinstance(field.default, Settings)
    ]
    assert silent in ([], ["name"])  # what a name is for, the section that it chooses says


def test_folders_and_files_are_what_a_shell_would_make_of_them(toml, monkeypatch):
    """A shell leaves a ~ or a variable alone in a file and behind an equals sign."""
    monkeypatch.setenv("HOME", "/homes/me")
    monkeypatch.setenv("SCRATCH", "/fast")
    config = load_config(toml("run_dir = '~/mine'\n" + MINIMAL), [])
    assert config.run_dir == "/homes/me/mine"
    assert load_config(toml(), ["run_dir=$SCRATCH/a b"]).run_dir == "/fast/a b"
    task = {"name": "femnist", "train": "~/a.h5", "test": "$SCRATCH/b.h5"}
    assert [str(path) for path in (tasks.load_task(task).train, tasks.load_task(task).test)] == [
        "/homes/me/a.h5",
        "/fast/b.h5",
    ]
    with pytest.raises(ValueError, match=r"run_dir: '\$NOPE/a': the environment has no variable \$NOPE; set it"):
        load_config(toml(), ["run_dir=$NOPE/a"])

    class Mine(Settings):
        root: Path
        more: tuple[Path, ...] = ()
        perhaps: Path | None = None

    mine = section(Mine, {"root": "~", "more": ["a", "$SCRATCH/b"], "perhaps": "~/c"}, "task")
    assert (str(mine.root), [*map(str, mine.more)], str(mine.perhaps)) == ("/homes/me", ["a", "/fast/b"], "/homes/me/c")
    with pytest.raises(ValueError, match=r"root: '\$NOPE': the environment has no variable"):
        section(Mine, {"root": "$NOPE"}, "task")


@pytest.mark.parametrize(("override", "words"), [
    ("learning_rate=0.1", "override 'learning_rate=0.1': unknown key learning_rate; did you mean training.learning_rate?"),
    ("batch_size=8", "did you mean training.batch_size or heterogeneity.batch_size or evaluation.batch_size?"),
    ("limits.epochs=8", "did you mean training.epochs or heterogeneity.epochs?"),
    ("training.learning_rat=1", "unknown key training.learning_rat; did you mean learning_rate?"),
    ("training.epochs=none", "override 'training.epochs=none': training.epochs = 'none': input should be a valid integer"),
    ("training = 5", "override 'training = 5': training = 5: expected a section"),
])  # fmt: skip
def test_a_fault_in_an_override_names_the_override(toml, override, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        load_config(toml(), ["seed=1", override])
    assert "run.toml" not in str(caught.value)


def test_a_fault_in_the_file_names_the_file_whatever_is_overridden(toml):
    with pytest.raises(ValueError, match=r"run\.toml: training\.momentum = 2") as caught:
        load_config(toml(MINIMAL + "[training]\nmomentum = 2"), ["training.epochs=0"])
    assert "override 'training.epochs=0': training.epochs = 0" in str(caught.value)


def test_a_grid_is_no_run(toml):
    words = r"run\.toml is the file of a grid of runs, for asyncfeded study; asyncfeded train takes another"
    with pytest.raises(ValueError, match=words):
        load_config(toml("seeds = [1]\n[run.limits]\nupdates = 5\n[tasks.digits]\n"), [])


LAUNCH = Path(__file__).parents[1] / "launch"


@pytest.mark.parametrize("name", ["digits", "digits_by_writer", "images", "language", "punish", "synthetic", "tabular"])
def test_the_runs_that_come_with_the_program_are_read(name):
    config = load_config(LAUNCH / f"{name}.toml", [])
    tasks.load_task(config.task)
    rules.load_rule(config.rule)
