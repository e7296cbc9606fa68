"""A ResNet with batch norm on the handwritten digits of scikit-learn; resnet.toml is its run.

The model is ordinary PyTorch. What batch norm gathers travels behind the parameters, and the server averages it.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from asyncfeded import Classification, Data


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out)
        self.two, self.norm2 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, channels, height, width) to (n, out, height / stride, width / stride)."""
        hidden = F.relu(self.norm1(self.one(x)))
        return F.relu(self.norm2(self.two(hidden)) + self.shortcut(x))


class Digits(Classification):
    """1,797 images of 8 x 8 pixels; every fifth is for testing, the others are dealt to the clients at random."""

    width: int = 16
    """Channels of the first layer."""
    torchvision: str = ""
    """Name of a model of torchvision.models, such as resnet18, in place of the small one here."""

    def model(self) -> nn.Module:
        """A small ResNet, or one of torchvision's for three channels."""
        if self.torchvision:
            from torchvision import models

            return nn.Sequential(nn.Conv2d(1, 3, 1), models.get_model(self.torchvision, num_classes=10))
        w = self.width
        body = [Block(w, w, 1), Block(w, 2 * w, 2), Block(2 * w, 4 * w, 2)]
        return nn.Sequential(
            nn.Conv2d(1, w, 3, padding=1), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, 10)
        )

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """How many images each client has."""
        return np.array([len(part) for part in self._parts(num_clients, seed)])

    def client_data(self, client: int, num_clients: int, seed: int) -> Data:
        """The images of one client."""
        return self._images(self._parts(num_clients, seed)[client])

    def test_data(self) -> Data:
        """Every fifth image."""
        return self._images(np.arange(4, 1797, 5))

    def _parts(self, num_clients: int, seed: int) -> list[np.ndarray]:
        train = np.flatnonzero(np.arange(1797) % 5 != 4)
        return np.array_split(np.random.default_rng(seed).permutation(train), num_clients)

    def _images(self, rows: np.ndarray) -> Data:
        digits = load_digits()
        pixels = torch.tensor(digits.images[rows], dtype=torch.float32)[:, None] / 16
        return Data(pixels, torch.tensor(digits.target[rows]))
