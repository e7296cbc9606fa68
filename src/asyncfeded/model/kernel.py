"""The two passes over an update, compiled or in torch.

`sums` and `apply` take the C++ kernel (src/kernel/kernel.cpp) for tensors in host memory where it was built, and the
torch twin otherwise: for GPU tensors, and after an install without a C++ compiler. Both give the same result, `apply` to
the bit. `triad`, the same way, is no part of an update but the limit that bench/ compares the two with. Knows nothing of
clients, versions or rules.
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
"""Elements in which a model is taken part by part, a multiple of the compiled kernel's blocks; by the twin too, so that it
allocates no temporary of model size."""


def describe_kernel(device: str = "cpu") -> str:
    """Which of the two serves a model on this device, and what that costs."""
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
        stop: only elements up to here; None: all.

    Returns:
        sum (x - base)^2 and sum (w - base)^2, accumulated in float64. Not finite if and only if a difference is not.
    """
    stop = x.numel() if stop is None else stop
    if COMPILED and x.is_cpu:
        moved, change = _kernel.sums(x.numpy(), w.numpy(), base.numpy(), stop, torch.get_num_threads())
        return moved, change
    return sums_twin(x, w, base, stop)


def squared_distance(a: Tensor, base: Tensor, start: int = 0, stop: int | None = None, before: float = 0.0) -> float:
    """One of the two `sums`, the same to the bit: before + sum (a - base)^2 over a part.

    A model taken in parts that begin at multiples of CHUNK, each with the sum before it, gives what it gives in one piece,
    to the bit.

    Args:
        a: float32 (n,), contiguous.
        base: float32 (n,), contiguous.
        start: first element of the part.
        stop: end of the part; None: of the model.
        before: what to add to.
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
        stop: end of the part; None: of the model.
    """
    stop = x.numel() if stop is None else stop
    if COMPILED and x.is_cpu:
        _kernel.apply(x.numpy(), w.numpy(), base.numpy(), eta, start, stop, torch.get_num_threads())
    else:
        apply_twin(x, w, base, eta, start, stop)


def triad(a: Tensor, b: Tensor, c: Tensor, s: float) -> None:
    """The memory triad of the STREAM benchmark: a = b + s c, in one pass.

    It counts as 12 n bytes touched, two arrays read and one written; that a processor also reads `a` before it writes it
    (write-allocate) is not counted.

    Args:
        a: float32 (n,), contiguous, written.
        b: float32 (n,), contiguous.
        c: float32 (n,), contiguous.
        s: rounded to float32.
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
    """`apply` in torch operations, on any device; rounds after each operation, as the kernel does."""
    stop = x.numel() if stop is None else stop
    step = torch.tensor(eta, dtype=torch.float32, device=x.device)
    for i in range(start, stop, CHUNK):
        part = slice(i, min(i + CHUNK, stop))
        x[part] += (w[part] - base[part]) * step
        base[part] = x[part]


def triad_twin(a: Tensor, b: Tensor, c: Tensor, s: float) -> None:
    """`triad` in torch operations, on any device; rounds after each operation, as the kernel does."""
    factor = torch.tensor(s, dtype=torch.float32, device=a.device)
    for i in range(0, a.numel(), CHUNK):
        part = slice(i, i + CHUNK)
        torch.mul(c[part], factor, out=a[part])
        a[part] += b[part]
