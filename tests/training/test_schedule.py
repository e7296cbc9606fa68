"""The learning rate of a step, by hand."""

import math
from types import SimpleNamespace

import pytest

from asyncfeded.config import Training
from asyncfeded.tasks.at import At
from asyncfeded.training.schedule import Schedule, find_schedule


def at(step=0, number=0, before=0, share=0.0):
    return At(client=1, round=number, step=step, steps=10, steps_before=before, version=3, share=share)


def rates(places, **keys):
    """The learning rates at some places, with a rate of 2 at first."""
    return [2.0 * Schedule(Training(learning_rate=2.0, **keys))(place) for place in places]


def test_a_line_over_the_steps_of_all_rounds():
    """From 2 to 1 in ten steps, of which eight were done before; then it stays."""
    keys = {"schedule": "linear", "schedule_length": 10, "learning_rate_end": 1.0}
    assert rates([at(0), at(5), at(1, 1, 8), at(2, 1, 8), at(9, 7, 100)], **keys) == [2.0, 1.5, pytest.approx(1.1), 1.0, 1.0]


def test_half_a_cosine_over_rounds_has_one_rate_in_a_round():
    """4 rounds: cos 0, pi / 4, pi / 2, pi."""
    there = [at(0), at(9), at(0, 1), at(9, 1), at(0, 2), at(0, 4)]
    root = 1 + math.sqrt(0.5)
    expected = pytest.approx([2.0, 2.0, root, root, 1.0, 0.0])
    assert rates(there, schedule="cosine", schedule_over="rounds", schedule_length=4) == expected


def test_a_line_over_the_run_follows_the_share_that_the_server_told():
    there = [at(share=0.0), at(5, 3, 70, 0.25), at(share=1.0)]
    assert rates(there, schedule="linear", schedule_over="run", learning_rate_end=0.4) == pytest.approx([2.0, 1.6, 0.4])


def test_the_warm_up_rises_to_the_whole_rate_and_the_schedule_begins_after_it():
    """4 steps: 0.5, 1, 1.5, 2; then from 2 to 0 in 10 - 4 = 6 steps."""
    there = [at(step, 1, before=2) for step in range(-2, 6)]
    expected = [0.5, 1.0, 1.5, 2.0, 2.0, 2.0 * 5 / 6, 2.0 * 4 / 6, 1.0]
    assert rates(there, warmup=4, schedule="linear", schedule_length=10) == pytest.approx(expected)
    assert rates([at(0), at(3), at(4), at(99)], warmup=4) == [0.5, 2.0, 2.0, 2.0]


def test_a_warm_up_multiplies_a_schedule_over_the_run():
    keys = {"warmup": 4, "schedule": "linear", "schedule_over": "run"}
    assert rates([at(1, share=0.5), at(4, share=0.5)], **keys) == [0.5, 1.0]


def test_without_a_schedule_there_is_nothing_to_ask():
    assert find_schedule(SimpleNamespace(name="mine", factor=None), Training()) is None


@pytest.mark.parametrize("keys", [{"warmup": 3}, {"schedule": "linear", "schedule_length": 3}])
def test_a_task_with_a_schedule_of_its_own_leaves_no_room_for_another(keys):
    task = SimpleNamespace(name="mine", factor=lambda at: 0.5)
    assert find_schedule(task, Training())(at()) == 0.5
    with pytest.raises(ValueError, match=f"schedule of its own .factor.; leave training.{next(iter(keys))} out"):
        find_schedule(task, Training(**keys))
