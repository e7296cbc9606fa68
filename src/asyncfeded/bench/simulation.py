"""Measures virtual runs, as a user starts them, against the processor time of their training alone.

The efficiency of a run is

    updates x (processor time of training an update alone) / (workers x wall time of the run),

from its first order to its last update. The workers train the same rounds alone, all at the same time and in the same job:
what cores share (caches, a clock, two threads of one core) does not count as lost. What comes before the first order is told
apart. The model is not tested meanwhile. Where the workers train on a GPU, the wall time of training alone stands for its
processor time.

The ideal efficiency is 1 where server and workers have a core each. Where they share cores, what the server itself computes
(receiving, measuring, merging, recording) is no time to train in: with C cores, W workers, and t and s seconds of processor
time for an update on a worker and on the server, no run takes less than max(t / W, (t + s) / C) for an update.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from asyncfeded.bench import report
from asyncfeded.bench.job import check, device_of, in_job, mpi, together
from asyncfeded.config import Config, section
from asyncfeded.files.plain import read_json
from asyncfeded.model.flat import FlatModel
from asyncfeded.mpi import devices
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.seats import deal
from asyncfeded.mpi.world import RefusedError, World, broadcast_text, make_statement, share_cores
from asyncfeded.rules import load_rule
from asyncfeded.run import run
from asyncfeded.run.plan import agree_on, read_plan
from asyncfeded.store.record import read_record
from asyncfeded.tasks import load_task
from asyncfeded.tasks.classification import Data
from asyncfeded.tasks.contract import CheckedTask
from asyncfeded.training.batches import ClientData
from asyncfeded.training.client import Trainer
from asyncfeded.wire.messages import Order

MODELS = {"logistic": 610, "mlp": 37_995}
"""The models of the task `synthetic`, and their parameters."""
STEPS, BATCH, SAMPLES = 16, 64, 72
"""A round: so many steps of so many samples, over so many samples of the client."""
WARM = 10
"""Updates of the run that tells how long an update takes."""


class Case(NamedTuple):
    """A run that is measured."""

    workers: int
    clients: int
    model: str
    device: str

    def config(self, folder: Path, updates: int) -> Config:
        """The run, in a folder, of so many updates: clients of different speed, rounds of one length."""
        table = {
            "clock": "virtual",
            "clients": self.clients,
            "device": self.device,
            "run_dir": str(folder / f"{self.model}-{self.clients}-{self.workers}-{updates}"),
            "limits": {"updates": updates},
            "task": {"name": "synthetic", "model": self.model, "hidden": 535, "sizes_given": [SAMPLES + 8] * self.clients},
            "training": {"unit": "steps", "steps": STEPS, "batch_size": BATCH, "learning_rate": 0.01},
            "heterogeneity": {"round_s": [1.0], "slowdown_sigma": 1.0},
            "evaluation": {"every_s": 1e9},
            "rule": {"name": "fedasync"},
        }
        return section(Config, table, "the run")


def measure(clients: Sequence[int], seconds: float, device: str) -> int:
    """Measure with 1, 2, 4, ... workers; rank 0 prints the figures. Collective: rank 0 is the server.

    Args:
        clients: numbers of clients.
        seconds: of each run, about; where there are more clients than updates in that time, each has one update in the mean.
        device: that the workers train on, as the config's `device`; the server stays on the CPU.

    Returns:
        The exit status: 0, or 2 after telling on standard error why the ranks cannot start.
    """

    def with_ranks(world: World) -> None:
        check(seconds, "auto")
        agree_on(world, lambda: device_of(device), lambda _: make_statement())
        if len(set(world.hosts)) > 1:
            raise RefusedError("its ranks are on several hosts; start all of them on one host")
        most = world.size - 1
        counts = [2**i for i in range(most.bit_length()) if 2**i < most] + [most]
        with tempfile.TemporaryDirectory() as own:
            folder = Path(broadcast_text(world, own))
            cases = [Case(*each, device) for each in ((w, c, m) for m in MODELS for c in clients for w in counts)]
            rows = [_measured(world, case, folder, seconds) for case in cases]
            together(world)
        if world.rank == 0:
            _report(dict(zip(cases, rows, strict=True)), device)

    return in_job(with_ranks)


def _measured(world: World, case: Case, folder: Path, seconds: float) -> dict[str, float]:
    """The figures of a case. Collective; on other ranks than 0 they are empty."""
    together(world)
    comm = cast("MPI.Intracomm", world.comm.Split(0 if world.rank <= case.workers else MPI.UNDEFINED, world.rank))
    if world.rank > case.workers:
        return {}
    local, hosts = cast("MPI.Intracomm", comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)), world.hosts[: comm.size]
    some = replace(world, comm=comm, size=comm.size, hosts=hosts, local=local, seats=deal(hosts))
    some = share_cores(replace(some, neighbours=list(range(comm.size))))
    _, update_s = _run(some, case.config(folder, WARM))
    config = case.config(folder, max(case.clients, int(seconds / update_s), WARM + 1))  # another folder than the first's
    began = time.perf_counter()
    result, update_s = _run(some, config)
    job_s = time.perf_counter() - began
    alone_s = _alone_s(some, config)
    server_s, cores = float(result["server_busy"]) * update_s, np.zeros(1)
    comm.Allreduce(np.array([some.cores]), cores)
    least_s = max(alone_s / case.workers, (alone_s + server_s) / float(cores[0]))
    return {
        "updates_per_s": 1 / update_s,
        "alone_s": alone_s,
        "server_s": server_s,
        "efficiency": alone_s / case.workers / update_s,
        "ideal": alone_s / case.workers / least_s,
        "start_s": job_s - config.limits.updates * update_s,
    }


def _run(world: World, config: Config) -> tuple[dict[str, Any], float]:
    """A run that shows nothing. Returns its figures, and its wall time for an update. Collective."""
    path = Path(f"{config.run_dir}-{world.rank}.toml")
    path.write_text(config.to_toml(), encoding="utf-8")
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        run.train_on(world, partial(read_plan, world, path, [], None), None)
    together(world)
    result = cast("dict[str, Any]", read_json(Path(config.run_dir) / "result.json"))
    return result, float(result["wall_s"]) / int(result["updates"])


def _alone_s(world: World, config: Config) -> float:
    """Time of training an update of a run without a server, the mean over the workers: see the top. Collective."""
    task = CheckedTask(load_task(config.task), config.task["name"])
    device = devices.device(config.device, world.rank - 1) if world.rank else torch.device("cpu")
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    flat = FlatModel(task.model(), device)
    trainer = Trainer(task, flat, config.training, load_rule(config.rule).proximal, config.seed)
    rows = read_record(Path(config.run_dir)).updates
    orders = [Order(*row) for row in rows[["client", "round", "base_version", "epochs"]].tolist()]

    @cache
    def data(client: int) -> ClientData:
        inputs, targets = cast("Data", task.client_data(client, config.clients, config.seed))
        return ClientData(Data(inputs.to(device), targets.to(device)), BATCH)

    mine, taken_s = orders[world.rank - 1 :: world.size - 1] if world.rank else [], np.zeros(1)
    for order in mine:
        data(order.client)
    together(world)
    began = clock()
    for order in mine:
        trainer.round(order, data(order.client), lambda: False)  # its last loss is a number: nothing is left to compute
    world.comm.Allreduce(np.array([(clock() - began) if mine else 0.0]), taken_s)
    return float(taken_s[0]) / len(orders)


def _report(measured: dict[Case, dict[str, float]], device: str) -> None:
    """Print the figures. Rank 0."""
    names = ("updates/s", "training alone", "server", "efficiency", "ideal", "start")
    rows = [("parameters", "clients", "workers", *names)]
    cases = []
    for case, row in measured.items():
        times = (f"{1e3 * row['alone_s']:.2f} ms", f"{1e6 * row['server_s']:.0f} us")
        parts = (f"{row['efficiency']:.1%}", f"{row['ideal']:.1%}", f"{row['start_s']:.2f} s")
        head = (f"{MODELS[case.model]:,}", str(case.clients), str(case.workers))
        rows.append((*head, f"{row['updates_per_s']:.0f}", *times, *parts))
        figures = {key: float(f"{value:.4g}") for key, value in row.items()}
        cases.append({"params": MODELS[case.model], "clients": case.clients, "workers": case.workers, **figures})
    report(
        rows,
        {"mpi": mpi(), "device": device, "cases": cases},
        f"{mpi()}; {device}; rounds of {STEPS} steps of {BATCH} samples, rule fedasync; times of an update",
    )
