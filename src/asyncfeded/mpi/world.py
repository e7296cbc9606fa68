"""Joining the MPI job. Is it the intended job, where does each rank run, and do all ranks agree on what to do?

Everything here happens before training or after it; the messages of training are in `wire`.
"""

import atexit
import os
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from asyncfeded.mpi import launcher, limits, origin, placement
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.seats import Seats, deal
from asyncfeded.mpi.waiting import Backoff, Wait, hang_bells

PROTOCOL = 4
"""Version of the messages; ranks of different versions refuse to train together."""
PROBLEMS_TOLD = 3
"""How many different problems of ranks are told, when a job does not start."""

REFUSED = 2
"""Exit status of a job that cannot start, for a reason that the user can correct."""

STATEMENT = np.dtype(
    [
        ("protocol", np.uint32),
        ("failed", np.uint32),  # exit status of a job that cannot start; 0: this rank has no problem
        ("num_params", np.int64),
        ("size", np.int64),
        ("layout", np.uint8, 32),
        ("config", np.uint8, 32),
        ("dtype", "S16"),
        ("host", "S64"),
        ("problem", "S4096"),
    ]
)
"""What a rank tells all others before training, of fixed size. `problem` is UTF-8: why the job should not start."""


class RefusedError(ValueError):
    """The job cannot start, for a reason that a user can fix. Every rank has been told.

    Args:
        text: the reason.
        status: exit status of the job.
    """

    def __init__(self, text: str, status: int = REFUSED) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class World:
    """The ranks of the job, and the place of this rank among them."""

    comm: MPI.Intracomm
    rank: int
    size: int
    hosts: list[str]
    """The host of each rank."""
    local: MPI.Intracomm
    """The ranks of this host."""
    neighbours: list[int]
    """The ranks of this host, this one included, in rising order."""
    cores: float
    """How many cores this rank can use. A core that several ranks may run on is shared in equal parts."""
    crowded: bool
    """Whether some rank of this host has less than a core."""
    seats: Seats
    """Who does what; until `take_seats`: rank 0 serves, and every other rank is a worker."""

    @property
    def threads(self) -> int:
        """How many threads this rank may run at a time."""
        return max(1, int(self.cores))

    def turn(self, seats: Seats) -> int:
        """How many ranks of this host get a GPU before this one does: first the workers by their seats, then the others."""
        turns = [(seats.worker(seat) < 0, seat, rank) for seat, rank in enumerate(seats.order) if rank in self.neighbours]
        return [rank for _, _, rank in sorted(turns)].index(self.rank)

    def backoff(self, wait: Wait) -> Backoff:
        """How this rank waits, according to the config's `wait`."""
        return Backoff("yield" if wait == "auto" and self.crowded else wait)


def join_job(least: int = 2) -> World:
    """Initialise MPI and find this rank's place. Collective.

    Args:
        least: the smallest number of ranks that is enough.

    Raises:
        RefusedError: the launcher does not belong to the MPI library in use, or there are not enough ranks.
    """
    launched = origin.launched_by()
    if launched and not launcher.understands(os.environ):
        raise RefusedError(_foreign(launched, "does not speak PMIx"))  # before MPI_Init, which would abort
    left = origin.leftovers()
    origin.forget_launcher()
    try:
        # All of it, free or not: other ranks may have begun to take their share.
        launcher.check_shared_memory(origin.neighbours(os.environ), limits.shared_memory().total)
    except ValueError as error:
        raise RefusedError(str(error)) from None
    if not MPI.Is_initialized():
        launcher.initialise()
    comm = MPI.COMM_WORLD.Dup()
    if comm.size == 1 and launched and launched.size > 1:
        raise RefusedError(_foreign(launched, f"sees {launched.size} jobs of one rank"))
    if comm.size < least:
        raise RefusedError(
            "one rank is not enough: rank 0 is the server, and at least one other rank trains. Type\n"
            "  asyncfeded train FILE.toml --ranks 5\n"
            "or start it with mpiexec or srun: mpiexec -n 5 asyncfeded train FILE.toml" + (f"\n({left})" if left else "")
        )
    local = cast(MPI.Intracomm, comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank))
    neighbours = np.zeros(local.size, np.int64)
    local.Allgather(np.array([comm.rank]), neighbours)
    hang_bells(local, neighbours.tolist())
    hosts = np.zeros(comm.size, "S64")
    comm.Allgather(np.array([socket.gethostname().encode()], "S64").view(np.uint8), hosts.view(np.uint8))
    names = [host.decode() for host in hosts]
    seats = deal(names) if comm.size > 1 else Seats((0,), ())
    return share_cores(World(comm, comm.rank, comm.size, names, local, neighbours.tolist(), 0.0, False, seats))


