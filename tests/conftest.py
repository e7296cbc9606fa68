"""What several test files need: a wire without MPI, the program in a subprocess, and the MPIs to run it under."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from asyncfeded.metric import DEFAULT, Metrics
from asyncfeded.mpi.origin import launched_by
from asyncfeded.mpi.placement import PLACE
from asyncfeded.store import record

# What a script starts by `bash launch/test.sh &` ignores SIGINT, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

BEFORE = pytest.StashKey[set]()
METRICS = Metrics(DEFAULT, "accuracy")
"""Those of a task that declares none."""


def tables(updates=(), evaluations=(), client_evaluations=(), events=(), metrics=METRICS, **attributes):
    """A record as it is read, of rows given as tuples."""
    kinds = record.dtypes(metrics)
    given = {"updates": updates, "evaluations": evaluations, "client_evaluations": client_evaluations, "events": events}
    rows = {name: np.array(list(given[name]), kinds[name]) for name in record.TABLES}
    return record.Tables(**rows, metrics=metrics, attributes=attributes)


def same_rows(one, other, *but):
    """Whether the records of two runs are the same to the bit, but for columns `but` and what the wall clock measured."""
    one, other = (record.read_record(Path(run_dir)) for run_dir in (one, other))
    told = [name for name in one.updates.dtype.names if name not in (*record.MEASURED, *but)]
    pairs = [(one.updates[name], other.updates[name]) for name in told]
    pairs += [(getattr(one, name), getattr(other, name)) for name in ("evaluations", "client_evaluations")]
    return all(mine.tobytes() == others.tobytes() for mine, others in pairs)


def places(*hosts, threads=1):
    """The map of a job: the server on the first host, a worker on each of the others."""
    roles = ["server", *["worker"] * (len(hosts) - 1)]
    return np.array([(host, role, "cpu", 1.0, threads, -1) for host, role in zip(hosts, roles, strict=True)], PLACE)


def num_calls(work):
    """Calls of functions, Python's and C's, that `work()` makes: how a cost grows, on a machine of any load."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


class Finished(NamedTuple):
    """A program that has ended."""

    command: list
    status: int
    stdout: str
    stderr: str

    def __str__(self):
        return f"{' '.join(self.command)}\nstatus {self.status}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"

    @property
    def result(self):
        """The JSON that a run prints last."""
        return json.loads(self.stdout.splitlines()[-1])


def run(command, cwd, env=None, timeout=300):
    """A command in a subprocess, ended when it takes too long."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            list(map(str, command)), cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True
        )
        try:
            process.wait(timeout)
            hung = ""
        except subprocess.TimeoutExpired:
            hung = f"hung: ended after {timeout} s\n"
            process.terminate()  # mpiexec ends its ranks
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        out.seek(0)
        err.seek(0)
        done = Finished(process.args, process.returncode, out.read(), err.read())
    assert not hung, hung + str(done)
    return done


def run_asyncfeded(*arguments, cwd, env=None, timeout=300):
    """`asyncfeded ARGUMENTS`, as a user types it."""
    return run([Path(sys.executable).with_name("asyncfeded"), *arguments], cwd, env, timeout)


class Job:
    """`asyncfeded ARGUMENTS`, or another command, started and not waited for."""

    def __init__(self, folder, env, *arguments, command=()):
        self.out = (folder / "out.txt").open("w+")
        command = [*map(str, command or (Path(sys.executable).with_name("asyncfeded"), *arguments))]
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.out
        )

    def ranks(self):
        """Process of each rank that has started, by rank."""
        found = {}
        for pid in descendants(self.process.pid):
            with suppress(OSError):
                words, environment = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"), Path(f"/proc/{pid}/environ")
                if b"python" in words[0] and b"asyncfeded.mpi.shield" not in words:
                    variables = dict(item.split(b"=", 1) for item in environment.read_bytes().split(b"\0") if b"=" in item)
                    rank = variables.get(b"PMI_RANK") or variables.get(b"OMPI_COMM_WORLD_RANK")
                    if rank:
                        found.setdefault(int(rank), pid)  # before a process that it has forked
        return found

    def until(self, what, seconds=200):
        """Wait until something is so; the job must not end before."""
        deadline = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.01)

    def kill(self):
        """SIGKILL to all of its processes, in any order."""
        pids = [self.process.pid, *descendants(self.process.pid)]
        for pid in random.sample(pids, len(pids)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.kill()
        self.out.close()

    def said(self):
        self.out.seek(0)
        return self.out.read()

    def end(self):
        """The exit status, and all that it said."""
        return self.process.wait(200), self.said()


def is_dead(pid):
    """Whether a process has ended."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def descendants(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):  # a thread that has ended meanwhile
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


