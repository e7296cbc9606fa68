"""Task tabular standardises the columns of a table, splits its rows, and refuses keys that do not fit."""

import re

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from asyncfeded import tasks
from tasks.data import changed, refused, split

LINES = ["x,site,y", "1,b,10", "3,a,30", "5,b,20", "7,a,40"]
"""Trained on as a whole: x has mean 4 and deviation sqrt(5), y mean 25 and deviation sqrt(125)."""


class Says(nn.Module):
    """A model that says the same of every row."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = torch.tensor(outputs, dtype=torch.float32)

    def forward(self, inputs):
        return self.outputs.expand(len(inputs), -1)


@pytest.fixture
def whole(rows, tmp_path):
    """A task that trains on four rows, and tests on two others."""
    rows(["y,x", "25,4", "35,9"], "test.csv")

    def write(**keys):
        return rows(LINES, features=["x"], test=str(tmp_path / "test.csv"), **keys)

    return write


def test_features_and_target_are_standardised_by_the_rows_trained_on(whole):
    """Also those of other tables: 4 is the mean of x, 9 is 5 / sqrt(5) above it; 35 is 10 / sqrt(125) above that of y."""
    task = whole(group="site")
    inputs, targets = task.client_data(0, 2, 0)  # site a
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.float32)
    assert torch.allclose(inputs, torch.tensor([[-1.0], [3.0]]) / 5**0.5)
    assert torch.allclose(targets, torch.tensor([5.0, 15.0]) / 125**0.5)
    inputs, targets = task.test_data()
    assert torch.allclose(inputs, torch.tensor([[0.0], [5.0]]) / 5**0.5)
    assert torch.allclose(targets, torch.tensor([0.0, 10.0]) / 125**0.5)


def test_the_mae_is_in_the_unit_of_the_target_and_the_loss_is_not(whole):
    """A model that says 2 deviations of y above its mean, 25 + 2 sqrt(125), of rows of 25 and 35."""
    task, model = whole(), Says(2.0)
    says, data = 2 * 125**0.5, task.test_data()
    sums = {name: (float(total), count) for name, (total, count) in task.score(model, data).items()}
    assert sums == {
        "mae": (pytest.approx(says + (says - 10)), 2),
        "loss": (pytest.approx((says**2 + (says - 10) ** 2) / 125), 2),
    }
    assert float(task.loss(model, data)) == pytest.approx(sums["loss"][0] / 2)
    assert {name: metric.best for name, metric in task.metrics.items()} == {"mae": "min", "loss": "min"}


def test_the_model_can_predict_rows_as_they_stand_in_the_table(whole):
    """A layer that says x: of a row with x = 9, 5 / sqrt(5) deviations above the mean of y."""
    model = whole(model="linear").model()
    assert [name for name, _ in model.named_parameters()] == ["layers.0.weight", "layers.0.bias"]
    with torch.no_grad():
        model.layers[0].weight.fill_(1.0)
        model.layers[0].bias.fill_(0.0)
        assert model.predict(torch.tensor([[4.0], [9.0]])).flatten().tolist() == pytest.approx(
            [25, 25 + 5 / 5**0.5 * 125**0.5]
        )
    assert sorted(model.state_dict())[:2] == ["deviation", "layers.0.bias"]


def test_the_mlp_has_hidden_layers(whole):
    model = whole(hidden=3, layers=2).model()
    assert [tuple(p.shape) for p in model.parameters()] == [(3, 1), (3,), (3, 3), (3,), (1, 3), (1,)]


def test_a_constant_column_is_0_and_the_last_column_may_be_one_of_groups(rows):
    """Without names all columns but target and groups are features, in the order of the table."""
    task = rows(features=[], group="site")
    inputs, _ = task.client_data(0, 1, 0)
    assert inputs.shape == (18, 2)
    assert inputs[:, 1].abs().max() == 0
    assert inputs[:, 0].mean().item() == pytest.approx(0, abs=1e-6)


def test_a_column_is_constant_also_where_its_mean_is_rounded(rows, tmp_path):
    """The deviation of a thousand times 0.1 is 1e-17."""
    rows(["c,y", "0.2,0", "0.1,1"], "other.csv")
    task = rows(["c,y", *(f"0.1,{i}" for i in range(1000))], features=[], test=str(tmp_path / "other.csv"))
    assert torch.allclose(task.test_data().inputs, torch.tensor([[0.1], [0.0]]))


def test_classes_are_predicted_by_scores(rows):
    task = rows(["x,y", *(f"{i},{i % 3}" for i in range(20))], features=[], kind="classification")
    inputs, targets = task.client_data(0, 1, 0)
    assert targets.dtype == torch.int64
    assert set(targets.tolist()) == {0, 1, 2}
    assert task.model()(inputs).shape == task.model().predict(inputs).shape == (18, 3)
    assert list(task.metrics) == ["accuracy", "loss"]
    correct, count = task.score(Says(0.0, 1.0, 0.0), (inputs, targets))["accuracy"]
    assert (int(correct), count) == ((targets == 1).sum(), 18)
    assert changed(task, classes=5).model()(inputs).shape == (18, 5)


def test_rows_of_a_group_are_of_one_client_and_a_tenth_is_held_back(rows):
    """20 rows, x // 4 is the group of x; two are held back. Groups h0 to h4 over two clients: 0, 2, 4 and 1, 3."""
    task = rows(group="site", features=["x"])
    (mean, deviation), _ = task._moments
    x = [(data.inputs[:, 0] * deviation[0] + mean[0]).round().int().tolist() for data in [*split(task, 2), task.test_data()]]
    assert sorted(i for part in x for i in part) == list(range(20))
    assert [sorted({i // 4 for i in part}) for part in x[:2]] == [[0, 2, 4], [1, 3]]
    assert task.sizes(2, 0).tolist() == [len(x[0]), len(x[1])]
    assert len(x[2]) == 2
    assert task.remarks()[0].endswith(
        "data.csv: 2 of 20 samples are held back for testing (task.test_share = 0.1), of all groups, also of those that are "
        "trained on"
    )


def test_a_client_tests_on_the_rows_of_its_groups_or_on_its_part(rows, tmp_path):
    """Half of 20 rows are held back."""
    task = rows(group="site", features=["x"], test_share=0.5)
    (mean, deviation), _ = task._moments
    groups = []
    for data in (task.held_out(0, 2, 0), task.held_out(1, 2, 0)):
        groups.append({round(float(x * deviation[0] + mean[0])) // 4 for x in data.inputs[:, 0]})
    assert groups[0] <= {0, 2, 4}
    assert groups[1] <= {1, 3}
    assert [len(rows(test_share=0.5).held_out(client, 3, 0).targets) for client in range(3)] == [4, 3, 3]
    with pytest.raises(ValueError, match=r"client 2 has no rows to test on; raise task.test_share, or lower clients"):
        rows().held_out(2, 3, 0)
    with pytest.raises(ValueError, match=r"task\.test is for the server; leave it out"):
        changed(task, test=str(tmp_path / "data.csv")).held_out(0, 2, 0)


def test_without_groups_rows_are_shuffled_by_the_seed_of_the_run(rows):
    task = rows()
    assert task.sizes(4, 0).tolist() == [5, 5, 4, 4]
    assert not torch.equal(task.client_data(0, 4, 0).inputs, task.client_data(0, 4, 1).inputs)


def test_a_table_of_hdf5_is_that_of_a_csv(rows, tmp_path):
    csv = rows(group="site")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        x = np.arange(20)
        for name, column in {"x": x, "y": 3 * x + 100, "one": np.ones(20), "site": [f"h{i // 4}" for i in x]}.items():
            file[f"t/{name}"] = column
    for one, two in zip(split(csv, 3), split(changed(csv, data=str(tmp_path / "a.h5"), table="t"), 3), strict=True):
        assert torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.targets, two.targets)


FAULTS = {
    "a missing value": (["x,y", "1,2", ",4"], {}, "data.csv: line 3: x is '', expected a number; fill the gap, or leave"),
    "text": (["x,y", "1,2", "a,4"], {}, "data.csv: line 3: x is 'a', expected a number"),
    "no target": (["x,z", "1,2", "3,4"], {}, "data.csv: line 1: no column y, expected y"),
    "no feature": (["x,y", "1,2", "3,4"], {"features": ["z"]}, "data.csv: line 1: no column z, expected y, z"),
    "only a target": (["y", "2", "4"], {}, "data.csv: has no column to predict y from"),
    "no group": (["x,y", "1,2", "3,4"], {"group": "site"}, "data.csv: line 1: no column site, expected y, site"),
    "one group": (
        ["x,y,g", "1,2,a", "3,4,a"],
        {"group": "g"},
        "data.csv: g has 1 groups to train on, too few for 2",
    ),
    "classes that are none": (
        ["x,y", "1,0.5", "3,4"],
        {"kind": "classification"},
        "data.csv: y holds 0.5, expected",
    ),
    "one row": (["x,y", "1,2"], {}, "data.csv: 1 samples, too few to hold back 0.1 of them for testing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_table_is_told_with_column_and_line(rows, fault):
    lines, keys, words = FAULTS[fault]
    task = rows(lines, **({"features": []} | keys))
    with pytest.raises(ValueError, match=re.escape(words)):
        task.client_data(0, 2, 0), task.model()


@pytest.mark.parametrize(("keys", "words"), [
    ({"features": ["x", "y"]}, "features holds 'y', which is the target"),
    ({"features": ["x"], "group": "x"}, "features holds 'x', which is the group"),
    ({"group": "y"}, "target and group are both 'y'; expected two columns"),
    ({"features": ["x", "x"]}, "features names a column twice"),
])  # fmt: skip
def test_keys_of_a_table_that_do_not_fit_are_refused(keys, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        tasks.load_task({"name": "tabular", "data": "a.csv", "target": "y"} | keys)


def test_a_file_that_is_not_there_is_refused(rows):
    refused(changed(rows(), data="gone.csv"), "gone.csv: no such file; give the path of a CSV file, an HDF5 file or a *.npz")