def imagine_job(size: int, rank: int, hosts: list[str] | None = None) -> World:
    """The place of a rank in a job that was not started. Its communicators cannot be used.

    Args:
        size: number of ranks.
        rank: of this one.
        hosts: the host of each rank; None: this one.
    """
    nowhere, cores = MPI.Intracomm(), len(os.sched_getaffinity(0)) / size
    hosts = hosts or [socket.gethostname()] * size
    return World(nowhere, rank, size, hosts, nowhere, list(range(size)), cores, cores < 1, deal(hosts))


def share_cores(world: World) -> World:
    """Compute how many cores each rank of a host has, once each rank knows where it may run. Collective."""
    mine = np.zeros(1, [("cores", np.uint8, 4096), ("quota", np.float64), ("group", np.int64)])
    mine["cores"][0, list(os.sched_getaffinity(0))] = 1
    mine["quota"], mine["group"] = limits.quota()
    all_of_host = np.zeros(world.local.size, mine.dtype)
    world.local.Allgather(mine.view(np.uint8), all_of_host.view(np.uint8))
    cores = placement.share_cores(all_of_host["cores"], all_of_host["quota"], all_of_host["group"])
    return replace(world, cores=float(cores[world.local.rank]), crowded=bool(cores.min() < 1 - 1e-9))


def take_seats(world: World, seats: Seats) -> World:
    """The same ranks in the order of their seats; the first is then rank 0. Collective."""
    order = seats.order
    if order == tuple(range(world.size)):
        return replace(world, seats=seats)
    comm = cast(MPI.Intracomm, world.comm.Split(0, order.index(world.rank)))
    neighbours = sorted(order.index(rank) for rank in world.neighbours)
    hosts = [world.hosts[rank] for rank in order]
    return replace(world, comm=comm, rank=comm.rank, hosts=hosts, neighbours=neighbours, seats=seats)


def gather_places(world: World, role: str, device: str, threads: int, group: int = -1) -> np.ndarray:
    """Where all ranks run: placement.PLACE (ranks,). Collective. Role, device, threads and group are those of this rank."""
    mine = np.array([(world.hosts[world.rank].encode(), role, device, world.cores, threads, group)], placement.PLACE)
    found = np.zeros(world.size, placement.PLACE)
    world.comm.Allgather(mine.view(np.uint8), found.view(np.uint8))
    return found


def make_statement(
    *,
    config: bytes = bytes(32),
    layout: bytes = bytes(32),
    num_params: int = 0,
    size: int = 0,
    problem: str = "",
    status: int = REFUSED,
) -> np.ndarray:
    """What a rank tells all others before training: a STATEMENT array of one element. `status`: see `RefusedError`."""
    statement = np.zeros(1, STATEMENT)
    statement["protocol"], statement["failed"] = PROTOCOL, status if problem else 0
    statement["num_params"], statement["size"], statement["dtype"] = num_params, size, b"float32"
    statement["config"], statement["layout"] = np.frombuffer(config, np.uint8), np.frombuffer(layout, np.uint8)
    statement["host"] = socket.gethostname().encode()[:64]
    statement["problem"] = problem.encode()[:4096]
    return statement


def compare_statements(world: World, statement: np.ndarray) -> None:
    """Exchange statements and compare them. Collective; no rank trains before all agree.

    Args:
        world: all ranks.
        statement: this rank's statement.

    Raises:
        RefusedError: a rank has a problem, or differs from rank 0. Every rank raises it, with the same text.
    """
    statements = np.zeros(world.size, STATEMENT)
    Backoff().wait(world.comm.Iallgather(statement.view(np.uint8), statements.view(np.uint8)))
    if disagreement := compare(statements):
        raise RefusedError(disagreement, min(filter(None, statements["failed"].tolist()), default=REFUSED))


def share(world: World, root: int, array: np.ndarray) -> None:
    """Overwrite a C-contiguous array by that of one rank, of the same type and shape. Collective."""
    words = array.reshape(-1).view(np.uint8)
    for start in range(0, words.size, 1 << 30):  # a count of MPI 3 has 31 bits
        world.comm.Bcast(words[start : start + (1 << 30)], root)


def broadcast_text(world: World, text: str, root: int = 0) -> str:
    """Returns the text of one rank on every rank. Collective."""
    raw = np.frombuffer(text.encode(), np.uint8)
    size = np.array([raw.size])
    share(world, root, size)
    raw = raw.copy() if world.rank == root else np.zeros(size[0], np.uint8)
    share(world, root, raw)
    return raw.tobytes().decode()


