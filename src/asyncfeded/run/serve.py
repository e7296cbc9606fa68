"""The server of one run. It makes and checks what it needs before the first message; then it trains and saves. Rank 0."""

import math
import shlex
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from torch import Tensor

from asyncfeded import rules
from asyncfeded.config import Config
from asyncfeded.files.digest import digest_files
from asyncfeded.metric import Metrics
from asyncfeded.model import kernel
from asyncfeded.model.flat import FlatModel, Layout, Shape
from asyncfeded.model.global_model import is_finite
from asyncfeded.mpi import launcher, placement
from asyncfeded.mpi.world import World
from asyncfeded.run import RESUMABLE, attendance, folder, result, resume
from asyncfeded.run.data import check_data
from asyncfeded.run.evaluate import evaluate_elsewhere, make_evaluator
from asyncfeded.run.keeper import Keeper
from asyncfeded.run.memory import most_held
from asyncfeded.run.nvtx import mark_server
from asyncfeded.run.plan import Plan, describe_server
from asyncfeded.run.progress import Progress
from asyncfeded.run.slice_writers import FirstSliceWriter
from asyncfeded.run.slices import TellingEvaluator, begin, describe, lead
from asyncfeded.run.stopping import asked
from asyncfeded.run.terms import Terms
from asyncfeded.run.trackers import Trackers
from asyncfeded.store import record
from asyncfeded.store.attendance import attendance as attended
from asyncfeded.store.checkpoint import FOLDER, Snapshot, Writer, save_model
from asyncfeded.store.ownership import Ownership
from asyncfeded.store.record import Record, UpdateRow
from asyncfeded.training.clock import Due, Replay, Resumed
from asyncfeded.training.elsewhere import Elsewhere
from asyncfeded.training.evaluation import Evaluator, Score
from asyncfeded.training.heterogeneity import ClientProfiles
from asyncfeded.training.rounds import Workload
from asyncfeded.training.server import INTERRUPTED, Outcome, Server
from asyncfeded.training.server_state import ServerSettings, ServerState
from asyncfeded.wire import door
from asyncfeded.wire.messages import Arrival
from asyncfeded.wire.open_wire import OpenWire
from asyncfeded.wire.server_ranks import ServerRanks
from asyncfeded.wire.snapshots import EvaluatorLostError


@dataclass(frozen=True)
class ServerParts:
    """What the server of a run has prepared before the first message."""

    config: Config
    metrics: Metrics
    """Those of the task."""
    places: np.ndarray
    """placement.PLACE (ranks,), by rank in MPI_COMM_WORLD."""
    flat: FlatModel
    """The model that snapshots are evaluated in."""
    rule: rules.Rule
    workloads: list[Workload]
    """What K means for each client."""
    state: ServerState
    """The state in which the run begins or continues."""
    due: Due
    """When an update is due; not used on the wall clock."""
    repeated: Replay | None
    """The record that a replay repeats."""
    attendance: dict[int, str]
    """Kind of event by client, of those who have no rank in this job, or have one again."""
    evaluator: Evaluator | Elsewhere
    open_record: Callable[[], Record]
    """Opens the record; call it once. The record of a resumed run then loses its rows after the checkpoint."""
    newest: str
    """File name of the checkpoint from which the run continues; empty: the run is new."""
    sentences: tuple[str, ...]
    """Sentences for the user about the data, and about the point from which the run continues."""
    owned: Ownership
    """That of the run's folder."""
    layout: Layout
    """What lies where in the buffer that a message carries."""
    ranks: ServerRanks | None
    """All ranks of the server, each with a slice; None: this is the only one."""

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return Path(self.config.run_dir)


