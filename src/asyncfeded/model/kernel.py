"""The two passes over an update, compiled or in torch.

`sums` and `apply` use the C++ kernel (src/kernel/kernel.cpp) for tensors in host memory where it was built. Otherwise they
use the torch twin: for GPU tensors, and after an install without a C++ compiler. Both give the same result, `apply` to the
bit. `triad` works the same way. It is not part of an update, but the limit that bench/ compares the two with. This file
knows nothing of clients, versions or rules.
"""

import torch
from torch import Tensor

try:
    import asyncfeded._kernel as _kernel

    COMPILED = True
except ImportError:  # installed without a C++ compiler
    COMPILED = False
"""True where the C++ kernel was built."""

CHUNK = 1 << 18
"""Elements of a part, where a model is taken part by part; a multiple of the compiled kernel's blocks. The twin also takes
such parts, so that it allocates no temporary of model size."""


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


def sums(x: Tensor, w: Tensor, base: Tensor, stop: int | None = None) -> tuple[float, float]:
    """Squared distances of two models from a third, in one pass.

    Args:
        x: float32 (n,), contiguous.
        w: float32 (n,), contiguous.
        base: float32 (n,), contiguous.
        stop: take only the elements up to here; None: all.

    Returns:
        sum (x - base)^2 and sum (w - base)^2, accumulated in float64. A sum is finite if and only if all differences are.
    """
    stop = x.numel() if stop is None else stop
    if COMPILED and x.is_cpu:
        moved, change = _kernel.sums(x.numpy(), w.numpy(), base.numpy(), stop, torch.get_num_threads())
        return moved, change
    return sums_twin(x, w, base, stop)


def squared_distance(a: Tensor, base: Tensor, start: int = 0, stop: int | None = None, before: float = 0.0) -> float:
    """One of the two `sums`, with the same bits: before + sum (a - base)^2 over a part.

    A model may be taken in parts that begin at multiples of CHUNK, each with the sum of the parts before it. The result
    has the same bits as in one piece.

    Args:
        a: float32 (n,), contiguous.
        base: float32 (n,), contiguous.
        start: first element of the part.
        stop: end of the part; None: end of the model.
        before: the sum to add to.
    """
    stop = a.numel() if stop is None else stop
    if COMPILED and a.is_cpu:
        return _kernel.squared_distance(a.numpy(), base.numpy(), start, stop, before, torch.get_num_threads())
    return squared_distance_twin(a, base, start, stop, before)


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
        _kernel.apply(x.numpy(), w.numpy(), base.numpy(), eta, start, stop, torch.get_num_threads())
    else:
        apply_twin(x, w, base, eta, start, stop)


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
        _kernel.triad(a.numpy(), b.numpy(), c.numpy(), s, torch.get_num_threads())
    else:
        triad_twin(a, b, c, s)


def sums_twin(x: Tensor, w: Tensor, base: Tensor, stop: int | None = None) -> tuple[float, float]:
    """`sums` in torch operations, on any device."""
    return squared_distance_twin(x, base, 0, stop), squared_distance_twin(w, base, 0, stop)


def squared_distance_twin(a: Tensor, base: Tensor, start: int = 0, stop: int | None = None, before: float = 0.0) -> float:
    """`squared_distance` in torch operations, on any device."""
    stop = a.numel() if stop is None else stop
    total = torch.tensor(before, dtype=torch.float64, device=a.device)
    for i in range(start, stop, CHUNK):
        part = slice(i, min(i + CHUNK, stop))
        difference = (a[part] - base[part]).double()
        total += difference.dot(difference)
    return total.item()


def apply_twin(x: Tensor, w: Tensor, base: Tensor, eta: float, start: int = 0, stop: int | None = None) -> None:
    """`apply` in torch operations, on any device. It rounds after each operation, as the kernel does."""
    stop = x.numel() if stop is None else stop
    step = torch.tensor(eta, dtype=torch.float32, device=x.device)
    for i in range(start, stop, CHUNK):
        part = slice(i, min(i + CHUNK, stop))
        x[part] += (w[part] - base[part]) * step
        base[part] = x[part]


def triad_twin(a: Tensor, b: Tensor, c: Tensor, s: float) -> None:
    """`triad` in torch operations, on any device. It rounds after each operation, as the kernel does."""
    factor = torch.tensor(s, dtype=torch.float32, device=a.device)
    for i in range(0, a.numel(), CHUNK):
        part = slice(i, i + CHUNK)
        torch.mul(c[part], factor, out=a[part])
        a[part] += b[part]
