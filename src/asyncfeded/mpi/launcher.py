"""mpiexec: which one belongs to the MPI library in use, how to start it, and how a job ends with an error.

It looks at files and the environment. MPI is loaded, but not initialised before `initialise` or the end of a job.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mpi4py

mpi4py.rc.initialize = False  # world.join_job initialises MPI; `asyncfeded info` and `--ranks` must not
mpi4py.rc.finalize = False

from mpi4py import MPI as MPI  # noqa: E402, the only import of MPI: all other files import it from here

from asyncfeded.mpi.allocation import find_allocation  # noqa: E402
from asyncfeded.mpi.limits import shared_memory  # noqa: E402
from asyncfeded.mpi.origin import is_apart, launched_by, leftovers, without_rank  # noqa: E402

MPICH_SHARED = 5.4e6
"""Bytes in /dev/shm that a rank of MPICH takes (5.0.2, with 2 to 13 ranks)."""


FLUSH_S = 0.5
"""Seconds before a rank ends the job: hydra ends it before it has read all output of a rank, 1 of 12 tracebacks was lost."""

TURN_S = 0.1
"""Seconds in which the others learn what a rank has said, or are ended."""


class Start(NamedTuple):
    """How to start mpiexec."""

    command: list[str]
    env: dict[str, str]
    notes: tuple[str, ...]
    """Sentences for the user: what of the surroundings is not used, and why."""


def vendor() -> str:
    """The MPI library in use, such as `MPICH 5.0.2`."""
    name, version = MPI.get_vendor()
    return f"{name} {'.'.join(map(str, version))}"


@cache
def library() -> str:
    """Path of the MPI library that this process has loaded; empty where the system does not show it."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return ""
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line}
    return next((p for p in sorted(paths) if Path(p).name.startswith(("libmpi.so", "libmpich.so"))), "")


@cache
def find_mpiexec() -> str:
    """The mpiexec that belongs to the MPI library in use.

    Raises:
        ValueError: none was found; the message names the places that were searched.
    """
    family = MPI.get_vendor()[0]
    beside = [str(Path(library()).parent.parent / "bin" / "mpiexec")] if library() else []
    names = ("mpiexec", "mpirun", "mpiexec.openmpi", "mpiexec.mpich", "mpiexec.hydra")
    candidates = beside + [found for name in names if (found := shutil.which(name))]
    for candidate in candidates:
        if _family(candidate) == ("Open MPI" if family == "Open MPI" else "hydra"):
            return candidate
    raise ValueError(
        f"no mpiexec found that belongs to {vendor()} ({library() or 'path unknown'}); looked at "
        f"{', '.join(candidates) or 'PATH'}. Put the one of your MPI first in PATH, or install one: "
        f"pip install 'asyncfeded[mpich]'; or leave out --ranks and start it by your site's launcher (PALS, srun, flux run)"
    )


