"""What the program refuses, in one sentence."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from conftest import run, run_asyncfeded
from run.commands import HOST, PYTHON_M, refused


def test_one_rank_is_told_what_to_type(own_mpi, folder):
    refused(run_asyncfeded("train", "run.toml", cwd=folder), "  asyncfeded train FILE.toml --ranks 5\n")


def test_one_rank_of_mpiexec_is_told_what_to_type(mpi, folder):
    command = mpi.command((1, [*PYTHON_M, "train", "run.toml"]))
    refused(run(command, folder, mpi.env), "mpiexec -n 5 asyncfeded train FILE.toml\n")


def test_ranks_1_is_refused(own_mpi, folder):
    refused(own_mpi.train(1, "run.toml", cwd=folder), "--ranks 1: at least 2 are needed, 1 server and 1 client")


LATE = """
import atexit, os, sys, time
from pathlib import Path
late, others = sys.argv.pop(1) == "True", int(sys.argv.pop(1))
rank = os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"]
if rank != "0":
    atexit.register(Path("ended-" + rank).write_text, str(os.getpid()))
from asyncfeded.cli import main
if rank == "0" and late:
    deadline = time.monotonic() + 20
    # Until their launcher has taken notice of all others.
    while time.monotonic() < deadline:
        ended = [path.read_text() for path in Path().glob("ended-*")]
        if len(ended) == others and not any(Path("/proc", process).exists() for process in ended):
            break
        time.sleep(0.01)
main()
"""


@pytest.fixture
def late(folder):
    """`asyncfeded` whose rank 0, which tells what is wrong, starts only when the other ranks have ended."""
    (folder / "late.py").write_text(LATE)
    return lambda is_late, ranks, *arguments: [sys.executable, "late.py", str(is_late), str(ranks - 1), *arguments]


@pytest.mark.parametrize("is_late", [False, True])
def test_ranks_inside_mpiexec_is_refused(mpi, folder, late, is_late):
    command = mpi.command((2, late(is_late, 2, "train", "run.toml", "--ranks", "2")))
    refused(run(command, folder, mpi.env), "has started this already; leave out --ranks, or the launcher\n")


@pytest.mark.parametrize(("clients", "ranks"), [(5, 6), (1, 2)])
def test_other_clients_than_ranks_are_refused(own_mpi, folder, clients, ranks):
    refused(
        own_mpi.train(3, "run.toml", f"clients={clients}", cwd=folder),
        f"clients = {clients}, but 3 ranks make 1 server and 2 clients; start it with --ranks {ranks} "
        f"(mpiexec -n {ranks}), or set clients=2\n",
    )
    assert sorted(path.name for path in folder.iterdir()) == ["run.toml"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rule.name=fedsgd", "rule.name = 'fedsgd': unknown rule, expected one of: fedavg, "),
        ("task.name=cats", "task.name = 'cats': unknown task, expected one of: digits, federated_h5"),
    ],
)
def test_an_unknown_name_is_refused(own_mpi, folder, override, sentence):
    refused(own_mpi.train(2, "run.toml", override, cwd=folder), sentence)


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(own_mpi, folder):
    held = folder / "held"
    held.mkdir()
    (held / "record.h5").write_bytes(b"precious")
    refused(own_mpi.train(2, "run.toml", "run_dir=held", cwd=folder), "run_dir = 'held' holds a run already")
    assert [(path.name, path.read_bytes()) for path in held.iterdir()] == [("record.h5", b"precious")]


def test_a_folder_that_cannot_be_made_is_refused(own_mpi, folder):
    done = own_mpi.train(2, "run.toml", "run_dir=run.toml/run", cwd=folder)
    refused(done, "run_dir = 'run.toml/run' cannot be written: File exists; choose another folder\n")


BY_WRITER = ("task.name=federated_h5", "task.train=train.h5", "task.test=test.h5", "task.classes=3")


@pytest.fixture
def written(folder):
    """Data of four writers, in a file for training and one for testing; the last writer's training data has no label."""
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            for writer in "abcd":
                file[f"examples/{writer}/pixels"] = rng.random((5, 8, 8), np.float32)
                file[f"examples/{writer}/label"] = rng.integers(0, 3, 5)
    with h5py.File(folder / "train.h5", "a") as file:
        del file["examples/d/label"]
    return folder


def test_broken_data_of_one_client_is_refused_before_training(own_mpi, written):
    done = own_mpi.train(3, "run.toml", *BY_WRITER, "run_dir=run", cwd=written)
    refused(done, "train.h5: writer d: no field 'label', it has pixels; name the right one with task.label\n")
    assert not (written / "run").exists()


def test_a_refusal_leaves_a_folder_that_was_there(own_mpi, written):
    (written / "run").mkdir()
    refused(own_mpi.train(3, "run.toml", *BY_WRITER, "run_dir=run", cwd=written), "no field 'label'")
    assert (written / "run").is_dir()


def test_ranks_with_different_configs_refuse_and_name_both_sides(mpi, folder):
    train = [*PYTHON_M, "train", "run.toml"]
    done = run(mpi.command((1, [*train, "seed=1"]), (2, [*train, "seed=2"])), folder, mpi.env)
    refused(done, f"rank 0 on {HOST} and rank 1 on {HOST} have different configs")
    assert [path.name for path in folder.iterdir()] == ["run.toml"]


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(("starter", "user"), [("own_mpi", "other_mpi"), ("other_mpi", "own_mpi")])
def test_the_mpiexec_of_another_mpi_is_recognised(request, folder, late, starter, user, is_late):
    starter, user = request.getfixturevalue(starter), request.getfixturevalue(user)
    if starter.vendor.startswith("Open MPI") == user.vendor.startswith("Open MPI"):
        pytest.skip("both MPIs are of one family: they can start each other")
    env = starter.env | {"MPI4PY_LIBMPI": user.library}
    done = run(starter.command((3, late(is_late, 3, "train", "run.toml"))), folder, env, timeout=60)
    name = "Open MPI's mpiexec" if starter.vendor.startswith("Open MPI") else "the mpiexec of MPICH or Intel MPI"
    refused(done, f"asyncfeded: {name} started 3 ranks, but mpi4py uses {user.vendor} ({user.library})")
    assert f"Start with the mpiexec of that library: {user.mpiexec[0]};" in done.stderr


def test_a_replay_of_nothing_is_refused(tmp_path):
    done = run_asyncfeded("replay", tmp_path / "nowhere", cwd=tmp_path)
    refused(done, "record.h5: no such file; give the folder of a run (run_dir)\n")


def test_a_machine_without_mpi_is_told_what_to_install(own_mpi, folder):
    done = run_asyncfeded("train", "run.toml", cwd=folder, env=own_mpi.env | {"MPI4PY_LIBMPI": "/nonexistent/libmpi.so"})
    refused(done, "no MPI library can be loaded")
    assert "pip install 'asyncfeded[mpich]'" in done.stderr


def test_a_key_behind_dashes_is_told_to_stand_without_them(tmp_path):
    done = run_asyncfeded("train", "run.toml", "--ranks", "3", "--limits.seconds=5", cwd=tmp_path)
    assert done.status == 2
    assert done.stderr == "asyncfeded: --limits.seconds: a key is written without dashes: limits.seconds=VALUE\n"


@pytest.mark.parametrize("command", ["keys", "--help", "info"])
def test_a_command_whose_output_cannot_be_written_says_so(command):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*PYTHON_M, command], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "asyncfeded: the output cannot be written: No space left on device\n")
