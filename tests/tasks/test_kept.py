"""Runs that follow each other have one task, and read its data once."""

import pytest
import torch

from asyncfeded.config import Config
from asyncfeded.tasks.kept import Kept
from tasks.data import synthetic, table


def config(table, seed=1):
    return Config.model_validate({"limits": {"updates": 1}, "task": table, "seed": seed})


@pytest.mark.parametrize("name", ["h5", "synthetic", "pictures"])
def test_a_kept_task_is_as_one_that_is_made(request, name):
    fresh = synthetic(devices=1, samples_max=60) if name == "synthetic" else request.getfixturevalue(name)()
    kept, asked = Kept(), config(table(fresh))
    task = kept.task(asked)
    assert kept.task(asked) is task
    assert task == fresh
    first, tested = task.client_data(0, 1, 1), task.test_data()
    assert task.client_data(0, 1, 1) is first
    assert task.test_data() is tested
    for one, other in ((first, fresh.client_data(0, 1, 1)), (tested, fresh.test_data())):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert (task.sizes(1, 1) == fresh.sizes(1, 1)).all()


def test_other_keys_and_another_seed_are_another_task():
    kept, plain = Kept(), {"name": "synthetic", "devices": 2, "samples_max": 60}
    first = kept.task(config(plain))
    others = [kept.task(config(plain | {"samples_max": 70})), kept.task(config(plain, seed=2)), kept.task(config(plain))]
    assert len({id(task) for task in [first, *others]}) == 4
    assert [task.samples_max for task in others] == [70, 60, 60]


def test_a_task_of_the_user_is_made_for_each_run(tmp_path):
    """Its data may change while it is read."""
    (tmp_path / "mine.py").write_text(
        "from asyncfeded.tasks.synthetic import Synthetic\n\nclass Mine(Synthetic):\n    pass\n"
    )
    kept, asked = Kept(), config({"name": f"{tmp_path / 'mine.py'}:Mine", "devices": 2, "samples_max": 60})
    task = kept.task(asked)
    assert kept.task(asked) is not task
    assert task.test_data() is not task.test_data()


def test_what_is_wrong_with_a_task_is_told():
    with pytest.raises(ValueError, match="unknown key sample"):
        Kept().task(config({"name": "synthetic", "sample": 3}))
