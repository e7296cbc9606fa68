"""Images that are trained on, flipped and moved at random: a whole batch in one pass, on the device where it lies."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, flip: bool, crop: int) -> Tensor:
    """Images flipped and moved at random, each by its own draw of the CPU's global generator, which every round seeds.

    Args:
        images: (n, channels, height, width), of any type.
        flip: whether half of them are mirrored, left to right.
        crop: pixels by which they are moved at most, up or down and left or right; zeros move in.
    """
    (n, channels, height, width), device = images.shape, images.device
    mirrored = (torch.rand(n, 1) < 0.5 * flip).to(device)
    down, right = torch.randint(0, 2 * crop + 1, (2, n, 1)).to(device)
    rows, columns = torch.arange(height, device=device) + down, torch.arange(width, device=device) + right
    columns = torch.where(mirrored, columns.flip(1), columns)
    places = (rows[:, :, None] * (width + 2 * crop) + columns[:, None, :]).view(n, 1, -1).expand(n, channels, -1)
    return F.pad(images, (crop,) * 4).flatten(2).gather(2, places).view(images.shape)  # 20 times as fast as an index
