"""Runs over several hosts, started by mpiexec as over ssh, over TCP."""

import shlex
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from asyncfeded import record
from cluster.conftest import HOSTFILE, TOML, is_whole
from conftest import run

ASYNCFEDED = Path(sys.executable).with_name("asyncfeded")


@pytest.fixture
def folder(tmp_path):
    """A folder with run.toml."""
    (tmp_path / "run.toml").write_text(TOML)
    return tmp_path


def train(hosts, mpi, folder, *arguments):
    """`asyncfeded train run.toml ARGUMENTS` on every host, from the first."""
    ranks = len(hosts.names)
    if mpi.vendor.startswith("Open MPI"):
        launch = ["--hostfile", HOSTFILE, "--map-by", "ppr:1:node", "--bind-to", "none", "-x", "MPI4PY_LIBMPI"]
        env = {"PRTE_MCA_plm_ssh_agent": str(hosts.remote), "MPI4PY_LIBMPI": mpi.library}
    else:
        launch = ["-launcher", "ssh", "-launcher-exec", hosts.remote, "-f", HOSTFILE, "-ppn", 1]
        env = {"UCX_TLS": "tcp,self"}  # it would find the memory that these hosts share
    command = [mpi.mpiexec[0], *launch, "-n", ranks, ASYNCFEDED, "train", "run.toml", *arguments]
    line = f"cd {folder} && {shlex.join(map(str, command))}"
    return run([hosts.remote, hosts.names[0], line], folder, mpi.env | env)


def test_mpiexec_puts_a_rank_on_every_host(hosts, mpi, folder):
    done = train(hosts, mpi, folder, "run_dir=run")
    assert done.status == 0, str(done)
    assert "3 clients on 3 ranks of 4 host(s)" in done.stderr, str(done)
    assert list(record.read(folder / "run").attributes["hosts"]) == hosts.names
    assert is_whole(folder / "run", 12, 3)


def test_a_thin_link_slows_its_own_client_alone(hosts, mpi, folder):
    """A model of 2.8 MB takes 2.3 s each way at 10 Mbit/s: a server that waited for it would serve the others about once."""
    hosts.thin("node2", "10mbit")
    model = ("task.model=mlp", "task.hidden=10000", "task.devices=3", "task.samples_max=100")
    done = train(hosts, mpi, folder, *model, "limits.updates=0", "limits.seconds=20", "run_dir=run")
    assert done.status == 0, str(done)
    clients = record.read(folder / "run").updates["client"]
    thin = np.flatnonzero(clients == 1)
    assert len(thin) >= 2, str(done)
    for before, after in pairwise(thin):
        between = np.bincount(clients[before:after], minlength=3)
        assert between[[0, 2]].min() >= 5, str(done)
