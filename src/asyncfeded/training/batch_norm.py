"""Batch norm over the whole batch of a client whose ranks each have a part of it (training.sync_batch_norm).

The ranks tell each other mean, sum of squares and count of their parts, so that all normalise by those of the batch; in the
backward pass they add up two sums. A module keeps its class, its parameters and its statistics: only its forward changes.
torch.nn.SyncBatchNorm does the same on GPUs alone.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from asyncfeded.wire.group import Group
from asyncfeded.wire.sums import make_sum


class _Sums:
    """What the ranks of a group tell each other about one batch norm.

    Args:
        group: the ranks.
        features: of the batch norm.
        device: where it computes.
    """

    def __init__(self, group: Group, features: int, device: torch.device) -> None:
        self._group, self._each = group, 2 * features + 1
        self._moments = make_sum(group, group.size * self._each, device)
        self._gradients = make_sum(group, 2 * features, device)

    def moments(self, mean: Tensor, squares: Tensor, count: int) -> tuple[Tensor, Tensor, float]:
        """Mean, sum of squared deviations and count of the batch, of those of this rank's part. Collective in the group."""
        rows = self._moments.vector.view(self._group.size, self._each)
        rows.zero_()
        torch.cat([mean, squares, mean.new_tensor([count])], out=rows[self._group.rank])
        self._moments.add()
        means, deviations, counts = torch.split(rows, [len(mean), len(mean), 1], dim=1)
        total = float(counts.sum())
        mean = (means * counts).sum(dim=0) / total
        return mean, (deviations + counts * (means - mean).square()).sum(dim=0), total

    def gradients(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Two sums over the batch, of those over this rank's part. Collective in the group."""
        torch.cat([one, other], out=self._gradients.vector)
        self._gradients.add()
        first, second = self._gradients.vector.clone().chunk(2)
        return first, second


class _Normalize(torch.autograd.Function):
    """Normalises float32 (samples, features, ...) by the moments of the whole batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, sums: _Sums) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
        over, shape = _over(x), _shape(x)
        count = x.numel() // x.size(1)
        mean = x.mean(dim=over)
        squares = (x - mean.view(shape)).square().sum(dim=over)
        mean, squares, total = sums.moments(mean, squares, count)
        scale = torch.rsqrt(squares / total + eps)
        normal = (x - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normal, scale)
        ctx.sums, ctx.total = sums, total
        unbiased = squares / max(total - 1, 1)
        ctx.mark_non_differentiable(mean, unbiased)
        return normal, mean, unbiased

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        gradient, (normal, scale) = gradients[0], ctx.saved_tensors
        over, shape = _over(normal), _shape(normal)
        plain, along = ctx.sums.gradients(gradient.sum(dim=over), (gradient * normal).sum(dim=over))
        rest = gradient - (plain.view(shape) + normal * along.view(shape)) / ctx.total
        return rest * scale.view(shape), None, None


def synchronize(module: nn.Module, group: Group, device: torch.device) -> None:
    """Let every batch norm of a module normalise by the whole batch of the group. Every rank must then have a part of it.

    Args:
        module: it is changed in place.
        group: the ranks.
        device: where it will compute.
    """
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.__dict__["forward"] = partial(_forward, part, _Sums(group, part.num_features, device))


def _forward(norm: _BatchNorm, sums: _Sums, x: Tensor) -> Tensor:
    """The forward of a batch norm, as torch's, over the whole batch."""
    if not (norm.training or norm.running_mean is None):
        return type(norm).forward(norm, x)
    norm._check_input_dim(x)  # type: ignore[no-untyped-call]
    y, mean, variance = _Normalize.apply(x.float(), norm.eps, sums)  # type: ignore[no-untyped-call]
    if norm.training and norm.running_mean is not None and norm.running_var is not None:
        factor = norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            factor = 1.0 / float(norm.num_batches_tracked) if factor is None else factor
        with torch.no_grad():
            norm.running_mean.lerp_(mean, factor or 0.0)
            norm.running_var.lerp_(variance, factor or 0.0)
    if norm.affine:
        y = y * norm.weight.view(_shape(y)) + norm.bias.view(_shape(y))
    normal: Tensor = y.to(x.dtype)
    return normal


def _over(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _shape(x: Tensor) -> list[int]:
    return [1, -1, *([1] * (x.dim() - 2))]
