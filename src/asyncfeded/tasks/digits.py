"""`digits`: the 1,797 handwritten digits of 8 x 8 pixels that scikit-learn brings; small, real, and nothing to download."""

from functools import cache, lru_cache
from typing import Literal, final

import numpy as np
import torch
from pydantic import Field
from torch import nn

from asyncfeded.seeds import Stream, numpy_rng
from asyncfeded.tasks.classification import Classification, Data
from asyncfeded.tasks.splits import split_dirichlet, split_even


@final
class Digits(Classification):
    """Every fifth image is for testing (359), the others (1,438) are split over the clients."""

    split: Literal["dirichlet", "even"] = "dirichlet"
    """How training data is split: `even` (shuffled, equal parts) or `dirichlet` (unequal parts with unequal classes)."""
    alpha: float = Field(1.0, gt=0, le=1e6)
    """Dirichlet concentration: each class is dealt to the clients in proportions drawn from Dirichlet(alpha). Small: each
    client sees few classes; large: all alike (Hsu et al. 2019, arXiv 1909.06335)."""
    samples_min: int = Field(10, ge=1)
    """Fewest samples a client may get; the Dirichlet split is redrawn until all have them."""

    def model(self) -> nn.Module:
        """Two convolutions of 3 x 3 (16 and 32 channels), two dense layers (64 and 10)."""
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """See `Task`."""
        return np.array([len(part) for part in _parts(self, num_clients, seed)], np.int64)

    def client_data(self, client: int, num_clients: int, seed: int) -> Data:
        """See `Task`."""
        pixels, labels = _load()
        part = _parts(self, num_clients, seed)[client]
        return Data(pixels[part], torch.from_numpy(labels[part]))

    def test_data(self) -> Data:
        """See `Task`."""
        pixels, labels = _load()
        return Data(pixels[4::5], torch.from_numpy(labels[4::5]))


@cache
def _load() -> tuple[torch.Tensor, np.ndarray]:
    """All images: float32 (1797, 1, 8, 8) in [0, 1], and their labels, int64 (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("task digits needs scikit-learn: pip install 'asyncfeded[digits]'") from None
    bunch = load_digits()
    return torch.from_numpy(bunch.images.astype(np.float32) / 16).unsqueeze(1), bunch.target.astype(np.int64)


@lru_cache(maxsize=1)  # a rank asks for one client after the other
def _parts(task: Digits, num_clients: int, seed: int) -> list[np.ndarray]:
    """Indices of each client's training images."""
    labels = _load()[1]
    train = np.flatnonzero(np.arange(len(labels)) % 5 != 4)
    rng = numpy_rng(seed, Stream.SPLIT)
    if num_clients * task.samples_min > len(train):
        raise ValueError(
            f"task digits has {len(train)} training images, too few for {num_clients} clients of at least "
            f"{task.samples_min}; lower clients or task.samples_min"
        )
    if task.split == "even":
        parts = split_even(len(train), num_clients, rng)
    else:
        parts = split_dirichlet(labels[train], num_clients, task.alpha, task.samples_min, rng)
    return [train[part] for part in parts]
