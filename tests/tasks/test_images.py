"""Task images reads arrays of any layout, splits and augments them, and refuses what it cannot know."""

import re

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from asyncfeded import tasks
from asyncfeded.tasks.augment import augment
from asyncfeded.tasks.resnet import Block, ResNet
from tasks.data import changed, read_all, refused, split

RNG = np.random.default_rng(0)
COLOURED = RNG.integers(0, 256, (6, 3, 8, 9), np.uint8)
LABELS = np.arange(6) % 2


def numbers(data):
    """The first pixel of each image, in which the fixture writes its number."""
    return data.inputs[:, 0, 0, 0].tolist()


class Sees(nn.Module):
    """A model that keeps what it is given."""

    def forward(self, images):
        self.seen = images
        return torch.zeros(len(images), 3)


@pytest.mark.parametrize("kind", ["npz", "h5"])
@pytest.mark.parametrize(("layout", "axes"), [("chw", (0, 1, 2, 3)), ("hwc", (0, 2, 3, 1))])
def test_every_layout_gives_the_same_images(tmp_path, kind, layout, axes):
    values, path = {"p": COLOURED.transpose(axes), "q": LABELS[:, None]}, tmp_path / "data"
    if kind == "npz":
        with path.open("wb") as raw:
            np.savez(raw, **values)
    else:
        with h5py.File(path, "w") as file:
            for name, array in values.items():
                file[f"train/{name}"] = array
    prefix = "train/" if kind == "h5" else ""
    keys = {"images": f"{prefix}p", "labels": f"{prefix}q", "layout": layout, "test_share": 0.5}
    task = tasks.load_task({"name": "images", "data": str(path)} | keys)
    data = task.client_data(0, 1, 0)
    assert (data.inputs.dtype, data.targets.dtype, data.inputs.is_contiguous()) == (torch.uint8, torch.int64, True)
    images = {tuple(image.flatten()): label for image, label in zip(COLOURED, LABELS, strict=True)}
    for some in (data, task.test_data()):
        assert [images[tuple(image.flatten().tolist())] for image in some.inputs] == some.targets.tolist()
        assert some.inputs.shape == (3, 3, 8, 9)
    assert task.model()(data.inputs.float()).shape == (3, 2)


def test_grey_images_without_an_axis_of_channels_get_one(pictures):
    task = pictures({"images": np.ones((30, 4, 5), np.float32)}, layout="hw")
    assert task.test_data().inputs.shape == (3, 1, 4, 5)


@pytest.mark.parametrize(("images", "scale", "full"), [
    (np.full((30, 1, 4, 5), 51, np.uint8), "auto", 255), (np.full((30, 1, 4, 5), 51.0), 255, 255),
    (np.full((30, 1, 4, 5), 13107, np.uint16), 65535, 65535), (np.full((30, 1, 4, 5), 0.2), "auto", 1),
    (np.full((30, 1, 4, 5), 8, np.uint8), 40, 40),
])  # fmt: skip
def test_the_model_sees_floats_from_0_to_1(pictures, images, scale, full):
    """51 of 255, 13,107 of 65,535 and 8 of 40 are a fifth. Bytes stay bytes until the model sees them."""
    task, model = pictures({"images": images}, scale=scale), Sees()
    for data, ask in ((task.client_data(0, 1, 0), task.loss), (task.test_data(), task.score)):
        assert data.inputs.dtype == (torch.uint8 if images.dtype == np.uint8 else torch.float32)
        ask(model, data)
        assert model.seen.dtype == torch.float32
        assert torch.allclose(model.seen, torch.tensor(0.2))


def test_images_are_taken_as_they_are_where_the_config_says_so(pictures):
    task, model = pictures({"images": np.full((30, 1, 4, 5), -3, np.int16)}, scale="as_is"), Sees()
    task.loss(model, task.client_data(0, 1, 0))
    assert model.seen.unique().tolist() == [-3]


def test_a_tenth_is_held_back_where_there_is_no_test_part(pictures):
    task = pictures()
    train, test = numbers(task.client_data(0, 1, 0)), numbers(task.test_data())
    assert (len(test), sorted(train + test)) == (3, list(range(30)))
    assert numbers(changed(task, split="class").test_data()) == test
    (said,) = task.remarks()
    assert said.endswith("data.npz: 3 of 30 samples are held back for testing (task.test_share = 0.1)")
    assert changed(task, split="group").remarks()[0].endswith(", of all groups, also of those that are trained on")


OTHER = {"x": np.full((2, 1, 4, 5), 200, np.uint8), "y": np.array([2, 3])}


def test_the_test_part_may_have_other_names_in_the_same_file(pictures):
    task = pictures(OTHER, test_images="x", test_labels="y")
    assert (len(task.client_data(0, 1, 0).targets), task.test_data().targets.tolist(), task.remarks()) == (30, [2, 3], [])
    assert len(task.model()[-1].bias) == 4


