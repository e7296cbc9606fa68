"""A server of one rank or of several: the state that each holds, the wires of rank 0, and the loop of the other ranks."""

import math
import time
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import numpy as np
from torch import Tensor

from asyncfeded.config import Config
from asyncfeded.metric import Metrics
from asyncfeded.model.average import Average
from asyncfeded.model.flat import FlatModel, Shape
from asyncfeded.model.kernel import CHUNK
from asyncfeded.model.slices import Slice, cut
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import Wait
from asyncfeded.mpi.world import World
from asyncfeded.own import CodeError
from asyncfeded.rules import Rule, contract
from asyncfeded.run import resume
from asyncfeded.run.memory import clients_near, make_model
from asyncfeded.run.plan import Plan
from asyncfeded.run.slice_writers import SliceWriter, slice_snapshot
from asyncfeded.store.checkpoint import FOLDER, read_checkpoint
from asyncfeded.store.record import UpdateRow
from asyncfeded.training.clock import Due, OrderedClock, Replay, nobody
from asyncfeded.training.elsewhere import Elsewhere
from asyncfeded.training.evaluation import Evaluator, Score
from asyncfeded.training.heterogeneity import ClientProfiles
from asyncfeded.training.rounds import Workload
from asyncfeded.training.server import DivergedError, Server
from asyncfeded.training.server_state import ServerSettings, ServerState
from asyncfeded.wire.deadlines import Deadlines
from asyncfeded.wire.group import make_group
from asyncfeded.wire.messages import Arrival, Wire
from asyncfeded.wire.nearest import Nearest
from asyncfeded.wire.open_wire import OpenWire, absent
from asyncfeded.wire.server_ranks import ServerRanks, What
from asyncfeded.wire.server_wire import ServerWire
from asyncfeded.wire.slice_wire import FirstSliceWire, LeadingWire, SharedDeadlines, SliceWire
from asyncfeded.wire.staging import Staging
from asyncfeded.wire.transfer import peers

T = TypeVar("T")
TOLD_S = 30.0
"""How long a server rank with an error waits for rank 0, which has the same error, to tell it and to end the job."""


def cut_model(world: World, sent: int, wait: Wait) -> tuple[list[Slice], ServerRanks | None]:
    """Cut the model for the ranks of the server. Collective.

    Returns:
        The slices, and on the ranks of the server how they speak with each other; nothing of a server of one rank.
    """
    servers = world.seats.servers
    if servers == 1:
        return [], None
    slices = cut(sent, servers)
    comm = cast(MPI.Intracomm, world.comm.Split(0 if world.rank < servers else MPI.UNDEFINED, world.rank))
    if world.rank >= servers:
        return slices, None
    return slices, ServerRanks(make_group(comm, world.backoff(wait), "the server"), slices)


def begin(plan: Plan, flat: FlatModel, own: list[Shape], profiles: ClientProfiles, ranks: ServerRanks | None) -> ServerState:
    """The state of this server rank at the start of a run.

    Args:
        plan: the run.
        flat: the model at its start.
        own: what is each client's own.
        profiles: profiles of the clients.
        ranks: all ranks of the server; None: it has one.

    Raises:
        ValueError: the rule refuses the config.
    """
    config, rule, workers = plan.config, plan.rule, plan.seats.workers
    layout, epochs = flat.layout.with_own(own), profiles.clients["epochs"].astype(np.int64)
    if ranks is None:
        model = make_model(config, rule, flat.buffer, layout, workers)
    else:
        held = ranks.mine
        part = flat.buffer[held.start : min(held.stop, layout.size)]
        model = make_model(config, rule, part, held.of(layout), workers, ranks.numbers_of_all)
    average = Average(model.x, config.evaluation.average) if config.evaluation.average else None
    return ServerState(model, contract.init(rule, model, epochs), epochs, average)


def describe(ranks: ServerRanks | None) -> list[str]:
    """What each rank of the server holds, as sentences; none of a server of one rank."""
    if ranks is None:
        return []
    sizes = [each.size for each in ranks.slices]
    told = [f"{len(sizes)} server ranks hold {', '.join(map(str, sizes))} numbers of the model each"]
    if idle := sizes.count(0):
        told.append(
            f"{idle} of the server ranks hold nothing: a model is cut into pieces of {CHUNK} numbers, and this one has "
            f"{len(sizes) - idle}; set servers = {len(sizes) - idle}"
        )
    return told


