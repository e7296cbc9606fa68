"""`images`: images and their labels as arrays of one HDF5 file or *.npz, split over the clients by a law of choice.

The images are numbers (n, channels, height, width), or what `layout` says, the labels whole numbers (n,) or (n, 1). The test
part lies in the same file under other names, or in another file, or is a share of the images that is held back.
"""

from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from asyncfeded.files.arrays import find, open_arrays
from asyncfeded.seeds import Stream, numpy_rng
from asyncfeded.tasks.augment import augment
from asyncfeded.tasks.classification import Batch, Classification, Data, Sums
from asyncfeded.tasks.pixels import Scale, full_pixel, magnitude, to_labels, to_unit
from asyncfeded.tasks.resnet import Norm, ResNet
from asyncfeded.tasks.splits import (
    hold_back,
    remark_held_back,
    split_alike,
    split_by_class,
    split_by_group,
    split_dirichlet,
    split_even,
)

ADVICE = "give the path of an HDF5 file or a *.npz as task.data=..."
TO_CHW = {"chw": (0, 1, 2, 3), "hwc": (0, 3, 1, 2), "hw": (0, 1, 2)}
"""Order in which the axes of a layout, behind that of the images, become channels, height and width."""


class Part(NamedTuple):
    """The training part or the test part: a file, the names of its arrays, and the begin of the keys that name these."""

    path: Path
    images: str
    labels: str
    key: str


