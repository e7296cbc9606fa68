"""Task federated_h5 deals writers of HDF5 files to the clients, and refuses faulty files."""

import re

import h5py
import numpy as np
import pytest
import torch

from asyncfeded import tasks
from asyncfeded.tasks import tff
from tasks.data import SHARED, changed, images, numbers, real, refused, samples, split, writers


def test_each_writer_goes_to_one_client_in_turn(h5):
    """Five writers, two clients: 0, 2, 4 and 1, 3."""
    task = h5()
    assert sorted(set(task.client_data(0, 2, 0).targets.tolist())) == [0, 2, 4]
    assert sorted(set(task.client_data(1, 2, 0).targets.tolist())) == [1, 3]


@pytest.mark.parametrize("clients", [1, 2, 3, 5])
def test_no_image_of_a_writer_is_lost_or_dealt_twice(h5, clients):
    """1 + 2 + 3 + 4 + 5 = 15 images, numbered in their first pixel."""
    parts = split(h5(), clients)
    assert sorted(number for data in parts for number in numbers(data)) == list(range(15))


def test_images_and_labels_stay_together(h5):
    """Writer w2 has the images 3, 4 and 5."""
    data = h5().client_data(2, 5, 0)
    assert numbers(data) == [3.0, 4.0, 5.0]
    assert data.targets.tolist() == [2, 2, 2]


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
    "broken label": ({"label": [0.0, 0.5]}, "label holds 0.5, expected integers"),
    "NaN label": ({"label": [0.0, np.nan]}, "label holds nan, expected integers"),
    "infinite label": ({"label": [0.0, np.inf]}, "label goes from 0.0 to inf, expected integers from 0"),
    "huge label": ({"label": np.array([0, 2**64 - 1], np.uint64)}, f"label goes from 0 to {2**64 - 1}, expected integers"),
    "large label": ({"label": [0, 20_000]}, "label goes from 0 to 20000, expected integers from 0"),
    "labels of text": ({"label": np.array([b"a", b"b"])}, "label is |S1 (2,), expected integers"),
    "channels first": (
        {"pixels": np.zeros((2, 3, 4, 6))},
        "pixels has shape (2, 3, 4, 6), channels first; expected them last",
    ),
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
    refused(task, "train.h5: writer bad: no field 'label', it has none")


@pytest.mark.parametrize("soft", [True, False])
def test_a_writer_of_two_names_is_refused(h5, tmp_path, soft):
    task = h5()
    with h5py.File(tmp_path / "train.h5", "a") as file:
        file["examples/w9"] = h5py.SoftLink("/examples/w3") if soft else file["examples/w3"]
    refused(task, "train.h5: writers w3 and w9 are one and the same by way of a link; remove one of them")


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


def test_femnist_is_another_name_of_federated_h5(h5):
    one, two = h5(), h5(name="femnist")
    assert samples(one.client_data(0, 2, 0)) == samples(two.client_data(0, 2, 0))


def cifar(count=3):
    """TensorFlow Federated's CIFAR-100: other names, images of bytes, and two kinds of labels."""
    rng = np.random.default_rng(0)
    return {
        str(writer): {
            "image": rng.integers(0, 256, (6, 8, 8, 3), np.uint8),
            "label": np.arange(6) + 90,
            "coarse_label": np.arange(6) + writer,
        }
        for writer in range(count)
    }


def test_the_names_of_the_fields_are_keys(h5):
    words = "no field 'pixels', it has coarse_label, image, label; name the right one with task.pixels"
    refused(h5(cifar(), cifar(), classes=100), f"train.h5: writer 0: {words}")
    fine, coarse = (h5(cifar(), cifar(), pixels="image", label=label) for label in ("label", "coarse_label"))
    inputs, targets = fine.client_data(0, 3, 0)
    assert torch.equal(255 * inputs, torch.from_numpy(cifar()["0"]["image"]).permute(0, 3, 1, 2).float())
    assert targets.tolist() == [90, 91, 92, 93, 94, 95]
    assert coarse.client_data(1, 3, 0).targets.tolist() == [1, 2, 3, 4, 5, 6]
    assert (len(fine.model()[-1].bias), len(coarse.model()[-1].bias)) == (96, 8)


