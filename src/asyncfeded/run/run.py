"""One run: join the job, agree on the plan, take a place, prepare, train, leave.

The phases, on every rank: join the job; read the config, and agree; own the run's folder; take a place (who is the server,
which GPU, which cores); load the data and build the model, and agree; train (serve.py or work.py); leave. Mistakes of the
user are found before training, and rank 0 alone reports them. After that no rank leaves alone: an uncaught error ends the
whole job (launcher.guard).
"""

import json
import math
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from asyncfeded.model.flat import FlatModel, Layout, ModuleState, Shape, digest_frozen
from asyncfeded.model.slices import Slice, cut
from asyncfeded.mpi import launcher, shield
from asyncfeded.mpi.world import (
    RefusedError,
    World,
    broadcast_text,
    join_job,
    leave_job,
    make_statement,
    refuse,
    share,
    take_seats,
)
from asyncfeded.own import CodeError
from asyncfeded.rules import Rule, measured_for
from asyncfeded.run import evaluate, folder, serve, stopping, terms, work
from asyncfeded.run.evaluate import TesterParts
from asyncfeded.run.memory import Need, agree_on_memory, server_need, worker_need
from asyncfeded.run.plan import Plan, agree_on, agree_on_digests, read_plan, take_place
from asyncfeded.run.serve import ServerParts
from asyncfeded.run.slices import SliceParts, begin, cut_model, follow, go_on_from
from asyncfeded.run.work import ClientParts
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.store.ownership import Ownership
from asyncfeded.store.record import most_threads
from asyncfeded.tasks import Task
from asyncfeded.tasks.contract import TaskError
from asyncfeded.tasks.kept import Kept
from asyncfeded.training.batch_norm import synchronize
from asyncfeded.training.batches import ClientData
from asyncfeded.training.heterogeneity import ClientProfiles, draw
from asyncfeded.training.server import DivergedError
from asyncfeded.training.trial import find_own, find_statistics, new_module
from asyncfeded.wire.client_wire import ServerLostError
from asyncfeded.wire.group import Group, GroupLostError, gather_group
from asyncfeded.wire.server_ranks import ServerRankLostError, ServerRanks
from asyncfeded.wire.snapshots import EvaluatorLostError


class Ended(NamedTuple):
    """How a run has ended."""

    status: int
    """Exit status of this rank: 0; RESUMABLE; REFUSED (mpi/world.py), after printing why on standard error; 1 if the model
    could not be saved, or if no client was left before a limit was reached. A worker of a run that began has 0."""
    of_job: int
    """The same for the whole job, equal on all ranks."""
    why: str
    """Why the run was refused."""
    run_dir: str
    """Folder of the run; empty if it was refused."""


def train(
    path: Path,
    overrides: list[str],
    resumed: Path | None = None,
    task: Task | None = None,
    rule: Rule | None = None,
    kept: Kept | None = None,
) -> Ended:
    """Run a training. Collective: one rank is the server (rank 0, unless the config names another); the others are workers.

    Args:
        path: the run's TOML file.
        overrides: `key=value`, applied to the file.
        resumed: folder of the run to continue; None: a new run.
        task: the task, equal on all ranks; None: the one that the config names.
        rule: the rule, likewise.
        kept: the task of earlier runs of this process; None: there are none.
    """
    world: World | None = None
    ranks_lost, why, run_dir = False, "", ""
    with launcher.guard():
        try:
            world = join_job()
            stopping.listen()
            read = partial(read_plan, world, path, overrides, resumed, task, rule, kept)
            status, ranks_lost, run_dir = train_on(world, read, resumed)
            failed = status
        except RefusedError as error:
            status, failed, why = refuse(error, world), error.status, str(error)
        stopping.asked.listens = False
        of_job = leave_job(status, ranks_lost)
    return Ended(status, max(of_job, failed), why, run_dir)


