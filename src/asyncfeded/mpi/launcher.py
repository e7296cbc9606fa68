"""mpiexec: which one belongs to the MPI library in use, how to start it, and whether the right one started us.

Looks at files and the environment: MPI is loaded, and not initialised but to end a job.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import mpi4py

mpi4py.rc.initialize = False  # world.join_job initialises, so that `asyncfeded info` and `--ranks` do not
mpi4py.rc.finalize = False

from mpi4py import MPI as MPI  # noqa: E402, the one import of MPI: all others take it from here

LAUNCHERS = (
    # who, number of ranks that it started, rank of this process
    ("Open MPI's mpiexec", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("the mpiexec of MPICH or Intel MPI", "PMI_SIZE", "PMI_RANK"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
"""Environment that launchers leave in the processes they start."""


def launched_by() -> tuple[str, int, int] | None:
    """The launcher of this process as (name, ranks started, rank of this process), or None for one started by hand."""
    for name, size, rank in LAUNCHERS:
        if os.environ.get(size, "").isdigit():
            return name, int(os.environ[size]), int(os.environ.get(rank, 0))
    return None


def vendor() -> str:
    """The MPI library in use, such as `MPICH 5.0.2`."""
    name, version = MPI.get_vendor()
    return f"{name} {'.'.join(map(str, version))}"


@cache
def library() -> str:
    """Path of the MPI library that this process has loaded; empty where the system does not tell."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return ""
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line}
    return next((p for p in sorted(paths) if Path(p).name.startswith(("libmpi.so", "libmpich.so"))), "")


@cache
def find_mpiexec() -> str:
    """The mpiexec that belongs to the MPI library in use.

    Raises:
        ValueError: none was found; the message names where it was looked for.
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
        f"pip install 'asyncfeded[mpich]'"
    )


def command(ranks: int, arguments: list[str], lasting: bool = False) -> tuple[list[str], dict[str, str]]:
    """What starts this program on `ranks` ranks of this machine or allocation.

    Args:
        ranks: number of MPI ranks.
        arguments: arguments of `asyncfeded`.
        lasting: whether the job goes on when a client dies.

    Returns:
        The command line and the environment for it.

    Raises:
        ValueError: no mpiexec was found.
    """
    mpiexec, options, program = find_mpiexec(), [], [sys.executable, "-m", "asyncfeded", *arguments]
    env = os.environ | {"PYTHONSAFEPATH": "1"}  # a file in the working folder must not stand in for a module (Python 3.11+)
    if MPI.get_vendor()[0] == "Open MPI":
        options = ["--bind-to", "none"]  # its default binds to one core each when there are two ranks, to sockets above
        if "SLURM_JOB_ID" not in env:  # in an allocation it would put all ranks on the first node
            options.append("--oversubscribe")
        if lasting and MPI.get_vendor()[1] >= (5,):
            options += ["--with-ft", "ulfm"]
        if os.geteuid() == 0:
            env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    elif lasting:
        options, program = ["-disable-auto-cleanup"], [sys.executable, "-m", "asyncfeded.mpi.shield", *program]
    if sys.stderr.isatty():
        # Behind mpiexec a rank sees pipes; rich takes these as word that a terminal is at their end.
        size = shutil.get_terminal_size()
        env |= {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"}
        env |= {"COLUMNS": str(size.columns), "LINES": str(size.lines)}
    return [mpiexec, *options, "-n", str(ranks), *program], env


def initialise() -> None:
    """Initialise MPI, for calls from one thread.

    Under `srun --mpi=pmi2` with MPICH's OFI module, where the library has it and UCX would come first. UCX publishes 4096
    bytes of memory, its address and what lies behind, in lines that may be longer than the 1024 bytes that Slurm takes
    (MPICH 5.0.2, Slurm 22.05): a job came up or not by what the memory held. A module that the user has named stays.
    """
    if "PMI_JOBID" in os.environ and "ch4:ucx ofi" in MPI.Get_library_version():  # Slurm's pmi2 alone sets PMI_JOBID
        os.environ.setdefault("MPICH_CH4_NETMOD", "ofi")  # of the names of this setting the one that yields to all others
    MPI.Init_thread(MPI.THREAD_FUNNELED)


def detects_deaths(comm: MPI.Intracomm) -> bool:
    """Whether this MPI can tell of ranks that have died (ULFM)."""
    try:
        comm.Get_failed().Free()
    except (NotImplementedError, MPI.Exception):
        return False
    return True


def end_job(status: int) -> None:
    """End ranks that do not answer, with a status for the job, where they would not notice that the server has left."""
    if MPI.get_vendor()[0] != "Open MPI":
        sys.stdout.flush()
        MPI.COMM_WORLD.Abort(status)


@contextmanager
def guard(role: str = "") -> Iterator[None]:
    """An error that nobody caught in here ends the whole job, told with rank, role and host before the traceback.

    Also where MPI is not initialised yet: the other ranks of the job would wait in MPI_Init for ever.
    """
    try:
        yield
    except BaseException as error:
        _end_job(error, role)
        raise


def _end_job(error: BaseException, role: str) -> None:
    launched = launched_by()
    if MPI.Is_initialized():
        rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    else:
        size, rank = launched[1:] if launched else (1, 0)
    if not isinstance(error, KeyboardInterrupt):
        text = f"asyncfeded: rank {rank}{role and f' ({role})'} on {socket.gethostname()}: uncaught error, ending the job"
        print(f"{text}\n{traceback.format_exc()}", file=sys.stderr, flush=True)  # noqa: T201
    elif rank == 0:
        print("asyncfeded: interrupted", file=sys.stderr, flush=True)  # noqa: T201
    if size > 1 and not MPI.Is_finalized():
        if not MPI.Is_initialized():
            initialise()
        time.sleep(0.5)  # hydra ends the job without reading to the end what a rank has said: 1 of 12 tracebacks was lost
        MPI.COMM_WORLD.Abort(1)
        os._exit(1)  # Abort may return before the process is ended


def _family(mpiexec: str) -> str:
    """`Open MPI` or `hydra`, by what the command says of itself; empty if neither."""
    try:
        output = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, errors="replace", timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if "Open MPI" in output or "OpenRTE" in output or "PRRTE" in output:
        return "Open MPI"
    return "hydra" if "HYDRA" in output or "Intel" in output else ""
