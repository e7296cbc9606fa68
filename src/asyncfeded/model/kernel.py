"""The two passes over an update, compiled or in torch.

`sums`, and `apply` or `reach`, use the C++ kernel (src/kernel/kernel.cpp) for tensors in host memory where it was built.
Otherwise they use the torch twin: for GPU tensors, and after an install without a C++ compiler. Both give the same result,
`apply` and `reach` to the bit. `triad` works the same way. It is not part of an update, but the limit that bench/ compares
the two with. This file knows nothing of clients, versions or rules.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

try:
    import asyncfeded._kernel as _kernel

    COMPILED = True
except ImportError:  # installed without a C++ compiler
    COMPILED = False
"""True where the C++ kernel was built."""

CHUNK = 1 << 18
"""Elements of a part, where a model is taken part by part; 16 of the compiled kernel's blocks. Sums are taken by chunk, and
these are added in order. The twin also takes such parts, so that it allocates no temporary of model size."""


def describe_kernel(device: str = "cpu") -> str:
    """Which implementation is used for a model on this device, and what that costs."""
    if device != "cpu":
        return f"torch on {device}"
    if COMPILED:
        return "compiled (C++)"
    return (
        "torch twin: the compiled kernel was not built, the server's passes over an update take 3 to 4 times as long; "
        "install a C++ compiler and reinstall asyncfeded"
    )


def sums(x: Tensor, w: Tensor, base: Tensor, stop: int | None = None) -> list[tuple[float, float]]:
    """Squared distances of two models from a third, in one pass.

    Args:
        x: float32 (n,), contiguous.
        w: float32 (n,), contiguous.
        base: float32 (n,), contiguous.
        stop: take only the elements up to here; None: all.

    Returns:
        For each chunk, sum (x - base)^2 and sum (w - base)^2, accumulated in float64. A sum is finite if and only if all
        differences are.
    """
    stop = x.numel() if stop is None else stop
    if COMPILED and x.is_cpu:
        return _kernel.sums(stop, torch.get_num_threads(), *_at(x, w, base))
    return sums_twin(x, w, base, stop)


def squared_distances(a: Tensor, base: Tensor, start: int = 0, stop: int | None = None) -> list[float]:
    """One of the two `sums`, with the same bits: sum (a - base)^2 of each chunk of a part.

    Args:
        a: float32 (n,), contiguous.
        base: float32 (n,), contiguous.
        start: first element of the part, a multiple of CHUNK.
        stop: end of the part; None: end of the model.
    """
    stop = a.numel() if stop is None else stop
    if COMPILED and a.is_cpu:
        return _kernel.squared_distances(start, stop, torch.get_num_threads(), *_at(a, base))
    return squared_distances_twin(a, base, start, stop)


def add_up(numbers: Iterable[float]) -> float:
    """The sum of numbers, one after the other; the `sum` of Python 3.12 adds in another way than that of 3.11."""
    total = 0.0
    for number in numbers:
        total += number
    return total


def apply(x: Tensor, w: Tensor, base: Tensor, eta: float, start: int = 0, stop: int | None = None) -> None:
    """Merge a difference over a part of a model: x += eta (w - base); base = x, in one pass and in place.

    Args:
        x: float32 (n,), contiguous, written.
        w: float32 (n,), contiguous.
        base: float32 (n,), contiguous, written.
        eta: step size, rounded to float32.
        start: first element of the part.
        stop: end of the part; None: end of the model.
    """
    stop = x.numel() if stop is None else stop
    if COMPILED and x.is_cpu:
        _kernel.apply(eta, start, stop, torch.get_num_threads(), *_at(x, w, base))
    else:
        apply_twin(x, w, base, eta, start, stop)


def reach(
    x: Tensor,
    w: Tensor,
    base: Tensor,
    v: Tensor,
    alpha: float,
    mu: float,
    follow: float,
    ahead: float,
    start: int,
    stop: int,
) -> None:
    """Move a part of a model towards another one, each element by itself and never beyond it, with momentum.

        s    = min(max(w + ahead v - x, min(w - base, 0)), max(w - base, 0))
        move = alpha s + mu v,    v <- v + follow (move - v),    x <- x + move,    base <- x

    In one pass and in place. Numbers are rounded to float32.

    Args:
        x: float32 (n,), contiguous, written.
        w: float32 (n,), contiguous.
        base: float32 (n,), contiguous, written.
        v: float32, contiguous, written; it has `stop` elements or more.
        alpha: part of the way that is gone.
        mu: weight of the momentum.
        follow: part by which v follows the movement.
        ahead: how many times v the other model is carried along.
        start: first element of the part.
        stop: end of the part.
    """
    if COMPILED and x.is_cpu:
        v_at, length = _at(v)
        if stop > length:
            raise ValueError(f"v has {length} elements, expected as many as stop, {stop}, or more")
        _kernel.reach(alpha, mu, follow, ahead, start, stop, torch.get_num_threads(), v_at, *_at(x, w, base))
    else:
        reach_twin(x, w, base, v, alpha, mu, follow, ahead, start, stop)


def triad(a: Tensor, b: Tensor, c: Tensor, s: float) -> None:
    """The memory triad of the STREAM benchmark: a = b + s c, in one pass.

    It counts as 12 n bytes touched: two arrays are read and one is written. A processor also reads `a` before it writes it
    (write-allocate); this is not counted.

    Args:
        a: float32 (n,), contiguous, written.
        b: float32 (n,), contiguous.
        c: float32 (n,), contiguous.
        s: factor, rounded to float32.
    """
    if COMPILED and a.is_cpu:
        _kernel.triad(s, torch.get_num_threads(), *_at(a, b, c))
    else:
        triad_twin(a, b, c, s)


def _at(*vectors: Tensor) -> list[int]:
    """Where vectors begin in memory, and their length. It takes 1 us; numpy's arrays of them would take 3.

    Raises:
        TypeError: one is not a contiguous vector of float32 in host memory.
        ValueError: they are not of one length.
    """
    n, found = vectors[0].numel(), []
    for vector in vectors:
        if vector.dtype is not torch.float32 or vector.ndim != 1 or not (vector.is_contiguous() and vector.is_cpu):
            got = f"{vector.dtype} {tuple(vector.shape)} of strides {vector.stride()} on {vector.device}"
            raise TypeError(f"got {got}, expected a contiguous vector of torch.float32 in host memory")
        if vector.numel() != n:
            raise ValueError(f"got vectors of {n} and of {vector.numel()} elements, expected the same length")
        found.append(vector.data_ptr())
    return [*found, n]


def sums_twin(x: Tensor, w: Tensor, base: Tensor, stop: int | None = None) -> list[tuple[float, float]]:
    """`sums` in torch operations, on any device."""
    return list(zip(squared_distances_twin(x, base, 0, stop), squared_distances_twin(w, base, 0, stop), strict=True))


def squared_distances_twin(a: Tensor, base: Tensor, start: int = 0, stop: int | None = None) -> list[float]:
    """`squared_distances` in torch operations, on any device."""
    stop, totals = a.numel() if stop is None else stop, []
    for i in range(start, stop, CHUNK):
        part = slice(i, min(i + CHUNK, stop))
        difference = (a[part] - base[part]).double()
        totals.append(difference.dot(difference))
    return [total.item() for total in totals]


def apply_twin(x: Tensor, w: Tensor, base: Tensor, eta: float, start: int = 0, stop: int | None = None) -> None:
    """`apply` in torch operations, on any device. It rounds after each operation, as the kernel does."""
    stop = x.numel() if stop is None else stop
    step = torch.tensor(eta, dtype=torch.float32, device=x.device)
    for i in range(start, stop, CHUNK):
        part = slice(i, min(i + CHUNK, stop))
        x[part] += (w[part] - base[part]) * step
        base[part] = x[part]


def reach_twin(
    x: Tensor,
    w: Tensor,
    base: Tensor,
    v: Tensor,
    alpha: float,
    mu: float,
    follow: float,
    ahead: float,
    start: int,
    stop: int,
) -> None:
    """`reach` in torch operations, on any device. It rounds after each operation, as the kernel does."""
    alpha_, mu_, follow_, ahead_ = (
        torch.tensor(number, dtype=torch.float32, device=x.device) for number in (alpha, mu, follow, ahead)
    )
    for i in range(start, stop, CHUNK):
        part = slice(i, min(i + CHUNK, stop))
        change, move = w[part] - base[part], torch.mul(v[part], ahead_)
        move.add_(w[part]).sub_(x[part])
        move = torch.maximum(move, change.clamp(max=0.0), out=move)
        move = torch.minimum(move, change.clamp_(min=0.0), out=move)
        move.mul_(alpha_).add_(torch.mul(v[part], mu_, out=change))
        x[part] += move
        v[part] += move.sub_(v[part]).mul_(follow_)
        base[part] = x[part]


def triad_twin(a: Tensor, b: Tensor, c: Tensor, s: float) -> None:
    """`triad` in torch operations, on any device. It rounds after each operation, as the kernel does."""
    factor = torch.tensor(s, dtype=torch.float32, device=a.device)
    for i in range(0, a.numel(), CHUNK):
        part = slice(i, i + CHUNK)
        torch.mul(c[part], factor, out=a[part])
        a[part] += b[part]
