"""Measures the steps of a client against a plain loop of torch, with the same model, data and optimizer in one process."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from asyncfeded import accelerator
from asyncfeded.bench import ROUNDS, report
from asyncfeded.bench.job import device_of
from asyncfeded.bench.samples import built_in
from asyncfeded.config import Training, load_config
from asyncfeded.model.flat import FlatModel
from asyncfeded.mpi import devices
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks import load_initial, load_task
from asyncfeded.tasks.at import At
from asyncfeded.tasks.classification import Batch, Data, Samples
from asyncfeded.tasks.contract import CheckedTask
from asyncfeded.training.batches import ClientData
from asyncfeded.training.client import Trainer
from asyncfeded.training.loader import Loader, moved
from asyncfeded.training.optimizer import MadeAnew, find_descent
from asyncfeded.wire.messages import Order

TAKEN = ("batch_size", "optimizer", "optimizer_options", "learning_rate", "momentum", "weight_decay", "clip_norm")
"""What both loops take of the section `training` of a run's file."""
Loop = Callable[[int], object]
"""Takes so many steps."""


def measure(path: Path | None, overrides: list[str], seconds: float, threads: int, device: str) -> None:
    """Measure, and print the figures.

    Args:
        path: TOML file of a run, whose first client is measured; None: every built-in task, with data of no meaning.
        overrides: `key=value`, applied to the file.
        seconds: of each window; each of the two loops has a window in each of ROUNDS rounds, and one of warm-up.
        threads: of torch.
        device: that the model is trained on: cpu, or a GPU as torch names it.

    Raises:
        ValueError: a number is not valid, there is no such device, or the data of a task is missing.
    """
    if not seconds > 0:
        raise ValueError(f"--seconds {seconds:g}: expected the seconds of a window, above 0")
    if threads < 1:
        raise ValueError(f"--threads {threads}: expected a number of threads, at least 1")
    place = device_of(device)
    devices.take(place)
    torch.set_num_threads(threads)
    rows = [("task", "parameters", "batch", "steps/s of a client", "of a plain loop", "client / plain loop, a step")]
    figures: dict[str, object] = {"device": str(place), "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        if path:
            config = load_config(path, overrides)
            taken = {key: getattr(config.training, key) for key in TAKEN}
            given = {Path(config.task["name"]).name: (config.task, Training(**taken))}
            clients, seed = max(config.clients, 1), config.seed
        else:
            given, clients, seed = built_in(Path(folder)), 1, 0
        for name, (table, training) in given.items():
            task = CheckedTask(load_task(table), name, load_initial(table))
            by_steps = training.model_copy(update={"unit": "steps", "steps": 1})
            ours, plain, num_params = _loops(task, by_steps, place, clients, seed)
            client_s, plain_s = _step_s(ours, plain, seconds, place)
            speeds = (f"{1 / client_s:,.0f}", f"{1 / plain_s:,.0f}", f"{client_s / plain_s:.3f}")
            rows.append((name, f"{num_params:,}", str(training.batch_size), *speeds))
            figures |= {f"{name}_steps_per_s": 1 / client_s, f"{name}_client_over_plain": client_s / plain_s}
    report(rows, figures, f"{place}; medians of {ROUNDS} windows after one of warm-up, in turn")


def _loops(task: CheckedTask, training: Training, device: torch.device, clients: int, seed: int) -> tuple[Loop, Loop, int]:
    """The loop of a client, and one of torch alone, on the data of the first of so many clients. And the parameters."""
    size = int(task.sizes(clients, seed)[0])
    seed_globals(seed, Stream.DATA, 0)
    samples = task.client_data(0, clients, seed)
    data = ClientData(Loader(task, device, 0, seed).add(samples, size), training.batch_size)
    seed_globals(seed, Stream.MODEL)
    flat, module = FlatModel(task.model(), device), task.model().to(device).train()
    trainer = Trainer(task, flat, training, 0.0, seed)

    def ours(steps: int) -> bool:
        return trainer.round(Order(0, 0, 0, steps), data, lambda: False)

    descent = find_descent({name: p for name, p in module.named_parameters() if p.requires_grad}, task, training)
    descent.begin(At(0, 0, 0, 1, 0, 0, 0.0))
    sgd = training.learning_rate, training.momentum, 0.0, training.weight_decay
    optimizer = descent.optimizer if isinstance(descent, MadeAnew) else torch.optim.SGD(module.parameters(), *sgd)
    batches = _batches(task, data.data if isinstance(data.data, Data) else samples, training.batch_size, device)
    endless = itertools.chain.from_iterable(batches() for _ in itertools.count())

    def plain(steps: int) -> None:
        _train(task, module, optimizer, training.clip_norm, itertools.islice(endless, steps))

    return ours, plain, flat.layout.num_params


def _batches(task: CheckedTask, samples: Samples, size: int, device: torch.device) -> Callable[[], Iterator[Batch]]:
    """What gives the batches of an epoch, shuffled, as a plain loop reads them."""
    if not isinstance(samples, Data):
        mixed = not isinstance(samples, IterableDataset)
        loader: DataLoader[Any] = DataLoader(samples, size, shuffle=mixed, collate_fn=task.collate)  # type: ignore[arg-type]
        return lambda: (moved(batch, device) for batch in loader)
    inputs, targets = samples

    def cut() -> Iterator[Batch]:
        for rows in torch.split(torch.randperm(len(targets), device=device), size):
            yield inputs[rows], targets[rows]

    return cut


def _train(
    task: CheckedTask, module: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float, batches: Iterator[Batch]
) -> None:
    """A plain loop."""
    for batch in batches:
        if task.step:
            task.step(module, batch, optimizer)
            continue
        optimizer.zero_grad()
        task.loss(module, batch).backward()  # type: ignore[no-untyped-call]
        if clip_norm:
            nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimizer.step()


def _step_s(ours: Loop, plain: Loop, seconds: float, device: torch.device) -> tuple[float, float]:
    """Seconds of a step of each loop: medians over windows of about so many seconds, in turn."""

    def step_s(loop: Loop, steps: int) -> float:
        accelerator.synchronize(device)
        began = time.perf_counter()
        loop(steps)
        accelerator.synchronize(device)
        return (time.perf_counter() - began) / steps

    step_s(plain, 1)  # what torch does once
    steps = 1 + int(seconds / step_s(plain, 2))
    taken = np.array([[step_s(loop, steps) for loop in (ours, plain)] for _ in range(1 + ROUNDS)])
    client_s, plain_s = np.median(taken[1:], axis=0).tolist()
    return client_s, plain_s