def test_the_test_part_may_be_another_file(pictures, tmp_path):
    pictures({"images": OTHER["x"], "labels": OTHER["y"]}, name="test.npz")
    task = pictures(test=str(tmp_path / "test.npz"))
    assert (len(task.client_data(0, 1, 0).targets), task.test_data().targets.tolist()) == (30, [2, 3])
    np.savez(tmp_path / "test.npz", **OTHER)
    assert changed(task, test_images="x", test_labels="y").test_data().targets.tolist() == [2, 3]


def test_each_split_deals_the_images_of_training(pictures):
    """27 images of 3 classes and 6 groups of 5, of which 3 images are held back."""
    train = sorted(numbers(pictures().client_data(0, 1, 0)))
    for keys in ({}, {"split": "dirichlet", "samples_min": 1}, {"split": "class"}, {"split": "group"}):
        task = pictures(**keys)
        parts = split(task, 3)
        assert sorted(number for data in parts for number in numbers(data)) == train
        assert [len(data.targets) for data in parts] == task.sizes(3, 0).tolist()
        assert all(number % 3 == label for data in parts for number, label in zip(numbers(data), data.targets, strict=True))


def test_few_classes_and_whole_groups_go_to_a_client(pictures):
    """Three clients of one class of three; groups 0 to 5 are dealt in turn: 0 and 3, 1 and 4, 2 and 5."""
    assert [len(set(data.targets.tolist())) for data in split(pictures(split="class", classes_each=1), 3)] == [1, 1, 1]
    groups = [sorted({number // 5 for number in numbers(data)}) for data in split(pictures(split="group"), 3)]
    assert groups == [[0, 3], [1, 4], [2, 5]]
    names = np.array([f"w{i // 5}" for i in range(30)])
    assert [numbers(data) for data in split(pictures({"groups": names}, split="group"), 3)] == [
        numbers(data) for data in split(pictures(split="group"), 3)
    ]


def test_a_client_has_test_images_of_its_groups_or_classes(pictures):
    """Half of 30 images are held back; whatever the split, they are dealt as the others are."""
    for keys in ({"split": "group"}, {"split": "class", "classes_each": 1}, {"split": "dirichlet", "samples_min": 1}, {}):
        task = pictures(test_share=0.5, **keys)
        held = [task.held_out(client, 3, 0) for client in range(3)]
        assert sorted(number for data in held for number in numbers(data)) == sorted(numbers(task.test_data()))
        kind = (lambda number: number // 5) if keys.get("split") == "group" else (lambda number: number % 3)
        for own, data in zip(held, split(task, 3), strict=True):
            assert {kind(number) for number in numbers(own)} <= {kind(number) for number in numbers(data)}
    with pytest.raises(ValueError, match="the test part has no groups, and a client no test images of its own; leave the"):
        pictures(OTHER, test_images="x", test_labels="y", split="group").held_out(0, 2, 0)
    task = pictures({"x": OTHER["x"], "y": [1, 1]}, test_images="x", test_labels="y", split="class", classes_each=1)
    sizes = [
        len(task.held_out(client, 3, 0).targets) if 1 in data.targets else 0 for client, data in enumerate(split(task, 3))
    ]
    assert sorted(sizes) == [0, 0, 2]
    with pytest.raises(ValueError, match=f"client {sizes.index(0)} has no test images of its own; lower clients, or give"):
        task.held_out(sizes.index(0), 3, 0)


def by_hand(image, mirrored, down, right, crop):
    """One image, moved and mirrored pixel by pixel."""
    moved = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            i, j = row + down - crop, (width - 1 - column if mirrored else column) + right - crop
            if 0 <= i < height and 0 <= j < width:
                moved[:, row, column] = image[:, i, j]
    return moved


@pytest.mark.parametrize(("flip", "crop"), [(True, 0), (False, 2), (True, 2)])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_each_image_is_moved_and_mirrored_by_a_draw_of_its_own(flip, crop, kind):
    images = torch.from_numpy(COLOURED).to(kind)
    torch.manual_seed(1)
    mirrored, (down, right) = torch.rand(6, 1) < 0.5 * flip, torch.randint(0, 2 * crop + 1, (2, 6, 1))
    expected = [by_hand(images[i], mirrored[i], int(down[i]), int(right[i]), crop) for i in range(6)]
    torch.manual_seed(1)
    assert torch.equal(augment(images, flip, crop), torch.stack(expected))
    assert mirrored.unique().tolist() == ([False, True] if flip else [False])
    assert len(down.unique()) > (1 if crop else 0)


def test_only_images_of_training_are_moved(pictures):
    task, model = pictures({"images": RNG.random((30, 1, 4, 5))}, flip=True, crop=1), Sees()
    data = task.client_data(0, 1, 0)
    task.score(model, data)
    assert torch.equal(model.seen, data.inputs)
    seen = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        task.loss(model, data)
        seen.append(model.seen)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize(("norm", "buffers"), [("batch", 3 * 19), ("group", 0)])
def test_the_resnet_of_20_layers_has_its_parameters(norm, buffers):
    """Weights 432, 6 x 2,304, 4,608 + 5 x 9,216 + 512, 18,432 + 5 x 36,864 + 2,048; 2 (7 x 16 + 6 x 32 + 6 x 64); 650."""
    model = ResNet(3, 10, 16, 3, norm)
    assert sum(p.numel() for p in model.parameters()) == 432 + 13_824 + 51_200 + 204_800 + 1_376 + 650
    assert len(list(model.buffers())) == buffers
    assert sum(isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) for layer in model.modules()) == 19
    assert model(torch.rand(2, 3, 32, 32)).shape == model(torch.rand(2, 3, 7, 5)).shape == (2, 10)


def test_a_block_begins_as_its_input():
    images = torch.rand(2, 4, 5, 5)
    assert torch.equal(Block(4, 4, "group")(images), images)
    assert Block(4, 8, "batch")(images).shape == (2, 8, 3, 3)


FAULTS = {
    "no images": ({"images": None}, {}, "no array 'images', it has groups, labels; name the right one with task.images"),
    "no labels": ({"labels": None}, {}, "no array 'labels', it has groups, images; name the right one with task.labels"),
    "no groups": ({"groups": None}, {"split": "group"}, "no array 'groups', it has images, labels; name the right one with"),
    "too few groups": ({"groups": [1]}, {"split": "group"}, "groups: is int64 (1,), expected whole numbers or"),
    "broken groups": ({"groups": np.full(30, 0.5)}, {"split": "group"}, "groups: is float64 (30,), expected whole"),
    "too few labels": ({"labels": [0, 1]}, {}, "labels has 2 labels, expected 30, one for each of images"),
    "labels in two columns": ({"labels": np.ones((30, 2), int)}, {}, "labels: is int64 (30, 2), expected integers of"),
    "no label": ({"labels": np.zeros(0, int)}, {}, "labels: is int64 (0,), expected integers of shape (n,), one or more"),
    "broken label": ({"labels": np.full(30, 0.5)}, {}, "labels holds 0.5, expected integers"),
    "label beyond": ({}, {"classes": 2}, "labels goes from 0 to 2, expected integers from 0 to 1 (task.classes)"),
    "one axis less": ({"images": np.ones((30, 4, 5))}, {}, 'expected numbers of shape (n, channels, height, width) (task'),
    "its hint": ({"images": np.ones((30, 4, 5))}, {}, 'set task.layout = "hw" if that is what it is'),
    "channels last": ({"images": np.ones((30, 9, 8, 3))}, {}, 'seem to come last; set task.layout = "hwc"'),
    "channels first": ({"images": np.ones((30, 3, 9, 8))}, {"layout": "hwc"}, 'seem to come first; set task.layout = "chw"'),
    "text": ({"images": np.full((30, 1, 4, 5), "a")}, {}, "images: is <U1 (30, 1, 4, 5), expected numbers of shape"),
    "no image": ({"images": np.ones((0, 1, 4, 5))}, {}, "images: is float64 (0, 1, 4, 5), expected numbers of shape"),
    "too small": ({"images": np.ones((30, 1, 3, 5))}, {}, "images of 3 x 5 pixels are too small, expected at least 4 x 4"),
    "two scales": (OTHER | {"x": OTHER["x"] / 1.0}, {"test_images": "x", "test_labels": "y"}, "x goes from 200 to 200, exp"),
    "bytes that are 0 and 1": ({"images": np.ones((30, 1, 4, 5), np.uint8)}, {}, "hardly anything where a full pixel is"),
    "unknown scale": ({"images": np.ones((30, 1, 4, 5), int)}, {}, "as int64; say what a full pixel is, such as task.scale"),
    "NaN": ({"images": np.full((30, 1, 4, 5), np.nan)}, {}, "images holds a value that is not finite"),
    "other test images": (
        OTHER | {"x": np.ones((2, 1, 5, 5))},
        {"test_images": "x", "test_labels": "y"},
        "x: images of (1, 5, 5) (channels, height, width), expected (1, 4, 5) as in",
    ),
    "no test images": ({}, {"test_images": "x", "test_labels": "y"}, "no array 'y', it has groups, images, labels; name"),
    "nothing left": ({"images": np.ones((1, 1, 4, 5)), "labels": [0]}, {}, "1 samples, too few to hold back 0.1 of them"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_the_arrays_is_told_with_file_and_array(pictures, tmp_path, fault):
    arrays, keys, words = FAULTS[fault]
    arrays = {name: array if array is None else np.asarray(array) for name, array in arrays.items()}
    refused(pictures(arrays, **keys), f"{tmp_path / 'data.npz'}", words)


def test_only_both_names_of_a_test_part_make_sense(pictures):
    with pytest.raises(ValueError, match=re.escape("task: test_images and test_labels go together; give both")):
        pictures(test_images="x")
    with pytest.raises(ValueError, match="no such file; give the path of an HDF5 file or"):
        read_all(tasks.load_task({"name": "images", "data": "gone.npz"}))
