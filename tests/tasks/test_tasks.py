"""Every task counts its samples, trains its model and loads from its own keys; an unknown task is refused."""

import numpy as np
import pytest

from asyncfeded import tasks
from asyncfeded.testing import TaskTests
from conftest import num_calls
from tasks.data import PLAYS, digits, leaf_file, synthetic, table, writers


@pytest.mark.parametrize("table", [{}, {"name": "mnist"}])
def test_an_unknown_task_is_refused_and_the_known_ones_named(table):
    with pytest.raises(ValueError, match=rf"task\.name = {table.get('name')!r}: unknown task.*digits, federated_h5"):
        tasks.load_task(table)


OWN_DATA = {
    "images": ("pictures", {"split": "class"}),
    "resnet": ("pictures", {"model": "resnet", "split": "group"}),
    "blocks": ("text", {"test_share": 0.5}),
    "regression": ("rows", {}),
    "classes": ("rows", {"target": "one", "features": ["x", "y"], "kind": "classification", "group": "site", "classes": 2}),
}
"""Tasks of arrays, text and tables: fixture and keys."""


@pytest.fixture(params=["even", "dirichlet", "h5", "leaf", "logistic", "mlp", "roles", "windows", *OWN_DATA])
def every_task(request):
    """A small one of every kind, with 3 clients at least."""
    if request.param in ("even", "dirichlet"):
        return digits(split=request.param)
    if request.param in ("logistic", "mlp"):
        return synthetic(model=request.param, devices=4, samples_max=60)
    if request.param in OWN_DATA:
        fixture, keys = OWN_DATA[request.param]
        return request.getfixturevalue(fixture)(**keys)
    if request.param == "roles":
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
        return tasks.load_task(table(self.task))


def test_the_resolved_keys_of_a_task_load_it_again(every_task):
    assert tasks.load_task(table(every_task)) == every_task


@pytest.fixture(params=["even", "dirichlet", "h5", "synthetic", "roles", "skipped", "class", "files", "groups"])
def task_of(request):
    """A task of so many clients, writers, devices or roles."""

    def make(clients):
        names = [f"N{i:03}" for i in range(clients)]
        if request.param in ("even", "dirichlet"):
            return digits(split=request.param, samples_min=1, alpha=100.0)
        if request.param == "synthetic":
            return synthetic(devices=clients, samples_max=60)
        if request.param == "h5":
            return request.getfixturevalue("h5")(writers(clients))
        if request.param == "class":
            labels = np.arange(3 * clients) % 5
            return request.getfixturevalue("pictures")(
                {"images": np.ones((len(labels), 1, 4, 5)), "labels": labels}, f"{clients}.npz", split="class"
            )
        if request.param == "groups":
            lines = [f"{i},{i},{i % clients}" for i in range(9 * clients)]
            return request.getfixturevalue("rows")(["x,y,site", *lines], f"{clients}.csv", features=[], group="site")
        if request.param == "files":
            files = {f"{clients}/{name}.txt": "To be, or not" for name in names}
            return request.getfixturevalue("text")(files, split="file", pattern=f"{clients}/*.txt")
        texts = {name: ["To be, or not to be"] for name in names}
        too_short = "skip" if request.param == "skipped" else "refuse"
        return request.getfixturevalue("shakespeare")(texts, {"N000": ["or not"]}, too_short=too_short)

    return make


def test_all_clients_of_a_task_take_a_time_that_is_linear_in_them(task_of):
    """Four times the clients: about four times the calls, where it was sixteen times."""

    def start(clients):
        task = task_of(clients)

        def ask():
            task.sizes(clients, 0)
            for client in range(clients):
                task.client_data(client, clients, 0)

        return num_calls(ask)

    start(10)  # imports
    assert start(160) < 6 * start(40)
