"""How the data of a task is split, read and refused."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from asyncfeded import tasks
from asyncfeded.model.flat import FlatModel
from asyncfeded.seeds import Stream, numpy_rng
from asyncfeded.tasks import shakespeare as shakespeare_room
from asyncfeded.tasks.classification import Classification
from asyncfeded.tasks.shakespeare import VOCABULARY

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


# --- classification


def test_loss_is_the_mean_cross_entropy():
    """Scores (0, log 3) give the second class 3/4: -log 3/4 and, for the first, -log 1/4."""
    outputs = torch.tensor([[0.0, np.log(3.0)]]).repeat(2, 1)
    loss = Classification().loss(outputs, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((-np.log(0.75) - np.log(0.25)) / 2)


def test_evaluate_gives_summed_loss_correct_and_count():
    outputs = torch.tensor([[0.0, np.log(3.0)]]).repeat(3, 1)
    loss, correct, count = Classification().evaluate(outputs, torch.tensor([1, 0, 1]))
    assert loss == pytest.approx(-2 * np.log(0.75) - np.log(0.25))
    assert (correct, count) == (2, 3)


@pytest.mark.parametrize("table", [{}, {"name": "mnist"}])
def test_an_unknown_task_is_refused_and_the_known_ones_named(table):
    with pytest.raises(ValueError, match=rf"task\.name = {table.get('name')!r}: unknown task.*digits, federated_h5"):
        tasks.load_task(table)


# --- digits


def digits(**keys):
    pytest.importorskip("sklearn", reason="task digits needs scikit-learn")
    return tasks.load_task({"name": "digits", **keys})


def samples(data):
    """How often each sample, image and label, occurs."""
    return Counter((x.numpy().tobytes(), int(y)) for x, y in zip(*data, strict=True))


def split(task, clients, seed=0):
    return [task.client_data(client, clients, seed) for client in range(clients)]


splits = pytest.mark.parametrize("kind", ["even", "dirichlet"])


@splits
def test_digits_are_dealt_with_none_lost_and_none_twice(kind):
    """What all clients of a split get together is what one client alone gets, and with the test data all 1797 images."""
    from sklearn.datasets import load_digits

    task = digits(split=kind)
    dealt = sum((samples(data) for data in split(task, 7)), Counter())
    bunch = load_digits()
    everything = Counter(
        ((image / 16).astype(np.float32).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    assert dealt + samples(task.test_data()) == everything
    assert dealt.total() == 1438


@splits
def test_digits_of_training_are_not_those_of_testing(kind):
    task = digits(split=kind)
    test = samples(task.test_data())
    assert test.total() == 359
    assert not set(test) & set().union(*map(samples, split(task, 3)))


@splits
def test_the_same_seed_gives_the_same_split(kind):
    for one, two in zip(split(digits(split=kind), 5, 3), split(digits(split=kind), 5, 3), strict=True):
        assert torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.targets, two.targets)


@splits
def test_another_seed_gives_another_split(kind):
    task = digits(split=kind)
    assert samples(task.client_data(0, 5, 3)) != samples(task.client_data(0, 5, 4))


def test_an_even_split_gives_parts_that_differ_by_one_at_most():
    """1438 = 3 * 480 - 2."""
    assert sorted(len(data.targets) for data in split(digits(split="even"), 3)) == [479, 479, 480]


def most_common_share(task):
    """Part of the clients' samples that are of the commonest class of each."""
    return np.mean([np.bincount(data.targets).max() / len(data.targets) for data in split(task, 5)])


def test_a_small_alpha_gives_each_client_few_classes():
    """Ten classes evenly: 0.1 each."""
    assert most_common_share(digits(alpha=0.05, samples_min=1)) > 0.4
    assert most_common_share(digits(alpha=1000.0)) < 0.15


def test_every_client_gets_the_fewest_samples_asked_for():
    assert min(len(data.targets) for data in split(digits(alpha=0.1, samples_min=40), 8)) >= 40


@splits
def test_more_clients_than_there_are_samples_for_are_refused(kind):
    with pytest.raises(ValueError, match=r"1438 training images, too few for 144 clients of at least 10; lower clients"):
        digits(split=kind).client_data(0, 144, 0)


def test_a_dirichlet_split_that_never_comes_is_refused():
    """Five equal parts of 1438 hold 287 or 288 each; Dirichlet(0.1) does not give that."""
    with pytest.raises(ValueError, match=r"no Dirichlet\(0\.1\) split .* at least 287 in 1000 draws; raise task\.alpha"):
        digits(alpha=0.1, samples_min=287).client_data(0, 5, 0)


def test_digits_are_images_of_one_channel_between_0_and_1():
    inputs, targets = digits().client_data(0, 5, 0)
    assert inputs.shape[1:] == (1, 8, 8)
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert (inputs.min(), inputs.max()) == (0.0, 1.0)


def test_the_model_of_digits_gives_a_score_for_each_class():
    task = digits()
    assert task.model()(task.test_data().inputs[:3]).shape == (3, 10)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'asyncfeded\[digits\]'"):
        tasks.load_task({"name": "digits"}).test_data()


# --- federated_h5


def images(n, *shape, first=0):
    """Images whose first pixel is first, first + 1, ..."""
    block = np.zeros((n, *shape), np.float32)
    block[(slice(None), *(0 for _ in shape))] = np.arange(first, first + n)
    return block


def writers(count=5, shape=(4, 6)):
    """Writer wK has K + 1 images, numbered through, of class K."""
    starts = np.cumsum([0, *range(1, count)])
    return {
        f"w{k}": {"pixels": images(k + 1, *shape, first=starts[k]), "label": np.full(k + 1, k, np.int32)}
        for k in range(count)
    }


