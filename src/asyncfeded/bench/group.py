"""Measures how long the ranks of a client take to add up their gradients, and how many steps more ranks take.

The sum is that of a run (wire/sums.py); its limit is MPI's own Allreduce of a buffer of the same length, in the same run.
The steps are those of a client (training/step.py) on layers of about so many parameters in all: the first 1, 2, 4, ...
ranks take them together, each on its part of the same batch, while the others wait.
"""

import time
from collections.abc import Callable
from math import isqrt
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from asyncfeded.bench import ROUNDS, report
from asyncfeded.bench.job import check, in_job, mpi, together
from asyncfeded.config import Training
from asyncfeded.model.flat import FlatModel
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import Wait
from asyncfeded.mpi.world import RefusedError, World
from asyncfeded.tasks.classification import Batch, Data
from asyncfeded.training.batches import ClientData
from asyncfeded.training.client import Trainer
from asyncfeded.wire.group import Group, make_group
from asyncfeded.wire.messages import Order
from asyncfeded.wire.sums import make_sum

SILENCE_S = 60.0


def measure(params: int, batch_size: int, seconds: float, wait: str) -> int:
    """Measure; rank 0 prints the figures. Collective.

    Args:
        params: elements of the gradient, and about as many parameters of the layers that are trained.
        batch_size: samples of a step, on all ranks.
        seconds: of each window.
        wait: auto, spin or yield, as the config's `wait`.

    Returns:
        The exit status: 0, or 2 after telling on standard error why the ranks cannot start.
    """

    def with_ranks(world: World) -> None:
        way = check(seconds, wait)
        if params < 1 or batch_size < world.size:
            raise RefusedError(f"--params {params} --batch {batch_size}: expected at least 1, and a sample for each rank")
        torch.set_num_threads(1)
        everybody = _group(world, world.size, way)
        assert everybody
        ours_s, raw_s = _sum_s(world, everybody, params, seconds)
        counts = [2**i for i in range(world.size.bit_length()) if 2**i < world.size] + [world.size]
        steps = [_steps_per_s(world, count, params, batch_size, seconds, way) for count in counts]
        everybody.undo.close()
        if world.rank == 0:
            _report(world, params, batch_size, ours_s, raw_s, dict(zip(counts, steps, strict=True)))

    return in_job(with_ranks)


def _report(world: World, params: int, batch_size: int, ours_s: float, raw_s: float, steps: dict[int, float]) -> None:
    rows = [
        (f"{params:,} parameters, {world.size} ranks", "", mpi()),
        ("the ranks of a client add up their gradients", f"{1e3 * ours_s:.3g} ms", f"{ours_s / raw_s:.2f} x"),
        ("a raw Allreduce of the same buffer", f"{1e3 * raw_s:.3g} ms", ""),
        *((f"steps/s of {count} rank(s)", f"{steps[count]:.3g}", f"{steps[count] / steps[1]:.2f} x") for count in steps),
    ]
    figures = {
        "params": params,
        "ranks": world.size,
        "batch": batch_size,
        "sum_s": ours_s,
        "allreduce_s": raw_s,
        "sum_over_allreduce": ours_s / raw_s,
        "steps_per_s": {str(count): float(f"{value:.4g}") for count, value in steps.items()},
    }
    note = f"medians of {ROUNDS} windows after one of warm-up, in turn; steps: batches of {batch_size}, one thread a rank"
    report(rows, figures, note)


def _group(world: World, ranks: int, wait: Wait) -> Group | None:
    """The first so many ranks as those of one client; None on the others. Collective."""
    comm = cast("MPI.Intracomm", world.comm.Split(0 if world.rank < ranks else MPI.UNDEFINED, world.rank))
    if world.rank >= ranks:
        return None
    group = make_group(comm, world.backoff(wait), "group 0")
    group.connect(SILENCE_S)
    group.begun = True
    return group


def _sum_s(world: World, group: Group, params: int, seconds: float) -> tuple[float, float]:
    """Seconds of a sum, ours and MPI's: medians over windows of about so many seconds, in turn. Collective."""
    ours, raw = make_sum(group, params, torch.device("cpu")), np.zeros(params, np.float32)

    def add_raw() -> None:
        world.comm.Allreduce(MPI.IN_PLACE, [raw, MPI.FLOAT])

    taken = np.array([[_each_s(world, add, seconds) for add in (ours.add, add_raw)] for _ in range(1 + ROUNDS)])
    ours_s, raw_s = np.median(taken[1:], axis=0).tolist()
    return ours_s, raw_s


def _each_s(world: World, add: Callable[[], None], seconds: float) -> float:
    """Seconds of one of many sums, on rank 0. Collective."""
    together(world)
    began = time.perf_counter()
    add()
    times = np.array([1 + int(seconds / 2 / max(time.perf_counter() - began, 1e-6))])
    world.comm.Bcast(times, 0)
    began = time.perf_counter()
    for _ in range(int(times[0])):
        add()
    return (time.perf_counter() - began) / int(times[0])


def _steps_per_s(world: World, ranks: int, params: int, batch_size: int, seconds: float, wait: Wait) -> float:
    """Steps per second of the first so many ranks: the median over windows. Collective."""
    group = _group(world, ranks, wait)
    figures = [0.0]
    if group:
        trainer, data = _trainer(params, batch_size, group if ranks > 1 else None)
        began = time.perf_counter()
        trainer.round(Order(0, 0, 0, 2), data, lambda: False)
        steps = np.array([1 + int(2 * seconds / (time.perf_counter() - began))])
        group.share(steps)
        figures = [_window(trainer, data, int(steps[0])) for _ in range(1 + ROUNDS)][1:]
        group.comm.Barrier()
        group.undo.close()
    together(world)
    return float(np.median(figures))


def _window(trainer: Trainer, data: ClientData, steps: int) -> float:
    began = time.perf_counter()
    trainer.round(Order(0, 0, 0, steps), data, lambda: False)
    return steps / (time.perf_counter() - began)


def _trainer(params: int, batch_size: int, group: Group | None) -> tuple[Trainer, ClientData]:
    """What trains two square layers that have about so many parameters, and random samples of one batch."""
    width = max(1, isqrt(params // 2))
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, width, bias=False))
    data = Data(torch.randn(batch_size, width), torch.randn(batch_size, width))

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    task: Any = SimpleNamespace(name="bench", loss=loss, optimizer=None, factor=None, step=None)
    training = Training(unit="steps", steps=1, batch_size=batch_size, learning_rate=1e-3)
    return Trainer(task, FlatModel(module), training, 0.0, 0, group), ClientData(data, batch_size)
