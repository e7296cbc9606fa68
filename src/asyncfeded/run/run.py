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
from asyncfeded.mpi import launcher, placement, shield, world
from asyncfeded.mpi.world import World
from asyncfeded.rules.decision import State
from asyncfeded.run import result, resume
from asyncfeded.run.plan import Plan, agree, read, settle
from asyncfeded.run.progress import Progress
from asyncfeded.seeds import Stream, seed_torch
from asyncfeded.store import record
from asyncfeded.store.checkpoint import FOLDER, Snapshot, Writer, save_model
from asyncfeded.tasks.classification import Data
from asyncfeded.training.client import Lot, Trainer, work
from asyncfeded.training.clock import Due, OrderedClock, Replay, Resumed
from asyncfeded.training.evaluation import Evaluator
from asyncfeded.training.heterogeneity import Heterogeneity, draw
from asyncfeded.training.server import INTERRUPTED, Server
from asyncfeded.wire.client_wire import ClientWire, ServerLostError
from asyncfeded.wire.deadlines import Patience
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
    here: World | None = None
    apart = False
    # The wish for a checkpoint, which launchers pass on to all ranks: the server's alone, once it trains.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with launcher.guard():
        try:
            here = world.join()
            status, apart = _train(here, path, overrides, resumed)
        except world.RefusedError as error:
            launched = launcher.launched_by()
            rank = here.rank if here else launched[2] if launched else 0
            if rank == 0:
                print(f"asyncfeded: {error}", file=sys.stderr, flush=True)  # noqa: T201
            # Where there is no barrier to leave by, a status of another rank could end rank 0 before it has told.
            status = REFUSED if here or rank == 0 else 0
        world.leave(status, apart)
    return status


@dataclass(frozen=True)
class Job:
    """What a rank has prepared: a model, and the data for its role."""

    config: Config
    places: np.ndarray
    """placement.PLACE (ranks,), by rank in MPI_COMM_WORLD."""
    flat: FlatModel
    heterogeneity: Heterogeneity
    trainer: Trainer | None
    """On the workers, as `lot`, that of a client."""
    lot: Callable[[int], Lot] | None
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


def _train(here: World, path: Path, overrides: list[str], resumed: Path | None) -> tuple[int, bool]:
    """Prepare, agree and play this rank's part. Returns the exit status, and whether ranks are lost."""
    plan = agree(here, lambda: read(here, path, overrides), lambda plan: world.statement(config=plan.config.digest()))
    here, places = settle(here, plan)
    seated = world.seat(here, plan.config.server)  # its rank 0 is the server
    undo = ExitStack()  # what takes back the run's folder

    def told(job: Job) -> np.ndarray:
        layout = job.flat.layout
        return world.statement(layout=layout.digest(), num_params=layout.num_params, size=layout.size)

    try:
        job = agree(here, lambda: _prepare(seated, plan, places, resumed, undo), told)
    except world.RefusedError:
        with suppress(OSError):
            undo.close()
        raise
    resumable = f"the server is dead; go on with: asyncfeded resume {world.hear(seated, str(job.run_dir))}"
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


def _prepare(here: World, plan: Plan, places: np.ndarray, resumed: Path | None, undo: ExitStack) -> Job:
    """All else that can be checked without a message.

    Raises:
        ValueError, OSError: something is wrong that a user can mend.
    """
    config, task, rule, device = plan
    num_clients, workers = config.clients, here.size - 1
    heterogeneity = draw(config, task.sizes(num_clients, config.seed))
    seed_torch(config.seed, Stream.MODEL)
    flat = FlatModel(task.model(), device)
    if here.rank == 0:
        model = GlobalModel(flat.buffer, flat.layout, num_clients)
        state = rule.init(model, heterogeneity.clients["epochs"].astype(np.int64))
        evaluator = Evaluator(task, flat, config.evaluation.batch_size)
        due = Replay(record.read(Path(config.replay)).updates["client"].tolist()) if config.replay else heterogeneity.due
        book, point = None, None
        if resumed:
            point = resume.find(resumed, config, flat.layout, state)
            due = Resumed(resume.kept_due(point.snapshot), due)
        else:
            book = _open_run(config, places, heterogeneity.clients, undo)
        run_dir = Path(config.run_dir)
        return Job(config, places, flat, heterogeneity, None, None, model, rule, state, due, evaluator, run_dir, book, point)
    trainer = Trainer(task, flat, config.training, config.training.proximal or rule.proximal, config.seed)

    @cache
    def lot(client: int) -> Lot:
        inputs, targets = task.client_data(client, num_clients, config.seed)
        slowdown = float(heterogeneity.clients["slowdown"][client]) if config.clock == "wall" else 1.0
        batch_size = int(heterogeneity.clients["batch_size"][client])
        return Lot(Data(inputs.to(device), targets.to(device)), batch_size, slowdown)

    for client in range(here.rank - 1, num_clients, workers):
        lot(client)  # now, so that faults of the data are told; of other clients when they move here
    due, run_dir = heterogeneity.due, Path()
    return Job(config, places, flat, heterogeneity, trainer, lot, None, rule, {}, due, None, run_dir, None, None)


