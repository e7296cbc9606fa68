"""A worker of one run. It makes and checks what it needs before the first message; then it trains. Client ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from asyncfeded.config import Config
from asyncfeded.model.flat import FlatModel
from asyncfeded.model.slices import Slice
from asyncfeded.mpi.world import World
from asyncfeded.run.plan import Plan
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks.contract import CheckedTask
from asyncfeded.training.batches import ClientData
from asyncfeded.training.client import Trainer, work
from asyncfeded.training.held_out import HeldOut
from asyncfeded.training.heterogeneity import ClientProfiles
from asyncfeded.training.loader import Loader
from asyncfeded.training.trial import Trial
from asyncfeded.wire.client_wire import ClientWire
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
        slowdown = float(profiles.clients["slowdown"][client]) if config.clock == "wall" else 1.0
        batch_size = int(profiles.clients["batch_size"][client])
        return ClientData(data, batch_size, slowdown)

    for client in world.seats.homes(world.rank, config.present):
        client_data(client)  # now, so that faulty data is reported; data of other clients is loaded when they move here
    return client_data


def prepare(
    world: World, plan: Plan, flat: FlatModel, profiles: ClientProfiles, client_data: Callable[[int], ClientData]
) -> ClientParts:
    """Make what trains the clients of this worker, and try it.

    Raises:
        ValueError, OSError: something is wrong that the user can correct.
    """
    config, task, rule = plan.config, plan.task, plan.rule
    trainer = Trainer(task, flat, config.training, config.training.proximal or rule.proximal, config.seed)
    Trial(task, flat, trainer, config).run(world.seats.homes(world.rank, config.present), client_data)
    held_out = HeldOut(task, flat, config) if config.evaluation.client_rounds else None
    if held_out:
        held_out.try_out(world.seats.homes(world.rank, config.present))
    return ClientParts(config, task, flat, profiles, trainer, held_out, client_data)


def train_for_server(world: World, parts: ClientParts, leaves: Callable[[], bool] = lambda: False) -> bool:
    """Train until the server says stop, or until `leaves` says at the end of a round that this client leaves. Client ranks.

    Returns:
        Whether ranks are lost.
    """
    config, buffer = parts.config, parts.flat.buffer
    host = torch.empty(buffer.shape, pin_memory=True) if not buffer.is_cpu else buffer
    paced = config.clock == "wall"

    def lost_s(order: Order, round_s: float) -> float:
        return parts.profiles.pause_s(order, round_s) if paced else 0.0

    wire = ClientWire(world.comm, host, world.backoff(config.wait), parts.slices, leaves)
    work(wire, parts.trainer, parts.client_data, lost_s, parts.flat, host, parts.held_out)
    return wire.ranks_lost