def prepare(
    world: World,
    plan: Plan,
    flat: FlatModel,
    own: list[Shape],
    profiles: ClientProfiles,
    places: np.ndarray,
    owned: Ownership,
    resumed: Path | None,
    cleanup: ExitStack,
    ranks: ServerRanks | None,
) -> ServerParts:
    """Make and check everything that needs no message. Rank 0.

    Args:
        world: all ranks.
        plan: the run.
        flat: the model at its start; the server evaluates snapshots in it.
        own: what is each client's own.
        profiles: profiles of the clients.
        places: placement.PLACE (ranks,).
        owned: that of the run's folder.
        resumed: folder of the run to continue; None: a new run.
        cleanup: gets callbacks that remove everything made here, if the run does not start.
        ranks: all ranks of the server; None: it has one.

    Raises:
        ValueError, OSError: something is wrong that the user can correct.
    """
    config, metrics, rule = plan.config, plan.metrics, plan.rule
    state, layout = begin(plan, flat, own, profiles, ranks), flat.layout.with_own(own)
    evaluator: Evaluator | Elsewhere
    if plan.seats.evaluator >= 0:
        evaluator, remarks = evaluate_elsewhere(world, plan, flat.layout.size), tuple(plan.task.remarks())
    else:
        evaluator, remarks = make_evaluator(plan, flat)
    due: Due = profiles.due
    repeated = None
    data = digest_files(plan.task.paths()) + plan.origin
    if config.replay:
        recorded = record.read_record(Path(config.replay))
        check_data(Path(config.replay), recorded, data, profiles.clients)
        due = repeated = Replay(recorded.updates, attended(recorded.events, "refused"))
    absent = repeated.absent if repeated else range(config.present, config.clients)
    owned.check()
    made = partial(ServerParts, config, metrics, places, flat, rule, profiles.workloads, state)
    again = folder.is_unbegun(Path(config.run_dir))
    if again or not resumed:
        remarks += (f"{config.run_dir}: the run was ended before its first update; it begins again",) * again
        book = folder.open_run(config, metrics, places, profiles.clients, owned, cleanup, data)
        changed = attendance.begin(state, absent, None, 0)
        return made(due, repeated, changed, evaluator, lambda: book, "", remarks, owned, layout, ranks)
    point = resume.find(resumed, config, metrics, layout, state, ranks.mine if ranks else None)
    check_data(resumed, point.record, data, profiles.clients)
    resume.restore(state, point.snapshot)

    def reopen() -> Record:
        return resume.reopen(config, metrics, places, profiles.clients, point, owned.check, data)

    due = Resumed(resume.kept_due(point.snapshot), due)
    sentences = (*remarks, *resume.sentences(point, record.most_threads(places)))
    changed = attendance.begin(state, absent, point.record.events, point.snapshot.update_rows)
    return made(due, None, changed, evaluator, reopen, point.path.name, sentences, owned, layout, ranks)


def serve(world: World, parts: ServerParts, terms: Terms) -> tuple[int, bool]:
    """Build the server, train, and save the trained model. Rank 0.

    Args:
        world: all ranks.
        parts: what `prepare` returned.
        terms: for clients that join.

    Returns:
        The exit status, and whether ranks are lost.
    """
    trackers, after = parts.config.record.trackers, parts.state.model.version
    with (
        parts.open_record() as book,
        Progress(parts.run_dir / "log.txt", parts.owned.check) as progress,
        Trackers(trackers, parts.run_dir, after, progress.say),
    ):
        run = ServerRun(world, parts, book, progress)
        if isinstance(run.wire, OpenWire):
            run.wire.open_door(parts.run_dir / door.NAME, terms.welcome)
        outcome = run.train()
        updates, tests = book.updates.all_rows(), book.client_evaluations.all_rows()
        status, figures = run.save(outcome, updates, tests)
    parts.owned.release()
    result.show(figures, updates, parts.config.clients)
    if run.wire.assignment.silent:
        launcher.end_job(status)
    return status, run.wire.ranks_lost


