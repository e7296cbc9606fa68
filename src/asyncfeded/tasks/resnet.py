"""A residual network for small images (He et al. 2016, arXiv 1512.03385, section 4.2), with batch norm or group norm."""

import itertools
from math import gcd
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "group"]
GROUPS = 8
"""Groups of channels of a group norm, or the greatest divisor that 8 has in common with the number of channels."""


class ResNet(nn.Module):
    """Scores of classes: a convolution of 3 x 3, three stages of blocks, a mean over all pixels, a dense layer.

    The second and the third stage halve height and width and double the channels. There are 6 x blocks + 2 layers.

    Args:
        channels: of an image.
        classes: number of classes.
        width: channels of the first stage.
        blocks: of each stage.
        norm: of all layers.
    """

    def __init__(self, channels: int, classes: int, width: int, blocks: int, norm: Norm) -> None:
        super().__init__()
        widths = [width] * (blocks + 1) + [2 * width] * blocks + [4 * width] * blocks
        self.first = nn.Sequential(*_convolution(channels, width, 1, norm), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(a, b, norm) for a, b in itertools.pairwise(widths)))
        self.output = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images float32 (n, channels, height, width) to scores (n, classes)."""
        scores: Tensor = self.output(self.blocks(self.first(images)).mean(dim=(2, 3)))
        return scores


class Block(nn.Module):
    """Two convolutions, added to the input; from one stage to the next the input passes a convolution of 1 x 1.

    The last norm begins with the weights 0, so that the block begins as its input (Goyal et al. 2017, arXiv 1706.02677).

    Args:
        inputs: channels of the input.
        outputs: channels of the output; twice as many in the first block of a stage.
        norm: behind each convolution.
    """

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        stride = outputs // inputs
        self.layers = nn.Sequential(
            *_convolution(inputs, outputs, stride, norm), nn.ReLU(), *_convolution(outputs, outputs, 1, norm)
        )
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Float32 (n, inputs, height, width) to (n, outputs, height, width), or half of height and width."""
        return F.relu(self.layers(images) + self.shortcut(images))


def _convolution(inputs: int, outputs: int, stride: int, norm: Norm) -> tuple[nn.Module, nn.Module]:
    behind = nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(gcd(GROUPS, outputs), outputs)
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution, behind
