"""What really started this process: its parents tell, and its connection to a launcher. Variables alone do not.

A shell inherits the variables of a launcher that has ended long ago: from a terminal of an interactive job, from an `sbatch`
that was typed inside a step, from a file that was sourced.
"""

import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Launcher(NamedTuple):
    """How a launcher is recognised."""

    name: str
    daemons: tuple[str, ...]
    """How the names of the processes begin that start its ranks."""
    size: str
    """Variable with the number of ranks started."""
    rank: str
    """Variable with the rank of a process."""


class Above(NamedTuple):
    """A process above this one."""

    name: str
    title: str
    """Its command line."""
    pid: int
    child: int
    """The process below it that leads to this one."""


class Origin(NamedTuple):
    """The launcher that started this process as one rank of several."""

    name: str
    size: int
    rank: int


LAUNCHERS = (
    Launcher("PALS", ("pals",), "PMI_SIZE", "PALS_RANKID"),
    Launcher("PALS", ("pals",), "PALS_LOCAL_SIZE", "PALS_RANKID"),  # with PMIx: it says only how many are on this host
    Launcher("Flux", ("flux-shell",), "FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
    Launcher("jsrun", ("jsm",), "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    Launcher("mpirun_rsh of MVAPICH", ("mpispawn",), "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    Launcher(
        "Open MPI's mpiexec",
        ("prted", "prterun", "orted", "orterun", "mpirun", "mpiexec"),
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
    ),
    Launcher("srun", ("slurmstepd",), "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    Launcher("the mpiexec of MPICH or Intel MPI", ("hydra_", "mpiexec"), "PMI_SIZE", "PMI_RANK"),
)
"""A launcher stands before those whose variables it sets as well."""
VARIABLES = re.compile(r"(PMI|PMIX|PRTE|HYDI|OMPI_COMM_WORLD|PALS|JSM_NAMESPACE|MV2_COMM_WORLD)_(?!MCA_)|MPI_LOCAL")
"""Beginnings of the variables that launchers set in ranks; those with MCA are settings of the user."""
LOCAL_SIZES = (
    "MPI_LOCALNRANKS",
    "PMI_LOCAL_SIZE",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "PALS_LOCAL_SIZE",
    "JSM_NAMESPACE_LOCAL_SIZE",
)
"""Variables with the number of ranks on a host."""
INITIAL = "user:[4026531837]"
"""The user namespace of the host: Linux gives it this number."""
STEP = re.compile(r"slurmstepd: \[[\d+]+\.\d+\]")
"""What the process calls itself that starts the tasks of an srun; that of a batch script has another title."""


def launched_by(env: Mapping[str, str] = os.environ, proc: Path = Path("/proc")) -> Origin | None:
    """The launcher that started this process, or None if it was started by hand.

    Args:
        env: the environment.
        proc: the folder where the system shows its processes.
    """
    claims = [launcher for launcher in LAUNCHERS if _claims(launcher, env)]
    for above in _above(proc) if claims else ():
        if above.name == "slurmstepd" and not STEP.match(above.title):
            continue
        for launcher in claims:
            if above.name.startswith(launcher.daemons):
                return None if _is_typed(above.child) else _origin(launcher, env)
    # The parents may be hidden, as those of a container are.
    for launcher in claims if connected(env) else ():
        if env.get("PMI_SIZE", env[launcher.size]) == env[launcher.size]:
            return _origin(launcher, env)
    return None


def connected(env: Mapping[str, str] = os.environ) -> bool | None:
    """Whether the launcher that the variables name still listens; None: they name no connection."""
    if env.get("PMI_FD", "").isdigit():
        with suppress(OSError):
            return stat.S_ISSOCK(os.fstat(int(env["PMI_FD"])).st_mode)
        return False
    uri = next((value for name, value in env.items() if name.startswith("PMIX_SERVER_URI")), "")
    if address := re.search(r"tcp4://([\d.]+):(\d+)", uri):
        with suppress(OSError), socket.create_connection((address[1], int(address[2])), timeout=5):
            return True
        return False
    return None


def is_apart(proc: Path = Path("/proc")) -> bool:
    """Whether this rank has a user namespace of its own, as a container without privileges gives it to each rank.

    None of them may then read another's memory. A container in which the launcher runs too is no hindrance.
    """
    own = _user_namespace(proc / "self")
    if own in ("", INITIAL):
        return False
    for above in _above(proc):
        if _user_namespace(proc / str(above.pid)) != own:
            return True
        if any(above.name.startswith(launcher.daemons) for launcher in LAUNCHERS):
            return False
    return True  # the launcher is hidden, and so are the other ranks


def neighbours(env: Mapping[str, str]) -> int:
    """How many ranks the launcher says that it has started on this host; 1 if it does not say."""
    return max(int(value) if (value := env.get(name, "")).isdigit() else 1 for name in LOCAL_SIZES)


def claimed_by(size: int, env: Mapping[str, str] = os.environ) -> Origin | None:
    """The launcher whose variables say that it started so many ranks: for a job that is known to have them."""
    origins = [_origin(launcher, env) for launcher in LAUNCHERS if _claims(launcher, env)]
    return next((origin for origin in origins if origin.size == size), None)


def leftovers(env: Mapping[str, str] = os.environ) -> str:
    """A sentence about variables that make this process one of several ranks, though no launcher started it; or nothing."""
    if launched_by(env):
        return ""
    claims = [launcher for launcher in LAUNCHERS if _claims(launcher, env) and int(env[launcher.size]) > 1]
    listed = [f"{launcher.size} and {launcher.rank} of {launcher.name}" for launcher in claims]
    return f"{', '.join(listed)} are left over and not used: this process was not started as a rank" if claims else ""


def forget_launcher() -> None:
    """Leave a connection alone that is dead or was made for a shell: in MPI_Init it would fail, or wait for ever."""
    alive = connected()
    if not launched_by() and (alive is False or (alive and leftovers())):
        for name in set(os.environ) - set(without_rank(os.environ)):
            del os.environ[name]


def without_rank(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a launcher has said to this process."""
    return {name: value for name, value in env.items() if not VARIABLES.match(name)}


def _claims(launcher: Launcher, env: Mapping[str, str]) -> bool:
    return env.get(launcher.size, "").isdigit() and env.get(launcher.rank, "").isdigit()


def _origin(launcher: Launcher, env: Mapping[str, str]) -> Origin:
    return Origin(launcher.name, int(env[launcher.size]), int(env[launcher.rank]))


def _above(proc: Path) -> Iterator[Above]:
    """The processes above this one, nearest first."""
    child = os.getpid()
    with suppress(OSError):  # hidden, as other users' processes are on some hosts
        while parent := int((proc / str(child) / "stat").read_text().rpartition(")")[2].split()[1]):
            name, title = ((proc / str(parent) / file).read_text(errors="replace") for file in ("comm", "cmdline"))
            yield Above(name.strip(), title, parent, child)
            child = parent


def _user_namespace(process: Path) -> str:
    """The user namespace of a process; empty if this one may not know it, which means another one, or another user."""
    try:
        return str((process / "ns" / "user").readlink())
    except OSError:
        return ""


def _is_typed(task: int) -> bool:
    """Whether somebody typed this into a shell that is a task: of `srun --pty`, `flux run -o pty.interactive`, `jsrun -i`.

    Only such a task has a terminal as its input, and only what is typed in it has a process group of its own.
    """
    return os.isatty(0) and os.getpgrp() != os.getpgid(task)
