"""Runs on a real Grid Engine, over two hosts that it deals out, on which qrsh starts the ranks."""

import shlex
import sys
from pathlib import Path

import pytest

from cluster.conftest import TOML, is_whole, needs
from cluster.grid_engine import GridEngine
from cluster.hosts import Hosts

ASYNCFEDED = Path(sys.executable).with_name("asyncfeded")


@pytest.fixture(scope="module")
def grid_engine(several_hosts):
    needs("qsub", "qrsh", "sge_qmaster", "sge_execd", "setpriv")
    with Hosts(["h0", "h1"]) as hosts, GridEngine(hosts) as grid_engine:
        yield grid_engine


def test_a_job_of_two_hosts_trains_on_both(grid_engine, mpi, tmp_path):
    """`--ranks` reads the job's file of hosts, and starts the ranks by `qrsh -inherit`, as parts of the job."""
    (tmp_path / "run.toml").write_text(TOML)
    env = {"UCX_TLS": "tcp,self", "MPI4PY_LIBMPI": mpi.library}  # UCX would find the memory that these hosts share
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())
    said = grid_engine.run(tmp_path, 3, f"{exports}{ASYNCFEDED} train run.toml --ranks 3 run_dir=run")
    assert said.endswith("\nstatus 0\n"), said
    assert f"2 clients on 2 ranks of 2 host(s), {mpi.vendor}" in said
    assert is_whole(tmp_path / "run", 12, 2)
