"""Distances other than the Euclidean by which AsyncFedED can measure staleness (arXiv 2603.08211).

Each takes the global model, and the parameters of three models, x = x_t, w and base = x_s, float32 (n,), reads them part by
part and sums in float64.
"""

import torch
from torch import Tensor

from asyncfeded.model.global_model import GlobalModel
from asyncfeded.model.kernel import add_up

FLOAT32 = torch.finfo(torch.float32)


def l1(model: GlobalModel, x: Tensor, w: Tensor, base: Tensor) -> tuple[float, float]:
    """||x - base||_1 and ||w - base||_1."""

    def of(part: slice) -> tuple[float, float]:
        moved, change = (x[part] - base[part]).abs_(), (w[part] - base[part]).abs_()
        return float(moved.sum(dtype=torch.float64)), float(change.sum(dtype=torch.float64))

    return _sums(model.over_parts(of))


def linf(model: GlobalModel, x: Tensor, w: Tensor, base: Tensor) -> tuple[float, float]:
    """||x - base||_inf and ||w - base||_inf."""

    def of(part: slice) -> tuple[float, float]:
        return float((x[part] - base[part]).abs_().max()), float((w[part] - base[part]).abs_().max())

    moved, change = zip(*model.over_parts(of), strict=True)
    return max(moved), max(change)


def dot(model: GlobalModel, x: Tensor, w: Tensor, base: Tensor) -> float:
    """(x - base) . (w - base)."""

    def of(part: slice) -> tuple[float, float]:
        return float((x[part] - base[part]).double().dot((w[part] - base[part]).double())), 0.0

    return _sums(model.over_parts(of))[0]


def follow_variance(model: GlobalModel, variance: Tensor, w: Tensor, base: Tensor, decay: float) -> float:
    """Follow the variance of Delta about 0: v <- decay v + (1 - decay) (w - base)^2.

    Args:
        model: the global model.
        variance: float32 (n,), v, written.
        w: as above.
        base: as above.
        decay: below 1.

    Returns:
        The mean of v.
    """

    def of(part: slice) -> tuple[float, float]:
        delta = w[part] - base[part]
        v = variance[part].mul_(decay).addcmul_(delta, delta, value=1 - decay).clamp_(max=FLOAT32.max)
        return float(v.sum(dtype=torch.float64)), float(v.numel())

    total, count = _sums(model.over_parts(of))
    return total / count


def mahalanobis(
    model: GlobalModel, x: Tensor, w: Tensor, base: Tensor, variance: Tensor, floor: float
) -> tuple[float, float]:
    """sqrt(sum (x - base)^2 / (v + floor)) and the same of w - base.

    Args:
        model: the global model.
        x: as above.
        w: as above.
        base: as above.
        variance: float32 (n,), v.
        floor: what a parameter's variance is at least.
    """

    def of(part: slice) -> tuple[float, float]:
        v = variance[part].double().add_(max(floor, FLOAT32.tiny))
        moved, change = (x[part] - base[part]).double(), (w[part] - base[part]).double()
        return float(moved.square_().div_(v).sum()), float(change.square_().div_(v).sum())

    moved, change = _sums(model.over_parts(of))
    return float(moved**0.5), float(change**0.5)


def _sums(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Both sums, added in order."""
    return add_up(first for first, _ in pairs), add_up(second for _, second in pairs)
