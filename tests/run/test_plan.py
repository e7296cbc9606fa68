"""Reading a run on every rank, and which of them is the server, with real ranks."""

import os
import socket
import sys

import pytest

from asyncfeded.config import Config
from asyncfeded.mpi.seats import deal
from asyncfeded.run.plan import fix_groups
from asyncfeded.store import record
from conftest import run, run_asyncfeded

HOST = socket.gethostname()

TOML = """
task = {name = "synthetic", samples_max = 200}
clock = "virtual"
clients = 3
limits.updates = 30
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run.toml").write_text(TOML)
    return tmp_path


@pytest.fixture(scope="module")
def usual(own_mpi, tmp_path_factory):
    """The model of the run with rank 0 as server."""
    folder = tmp_path_factory.mktemp("usual")
    (folder / "run.toml").write_text(TOML)
    done = own_mpi.train(4, "run.toml", "run_dir=run", cwd=folder)
    assert done.status == 0, str(done)
    return done.result["model_sha256"]


def test_another_rank_may_be_the_server_and_the_model_is_the_same_to_the_bit(mpi, usual, folder):
    done = mpi.train(4, "run.toml", "server=2", "run_dir=run", cwd=folder)
    assert done.status == 0, str(done)
    assert done.result["model_sha256"] == usual
    places = record.read_record(folder / "run").attributes["placement"]
    assert places["role"].tolist() == [b"worker", b"worker", b"server", b"worker"]


def test_the_map_is_printed_before_training_and_told_by_info(own_mpi, folder):
    done = own_mpi.train(3, "run.toml", "server=1", "run_dir=run", cwd=folder)
    assert done.status == 0, str(done)
    lines = (folder / "run" / "log.txt").read_text().splitlines()  # what the server said, and no other rank between
    first = next(i for i, line in enumerate(lines) if line.endswith("cores  threads"))
    lines[first] = lines[first][len("2026-01-01 00:00:00 ") :]
    assert first < next(i for i, line in enumerate(lines) if "updates (" in line)
    rows = [line.split() for line in lines[first + 1 : first + 4]]
    cores = f"{len(os.sched_getaffinity(0)) / 3:.3g}"
    assert rows == [[str(i), HOST, role, "cpu", cores, "1"] for i, role in enumerate(["worker", "server", "worker"])]
    told = run_asyncfeded("info", "run", cwd=folder)
    assert told.status == 0, str(told)
    assert "\n".join(lines[first : first + 4]) in told.stdout
    assert "updates      30\n" in told.stdout


def test_a_replay_of_a_run_with_another_server_needs_fewer_ranks(own_mpi, folder):
    done = own_mpi.train(3, "run.toml", "server=2", "run_dir=run", cwd=folder)
    again = run_asyncfeded("replay", "run", "--ranks", 2, cwd=folder, env=own_mpi.env)
    assert again.status == 0, str(again)
    assert again.result["model_sha256"] == done.result["model_sha256"]


# --- refusals


def refused(done, sentence):
    assert done.status != 0, str(done)
    assert done.stderr.count("asyncfeded: ") == 1, str(done)
    assert sentence in done.stderr, str(done)
    assert "Traceback" not in done.stderr, str(done)


def test_a_server_that_is_not_there_is_refused(own_mpi, folder):
    done = own_mpi.train(3, "run.toml", "server=3", cwd=folder)
    refused(done, "asyncfeded: server = 3, but the ranks are 0 to 2; set server to one of them\n")
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("odd", [0, 2])
def test_ranks_that_differ_about_the_server_refuse(own_mpi, folder, odd):
    """Of three parts of a job one names another server: before anything is rearranged."""
    parts = [(1, ["asyncfeded", "train", "run.toml", f"server={2 if part == odd else 1}"]) for part in range(3)]
    parts = [(ranks, [sys.executable, "-m", *command]) for ranks, command in parts]
    done = run(own_mpi.command(*parts), folder, own_mpi.env)
    refused(done, f"rank 0 on {HOST} and rank {odd or 1} on {HOST} have different configs (config: ")


def test_a_problem_of_a_server_elsewhere_is_told_with_its_rank(own_mpi, folder):
    (folder / "run").mkdir()
    (folder / "run" / "record.h5").touch()
    done = own_mpi.train(3, "run.toml", "server=2", "run_dir=run", cwd=folder)
    refused(done, f"asyncfeded: rank 2 on {HOST}: run_dir = 'run' holds a run already")


BROKEN = """
from asyncfeded import cli
from asyncfeded.run import serve

def fail(*_):
    raise KeyError("a bug")

serve.serve = fail
cli.main()
"""


def test_a_server_elsewhere_that_raises_is_told_as_the_server(mpi, folder):
    (folder / "broken.py").write_text(BROKEN)
    done = run(mpi.command((3, [sys.executable, "broken.py", "train", "run.toml", "server=2"])), folder, mpi.env)
    assert done.status != 0, str(done)
    assert f"asyncfeded: rank 2 (server) on {HOST}: uncaught error, ending the job\nTraceback" in done.stderr, str(done)


# --- ranks that train together


CONFIG = Config(ranks_per_client="node", limits={"updates": 1})


@pytest.mark.parametrize(
    ("hosts", "clock", "ranks_per_client"),
    [(["a", "b", "b"], "virtual", 2), (["a", "b", "b", "c"], "wall", "node"), (["a", "b", "c"], "wall", 1)],
)
def test_the_ranks_of_a_client_are_a_number_where_hosts_have_as_many(hosts, clock, ranks_per_client):
    """So that a resume on other hosts goes on with as many."""
    config = CONFIG.model_copy(update={"clock": clock})
    assert fix_groups(config, deal(hosts, ranks_per_client="node")).ranks_per_client == ranks_per_client


def test_unequal_hosts_are_refused_where_the_result_must_not_depend_on_them():
    config, seats = CONFIG.model_copy(update={"clock": "virtual"}), deal(["a", "b", "b", "c"], ranks_per_client="node")
    with pytest.raises(ValueError, match=r"ranks_per_client = node: the hosts have 1 to 2 ranks for clients"):
        fix_groups(config, seats)


def test_clients_of_several_ranks_give_the_same_bits_wherever_they_train(own_mpi, mpi, folder):
    """Three clients on one group and on two, which the map tells."""
    one = own_mpi.train(3, "run.toml", "run_dir=one", "ranks_per_client=2", "training.momentum=0.5", cwd=folder)
    two = mpi.train(5, "run.toml", "run_dir=two", "ranks_per_client=2", "training.momentum=0.5", cwd=folder)
    assert (one.status, two.status) == (0, 0), f"{one}\n{two}"
    assert one.result["model_sha256"] == two.result["model_sha256"]
    assert record.read_record(folder / "two").attributes["placement"]["group"].tolist() == [-1, 0, 0, 1, 1]
