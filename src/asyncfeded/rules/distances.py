"""Distances other than the Euclidean by which AsyncFedED can measure staleness (arXiv 2603.08211).

Each takes the parameters of three models, x = x_t, w and base = x_s, float32 (n,), reads them part by part and sums in
float64.
"""

import torch
from torch import Tensor

from asyncfeded.rules.buffers import parts

FLOAT32 = torch.finfo(torch.float32)


def l1(x: Tensor, w: Tensor, base: Tensor) -> tuple[float, float]:
    """||x - base||_1 and ||w - base||_1."""
    moved = change = 0.0
    for part in parts(x.numel()):
        moved += float((x[part] - base[part]).abs_().sum(dtype=torch.float64))
        change += float((w[part] - base[part]).abs_().sum(dtype=torch.float64))
    return moved, change


def linf(x: Tensor, w: Tensor, base: Tensor) -> tuple[float, float]:
    """||x - base||_inf and ||w - base||_inf."""
    moved = change = 0.0
    for part in parts(x.numel()):
        moved = max(moved, float((x[part] - base[part]).abs_().max()))
        change = max(change, float((w[part] - base[part]).abs_().max()))
    return moved, change


def dot(x: Tensor, w: Tensor, base: Tensor) -> float:
    """(x - base) . (w - base)."""
    total = 0.0
    for part in parts(x.numel()):
        total += float((x[part] - base[part]).double().dot((w[part] - base[part]).double()))
    return total


def follow_variance(variance: Tensor, w: Tensor, base: Tensor, decay: float) -> float:
    """Follow the variance of Delta about 0: v <- decay v + (1 - decay) (w - base)^2.

    Args:
        variance: float32 (n,), v, written.
        w: as above.
        base: as above.
        decay: below 1.

    Returns:
        The mean of v.
    """
    total = 0.0
    for part in parts(variance.numel()):
        delta = w[part] - base[part]
        v = variance[part].mul_(decay).addcmul_(delta, delta, value=1 - decay).clamp_(max=FLOAT32.max)
        total += float(v.sum(dtype=torch.float64))
    return total / variance.numel()


def mahalanobis(x: Tensor, w: Tensor, base: Tensor, variance: Tensor, floor: float) -> tuple[float, float]:
    """sqrt(sum (x - base)^2 / (v + floor)) and the same of w - base.

    Args:
        x: as above.
        w: as above.
        base: as above.
        variance: float32 (n,), v.
        floor: what a parameter's variance is at least.
    """
    moved = change = 0.0
    for part in parts(x.numel()):
        v = variance[part].double().add_(max(floor, FLOAT32.tiny))
        moved += float((x[part] - base[part]).double().square_().div_(v).sum())
        change += float((w[part] - base[part]).double().square_().div_(v).sum())
    return float(moved**0.5), float(change**0.5)