class Wires(NamedTuple):
    """What moves the messages of rank 0."""

    wire: Wire
    """What its server uses."""
    workers: ServerWire
    """The wire to the workers, below."""
    clock: OrderedClock | None
    """Between the two; None: the wall clock."""
    staging: Staging | None
    """None: the model is in host memory."""


def lead(
    world: World,
    config: Config,
    state: ServerState,
    due: Due,
    ranks: ServerRanks | None,
    repeated: Replay | None,
    places: np.ndarray,
) -> Wires:
    """Make the wires of rank 0. Rank 0.

    Args:
        world: all ranks.
        config: the resolved config.
        state: the state in which the run begins or continues.
        due: when an update is due; not used on the wall clock.
        ranks: all ranks of the server; None: it has one.
        repeated: the record that a replay repeats.
        places: placement.PLACE (ranks,), by rank in MPI_COMM_WORLD.
    """
    ordered, model = config.clock != "wall", state.model
    late = range(config.present, config.clients)
    # On an ordered clock updates wait for their turn, and the model changes before they are measured.
    staging = Staging(model) if not model.x.is_cpu else None
    patience = config.faults.patience, config.faults.patience_s
    arguments = (
        world.comm,
        peers(world.comm, world.seats.groups) + absent(late),
        model.layout.sent,
        world.backoff(config.wait),
        config.clients,
        None if ordered else (staging or model).measure,
        state.taken_s,
        SharedDeadlines(ranks, *patience) if ranks else Deadlines(*patience),
        ordered or config.faults.on_death == "reassign",  # an ordered clock's result must not depend on lost workers
        not model.x.is_cpu,
        alike(world, places) if ordered and not config.training.loader_workers else (),  # whose processes begin anew
    )
    workers: ServerWire = (FirstSliceWire if ranks else OpenWire if late else ServerWire)(*arguments)
    below = Nearest(workers, model.disk, clients_near(config, model.layout)) if model.disk else workers
    meanwhile = repeated.meanwhile if repeated else nobody
    clock = OrderedClock(below, due, state.taken_s, meanwhile) if ordered else None
    if staging:
        staging.below = clock or workers
    wire: Wire = staging or clock or workers
    if isinstance(workers, FirstSliceWire) and ranks:
        workers.ranks, workers.hosts = ranks, [world.hosts[leader] for leader in world.seats.leaders]
        wire = LeadingWire(wire, ranks, workers)
    return Wires(wire, workers, clock, staging)


def alike(world: World, places: np.ndarray) -> list[list[tuple[object, ...]]]:
    """For each worker, where its ranks compute, on what, and with how many threads: the last bits may depend on it.

    Args:
        world: all ranks, seated.
        places: placement.PLACE (ranks,), by rank in MPI_COMM_WORLD.
    """
    seats = world.seats
    of_seat = places[["host", "device", "threads"]][list(seats.order)].tolist()
    return [[of_seat[seat] for seat in group] for group in seats.groups]


class SliceParts(NamedTuple):
    """What a server rank other than rank 0 has prepared before the first message."""

    config: Config
    metrics: Metrics
    """Those of the task."""
    rule: Rule
    workloads: list[Workload]
    """What K means for each client."""
    state: ServerState
    """The state in which the run begins or continues; its model is a slice."""
    ranks: ServerRanks
    """All ranks of the server."""