def train_on(world: World, read: Callable[[], Plan], resumed: Path | None) -> tuple[int, bool, str]:
    """Prepare, agree, and act as server or worker. Returns the exit status, whether ranks are lost, and the run's folder.

    Args:
        world: all ranks.
        read: reads the plan.
        resumed: folder of the run to continue; None: a new run.
    """
    plan = agree_on(world, read, lambda plan: make_statement(config=plan.config.digest()))
    agree_on_digests(world, plan.origin)
    cleanup = ExitStack()  # gives up the run's folder
    try:
        plan, owned = agree_on(world, lambda: _own_folder(world, plan, read, resumed, cleanup), _nothing_to_tell)
        world, places = take_place(world, plan)
        seated = take_seats(world, plan.seats)  # rank 0 of `seated` is the server
        profiles, module, state = agree_on(world, lambda: make_module(plan), lambda made: _statement(made[2]))
        agree_on_memory(world, *needed_memory(seated, plan, state))
        if group := gather_group(seated, plan.config.wait):
            cleanup.callback(group.undo.close)
        if seated.seats.grouped:
            agree_on(world, lambda: group.connect(plan.config.faults.patience_s) if group else None, _nothing_to_tell)
        loaded = agree_on(world, lambda: load(seated, plan, profiles), _nothing_to_tell)
        statistics, frozen = _share_module(seated, state, loaded.changed)
        offered = terms.offer(plan, state, profiles, plan.origin)
        plan = plan._replace(origin=plan.origin + frozen)
        shapes = json.loads(broadcast_text(seated, json.dumps(loaded.own), root=seated.seats.leaders[0]))
        if own := [(name, tuple(shape)) for name, shape in shapes]:
            agree_on_memory(world, *needed_memory(seated, plan, state, own))
        sent = state.num_params + sum(state.candidates[name].numel() for name in statistics)
        sent += sum(math.prod(shape) for _, shape in own)
        slices, ranks = cut_model(seated, sent, plan.config.wait)
        parts = agree_on(
            world,
            lambda: _prepare(
                seated,
                plan,
                flatten(plan, module, statistics, own if seated.seats.worker(seated.rank) >= 0 else [], group),
                own,
                profiles,
                places,
                owned,
                loaded,
                group,
                resumed,
                cleanup,
                slices,
                ranks,
            ),
            _nothing_to_tell,
        )
        run_dir = broadcast_text(seated, plan.config.run_dir)  # without a name in the config, the server has named it
        if plan.config.servers > 1:
            newest = broadcast_text(seated, parts.newest if isinstance(parts, ServerParts) else "")
            whole = partial(go_on_from, Path(run_dir), newest, parts)
            parts = agree_on(world, whole, lambda _: make_statement())
    except RefusedError:
        with suppress(OSError):
            cleanup.close()
        raise
    resumable = f"the server is dead; go on with: asyncfeded resume {shlex.quote(str(run_dir))}"
    role = "server" if seated.rank < plan.config.servers else "worker"
    with launcher.guard(role, told=(CodeError, DivergedError, EvaluatorLostError)):
        shield.note(resumable if role == "server" else "")
        if not isinstance(parts, ServerParts):
            # A launcher forwards signals to all ranks. Rank 0 does what they ask, and stops the others.
            stopping.ignore(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        try:
            if isinstance(parts, ServerParts):
                tables, threads = terms.kept(state, statistics), most_threads(places)
                of_run = terms.Terms(offered, statistics, own, frozen, tables, threads)
                return *serve.serve(seated, parts, of_run), run_dir
            if isinstance(parts, SliceParts):
                return 0, follow(seated, parts), run_dir
            if isinstance(parts, TesterParts):
                return 0, evaluate.serve_snapshots(seated, parts), run_dir
            return 0, work.train_for_server(seated, parts), run_dir
        except GroupLostError as error:
            print(f"asyncfeded: rank {world.rank} leaves: {error}", file=sys.stderr, flush=True)  # noqa: T201
            return 0, True, run_dir
        except (ServerLostError, ServerRankLostError) as error:
            launcher.tell_and_end(seated.rank, f"asyncfeded: {error}: {resumable}")
            return 1, True, run_dir


def _own_folder(
    world: World, plan: Plan, read: Callable[[], Plan], resumed: Path | None, cleanup: ExitStack
) -> tuple[Plan, Ownership | None]:
    """Make the rank of the server the owner of the run's folder. Returns the plan with its name; other ranks own nothing.

    Raises:
        ValueError, OSError: another job owns the folder, or it cannot be written.
    """
    if world.rank != plan.seats.order[0]:
        return plan, None
    config, owned = folder.take(plan.config, resumed, cleanup)
    if resumed and read().config != config:
        raise ValueError(f"{resumed}: another job has just gone on with this run; type the same again")
    return plan._replace(config=config), owned


def make_module(plan: Plan) -> tuple[ClientProfiles, nn.Module, ModuleState]:
    """Draw the profiles of the clients, and make the module as it is at the start.

    Raises:
        ValueError, OSError: something is wrong that the user can correct.
    """
    config = plan.config
    seed_globals(config.seed, Stream.DATA)
    profiles = draw(config, plan.task.sizes(config.clients, config.seed))
    return profiles, *new_module(plan.task, config.seed)


def needed_memory(world: World, plan: Plan, state: ModuleState, own: Iterable[Shape] = ()) -> tuple[Need, str]:
    """The memory that this rank has yet to take for the parameters and what is a client's own, and for what, in words."""
    config, num_params = plan.config, state.num_params
    layout = Layout((), num_params, num_params).with_own(own)
    servers = world.seats.servers
    if world.rank < servers:
        layout = cut(layout.sent, servers)[world.rank].of(layout) if servers > 1 else layout
        need = server_need(config, plan.rule, layout, plan.device.type != "cpu")
    elif world.rank == world.seats.evaluator:
        need = Need(4 * num_params, 4 * num_params)
    else:
        ranks = max((len(group) for group in world.seats.groups), default=1)  # a client that joins is in no group
        measures = bool(measured_for(plan.rule))
        need = worker_need(config, plan.rule.proximal, layout, plan.device.type != "cpu", ranks, measures)
    kept = f" and {layout.sent - num_params} numbers of the optimizer's state" if layout.own else ""
    return need, f"the server holds a model of {num_params} parameters{kept} for each of {config.clients} clients"


class Loaded(NamedTuple):
    """What a worker has loaded before it knows what a message holds."""

    client_data: Callable[[int], ClientData]
    """Returns the data of a client."""
    changed: list[str]
    """On the first worker: what training changes besides the parameters; empty elsewhere."""
    own: list[Shape]
    """On the first worker: what of the optimizer's state is each client's own; empty elsewhere."""


def load(world: World, plan: Plan, profiles: ClientProfiles) -> Loaded:
    """Load the data of this worker's clients. The first worker finds what training changes, by training client 0.

    Raises:
        ValueError, OSError: something is wrong that the user can correct.
    """
    client_data = work.load(world, plan, profiles)
    if world.rank != world.seats.leaders[0]:
        return Loaded(client_data, [], [])
    changed = find_statistics(plan.task, plan.config.seed, plan.device, client_data(0))
    return Loaded(client_data, changed, find_own(plan.task, plan.config))


def _share_module(world: World, state: ModuleState, changed: list[str]) -> tuple[list[str], str]:
    """Agree on what travels, which the first worker has found. Collective.

    Frozen parameters must be the same everywhere, since they may be large; buffers that do not travel become those of the
    server, since hosts of different processors may compute a table in them differently.

    Returns:
        The names of the tensors that travel besides the parameters, and the digests of the frozen parameters.

    Raises:
        RefusedError: a frozen parameter differs between the ranks.
    """
    travels = np.array([name in changed for name in state.candidates], np.bool_)
    share(world, world.seats.leaders[0], travels)
    statistics = [name for name, one in zip(state.candidates, travels.tolist(), strict=True) if one]
    digests = digest_frozen(state.frozen(statistics))
    agree_on_digests(world, digests)
    for tensor in terms.kept(state, statistics):
        host = terms.raw(tensor)
        share(world, 0, host.numpy())
        terms.put(tensor, host)
    return statistics, digests


def flatten(plan: Plan, module: nn.Module, statistics: list[str], own: list[Shape], group: Group | None = None) -> FlatModel:
    """The model at its start; `group`: the ranks that train it with this one.

    Raises:
        TaskError: it cannot be sent or merged.
    """
    if group and plan.config.training.sync_batch_norm:
        synchronize(module, group, plan.device)
    try:
        flat = FlatModel(module, plan.device, statistics, own)
        flat.check_finite()
    except ValueError as error:
        raise TaskError(f"task {plan.task.name}, model: {error}") from None
    return flat


def _prepare(
    world: World,
    plan: Plan,
    flat: FlatModel,
    own: list[Shape],
    profiles: ClientProfiles,
    places: np.ndarray,
    owned: Ownership | None,
    loaded: Loaded,
    group: Group | None,
    resumed: Path | None,
    cleanup: ExitStack,
    slices: list[Slice],
    ranks: ServerRanks | None,
) -> ServerParts | SliceParts | TesterParts | ClientParts:
    """Make and check everything else that needs no message.

    Raises:
        ValueError, OSError: something is wrong that the user can correct.
    """
    if ranks:
        ranks.connect(plan.config.faults.patience_s)
    if owned:
        return serve.prepare(world, plan, flat, own, profiles, places, owned, resumed, cleanup, ranks)
    if ranks:
        state = begin(plan, flat, own, profiles, ranks)
        return SliceParts(plan.config, plan.metrics, plan.rule, profiles.workloads, state, ranks)
    if world.rank == world.seats.evaluator:
        return evaluate.prepare(plan, flat)
    return work.prepare(world, plan, flat, profiles, loaded.client_data, group, slices)


def _nothing_to_tell(_: object) -> np.ndarray:
    return make_statement()


def _statement(state: ModuleState) -> np.ndarray:
    """The statement about a module that must be equal on all ranks."""
    size = sum(tensor.numel() for tensor in state.all.values())
    return make_statement(layout=state.digest(), num_params=state.num_params, size=size)
