"""`federated_h5` and `femnist`: images by writer, as TensorFlow Federated or LEAF lay them out (EMNIST and its like).

TensorFlow Federated (an HDF5 file): `examples/<writer>/pixels`, numbers (n, height, width) or (n, height, width, channels),
and `examples/<writer>/label`, whole numbers (n,); keys name other fields. LEAF (a directory of *.json files): for each
writer `x`, n rows of 784 numbers (28 x 28 pixels), and `y`, n whole numbers. The two names are one task.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from pydantic import Field
from torch import nn

from asyncfeded.files.hdf5 import Array, Group
from asyncfeded.tasks import leaf, tff
from asyncfeded.tasks.classification import Classification, Data, deal
from asyncfeded.tasks.pixels import Scale, magnitude, to_labels, to_unit

LEAF_SIDE = 28
"""Height and width of LEAF's images."""
LEAF_CLASSES = 62
"""Classes of LEAF's FEMNIST: 10 digits, 26 capital and 26 small letters."""


@final
class FederatedH5(Classification):
    """Writers are dealt to the clients in turn, in the order of their names: client i gets writers i, i + n, i + 2n, ..."""

    train: Path
    """HDF5 file, or LEAF directory, of the training data."""
    test: Path
    """HDF5 file, or LEAF directory, of the test data; the samples of all its writers are tested on."""
    pixels: str = Field("pixels", min_length=1)
    """Field of the images in an HDF5 file, such as `image` in TensorFlow Federated's CIFAR-100."""
    label: str = Field("label", min_length=1)
    """Field of the labels in an HDF5 file, such as `coarse_label`."""
    scale: Scale = "auto"
    """The number of a full pixel in all files; all are divided by it. auto: 255 where pixels are uint8, 1 where they are
    floats or in LEAF's json; other integers are refused. as_is: the numbers are taken as they are."""
    classes: int = Field(0, ge=0)
    """Number of classes. 0: the largest label in both files plus one; 62 where one is a LEAF directory."""
    writers: int = Field(0, ge=0)
    """Use only so many writers of each file, the first by name. 0: all."""
    empty: Literal["refuse", "skip"] = "refuse"
    """A writer without samples is an error, or is left out before writers are counted."""
    repeated: Literal["refuse", "keep"] = "refuse"
    """A writer's sample that is in two files of a LEAF directory is an error, or is taken twice."""
    architecture: Literal["cnn", "mlp"] = Field("cnn", alias="model")
    """The model: `cnn` (the usual one of FEMNIST) or `mlp` (one hidden layer)."""
    hidden: int = Field(128, ge=1)
    """Units of the hidden dense layer (in their CNNs McMahan et al. 2017 take 512, LEAF 2048)."""

    def model(self) -> nn.Module:
        """Two dense layers, in the CNN behind two convolutions of 5 x 5 (32 and 64 channels) with pooling."""
        channels, height, width = self._shape
        classes = self._num_classes() or 1 + max(map(self._largest_label, (self.train, self.test)))
        if self.architecture == "mlp":
            inputs = channels * height * width
            return nn.Sequential(nn.Flatten(), nn.Linear(inputs, self.hidden), nn.ReLU(), nn.Linear(self.hidden, classes))
        if height < 4 or width < 4:
            raise ValueError(f"{self.train}: images of {height} x {width} pixels are too small, expected at least 4 x 4")
        return nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (height // 4) * (width // 4), self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, classes),
        )

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """See `Task`; looks at no image."""
        counts = self._train_counts
        return np.array([sum(map(counts.__getitem__, self._dealt(i, num_clients))) for i in range(num_clients)], np.int64)

    def client_data(self, client: int, num_clients: int, seed: int) -> Data:
        """See `Task`; the seed plays no part."""
        return self._read(self.train, self._dealt(client, num_clients))

    def test_data(self) -> Data:
        """See `Task`."""
        return self._read(self.test, self._names(self.test, self._counts(self.test)))

    def remarks(self) -> list[str]:
        """See `Remarks`."""
        sentences = leaf.remarks(self.train, self.test)
        for path, counts in ((self.train, self._train_counts), (self.test, self._counts(self.test))):
            if empty := sum(count == 0 for count in counts.values()) * (self.empty == "skip"):
                sentences.append(f"{path}: {empty} of {len(counts)} writers have no samples and are left out (task.empty)")
        return sentences

    def _num_classes(self) -> int:
        """Number of classes; 0 if only the files tell it."""
        return self.classes or (LEAF_CLASSES if self.train.is_dir() or self.test.is_dir() else 0)

    def _counts(self, path: Path) -> dict[str, int]:
        """Number of samples of every writer, by name in order."""
        if path.is_dir():
            return leaf.counts(path)
        with tff.open_examples(path, "writer") as examples:
            return {name: _labels(examples, path, name, self.label).shape[0] for name in tff.names(examples, path, "writer")}

    @cached_property
    def _train_counts(self) -> dict[str, int]:
        return self._counts(self.train)

    def _names(self, path: Path, counts: dict[str, int]) -> list[str]:
        """The writers used of a file."""
        names = [name for name, count in counts.items() if count or self.empty == "refuse"][: self.writers or None]
        for name in names:
            if not counts[name]:
                raise ValueError(f'{path}: writer {name}: no samples; remove the writer, or set task.empty = "skip"')
        if not names:
            raise ValueError(f"{path}: no writer has a sample")
        return names

    @cached_property
    def _train_names(self) -> list[str]:
        return self._names(self.train, self._train_counts)

    def _dealt(self, client: int, num_clients: int) -> Sequence[str]:
        names = self._train_names
        return deal(names, client, num_clients, f"{self.train} has {len(names)} writers (task.writers = {self.writers})")

    @cached_property
    def _shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the first training image, the shape that all must have."""
        if self.train.is_dir():
            return 1, LEAF_SIDE, LEAF_SIDE
        with tff.open_examples(self.train, "writer") as examples:
            return _chw(self._images(examples, self.train, self._train_names[0]).shape[1:])

    def _read(self, path: Path, names: Sequence[str]) -> Data:
        """The samples of some writers, checked."""
        shape, classes = self._shape, self._num_classes()
        like = self._magnitude if self.scale == "as_is" else 0.0
        x, y = ("x", "y") if path.is_dir() else (self.pixels, self.label)
        images, labels = [], []
        for where, block, label in self._blocks(path, names):
            if _chw(block.shape[1:]) != shape:
                raise ValueError(
                    f"{where}: {x} has shape {block.shape}, expected images of {shape[1]} x {shape[2]} pixels "
                    f"with {shape[0]} channels, as in {self.train}"
                )
            labels.append(to_labels(label, classes, f"{where}: {y}"))
            block = to_unit(block, self.scale, f"{where}: {x}", like)
            images.append(np.moveaxis(block, -1, 1) if block.ndim == 4 else block[:, None])
        return Data(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)))

    @cached_property
    def _magnitude(self) -> float:
        """Largest absolute value of the first training images that are not blank: all data is held against it."""
        blocks = self._blocks(self.train, self._train_names)
        return next((largest for _, block, _ in blocks if (largest := magnitude(block))), 0.0)

    def _blocks(self, path: Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Place, images (n, height, width[, channels]) and labels (n,) as stored; a writer may have several blocks."""
        if path.is_dir():
            yield from _leaf_blocks(path, names, self.repeated == "keep")
            return
        with tff.open_examples(path, "writer") as examples:
            for name in names:
                where, pixels = f"{path}: writer {name}", self._images(examples, path, name)
                label = _labels(examples, path, name, self.label)
                if label.shape != pixels.shape[:1]:
                    raise ValueError(
                        f"{where}: {self.label} has shape {label.shape}, expected {pixels.shape[:1]}, one for each image"
                    )
                yield where, pixels.read(), label.read()

    def _images(self, examples: Group, path: Path, name: str) -> Array:
        where = f"{path}: writer {name}"
        dataset = tff.find(examples, where, name, self.pixels, "task.pixels")
        if len(dataset.shape) not in (3, 4) or dataset.dtype.kind not in "fiu":
            raise ValueError(
                f"{where}: {self.pixels} is {dataset.dtype} {dataset.shape}, expected numbers of shape "
                f"(n, height, width) or (n, height, width, channels)"
            )
        if len(dataset.shape) == 4 and dataset.shape[1] <= 4 < dataset.shape[3]:
            raise ValueError(f"{where}: {self.pixels} has shape {dataset.shape}, channels first; expected them last")
        return dataset

    def _largest_label(self, path: Path) -> int:
        """Over all writers: every rank must come to the same number of classes."""
        with tff.open_examples(path, "writer") as examples:
            fields = ((name, _labels(examples, path, name, self.label)) for name in examples.names())
            filled = ((f"{path}: writer {name}: {self.label}", label.read()) for name, label in fields if label.shape[0])
            return max((int(to_labels(labels, 0, where).max()) for where, labels in filled), default=0)


