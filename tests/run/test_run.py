"""The program as a user starts it: real runs under every MPI, what it refuses, and how it ends when something breaks."""

import hashlib
import json
import socket
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from asyncfeded import config
from asyncfeded.store import record
from asyncfeded.tasks.synthetic import Synthetic
from conftest import run, run_asyncfeded

TOML = """
[limits]
updates = 12
[task]
name = "synthetic"
[training]
epochs = 1
[rule]
name = "asyncfeded"
epochs_max = 2
[evaluation]
every_s = 0.1
"""
PYTHON_M = [sys.executable, "-m", "asyncfeded"]
HOST = socket.gethostname()


def write_toml(folder):
    (folder / "run.toml").write_text(TOML)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with run.toml, for runs that several tests look at."""
    return write_toml(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def folder(tmp_path):
    """A folder with run.toml."""
    return write_toml(tmp_path)


# A run that ends well


@pytest.fixture(scope="module", params=[2, 3, 5])
def ranks(request):
    return request.param


@pytest.fixture(scope="module")
def finished(mpi, ranks, runs):
    """A run, and its folder."""
    run_dir = runs / f"{mpi.vendor.split()[0]}-{ranks}"
    return mpi.train(ranks, "run.toml", f"run_dir={run_dir}", cwd=runs), run_dir


def test_the_status_is_0(finished):
    assert finished[0].status == 0, str(finished[0])


def test_the_last_line_of_stdout_is_json_with_the_figures(finished):
    done, run_dir = finished
    figures = done.result
    numbers = {"seconds", "updates_per_s", "accuracy", "loss", "gamma_median", "server_busy", "server_bytes"}
    assert numbers | {"run_dir", "updates", "model_sha256"} <= set(figures)
    assert figures["run_dir"] == str(run_dir)
    assert all(np.isfinite(figures[name]) and figures[name] >= 0 for name in numbers)
    assert figures["updates_per_s"] == pytest.approx(12 / figures["seconds"], rel=0.01)
    assert 0 < figures["accuracy"] <= 1
    assert 0 < figures["server_busy"] < 1


def test_rank_0_alone_writes_to_stdout(finished):
    done, _ = finished
    assert done.stdout.count('"run_dir"') == done.stdout.count("compute s") == 1


def test_the_limit_of_updates_is_exact(finished):
    done, run_dir = finished
    assert done.result["updates"] == len(record.read_record(run_dir).updates) == 12


def test_the_record_is_of_all_clients_in_order(finished, ranks):
    updates = record.read_record(finished[1]).updates
    assert updates["version"].tolist() == list(range(1, 13))
    assert set(updates["client"].tolist()) <= set(range(ranks - 1))
    assert (np.diff(updates["time_s"]) > 0).all()
    assert (updates["tau"] == updates["version"] - 1 - updates["base_version"]).all()
    assert (updates["compute_s"] > 0).all()


def test_the_record_names_the_host_of_every_rank(finished, ranks):
    assert record.read_record(finished[1]).attributes["placement"]["host"].tolist() == [HOST.encode()] * ranks


def test_the_record_ends_with_the_score_of_the_final_model(finished):
    done, run_dir = finished
    last = record.read_record(run_dir).evaluations[-1]
    assert last["version"] == 12
    assert (done.result["accuracy"], done.result["loss"]) == (round(last["accuracy"], 6), round(last["loss"], 6))


def test_the_saved_model_has_the_hash_that_was_printed(finished):
    done, run_dir = finished
    with h5py.File(run_dir / "model.h5") as file:
        weights = b"".join(file[name][...].astype(np.float32).tobytes() for name in Synthetic().model().state_dict())
        assert file.attrs["version"] == 12
    assert hashlib.sha256(weights).hexdigest() == done.result["model_sha256"]


def test_the_saved_config_says_all_and_loads_again(finished, ranks):
    path = finished[1] / "config.toml"
    again = config.load_config(path, [])
    assert again.to_toml() == path.read_text() == record.read_record(finished[1]).attributes["config"]
    assert (again.clients, again.task["alpha"], again.rule["gamma_bar"]) == (ranks - 1, 1.0, 3.0)


def test_the_log_tells_how_the_run_ended(finished):
    assert "stopped: 12 updates were merged (limits.updates)" in (finished[1] / "log.txt").read_text()


def test_the_result_is_kept_in_the_folder(finished):
    assert json.loads((finished[1] / "result.json").read_text()) == finished[0].result


def test_mpiexec_may_be_typed_by_hand(mpi, folder):
    asyncfeded = Path(sys.executable).with_name("asyncfeded")
    command = mpi.command((3, [asyncfeded, "train", "run.toml", "run_dir=run", "limits.updates=5"]))
    done = run(command, folder, mpi.env)
    assert done.status == 0, str(done)
    assert done.result["updates"] == len(record.read_record(folder / "run").updates) == 5


def test_without_a_run_dir_the_folder_is_named_by_time_task_and_rule(own_mpi, folder):
    done = own_mpi.train(2, "run.toml", "limits.updates=1", cwd=folder)
    (made,) = (folder / "runs").iterdir()
    assert done.result["run_dir"] == f"runs/{made.name}"
    assert made.name.endswith("-synthetic-asyncfeded")


def test_a_slowed_client_makes_fewer_updates(own_mpi, folder):
    overrides = ("run_dir=run", "heterogeneity.slowdown=[1,8]", "rule.kappa=0", "limits.updates=20")
    done = own_mpi.train(3, "run.toml", *overrides, cwd=folder)
    assert done.status == 0, str(done)
    fast, slow = np.bincount(record.read_record(folder / "run").updates["client"], minlength=2)
    assert fast > slow


@pytest.fixture(scope="module")
def seeded(own_mpi, runs):
    """Hashes of the models of three runs with one client: seed 3, seed 3 again, seed 4."""
    return [
        own_mpi.train(2, "run.toml", f"seed={seed}", "limits.updates=2", f"run_dir={name}", cwd=runs).result["model_sha256"]
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    ]


def test_the_same_seed_gives_the_same_model(seeded):
    assert seeded[0] == seeded[1]


def test_another_seed_gives_another_model(seeded):
    assert seeded[0] != seeded[2]


def test_plot_draws_a_run(seeded, runs):
    done = run_asyncfeded("plot", "first", cwd=runs)
    assert done.status == 0, str(done)
    picture = (runs / done.stdout.strip()).read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(picture) > 20_000
    assert done.stdout.strip() == "first/run.png"


def test_plot_of_a_folder_without_a_run_is_refused(runs):
    done = run_asyncfeded("plot", ".", cwd=runs)
    assert (done.status, done.stderr) == (2, "asyncfeded: record.h5: no such file; give the folder of a run (run_dir)\n")


def test_info_names_the_mpi_and_its_mpiexec(mpi, tmp_path):
    done = run_asyncfeded("info", cwd=tmp_path, env=mpi.env)
    assert done.status == 0, str(done)
    rows = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1].strip() for line in done.stdout.splitlines()}
    assert rows["MPI"] == f"{mpi.vendor} ({mpi.library})"
    assert rows["mpiexec"] == mpi.mpiexec[0]
    assert rows["kernel"].startswith(("compiled", "torch twin"))


def test_keys_lists_every_key(own_mpi, tmp_path):
    done = run_asyncfeded("keys", cwd=tmp_path)
    assert done.status == 0, str(done)
    keys = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    expected = {key for key, _, _ in config.describe_keys(config.Config)}
    assert expected | {"rule.name", "rule.lambda", "rule.gamma_bar", "task.name", "task.split", "task.train"} <= keys


# What is refused


def refused(done, sentence):
    """Whether the program has refused in one sentence, once for all ranks, with status 2."""
    assert done.status == 2, str(done)
    assert done.stderr.count(sentence) == 1, str(done)
    assert done.stderr.count("asyncfeded: ") == 1, str(done)
    assert "Traceback" not in done.stderr, str(done)
    assert done.stdout == ""


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
    atexit.register(Path("ended-" + rank).touch)
from asyncfeded.cli import main
if rank == "0" and late:
    deadline = time.monotonic() + 20
    while len(list(Path().glob("ended-*"))) < others and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1)
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
    refused(run(command, folder, mpi.env), "has started this already; leave out --ranks, or mpiexec\n")


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
    refused(done, "train.h5: writer d: no field 'label', expected pixels and label\n")
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


# Runs whose order is given


VIRTUAL = ("clock=virtual", "clients=4", "limits.updates=25", "heterogeneity.error_probability=0.2")


@pytest.fixture(scope="module")
def virtual(own_mpi, runs):
    """A run on the virtual clock, on one worker."""
    return own_mpi.train(2, "run.toml", *VIRTUAL, f"run_dir={runs / 'virtual'}", cwd=runs).result


def same_rows(one, other):
    """Two records, but for what the wall clock measured."""
    told = [name for name in one.updates.dtype.names if name not in ("compute_s", "wait_s", "service_s")]
    return np.array_equal(one.updates[told], other.updates[told]) and np.array_equal(one.evaluations, other.evaluations)


@pytest.mark.parametrize("ranks", [3, 4, 5])
def test_a_virtual_run_is_the_same_to_the_bit_on_any_number_of_ranks(own_mpi, virtual, runs, ranks):
    run_dir = runs / f"virtual-{ranks}"
    done = own_mpi.train(ranks, "run.toml", *VIRTUAL, f"run_dir={run_dir}", cwd=runs).result
    assert done["model_sha256"] == virtual["model_sha256"]
    assert same_rows(record.read_record(run_dir), record.read_record(runs / "virtual"))


def test_a_virtual_run_is_the_same_to_the_bit_under_another_mpi(other_mpi, virtual, runs):
    run_dir = runs / "virtual-mpi"
    done = other_mpi.train(3, "run.toml", *VIRTUAL, f"run_dir={run_dir}", cwd=runs).result
    assert done["model_sha256"] == virtual["model_sha256"]
    assert same_rows(record.read_record(run_dir), record.read_record(runs / "virtual"))


def test_another_seed_is_another_virtual_run(own_mpi, virtual, runs):
    done = own_mpi.train(2, "run.toml", *VIRTUAL, "seed=9", f"run_dir={runs / 'virtual-9'}", cwd=runs).result
    assert done["model_sha256"] != virtual["model_sha256"]


def test_a_virtual_run_stops_at_its_virtual_time(own_mpi, runs):
    """The clients' rounds take 3 s: three of each fit in 10 s, and none counts that comes later."""
    limits = ("limits.updates=0", "limits.seconds=10", "heterogeneity.round_s=[3]", "evaluation.every_s=4", "rule.kappa=0")
    run_dir = runs / "virtual-limit"
    command = ("clock=virtual", "clients=3", *limits, f"run_dir={run_dir}")
    done = own_mpi.train(3, "run.toml", *command, cwd=runs).result
    assert (done["updates"], done["seconds"]) == (9, 10.0)
    assert record.read_record(run_dir).updates["time_s"].tolist() == [3.0] * 3 + [6.0] * 3 + [9.0] * 3
    assert record.read_record(run_dir).updates["client"].tolist() == [0, 1, 2] * 3
    assert record.read_record(run_dir).evaluations["time_s"].tolist() == [0.0, 4.0, 8.0, 10.0]


