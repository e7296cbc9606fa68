"""Every task counts its samples, trains its model and loads from its own keys; an unknown task is refused."""

import pytest

from asyncfeded import tasks
from asyncfeded.testing import TaskTests
from tasks.data import PLAYS, digits, leaf_file, synthetic


@pytest.mark.parametrize("table", [{}, {"name": "mnist"}])
def test_an_unknown_task_is_refused_and_the_known_ones_named(table):
    with pytest.raises(ValueError, match=rf"task\.name = {table.get('name')!r}: unknown task.*digits, federated_h5"):
        tasks.load_task(table)


@pytest.fixture(params=["even", "dirichlet", "h5", "leaf", "logistic", "mlp", "text", "windows"])
def every_task(request):
    """A small one of every kind, with 3 clients at least."""
    if request.param in ("even", "dirichlet"):
        return digits(split=request.param)
    if request.param in ("logistic", "mlp"):
        return synthetic(model=request.param, devices=4, samples_max=60)
    if request.param == "text":
        return request.getfixturevalue("shakespeare")(stride=2, windows_max=4)
    if request.param == "windows":
        more = {"train/c.json": leaf_file({"C": (["slee", "leep", "eep "], ["p", " ", "n"])})}
        return request.getfixturevalue("plays")(PLAYS | more, stride=2)
    return request.getfixturevalue({"h5": "h5", "leaf": "femnist"}[request.param])()


class TestEveryTask(TaskTests):
    """The contract that a stranger's task is tested for."""

    @pytest.fixture(autouse=True)
    def choose(self, every_task):
        self.task = every_task

    def make_task(self):
        return tasks.load_task(self.task.model_dump(mode="json", by_alias=True))


def test_the_resolved_keys_of_a_task_load_it_again(every_task):
    assert tasks.load_task(every_task.model_dump(mode="json", by_alias=True)) == every_task