def test_the_same_images_as_bytes_and_as_floats_are_the_same_data(h5):
    floats, data = h5().client_data(0, 1, 0), {}
    for name, fields in writers().items():
        data[name] = fields | {"pixels": (fields["pixels"] * 255).round().astype(np.uint8)}
    bytes_ = h5(data, data).client_data(0, 1, 0)
    assert torch.allclose(bytes_.inputs, floats.inputs, atol=0.5 / 255)
    assert torch.equal(bytes_.targets, floats.targets)


def times(factor, kind=np.float32, where="test"):
    """Good data, and in one place the same data of another scale."""
    other = {name: fields | {"pixels": (fields["pixels"] * factor).astype(kind)} for name, fields in writers().items()}
    return writers() | {"w1": other["w1"]} if where == "writer" else other


@pytest.mark.parametrize("scale", ["auto", 1.0, "as_is"])
@pytest.mark.parametrize("place", ["test", "writer"])
def test_two_scales_in_one_run_are_refused(h5, scale, place):
    refused(h5(test=times(255, where=place), scale=scale), "test.h5: writer w", "pixels goes from 0 to ")


@pytest.mark.parametrize("place", ["test", "writer"])
def test_floats_up_to_1_are_refused_where_a_full_pixel_is_255(h5, place):
    large = times(255, where="all")
    small = times(1) if place == "test" else large | {"w1": writers()["w1"]}
    task = h5(large, small, scale=255)
    assert numbers(task.client_data(0, 1, 0)) == pytest.approx(list(range(15)))
    refused(task, "test.h5: writer w", "hardly anything where a full pixel is 255 (float32, task.scale = 255.0)")


def test_integers_that_are_no_bytes_ask_for_their_scale(h5):
    data = times(65535, np.uint16)
    refused(h5(data, data), "pixels goes from 0 to ", " as uint16; say what a full pixel is, such as task.scale = 255")
    task = h5(data, data, scale=65535)
    assert task.client_data(0, 1, 0).inputs[:, 0, 0, 1].tolist() == [1.0] * 15


def test_writers_without_samples_are_skipped_where_the_config_says_so(h5):
    data = writers() | {"w0": {"pixels": images(0, 4, 6), "label": np.zeros(0, int)}}
    refused(h5(data), 'train.h5: writer w0: no samples; remove the writer, or set task.empty = "skip"')
    task = h5(data, empty="skip")
    assert task.sizes(4, 0).tolist() == [2, 3, 4, 5]
    assert changed(task, writers=1).sizes(1, 0).tolist() == [2]
    (said,) = task.remarks()
    assert said.endswith("train.h5: 1 of 5 writers have no samples and are left out (task.empty)")
    nobody = {"w0": data["w0"]}
    refused(h5(nobody, empty="skip"), "train.h5: no writer has a sample")


def test_data_that_is_trained_and_tested_on_is_told(h5, tmp_path):
    assert h5().remarks() == []
    (said,) = changed(h5(test=writers()), test=str(tmp_path / "train.h5")).remarks()
    assert said.endswith("train.h5 is trained on and tested on: the accuracy is that of samples that the clients know")


def test_whole_labels_may_be_floats(h5):
    floats = {name: fields | {"label": fields["label"].astype(np.float64)} for name, fields in writers().items()}
    assert samples(h5(floats, floats).client_data(0, 1, 0)) == samples(h5().client_data(0, 1, 0))


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
    with pytest.raises(ValueError, match=re.escape(f"{path}: writer ") + ".*no field 'label', it has snippets; name"):
        tasks.load_task({"name": "federated_h5", "train": path, "test": path, "classes": 2}).client_data(0, 1, 0)


@real
def test_the_real_digits_by_writer_are_counted():
    task = tasks.load_task({"name": "femnist", "train": str(SHARED / "digits_by_writer_train.h5"), "test": "unused"})
    sizes = task.sizes(539, 0)
    assert sizes.sum() == 53_764
    assert [len(task.client_data(client, 539, 0).targets) for client in (0, 538)] == [sizes[0], sizes[538]]


def test_a_file_is_opened_once_for_each_client(h5, monkeypatch):
    """The names of all writers are read once, not for every client."""
    opened, open_examples = [], tff.open_examples

    def note(path, who):
        opened.append(path.name)
        return open_examples(path, who)

    monkeypatch.setattr(tff, "open_examples", note)
    task = h5(writers(30))
    task.sizes(30, 0)
    before = len(opened)
    for client in range(30):
        task.client_data(client, 30, 0)
    assert len(opened) - before <= 31