@pytest.fixture
def h5(tmp_path):
    """Writes training and test data, by default good; gives the task."""

    def write(train=None, test=None, **keys):
        for name, people in (("train", train), ("test", test)):
            with h5py.File(tmp_path / f"{name}.h5", "w") as file:
                for writer, fields in (people or writers()).items():
                    for field, values in fields.items():
                        file[f"examples/{writer}/{field}"] = values
        return tasks.load_task(
            {"name": "federated_h5", "train": str(tmp_path / "train.h5"), "test": str(tmp_path / "test.h5")} | keys
        )

    return write


def test_each_writer_goes_to_one_client_in_turn(h5):
    """Five writers, two clients: 0, 2, 4 and 1, 3."""
    task = h5()
    assert sorted(set(task.client_data(0, 2, 0).targets.tolist())) == [0, 2, 4]
    assert sorted(set(task.client_data(1, 2, 0).targets.tolist())) == [1, 3]


@pytest.mark.parametrize("clients", [1, 2, 3, 5])
def test_no_image_of_a_writer_is_lost_or_dealt_twice(h5, clients):
    """1 + 2 + 3 + 4 + 5 = 15 images, numbered in their first pixel."""
    parts = split(h5(), clients)
    assert sorted(number for data in parts for number in data.inputs[:, 0, 0, 0].tolist()) == list(range(15))


def test_images_and_labels_stay_together(h5):
    """Writer w2 has the images 3, 4 and 5."""
    inputs, targets = h5().client_data(2, 5, 0)
    assert inputs[:, 0, 0, 0].tolist() == [3.0, 4.0, 5.0]
    assert targets.tolist() == [2, 2, 2]


def test_all_writers_are_tested_on(h5):
    assert len(h5().test_data().targets) == 15


def test_grey_images_get_a_channel(h5):
    task = h5()
    inputs, targets = task.client_data(0, 1, 0)
    assert inputs.shape == (15, 1, 4, 6)
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert task.model()(inputs).shape == (15, 5)


def test_channels_come_first(h5):
    task = h5(writers(shape=(4, 6, 3)), writers(shape=(4, 6, 3)))
    inputs, _ = task.client_data(0, 1, 0)
    assert inputs.shape == (15, 3, 4, 6)
    assert inputs[:, 0, 0, 0].tolist() == sorted(inputs[:, 0, 0, 0].tolist())
    assert inputs[:, 1:].abs().max() == 0
    assert task.model()(inputs).shape == (15, 5)


def test_the_mlp_of_images_takes_any_shape(h5):
    task = h5(writers(shape=(2, 3, 2)), writers(shape=(2, 3, 2)), model="mlp", hidden=7)
    model = task.model()
    assert [tuple(p.shape) for p in model.parameters()] == [(7, 12), (7,), (5, 7), (5,)]
    assert model(task.client_data(0, 1, 0).inputs).shape == (15, 5)


def test_writers_keeps_the_first_by_name(h5):
    task = h5(writers=2)
    assert sorted(set(task.client_data(0, 1, 0).targets.tolist())) == [0, 1]
    assert len(task.test_data().targets) == 3


def test_the_number_of_classes_is_the_largest_label_of_both_files_plus_one(h5):
    task = h5(test={"w": {"pixels": images(1, 4, 6), "label": np.array([8])}})
    assert task.model()(torch.zeros(1, 1, 4, 6)).shape == (1, 9)


def test_the_number_of_classes_can_be_given(h5):
    assert h5(classes=62).model()(torch.zeros(1, 1, 4, 6)).shape == (1, 62)


def read_all(task):
    """What the ranks of a run with one client ask of a task, in their order."""
    task.model()
    task.client_data(0, 1, 0)
    task.test_data()