class Mpi(NamedTuple):
    """An MPI library and its mpiexec."""

    vendor: str
    library: str
    mpiexec: list
    env: dict

    def command(self, *parts):
        """The command line that starts parts (ranks, command) as one job."""
        command = self.mpiexec
        for ranks, part in parts:
            command = [*command, "-n", ranks, *part, ":"]
        return command[:-1]

    def train(self, ranks, *arguments, cwd, timeout=300):
        """`asyncfeded train ARGUMENTS --ranks RANKS`."""
        return run_asyncfeded("train", *arguments, "--ranks", ranks, cwd=cwd, env=self.env, timeout=timeout)


@cache
def find_mpi(library=""):
    """The MPI of a library, or the one of this environment, as the program itself finds it."""
    env = dict(os.environ) | ({"MPI4PY_LIBMPI": library} if library else {})
    ask = (
        "import json; from asyncfeded.mpi import launcher; "
        "print(json.dumps([launcher.vendor(), launcher.library(), *launcher.command(2, [])[:2]]))"
    )
    said = run([sys.executable, "-c", ask], cwd="/", env=env)
    assert said.status == 0, str(said)
    vendor, library, command, env = json.loads(said.stdout)
    return Mpi(vendor, library, command[: command.index("-n")], env | ({"MPI4PY_LIBMPI": library} if library else {}))


OTHER = os.environ.get("ASYNCFEDED_TEST_LIBMPI", "")
"""Path of the libmpi of a second MPI."""


@pytest.fixture(scope="session")
def own_mpi():
    """The MPI of the environment that runs the tests."""
    return find_mpi()


@pytest.fixture(scope="session")
def other_mpi():
    """A second MPI, of another family."""
    if not OTHER:
        pytest.skip("ASYNCFEDED_TEST_LIBMPI names no second MPI (path of its libmpi.so)")
    return find_mpi(OTHER)


@pytest.fixture(scope="session", params=["own_mpi", "other_mpi"])
def mpi(request):
    """Every MPI in turn."""
    return request.getfixturevalue(request.param)


def pytest_collection_modifyitems(items):
    """Keeps the tests of a file in one process, where several processes test; the cluster is one file."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group("cluster" if folder == "cluster" else str(item.path)))


def pytest_configure(config):
    """Notes what is in /dev/shm before the tests, in the process that begins first and ends last."""
    if not hasattr(config, "workerinput"):
        config.stash[BEFORE] = set(_segments())


def pytest_unconfigure(config):
    """Removes what ranks that were killed or aborted have left in /dev/shm, up to 16 MB each."""
    before = config.stash.get(BEFORE, None)
    if before is None or launched_by() or set(_segments()) == before:
        return
    mapped = ""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            mapped += maps.read_text()
        except OSError:
            continue  # ended meanwhile, or another user's
    for path in set(_segments()) - before:
        if str(path) not in mapped:
            path.unlink(missing_ok=True)


def _segments():
    return [path for kind in ("mpich_shm_*", "sm_segment.*") for path in Path("/dev/shm").glob(kind)]
