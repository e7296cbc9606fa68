"""Measures the kernel's two passes over an update against the memory triad and against torch."""

import os
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from asyncfeded.bench import ROUNDS, report
from asyncfeded.model import kernel

ETA = 0.3
READS_AND_WRITES = {"triad": (2, 1), "sums": (3, 0), "apply": (3, 2)}
"""Arrays of 4-byte numbers that each pass reads and writes."""


def measure(params: int, threads: int) -> None:
    """Measure the two passes over an update, and print the figures.

    Args:
        params: elements of a model. Four vectors of that size are held; the naive torch expressions hold two more.
        threads: number of threads of the kernel and of torch. 0: as many as cores.

    Raises:
        ValueError: the size or the number of threads is not valid.
    """
    if params < 1:
        raise ValueError(f"--params {params}: expected the elements of a model, at least 1, for example --params 10000000")
    if threads < 0:
        raise ValueError(f"--threads {threads}: expected a number of threads, or 0 for one per core")
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    passes = _passes(params)
    calls = min(1000, 1 + 2**20 // params)  # many for a small model, whose time the clock would distort
    taken = np.array([[_seconds(run, calls) for run in passes.values()] for _ in range(1 + ROUNDS)])
    time_s: dict[str, float] = dict(zip(passes, np.median(taken[1:], axis=0).tolist(), strict=True))
    rate = {name: 4 * params * sum(READS_AND_WRITES[name.split()[0]]) / time_s[name] / 1e9 for name in passes}

    def over_kernel(kind: str) -> float:
        return (time_s[f"sums {kind}"] + time_s[f"apply {kind}"]) / (time_s["sums"] + time_s["apply"])

    rows = [("pass", "arrays read + written", "time s", "GB/s", "of the triad")]
    for name in passes:
        read, written = READS_AND_WRITES[name.split()[0]]
        share = f"{rate[name] / rate['triad']:.0%}"
        rows.append((name, f"{read} + {written}", f"{time_s[name]:.3g}", f"{rate[name]:.3g}", share))
    figures = {
        "params": params,
        "threads": torch.get_num_threads(),
        "sums_gb_per_s": rate["sums"],
        "apply_gb_per_s": rate["apply"],
        "triad_gb_per_s": rate["triad"],
        "fraction_of_triad": min(rate["sums"], rate["apply"]) / rate["triad"],
        "torch_inplace_over_kernel": over_kernel("in place, torch"),
        "torch_naive_over_kernel": over_kernel("naive, torch"),
    }
    note = (
        f"kernel: {kernel.describe_kernel()}; medians of {ROUNDS} after one of warm-up, of {calls} call(s) each. "
        f"Bytes touched are those of the arrays that a pass needs, in torch too; what a processor reads only to write it, "
        f"as the triad's result, does not count, so that a pass may exceed the triad"
    )
    report(rows, figures, note)


def _seconds(run: Callable[[], object], calls: int) -> float:
    """Seconds of one call, averaged over `calls`."""
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - began) / calls


def _passes(n: int) -> dict[str, Callable[[], object]]:
    """The triad, and each pass over models of n elements in the kernel, in place in torch, and naively in torch."""
    x, w, base, spare = (torch.full((n,), value) for value in (1.0, 2.0, 0.5, 0.0))

    def squared(a: Tensor) -> float:
        return float(torch.dot(torch.sub(a, base, out=spare), spare))

    def apply_in_place() -> None:
        x.add_(torch.sub(w, base, out=spare), alpha=ETA)
        base.copy_(x)

    def apply_naively() -> None:
        x.copy_(x + ETA * (w - base))
        base.copy_(x)

    return {
        "triad": lambda: kernel.triad(spare, w, base, ETA),
        "sums": lambda: kernel.sums(x, w, base),
        "apply": lambda: kernel.apply(x, w, base, ETA),
        "sums in place, torch": lambda: (squared(x), squared(w)),
        "apply in place, torch": apply_in_place,
        "sums naive, torch": lambda: (float((x - base).pow(2).sum()), float((w - base).pow(2).sum())),
        "apply naive, torch": apply_naively,
    }