class ServerRun:
    """A server with its wire and its clock. It is itself the `Observer` that shows and keeps the run. Rank 0.

    Args:
        world: all ranks; this is rank 0.
        parts: what `prepare` returned.
        book: the open record.
        progress: shows the run.

    Attributes:
        wire: the wire to the workers.
    """

    def __init__(self, world: World, parts: ServerParts, book: Record, progress: Progress) -> None:
        self._world, self._parts, self._record, self._progress = world, parts, book, progress
        self._guests = attendance.Guests()
        self._complete = True  # whether the run's folder has taken all files of the end
        self._elsewhere: list[Path] = []  # the folder that has taken the others
        config, state, repeated = parts.config, parts.state, parts.repeated
        self._wires = lead(world, config, state, parts.due, parts.ranks, repeated, parts.places)
        self.wire = self._wires.workers
        newest = Path(parts.newest) if parts.newest else None
        arguments = (parts.run_dir / FOLDER, config.checkpoint.keep, newest, book.sync)
        writer = FirstSliceWriter(parts.ranks, *arguments) if parts.ranks else Writer(*arguments)
        self._keeper = Keeper(
            config.checkpoint, writer, book, self._snapshot, progress, state.updates if parts.newest else None
        )
        of_run = (config.limits, config.faults, config.evaluation, parts.metrics)
        share = repeated.share if repeated else None
        clock = self._wires.clock
        more = (lambda: repeated.goes_on(clock.taken)) if repeated and clock else None
        settings = ServerSettings(*of_run, config.clock == "wall", parts.workloads, share, parts.layout.sent, more)
        evaluator = parts.evaluator
        if parts.ranks and config.clock != "wall":
            evaluator = cast(Evaluator, TellingEvaluator(parts.evaluator, parts.ranks))
        wire = self._wires.wire
        self._server = Server(wire, parts.rule, state, evaluator, settings, observer=self, whole=self._whole)
        mark_server(self._server, self.wire, parts.state.model, parts.evaluator, writer)

    def _whole(self, x: Tensor) -> Tensor:
        """The whole global model, given the slice of this rank: in the model that snapshots are evaluated in."""
        return self._parts.ranks.whole(x, self._parts.flat.buffer) if self._parts.ranks else x

    def train(self) -> Outcome:
        """Train, from sending the first model until the last client has stopped."""
        self._introduce()
        self._record.note(self._server.elapsed_s, "began", text=self._parts.newest)
        for client, kind in self._parts.attendance.items():
            self._record.note(self._server.elapsed_s, kind, client)
        try:
            outcome = self._server.run()
        except EvaluatorLostError as error:
            again = f"go on with: asyncfeded resume {shlex.quote(str(self._parts.run_dir))}"
            raise EvaluatorLostError(f"{error}; {again}") from None
        if isinstance(self._parts.evaluator, Elsewhere):
            self._parts.evaluator.stop(self.wire.ranks_lost)
        self._keeper.finish()
        dropped = f"unfinished rounds were dropped, and {outcome.discarded} finished ones"
        self.say(f"stopped: {outcome.reason}; {dropped}", "stopped")
        return outcome

    def save(self, outcome: Outcome, updates: np.ndarray, tests: np.ndarray) -> tuple[int, dict[str, object]]:
        """Save the record and the result; the model was saved when the training stopped.

        Args:
            outcome: how the run ended.
            updates: record.UPDATE (n,), all of the record.
            tests: (k,), the clients' own tests, all of the record.

        Returns:
            The exit status and the figures.
        """
        server, run_dir = self._server, self._parts.run_dir
        if outcome.reason == INTERRUPTED or (
            outcome.failed and not server.state.dropped.all() and not self._parts.config.replay
        ):
            with suppress(OSError):  # in a folder that is gone nothing goes on
                self._parts.owned.check()
                self.say(f"go on with: asyncfeded resume {shlex.quote(str(run_dir))}")
        try:
            self._record.close()
        except OSError as error:
            self._rescue("record.h5", error, self._record.save)
            self._record.release()
        figures = result.figures(
            server,
            outcome,
            run_dir,
            updates,
            tests,
            self._num_bytes,
            self._parts.layout.num_params,
            self.wire.receiving_s,
            self._world,
            self._workers,
        )
        self._keep("result.json", partial(result.write, figures))
        ended = 1 if outcome.failed else RESUMABLE if outcome.reason == INTERRUPTED else 0
        return ended if self._complete else 1, figures

    def on_update(self, row: UpdateRow) -> None:
        """See `Observer`."""
        self._record.updates.append(row)

    def on_evaluation(self, time_s: float, score: Score) -> None:
        """See `Observer`."""
        self._record.evaluations.append((time_s, score.version, *score.values.values()))
        seconds = self._parts.evaluator.seconds
        began_s = time_s if self._wires.clock else time_s - seconds
        self._record.note(began_s, "evaluated", seconds=seconds, text=f"version {score.version}")

    def on_client_evaluation(self, time_s: float, arrival: Arrival) -> None:
        """See `Observer`."""
        scores = arrival.scores[: len(self._parts.metrics.by_name)]
        self._record.client_evaluations.append((time_s, arrival.base_version, arrival.client, arrival.round, *scores))

    def tick(self, server: Server) -> None:
        """See `Observer`. The model is saved before anything that can fail at the end."""
        server.interrupted = asked.stop
        self._keeper.wanted, asked.checkpoint = self._keeper.wanted or asked.checkpoint, False
        if not (server.stopping or self._keeper.first):
            self._record.flush_if_due()
        self._progress.tick(server)
        if server.stopping and is_finite(server.final):
            state, version = self._parts.flat.state_dict(server.final), server.state.model.version
            self._keep("model.h5", lambda path: save_model(path, state, version))
        self._keeper.tick(server)

    def say(self, sentence: str, kind: str = "", client: int = -1) -> None:
        """See `Observer`."""
        self._progress.say(sentence)
        if kind:
            self._guests.note(kind, client, self._server.wall_s)
            self._record.note(self._server.elapsed_s, kind, client, text=sentence)

    def _keep(self, name: str, write: Callable[[Path], None]) -> None:
        """Write a file of the end into the run's folder, or else somewhere else."""
        try:
            self._parts.owned.check()
            write(self._parts.run_dir / name)
        except OSError as error:
            self._rescue(name, error, write)

    def _rescue(self, name: str, error: OSError, write: Callable[[Path], None]) -> None:
        """Write a file of the end into a new folder, since the run's folder is gone or full, and say where."""
        run_dir, self._complete = self._parts.run_dir, False
        why = f"{run_dir / name} cannot be written ({error.strerror or error})"
        prefix = f"{run_dir.name.strip('.')[:50] or 'run'}-"  # the new name is longer, and a name has an end
        for place in (*self._elsewhere, run_dir.parent, Path(), None):  # None: where the system has temporary files
            with suppress(OSError), ExitStack() as undo:  # the working folder may be gone too
                folder = place
                if folder is None or place not in self._elsewhere:
                    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
                    undo.callback(folder.rmdir)
                write(folder / name)
                undo.pop_all()
                self._elsewhere = [folder]
                self.say(f"{why}; it is saved as {folder / name}")
                return
        self.say(f"{why}, nor anywhere else: it is lost")

    @property
    def _workers(self) -> float:
        """Number of workers in this job, in the mean over its time; those who only seem to join in a replay do not count."""
        wall_s = self._server.wall_s
        joined = 0.0 if self._wires.clock else self._guests.seconds(wall_s) / (wall_s - self._parts.state.wall_before_s)
        return self._world.seats.workers + joined

    @property
    def _num_bytes(self) -> int:
        """Bytes of the models that the server holds."""
        state = self._parts.state
        most = 1e9 * self._parts.config.bases_gb if state.model.disk else math.inf
        held = int(min(state.model.num_bytes, most)) + self._parts.evaluator.num_bytes + self.wire.buffer_bytes
        held += self._wires.staging.num_bytes if self._wires.staging else 0
        return held + sum(int(array.nbytes) for array in resume.kept(state).values())

    def _introduce(self) -> None:
        """Report what will be trained, and where."""
        config, layout, world = self._parts.config, self._parts.layout, self._world
        self.say(
            f"{config.task['name']}, {config.rule['name']}: {describe_server(config)}, {config.clients} clients on "
            f"{sum(map(len, world.seats.groups))} ranks of {len(set(world.hosts))} host(s), {launcher.vendor()}; "
            f"results in {self._parts.run_dir}"
        )
        self.say("\n".join(placement.table(self._parts.places)))
        if isinstance(self.wire, OpenWire):
            self.say(f"{config.late} clients are absent until somebody joins: asyncfeded join {self._parts.run_dir}")
        self.say(
            f"server holds {self._num_bytes // (4 * layout.size)} models of {layout.num_params} parameters: "
            f"{self._num_bytes / 1e6:.1f} MB, {most_held(config, layout, self._num_bytes)}; "
            f"kernel: {kernel.describe_kernel(str(self._parts.state.model.x.device))}"
        )
        for sentence in describe(self._parts.ranks):
            self.say(sentence)
        for sentence in self._parts.sentences:
            self.say(sentence)

    def _snapshot(self, server: Server) -> Snapshot:
        server.evaluations.settle()
        due_s = self._wires.clock.due_s if self._wires.clock else {}
        toml = self._parts.config.to_toml()
        at = resume.snapshot(server, self._record, toml, due_s, self._workers, self._parts.layout)
        return replace(at, busy_s=at.busy_s + self.wire.receiving_s)
