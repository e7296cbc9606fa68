"""Whether the ranks of every host fit into its memory, before the server makes its models.

Counted is what a run will hold for certain; data, activations and what libraries take are not known. So a run that is
refused cannot fit; one that starts may still be too large.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asyncfeded.config import Config
from asyncfeded.model.disk import Disk
from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.model.slices import Gather
from asyncfeded.mpi import limits
from asyncfeded.mpi.world import World, make_statement
from asyncfeded.rules.contract import Rule, init, versions_held
from asyncfeded.run.plan import agree_on
from asyncfeded.training.optimizer import vectors_held
from asyncfeded.wire.transfer import CHUNK, UNDER_WAY


class Need(NamedTuple):
    """Memory that a rank has yet to take, in bytes."""

    touched: int
    """What it will write to."""
    reserved: int
    """What it will ask for; buffers that are seldom used count too."""


RANK = np.dtype(
    [
        ("touched", np.int64),
        ("reserved", np.int64),
        ("held", np.int64),
        ("own", np.float64),
        ("host", np.float64),
        ("group", np.float64),
        ("group_id", np.int64),
        ("job", np.float64),
    ]
)
"""A rank of a host, in bytes: its need, what it holds, what its own limits leave, what the host, its control group (with the
inode) and its Slurm job have."""


def server_need(config: Config, rule: Rule, layout: Layout, pinned: bool) -> Need:
    """What the server of a run will take besides the model that it evaluates.

    Args:
        config: the resolved config.
        rule: its state is measured on models of one and two parameters; it grows linearly.
        layout: of the model.
        pinned: whether the models lie on a GPU, and their copies for the wire in pinned memory.
    """
    n, size, sent = config.clients, 4 * layout.size, 4 * layout.sent
    small, large = (_state_bytes(rule, n, params, config.training.first) for params in (1, 2))
    state = small + (large - small) * (layout.num_params - 1) + (size if config.evaluation.average else 0)
    if pinned:
        return Need(2 * n * sent, 2 * n * sent)
    held = n if layout.own else versions_held(rule, n)
    # A checkpoint is written from a copy of x and of the rule's state; clients that move on meanwhile get another buffer.
    checkpoints = bool(config.checkpoint.every_updates or config.checkpoint.every_s)
    copies = (size + state) * checkpoints
    disk = config.bases == "disk"
    near, most = (min(held, clients_near(config, layout)), 2 * n) if disk else (held, held * (1 + checkpoints))
    arriving = min(n, config.servers)  # a buffer of each update that arrives at a time
    return Need((near + arriving) * sent + size + state + copies, (most + n) * sent + size + state + copies)


def clients_near(config: Config, layout: Layout) -> int:
    """With bases = disk: how many clients at a time have base and update in memory."""
    return int(1e9 * config.bases_gb / (8 * max(layout.sent, 1)))  # a slice may be empty


def most_held(config: Config, layout: Layout, held: int) -> str:
    """What the server may come to hold, and what its host has left, as a part of a sentence.

    Args:
        config: the resolved config.
        layout: of a message.
        held: bytes of all its models at the start.
    """
    n, sent, left = config.clients, 4 * layout.sent, limits.host_memory()
    if config.bases == "disk":
        near = min(n, clients_near(config, layout))
        file = f"the bases of all in {2 * n * sent / 1e9:.3g} GB of {config.bases_dir}"
        return f"base and update of {near} of {n} clients in memory, {file}; its host has {left / 1e9:.3g} GB left"
    most = f"at most {(held + 2 * n * sent) / 1e6:.1f} MB with a base and an update of each of {n} clients"
    return f"{most}; its host has {left / 1e9:.3g} GB left"


def make_model(
    config: Config, rule: Rule, initial: Tensor, layout: Layout, workers: int, gather: Gather | None = None
) -> GlobalModel:
    """Make the global model with its bases, in memory or on a disk. Server ranks.

    Args:
        config: the resolved config.
        rule: of the run.
        initial: float32 (layout.size,), x_0.
        layout: of a message.
        workers: their number.
        gather: see `GlobalModel`.

    Raises:
        ValueError: the disk, or the memory that the user allows, does not suffice.
    """
    clients = config.clients
    if config.bases == "memory":
        return GlobalModel(initial, layout, clients, versions_held(rule, clients), gather=gather)
    if not initial.is_cpu:
        raise ValueError(f"bases = disk needs server_device = cpu, and the server is on {initial.device}; set one of them")
    if (near := clients_near(config, layout)) < min(workers, clients):
        raise ValueError(
            f"bases_gb = {config.bases_gb:g} holds base and update of {near} clients, and {min(workers, clients)} train at "
            f"a time; set it to at least {8e-9 * layout.sent * min(workers, clients):.2g}"
        )
    # A checkpoint that is being written holds as many as the clients do.
    return GlobalModel(initial, layout, clients, 1, Disk(Path(config.bases_dir), layout.sent, 2 * clients), gather)


def worker_need(
    config: Config, proximal: float, layout: Layout, pinned: bool = False, ranks: int = 1, measures: bool = False
) -> Need:
    """What a rank of a worker will take of host memory besides its model, and the data of its clients.

    That is gradient, what the optimizer gathers (unless the task makes it), the anchor x_s, what is a client's own, and the
    parts of gradients that arrive from the other `ranks` of the worker; where the rule `measures` the curvature, two
    gradients and the model more. On a GPU (`pinned`) it is only the copy for the wire.
    """
    if pinned:
        return Need(4 * layout.sent, 4 * layout.sent)
    vectors = 1 + vectors_held(config.training) + bool(config.training.proximal or proximal) + 3 * measures
    arriving = UNDER_WAY * ranks * min(CHUNK, layout.num_params // ranks) if ranks > 1 else 0
    needed = 4 * (layout.num_params * vectors + layout.sent - layout.size + arriving)
    return Need(needed, needed)


def agree_on_memory(world: World, need: Need, what: str) -> None:
    """Check that the ranks of every host fit. Collective.

    Args:
        world: all ranks.
        need: of this rank.
        what: for the user: the models that need it.

    Raises:
        RefusedError: on every rank, with the same text.
    """
    held, own = limits.process_memory()
    group, group_id = limits.memory()
    mine = np.array([(*need, held, own, limits.host_memory(), group, group_id, slurm_memory(os.environ))], RANK)
    ranks = np.zeros(world.local.size, RANK)
    world.local.Allgather(mine.view(np.uint8), ranks.view(np.uint8))
    agree_on(world, lambda: check(ranks, world.local.rank, what), lambda _: make_statement())


def check(ranks: np.ndarray, mine: int, what: str) -> None:
    """Compare what the ranks of a host need with what there is.

    Args:
        ranks: RANK (ranks,), of this host.
        mine: index of this rank in `ranks`.
        what: for the user: the models that need it.

    Raises:
        ValueError: they cannot fit; the message gives both figures.
    """
    me = ranks[mine]
    together = int(ranks["touched"].sum())
    grouped = int(ranks["touched"][ranks["group_id"] == me["group_id"]].sum())
    in_all = together + int(ranks["held"].sum())
    for needed, left, sentence in (
        (int(me["reserved"]), me["own"], "this rank needs {} more, but its limits (ulimit -v, ulimit -d) leave {}"),
        (grouped, me["group"], "the ranks of this host need {} more, but their container or job (cgroup) has {} left"),
        (together, me["host"], "the ranks of this host need {} more, but it has {} left"),
        (in_all, me["job"], "the ranks of this host need {}, but the Slurm job has {} on it (--mem)"),
    ):
        if needed > left:
            figures = (f"{amount / 1e9:.3g} GB" for amount in (needed, max(left, 0)))
            raise ValueError(
                f"not enough memory: {sentence.format(*figures)}; {what}; take fewer clients, a smaller model, more memory, "
                f"more servers on other hosts (servers), or bases = disk"
            )


def slurm_memory(env: Mapping[str, str]) -> float:
    """Bytes that the Slurm job has on this host; inf if it does not say."""
    if (per_node := env.get("SLURM_MEM_PER_NODE", "")).isdigit() and int(per_node):
        return float(per_node) * 2**20
    per_cpu, cpus = env.get("SLURM_MEM_PER_CPU", ""), env.get("SLURM_CPUS_ON_NODE", "")
    return float(per_cpu) * int(cpus) * 2**20 if per_cpu.isdigit() and cpus.isdigit() and int(per_cpu) else float("inf")


def _state_bytes(rule: Rule, num_clients: int, params: int, first: int) -> int:
    """Bytes of the state of a rule for a model of so many parameters; 0 if the rule does not take such a model or K."""
    model = GlobalModel(torch.zeros(params), Layout((Entry("w", (params,), 0),), params, params), num_clients)
    try:
        state = init(rule, model, np.full(num_clients, first, np.int64))
    except ValueError:  # it is asked again with the model of the run
        return 0
    return sum(int(array.nbytes) for array in state.values())