@final
class Images(Classification):
    """Images and labels are arrays of one HDF5 file or *.npz.

    Every rank reads the whole file once. Images of bytes stay bytes, and become floats batch by batch. A model gets
    float32 (n, channels, height, width), from 0 to 1 unless `scale` is `as_is`.
    """

    data: Path
    """HDF5 file or *.npz of NumPy."""
    images: str = Field("images", min_length=1)
    """Array of the images; in HDF5 a path such as `train/images`."""
    labels: str = Field("labels", min_length=1)
    """Array of the labels, from 0 on."""
    layout: Literal["chw", "hwc", "hw"] = "chw"
    """Axes of an image: chw (channels, height, width), hwc (channels last) or hw (one channel, without an axis)."""
    test: Path | None = None
    """Another file, of the test part; its arrays have the names of those in `data` unless `test_images` and `test_labels`
    say otherwise. Not given: the test part is in `data`, or is held back."""
    test_images: str = ""
    """Array of the test images. Empty: with `test`, as `images`; else `test_share` of the images is held back."""
    test_labels: str = ""
    """Array of the test labels. Empty: as `test_images`."""
    test_share: float = Field(0.1, gt=0, lt=1)
    """Part of the images that is held back for testing, drawn and always the same, where there is no test part."""
    scale: Scale = "auto"
    """The number of a full pixel in all arrays; all are divided by it. auto: 255 where pixels are uint8, 1 where they are
    floats; other integers are refused. as_is: the numbers are taken as they are."""
    classes: int = Field(0, ge=0)
    """Number of classes. 0: the largest label plus one."""
    split: Literal["even", "dirichlet", "class", "group"] = "even"
    """How training images are split: `even` (shuffled, equal parts), `dirichlet` (unequal parts with unequal classes),
    `class` (few classes for each client) or `group` (by the array `groups`, such as writers, which are dealt in turn)."""
    alpha: float = Field(1.0, gt=0, le=1e6)
    """Dirichlet concentration: each class is dealt to the clients in proportions drawn from Dirichlet(alpha). Small: each
    client sees few classes; large: all alike (Hsu et al. 2019, arXiv 1909.06335)."""
    samples_min: int = Field(10, ge=1)
    """Fewest samples of a client in a Dirichlet split, which is redrawn until all have them."""
    classes_each: int = Field(2, ge=1)
    """Classes of each client where split = class; more if a class had no client otherwise."""
    groups: str = Field("groups", min_length=1)
    """Array of the groups where split = group: whole numbers or texts (n,)."""
    flip: bool = False
    """Whether a training image is mirrored, left to right, with probability 1/2."""
    crop: int = Field(0, ge=0)
    """Pixels by which a training image is moved at most in each direction; black pixels move in. 0: off."""
    architecture: Literal["cnn", "resnet"] = Field("cnn", alias="model")
    """The model: `cnn` (two convolutions with pooling, two dense layers) or `resnet` (6 x `blocks` + 2 layers)."""
    width: int = Field(16, ge=1)
    """Channels of the first convolution; later ones have 2 (cnn) or 2 and 4 (resnet) times as many."""
    hidden: int = Field(128, ge=1)
    """Units of the hidden dense layer of `cnn`."""
    blocks: int = Field(1, ge=1)
    """Blocks of each of the three stages of `resnet`; 3 make the ResNet-20 of CIFAR-10."""
    norm: Norm = "batch"
    """Norm of `resnet`: batch (its statistics travel and are averaged) or group (has none; often better where clients have
    unequal classes, Hsieh et al. 2020, arXiv 1910.00189)."""

    @model_validator(mode="after")
    def _names_of_test(self) -> "Images":
        if not self.test and bool(self.test_images) != bool(self.test_labels):
            raise ValueError("test_images and test_labels go together; give both, or a file of the test part as test")
        return self

    def model(self) -> nn.Module:
        """A CNN of two convolutions of 3 x 3, or a residual network."""
        channels, height, width = self._shape
        if self.architecture == "resnet":
            return ResNet(channels, self._num_classes, self.width, self.blocks, self.norm)
        if height < 4 or width < 4:
            raise ValueError(f"{self.data}: images of {height} x {width} pixels are too small, expected at least 4 x 4")
        return nn.Sequential(
            nn.Conv2d(channels, self.width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(self.width, 2 * self.width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * self.width * (height // 4) * (width // 4), self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self._num_classes),
        )

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """See `Task`; looks at no image."""
        return np.array([len(part) for part in self._parts(num_clients, seed)], np.int64)

    def client_data(self, client: int, num_clients: int, seed: int) -> Data:
        """See `Task`."""
        return self._take(False, self._parts(num_clients, seed)[client])

    def test_data(self) -> Data:
        """See `Task`."""
        return self._take(True, self._rows[1])

    def held_out(self, client: int, num_clients: int, seed: int) -> Data:
        """See `HoldsOut`: test images of its groups, or of its classes in the proportions of its training images."""
        if self.split == "group" and self._part(test=True) != self._part(test=False):
            raise ValueError("the test part has no groups, and a client no test images of its own; leave the test part out")
        rows = self._dealt_test(num_clients, seed)[client]
        if not len(rows):
            raise ValueError(f"client {client} has no test images of its own; lower clients, or give more images to test on")
        return self._take(True, self._rows[1][rows])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats of images that are flipped and moved, in one pass over the batch."""
        images, labels = batch
        if self.flip or self.crop:
            images = augment(images, self.flip, self.crop)
        return super().loss(model, (self._floats(images), labels))

    def score(self, model: nn.Module, batch: Batch) -> Sums:
        """Accuracy and cross-entropy, of the images as they are."""
        images, labels = batch
        return super().score(model, (self._floats(images), labels))

    def remarks(self) -> list[str]:
        """See `Remarks`."""
        if self._part(test=True) != self._part(test=False):
            return []
        return [remark_held_back(self.data, self._rows, self.test_share, self.split == "group")]

    # Caches of this task alone, since a file may change from run to run: a rank asks for one client after the other.
    @cached_property
    def _parts(self) -> Callable[[int, int], list[np.ndarray]]:
        return lru_cache(maxsize=1)(self._deal)

    @cached_property
    def _dealt_test(self) -> Callable[[int, int], list[np.ndarray]]:
        return lru_cache(maxsize=1)(self._deal_test)

    @cached_property
    def _labels(self) -> Callable[[Part], np.ndarray]:
        return lru_cache(maxsize=2)(partial(_read_labels, classes=self.classes))

    @cached_property
    def _pixels(self) -> Callable[[Part], np.ndarray]:
        return lru_cache(maxsize=2)(self._read_pixels)

    def _part(self, test: bool) -> Part:
        """Where the images of training or of testing lie; one and the same place where some of them are held back."""
        if test and (self.test or self.test_images):
            images, labels = self.test_images or self.images, self.test_labels or self.labels
            return Part(self.test or self.data, images, labels, "task.test_" if self.test_images else "task.")
        return Part(self.data, self.images, self.labels, "task.")

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows to train on, of the training part, and those to test on, of the test part."""
        train, test = (self._part(test=False), self._part(test=True))
        counts = [len(self._labels(part)) for part in (train, test)]
        if train == test:
            return hold_back(counts[0], self.test_share, str(self.data))
        return np.arange(counts[0]), np.arange(counts[1])

    @cached_property
    def _num_classes(self) -> int:
        parts = (self._part(test=False), self._part(test=True))
        return self.classes or 1 + max(int(self._labels(part).max()) for part in parts)

    @cached_property
    def _shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a training image, the shape that all must have."""
        return _shape(self._part(test=False), self.layout)

    def _take(self, test: bool, rows: np.ndarray) -> Data:
        """The samples in some rows of a part, checked."""
        part, train = self._part(test), self._part(test=False)
        if (shape := _shape(part, self.layout)) != self._shape:
            raise ValueError(
                f"{part.path}: {part.images}: images of {shape} (channels, height, width), expected {self._shape} as in "
                f"{train.path}: {train.images}"
            )
        pixels, labels = self._pixels(part), self._labels(part)
        if len(labels) != len(pixels):
            raise ValueError(
                f"{part.path}: {part.labels} has {len(labels)} labels, expected {len(pixels)}, one for each of {part.images}"
            )
        inputs = torch.from_numpy(pixels[rows]).permute(TO_CHW[self.layout])
        inputs = inputs.unsqueeze(1) if inputs.ndim == 3 else inputs.contiguous()
        return Data(inputs, torch.from_numpy(labels[rows]))

    def _read_pixels(self, part: Part) -> np.ndarray:
        """All images of a part, in the layout of the file: uint8 as they are there, anything else as float32."""
        train = self._part(test=False)
        like = magnitude(self._pixels(train)) if self.scale == "as_is" and part != train else 0.0
        with open_arrays(part.path, ADVICE) as file:
            array = find(file, part.path, part.images, f"{part.key}images")
            images = array.read()
        if images.dtype != np.uint8:
            return to_unit(images, self.scale, array.where, like)
        full_pixel(images, self.scale, array.where, like)
        return images

    def _deal(self, num_clients: int, seed: int) -> list[np.ndarray]:
        """Rows of each client."""
        (train, _), rng = self._rows, numpy_rng(seed, Stream.SPLIT)
        kinds = self._kinds[train]
        if self.split == "even":
            split = split_even(len(train), num_clients, rng)
        elif self.split == "dirichlet":
            split = split_dirichlet(kinds, num_clients, self.alpha, self.samples_min, rng)
        elif self.split == "class":
            split = split_by_class(kinds, num_clients, self.classes_each, rng)
        else:
            split = split_by_group(kinds, num_clients, f"{self.data}: {self.groups}")
        return [train[rows] for rows in split]

    def _deal_test(self, num_clients: int, seed: int) -> list[np.ndarray]:
        """Which of the rows to test on are each client's."""
        part, kinds = self._part(test=True), self._kinds
        held = (kinds if part == self._part(test=False) else self._labels(part))[self._rows[1]]
        return split_alike(held, [kinds[rows] for rows in self._parts(num_clients, seed)])

    @cached_property
    def _kinds(self) -> np.ndarray:
        """What decides over the split: the group of each image of the training part, or its label."""
        part = self._part(test=False)
        labels = self._labels(part)
        if self.split != "group":
            return labels
        with open_arrays(part.path, ADVICE) as file:
            array = find(file, part.path, self.groups, "task.groups")
            if array.shape != labels.shape or not (array.is_text or array.dtype.kind in "iu"):
                expected = f"whole numbers or texts {labels.shape}, one for each of {part.labels}"
                raise ValueError(f"{array.where}: is {array.dtype} {array.shape}, expected {expected}")
            return np.array(array.texts()) if array.is_text else array.read()

    def _floats(self, images: Tensor) -> Tensor:
        """Images of bytes as the model takes them; others are so already."""
        if images.is_floating_point():
            return images
        full = 255.0 if self.scale == "auto" else 1.0 if self.scale == "as_is" else self.scale
        return images.float().div_(full)


def _read_labels(part: Part, classes: int) -> np.ndarray:
    """All labels of a part, int64 (n,)."""
    with open_arrays(part.path, ADVICE) as file:
        array = find(file, part.path, part.labels, f"{part.key}labels")
        column = array.shape[1:] in ((), (1,)) and array.dtype.kind in "fiu"
        if not array.shape or not column or not array.shape[0]:
            raise ValueError(f"{array.where}: is {array.dtype} {array.shape}, expected integers of shape (n,), one or more")
        return to_labels(array.read().reshape(-1), classes, array.where)


def _shape(part: Part, layout: str) -> tuple[int, int, int]:
    """Channels, height and width, as the file declares them. Raises ValueError if they are none in this layout."""
    with open_arrays(part.path, ADVICE) as file:
        array = find(file, part.path, part.images, f"{part.key}images")
    shape, axes = array.shape, {"chw": "(n, channels, height, width)", "hwc": "(n, height, width, channels)"}
    is_ = f"{array.where}: is {array.dtype} {shape}"
    if array.dtype.kind not in "fiu" or len(shape) != len(TO_CHW[layout]) or 0 in shape:
        expected = f"{axes.get(layout, '(n, height, width)')} (task.layout = {layout})"
        other = {3: "hw", 4: "hwc"}.get(len(shape), layout)
        hint = f'; set task.layout = "{other}" if that is what it is' if other != layout else ""
        raise ValueError(f"{is_}, expected numbers of shape {expected}, one image or more{hint}")
    if layout == "hw":
        return 1, shape[1], shape[2]
    first, last = shape[1] <= 4, shape[3] <= 4
    if first != last and first != (layout == "chw"):
        come = ("first", "chw") if first else ("last", "hwc")
        raise ValueError(f'{is_}, where the channels seem to come {come[0]}; set task.layout = "{come[1]}"')
    return tuple(shape[axis] for axis in TO_CHW[layout][1:])  # type: ignore[return-value]
