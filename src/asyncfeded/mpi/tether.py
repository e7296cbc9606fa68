"""A command that ends with the process that started it, however that ends, by SIGKILL too.

    python -m asyncfeded.mpi.tether PARENT SIGNAL mpiexec -n 9 ...

The kernel sends the command the signal when its parent dies (more exactly: the thread that started it). The setting outlives
exec, so this process becomes the command.
"""

import ctypes
import os
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def tethered(command: Sequence[str], number: int) -> list[str]:
    """The command line that ties a command to this process, whose death sends it signal `number`."""
    return [sys.executable, "-m", "asyncfeded.mpi.tether", str(os.getpid()), str(number), *command]


def tie(parent: int, number: int) -> bool:
    """Tie this process to its parent, whose death sends it signal `number`. Returns whether the parent still lives."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    return os.getppid() == parent


def main() -> None:
    """Become the command that the arguments give."""
    parent, number, *command = sys.argv[1:]
    if tie(int(parent), int(number)):
        os.execvp(command[0], command)


if __name__ == "__main__":
    main()
