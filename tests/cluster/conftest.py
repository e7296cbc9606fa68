"""A Slurm, a Grid Engine and several hosts on this machine, for the tests of this folder."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from asyncfeded.store import record
from cluster.hosts import Hosts
from cluster.slurm import Slurm

HOSTFILE = Path(__file__).parents[2] / "launch" / "hosts.example"
TOML = """
device = "cpu"
threads = 1
[limits]
updates = 12
[task]
name = "synthetic"
[training]
epochs = 1
[rule]
epochs_max = 2
"""


@pytest.fixture(scope="session")
def nodes():
    """A Slurm of four nodes (cluster/slurm.py)."""
    needs("slurmctld", "slurmd", "srun", "setpriv")
    with Slurm() as slurm:
        yield slurm


@pytest.fixture
def slurm(nodes):
    """The same, whose nodes are free again when a test has failed."""
    yield nodes
    nodes.cancel()


@pytest.fixture(scope="session")
def several_hosts():
    """That this machine can be several (cluster/hosts.py)."""
    needs("ip", "tc", "nsenter", "unshare", "setpriv")
    if os.geteuid() or subprocess.run(["unshare", "--net", "--uts", "--mount", "true"]).returncode:
        pytest.skip("only root may make hosts")


@pytest.fixture
def hosts(several_hosts):
    """The hosts that launch/hosts.example names."""
    names = [line for line in HOSTFILE.read_text().splitlines() if not line.startswith("#")]
    with Hosts(names) as hosts:
        yield hosts


def needs(*names):
    for name in names:
        if not shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
            pytest.skip(f"no {name}; on Debian: see .ci/run for the packages")


def is_whole(run_dir, updates, clients):
    """Whether a run's record has no gap: every version once, every client's rounds in order."""
    rows = record.read_record(run_dir).updates
    assert rows["version"].tolist() == list(range(1, updates + 1))
    assert set(rows["client"].tolist()) <= set(range(clients))
    assert (np.diff(rows["time_s"]) >= 0).all()
    for client in range(clients):
        rounds = rows["round"][rows["client"] == client]
        assert rounds.tolist() == list(range(len(rounds)))
    return True
