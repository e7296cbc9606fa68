"""`asyncfeded.train`: a run from a notebook in a job of its own, or from a script whose ranks have started already.

A job of its own is an mpiexec that ends with the process that has asked for it. It knows this process only by its file and
its overrides: nothing of MPI happens here. A script under mpiexec is the job itself: all of its ranks call `train`, and may
call it again afterwards.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from asyncfeded.mpi import origin
from asyncfeded.mpi.tether import tethered
from asyncfeded.rules import Rule
from asyncfeded.script.opened import Run
from asyncfeded.tasks import Task

LONGEST = 4000
"""Characters that are kept of what a run says, its end."""


class RunFailed(RuntimeError):  # noqa: N818, it is no error where a signal has asked the run to stop
    """A run did not reach one of its limits.

    Args:
        status: its exit status: 2, it was refused; 75, a signal has ended it, `asyncfeded resume` goes on with it; any
            other, it failed.
        log: the end of what it said.
    """

    def __init__(self, status: int, log: str) -> None:
        super().__init__(status, log)
        self.status, self.log = status, log

    def __str__(self) -> str:
        return f"the run ended with status {self.status}\n{self.log}".rstrip()


def train(
    file: str | os.PathLike[str],
    *,
    ranks: int | None = None,
    overrides: Sequence[str] = (),
    task: Task | None = None,
    rule: Rule | None = None,
) -> Run:
    """Train, and return the run.

    With `ranks` it starts mpiexec and waits for it, as `asyncfeded train FILE --ranks N` does; what the run says goes to
    sys.stderr. The job ends with this process, also if that is killed. An exception here, such as KeyboardInterrupt by
    Ctrl-C, ends the run in order, with a checkpoint, before it goes on; a second one ends it at once.

    Without `ranks`, this process must be one rank of a job that mpiexec or srun has started, and all ranks must call it with
    the same arguments, from their main threads. Collective. It may be called again. An error on a rank while the run
    trains ends the job, and so does the end of a run that has lost a rank, since MPI cannot be used any more.

    Args:
        file: the run's TOML file.
        ranks: number of ranks to start, 1 server and the others clients; None: the ranks are here.
        overrides: `section.key=value`, applied to the file.
        task: the task, made equal on all ranks, instead of the one that the file names; only without `ranks`. The run's
            config then has the name of its class, and the keys that it has as a `Settings`, so that `asyncfeded resume`
            and `replay` find it again; the script's call of `train` must then stand behind `if __name__ == "__main__":`.
        rule: the rule, likewise.

    Raises:
        RunFailed: the run was refused, stopped by a signal, or failed.
        ValueError: it cannot be started like this.
    """
    if ranks is None:
        return _train_here(Path(file), list(overrides), task, rule)
    if task is not None or rule is not None:
        raise ValueError(
            "a task or a rule that is an object cannot be given to ranks that have yet to start: name its class in the "
            'file (task.name = "my.py:MyTask"), or leave out ranks and start the script with mpiexec'
        )
    return _train_in_a_job(ranks, ["train", os.fspath(file), *overrides])


def _train_here(file: Path, overrides: list[str], task: Task | None, rule: Rule | None) -> Run:
    """Train on the ranks of this job. Collective."""
    if not origin.launched_by() and not origin.connected():
        raise ValueError(
            "no launcher has started this process: give a number of ranks (ranks=5), or start the script with mpiexec or "
            "srun (mpiexec -n 5 python SCRIPT)"
        )
    from asyncfeded.run import run, stopping

    if stopping.asked.listens:
        raise ValueError(
            "train was called while these ranks prepare another run, by the file that holds its task or its rule; put the "
            'call behind `if __name__ == "__main__":`'
        )
    with _own_signals():
        ended = run.train(file, overrides, task=task, rule=rule)
    if ended.of_job:
        log = Path(ended.run_dir) / "log.txt"
        with suppress(OSError):
            raise RunFailed(ended.of_job, ended.why or log.read_text(encoding="utf-8")[-LONGEST:])
        raise RunFailed(ended.of_job, "")
    return Run(Path(ended.run_dir))


@contextmanager
def _own_signals() -> Iterator[None]:
    """Afterwards SIGINT and SIGTERM do what they did before. SIGUSR1 asks for nothing: hydra sends it when a rank ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train_in_a_job(ranks: int, arguments: list[str]) -> Run:
    """Start mpiexec, and wait for its end."""
    from asyncfeded.mpi import launcher

    if ranks < 2:
        raise ValueError(f"ranks = {ranks}: at least 2 are needed, 1 server and 1 client, for example ranks=5")
    launched = origin.launched_by()
    if launched and launched.size > 1:
        raise ValueError(
            f"{launched.name} has started this script on several ranks already; leave out ranks, or the launcher"
        )
    command, env, notes = launcher.command(ranks, arguments, lasting=True)
    for note in notes:
        print(f"asyncfeded: {note}", file=sys.stderr, flush=True)  # noqa: T201
    env |= {"TTY_COMPATIBLE": "0", "TTY_INTERACTIVE": "0"}  # lines, and no live view, also where a kernel sets FORCE_COLOR
    log, ending = "", launcher.ending_signal()
    with (
        tempfile.TemporaryFile() as printed,
        subprocess.Popen(
            tethered(command, ending),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches it from here only, and once
        ) as job,
    ):
        try:
            for text in _said(job):
                log = (log + text)[-LONGEST:]
                sys.stderr.write(text)
                sys.stderr.flush()
        except BaseException:
            _stop(job, ending)
            raise
        printed.seek(0)
        lines = printed.read().decode(errors="backslashreplace").splitlines()
    if job.returncode:
        raise RunFailed(job.returncode, log or "\n".join(lines)[-LONGEST:])
    return Run(Path(_result(lines)["run_dir"]))


def _result(lines: list[str]) -> dict[str, Any]:
    """The result that a run has printed; what its ranks print themselves may stand behind it."""
    for line in reversed(lines):
        with suppress(ValueError):
            if isinstance(found := json.loads(line[line.find("{") :]), dict) and "run_dir" in found:
                return found
    raise AssertionError(lines[-20:])


def _said(job: "subprocess.Popen[bytes]") -> Iterator[str]:
    """What a job writes to standard error, as it comes, until it has ended."""
    assert job.stderr is not None
    pipe = select.poll()
    pipe.register(job.stderr, select.POLLIN)
    while pipe.poll(500) or job.poll() is None:  # a process that it has left behind may keep the pipe open
        if pipe.poll(0):
            if not (data := os.read(job.stderr.fileno(), 65536)):
                break
            yield data.decode(errors="backslashreplace")
    job.wait()


def _stop(job: "subprocess.Popen[bytes]", ending: int) -> None:
    """End a job in order, with a checkpoint; at once, if an exception comes meanwhile."""
    try:
        job.send_signal(signal.SIGINT)
        for text in _said(job):
            sys.stderr.write(text)
    except BaseException:
        job.send_signal(ending)
        raise
    finally:
        job.wait()
