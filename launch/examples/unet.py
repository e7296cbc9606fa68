"""Segmentation by a U-Net with Dice loss and Dice as its metric; unet.toml is its run.

The images are drawn: a disc in noise. The data set loads one image at a time, and its batches are dicts, as real ones are.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from asyncfeded import Batch, Metric, Settings, Sums


class UNet(nn.Module):
    """Images (n, 1, height, width) to scores (n, height, width); height and width are multiples of 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = stage(1, width), stage(width, 2 * width), stage(2 * width, 4 * width)
        self.up2, self.up1 = stage(6 * width, 2 * width), stage(3 * width, width)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One score a pixel: above 0 it belongs to the disc."""
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        middle = self.middle(F.max_pool2d(two, 2))
        two = self.up2(torch.cat([F.interpolate(middle, scale_factor=2), two], 1))
        return self.out(self.up1(torch.cat([F.interpolate(two, scale_factor=2), one], 1)))[:, 0]


def stage(channels: int, out: int) -> nn.Module:
    """A convolution with batch norm."""
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())


class Discs(Dataset):
    """Images of a disc in noise, each drawn when it is asked for."""

    def __init__(self, count: int, first: int, side: int) -> None:
        self.count, self.first, self.side = count, first, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng(self.first + index)
        y, x = np.mgrid[: self.side, : self.side]
        (v, u), radius = rng.uniform(0.2, 0.8, 2) * self.side, rng.uniform(0.1, 0.25) * self.side
        mask = ((y - v) ** 2 + (x - u) ** 2 < radius**2).astype(np.float32)
        image = mask + rng.normal(0, 0.7, mask.shape).astype(np.float32)
        return {"image": torch.from_numpy(image)[None], "mask": torch.from_numpy(mask)}


class Segmentation(Settings):
    """Every client has images of its own."""

    metrics: ClassVar = {"dice": Metric("max"), "loss": Metric("min")}
    images: int = 64
    """Images of each client."""
    side: int = 32
    """Height and width of an image, a multiple of 4."""

    def model(self) -> nn.Module:
        """A U-Net of two levels."""
        return UNet(8)

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """All alike."""
        return np.full(num_clients, self.images)

    def client_data(self, client: int, num_clients: int, seed: int) -> Dataset:
        """The images of one client."""
        return Discs(self.images, 10**6 * (client + 1), self.side)

    def test_data(self) -> Dataset:
        """Images that no client has."""
        return Discs(64, 0, self.side)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """1 - Dice of the probabilities, and cross-entropy."""
        scores = model(batch["image"])
        return 1 - dice(scores.sigmoid(), batch["mask"]).mean() + F.binary_cross_entropy_with_logits(scores, batch["mask"])

    def score(self, model: nn.Module, batch: Batch) -> Sums:
        """Dice of the discs that are found, and the loss."""
        count = len(batch["mask"])
        found = (model(batch["image"]) > 0).float()
        return {"dice": (dice(found, batch["mask"]).sum(), count), "loss": (self.loss(model, batch) * count, count)}


def dice(found: Tensor, mask: Tensor) -> Tensor:
    """Twice what both have, over what each has; (n,)."""
    return (2 * (found * mask).sum((1, 2)) + 1) / (found.sum((1, 2)) + mask.sum((1, 2)) + 1)
