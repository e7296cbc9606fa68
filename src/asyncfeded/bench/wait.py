"""Measures what waiting for messages costs the ranks that train, and how soon a waiting server notices an update.

Server and clients wait with the wires of a run, not with a copy of them.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import get_args

import numpy as np
import torch

from asyncfeded.bench import ROUNDS, report
from asyncfeded.bench.job import check, in_job, together
from asyncfeded.mpi.waiting import Backoff, Wait
from asyncfeded.mpi.world import RefusedError, World
from asyncfeded.wire.client_wire import ClientWire
from asyncfeded.wire.messages import Arrival, Order
from asyncfeded.wire.server_wire import ServerWire
from asyncfeded.wire.transfer import peers

SIZE = 16
"""Elements of the models that are sent."""
PINGS = 200
"""Number of updates whose notice is timed, after a tenth as many of warm-up."""
MODEL = 10_000
"""Elements of the models whose turnaround is timed."""
PING_EVERY_S = 5e-3
"""How long the server waits for each update: long enough for its pauses to reach their maximum."""


BUSY = """
import os, sys, threading
threading.Thread(target=lambda: os._exit(len(sys.stdin.read()))).start()
while True: pass
"""
"""A process that computes without a break until its standard input ends."""


def measure(wait: str, seconds: float, beside: int = 0) -> int:
    """Measure what waiting costs and how soon an update is noticed; rank 0 prints the figures. Collective.

    Each round has three parts of so many seconds: all ranks are idle; the clients train while the server is idle; no rank
    polls while as many processes without MPI train, one started by each client rank. After the rounds one client sends
    update after update. Then that client is answered at once, for so many seconds by each way to wait: alone, and beside
    processes that compute without a break.

    Args:
        wait: auto, spin or yield, as the config's `wait`.
        seconds: length of each part.
        beside: number of these processes; 0: that part is left out.

    Returns:
        The exit status: 0, or 2 after telling on standard error why the ranks cannot start.
    """

    def with_ranks(world: World) -> None:
        way = check(seconds, wait)
        if len(set(world.hosts)) > 1:
            raise RefusedError("its ranks are on several hosts, which have different clocks; start all of them on one host")
        torch.set_num_threads(1)
        own, noticed_s = (_idle_as_server if world.rank == 0 else _idle_as_client)(world, world.backoff(way), seconds)
        cores, ranks = np.zeros(1), np.zeros((world.size, *own.shape))
        world.comm.Reduce(np.array([world.cores]), cores)
        world.comm.Gather(own, ranks)
        turns = {f"{way}_alone": taken_s for way, taken_s in _turnarounds_s(world, seconds).items()}
        if beside:
            with _busy(beside * (world.rank == 0)):
                turns |= {f"{way}_beside": taken_s for way, taken_s in _turnarounds_s(world, seconds).items()}
        if world.rank == 0:
            job = {"ranks": world.size, "cores": round(float(cores[0])), "wait": way, "beside": beside}
            _report_wait(job, ranks[:, 1:], noticed_s, turns)

    return in_job(with_ranks)


def _report_wait(
    job: Mapping[str, object], ranks: np.ndarray, noticed_s: list[float], turns: dict[str, list[float]]
) -> None:
    """Print the figures of (ranks, ROUNDS, 3): idle share of a core; steps/s beside a waiting server, and alone. Rank 0."""
    idle, polled, alone = np.moveaxis(ranks, 2, 0)
    kept = float(np.median(polled.sum(axis=0) / alone.sum(axis=0)))
    p50, p99 = (float(p) for p in np.percentile(noticed_s, [50, 99]))
    server, clients = float(np.median(idle[0])), float(np.median(idle[1:].mean(axis=0)))
    steps = [f"{np.median(part.sum(axis=0)):.0f} steps/s" for part in (polled, alone)]
    figures = {
        **job,
        "server_idle_core_fraction": server,
        "client_idle_core_fraction": clients,
        "throughput_kept": kept,
        "reaction_s_p50": p50,
        "reaction_s_p99": p99,
    }
    rows = [
        (f"{job['ranks']} ranks on {job['cores']} core(s), wait={job['wait']}", "", ""),
        ("an idle server takes of a core", f"{server:.1%}", ""),
        ("an idle client takes of a core", f"{clients:.1%}", ""),
        (f"{len(ranks) - 1} clients train, the server waits", steps[0], ""),
        (f"{len(ranks) - 1} processes train, nobody waits", steps[1], ""),
        ("throughput kept", f"{kept:.1%}", ""),
        ("from a client's sending to its update's being here: median", f"{p50 * 1e6:.0f} us", ""),
        ("the same: 99 of 100", f"{p99 * 1e6:.0f} us", ""),
    ]
    best = turns["spin_alone"]
    for how, taken_s in turns.items():
        ratios = [taken / least for taken, least in zip(taken_s, best, strict=True)]
        for q, taken, ratio in zip(("p50", "p99"), taken_s, ratios, strict=True):
            figures |= {f"turnaround_s_{q}_{how}": taken, f"turnaround_over_spin_alone_{q}_{how}": ratio}
        name = how.replace("_alone", ", alone").replace("_beside", f", beside {job['beside']} busy loops")
        times = " / ".join(f"{taken * 1e6:.0f} us" for taken in taken_s)
        rows.append((f"turnaround, {name}: median / 99 of 100", times, " / ".join(f"{ratio:.2f}" for ratio in ratios)))
    note = (
        f"medians of {ROUNDS} after one of warm-up; notice: from a client's sending to the end of the poll that found "
        f"it, of {PINGS} updates, each after {PING_EVERY_S * 1e3:g} ms; turnaround: of a client that trains "
        f"nothing, with {MODEL} numbers each way, and over that of spin alone"
    )
    report(rows, figures, note)


def _idle_as_server(world: World, backoff: Backoff, seconds: float) -> tuple[np.ndarray, list[float]]:
    """Wait as `server.Server` does. Rank 0.

    Returns:
        float64 (1 + ROUNDS, 3), warm-up included: the share of a core that it used while all were idle, and two zeros.
        For each of the PINGS updates, the seconds within which it was noticed.
    """
    weights = torch.zeros(SIZE)  # never written, so that every reply may be sent from it
    wire = ServerWire(world.comm, peers(world.comm, world.seats.groups), SIZE, backoff, world.size - 1)
    figures = np.zeros((1 + ROUNDS, 3))
    for row in figures:
        together(world)
        idle, until = _core_share(), time.perf_counter() + seconds
        while time.perf_counter() < until:
            assert wire.next() is None
            wire.pause()
        row[0] = idle()
        for client in range(world.size - 1):
            wire.reply(Order(client, 0, 0, 1), weights, int)
        for _ in range(world.size - 1):
            _take(wire)
        together(world)
        time.sleep(seconds)  # the part in which nobody polls
    noticed_s = []
    for _ in range(PINGS // 10 + PINGS):
        wire.reply(Order(0, 0, 0, 1), weights, int)
        noticed_s.append(_take(wire))
    wire.stop()
    return figures, noticed_s[-PINGS:]


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """So many processes compute meanwhile, each in a session of its own, as those of somebody else."""
    with ExitStack() as undo:
        for _ in range(count):
            loop = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, start_new_session=True)
            assert loop.stdin
            undo.callback(loop.wait)
            undo.callback(loop.stdin.close)
        yield


def _turnarounds_s(world: World, seconds: float) -> dict[str, list[float]]:
    """By way to wait: median and 99th percentile of the waits of one client that is answered at once. Collective.

    Medians over windows, in turn, of so many seconds in all. On all ranks.
    """
    ways = get_args(Wait)
    taken = np.array([[_turnaround_s(world, way, seconds / ROUNDS) for way in ways] for _ in range(1 + ROUNDS)])
    return dict(zip(ways, np.median(taken[1:], axis=0).tolist(), strict=True))


def _turnaround_s(world: World, wait: Wait, seconds: float) -> list[float]:
    """Median and 99th percentile of one window. Collective."""
    together(world)
    figures, weights = np.zeros(2), torch.zeros(MODEL)
    if world.rank == 0:
        wire = ServerWire(world.comm, peers(world.comm, [(1,)]), MODEL, world.backoff(wait), 1)
        number, until = 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            wire.reply(Order(0, number, 0, 1), weights, int)
            _take(wire)
            number += 1
        wire.stop()
    elif world.rank == 1:
        client, took_s, sent = ClientWire(world.comm, weights, world.backoff(wait)), list[float](), time.perf_counter()
        while (order := client.receive()) is not None:
            took_s.append(time.perf_counter() - sent)
            sent = time.perf_counter()
            client.send(order, 1, 1, 0.0, 0.0, 0.0)
        client.finish()
        figures[:] = np.percentile(took_s[1 + len(took_s) // 10 :] or took_s[-1:], [50, 99])  # the first tenth is warm-up
    together(world)
    world.comm.Bcast(figures, 1)
    return [float(figure) for figure in figures]


def _take(wire: ServerWire) -> float:
    """Wait for an update. Rank 0. Returns the seconds since its client began to send it, if that has told when."""
    while (arrival := wire.next()) is None:
        wire.pause()
    noticed = time.perf_counter()
    assert isinstance(arrival, Arrival)
    wire.release(arrival)
    return noticed - arrival.compute_s


def _idle_as_client(world: World, backoff: Backoff, seconds: float) -> tuple[np.ndarray, list[float]]:
    """Wait and train as `client.work` does, and start a process without MPI that trains, too. Client ranks.

    Returns:
        float64 (1 + ROUNDS, 3), warm-up included: the share of a core that it used while all were idle, its steps per
        second, and those of the process. An empty list, since only the server times the updates.
    """
    wire = ClientWire(world.comm, torch.zeros(SIZE), backoff)
    figures = np.zeros((1 + ROUNDS, 3))
    train = [sys.executable, "-c", "from asyncfeded.bench import wait; wait.train_alone()"]
    # It has its own session, so that only the ranks report an interrupt at the terminal; it ends with its standard input.
    with subprocess.Popen(
        train, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # wait until it is ready
        for row in figures:
            together(world)
            idle = _core_share()
            order = wire.receive()
            assert order is not None
            row[0] = idle()
            row[1] = _steps_per_s(seconds, wire.stopped)
            wire.send(order, 1, 1, 0.0, 0.0, 0.0)
            together(world)
            process.stdin.write(f"{seconds}\n")
            row[2] = float(process.stdout.readline())
        process.stdin.close()
    while (order := wire.receive()) is not None:
        time.sleep(PING_EVERY_S)
        wire.send(order, 1, 1, 0.0, time.perf_counter(), 0.0)  # the ranks of a host have one clock
    wire.finish()
    return figures, []


def train_alone() -> None:
    """For each line of standard input, train for that number of seconds and print the steps per second."""
    torch.set_num_threads(1)
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        print(_steps_per_s(float(line), lambda: False), flush=True)  # noqa: T201


def _steps_per_s(seconds: float, stopped: Callable[[], bool]) -> float:
    """Train a small network; ask after every step whether to stop, as client.Trainer does. Returns steps per second."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    params = list(model.parameters())
    inputs, targets, steps = torch.ones(32, 64), torch.zeros(32, dtype=torch.int64), 0
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        with torch.no_grad():
            for p, gradient in zip(params, torch.autograd.grad(loss, params), strict=True):
                p.sub_(gradient, alpha=0.01)
        steps += 1
        assert not stopped()
    return steps / elapsed


def _core_share() -> Callable[[], float]:
    """Begin to measure. The function returned gives the share of a core that this process has used since."""
    cpu, wall = time.process_time(), time.perf_counter()
    return lambda: (time.process_time() - cpu) / (time.perf_counter() - wall)
