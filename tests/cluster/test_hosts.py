"""Runs over several hosts, started by mpiexec as over ssh, over TCP."""

import os
import shlex
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from asyncfeded.store import record
from cluster.conftest import HOSTFILE, TOML, is_whole
from conftest import run

ASYNCFEDED = Path(sys.executable).with_name("asyncfeded")


@pytest.fixture
def folder(tmp_path):
    """A folder with run.toml."""
    (tmp_path / "run.toml").write_text(TOML)
    return tmp_path


def command(hosts, mpi, folder, *arguments, more=0):
    """`asyncfeded train run.toml ARGUMENTS` on every host, from the first: the command and its environment.

    Under MPICH the first so many hosts may have one rank `more`, behind those of all.
    """
    ranks = len(hosts.names) + more
    if mpi.vendor.startswith("Open MPI"):
        launch = ["--hostfile", HOSTFILE, "--map-by", "ppr:1:node", "--bind-to", "none", "-x", "MPI4PY_LIBMPI"]
        env = {"PRTE_MCA_plm_ssh_agent": str(hosts.remote), "MPI4PY_LIBMPI": mpi.library}
    else:
        launch = ["-launcher", "ssh", "-launcher-exec", hosts.remote, "-f", HOSTFILE, "-ppn", 1]
        env = {"UCX_TLS": "tcp,self"}  # it would find the memory that these hosts share
    mpiexec = [mpi.mpiexec[0], *launch, "-n", ranks, ASYNCFEDED, "train", "run.toml", *arguments]
    line = f"cd {folder} && {shlex.join(map(str, mpiexec))}"
    return [hosts.remote, hosts.names[0], line], mpi.env | env


def train(hosts, mpi, folder, *arguments, more=0):
    """The same, to its end."""
    line, env = command(hosts, mpi, folder, *arguments, more=more)
    return run(line, folder, env)


def test_hosts_end_with_all_on_them_when_their_group_is_told_to(several_hosts, tmp_path):
    """As `timeout` tells a command and what it has started."""
    python, links = sys.executable, Path(__file__).parents[2] / "launch" / "links.py"
    (tmp_path / "mpiexec").write_text("#!/bin/sh\necho $$ > pid; exec sleep 1000\n")
    (tmp_path / "mpiexec").chmod(0o755)
    (tmp_path / "python").symlink_to(python)
    line = [tmp_path / "python", links, "100", "1", "bench"]
    job = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    ended = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (pid := (tmp_path / "pid").read_text().strip()):
        assert job.poll() is None
        assert time.monotonic() < ended
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGTERM)
    assert (job.communicate(timeout=60)[1], job.returncode) == ("", 143)
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < ended
        time.sleep(0.05)


def test_mpiexec_puts_a_rank_on_every_host(hosts, other_mpi, folder):
    done = train(hosts, other_mpi, folder, "run_dir=run")
    assert done.status == 0, str(done)
    assert "3 clients on 3 ranks of 4 host(s)" in done.stderr, str(done)
    assert record.read_record(folder / "run").attributes["placement"]["host"].astype(str).tolist() == hosts.names
    assert is_whole(folder / "run", 12, 3)


def test_the_ranks_of_a_host_are_a_client(hosts, own_mpi, folder):
    """The server is the rank of the second host; the first has two ranks."""
    done = train(hosts, own_mpi, folder, "run_dir=run", "server=1", "ranks_per_client=node", more=1)
    assert done.status == 0, str(done)
    assert "3 clients on 4 ranks of 4 host(s)" in done.stderr, str(done)
    placement = record.read_record(folder / "run").attributes["placement"]
    assert placement["host"].astype(str).tolist() == [*hosts.names, hosts.names[0]]
    assert placement["group"].tolist() == [0, -1, 1, 2, 0]
    assert is_whole(folder / "run", 12, 3)


def test_a_thin_link_slows_its_own_client_alone(hosts, own_mpi, folder):
    """A model of 2.8 MB takes 2.3 s each way at 10 Mbit/s: a server that waited for it would serve the others about once."""
    hosts.thin("node2", "10mbit")
    model = ("task.model=mlp", "task.hidden=10000", "task.devices=3", "task.samples_max=100")
    done = train(hosts, own_mpi, folder, *model, "limits.updates=0", "limits.seconds=25", "run_dir=run")
    assert done.status == 0, str(done)
    clients = record.read_record(folder / "run").updates["client"]
    thin = np.flatnonzero(clients == 1)
    assert len(thin) >= 2, str(done)
    for before, after in pairwise(thin):
        between = np.bincount(clients[before:after], minlength=3)
        assert between[[0, 2]].min() >= 5, str(done)


def test_a_host_cut_off_in_mid_run_does_not_hold_up_the_others(hosts, mpi, folder):
    """No MPI reports it: TCP waits. The client is given up for its silence, and the run ends; mpiexec may linger."""
    line, env = command(hosts, mpi, folder, "limits.updates=0", "limits.seconds=30", "faults.patience_s=2", "run_dir=run")
    with (folder / "out.txt").open("w") as out:
        job = subprocess.Popen(line, cwd=folder, env=env, stdout=out, stderr=out)
    try:
        counts = until(job, folder, lambda counts: counts.min() > 0)
        hosts.cut("node2")
        counts = until(job, folder, lambda now: (now[[0, 2]] >= counts[[0, 2]] + 10).all())
        later = until(job, folder, lambda now: (now[[0, 2]] >= counts[[0, 2]] + 10).all())
        assert later[1] <= counts[1] + 1  # one may have been under way
        until(job, folder, lambda now: (folder / "run" / "result.json").exists())
        assert "goes on without client 1: rank 2 was silent for " in (folder / "run" / "log.txt").read_text()
    finally:
        hosts.end()
        job.wait(30)


def until(job, folder, what, seconds=100):
    """Updates of each client in the record, once something is so of them."""
    deadline = time.monotonic() + seconds
    rows = folder / "run" / "record.h5.updates"
    while True:
        clients = np.fromfile(rows, record.UPDATE)["client"] if rows.exists() else np.zeros(0, int)
        counts = np.bincount(clients, minlength=3)
        if what(counts):
            return counts
        assert job.poll() is None, (folder / "out.txt").read_text()
        assert time.monotonic() < deadline, f"{counts}\n{(folder / 'out.txt').read_text()}"
        time.sleep(0.1)
