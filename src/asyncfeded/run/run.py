"""One run: who is server, who is client, what is checked before the first message, and an orderly end.

The phases, on every rank: join the job; read the config, and agree; take a place (who is the server, which GPU, which
cores); load the data and build the model, and agree; train; leave. What a user did wrong is found before training and told
once, by rank 0. After that no rank leaves alone: an uncaught error ends the whole job (launcher.guard).
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from asyncfeded import rules
from asyncfeded.config import Config
from asyncfeded.model import kernel
from asyncfeded.model.flat import FlatModel
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.mpi import launcher, placement, shield
from asyncfeded.mpi.world import RefusedError, World, broadcast_text, join_job, leave_job, make_statement, seat_server
from asyncfeded.rules.decision import State
from asyncfeded.run import result, resume
from asyncfeded.run.plan import Plan, agree_on, read_plan, take_place
from asyncfeded.run.progress import Progress
from asyncfeded.seeds import Stream, seed_torch
from asyncfeded.store import record
from asyncfeded.store.checkpoint import FOLDER, Snapshot, Writer, save_model
from asyncfeded.tasks.classification import Data
from asyncfeded.training.client import ClientData, Trainer, work
from asyncfeded.training.clock import Due, OrderedClock, Replay, Resumed
from asyncfeded.training.evaluation import Evaluator
from asyncfeded.training.heterogeneity import ClientProfiles, draw
from asyncfeded.training.server import INTERRUPTED, Server
from asyncfeded.wire.client_wire import ClientWire, ServerLostError
from asyncfeded.wire.deadlines import Deadlines
from asyncfeded.wire.messages import Order
from asyncfeded.wire.server_wire import ServerWire
from asyncfeded.wire.staging import Staging

REFUSED = 2
"""Exit status when a run cannot start for a reason that a user can mend."""
RESUMABLE = os.EX_TEMPFAIL
"""Exit status, 75, of a run that SIGINT or SIGTERM has ended: `asyncfeded resume` goes on with it."""


def train(path: Path, overrides: list[str], resumed: Path | None = None) -> int:
    """Run a training. Collective: one rank is the server, rank 0 unless the config says another, the others are workers.

    Args:
        path: the run's TOML file.
        overrides: `key=value` for it.
        resumed: folder of the run to go on with; None: it is a new one.

    Returns:
        The exit status: 0; RESUMABLE; REFUSED after telling why on standard error; 1 if the model could not be saved, or
        no client was left before a limit was reached.
    """
    world: World | None = None
    ranks_lost = False
    # The wish for a checkpoint, which launchers pass on to all ranks: the server's alone, once it trains.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with launcher.guard():
        try:
            world = join_job()
            status, ranks_lost = _train(world, path, overrides, resumed)
        except RefusedError as error:
            launched = launcher.launched_by()
            rank = world.rank if world else launched[2] if launched else 0
            if rank == 0:
                print(f"asyncfeded: {error}", file=sys.stderr, flush=True)  # noqa: T201
            # Where there is no barrier to leave by, a status of another rank could end rank 0 before it has told.
            status = REFUSED if world or rank == 0 else 0
        leave_job(status, ranks_lost)
    return status


@dataclass(frozen=True)
class Job:
    """What a rank has prepared: a model, and the data for its role."""

    config: Config
    places: np.ndarray
    """placement.PLACE (ranks,), by rank in MPI_COMM_WORLD."""
    flat: FlatModel
    heterogeneity: ClientProfiles
    trainer: Trainer | None
    """On the workers, as `client_data`, that of a client."""
    client_data: Callable[[int], ClientData] | None
    model: GlobalModel | None
    """On the server, as `rule`, `state`, `due`, `evaluator` and `run_dir`."""
    rule: rules.Rule
    state: State
    due: Due
    """When an update is due, unless on the wall clock."""
    evaluator: Evaluator | None
    run_dir: Path
    record: record.Record | None
    """Of a new run."""
    point: resume.Point | None
    """Where a run goes on; on the server."""


def _train(world: World, path: Path, overrides: list[str], resumed: Path | None) -> tuple[int, bool]:
    """Prepare, agree and play this rank's part. Returns the exit status, and whether ranks are lost."""
    plan = agree_on(
        world, lambda: read_plan(world, path, overrides), lambda plan: make_statement(config=plan.config.digest())
    )
    world, places = take_place(world, plan)
    seated = seat_server(world, plan.config.server)  # its rank 0 is the server
    cleanup = ExitStack()  # what takes back the run's folder

    def statement_of(job: Job) -> np.ndarray:
        layout = job.flat.layout
        return make_statement(layout=layout.digest(), num_params=layout.num_params, size=layout.size)

    try:
        job = agree_on(world, lambda: _prepare(seated, plan, places, resumed, cleanup), statement_of)
    except RefusedError:
        with suppress(OSError):
            cleanup.close()
        raise
    resumable = f"the server is dead; go on with: asyncfeded resume {broadcast_text(seated, str(job.run_dir))}"
    with launcher.guard("worker" if seated.rank else "server"):
        if seated.rank == 0:
            shield.note(resumable)
            return _serve(seated, job)
        shield.note("")
        # A launcher passes signals on to all ranks: the server's answer to them is to stop the workers.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        try:
            return 0, _work(seated, job)
        except ServerLostError as error:
            if seated.rank == 1:
                print(f"asyncfeded: {error}: {resumable}", file=sys.stderr, flush=True)  # noqa: T201
            return 1, True


