"""What stands between MPICH's mpiexec and a rank, so that the death of a client is not the death of the job.

    mpiexec -disable-auto-cleanup -n 9 python -m asyncfeded.mpi.shield asyncfeded train run.toml

hydra, the mpiexec of MPICH and Intel MPI, ends a job when a process of it is ended by a signal. A rank is therefore a child
of a shield, which holds its connection to hydra. When a client that has begun to train is killed, its shield ends quietly.
When the server is, or any rank before training, the shield ends the whole job, and says how it can be gone on with. Open MPI
needs none of this (--with-ft ulfm), nor does srun (-K0).
"""

import os
import signal
import subprocess
import sys
import time

WORD = "ASYNCFEDED_SHIELD"
"""Names, in the environment of a rank, the file descriptor of its shield's note."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""hydra sends them to shield and rank alike, SIGUSR1 also when any rank of the job has ended."""


def note(sentence: str) -> None:
    """Tell this rank's shield, if there is one, that training begins.

    Args:
        sentence: what the shield says if this rank is killed, the job being ended by that; empty for a client.
    """
    if fd := os.environ.get(WORD):
        os.write(int(fd), f"\n{sentence}".encode())


def main() -> int:
    """Run `sys.argv[1:]` as a child, and end as it does, but for a client that is killed. Returns the exit status."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the child would inherit
    fd = os.memfd_create("note")
    os.set_inheritable(fd, True)
    with subprocess.Popen(sys.argv[1:], close_fds=False, env=os.environ | {WORD: str(fd)}) as child:
        status = child.wait()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # while the interpreter ends, too
    if status >= 0:
        return status
    word, rank = os.pread(fd, 4096, 0).decode(), os.environ.get("PMI_RANK", "?")
    if word == "\n":
        print(f"asyncfeded: rank {rank} was ended by signal {-status}", file=sys.stderr, flush=True)  # noqa: T201
        return 0
    why = word.strip() or "before training began"
    print(f"asyncfeded: rank {rank} was ended by signal {-status}: {why}", file=sys.stderr, flush=True)  # noqa: T201
    if "PMI_FD" in os.environ:
        time.sleep(0.5)  # hydra ends the job without reading to the end what a rank has said
        os.write(int(os.environ["PMI_FD"]), f"cmd=abort exitcode={128 - status}\n".encode())  # PMI-1: ends all ranks
        time.sleep(10)
    return 128 - status


if __name__ == "__main__":
    sys.exit(main())