def test_many_clients_train_on_two_workers(own_mpi, runs):
    crowd = (
        "clock=virtual",
        "clients=100",
        "limits.updates=110",
        "task.devices=100",
        "heterogeneity.round_s=[3]",
        "evaluation.every_s=1e3",
    )
    run_dir = runs / "crowd"
    own_mpi.train(3, "run.toml", *crowd, f"run_dir={run_dir}", cwd=runs)
    assert set(record.read_record(run_dir).updates["client"].tolist()) == set(range(100))


@pytest.mark.parametrize("name", ["fedavg", "fedbuff", "fadas", "ca2fl"])
def test_every_kind_of_rule_runs_on_the_same_loop(own_mpi, folder, name):
    """A barrier, a buffer, moments and a vector per client."""
    rule = (f"rule.name={name}", "limits.updates=12", "clients=3", "clock=virtual")
    done = own_mpi.train(3, "run.toml", *rule, "run_dir=run", cwd=folder)
    assert done.status == 0, str(done)
    assert done.result["updates"] == 12


@pytest.mark.parametrize("replay_ranks", [2, 3])
def test_a_replay_ends_in_the_same_model_bit_for_bit(finished, ranks, mpi, replay_ranks, tmp_path):
    if ranks != 5:
        pytest.skip("one run of 4 clients is enough")
    original, run_dir = finished
    output = tmp_path / "again"
    command = ("replay", run_dir, "--ranks", replay_ranks, "--output", output)
    done = run_asyncfeded(*command, cwd=tmp_path, env=mpi.env)
    assert done.status == 0, str(done)
    assert done.result["model_sha256"] == original.result["model_sha256"]
    old, new = record.read_record(run_dir).updates, record.read_record(output).updates
    assert old["client"].tolist() == new["client"].tolist()
    assert old["gamma"].tolist() == new["gamma"].tolist()


