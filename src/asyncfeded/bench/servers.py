"""Measures how many updates 1, 2, 4, ... ranks of a server take, and the memory of each. The clients train nothing.

The limit is measured in the same run: models travel both ways at the same time, slices side by side, and nothing is
measured, merged or put in order. Where links are slower than cores, both show what the links allow.
"""

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from asyncfeded import rules
from asyncfeded.bench import report
from asyncfeded.bench.job import answer, check, in_job, mpi, together
from asyncfeded.config import Evaluation, Faults, Limits
from asyncfeded.metric import DEFAULT, Metrics
from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.model.slices import Slice
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.limits import process_memory
from asyncfeded.mpi.seats import deal
from asyncfeded.mpi.waiting import Backoff, Wait
from asyncfeded.mpi.world import RefusedError, World
from asyncfeded.run.memory import Need, agree_on_memory
from asyncfeded.run.slices import Silent, cut_model
from asyncfeded.store.record import UpdateRow
from asyncfeded.training.evaluation import Evaluator, NoEvaluator
from asyncfeded.training.server import Server
from asyncfeded.training.server_state import ServerSettings, ServerState
from asyncfeded.wire.client_wire import ClientWire, cut
from asyncfeded.wire.messages import Wire
from asyncfeded.wire.server_ranks import ServerRanks
from asyncfeded.wire.server_wire import ServerWire
from asyncfeded.wire.slice_wire import FirstSliceWire, LeadingWire, SliceWire
from asyncfeded.wire.transfer import Peer, Receiving, Sending, peers

WARM = 2
"""Mean number of updates of each client that are left out."""
LEAST, MOST = 2, 200
"""Fewest and most models that a client sends, and receives, to measure the limit."""
FIGURES = np.dtype(
    [
        ("rate", np.float64),  # updates per second
        ("wait_s", np.float64),  # mean time from the end of a round to the next model
        ("cpu_s", np.float64),  # processor time for an update
        ("busy", np.float64),  # the part of this host's cores that was in use
        ("resident", np.int64),  # memory of the process, in bytes
        ("models", np.int64),  # the part of it that came with the models
    ]
)
"""Of a rank; a client knows only its wait, and a server rank all but that."""


def measure(params: int, servers: int, seconds: float, round_s: float, wait: str) -> int:
    """Measure with 1, 2, 4, ... server ranks; rank 0 prints the figures. Collective: the ranks after `servers` are clients.

    Args:
        params: elements of the model.
        servers: the largest number of server ranks; where there are fewer, the others wait.
        seconds: of each measurement: of the server, and of the limit, for each number of server ranks.
        round_s: seconds that a client sleeps before it answers, as if it trained.
        wait: auto, spin or yield, as the config's `wait`.

    Returns:
        The exit status: 0, or 2 after telling on standard error why the ranks cannot start.
    """

    def with_ranks(world: World) -> None:
        way = check(seconds, wait)
        if params < 1 or not 0 < servers < world.size or not 0 <= round_s < seconds:
            raise RefusedError(
                f"--params {params} --servers {servers} --round-s {round_s:g}: expected at least 1, at least 1 and fewer "
                f"than the {world.size} ranks, and rounds that are shorter than --seconds"
            )
        torch.set_num_threads(1)
        counts = [2**i for i in range(servers.bit_length()) if 2**i < servers] + [servers]
        mine = next((count for count in counts if world.rank < count), 0)  # it then has the largest slice
        need = 4 * params * (world.size - servers + 1 + mine) // mine if mine else 8 * params
        agree_on_memory(world, Need(need, need), f"a server rank holds models of {params} parameters for each client")
        rows = [_with_servers(world, count, servers, params, seconds, round_s, way) for count in counts]
        if world.rank == 0:
            _report(world, params, servers, round_s, way, dict(zip(counts, rows, strict=True)))

    return in_job(with_ranks)


