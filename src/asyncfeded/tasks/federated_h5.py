"""`federated_h5` and `femnist`: images by writer, as TensorFlow Federated or LEAF lay them out (EMNIST and its like).

TensorFlow Federated (an HDF5 file): `examples/<writer>/pixels`, float (n, height, width) or (n, height, width, channels),
and `examples/<writer>/label`, integer (n,). LEAF (a directory of *.json files): for each writer `x`, n rows of 784 numbers
(28 x 28 pixels), and `y`, n integers. The two names are one task.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from pydantic import Field
from torch import nn

from asyncfeded.files.hdf5 import Array, Group
from asyncfeded.tasks import leaf, tff
from asyncfeded.tasks.classification import Classification, Data, deal

LEAF_SIDE = 28
"""Height and width of LEAF's images."""
LEAF_CLASSES = 62
"""Classes of LEAF's FEMNIST: 10 digits, 26 capital and 26 small letters."""


@final
class FederatedH5(Classification):
    """Writers are dealt to the clients in turn, in the order of their names: client i gets writers i, i + n, i + 2n, ..."""

    name: Literal["federated_h5", "femnist"] = "federated_h5"
    train: Path
    """HDF5 file, or LEAF directory, of the training data."""
    test: Path
    """HDF5 file, or LEAF directory, of the test data; the samples of all its writers are tested on."""
    classes: int = Field(0, ge=0)
    """Number of classes. 0: the largest label in both files plus one; 62 where one is a LEAF directory."""
    writers: int = Field(0, ge=0)
    """Use only so many writers of each file, the first by name. 0: all."""
    architecture: Literal["cnn", "mlp"] = Field("cnn", alias="model")
    """The model: `cnn` (the usual one of FEMNIST) or `mlp` (one hidden layer)."""
    hidden: int = Field(128, ge=1)
    """Units of the hidden dense layer (in their CNNs McMahan et al. 2017 take 512, LEAF 2048)."""

    def model(self) -> nn.Module:
        """Two dense layers, in the CNN behind two convolutions of 5 x 5 (32 and 64 channels) with pooling."""
        channels, height, width = self._shape
        classes = self._num_classes() or 1 + max(_largest_label(self.train), _largest_label(self.test))
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
        if self.train.is_dir():
            counts = leaf.counts(self.train)
        else:
            with tff.open_examples(self.train, "writer") as examples:
                labels = ((name, _field(examples, self.train, name, "label")) for name in self._train_names)
                counts = {name: label.shape[0] for name, label in labels}
        return np.array([sum(map(counts.__getitem__, self._dealt(i, num_clients))) for i in range(num_clients)], np.int64)

    def client_data(self, client: int, num_clients: int, seed: int) -> Data:
        """See `Task`; the seed plays no part."""
        return self._read(self.train, self._dealt(client, num_clients))

    def test_data(self) -> Data:
        """See `Task`."""
        return self._read(self.test, self._names(self.test))

    def _num_classes(self) -> int:
        """Number of classes; 0 if only the files tell it."""
        return self.classes or (LEAF_CLASSES if self.train.is_dir() or self.test.is_dir() else 0)

    def _names(self, path: Path) -> list[str]:
        if path.is_dir():
            names = list(leaf.counts(path))
        else:
            with tff.open_examples(path, "writer") as examples:
                names = examples.names()
        return names[: self.writers] if self.writers else names

    @cached_property
    def _train_names(self) -> list[str]:
        return self._names(self.train)

    def _dealt(self, client: int, num_clients: int) -> Sequence[str]:
        names = self._train_names
        return deal(names, client, num_clients, f"{self.train} has {len(names)} writers (task.writers = {self.writers})")

    @cached_property
    def _shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the first training image, the shape that all must have."""
        if self.train.is_dir():
            return 1, LEAF_SIDE, LEAF_SIDE
        with tff.open_examples(self.train, "writer") as examples:
            return _chw(_field(examples, self.train, self._train_names[0], "pixels").shape[1:])

    def _read(self, path: Path, names: Sequence[str]) -> Data:
        """The samples of some writers, checked."""
        shape, classes = self._shape, self._num_classes()
        x, y, blocks = ("x", "y", _leaf_blocks) if path.is_dir() else ("pixels", "label", _tff_blocks)
        images, labels = [], []
        for where, block, label in blocks(path, names):
            if _chw(block.shape[1:]) != shape:
                raise ValueError(
                    f"{where}: {x} has shape {block.shape}, expected images of {shape[1]} x {shape[2]} pixels "
                    f"with {shape[0]} channels, as in {self.train}"
                )
            if label.min() < 0 or (classes and label.max() >= classes):
                raise ValueError(
                    f"{where}: {y} goes from {label.min()} to {label.max()}, expected "
                    f"integers from 0{f' to {classes - 1} (task.classes)' if classes else ''}"
                )
            if not np.isfinite(block).all():
                raise ValueError(f"{where}: {x} holds a value that is not finite")
            images.append(np.moveaxis(block, -1, 1) if block.ndim == 4 else block[:, None])
            labels.append(label.astype(np.int64))
        return Data(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)))


def _tff_blocks(path: Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Place, images float32 (n, height, width[, channels]) and integer labels (n,) of each writer."""
    with tff.open_examples(path, "writer") as examples:
        for name in names:
            pixels, label = _field(examples, path, name, "pixels"), _field(examples, path, name, "label")
            where = f"{path}: writer {name}"
            if pixels.shape[0] == 0:
                raise ValueError(f"{where}: no samples; remove the writer from the file")
            if label.shape != pixels.shape[:1]:
                raise ValueError(f"{where}: label has shape {label.shape}, expected {pixels.shape[:1]}, one for each image")
            yield where, pixels.read().astype(np.float32, copy=False), label.read()