def _leaf_blocks(path: Path, names: Sequence[str], repeated: bool) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The blocks of LEAF's rows, one for each file that a writer is in; float64, since json does not tell 1 from 1.0."""
    size = LEAF_SIDE * LEAF_SIDE
    for name, pieces in leaf.read_leaf(path, names, "writer", repeated):
        for piece in pieces:
            where = f"{piece.file}: writer {name}"
            for row in piece.x:
                if not isinstance(row, list) or len(row) != size:
                    got = f"{len(row)} numbers" if isinstance(row, list) else repr(row)[:40]
                    raise ValueError(f"{where}: x has a row of {got}, expected {size}: {LEAF_SIDE} x {LEAF_SIDE} pixels")
            x, y = _numbers(piece.x, 2, f"{where}: x").astype(np.float64), _numbers(piece.y, 1, f"{where}: y")
            yield where, x.reshape(-1, LEAF_SIDE, LEAF_SIDE), y


def _numbers(values: list[Any], ndim: int, where: str) -> np.ndarray:
    """A list of numbers, or of lists of them, as an array. Raises ValueError if it holds anything else."""
    try:
        numbers = np.array(values)
    except ValueError:  # lists of several lengths
        numbers = np.array(None)
    if numbers.ndim != ndim or numbers.dtype.kind not in "iuf":
        flat = (value for row in values for value in (row if isinstance(row, list) else [row]))
        other = next((v for v in flat if type(v) is not float and (type(v) is not int or abs(v) >= 2**63)), values)
        raise ValueError(f"{where} holds {repr(other)[:40]}, expected numbers")
    return numbers


def _labels(examples: Group, path: Path, name: str, field: str) -> Array:
    where = f"{path}: writer {name}"
    dataset = tff.find(examples, where, name, field, "task.label")
    if len(dataset.shape) != 1 or dataset.dtype.kind not in "fiu":
        raise ValueError(f"{where}: {field} is {dataset.dtype} {dataset.shape}, expected integers of shape (n,)")
    return dataset


def _chw(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return (1, shape[0], shape[1]) if len(shape) == 2 else (shape[2], shape[0], shape[1])