def _with_servers(
    world: World, count: int, servers: int, params: int, seconds: float, round_s: float, wait: Wait
) -> dict[str, Any]:
    """Measure with so many of the server ranks. Collective. Returns the figures on rank 0; elsewhere nothing."""
    together(world)
    takes_part = not count <= world.rank < servers
    comm = cast("MPI.Intracomm", world.comm.Split(0 if takes_part else MPI.UNDEFINED, world.rank))
    if not takes_part:
        return {}
    hosts = world.hosts[:count] + world.hosts[servers:]
    seated = replace(world, comm=comm, rank=comm.rank, size=comm.size, hosts=hosts, seats=deal(hosts, servers=count))
    slices, ranks = cut_model(seated, params, wait)
    size, serves = ranks.mine.size if ranks else params, seated.rank < count
    buffer = torch.empty(0) if serves else torch.ones(params)
    most = _exchanges_per_s(seated, buffer, slices, size, seconds, wait)
    mine = _serve(seated, ranks, size, seconds, wait) if serves else _answer(seated, buffer, slices, round_s, wait)
    told = np.zeros(comm.size, FIGURES)
    comm.Gather(mine.view(np.uint8), told.view(np.uint8))
    if seated.rank:
        return {}
    ours, rate = told[:count], float(told["rate"][0])
    return {
        "updates_per_s": rate,
        "exchanges_per_s": most,
        "updates_over_exchanges": rate / most,
        "client_wait_s": float(told["wait_s"][count:].mean()),
        "busiest_host": float(ours["busy"].max()),
        "cpu_s_per_update": ours["cpu_s"].tolist(),
        "resident_bytes": ours["resident"].tolist(),
        "models_bytes": ours["models"].tolist(),
    }


def _serve(world: World, ranks: ServerRanks | None, size: int, seconds: float, wait: Wait) -> np.ndarray:
    """What a server rank does. Returns its FIGURES, (1,). Server ranks."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the measurement before this one has left, back to the system
    workers, backoff, before = peers(world.comm, world.seats.groups), world.backoff(wait), process_memory()[0]
    clients, gather = len(workers), ranks.numbers_of_all if ranks else None
    model = GlobalModel(torch.ones(size), Layout((Entry("w", (size,), 0),), size, size), clients, gather=gather)
    wire: Wire
    if ranks is None:
        wire = ServerWire(world.comm, workers, size, backoff, clients, model.measure)
    elif world.rank:
        wire = SliceWire(ranks, workers, backoff, model.measure, lambda: model.x)
    else:
        first = FirstSliceWire(world.comm, workers, size, backoff, clients, model.measure)
        first.ranks, first.hosts = ranks, [world.hosts[leader] for leader in world.seats.leaders]
        wire = LeadingWire(first, ranks, first)
    rule, epochs = rules.load_rule({"name": "asyncfeded", "lambda": 0.1}), np.ones(clients, np.int64)
    state = ServerState(model, rule.init(model, epochs), epochs, evaluation_due_s=np.inf)
    settings = ServerSettings(Limits(), Faults(), Evaluation(), Metrics(DEFAULT, "accuracy"), in_idle_moments=True)
    window = Window(clients, seconds)
    Server(wire, rule, state, cast("Evaluator", NoEvaluator()), settings, window).run()
    held, (began_s, cpu_began_s, _), (ended_s, cpu_ended_s, _) = process_memory()[0], window.first, window.last
    rate, cpu_s = window.updates / (ended_s - began_s), (cpu_ended_s - cpu_began_s) / window.updates
    return np.array([(rate, 0.0, cpu_s, _busy(window.first[2], window.last[2]), held, held - before)], FIGURES)


class Window(Silent):
    """Watches the updates after those of warm-up, and ends the training after some seconds.

    Attributes:
        updates: how many, without the first.
        first: the clock, this process's processor time, and the ticks of the host, at the first of them.
        last: the same at the last.
    """

    def __init__(self, clients: int, seconds: float) -> None:
        self._warm, self._seconds, self.updates = WARM * clients, seconds, -1
        self.first = self.last = (0.0, 0.0, np.zeros(2))

    def on_update(self, row: UpdateRow) -> None:
        """See `Observer`."""
        if row.version > self._warm:
            self.last, self.updates = (row.time_s, time.process_time(), _ticks()), self.updates + 1
            self.first = self.first if self.updates else self.last

    def tick(self, server: Server) -> None:
        """See `Observer`. It has one update at least, however slow they are."""
        server.interrupted = self.updates > 0 and self.last[0] - self.first[0] > self._seconds


def _ticks() -> np.ndarray:
    """What the cores of this host have done so far: how long they were idle, and in all."""
    line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    ticks = np.array(line.split()[1:9], np.float64)
    return np.array([ticks[3] + ticks[4], ticks.sum()])


def _busy(first: np.ndarray, last: np.ndarray) -> float:
    """The part of this host's cores that was in use between two looks."""
    idle, everything = last - first
    return float(1 - idle / everything) if everything else 0.0


def _answer(world: World, buffer: torch.Tensor, slices: Sequence[Slice], round_s: float, wait: Wait) -> np.ndarray:
    """What a client does: it returns a changed model after a pause. Returns its FIGURES, (1,). Client ranks."""
    waits_s = answer(ClientWire(world.comm, buffer, world.backoff(wait), slices), buffer, round_s)
    return np.array([(0.0, np.mean(waits_s[WARM:-1] or waits_s), 0.0, 0.0, 0, 0)], FIGURES)  # the last answer was the stop


