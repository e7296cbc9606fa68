"""What several rules do with vectors of model size: in place and part by part, so that no update allocates another one.

Statistics (batch-norm means and variances) lie behind the parameters in every such vector. A sum of differences could make a
variance negative, so they never enter as one: a vector that gathers updates holds the weighted mean of the statistics
received, and the global model moves towards that mean by a share of at most 1. Knows no rule.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from asyncfeded.model import kernel
from asyncfeded.model.global_model import GlobalModel


def zeros(model: GlobalModel, *shape: int) -> Tensor:
    """float32 zeros on the model's device. Their memory is touched now, not page by page while the first updates wait."""
    return torch.empty(shape, device=model.x.device).zero_()


def parts(size: int) -> Iterator[slice]:
    """Slices of a vector, so small that the results computed from one stay in the cache."""
    for start in range(0, size, kernel.CHUNK):
        yield slice(start, min(start + kernel.CHUNK, size))


def add_delta(total: Tensor, w: Tensor, base: Tensor, weight: float) -> None:
    """Add weight (w - base) to `total`. The difference comes first: rounded relative to Delta, not to w.

    Args:
        total: float32 (n,), written.
        w: float32 (n,).
        base: float32 (n,).
        weight: of the difference.
    """
    for part in parts(total.numel()):
        total[part].add_(w[part] - base[part], alpha=weight)


def gather_statistics(total: Tensor, w: Tensor, num_params: int, share: float) -> None:
    """Add the statistics of w to their mean in `total`.

    Args:
        total: float32 (size,), statistics written.
        w: float32 (size,), a client's model.
        num_params: where the statistics begin.
        share: weight of w in the mean so far, at most 1; 1 replaces the mean.
    """
    total[num_params:].lerp_(w[num_params:], share)


def take_statistics(model: GlobalModel, total: Tensor, share: float) -> None:
    """Move the global model's statistics towards the mean in `total`, and set that to 0: a step then moves parameters only.

    Args:
        model: statistics of its x written; its version stays, so that a `model.step` has to follow.
        total: float32 (size,), statistics written.
        share: how far, at most 1.
    """
    n = model.layout.num_params
    model.x[n:].lerp_(total[n:], min(share, 1.0))
    total[n:].zero_()