def test_a_replay_of_nothing_is_refused(tmp_path):
    done = run_asyncfeded("replay", tmp_path / "nowhere", cwd=tmp_path)
    refused(done, "record.h5: no such file; give the folder of a run (run_dir)\n")


# What breaks


def test_an_interrupt_stops_a_run_as_a_limit_does(mpi, folder):
    """A launcher passes the signal on to all ranks; here, to the server alone, which stops the others."""
    (folder / "late.py").write_text(
        "import os, signal, threading, time\n"
        "from pathlib import Path\n"
        "def interrupt():\n"
        "    rows = Path('run/record.h5.updates')\n"
        "    while not (rows.exists() and rows.stat().st_size):\n"
        "        time.sleep(0.05)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "if os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK')) == '0':\n"
        "    threading.Thread(target=interrupt, daemon=True).start()\n"
        "from asyncfeded.cli import main\n"
        "main()\n"
    )
    python = [sys.executable, "late.py", "train", "run.toml", "run_dir=run", "limits.updates=1000000"]
    done = run(mpi.command((3, python)), folder, mpi.env)
    assert done.status == 75, str(done)
    assert done.result["stopped"] == "interrupted by a signal"
    assert len(record.read_record(folder / "run").updates) == done.result["updates"] > 0
    assert (folder / "run" / "model.h5").exists()


