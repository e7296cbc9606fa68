"""Joining the MPI job: is it the job that was meant, where does each rank run, and do all agree on what to do.

Everything here happens before training; the messages of training are in wire.py.
"""

import os
import socket
import sys
import time
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from asyncfeded.mpi import launcher, placement
from asyncfeded.mpi.launcher import MPI

PROTOCOL = 1
"""Version of the messages; ranks of different versions refuse to train together."""

STATEMENT = np.dtype(
    [
        ("protocol", np.uint32),
        ("failed", np.uint32),
        ("num_params", np.int64),
        ("size", np.int64),
        ("layout", np.uint8, 32),
        ("config", np.uint8, 32),
        ("dtype", "S16"),
        ("host", "S64"),
        ("problem", "S2048"),
    ]
)
"""What a rank tells all others before training, fixed in size. `problem` is UTF-8, what speaks against starting."""


class RefusedError(ValueError):
    """The job cannot start, for a reason that a user can mend; every rank has been told."""


@dataclass
class Backoff:
    """How a rank waits: polls without a break, or sleeps between polls, 10 us doubling to 2 ms.

    Sleeping is for ranks that share cores, where a polling rank takes the core from one that trains (9 ranks idle on 2
    cores: 2 % of a core each, against 25 %).
    """

    spin: bool
    _sleep_s: float = field(default=10e-6, init=False)

    def pause(self) -> None:
        """Nothing has come: let others run, for longer each time in a row."""
        if not self.spin:
            time.sleep(self._sleep_s)
            self._sleep_s = min(2 * self._sleep_s, 2e-3)

    def reset(self) -> None:
        """Something has come: the next pause is short again."""
        self._sleep_s = 10e-6

    def wait(self, request: MPI.Request) -> None:
        """Until the request is complete."""
        self.reset()
        while not request.Test():
            self.pause()


@dataclass(frozen=True)
class World:
    """The ranks of the job, and this one's place among them."""

    comm: MPI.Intracomm
    rank: int
    size: int
    hosts: list[str]
    """Of each rank."""
    local: MPI.Intracomm
    """The ranks of this host."""
    neighbours: list[int]
    """The ranks of this host, this one included, rising."""
    cores: float
    """Cores this rank can use; a core that several ranks may run on counts in equal parts."""
    crowded: bool
    """Whether some rank of this host has less than a core."""

    @property
    def threads(self) -> int:
        """Threads this rank may run at a time."""
        return max(1, int(self.cores))

    def turn(self, server: int) -> int:
        """How many ranks of this host come before this one when its GPUs are dealt: clients by rank, then the server."""
        return sorted(self.neighbours, key=lambda rank: (rank == server, rank)).index(self.rank)

    def backoff(self, wait: str) -> Backoff:
        """How this rank waits, by the config's `wait`."""
        return Backoff(spin=wait == "spin" or (wait == "auto" and not self.crowded))


def join(least: int = 2) -> World:
    """Initialise MPI and find this rank's place. Collective.

    Args:
        least: ranks that are enough.

    Raises:
        RefusedError: the launcher does not belong to the MPI library in use, or there are not enough ranks.
    """
    launched = launcher.launched_by()
    if launched and launched[0].startswith("Open MPI") and MPI.get_vendor()[0] != "Open MPI":
        raise RefusedError(_foreign(*launched[:2]))  # before MPI_Init, which would abort with "unsupported PMI version"
    if not MPI.Is_initialized():
        launcher.initialise()
    comm = MPI.COMM_WORLD.Dup()
    if comm.size == 1 and launched and launched[1] > 1:
        raise RefusedError(_foreign(*launched[:2]))
    if comm.size < least:
        raise RefusedError(
            "one rank is not enough: rank 0 is the server and at least one other trains. Type\n"
            "  asyncfeded train FILE.toml --ranks 5\n"
            "or start it with mpiexec or srun: mpiexec -n 5 asyncfeded train FILE.toml"
        )
    local = cast(MPI.Intracomm, comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank))
    neighbours = np.zeros(local.size, np.int64)
    local.Allgather(np.array([comm.rank]), neighbours)
    hosts = np.zeros(comm.size, "S64")
    comm.Allgather(np.array([socket.gethostname().encode()], "S64").view(np.uint8), hosts.view(np.uint8))
    names = [host.decode() for host in hosts]
    return share_cores(World(comm, comm.rank, comm.size, names, local, neighbours.tolist(), 0.0, False))


def share_cores(here: World) -> World:
    """How many cores each rank of a host has now that each knows where it may run. Collective."""
    mine = np.zeros(1, [("cores", np.uint8, 4096), ("quota", np.float64), ("group", np.int64)])
    mine["cores"][0, list(os.sched_getaffinity(0))] = 1
    mine["quota"], mine["group"] = placement.quota()
    all_of_host = np.zeros(here.local.size, mine.dtype)
    here.local.Allgather(mine.view(np.uint8), all_of_host.view(np.uint8))
    cores = placement.share_cores(all_of_host["cores"], all_of_host["quota"], all_of_host["group"])
    return replace(here, cores=float(cores[here.local.rank]), crowded=bool(cores.min() < 1 - 1e-9))