def compare(statements: np.ndarray, names: Sequence[str] = ()) -> str:
    """What is wrong with the statements (ranks,) of all ranks, as a sentence; empty if they agree.

    Args:
        statements: STATEMENT (ranks,).
        names: what to call them. Empty: by their ranks.
    """

    def who(rank: int) -> str:
        return f"{names[rank] if names else f'rank {rank}'} on {statements['host'][rank].decode()}"

    failed = np.flatnonzero(statements["failed"]).tolist()
    texts = {rank: statements["problem"][rank].decode(errors="replace") for rank in failed}
    # Ranks by problem. Those whose tracebacks, or words, differ in numbers only have one problem.
    problems: dict[str, list[int]] = {}
    for rank, text in texts.items():
        problems.setdefault(re.sub(r"\d+", "", text.partition("\n")[2] or text), []).append(rank)
    if problems:
        told = [(texts[ranks[0]], ranks) for ranks in problems.values()]
        sentences = [
            text if len(ranks) in (1, len(statements)) and ranks[0] == 0 else f"{who(ranks[0])}: {text}"
            for text, ranks in told[:PROBLEMS_TOLD]
        ]
        if more := len(texts) - sum(texts[rank] == text for text, ranks in told[:PROBLEMS_TOLD] for rank in ranks):
            sentences.append(f"({more} more of {len(statements)} ranks have such a problem)")
        return "\n".join(sentences)
    for name, what, remedy in (
        ("protocol", "speak different protocols", "install the same asyncfeded on every host"),
        ("config", "have different configs", "start every rank with the same file and the same overrides"),
        ("dtype", "hold the model in different types", "install the same asyncfeded on every host"),
        ("num_params", "have models of different size", "use the same model and data on every rank"),
        ("size", "have models of different size", "use the same model and data on every rank"),
        ("layout", "have models with different parameters", "use the same model and data on every rank"),
    ):
        for rank in range(1, len(statements)):
            if np.any(statements[name][rank] != statements[name][0]):
                first, other = _show(statements[name][0]), _show(statements[name][rank])
                return f"{who(0)} and {who(rank)} {what} ({name}: {first} and {other}); {remedy}"
    return ""


def refuse(error: RefusedError, world: World | None) -> int:
    """Print on rank 0 why a job cannot start. Returns the exit status of this rank.

    Where the ranks have not joined, the other ranks end with status 0: a failing one could end rank 0 before it has printed.

    Args:
        error: the reason.
        world: all ranks; None if they have not joined.
    """
    launched = origin.launched_by()
    rank = world.rank if world else launched.rank if launched else 0
    if rank == 0:
        print(f"asyncfeded: {error}", file=sys.stderr, flush=True)  # noqa: T201
    return error.status if world or rank == 0 else 0


def leave_job(status: int = 0, ranks_lost: bool = False) -> int:
    """Wait for all ranks, and finalise MPI when this process ends, so that it can join again. Collective.

    Until every rank is here, it takes no core from ranks that still work.

    Args:
        status: exit status of this process.
        ranks_lost: whether a rank is lost. MPI_Finalize could wait for it for ever, so the process ends here.

    Returns:
        The status of the job: the highest of all ranks.
    """
    if ranks_lost:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if not MPI.Is_initialized() or MPI.Is_finalized():
        return status
    statuses = np.zeros(MPI.COMM_WORLD.size, np.int64)
    Backoff().wait(MPI.COMM_WORLD.Iallgather(np.array([status]), statuses))
    atexit.unregister(MPI.Finalize)
    atexit.register(MPI.Finalize)
    return int(statuses.max())


def _foreign(launched: origin.Origin, trouble: str) -> str:
    try:
        own = launcher.find_mpiexec()
    except ValueError as error:
        own = f"(not found: {error})"
    return (
        f"{launched.name} started {launched.size} ranks, but mpi4py uses {launcher.vendor()} "
        f"({launcher.library() or 'path unknown'}), which {trouble}. Start with the mpiexec of that library: {own}; under "
        f"srun, with an --mpi=... that the library supports (srun --mpi=list): pmi2 for MPICH, pmix for Open MPI; or set "
        f"MPI4PY_LIBMPI to the library of the launcher you use"
    )


def _show(value: np.ndarray) -> str:
    if value.ndim:
        return bytes(value).hex()[:12]
    return value.decode() if isinstance(value, bytes) else str(value)