def _leaf_blocks(path: Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The same of LEAF's rows, a block for each file that a writer is in."""
    size = LEAF_SIDE * LEAF_SIDE
    for name, pieces in leaf.read_leaf(path, names, "writer"):
        for piece in pieces:
            where = f"{piece.file}: writer {name}"
            for row in piece.x:
                if not isinstance(row, list) or len(row) != size:
                    got = f"{len(row)} numbers" if isinstance(row, list) else repr(row)[:40]
                    raise ValueError(f"{where}: x has a row of {got}, expected {size}: {LEAF_SIDE} x {LEAF_SIDE} pixels")
            try:
                with np.errstate(over="ignore"):  # infinite then, and refused as that
                    block = np.array(piece.x, np.float32)
            except (TypeError, ValueError):
                raise ValueError(f"{where}: x holds something that is not a number") from None
            if not all(type(label) is int and -(2**63) <= label < 2**63 for label in piece.y):
                raise ValueError(f"{where}: y holds something that is not an integer")
            yield where, block.reshape(-1, LEAF_SIDE, LEAF_SIDE), np.array(piece.y, np.int64)


def _field(examples: Group, path: Path, name: str, field: str) -> Array:
    where = f"{path}: writer {name}"
    dataset = tff.find(examples, where, name, field, "pixels and label")
    if field == "pixels" and (len(dataset.shape) not in (3, 4) or dataset.dtype.kind not in "fiu"):
        raise ValueError(
            f"{where}: pixels is {dataset.dtype} {dataset.shape}, expected numbers of shape "
            f"(n, height, width) or (n, height, width, channels)"
        )
    if field == "label" and (len(dataset.shape) != 1 or dataset.dtype.kind not in "iu"):
        raise ValueError(f"{where}: label is {dataset.dtype} {dataset.shape}, expected integers of shape (n,)")
    return dataset


def _chw(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return (1, shape[0], shape[1]) if len(shape) == 2 else (shape[2], shape[0], shape[1])


def _largest_label(path: Path) -> int:
    """Over all writers: every rank must come to the same number of classes."""
    with tff.open_examples(path, "writer") as examples:
        labels = (_field(examples, path, name, "label") for name in examples.names())
        return max((int(label.read().max()) for label in labels if label.shape[0]), default=0)