def _exchanges_per_s(
    world: World, buffer: torch.Tensor, slices: Sequence[Slice], size: int, seconds: float, wait: Wait
) -> float:
    """Models per second that go to the server ranks while as many come back, all clients at the same time. Collective."""
    serves = world.rank < world.seats.servers
    arriving = np.zeros(len(buffer), np.float32)
    if serves:
        sent = np.ones(size, np.float32)
        ends = [[(worker, sent, np.zeros(size, np.float32))] for worker in peers(world.comm, world.seats.groups)]
    else:
        parts = zip(cut(buffer, slices), cut(torch.from_numpy(arriving), slices), strict=True)
        ends = [[(Peer(world.comm, rank, ""), out, into) for (rank, out), (_, into) in parts]]

    def spent_s(number: int) -> float:
        together(world)
        began = time.perf_counter()
        _run([_exchange(parts, number) for parts in ends], world.backoff(wait))
        together(world)
        return time.perf_counter() - began

    number = np.array([np.clip(seconds / spent_s(1), LEAST, MOST)])
    world.comm.Bcast(number, 0)
    return world.seats.workers * int(number[0]) / spent_s(int(number[0]))


def _exchange(parts: Sequence[tuple[Peer, np.ndarray, np.ndarray]], number: int) -> Iterator[bool]:
    """Send and receive so many models at the same time, in parts that go side by side.

    Args:
        parts: with whom, what to send, and where to receive.
        number: how many.

    Yields:
        Whether something has moved since the last time.
    """
    for each in range(number):
        out = [Sending(peer, sent, None, each) for peer, sent, _ in parts]
        into = [Receiving(peer, received, each) for peer, _, received in parts]
        while not (all([part.go_on() for part in out]) and all(part.complete for part in into)):  # noqa: C419  # each must move
            yield any([part.poll() is not None for part in into])  # noqa: C419


def _run(exchanges: list[Iterator[bool]], backoff: Backoff) -> None:
    """Let all of them go on side by side, to their end."""
    while exchanges:
        looks = [next(each, None) for each in exchanges]
        exchanges = [each for each, look in zip(exchanges, looks, strict=True) if look is not None]
        (backoff.reset if any(looks) else backoff.pause)()


def _report(
    world: World, params: int, servers: int, round_s: float, wait: Wait, by_count: dict[int, dict[str, Any]]
) -> None:
    """Print the figures of each number of server ranks. Rank 0."""
    clients, hosts, rows = world.size - servers, len(set(world.hosts)), list(by_count.values())
    figures = {"params": params, "servers": list(by_count), "clients": clients, "hosts": hosts, "mpi": mpi()}
    figures |= {"wait": wait, "round_s": round_s}
    figures |= {name: [_rounded(row[name]) for row in rows] for name in rows[0]}

    def line(what: str, of: Callable[[dict[str, Any]], str]) -> tuple[str, ...]:
        return (what, *map(of, rows))

    table = [
        ("server ranks", *map(str, by_count)),
        line("updates/s", lambda row: f"{row['updates_per_s']:.4g}"),
        line("times those of one", lambda row: f"{row['updates_per_s'] / rows[0]['updates_per_s']:.3g}"),
        line("models/s that only travel, both ways at once", lambda row: f"{row['exchanges_per_s']:.4g}"),
        line("updates over these", lambda row: f"{row['updates_over_exchanges']:.3g}"),
        line("a client waits for a model, s", lambda row: f"{row['client_wait_s']:.3g}"),
        line("cores in use on the busiest server host", lambda row: f"{row['busiest_host']:.0%}"),
        line("processor of a server rank for an update, ms", lambda row: f"{1e3 * max(row['cpu_s_per_update']):.3g}"),
        line("memory of a server rank, MB", lambda row: f"{max(row['resident_bytes']) / 1e6:.4g}"),
        line("of that, its models, MB", lambda row: f"{max(row['models_bytes']) / 1e6:.4g}"),
    ]
    report(
        table,
        figures,
        f"{params:,} parameters, {clients} client(s) with rounds of {round_s:g} s, {hosts} host(s), {mpi()}; after {WARM} "
        f"updates of each client; of several server ranks the largest figure",
    )


def _rounded(value: float | list[float]) -> float | list[float]:
    """4 digits of each number that is no count."""
    if isinstance(value, list):
        return [cast("float", _rounded(each)) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