def refused(task, *words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the words are compared
        read_all(task)
    for word in words:
        assert word in str(caught.value)


GOOD = {"pixels": images(2, 4, 6), "label": np.array([0, 1])}
FAULTS = {
    "no pixels": ({"pixels": None}, "no field 'pixels'"),
    "no labels": ({"label": None}, "no field 'label'"),
    "other shape": ({"pixels": images(2, 4, 5)}, "pixels has shape (2, 4, 5), expected images of 4 x 6 pixels"),
    "flat": ({"pixels": images(2, 24)}, "pixels is float32 (2, 24), expected numbers of shape (n, height, width)"),
    "pixels of text": ({"pixels": np.full((2, 4, 6), b"x")}, "pixels is |S1 (2, 4, 6), expected numbers"),
    "too many labels": ({"label": [0, 1, 1]}, "label has shape (3,), expected (2,), one for each image"),
    "labels in a column": ({"label": [[0], [1]]}, "label is int64 (2, 1), expected integers"),
    "one label": ({"label": 0}, "label is int64 (), expected integers"),
    "empty": ({"pixels": images(0, 4, 6), "label": np.zeros(0, int)}, "no samples; remove the writer"),
    "negative label": ({"label": [-1, 0]}, "label goes from -1 to 0, expected integers from 0"),
    "float labels": ({"label": [0.0, 1.0]}, "label is float64 (2,), expected integers"),
    "NaN label": ({"label": [0.0, np.nan]}, "label is float64 (2,), expected integers"),
    "labels of text": ({"label": np.array([b"a", b"b"])}, "label is |S1 (2,), expected integers"),
    "NaN pixels": ({"pixels": np.full((2, 4, 6), np.nan)}, "pixels holds a value that is not finite"),
    "infinite pixels": ({"pixels": np.full((2, 4, 6), np.inf)}, "pixels holds a value that is not finite"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", ["train", "test"])
@pytest.mark.parametrize("classes", [2, 0], ids=["given", "counted"])
def test_a_fault_in_a_file_is_told_with_file_writer_and_field(h5, tmp_path, fault, place, classes):
    """Also where the classes are counted, which looks at labels before anything is checked."""
    changed, words = FAULTS[fault]
    bad = {field: values for field, values in (GOOD | changed).items() if values is not None}
    files = {"train": {"a": GOOD}, "test": {"a": GOOD}}
    files[place] = {"a": GOOD, "bad": bad}
    refused(h5(**files, classes=classes), f"{tmp_path / place}.h5: writer bad: ", words)


def test_a_label_beyond_the_classes_is_refused(h5):
    bad = GOOD | {"label": np.array([0, 2])}
    words = "train.h5: writer bad: label goes from 0 to 2, expected integers from 0 to 1 (task.classes)"
    refused(h5({"a": GOOD, "bad": bad}, classes=2), words)


def test_a_writer_that_is_no_group_is_refused(h5, tmp_path):
    task = h5({"a": GOOD}, classes=2)
    with h5py.File(tmp_path / "train.h5", "a") as file:
        file["examples/bad"] = 1
    refused(task, "train.h5: writer bad: no field 'pixels', expected pixels and label")


def test_too_few_writers_are_refused(h5):
    with pytest.raises(
        ValueError, match=r"train\.h5 has 5 writers \(task\.writers = 0\), too few for 6 clients; lower clients"
    ):
        h5().client_data(0, 6, 0)


def test_images_too_small_to_pool_twice_are_refused(h5):
    refused(h5(writers(shape=(3, 6))), "train.h5: images of 3 x 6 pixels are too small, expected at least 4 x 4")


def test_test_images_of_another_shape_are_refused(h5):
    refused(h5(test=writers(shape=(6, 4))), "test.h5: writer w0: pixels has shape (1, 6, 4)", "as in", "train.h5")


@pytest.mark.parametrize("place", ["train", "test"])
def test_a_missing_file_is_refused(h5, tmp_path, place):
    task = h5()
    (tmp_path / f"{place}.h5").unlink()
    refused(task, f"{place}.h5: no such file; give the path")


@pytest.mark.parametrize("place", ["train", "test"])
def test_a_file_that_is_not_hdf5_is_refused(h5, tmp_path, place):
    task = h5()
    (tmp_path / f"{place}.h5").write_text("label,pixels\n")
    refused(task, f"{place}.h5: not a readable HDF5 file")


@pytest.mark.parametrize("content", [None, "group", "dataset"])
def test_a_file_without_examples_is_refused(h5, tmp_path, content):
    task = h5()
    with h5py.File(tmp_path / "train.h5", "w") as file:
        if content == "group":
            file.create_group("examples")
        elif content == "dataset":
            file["examples"] = [1, 2]
    refused(task, "train.h5: no group `examples` with a group for each writer")


@pytest.mark.parametrize("key", ["train", "test"])
def test_both_files_are_required(key):
    table = {"name": "federated_h5", "train": "a.h5", "test": "b.h5"}
    del table[key]
    with pytest.raises(ValueError, match=rf"^task: {key}[^{{]*required"):
        tasks.load_task(table)


# --- femnist, LEAF's layout


def test_femnist_is_another_name_of_federated_h5(h5):
    one, two = h5(), h5(name="femnist")
    assert two.name == "femnist"
    assert samples(one.client_data(0, 2, 0)) == samples(two.client_data(0, 2, 0))


def row(pixel):
    """An image of LEAF, 784 numbers of which the first tells which it is."""
    return [float(pixel), *[0.5] * 783]


def leaf_file(people):
    """{user: (x, y)} as LEAF writes it."""
    return {
        "users": list(people),
        "num_samples": [len(y) for _, y in people.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in people.items()},
    }


LEAF = {
    "train/b.json": leaf_file({"w1": ([row(4)], [1]), "w0": ([row(5), row(6)], [0, 9])}),
    "train/a.json": leaf_file({"w2": ([row(1)], [2]), "w0": ([row(2), row(3)], [3, 4])}),
    "test/a.json": leaf_file({"w0": ([row(7)], [0])}),
}
"""Four images of w0, in both files of training; one of w1 and of w2."""


def write_leaf(folder, files):
    """Every file's content as JSON, or as it is where it is bytes."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


@pytest.fixture
def femnist(tmp_path):
    def write(files=LEAF, **keys):
        write_leaf(tmp_path, files)
        return tasks.load_task({"name": "femnist", "train": str(tmp_path / "train"), "test": str(tmp_path / "test")} | keys)

    return write


def test_files_of_a_leaf_directory_are_merged_by_user(femnist):
    """By name of user; the samples of w0 in the order of the files' names, a before b."""
    task = femnist()
    numbers = [task.client_data(client, 3, 0).inputs[:, 0, 0, 0].tolist() for client in range(3)]
    assert numbers == [[2.0, 3.0, 5.0, 6.0], [4.0], [1.0]]
    assert task.client_data(0, 3, 0).targets.tolist() == [3, 4, 0, 9]
    assert task.test_data().inputs[:, 0, 0, 0].tolist() == [7.0]


def test_users_of_a_leaf_directory_are_dealt_in_turn(femnist):
    assert sorted(femnist().client_data(0, 2, 0).inputs[:, 0, 0, 0].tolist()) == [1.0, 2.0, 3.0, 5.0, 6.0]
    assert femnist(writers=1).sizes(1, 0).tolist() == [4]
    with pytest.raises(ValueError, match=r"train has 3 writers \(task\.writers = 0\), too few for 4 clients"):
        femnist().sizes(4, 0)


def test_images_of_leaf_are_28_by_28_of_62_classes(femnist):
    task = femnist()
    inputs, targets = task.client_data(0, 1, 0)
    assert inputs.shape == (6, 1, 28, 28)
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert task.model()(inputs).shape == (6, 62)
    assert femnist(classes=10).model()(inputs).shape == (6, 10)


def test_other_files_of_a_leaf_directory_are_left_alone(femnist, tmp_path):
    task = femnist()
    (tmp_path / "train" / "stats.txt").write_text("no JSON")
    assert task.sizes(1, 0).tolist() == [6]


def test_a_changed_leaf_file_is_read_again(femnist):
    """Counts are kept from call to call, but not beyond a change."""
    assert femnist().sizes(3, 0).tolist() == [4, 1, 1]
    more = {"train/b.json": leaf_file({"w1": ([row(4), row(8)], [1, 1]), "w3": ([row(5), row(6)], [0, 9])})}
    assert femnist(LEAF | more).sizes(4, 0).tolist() == [2, 2, 1, 2]


def changed(user="w9", **fields):
    """A file with one user more, whose fields are these."""
    content = leaf_file({"w8": ([row(8)], [1]), user: ([row(9)], [1])})
    content["user_data"][user] |= fields
    return content


def without(key):
    return {name: value for name, value in changed().items() if name != key}


LEAF_FAULTS = {
    "not JSON": (b"users", "not JSON (Expecting value"),
    "not UTF-8": (b'{"users": ["\xff"]}', "not JSON ("),
    "a list": ([1], "users is not a list, expected LEAF's users, num_samples and user_data"),
    "no users": (without("users"), "users is not a list"),
    "no num_samples": (without("num_samples"), "num_samples is not a list"),
    "no user_data": (without("user_data"), "user_data is not an object"),
    "no user": (leaf_file({}), "users is empty or holds other things than names"),
    "numbered users": (changed() | {"users": [1, 2]}, "users is empty or holds other things than names"),
    "listed twice": (changed() | {"users": ["w8", "w8"]}, "users names w8 twice"),
    "not listed": (changed() | {"users": ["w8"], "num_samples": [1]}, "user_data holds w9, which users does not name"),
    "few num_samples": (changed() | {"num_samples": [1]}, "num_samples has 1 numbers, expected 2, one for each of users"),
    "no data": (changed() | {"user_data": {"w8": {"x": [row(8)], "y": [1]}}}, "user w9: not in user_data"),
    "no x": (changed(x=None), "user w9: x is not a list"),
    "no y": (changed(y={}), "user w9: y is not a list"),
    "empty": (changed(x=[], y=[]), "user w9: y is empty, expected samples; remove the user"),
    "more x": (changed(x=[row(9), row(8)]), "user w9: x has 2 entries, y has 1 and num_samples says 1, expected one number"),
    "more num_samples": (changed() | {"num_samples": [1, 2]}, "user w9: x has 1 entries, y has 1 and num_samples says 2"),
    "short row": (changed(x=[row(9)[:-1]]), "writer w9: x has a row of 783 numbers, expected 784: 28 x 28 pixels"),
    "no row": (changed(x=["ab"]), "writer w9: x has a row of 'ab', expected 784"),
    "text in a row": (changed(x=[["a", *row(9)[1:]]]), "writer w9: x holds something that is not a number"),
    "nested row": (changed(x=[[[1.0], *row(9)[1:]]]), "writer w9: x holds something that is not a number"),
    "NaN": (changed(x=[row(np.nan)]), "writer w9: x holds a value that is not finite"),
    "too large": (changed(x=[row(1e300)]), "writer w9: x holds a value that is not finite"),
    "null": (changed(x=[[None, *row(9)[1:]]]), "writer w9: x holds a value that is not finite"),
    "label of text": (changed(y=["a"]), "writer w9: y holds something that is not an integer"),
    "label with a point": (changed(y=[1.0]), "writer w9: y holds something that is not an integer"),
    "huge label": (changed(y=[10**30]), "writer w9: y holds something that is not an integer"),
    "negative label": (changed(y=[-1]), "writer w9: y goes from -1 to -1, expected integers from 0 to 61 (task.classes)"),
    "label too large": (changed(y=[62]), "writer w9: y goes from 62 to 62, expected integers from 0 to 61 (task.classes)"),
}


@pytest.mark.parametrize("fault", LEAF_FAULTS)
@pytest.mark.parametrize("place", ["train", "test"])
def test_a_fault_in_a_leaf_file_is_told_with_file_user_and_field(femnist, tmp_path, fault, place):
    content, words = LEAF_FAULTS[fault]
    refused(femnist(LEAF | {f"{place}/c.json": content}), f"{tmp_path / place / 'c.json'}: {words}")


@pytest.mark.parametrize(("label", "words"), [(1, "y is too"), (2, "y is not")])
def test_the_same_samples_in_two_leaf_files_are_refused(femnist, tmp_path, label, words):
    twin = {"train/c.json": leaf_file({"w1": ([row(4)], [label])})}
    file, other = tmp_path / "train" / "c.json", tmp_path / "train" / "b.json"
    refused(femnist(LEAF | twin), f"{file}: writer w1: x is the same as in {other}, {words}")


@pytest.mark.parametrize("place", ["train", "test"])
def test_a_leaf_directory_without_files_is_refused(femnist, tmp_path, place):
    task = femnist()
    for file in (tmp_path / place).iterdir():
        file.unlink()
    refused(task, f"{tmp_path / place}: no *.json file in this directory")


def test_a_missing_leaf_directory_is_refused(femnist, tmp_path):
    refused(femnist(train=str(tmp_path / "none")), f"{tmp_path / 'none'}: no such file; give the path of a data set")


def test_a_client_parses_only_the_files_that_its_users_are_in(femnist, tmp_path, monkeypatch):
    from asyncfeded.tasks import leaf

    task, parsed = femnist(), []
    task.sizes(3, 0)
    monkeypatch.setattr(leaf, "_parse", lambda file, parse=leaf._parse: (parsed.append(file.name), parse(file))[1])
    task.client_data(1, 3, 0)
    assert parsed == ["b.json"]


# --- synthetic


def synthetic(**keys):
    return tasks.load_task({"name": "synthetic", **keys})


def test_synthetic_follows_its_law_number_by_number():
    """The law written down again: counts, u and B of all devices from one stream, the rest from the device's own."""
    task = synthetic(alpha=0.5, beta=2.0, devices=3, data_seed=7)
    rng = numpy_rng(7, Stream.SPLIT)
    counts = np.floor(np.exp(4 + 2 * rng.standard_normal(3))).astype(int) + 50
    u, b = 0.5 * rng.standard_normal(3), 2.0 * rng.standard_normal(3)
    tests = []
    for k in range(3):
        rng = numpy_rng(7, Stream.SPLIT, k)
        v = b[k] + rng.standard_normal(60)
        weight, bias = u[k] + rng.standard_normal((60, 10)), u[k] + rng.standard_normal(10)
        x = v + rng.standard_normal((counts[k], 60)) * np.sqrt(np.arange(1, 61) ** -1.2)
        scores = np.exp(x @ weight + bias)
        y = np.argmax(scores / scores.sum(axis=1, keepdims=True), axis=1)
        train = int(np.floor(0.9 * counts[k] + 1e-9))
        data = task.client_data(k, 3, 0)
        np.testing.assert_allclose(data.inputs.numpy(), x[:train], rtol=1e-5, atol=1e-6)
        assert data.targets.tolist() == y[:train].tolist()
        tests.append((x[train:], y[train:]))
    test = task.test_data()
    np.testing.assert_allclose(test.inputs.numpy(), np.concatenate([x for x, _ in tests]), rtol=1e-5, atol=1e-6)
    assert test.targets.tolist() == np.concatenate([y for _, y in tests]).tolist()


def test_sample_counts_are_lognormal_above_50():
    """LogNormal(4, 2): half above e^4 = 54.6, 15.87 % above e^6 and below e^2, of 20,000 draws; none below 0.9 * 50."""
    sizes = synthetic(devices=20_000).sizes(20_000, 0)
    assert sizes.min() >= 45
    for z, share in ((0, 0.5), (1, 0.1587), (-1, 0.8413)):
        assert np.mean(sizes > 0.9 * (50 + np.exp(4 + 2 * z))) == pytest.approx(share, abs=0.015)


def test_features_have_the_variances_of_the_law():
    """Within a device j^-1.2 for feature j: 1 for the first, 60^-1.2 = 0.00735 for the last; 90,000 samples."""
    inputs, _ = synthetic(sizes_given=[100_000]).client_data(0, 1, 0)
    np.testing.assert_allclose(inputs.double().numpy().var(axis=0), np.arange(1, 61) ** -1.2, rtol=0.03)


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_devices_differ_by_beta(beta):
    """The mean of v_k over 60 features is N(B_k, 1/60), B_k being N(0, beta); within a device v_k has deviation 1."""
    task = synthetic(beta=beta, sizes_given=[400] * 300)
    means = np.stack([task.client_data(k, 300, 0).inputs.double().numpy().mean(axis=0) for k in range(300)])
    assert means.mean(axis=1).std() == pytest.approx(np.sqrt(beta**2 + 1 / 60), rel=0.15)
    assert means.std(axis=1).mean() == pytest.approx(1.0, rel=0.05)


def test_no_class_is_favoured_over_many_devices():
    """Each has a share of 1/10 by symmetry; one device alone has few classes."""
    task = synthetic(sizes_given=[200] * 500)
    shares = np.bincount(task.test_data().targets, minlength=10) / 10_000
    assert shares == pytest.approx(np.full(10, 0.1), abs=0.04)


def test_alpha_moves_all_classes_alike():
    """As the law has it: u_k adds u_k (sum x + 1) to every score, which changes no argmax."""
    one, two = (synthetic(alpha=alpha, devices=4).client_data(1, 4, 0) for alpha in (0.0, 2.0))
    assert torch.equal(one.inputs, two.inputs)
    assert torch.equal(one.targets, two.targets)


def test_a_device_is_drawn_without_the_samples_of_the_others():
    """The second would need 480 TB."""
    task = synthetic(sizes_given=[100, 10**12])
    alone = task.client_data(0, 2, 0)
    assert samples(alone) == samples(synthetic(sizes_given=[100, 20]).client_data(0, 2, 0))
    assert task.sizes(2, 0).tolist() == [90, 9 * 10**11]


def test_given_sizes_are_split_nine_to_one():
    """floor(0.9 * 10) = 9, floor(0.9 * 55) = 49, floor(0.9 * 2) = 1: the tests have 1 + 6 + 1."""
    task = synthetic(sizes_given=[10, 55, 2])
    assert task.sizes(3, 0).tolist() == [9, 49, 1]
    assert len(task.test_data().targets) == 8


def test_given_sizes_leave_models_and_centres_as_they_are():
    drawn = synthetic(devices=3)
    size = len(drawn.client_data(1, 3, 0).targets)
    given = synthetic(sizes_given=[7, 10_000, 7]).client_data(1, 3, 0)
    assert torch.equal(given.inputs[:size], drawn.client_data(1, 3, 0).inputs)


def test_a_cap_cuts_large_devices_only():
    free, capped = synthetic(devices=200).sizes(200, 0), synthetic(devices=200, samples_max=500).sizes(200, 0)
    assert free.max() > 450
    assert capped.tolist() == np.minimum(free, 450).tolist()


def test_devices_are_dealt_in_turn():
    task = synthetic(sizes_given=[10, 20, 30, 40, 50])
    assert task.sizes(2, 0).tolist() == [9 + 27 + 45, 18 + 36]
    one, two = (task.client_data(k, 5, 0).inputs for k in (1, 3))
    assert torch.equal(task.client_data(1, 2, 0).inputs, torch.cat([one, two]))
    with pytest.raises(ValueError, match=r"has 5 devices \(task\.devices = 0\), too few for 6 clients; lower clients to 5"):
        task.client_data(0, 6, 0)


def test_there_are_30_devices_where_nothing_is_said():
    assert len(synthetic().sizes(30, 0)) == 30


def test_the_data_seed_gives_the_data_and_the_seed_of_the_run_does_not():
    task = synthetic(devices=2, samples_max=100)
    assert samples(task.client_data(0, 2, 1)) == samples(task.client_data(0, 2, 2))
    assert samples(task.client_data(0, 2, 1)) != samples(
        synthetic(devices=2, samples_max=100, data_seed=1).client_data(0, 2, 1)
    )


@pytest.mark.parametrize(("keys", "shapes"), [
    ({}, [(10, 60), (10,)]),
    ({"model": "mlp", "hidden": 5}, [(5, 60), (5,), (10, 5), (10,)]),
])  # fmt: skip
def test_the_models_of_synthetic(keys, shapes):
    assert [tuple(p.shape) for p in synthetic(**keys).model().parameters()] == shapes


@pytest.mark.parametrize(("keys", "words"), [
    ({"sizes_given": [5, 1]}, "sizes_given holds 1, expected at least 2"),
    ({"samples_max": 1}, "samples_max = 1, expected at least 2"),
    ({"sizes_given": [5, 5], "devices": 3}, "sizes_given has 2 numbers, but devices = 3; leave devices out"),
    ({"alpha": -1.0}, "alpha = -1.0"),
    ({"model": "cnn"}, "model = 'cnn'"),
    ({"architecture": "mlp"}, "unknown key architecture"),
])  # fmt: skip
def test_keys_of_synthetic_that_do_not_fit_are_refused(keys, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        synthetic(**keys)


# --- shakespeare


def index(text):
    return [VOCABULARY.index(symbol) for symbol in text]


TEXTS = {"A": ["To be,", "or not"], "B": ["abcde"], "C": ["sleep no more"]}
"""With the space between the snippets A has 13 characters, B 5, C 13."""


@pytest.fixture
def shakespeare(tmp_path):
    """Writes snippets, by default of the roles above; windows of 4."""

    def write(train=TEXTS, test=None, **keys):
        for name, roles in (("train", train), ("test", test or {"A": ["or to b"], "Z": ["nobody knows"]})):
            with h5py.File(tmp_path / f"{name}.h5", "w") as file:
                for role, snippets in roles.items():
                    file[f"examples/{role}/snippets"] = snippets
        paths = {name: str(tmp_path / f"{name}.h5") for name in ("train", "test")}
        return tasks.load_task({"name": "shakespeare", "window": 4, "hidden": 6} | paths | keys)

    return write


def windows(data):
    """As text again."""
    return [("".join(VOCABULARY[i] for i in x), VOCABULARY[y]) for x, y in zip(data.inputs, data.targets, strict=True)]


def test_the_vocabulary_is_leafs():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 80
    assert index("\n !Az}") == [0, 1, 2, 25, 78, 79]


def test_every_character_has_an_index_and_an_unknown_one_that_of_the_brace():
    assert shakespeare_room.encode(VOCABULARY).tolist() == list(range(80))
    assert shakespeare_room.encode("a\tb\x7f\u00e9\U0001f600\ud800{").tolist() == [53, 79, 54, 79, 79, 79, 79, 79]


def test_windows_of_a_role_are_cut_at_every_character(shakespeare):
    """`To be, or not`: 13 characters, windows of 4 and the character after: 9."""
    data = shakespeare().client_data(0, 3, 0)
    assert data.inputs.shape == (9, 4)
    assert (data.inputs.dtype, data.targets.dtype) == (torch.uint8, torch.int64)
    assert data.inputs[0].tolist() == index("To b")
    assert windows(data) == [
        ("To b", "e"), ("o be", ","), (" be,", " "), ("be, ", "o"), ("e, o", "r"),
        (", or", " "), (" or ", "n"), ("or n", "o"), ("r no", "t"),
    ]  # fmt: skip


def test_stride_and_the_largest_number_of_windows(shakespeare):
    """Starts 0, 3, 6 of 0 .. 8; test text `or to b`: starts 0, 1, 2."""
    assert windows(shakespeare(stride=3).client_data(0, 3, 0)) == [("To b", "e"), ("be, ", "o"), (" or ", "n")]
    task = shakespeare(stride=3, windows_max=2)
    assert windows(task.client_data(0, 3, 0)) == [("To b", "e"), ("be, ", "o")]
    assert task.sizes(3, 0).tolist() == [2, 1, 2]
    assert windows(shakespeare(test_windows_max=2).test_data()) == [("or t", "o"), ("r to", " ")]


def test_roles_are_dealt_in_turn_and_no_window_spans_two(shakespeare):
    data = shakespeare().client_data(0, 2, 0)
    assert windows(data)[8:10] == [("r no", "t"), ("slee", "p")]
    assert shakespeare().sizes(2, 0).tolist() == [18, 1]


def test_only_roles_trained_on_are_tested_on(shakespeare):
    assert len(shakespeare().test_data().targets) == 3
    refused(shakespeare(role_names=["B"]), "test.h5: none of the roles chosen from")


def test_roles_are_chosen_by_number_or_by_name(shakespeare):
    assert shakespeare(roles=2).sizes(2, 0).tolist() == [9, 1]
    task = shakespeare(role_names=["C", "A"])
    assert windows(task.client_data(0, 2, 0))[0] == ("slee", "p")
    assert len(task.test_data().targets) == 3


@pytest.mark.parametrize(("keys", "words"), [
    ({"roles": 1, "role_names": ["A"]}, "both roles = 1 and role_names are given; leave one of them out"),
    ({"role_names": ["A", "A"]}, "role_names holds 'A' twice"),
    ({"window": 0}, "window = 0"),
])  # fmt: skip
def test_keys_of_shakespeare_that_do_not_fit_are_refused(shakespeare, keys, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        shakespeare(**keys)


def test_a_role_that_is_not_there_is_refused(shakespeare):
    refused(shakespeare(role_names=["A", "a"]), "train.h5: no role 'a' (task.role_names)")
    refused(shakespeare({"HAMLET": ["to be or"]}, role_names=["HAMLT"]), "did you mean HAMLET?")


def test_too_few_roles_are_refused(shakespeare):
    with pytest.raises(
        ValueError, match=r"train\.h5 has 2 roles \(task\.roles = 2\), too few for 3 clients; lower clients to 2"
    ):
        shakespeare(roles=2).sizes(3, 0)


@pytest.mark.parametrize("ask", ["sizes", "client_data"])
@pytest.mark.parametrize("text", [["abcd"], ["a", "b"], []])
def test_a_text_too_short_for_one_window_is_refused(shakespeare, ask, text):
    snippets = np.array(text, dtype=h5py.string_dtype())
    task = shakespeare({"A": ["abcde"], "S": snippets})
    words = f"train.h5: role S: snippets hold {len(' '.join(text))} characters, too few for one window of 4 (task.window)"
    with pytest.raises(ValueError, match=re.escape(words)):
        task.sizes(1, 0) if ask == "sizes" else task.client_data(0, 1, 0)


def test_a_text_too_short_can_be_skipped(shakespeare):
    task = shakespeare({"A": ["abcd"]} | {"B": ["abcde"], "C": ["abcdef"]}, {"B": ["abc"], "C": ["abcde"]}, too_short="skip")
    assert task.sizes(2, 0).tolist() == [1, 2]
    assert len(task.test_data().targets) == 1
    assert task.model_copy(update={"roles": 1}).sizes(1, 0).tolist() == [1]
    with pytest.raises(ValueError, match="too few for one window"):
        task.model_copy(update={"too_short": "refuse"}).test_data()


SNIPPET_FAULTS = {
    "no snippets": ({"text": ["to be or not"]}, "no field 'snippets', expected snippets"),
    "numbers": ({"snippets": [1, 2]}, "snippets is int64 (2,), expected strings of shape (n,)"),
    "one string": ({"snippets": "to be or not"}, "snippets is object (), expected strings of shape (n,)"),
    "not UTF-8": ({"snippets": np.array([b"to be \xff"])}, "snippets holds bytes that are not UTF-8"),
}


@pytest.mark.parametrize("fault", SNIPPET_FAULTS)
@pytest.mark.parametrize("place", ["train", "test"])
def test_a_fault_in_a_snippets_file_is_told_with_file_role_and_field(shakespeare, tmp_path, fault, place):
    fields, words = SNIPPET_FAULTS[fault]
    task = shakespeare({"A": ["abcde"], "bad": ["abcde"]}, {"A": ["abcde"], "bad": ["abcde"]})
    with h5py.File(tmp_path / f"{place}.h5", "a") as file:
        del file["examples/bad"]
        for field, values in fields.items():
            file[f"examples/bad/{field}"] = values
    refused(task, f"{tmp_path / place}.h5: role bad: {words}")


def test_strings_of_fixed_length_are_read_too(shakespeare):
    assert windows(shakespeare({"A": np.array([b"To be"])}).client_data(0, 1, 0)) == [("To b", "e")]


def test_a_missing_file_of_shakespeare_is_refused(shakespeare, tmp_path):
    task = shakespeare()
    (tmp_path / "train.h5").unlink()
    refused(task, "train.h5: no such file; give the path")


PLAYS = {
    "train/a.json": leaf_file({"A": (["To b", "o be"], ["e", ","]), "B": (["abcd"], ["e"])}),
    "train/b.json": leaf_file({"A": ([" be,", "be, "], [" ", "o"])}),
    "test/a.json": leaf_file({"A": (["or t"], ["o"])}),
}


@pytest.fixture
def plays(tmp_path):
    def write(files=PLAYS, **keys):
        write_leaf(tmp_path, files)
        paths = {name: str(tmp_path / name) for name in ("train", "test")}
        return tasks.load_task({"name": "shakespeare", "window": 4, "hidden": 6} | paths | keys)

    return write


def test_windows_of_leaf_are_merged_by_role(plays):
    """A of both files; every third of its four windows, across the files."""
    assert windows(plays().client_data(0, 2, 0)) == [("To b", "e"), ("o be", ","), (" be,", " "), ("be, ", "o")]
    task = plays(stride=3)
    assert windows(task.client_data(0, 2, 0)) == [("To b", "e"), ("be, ", "o")]
    assert task.sizes(2, 0).tolist() == [2, 1]
    assert windows(task.test_data()) == [("or t", "o")]


PLAY_FAULTS = {
    "short x": ((["abc"], ["d"]), "x holds a string of 3, expected strings of 4 characters (task.window)"),
    "long y": ((["abcd"], ["ef"]), "y holds a string of 2, expected strings of 1 character"),
    "x of numbers": (([[1, 2, 3, 4]], ["e"]), "x holds [1, 2, 3, 4], expected strings of 4"),
    "y of numbers": ((["abcd"], [5]), "y holds 5, expected strings of 1"),
}


@pytest.mark.parametrize("fault", PLAY_FAULTS)
@pytest.mark.parametrize("place", ["train", "test"])
def test_a_fault_in_leafs_plays_is_told_with_file_role_and_field(plays, tmp_path, fault, place):
    fields, words = PLAY_FAULTS[fault]
    bad = {"train/a.json": leaf_file({"A": (["To b"], ["e"])}), f"{place}/c.json": leaf_file({"A": fields})}
    refused(plays(PLAYS | bad), f"{tmp_path / place / 'c.json'}: role A: {words}")


def test_the_model_of_shakespeare_is_leafs():
    """80 x 8 embedding; per LSTM layer 4 x 256 x (inputs + 256 + 2 biases), inputs 8 and 256; 257 x 80 at the end."""
    model = tasks.load_task({"name": "shakespeare", "train": "a", "test": "b"}).model()
    assert sum(p.numel() for p in model.parameters()) == 640 + 1024 * (8 + 258) + 1024 * (256 + 258) + 257 * 80
    assert model(torch.zeros(3, 80, dtype=torch.uint8)).shape == (3, 80)


@pytest.mark.parametrize(("embedding", "hidden", "layers"), [(3, 5, 1), (8, 16, 3)])
def test_the_sizes_of_the_model_of_shakespeare_can_be_chosen(shakespeare, embedding, hidden, layers):
    model = shakespeare(embedding=embedding, hidden=hidden, layers=layers).model()
    assert model.embedding.weight.shape == (80, embedding)
    assert (model.lstm.hidden_size, model.lstm.num_layers) == (hidden, layers)


def test_the_score_depends_on_every_character_of_the_window(shakespeare):
    model = shakespeare().model()
    one = torch.tensor([index("abcd")], dtype=torch.uint8)
    for place in range(4):
        two = one.clone()
        two[0, place] += 1
        assert not torch.equal(model(one), model(two))


# --- every task


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


@pytest.mark.parametrize("clients", [1, 2, 3])
def test_sizes_are_what_the_clients_get(every_task, clients):
    sizes = every_task.sizes(clients, 5)
    assert sizes.dtype == np.int64
    assert sizes.shape == (clients,)
    assert sizes.tolist() == [len(data.targets) for data in split(every_task, clients, 5)]


def test_a_step_inside_a_flat_model_lowers_the_loss(every_task):
    """And moves the buffer: the parameters are still views of it."""
    torch.manual_seed(0)
    flat = FlatModel(every_task.model())
    inputs, targets = every_task.client_data(0, 1, 0)
    before = flat.buffer.clone()
    optimizer = torch.optim.SGD(flat.module.parameters(), lr=1e-2)
    loss = every_task.loss(flat.module(inputs), targets)
    loss.backward()
    optimizer.step()
    flat.check_views()
    assert not torch.equal(flat.buffer, before)
    assert every_task.loss(flat.module(inputs), targets) < loss


def test_the_resolved_keys_of_a_task_load_it_again(every_task):
    assert tasks.load_task(every_task.model_dump(mode="json", by_alias=True)) == every_task


# --- the real files


real = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {'/'.join(SHARED.parts[-2:])} beside the repository")


@real
def test_the_real_digits_by_writer_are_read_whole():
    """539 writers, 53,764 + 6,236 images (README.md beside them)."""
    task = tasks.load_task(
        {
            "name": "federated_h5",
            "train": str(SHARED / "digits_by_writer_train.h5"),
            "test": str(SHARED / "digits_by_writer_test.h5"),
        }
    )
    parts = [task.client_data(client, 3, 0) for client in range(3)]
    assert sum(len(data.targets) for data in parts) == 53_764
    test = task.test_data()
    assert test.inputs.shape == (6_236, 1, 28, 28)
    assert sorted(set(test.targets.tolist())) == list(range(10))
    assert task.model()(test.inputs[:2]).shape == (2, 10)
    with pytest.raises(ValueError, match="has 539 writers"):
        task.client_data(0, 540, 0)


@real
def test_the_real_shakespeare_has_no_pixels():
    path = str(SHARED / "shakespeare_by_role_train.h5")
    with pytest.raises(ValueError, match=re.escape(f"{path}: writer ") + ".*no field 'pixels'"):
        tasks.load_task({"name": "federated_h5", "train": path, "test": path, "classes": 2}).client_data(0, 1, 0)


@real
def test_the_real_digits_by_writer_are_counted():
    task = tasks.load_task({"name": "femnist", "train": str(SHARED / "digits_by_writer_train.h5"), "test": "unused"})
    sizes = task.sizes(539, 0)
    assert sizes.sum() == 53_764
    assert [len(task.client_data(client, 539, 0).targets) for client in (0, 538)] == [sizes[0], sizes[538]]


@real
def test_the_real_shakespeare_is_read():
    """1124 roles to train on, 635 of them to test on (README.md beside the files): 80 windows fewer than characters each."""
    paths = {name: SHARED / f"shakespeare_by_role_{name}.h5" for name in ("train", "test")}
    task = tasks.load_task({"name": "shakespeare"} | {name: str(path) for name, path in paths.items()})
    lengths = {}
    for name, path in paths.items():
        with h5py.File(path, "r") as file:
            lengths[name] = {role: len(b" ".join(group["snippets"][:])) for role, group in file["examples"].items()}
    assert task.sizes(1124, 0).tolist() == [lengths["train"][role] - 80 for role in sorted(lengths["train"])]
    with pytest.raises(ValueError, match="has 1124 roles"):
        task.sizes(1125, 0)
    hamlet = task.model_copy(update={"role_names": ("HAMLET_HAMLET",)})
    data = hamlet.client_data(0, 1, 0)
    assert data.inputs.shape == (lengths["train"]["HAMLET_HAMLET"] - 80, 80)
    first = "A little more than kin, and less than kind. Not so, my lord; I am too much i' the sun."
    assert windows(data)[0] == (first[:80], first[80])
    assert len(task.test_data().targets) == sum(lengths["test"].values()) - 80 * 635
