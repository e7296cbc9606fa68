"""What happens to jobs: a run to happen to, a program that breaks in a planned way, and disks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asyncfeded.store import checkpoint, record
from conftest import Job, run_asyncfeded

TOML = """
clients = 2
limits.updates = 1000000
checkpoint.every_updates = 5
evaluation.every_s = 1.0
[task]
name = "synthetic"
model = "mlp"
samples_max = 400
[training]
epochs = 1
[rule]
epochs_max = 2
"""
KEPT = ("training.momentum=0.5", "training.optimizer_state=kept")
VIRTUAL = ("clock=virtual", "clients=4", "limits.updates=40", "heterogeneity.error_probability=0.2", *KEPT)
"""Overrides of a run that ends, the same to the bit whatever happens to it; what the clients keep moves with them."""


@pytest.fixture
def jobs(tmp_path):
    """A folder with run.toml, a run on the wall clock that does not end by itself."""
    (tmp_path / "run.toml").write_text(TOML)
    return tmp_path


@pytest.fixture
def start(mpi, jobs):
    """Starts run.toml on 3 ranks in the folder `run`, and waits until every client has had some updates merged."""
    started = []

    def start(*overrides):
        job = Job(jobs, mpi.env, "train", "run.toml", "--ranks", 3, "run_dir=run", *overrides)
        started.append(job)
        job.until(lambda: min(updates_of(jobs / "run", client) for client in range(2)) > 2)
        return job

    yield start
    for job in started:
        job.__exit__()


def updates_of(run_dir, client):
    """Rows of a client in the record so far."""
    exists = (run_dir / "record.h5").exists()
    return int((record.read_record(run_dir).updates["client"] == client).sum()) if exists else 0


def log(run_dir):
    """What the server of a run has said: unlike the job's output, no other rank's words are among it."""
    return (run_dir / "log.txt").read_text()


def stopped(pid):
    """Whether a process that got SIGSTOP stands still, with all of its threads."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def names(run_dir):
    """Of the checkpoints."""
    return sorted(path.name for path in (run_dir / "checkpoints").glob("checkpoint-*.h5"))


def goes_on(mpi, folder, lost=0):
    """Whether the run in the folder `run` goes on for ten updates, with a record without gap or duplicate.

    Of each client, `lost` rounds may be missing: the one in which it died.
    """
    before = checkpoint.newest(folder / "run").snapshot
    done = run_asyncfeded("resume", "run", f"limits.updates={before.updates + 10}", cwd=folder, env=mpi.env)
    assert done.status == 0, str(done)
    updates = record.read_record(folder / "run").updates
    assert updates["version"].tolist() == list(range(1, before.updates + 11))
    for client in range(len(before.clients)):
        rounds = updates["round"][updates["client"] == client].tolist()
        assert rounds == sorted(set(rounds))
        assert rounds[-1] + 1 - len(rounds) <= lost


def broken(mpi, folder, code, *overrides):
    """The command that starts run.toml on 3 ranks after `code`, in which RANK is the rank."""
    rank = 'import os\nRANK = int(os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"])\n'
    (folder / "broken.py").write_text(f"{rank}{code}\nfrom asyncfeded.cli import main\nmain()\n")
    return mpi.command((3, [sys.executable, "broken.py", "train", "run.toml", "run_dir=run", *overrides]))


@pytest.fixture
def disk(jobs):
    """Mounts a small disk in a folder `disk`: call it with the options of the mount, again to change them."""
    mounted = []

    def mount(options):
        if os.geteuid() or not shutil.which("mount"):
            pytest.skip("only root can mount a disk to fill it")
        (jobs / "disk").mkdir(exist_ok=True)
        remount = "remount," if mounted else ""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", remount + options, "tmpfs", jobs / "disk"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        mounted.append(options)
        return jobs / "disk"

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", jobs / "disk"], check=True, timeout=60)