def follow(world: World, parts: SliceParts) -> bool:
    """Do as rank 0 does, on this rank's slice, until rank 0 has ended. Server ranks except rank 0.

    Returns:
        Whether ranks are lost.

    Raises:
        CodeError: the rule has failed on this rank, and rank 0 has not ended the job because of the same.
    """
    config, metrics, rule, workloads, state, ranks = parts
    ordered, model = config.clock != "wall", state.model
    staging = Staging(model) if not model.x.is_cpu else None
    keeper = SliceWriter(ranks, Path(config.run_dir) / FOLDER)
    wire = SliceWire(
        ranks,
        peers(world.comm, world.seats.groups),
        world.backoff(config.wait),
        None if ordered else (staging or model).measure,
        lambda: state.tested,
        keeper,
        model.disk,
        state.taken_s,
        not model.x.is_cpu,
    )
    if staging:
        staging.below = wire
    if not ordered:
        state.evaluation_due_s = math.inf  # rank 0 asks for its snapshots
    settings = ServerSettings(config.limits, config.faults, config.evaluation, metrics, False, workloads)
    server = Server(staging or wire, rule, state, cast(Evaluator, ToldEvaluator(wire, metrics)), settings, Silent())
    keeper.take = lambda number: slice_snapshot(server, number)
    try:
        server.run()
    except (CodeError, DivergedError):
        if not wire.ended:
            time.sleep(TOLD_S)  # rank 0 ends the job meanwhile
            raise
    return wire.ranks_lost


class TellingEvaluator:
    """An `Evaluator` of rank 0 that tells the other server ranks each score of an ordered clock. Other scores are its own.

    Args:
        evaluator: tests the model.
        ranks: all ranks of the server.
    """

    def __init__(self, evaluator: Evaluator | Elsewhere, ranks: ServerRanks) -> None:
        self._evaluator, self._ranks = evaluator, ranks
        self.start, self.step = evaluator.start, evaluator.step

    @property
    def running(self) -> bool:
        """See `Evaluator`."""
        return self._evaluator.running

    @property
    def num_bytes(self) -> int:
        """See `Evaluator`."""
        return self._evaluator.num_bytes

    def score(self, x: Tensor, version: int) -> Score:
        """See `Evaluator`. Rank 0."""
        score = self._evaluator.score(x, version)
        self._ranks.say(What.SCORE, list(score.values.values()))
        return score


class ToldEvaluator:
    """An `Evaluator` of the other server ranks: rank 0 tells them the scores."""

    running = False

    def __init__(self, wire: SliceWire, metrics: Metrics) -> None:
        self._wire, self._metrics = wire, metrics

    def start(self, x: Tensor, version: int) -> None:
        """See `Evaluator`."""

    def step(self) -> Score | None:
        """See `Evaluator`."""

    def score(self, x: Tensor, version: int) -> Score:
        """What rank 0 tells; NaN when it has ended. Server ranks except rank 0."""
        while self._wire.score is None and not self._wire.ended:
            if self._wire.next() is None:
                self._wire.pause()
        told, self._wire.score = self._wire.score, None
        values = np.full(len(self._metrics.by_name), math.nan) if told is None else told
        return Score(version, dict(zip(self._metrics.by_name, values.tolist(), strict=True)))


class Silent:
    """An `Observer` that shows and keeps nothing: rank 0 does."""

    def on_update(self, row: UpdateRow) -> None:
        """See `Observer`."""

    def on_evaluation(self, time_s: float, score: Score) -> None:
        """See `Observer`."""

    def on_client_evaluation(self, time_s: float, arrival: Arrival) -> None:
        """See `Observer`."""

    def tick(self, server: Server) -> None:
        """See `Observer`."""

    def say(self, sentence: str, kind: str = "", client: int = -1) -> None:
        """See `Observer`."""


def go_on_from(run_dir: Path, newest: str, parts: T) -> T:
    """Take this rank's slice of the checkpoint that rank 0 goes on from. Server ranks except rank 0; on others nothing.

    Args:
        run_dir: folder of the run.
        newest: file name of the checkpoint; empty: the run is new.
        parts: what the rank has prepared.

    Raises:
        ValueError: this rank cannot read the folder.
    """
    if not isinstance(parts, SliceParts):
        return parts
    if not (run_dir / "config.toml").exists():
        raise ValueError(
            f"{run_dir}: not there on this rank of the server; all of them write checkpoints into the run's folder: put it "
            f"on a disk that they share"
        )
    if newest:
        at = read_checkpoint(run_dir / FOLDER / newest, parts.ranks.mine, resume.vectors(resume.kept(parts.state)))
        resume.restore(parts.state, at)
    return parts._replace(config=parts.config.model_copy(update={"run_dir": str(run_dir)}))