def test_a_rank_whose_environment_is_broken_ends_the_job(mpi, folder):
    """It never comes to MPI_Init, where the others would wait for it for ever."""
    (folder / "bad").mkdir()
    (folder / "bad" / "torch.py").write_text("raise ImportError('no torch on this host')")
    bad = ["env", f"PYTHONPATH={folder / 'bad'}", *PYTHON_M, "train", "run.toml"]
    done = run(mpi.command((1, [*PYTHON_M, "train", "run.toml"]), (1, bad)), folder, mpi.env, timeout=60)
    assert done.status != 0, str(done)
    assert f"asyncfeded: rank 1 on {HOST}: uncaught error, ending the job\nTraceback" in done.stderr, str(done)
    assert "no torch on this host" in done.stderr


def test_a_machine_without_mpi_is_told_what_to_install(own_mpi, folder):
    done = run_asyncfeded("train", "run.toml", cwd=folder, env=own_mpi.env | {"MPI4PY_LIBMPI": "/nonexistent/libmpi.so"})
    refused(done, "no MPI library can be loaded")
    assert "pip install 'asyncfeded[mpich]'" in done.stderr


BROKEN = """
import time
from pathlib import Path
import asyncfeded.training.client, asyncfeded.model.global_model
from asyncfeded.cli import main

def broken(function, when):
    def call(self, *args):
        if when(self, *args):
            Path("raised").write_text(str(time.time()))
            raise KeyError("a bug")
        return function(self, *args)
    return call

if WHO == "client":  # client 1, in its second round
    kind = asyncfeded.training.client.Trainer
    kind.round = broken(kind.round, lambda self, order, *args: (order.client, order.round) == (1, 1))
else:  # the server, when it measures its third update
    kind = asyncfeded.model.global_model.GlobalModel
    kind.distances = broken(kind.distances, lambda self, *args: self.version == 2)
main()
"""


@pytest.fixture(scope="module", params=["client", "server"])
def broken(request, mpi, tmp_path_factory):
    """A run in which a rank raises: who it is, how the job ended, and seconds from the raise to the end."""
    folder = write_toml(tmp_path_factory.mktemp("broken"))
    (folder / "broken.py").write_text(BROKEN.replace("WHO", repr(request.param)))
    python = [sys.executable, "broken.py", "train", "run.toml", "run_dir=run", "limits.updates=1000000"]
    done = run(mpi.command((3, python)), folder, mpi.env)
    place = {"client": "rank 2 (worker)", "server": "rank 0 (server)"}[request.param]
    return place, done, done.ended - float((folder / "raised").read_text())


def test_a_rank_that_raises_ends_the_job_within_10_s(broken):
    _, done, seconds = broken
    assert done.status != 0, str(done)
    assert seconds < 10, str(done)


def test_rank_and_host_stand_before_the_traceback(broken):
    place, done, _ = broken
    told = done.stderr.index(f"asyncfeded: {place} on {HOST}: uncaught error, ending the job\nTraceback")
    assert told < done.stderr.index("KeyError: 'a bug'")


def test_the_traceback_is_told_once(broken):
    assert broken[1].stderr.count("KeyError: 'a bug'") == 1, str(broken[1])


def test_training_that_diverges_ends_with_a_clear_error(own_mpi, folder):
    steps = ("task.name=digits", "training.learning_rate=1e20", "limits.updates=1000000")
    done = own_mpi.train(2, "run.toml", *steps, cwd=folder)
    assert done.status != 0, str(done)
    assert "refused, client 0: weights that are not finite" in done.stderr, str(done)
    assert "lower training.learning_rate" in done.stderr
    assert "stopped: no client is left (10 refusals in a row (faults.max_refusals))" in done.stderr
    assert "asyncfeded resume" not in done.stderr
