"""mpiexec: which one belongs to the MPI library in use, how to start it, and whether the right one started us.

Looks at files and the environment only: MPI is loaded, not initialised.
"""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import mpi4py

mpi4py.rc.initialize = False  # world.join initialises, so that `asyncfeded info` and `--ranks` do not
mpi4py.rc.finalize = False

from mpi4py import MPI as MPI  # noqa: E402, the one import of MPI: world.py, wire.py and bench.py take it from here

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


def command(ranks: int, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """What starts this program on `ranks` ranks of this machine or allocation.

    Args:
        ranks: number of MPI ranks.
        arguments: arguments of `asyncfeded`.

    Returns:
        The command line and the environment for it.

    Raises:
        ValueError: no mpiexec was found.
    """
    mpiexec, options, env = find_mpiexec(), [], dict(os.environ)
    if MPI.get_vendor()[0] == "Open MPI":
        options = ["--bind-to", "none"]  # its default binds to one core each when there are two ranks, to sockets above
        if ranks > (os.cpu_count() or 1) and "SLURM_JOB_ID" not in env:
            options.append("--oversubscribe")
        if os.geteuid() == 0:
            env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if sys.stderr.isatty():
        # Behind mpiexec a rank sees pipes; rich takes these as word that a terminal is at their end.
        size = shutil.get_terminal_size()
        env |= {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"}
        env |= {"COLUMNS": str(size.columns), "LINES": str(size.lines)}
    return [mpiexec, *options, "-n", str(ranks), sys.executable, "-m", "asyncfeded", *arguments], env


def _family(mpiexec: str) -> str:
    """`Open MPI` or `hydra`, by what the command says of itself; empty if neither."""
    try:
        said = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, errors="replace", timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if "Open MPI" in said or "OpenRTE" in said or "PRRTE" in said:
        return "Open MPI"
    return "hydra" if "HYDRA" in said or "Intel" in said else ""
