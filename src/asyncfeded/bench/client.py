"""Measures the steps of a client against a plain loop of torch, with the same model, data and optimizer in one process."""

import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from asyncfeded.bench import ROUNDS, report
from asyncfeded.config import Training
from asyncfeded.model.flat import FlatModel
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks import load_task
from asyncfeded.tasks.classification import Data
from asyncfeded.tasks.contract import CheckedTask
from asyncfeded.training.batches import ClientData
from asyncfeded.training.client import Trainer
from asyncfeded.wire.messages import Order

TASKS: dict[str, dict[str, Any]] = {
    "synthetic": {"name": "synthetic", "sizes_given": [1000]},
    "digits": {"name": "digits"},
}
"""The tasks that are trained: logistic regression with 610 parameters, and a convolutional net with 38,282."""
TRAINING = Training(learning_rate=1e-3)


def measure(seconds: float, threads: int) -> None:
    """Measure, and print the figures.

    Args:
        seconds: of each window; each of the two loops has a window in each of ROUNDS rounds, and one of warm-up.
        threads: of torch.

    Raises:
        ValueError: a number is not valid, or the data of a task is missing.
    """
    if not seconds > 0:
        raise ValueError(f"--seconds {seconds:g}: expected the seconds of a window, above 0")
    if threads < 1:
        raise ValueError(f"--threads {threads}: expected a number of threads, at least 1")
    torch.set_num_threads(threads)
    rows = [("task", "parameters", "steps/s of a client", "of a plain loop", "time of a step, client / plain loop")]
    figures: dict[str, object] = {"threads": threads}
    for name, table in TASKS.items():
        task = CheckedTask(load_task(table), name)
        ours, plain, num_params = _loops(task)
        client_s, plain_s = _step_s(ours, plain, seconds)
        rows.append((name, f"{num_params:,}", f"{1 / client_s:,.0f}", f"{1 / plain_s:,.0f}", f"{client_s / plain_s:.3f}"))
        figures |= {f"{name}_steps_per_s": 1 / client_s, f"{name}_client_over_plain": client_s / plain_s}
    report(rows, figures, f"batches of {TRAINING.batch_size}; medians of {ROUNDS} windows after one of warm-up, in turn")


def _loops(task: CheckedTask) -> tuple[Callable[[int], int], Callable[[int], int], int]:
    """The loop of a client, and one of torch alone; each trains so many epochs and returns the steps. And the parameters."""
    data = cast("Data", task.client_data(0, 1, 0))
    seed_globals(0, Stream.MODEL)
    flat, module = FlatModel(task.model()), task.model()
    trainer, client_data = Trainer(task, flat, TRAINING, 0.0, 0), ClientData(data, TRAINING.batch_size)
    optimizer = torch.optim.SGD(module.parameters(), lr=TRAINING.learning_rate)

    def ours(epochs: int) -> int:
        trainer.round(Order(0, 0, 0, epochs), client_data, lambda: False)
        return trainer.steps

    def plain(epochs: int) -> int:
        return _train(task, module, optimizer, data, epochs)

    return ours, plain, flat.layout.num_params


def _train(task: CheckedTask, module: nn.Module, optimizer: torch.optim.Optimizer, data: Data, epochs: int) -> int:
    """A plain loop. Returns its steps."""
    steps = 0
    module.train()
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(data.targets)), TRAINING.batch_size):
            optimizer.zero_grad()
            loss = task.loss(module, (data.inputs[rows], data.targets[rows]))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1
    return steps


def _step_s(ours: Callable[[int], int], plain: Callable[[int], int], seconds: float) -> tuple[float, float]:
    """Seconds of a step of each loop: medians over windows of about so many seconds, in turn."""
    began = time.perf_counter()
    plain(1)
    epochs = 1 + int(seconds / (time.perf_counter() - began))
    taken = np.array([[_seconds(loop, epochs) for loop in (ours, plain)] for _ in range(1 + ROUNDS)])
    client_s, plain_s = np.median(taken[1:], axis=0).tolist()
    return client_s, plain_s


def _seconds(loop: Callable[[int], int], epochs: int) -> float:
    """Seconds of a step."""
    began = time.perf_counter()
    steps = loop(epochs)
    return (time.perf_counter() - began) / steps
