"""A data set that is larger than memory, read by loader processes; large.toml is its run.

Make the file first:  python launch/examples/large.py FILE SAMPLES     (12 kB a sample)
"""

import sys
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from asyncfeded import Classification

SHAPE = (3, 32, 32)


class Images(Dataset):
    """Some rows of an HDF5 file. Each process that reads opens the file for itself."""

    def __init__(self, path: Path, rows: range, augmented: bool) -> None:
        self.path, self.rows, self.augmented = path, rows, augmented

    @cached_property
    def file(self) -> h5py.File:
        """The open file."""
        return h5py.File(self.path)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        image = torch.from_numpy(self.file["images"][row])
        if self.augmented:
            image = image * (0.8 + 0.4 * torch.rand(()))  # brighter or darker at random, the same in every process
        return image, int(self.file["labels"][row])

    def __getstate__(self) -> dict[str, object]:
        kept = ("path", "rows", "augmented")  # an open file cannot be sent to another process
        return {name: getattr(self, name) for name in kept}


class Large(Classification):
    """Clients take the rows in equal parts; the last tenth is for testing."""

    path: Path
    """The file."""

    def model(self) -> nn.Module:
        """Two convolutions."""
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 32, 4),
        )  # fmt: skip

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """How many rows each client has."""
        return np.array([len(self._rows(client, num_clients)) for client in range(num_clients)])

    def client_data(self, client: int, num_clients: int, seed: int) -> Dataset:
        """The rows of one client; none is read yet."""
        return Images(self.path, self._rows(client, num_clients), augmented=True)

    def test_data(self) -> Dataset:
        """The last tenth."""
        count = self._count
        return Images(self.path, range(count - count // 10, count), augmented=False)

    @property
    def _count(self) -> int:
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file; make it with python launch/examples/large.py FILE SAMPLES")
        with h5py.File(self.path) as file:
            return len(file["labels"])

    def _rows(self, client: int, num_clients: int) -> range:
        return range(client, self._count - self._count // 10, num_clients)


def make(path: Path, samples: int) -> None:
    """Write a file of noise with a bright quarter, which is the label."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", (samples, *SHAPE), np.float32)
        labels = file.create_dataset("labels", data=rng.integers(0, 4, samples))
        for row, label in enumerate(labels[:].tolist()):
            image = rng.normal(0, 1, SHAPE).astype(np.float32)
            down, right = 16 * (label // 2), 16 * (label % 2)
            image[:, down : down + 16, right : right + 16] += 1
            images[row] = image


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