def _open_run(config: Config, places: np.ndarray, clients: np.ndarray, undo: ExitStack) -> record.Record:
    """The run's folder with its config and an empty record. Rank 0.

    Args:
        config: resolved.
        places: placement.PLACE (ranks,).
        clients: their lots.
        undo: gets what takes back all that was made here.

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
                undo.callback(folder.rmdir)
        for name in ("config.toml", "record.h5", "record.h5.updates", "record.h5.evaluations"):
            undo.callback((run_dir / name).unlink, missing_ok=True)
        (run_dir / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        book = record.Record(run_dir / "record.h5", config.to_toml(), places, clients)
        undo.callback(book.close)
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"run_dir = {config.run_dir!r} cannot be written: {why}; choose another folder") from None
    return book


def _work(here: World, job: Job) -> bool:
    """A worker, to its end. Client ranks. Returns whether ranks are lost."""
    assert job.trainer is not None
    assert job.lot is not None
    config, buffer = job.config, job.flat.buffer
    host = torch.empty(buffer.shape, pin_memory=True) if buffer.is_cuda else buffer
    paced = config.clock == "wall"

    def lost_s(order: Order, round_s: float) -> float:
        return job.heterogeneity.pause_s(order, round_s) if paced else 0.0

    wire = ClientWire(here.comm, host, here.backoff(config.wait))
    work(wire, job.trainer, job.lot, lost_s, job.flat, host)
    return wire.apart


def _serve(here: World, job: Job) -> tuple[int, bool]:
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
        pipe = ServerWire(
            here.comm,
            here.size - 1,
            layout.size,
            here.backoff(config.wait),
            config.clients,
            measure,
            start_s,
            Patience(config.faults.patience, config.faults.patience_s),
            ordered or config.faults.on_death == "reassign",  # an ordered clock's result must not depend on who lives
            model.x.is_cuda,
        )
        beside_bytes = model.num_bytes + job.evaluator.num_bytes + sum(array.nbytes for array in job.state.values())
        beside_bytes += staging.num_bytes if staging else 0
        server_bytes = beside_bytes + pipe.buffer_bytes
        progress.say(
            f"{config.task['name']}, {config.rule['name']}: 1 server, {config.clients} clients on {here.size - 1} ranks of "
            f"{len(set(here.hosts))} host(s), {launcher.vendor()}; results in {run_dir}"
        )
        progress.say("\n".join(placement.table(job.places)))
        progress.say(
            f"server holds {server_bytes // (4 * layout.size)} models of {layout.num_params} parameters: "
            f"{server_bytes / 1e6:.1f} MB; kernel: {kernel.describe(str(model.x.device))}"
        )
        for text in resume.sentences(point, book.threads) if point else ():
            progress.say(text)
        clock = OrderedClock(pipe, job.due, start_s) if ordered else None
        if staging:
            staging.below = clock or pipe
        toml = config.to_toml()

        def take(server: Server) -> Snapshot:
            at = resume.snapshot(server, toml, clock.due_s if clock else {})
            return replace(at, busy_s=at.busy_s + pipe.receiving_s)

        writer = Writer(run_dir / FOLDER, config.checkpoint.keep, point.path if point else None, book.sync)
        keeper = resume.Keeper(config.checkpoint, writer, take, progress, point.snapshot.updates if point else None)

        def tick(server: Server) -> None:
            progress.tick(server)
            keeper.tick(server)

        server = Server(
            wire=staging or clock or pipe,
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
        figures = result.figures(server, outcome, run_dir, beside_bytes + pipe.buffer_bytes, pipe.receiving_s, here)
        try:
            save_model(run_dir / "model.h5", model.x.cpu(), layout, model.version)
            part = run_dir / "result.json.part"
            part.write_text(json.dumps(figures, allow_nan=False) + "\n", encoding="utf-8")
            part.replace(run_dir / "result.json")
        except OSError as error:
            progress.say(f"the trained model could not be saved in {run_dir}: {error}")
            status = 1
    result.show(figures, run_dir)
    if pipe.homes.silent:
        launcher.end_job(status)
    return status, bool(pipe.homes.lost)


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
