"""Measures how long clients wait for a reply, and what an update costs the server. The clients train nothing.

Server, wire and rule are those of a run, and every update is recorded. The global model is changed between updates, so that
no update is fresh and every distance must be computed.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

import numpy as np
import torch

from asyncfeded import rules
from asyncfeded.bench import ROUNDS, report
from asyncfeded.bench.job import answer, check, device_of, in_job, mpi, together
from asyncfeded.config import Checkpoint, Evaluation, Faults, Limits
from asyncfeded.metric import DEFAULT, Metrics
from asyncfeded.model import kernel
from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.mpi import devices
from asyncfeded.mpi.placement import PLACE
from asyncfeded.mpi.waiting import Wait
from asyncfeded.mpi.world import RefusedError, World, make_statement
from asyncfeded.run import plan, resume
from asyncfeded.run.keeper import Keeper
from asyncfeded.run.memory import Need, agree_on_memory
from asyncfeded.run.progress import Progress
from asyncfeded.store.checkpoint import FOLDER, Writer
from asyncfeded.store.record import Record, UpdateRow
from asyncfeded.training.evaluation import Evaluator, NoEvaluator, Score
from asyncfeded.training.heterogeneity import PROFILE
from asyncfeded.training.server import Server
from asyncfeded.training.server_state import ServerSettings, ServerState
from asyncfeded.wire.client_wire import ClientWire
from asyncfeded.wire.messages import HEAD, Arrival
from asyncfeded.wire.server_wire import ServerWire
from asyncfeded.wire.staging import Staging
from asyncfeded.wire.transfer import peers

Tick: TypeAlias = Callable[[Server, Record], None]
"""Is called between two updates, with the record of the window."""
ECHO_BYTES = 4e8
"""Bytes that the echoes of a round send there and back; the number of echoes is kept between 3 and 200."""
TRIAD_SIZE = 25_000_000
"""Largest number of elements of the triad's arrays: larger than every cache."""
TOUCHED = 9
"""Passes over arrays in the server's memory for one update: one is written when it arrives, three are read for the norms,
three are read and two written by the merge."""


def measure(params: int, seconds: float, wait: str, checkpoints: bool, device: str) -> int:
    """Measure the server, and print the figures. Collective: rank 0 is the server, every other rank is a client.

    Each round has three parts: echoes of a header and a model between the server and the first client, by plain MPI calls;
    the server at work for all clients; the memory triad on the server's threads. With checkpoints it has a fourth part
    before the triad: the server at work while checkpoints are written, one after the other.

    Args:
        params: elements of the model.
        seconds: of the server's work in each round.
        wait: auto, spin or yield, as the config's `wait`.
        checkpoints: whether to measure the server also while checkpoints are written.
        device: where the server's models are, as the config's `server_device`.

    Returns:
        The exit status: 0, or 2 after telling on standard error why the ranks cannot start.
    """

    def with_ranks(world: World) -> None:
        way = check(seconds, wait)
        if params < 1:
            raise RefusedError(f"--params {params}: expected the elements of a model, at least 1")
        wanted = device if world.rank == 0 else "cpu"
        own_device = plan.agree_on(world, lambda: device_of(wanted), lambda _: make_statement())
        models = 1 if world.rank else world.size + 1 + checkpoints  # one for each client, the global one, a receive buffer
        need = 4 * params * models
        agree_on_memory(world, Need(need, need), f"the server holds {world.size - 1} models of {params} parameters and more")
        torch.set_num_threads(world.threads)
        if world.rank == 0:
            devices.take(own_device)
            _serve(world, params, seconds, way, checkpoints, own_device)
        else:
            _answer(world, params, way, checkpoints)

    return in_job(with_ranks)