def _prepare(world: World, plan: Plan, places: np.ndarray, resumed: Path | None, cleanup: ExitStack) -> Job:
    """All else that can be checked without a message.

    Raises:
        ValueError, OSError: something is wrong that a user can mend.
    """
    config, task, rule, device = plan
    num_clients, workers = config.clients, world.size - 1
    heterogeneity = draw(config, task.sizes(num_clients, config.seed))
    seed_torch(config.seed, Stream.MODEL)
    flat = FlatModel(task.model(), device)
    if world.rank == 0:
        model = GlobalModel(flat.buffer, flat.layout, num_clients)
        state = rule.init(model, heterogeneity.clients["epochs"].astype(np.int64))
        evaluator = Evaluator(task, flat, config.evaluation.batch_size)
        due = (
            Replay(record.read_record(Path(config.replay)).updates["client"].tolist())
            if config.replay
            else heterogeneity.due
        )
        book, point = None, None
        if resumed:
            point = resume.find(resumed, config, flat.layout, state)
            due = Resumed(resume.kept_due(point.snapshot), due)
        else:
            book = _open_run(config, places, heterogeneity.clients, cleanup)
        run_dir = Path(config.run_dir)
        return Job(config, places, flat, heterogeneity, None, None, model, rule, state, due, evaluator, run_dir, book, point)
    trainer = Trainer(task, flat, config.training, config.training.proximal or rule.proximal, config.seed)

    @cache
    def client_data(client: int) -> ClientData:
        inputs, targets = task.client_data(client, num_clients, config.seed)
        slowdown = float(heterogeneity.clients["slowdown"][client]) if config.clock == "wall" else 1.0
        batch_size = int(heterogeneity.clients["batch_size"][client])
        return ClientData(Data(inputs.to(device), targets.to(device)), batch_size, slowdown)

    for client in range(world.rank - 1, num_clients, workers):
        client_data(client)  # now, so that faults of the data are told; of other clients when they move here
    due, run_dir = heterogeneity.due, Path()
    return Job(config, places, flat, heterogeneity, trainer, client_data, None, rule, {}, due, None, run_dir, None, None)


def _open_run(config: Config, places: np.ndarray, clients: np.ndarray, cleanup: ExitStack) -> record.Record:
    """The run's folder with its config and an empty record. Rank 0.

    Args:
        config: resolved.
        places: placement.PLACE (ranks,).
        clients: their lots.
        cleanup: gets what removes all that was made here, should the run not start.

    Raises:
        ValueError: the folder holds a run, or cannot be made or written.
    """
    run_dir = Path(config.run_dir)
    if (run_dir / "record.h5").exists():
        raise ValueError(
            f"run_dir = {config.run_dir!r} holds a run already; choose another folder, or move that one away; to go on with "
            f"it type asyncfeded resume {config.run_dir}"
        )
    try:
        for folder in (*reversed(run_dir.parents), run_dir):
            if not folder.is_dir():
                folder.mkdir()
                cleanup.callback(folder.rmdir)
        for name in ("config.toml", "record.h5", "record.h5.updates", "record.h5.evaluations"):
            cleanup.callback((run_dir / name).unlink, missing_ok=True)
        (run_dir / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        book = record.Record(run_dir / "record.h5", config.to_toml(), places, clients)
        cleanup.callback(book.close)
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"run_dir = {config.run_dir!r} cannot be written: {why}; choose another folder") from None
    return book


def _work(world: World, job: Job) -> bool:
    """A worker, to its end. Client ranks. Returns whether ranks are lost."""
    assert job.trainer is not None
    assert job.client_data is not None
    config, buffer = job.config, job.flat.buffer
    host = torch.empty(buffer.shape, pin_memory=True) if buffer.is_cuda else buffer
    paced = config.clock == "wall"

    def lost_s(order: Order, round_s: float) -> float:
        return job.heterogeneity.pause_s(order, round_s) if paced else 0.0

    wire = ClientWire(world.comm, host, world.backoff(config.wait))
    work(wire, job.trainer, job.client_data, lost_s, job.flat, host)
    return wire.ranks_lost


