"""How the data of a task is split, read and refused."""

import re
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from asyncfeded import tasks
from asyncfeded.tasks.classification import Classification

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


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
        tasks.load(table)


# --- digits


def digits(**keys):
    pytest.importorskip("sklearn", reason="task digits needs scikit-learn")
    return tasks.load({"name": "digits", **keys})


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
        tasks.load({"name": "digits"}).test_data()


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
        return tasks.load(
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
        tasks.load(table)


real = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {'/'.join(SHARED.parts[-2:])} beside the repository")


@real
def test_the_real_digits_by_writer_are_read_whole():
    """539 writers, 53,764 + 6,236 images (README.md beside them)."""
    task = tasks.load(
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
        tasks.load({"name": "federated_h5", "train": path, "test": path, "classes": 2}).client_data(0, 1, 0)