def _serve(world: World, params: int, seconds: float, wait: Wait, checkpoints: bool, device: torch.device) -> None:
    """The server's part of all rounds, and the report. Rank 0."""
    before = _status_bytes("VmRSS")
    clients = world.size - 1
    layout = Layout((Entry("w", (params,), 0),), params, params)
    model = GlobalModel(torch.ones(params, device=device), layout, clients)
    echo_s, triad_s, peak = [], [], 0
    alone: list[Window] = []
    beside: list[Window] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keeping = Keeping(folder)  # one for all rounds: its copies take new memory in the round of warm-up only
        for number in range(1 + ROUNDS):
            together(world)
            echo_s.append(_echo(world, model.base[0].cpu().numpy()))
            together(world)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
            with _record(world, folder / f"{number}.h5") as book:
                alone.append(_window(world, model, book, seconds, wait, lambda server, book: None))
            peak = max(peak, _status_bytes("VmHWM") - keeping.writer.num_bytes)
            if checkpoints:
                together(world)
                with _record(world, folder / f"{number}-beside.h5") as book:
                    beside.append(_window(world, model, book, seconds, wait, keeping.tick))
                    keeping.finish()
            triad_s.append(_triad(min(params, TRIAD_SIZE)))
    rate = float(np.median([window.updates / window.wall_s for window in alone[1:]]))
    busy_s = float(np.median([window.busy_s / max(window.updates, 1) for window in alone[1:]]))
    echo, (p50, p99) = float(np.median(echo_s[1:])), _turnaround_s(world)
    figures: dict[str, object] = {
        "params": params,
        "clients": clients,
        "mpi": mpi(),
        "device": str(device),
        "threads": world.threads,
        "wait": wait,
        "turnaround_s_p50": p50,
        "turnaround_s_p99": p99,
        "updates_per_s": rate,
        "echo_s_p50": echo,
        "turnaround_over_echo": p50 / echo,
        "server_busy_s_per_update": busy_s,
        "payload_gb_per_s": 2 * 4 * params * rate / 1e9,
        "triad_gb_per_s": 12 * min(params, TRIAD_SIZE) / float(np.median(triad_s[1:])) / 1e9,
        "bytes_touched_per_update": TOUCHED * 4 * params,
        "server_peak_bytes": peak - before,
        "server_models": (peak - before) / (4 * params),
    }
    rows = [
        (f"{clients} client(s), {params} parameters, {figures['mpi']}, wait={figures['wait']}", ""),
        ("turnaround of an update, median", f"{1e3 * p50:.4g} ms"),
        ("99 of 100", f"{1e3 * p99:.4g} ms"),
        ("raw MPI echo, median", f"{1e3 * echo:.4g} ms"),
        ("turnaround over echo", f"{p50 / echo:.3g}"),
        ("updates", f"{rate:.4g} /s, {figures['payload_gb_per_s']:.3g} GB/s of models"),
        ("server busy for an update", f"{1e6 * busy_s:.4g} us, {sum(w.updates for w in alone[1:])} updates recorded"),
        ("triad on the server's thread(s)", f"{figures['triad_gb_per_s']:.3g} GB/s, {world.threads} thread(s)"),
        ("memory of the server's models, peak", f"{(peak - before) / 1e6:.4g} MB, {figures['server_models']:.3g} models"),
    ]
    if checkpoints:
        beside_p50, beside_p99 = _turnaround_s(world)
        figures |= {
            "turnaround_s_p50_checkpointing": beside_p50,
            "turnaround_s_p99_checkpointing": beside_p99,
            "p99_checkpointing_over_p99": beside_p99 / p99,
            "checkpoints": keeping.written,
            "checkpoint_bytes": keeping.num_bytes,
        }
        rows += [
            ("turnaround while checkpoints are written, median", f"{1e3 * beside_p50:.4g} ms"),
            ("99 of 100", f"{1e3 * beside_p99:.4g} ms, {beside_p99 / p99:.3g} times that without"),
            ("checkpoints", f"{keeping.written}, of {keeping.num_bytes / 1e6:.4g} MB"),
        ]
    note = (
        f"{ROUNDS} rounds of {seconds:g} s after one of warm-up; busy: the processor time of receiving, measuring, "
        f"merging, replying and recording; memory: what the system counts above that before the models were made"
    )
    report(rows, figures, note)


def _turnaround_s(world: World) -> tuple[float, float]:
    """Median and 99th percentile of the turnarounds that all clients measured in one kind of window. Rank 0."""
    counts = np.zeros(world.size, np.int64)
    world.comm.Gather(np.zeros(1, np.int64), counts)
    turnaround_s = np.zeros(counts.sum())
    world.comm.Gatherv(np.zeros(0), [turnaround_s, counts])
    p50, p99 = np.percentile(turnaround_s, [50, 99]).tolist()
    return p50, p99


def _answer(world: World, params: int, wait: Wait, checkpoints: bool) -> None:
    """The client's part of all rounds: it returns a changed model at once. Client ranks."""
    buffer = torch.zeros(params)
    kinds: list[list[float]] = [[], []] if checkpoints else [[]]
    for number in range(1 + ROUNDS):
        together(world)
        if world.rank == 1:
            _echo(world, buffer.numpy())
        for turnaround_s in kinds:
            together(world)
            taken_s = answer(ClientWire(world.comm, buffer, world.backoff(wait)), buffer)
            if number:
                turnaround_s += taken_s[:-1]  # the answer to the last one was the stop
    for turnaround_s in kinds:
        world.comm.Gather(np.array([len(turnaround_s)]), None)
        world.comm.Gatherv(np.array(turnaround_s), None)


class Window(NamedTuple):
    """What the server did in one window of work."""

    updates: int
    busy_s: float
    wall_s: float


def _record(world: World, path: Path) -> Record:
    """A new record for one window."""
    return Record(path, "", np.zeros(world.size, PLACE), np.zeros(world.size - 1, PROFILE), Metrics(DEFAULT, "accuracy"))


