"""A worker of one run. It makes and checks what it needs before the first message; then it trains. Client ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from asyncfeded.config import Config
from asyncfeded.model.flat import FlatModel
from asyncfeded.model.slices import Slice
from asyncfeded.mpi.world import World
from asyncfeded.rules import measured_for
from asyncfeded.run.nvtx import mark
from asyncfeded.run.plan import Plan
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks.contract import CheckedTask
from asyncfeded.training.batches import ClientData
from asyncfeded.training.client import Trainer, work
from asyncfeded.training.held_out import HeldOut
from asyncfeded.training.heterogeneity import ClientProfiles
from asyncfeded.training.loader import Loader
from asyncfeded.training.trial import Trial
from asyncfeded.wire.client_wire import ClientWire, cut
from asyncfeded.wire.group import Group, GroupLostError
from asyncfeded.wire.member_wire import MemberWire
from asyncfeded.wire.messages import Order


@dataclass(frozen=True)
class ClientParts:
    """What a worker has prepared to train its clients."""

    config: Config
    task: CheckedTask
    flat: FlatModel
    profiles: ClientProfiles
    trainer: Trainer
    held_out: HeldOut | None
    """What tests the models that clients receive; None: they do not."""
    client_data: Callable[[int], ClientData]
    """Returns the data of a client; loads it if the client has moved to this worker."""
    group: Group | None = None
    """The ranks that train with this one; None: it trains alone."""
    slices: Sequence[Slice] = ()
    """What each rank of the server holds; empty: it has one."""


def load(world: World, plan: Plan, profiles: ClientProfiles) -> Callable[[int], ClientData]:
    """Load the data of the clients that live on this worker.

    Returns:
        What returns the data of a client; it loads that of a client that moves here.

    Raises:
        ValueError, OSError: something is wrong that the user can correct.
    """
    config, task, device = plan.config, plan.task, plan.device

    loader = Loader(task, device, config.training.loader_workers, config.seed)

    @cache
    def client_data(client: int) -> ClientData:
        seed_globals(config.seed, Stream.DATA, client)
        data = loader.add(task.client_data(client, config.clients, config.seed), int(profiles.clients["samples"][client]))
        paced = config.clock == "wall" and world.rank in world.seats.leaders  # the others wait for the leader in every step
        slowdown = float(profiles.clients["slowdown"][client]) if paced else 1.0
        batch_size = int(profiles.clients["batch_size"][client])
        return ClientData(data, batch_size, slowdown)

    for client in world.seats.homes(world.rank, config.present):
        client_data(client)  # now, so that faulty data is reported; data of other clients is loaded when they move here
    return client_data


def prepare(
    world: World,
    plan: Plan,
    flat: FlatModel,
    profiles: ClientProfiles,
    client_data: Callable[[int], ClientData],
    group: Group | None = None,
    slices: Sequence[Slice] = (),
) -> ClientParts:
    """Make what trains the clients of this worker, and try it.

    Raises:
        ValueError, OSError: something is wrong that the user can correct.
    """
    config, task, rule = plan.config, plan.task, plan.rule
    proximal, measures = config.training.proximal or rule.proximal, measured_for(rule)
    trainer = Trainer(task, flat, config.training, proximal, config.seed, group, measures)
    Trial(task, flat, trainer, config).run(world.seats.homes(world.rank, config.present), client_data)
    tests = config.evaluation.client_rounds and not (group and group.rank)  # the leader's model is that of all
    held_out = HeldOut(task, flat, config) if tests else None
    if held_out:
        held_out.try_out(world.seats.homes(world.rank, config.present))
    return ClientParts(config, task, flat, profiles, trainer, held_out, client_data, group, slices)


def train_for_server(world: World, parts: ClientParts, leaves: Callable[[], bool] = lambda: False) -> bool:
    """Train until the server says stop, or until `leaves` says at the end of a round that this client leaves. Client ranks.

    Returns:
        Whether ranks are lost.

    Raises:
        ServerLostError: MPI reports that the server has died.
        GroupLostError: a rank of this rank's group has died.
    """
    config, buffer, group = parts.config, parts.flat.buffer, parts.group
    host = torch.empty(buffer.shape, pin_memory=True) if not buffer.is_cpu else buffer
    paced = config.clock == "wall" and not (group and group.rank)  # the others wait for the leader in every step

    def lost_s(order: Order, round_s: float) -> float:
        return parts.profiles.pause_s(order, round_s) if paced else 0.0

    wire: ClientWire | MemberWire
    if group and group.rank:
        wire = MemberWire(group, [part for _, part in cut(host, parts.slices)])
    else:
        wire = ClientWire(world.comm, host, world.backoff(config.wait), parts.slices, leaves, group)
    if group:
        group.begun, group.watch = True, wire.stopped
    mark(wire, receive="wait", send="send")
    mark(parts.trainer, round="train")
    try:
        work(wire, parts.trainer, parts.client_data, lost_s, parts.flat, host, parts.held_out)
    except GroupLostError:
        if isinstance(wire, ClientWire):
            wire.give_up()
        raise
    if group and not wire.ranks_lost:
        group.undo.close()
    return wire.ranks_lost