def seat(here: World, server: int) -> World:
    """The same ranks with `server` first, which makes it the server: rank 0 of the communicator is. Collective."""
    if server == 0:
        return here
    order = [server, *(rank for rank in range(here.size) if rank != server)]
    comm = cast(MPI.Intracomm, here.comm.Split(0, order.index(here.rank)))
    neighbours = sorted(order.index(rank) for rank in here.neighbours)
    return replace(here, comm=comm, rank=comm.rank, hosts=[here.hosts[rank] for rank in order], neighbours=neighbours)


def places(here: World, role: str, device: str, threads: int) -> np.ndarray:
    """Where all ranks run: placement.PLACE (ranks,). Collective. Role, device and threads are this rank's."""
    mine = np.array([(here.hosts[here.rank].encode(), role, device, here.cores, threads)], placement.PLACE)
    found = np.zeros(here.size, placement.PLACE)
    here.comm.Allgather(mine.view(np.uint8), found.view(np.uint8))
    return found


def statement(
    *,
    config: bytes = bytes(32),
    layout: bytes = bytes(32),
    num_params: int = 0,
    size: int = 0,
    problem: str = "",
) -> np.ndarray:
    """A rank's word before training: a STATEMENT array of one element."""
    said = np.zeros(1, STATEMENT)
    said["protocol"], said["failed"] = PROTOCOL, bool(problem)
    said["num_params"], said["size"], said["dtype"] = num_params, size, b"float32"
    said["config"], said["layout"] = np.frombuffer(config, np.uint8), np.frombuffer(layout, np.uint8)
    said["host"] = socket.gethostname().encode()[:64]
    said["problem"] = problem.encode()[:2048]
    return said


def agree(world: World, said: np.ndarray) -> None:
    """Exchange statements and compare. Collective; nobody trains before all agree.

    Args:
        world: all ranks.
        said: this rank's statement.

    Raises:
        RefusedError: on every rank, with the same text, if a rank has a problem or differs from rank 0.
    """
    heard = np.zeros(world.size, STATEMENT)
    Backoff(spin=False).wait(world.comm.Iallgather(said.view(np.uint8), heard.view(np.uint8)))
    if disagreement := compare(heard):
        raise RefusedError(disagreement)


def hear(world: World, text: str) -> str:
    """What rank 0 says, up to 1024 bytes of it, on every rank. Collective."""
    said = np.array([text.encode()], "S1024")
    world.comm.Bcast(said.view(np.uint8), 0)
    return str(said[0].decode(errors="replace"))


def compare(heard: np.ndarray) -> str:
    """What is wrong with the statements (ranks,) of all ranks, as a sentence; empty if they agree."""

    def who(rank: int) -> str:
        return f"rank {rank} on {heard['host'][rank].decode()}"

    problems: dict[str, list[int]] = {}
    for failed in np.flatnonzero(heard["failed"]).tolist():
        problems.setdefault(heard["problem"][failed].decode(errors="replace"), []).append(failed)
    if problems:
        return "\n".join(
            text if len(ranks) in (1, len(heard)) and ranks[0] == 0 else f"{who(ranks[0])}: {text}"
            for text, ranks in problems.items()
        )
    for name, what, remedy in (
        ("protocol", "speak different protocols", "install the same asyncfeded on every host"),
        ("config", "have different configs", "start every rank with the same file and the same overrides"),
        ("dtype", "hold the model in different types", "install the same asyncfeded on every host"),
        ("num_params", "have models of different size", "use the same model and data on every rank"),
        ("size", "have models of different size", "use the same model and data on every rank"),
        ("layout", "have models with different parameters", "use the same model and data on every rank"),
    ):
        for rank in range(1, len(heard)):
            if np.any(heard[name][rank] != heard[name][0]):
                here, there = _show(heard[name][0]), _show(heard[name][rank])
                return f"{who(0)} and {who(rank)} {what} ({name}: {here} and {there}); {remedy}"
    return ""


def leave(status: int = 0, apart: bool = False) -> None:
    """Finalise MPI. Collective: returns once every rank is here, without taking a core from those that are not.

    Args:
        status: of this process.
        apart: a rank is lost, and MPI_Finalize could wait for it for ever: the process ends here.
    """
    if apart:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if MPI.Is_initialized() and not MPI.Is_finalized():
        Backoff(spin=False).wait(MPI.COMM_WORLD.Ibarrier())
        MPI.Finalize()


def _foreign(name: str, ranks: int) -> str:
    try:
        own = launcher.find_mpiexec()
    except ValueError as error:
        own = f"(not found: {error})"
    return (
        f"{name} started {ranks} ranks, but mpi4py uses {launcher.vendor()} ({launcher.library() or 'path unknown'}), which "
        f"sees {ranks} jobs of one rank. Start with the mpiexec of that library: {own}; under srun, with an --mpi=... that "
        f"the library supports (srun --mpi=list); or set MPI4PY_LIBMPI to the library of the launcher you use"
    )


def _show(value: np.ndarray) -> str:
    if value.ndim:
        return bytes(value).hex()[:12]
    return value.decode() if isinstance(value, bytes) else str(value)