def _serve(world: World, job: Job) -> tuple[int, bool]:
    """The server, from the first model sent to the result printed. Rank 0. Returns as `_train`."""
    assert job.evaluator is not None
    assert job.model is not None
    config, layout, run_dir, model = job.config, job.flat.layout, job.run_dir, job.model
    ordered, point = config.clock != "wall", job.point
    start_s = point.snapshot.time_s if point else 0.0
    if point:
        book = resume.reopen(config, job.places, job.heterogeneity.clients, point)
    else:
        assert job.record is not None
        book = job.record
    with book, Progress(run_dir / "log.txt") as progress:
        # On an ordered clock updates wait for their turn, and the model moves before they are measured.
        staging = Staging(model) if model.x.is_cuda else None
        measure = None if ordered else (staging or model).measure
        wire = ServerWire(
            world.comm,
            world.size - 1,
            layout.size,
            world.backoff(config.wait),
            config.clients,
            measure,
            start_s,
            Deadlines(config.faults.patience, config.faults.patience_s),
            ordered or config.faults.on_death == "reassign",  # an ordered clock's result must not depend on who lives
            model.x.is_cuda,
        )
        beside_bytes = model.num_bytes + job.evaluator.num_bytes + sum(array.nbytes for array in job.state.values())
        beside_bytes += staging.num_bytes if staging else 0
        server_bytes = beside_bytes + wire.buffer_bytes
        progress.say(
            f"{config.task['name']}, {config.rule['name']}: 1 server, {config.clients} clients on {world.size - 1} ranks of "
            f"{len(set(world.hosts))} host(s), {launcher.vendor()}; results in {run_dir}"
        )
        progress.say("\n".join(placement.table(job.places)))
        progress.say(
            f"server holds {server_bytes // (4 * layout.size)} models of {layout.num_params} parameters: "
            f"{server_bytes / 1e6:.1f} MB; kernel: {kernel.describe_kernel(str(model.x.device))}"
        )
        for text in resume.sentences(point, book.threads) if point else ():
            progress.say(text)
        clock = OrderedClock(wire, job.due, start_s) if ordered else None
        if staging:
            staging.below = clock or wire
        toml = config.to_toml()

        def take(server: Server) -> Snapshot:
            at = resume.snapshot(server, toml, clock.due_s if clock else {})
            return replace(at, busy_s=at.busy_s + wire.receiving_s)

        writer = Writer(run_dir / FOLDER, config.checkpoint.keep, point.path if point else None, book.sync)
        keeper = resume.Keeper(config.checkpoint, writer, take, progress, point.snapshot.updates if point else None)

        def tick(server: Server) -> None:
            progress.tick(server)
            keeper.tick(server)

        server = Server(
            wire=staging or clock or wire,
            rule=job.rule,
            state=job.state,
            model=model,
            evaluator=job.evaluator,
            record=book,
            limits=config.limits,
            faults=config.faults,
            epochs=job.heterogeneity.clients["epochs"],
            evaluation=config.evaluation,
            in_idle_moments=not ordered,
            tick=tick,
            say=progress.say,
        )
        if point:
            resume.restore(server, point.snapshot)
        _heed_signals(server, keeper)
        outcome = server.run()
        keeper.finish()
        # hydra sends it when a rank has died, and Python gives its own handlers up before the process ends.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        progress.say(f"stopped: {outcome.reason}; unfinished rounds were dropped, and {outcome.discarded} finished ones")
        status = 1 if outcome.failed else RESUMABLE if outcome.reason == INTERRUPTED else 0
        if outcome.failed and not server.dropped.all():
            progress.say(f"go on with: asyncfeded resume {run_dir}")
        try:
            book.close()
        except OSError as error:
            progress.say(f"the record could not be saved whole in {run_dir}: {error}")
            status = 1
        figures = result.figures(server, outcome, run_dir, beside_bytes + wire.buffer_bytes, wire.receiving_s, world)
        try:
            save_model(run_dir / "model.h5", model.x.cpu(), layout, model.version)
            part = run_dir / "result.json.part"
            part.write_text(json.dumps(figures, allow_nan=False) + "\n", encoding="utf-8")
            part.replace(run_dir / "result.json")
        except OSError as error:
            progress.say(f"the trained model could not be saved in {run_dir}: {error}")
            status = 1
    result.show(figures, run_dir)
    if wire.assignment.silent:
        launcher.end_job(status)
    return status, bool(wire.assignment.lost)


def _heed_signals(server: Server, keeper: resume.Keeper) -> None:
    """SIGINT and SIGTERM end the training as a limit does, a second one the job at once; SIGUSR1 keeps its state. Rank 0."""

    def stop(number: int, frame: object) -> None:
        server.interrupted = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def keep(number: int, frame: object) -> None:
        keeper.wanted = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    signal.signal(signal.SIGUSR1, keep)
