"""`federated_h5`: images by writer in the HDF5 layout that TensorFlow Federated publishes (EMNIST and its like).

A file holds `examples/<writer>/pixels`, float (n, height, width) or (n, height, width, channels), and
`examples/<writer>/label`, integer (n,).
"""

from pathlib import Path
from typing import Literal, final

import h5py
import numpy as np
import torch
from pydantic import Field
from torch import nn

from asyncfeded.tasks.classification import Classification, Data


@final
class FederatedH5(Classification):
    """Writers are dealt to the clients in turn, in the order of their names: client i gets writers i, i + n, i + 2n, ..."""

    name: Literal["federated_h5"] = "federated_h5"
    train: Path
    """HDF5 file of the training data."""
    test: Path
    """HDF5 file of the test data; the samples of all its writers are tested on."""
    classes: int = Field(0, ge=0)
    """Number of classes. 0: the largest label in both files plus one."""
    writers: int = Field(0, ge=0)
    """Use only so many writers of each file, the first by name. 0: all."""
    hidden: int = Field(128, ge=1)
    """Units of the first dense layer (McMahan et al. 2017 take 512, LEAF 2048)."""

    def model(self) -> nn.Module:
        """The usual CNN of FEMNIST: two convolutions of 5 x 5 (32 and 64 channels) with pooling, two dense layers."""
        shape, classes = self._shape(), self.classes or 1 + max(_largest_label(self.train), _largest_label(self.test))
        channels, height, width = shape
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

    def client_data(self, client: int, num_clients: int, seed: int) -> Data:
        """See `Task`; the seed plays no part."""
        with _open(self.train) as file:
            names = self._names(file)
            if len(names) < num_clients:
                raise ValueError(
                    f"{self.train} has {len(names)} writers (task.writers = {self.writers}), too few for {num_clients} "
                    f"clients; lower clients to {len(names)} or less"
                )
            return self._read(file, self.train, names[client::num_clients])

    def test_data(self) -> Data:
        """See `Task`."""
        with _open(self.test) as file:
            return self._read(file, self.test, self._names(file))

    def _names(self, file: h5py.File) -> list[str]:
        names = sorted(file["examples"])
        return names[: self.writers] if self.writers else names

    def _shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the first training image, the shape that all must have."""
        with _open(self.train) as file:
            pixels = _field(file, self.train, next(iter(self._names(file))), "pixels")
            return _chw(pixels.shape[1:])

    def _read(self, file: h5py.File, path: Path, names: list[str]) -> Data:
        """The samples of some writers, checked."""
        shape = self._shape()
        images, labels = [], []
        for name in names:
            pixels, label = _field(file, path, name, "pixels"), _field(file, path, name, "label")
            where = f"{path}: writer {name}"
            if len(pixels) == 0:
                raise ValueError(f"{where}: no samples; remove the writer from the file")
            if _chw(pixels.shape[1:]) != shape:
                raise ValueError(
                    f"{where}: pixels has shape {pixels.shape}, expected images of {shape[1]} x {shape[2]} pixels "
                    f"with {shape[0]} channels, as in {self.train}"
                )
            if label.shape != (len(pixels),):
                raise ValueError(f"{where}: label has shape {label.shape}, expected ({len(pixels)},), one for each image")
            if label[:].min() < 0 or (self.classes and label[:].max() >= self.classes):
                raise ValueError(
                    f"{where}: label goes from {label[:].min()} to {label[:].max()}, expected "
                    f"integers from 0{f' to {self.classes - 1} (task.classes)' if self.classes else ''}"
                )
            block = pixels[:].astype(np.float32, copy=False)
            if not np.isfinite(block).all():
                raise ValueError(f"{where}: pixels holds a value that is not finite")
            images.append(np.moveaxis(block, -1, 1) if block.ndim == 4 else block[:, None])
            labels.append(label[:].astype(np.int64))
        return Data(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)))


def _open(path: Path) -> h5py.File:
    """The file, with its group `examples` looked at."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        what = "no such file" if not path.exists() else f"not a readable HDF5 file ({error})"
        raise ValueError(f"{path}: {what}; give the path of a data set as task.train=... and task.test=...") from None
    if not isinstance(file.get("examples"), h5py.Group) or len(file["examples"]) == 0:
        raise ValueError(
            f"{path}: no group `examples` with a group for each writer, as TensorFlow Federated lays out its data"
        )
    return file


def _field(file: h5py.File, path: Path, name: str, field: str) -> h5py.Dataset:
    group = file["examples"][name]
    dataset = group.get(field) if isinstance(group, h5py.Group) else None
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{path}: writer {name}: no field {field!r}, expected pixels and label")
    if field == "pixels" and (dataset.ndim not in (3, 4) or dataset.dtype.kind not in "fiu"):
        raise ValueError(
            f"{path}: writer {name}: pixels is {dataset.dtype} {dataset.shape}, expected numbers of shape "
            f"(n, height, width) or (n, height, width, channels)"
        )
    if field == "label" and (dataset.ndim != 1 or dataset.dtype.kind not in "iu"):
        raise ValueError(f"{path}: writer {name}: label is {dataset.dtype} {dataset.shape}, expected integers of shape (n,)")
    return dataset


def _chw(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return (1, shape[0], shape[1]) if len(shape) == 2 else (shape[2], shape[0], shape[1])


def _largest_label(path: Path) -> int:
    """Over all writers: every rank must come to the same number of classes."""
    with _open(path) as file:
        return max(
            (int(label[:].max()) for name in file["examples"] if len(label := _field(file, path, name, "label"))),
            default=0,
        )
