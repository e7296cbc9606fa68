"""A process between MPICH's mpiexec and a rank, so that the death of a client does not end the job.

    mpiexec -disable-auto-cleanup -n 9 python -m asyncfeded.mpi.shield asyncfeded train run.toml

hydra, the mpiexec of MPICH and Intel MPI, ends a job when a signal ends one of its processes. A rank is therefore a child of
a shield, which holds the connection to hydra. If a client that has begun to train is killed, its shield ends with status
0. If the server is killed, or any rank before training, the shield ends the whole job, and says how to resume it. Open
MPI does not need this (--with-ft ulfm), and srun does not need it either (-K0).
"""

import os
import signal
import subprocess
import sys
import time

WORD = "ASYNCFEDED_SHIELD"
"""The environment variable of a rank that names the file descriptor of its shield's note."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""hydra sends them to both shield and rank. It sends SIGUSR1 also when any rank of the job has ended."""


def note(sentence: str) -> None:
    """Tell this rank's shield, if there is one, that training begins.

    Args:
        sentence: what the shield says if this rank is killed and that ends the job; empty for a client.
    """
    if fd := os.environ.get(WORD):
        os.write(int(fd), f"\n{sentence}".encode())


def main() -> int:
    """Run `sys.argv[1:]` as a child, and end as the child does, except if a client is killed. Returns the exit status."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the child would inherit
    fd = os.memfd_create("note")
    os.set_inheritable(fd, True)
    with subprocess.Popen(sys.argv[1:], close_fds=False, env=os.environ | {WORD: str(fd)}) as child:
        status = child.wait()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # also while the interpreter ends
    if status >= 0:
        return status
    word, rank = os.pread(fd, 4096, 0).decode(), os.environ.get("PMI_RANK", "?")
    if word == "\n":
        print(f"asyncfeded: rank {rank} was ended by signal {-status}", file=sys.stderr, flush=True)  # noqa: T201
        return 0
    why = word.strip() or "before training began"
    print(f"asyncfeded: rank {rank} was ended by signal {-status}: {why}", file=sys.stderr, flush=True)  # noqa: T201
    if "PMI_FD" in os.environ:
        time.sleep(0.5)  # hydra ends the job before it has read all output of a rank
        os.write(int(os.environ["PMI_FD"]), f"cmd=abort exitcode={128 - status}\n".encode())  # PMI-1: ends all ranks
        time.sleep(10)
    return 128 - status


if __name__ == "__main__":
    sys.exit(main())