def command(ranks: int, arguments: list[str], lasting: bool = False) -> Start:
    """The command that starts this program on `ranks` ranks of this machine or allocation.

    Args:
        ranks: number of MPI ranks.
        arguments: arguments of `asyncfeded`.
        lasting: whether the job goes on when a client dies.

    Raises:
        ValueError: no mpiexec was found, the hosts of the allocation cannot be reached, or MPI has no room on this one.
    """
    mpiexec, options, program = find_mpiexec(), [], [sys.executable, "-m", "asyncfeded", *arguments]
    found = find_allocation()
    check_shared_memory(-(-ranks // found.num_hosts), shared_memory().free)
    # A file in the working folder must not stand in for a module (Python 3.11+).
    env = without_rank(found.env) | {"PYTHONSAFEPATH": "1"}
    if MPI.get_vendor()[0] == "Open MPI":
        options = ["--bind-to", "none"]  # default: two ranks get a core each, more get sockets
        options += ["--host", found.hosts] if found.hosts else []
        if found.num_hosts == 1:
            options.append("--oversubscribe")  # on several hosts it would put all ranks on the first
        elif ranks > found.slots:
            options += ["--map-by", "node:OVERSUBSCRIBE"]
        if lasting and MPI.get_vendor()[1] >= (5,):
            options += ["--with-ft", "ulfm"]
        if os.geteuid() == 0:
            env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    else:
        options = ["-rmk", "user", "-hosts", found.hosts] if found.hosts else []
        if lasting:
            options.append("-disable-auto-cleanup")
            program = [sys.executable, "-m", "asyncfeded.mpi.shield", *program]
    if sys.stderr.isatty():
        # Under mpiexec a rank sees only pipes. These variables tell rich that a terminal is at their end.
        size = shutil.get_terminal_size()
        env |= {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"}
        env |= {"COLUMNS": str(size.columns), "LINES": str(size.lines)}
    notes = found.notes
    if left := leftovers():
        notes += (left,)
    return Start([mpiexec, *options, "-n", str(ranks), *program], env, notes)


def ending_signal() -> int:
    """The signal that makes mpiexec, and its ranks with it, end at once.

    hydra forwards other signals to the ranks, which then take their time; when it is killed, its proxies kill the ranks.
    Open MPI's mpiexec kills the ranks half a second after SIGTERM; when it is killed itself, it may leave them behind.
    """
    return signal.SIGTERM if MPI.get_vendor()[0] == "Open MPI" else signal.SIGKILL


def initialise() -> None:
    """Initialise MPI, for calls from one thread.

    Under `srun --mpi=pmi2` this selects MPICH's OFI module, where the library has it and prefers UCX. UCX publishes 4096
    bytes of memory, its address and what lies behind it, in lines that may be longer than the 1024 bytes that Slurm takes
    (MPICH 5.0.2, Slurm 22.05): what the memory held decided whether a job started. The module that a user names stays.
    Where each rank has a container of its own, MPICH copies through memory that they share: it would try to read another
    rank's, which the system refuses, and end the job at the first large model. Open MPI finds that out itself.
    """
    # Slurm's pmi2 sets PMI_JOBID, and Cray's launchers, whose networks OFI is for.
    if "PMI_JOBID" in os.environ and "ch4:ucx ofi" in MPI.Get_library_version():
        os.environ.setdefault("MPICH_CH4_NETMOD", "ofi")  # of the names of this setting, the one with the lowest priority
    if is_apart():
        os.environ.setdefault("MPICH_CH4_CMA_ENABLE", "0")
    MPI.Init_thread(MPI.THREAD_FUNNELED)


def outlive() -> None:
    """Let the memory by which MPICH connects this process to another job outlive the process; before MPI is initialised.

    The other side attaches it while it accepts, and crashes if it is gone: in 3 of 64 tries with a SIGKILL within the first
    12 ms (MPICH 5.0.2), and in none of 60 with these settings of UCX: no memory that the system frees with its process, and
    none that is found in the process's folder of /proc. Nor may it read this process's memory (cma): each time that a model
    waited to be read from a process that was gone, it ended. A setting of the user stays.
    """
    os.environ.setdefault("UCX_TLS", "^sysv,cma")
    os.environ.setdefault("UCX_POSIX_USE_PROC_LINK", "n")


def check_shared_memory(ranks: int, room: float) -> None:
    """Check that MPICH has room in /dev/shm: without it, MPI_Init crashes. Open MPI warns, and goes on without.

    Args:
        ranks: number of ranks on this host.
        room: bytes in /dev/shm.

    Raises:
        ValueError: there is not enough.
    """
    needed = ranks * MPICH_SHARED
    if MPI.get_vendor()[0] == "MPICH" and "MPIR_CVAR_NOLOCAL" not in os.environ and room < needed:
        raise ValueError(
            f"/dev/shm has room for {room / 1e6:.3g} MB, but {vendor()} takes {needed / 1e6:.3g} MB there for {ranks} ranks "
            f"on this host; give the container more (--shm-size=1g), take fewer ranks, or set MPIR_CVAR_NOLOCAL=1 (slower)"
        )


def understands(env: Mapping[str, str]) -> bool:
    """Whether this MPI can speak with the launcher of this process. MPICH without PMIx aborts in MPI_Init under it."""
    only_pmix = "PMIX_NAMESPACE" in env and "PMI_FD" not in env
    return not (only_pmix and MPI.get_vendor()[0] == "MPICH" and "pmix" not in MPI.Get_library_version())


def connects_jobs() -> bool:
    """Whether this MPI can connect a job to another that goes on: Open MPI waits for ever there, and Intel MPI crashes."""
    return MPI.get_vendor()[0] == "MPICH"


def detects_deaths(comm: MPI.Intracomm) -> bool:
    """Whether this MPI can report ranks that have died (ULFM)."""
    try:
        comm.Get_failed().Free()
    except (NotImplementedError, MPI.Exception):
        return False
    return True


def end_job(status: int) -> None:
    """End ranks that do not answer, with a status for the job; under Open MPI they end themselves when they wait."""
    if not _revoke():
        sys.stdout.flush()
        time.sleep(FLUSH_S)
        MPI.COMM_WORLD.Abort(status)


def has_ended() -> bool:
    """Whether another rank has ended the job.

    An Abort of Open MPI (--with-ft ulfm) ends its own rank alone. Ranks that wait for that rank are told nothing, neither
    then nor if it leaves with a status. So who ends a job revokes MPI_COMM_WORLD, on which no message of a run travels.
    """
    if MPI.get_vendor()[0] != "Open MPI" or not MPI.Is_initialized() or MPI.Is_finalized():
        return False
    try:
        MPI.COMM_SELF.Iprobe()  # takes in what has been revoked
        return MPI.COMM_WORLD.Is_revoked()
    except (NotImplementedError, MPI.Exception):
        return False


def leave_ended_job() -> None:
    """End this process if another rank has ended the job, as an Abort elsewhere does."""
    if has_ended():
        sys.stdout.flush()
        os._exit(1)


def _revoke() -> bool:
    """Tell the ranks that wait that the job has ended. Returns whether this is the way to end them."""
    if MPI.get_vendor()[0] != "Open MPI":
        return False
    with suppress(NotImplementedError, MPI.Exception):
        MPI.COMM_WORLD.Revoke()
    return True


def tell_and_end(rank: int, sentence: str) -> None:
    """End a job whose server is dead. The first rank that notices says so, and no other.

    Who speaks is not settled beforehand: a rank that trains notices late, and may be ended before it does.

    Args:
        rank: this rank; of those that notice at once the lowest speaks.
        sentence: what to say.
    """
    time.sleep(min(rank, 5) * (TURN_S if MPI.get_vendor()[0] == "Open MPI" else FLUSH_S + TURN_S))
    leave_ended_job()
    print(sentence, file=sys.stderr, flush=True)  # noqa: T201
    end_job(1)


@contextmanager
def guard(role: str = "", told: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """An uncaught error inside this context ends the whole job. Rank, role and host are printed before the traceback.

    This also works before MPI is initialised: the other ranks of the job would otherwise wait in MPI_Init for ever.

    Args:
        role: of this rank.
        told: errors whose text says it all: no traceback is printed.
    """
    try:
        yield
    except BaseException as error:
        _end_job(error, role, traceback.format_exc() if not isinstance(error, told) else str(error))
        raise


def _end_job(error: BaseException, role: str, what: str) -> None:
    if isinstance(error, MPI.Exception):
        leave_ended_job()
    launched = launched_by()
    if MPI.Is_initialized():
        rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    else:
        size, rank = (launched.size, launched.rank) if launched else (1, 0)
    if not isinstance(error, KeyboardInterrupt):
        text = f"asyncfeded: rank {rank}{role and f' ({role})'} on {socket.gethostname()}: uncaught error, ending the job"
        print(f"{text}\n{what}\n", end="", file=sys.stderr, flush=True)  # noqa: T201  # in one piece: other ranks write too
    elif rank == 0:
        print("asyncfeded: interrupted", file=sys.stderr, flush=True)  # noqa: T201
    if size > 1 and not MPI.Is_finalized():
        if not MPI.Is_initialized():
            initialise()
        _revoke()
        time.sleep(FLUSH_S)
        MPI.COMM_WORLD.Abort(1)
        os._exit(1)  # Abort may return before the process is ended


def _family(mpiexec: str) -> str:
    """`Open MPI` or `hydra`, according to what `--version` prints; empty if neither."""
    try:
        output = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, errors="replace", timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if "Open MPI" in output or "OpenRTE" in output or "PRRTE" in output:
        return "Open MPI"
    return "hydra" if "HYDRA" in output or "Intel" in output else ""