def _window(world: World, model: GlobalModel, book: Record, seconds: float, wait: Wait, tick: Tick) -> Window:
    """Serve all clients for so many seconds. Rank 0."""
    clients = world.size - 1
    staging = Staging(model) if not model.x.is_cpu else None
    measured, size = (staging or model).measure, model.layout.sent
    wire = ServerWire(
        world.comm,
        peers(world.comm, world.seats.groups),
        size,
        world.backoff(wait),
        clients,
        measured,
        pinned=not model.x.is_cpu,
    )
    if staging:
        staging.below = wire
    rule, epochs = rules.load_rule({"name": "asyncfeded", "lambda": 0.1}), np.ones(clients, np.int64)
    server = Server(
        wire=staging or wire,
        rule=rule,
        state=ServerState(model, rule.init(model, epochs), epochs, evaluation_due_s=np.inf),
        evaluator=cast("Evaluator", NoEvaluator()),
        settings=ServerSettings(Limits(), Faults(), Evaluation(), Metrics(DEFAULT, "accuracy"), in_idle_moments=True),
        observer=WindowObserver(model, book, seconds, tick),
    )
    outcome = server.run()
    if staging:
        del staging.below  # wire and staging hold each other, and with that their pinned buffers
    return Window(server.state.updates, server.state.busy_s + wire.receiving_s, outcome.wall_s)


class WindowObserver:
    """Records a window of work as a run is recorded, changes the global model after every update, and ends the window.

    Args:
        model: the global model.
        book: the record.
        seconds: length of the window.
        tick: is called whenever the server calls `tick`.
    """

    def __init__(self, model: GlobalModel, book: Record, seconds: float, tick: Tick) -> None:
        self._model, self._record, self._seconds, self._tick = model, book, seconds, tick
        self._x, self._seen = model.x.numpy() if model.x.is_cpu else model.x, 0

    def on_update(self, row: UpdateRow) -> None:
        """See `Observer`."""
        self._record.updates.append(row)

    def on_evaluation(self, time_s: float, score: Score) -> None:
        """See `Observer`."""

    def on_client_evaluation(self, time_s: float, arrival: Arrival) -> None:
        """See `Observer`."""

    def tick(self, server: Server) -> None:
        """See `Observer`."""
        self._record.flush_if_due()
        if server.state.updates > self._seen:
            self._seen = server.state.updates
            self._x[0] += 1e-6
            self._model.version += 1
            # A window has some updates, even if they are slow.
            server.interrupted = server.elapsed_s > self._seconds and self._seen > 2 * len(self._model.base)
        self._tick(server, self._record)

    def say(self, sentence: str, kind: str = "", client: int = -1) -> None:
        """See `Observer`."""
        print(sentence)  # noqa: T201


class Keeping:
    """Starts a checkpoint as soon as the previous one is on the disk. Rank 0.

    Attributes:
        writer: writes the checkpoints of all windows.
        written: number of checkpoints so far.
        num_bytes: size of the last one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.writer, self.written, self.num_bytes = folder / FOLDER, Writer(folder / FOLDER, 1), 0, 0
        self._keeper: Keeper | None = None

    def tick(self, server: Server, book: Record) -> None:
        """See `Observer`. Starts no checkpoint at the end: replies that are still on their way would wait for the disk."""
        if self._keeper is None:
            take = partial(resume.snapshot, book=book, config="", due_s={}, workers=1, layout=server.state.model.layout)
            self._keeper = Keeper(Checkpoint(), self.writer, book, take, cast("Progress", self), None)
        if not server.stopping:
            self._keeper.wanted = True
            self._keeper.tick(server)

    def finish(self) -> None:
        """Wait for the last checkpoint of a window."""
        if self._keeper:
            self._keeper.finish()
            self._keeper, self.num_bytes = None, sum(path.stat().st_size for path in self._folder.iterdir())

    def log(self, text: str) -> None:
        """As `Progress.log`: a checkpoint is written."""
        self.written += 1

    def say(self, text: str) -> None:
        """As `Progress.say`: a checkpoint could not be written."""
        raise RuntimeError(text)


def _echo(world: World, weights: np.ndarray) -> float:
    """Send a header and a model there and back by plain MPI calls. Ranks 0 and 1. Returns the median seconds of an echo."""
    header = np.zeros(HEAD, np.uint8)
    other, taken_s = 1 - world.rank, []
    for _ in range(int(np.clip(ECHO_BYTES / weights.nbytes, 3, 200))):
        began = time.perf_counter()
        for sends in (world.rank == 1, world.rank == 0):
            for tag, message in enumerate((header, weights)):
                (world.comm.Send if sends else world.comm.Recv)(message, other, tag)
        taken_s.append(time.perf_counter() - began)
    return float(np.median(taken_s))


def _triad(size: int) -> float:
    """Seconds of the second of two triads."""
    a, b, c = (torch.ones(size) for _ in range(3))
    for _ in range(2):
        began = time.perf_counter()
        kernel.triad(a, b, c, 0.5)
        taken_s = time.perf_counter() - began
    return taken_s


def _status_bytes(field: str) -> int:
    """VmRSS, the memory of this process, or VmHWM, its maximum so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)
