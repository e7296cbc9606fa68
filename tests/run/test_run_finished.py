"""The program as a user starts it: real runs under every MPI that end well."""

import hashlib
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from asyncfeded import config
from asyncfeded.store import record
from asyncfeded.tasks.synthetic import Synthetic
from conftest import run, run_asyncfeded
from run.commands import HOST, PYTHON_M


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
    numbers = {"seconds", "updates_per_s", "gamma_median", "server_busy", "server_bytes"}
    assert numbers | {"run_dir", "updates", "metric", "model_sha256"} <= set(figures)
    assert figures["run_dir"] == str(run_dir)
    assert all(np.isfinite(figures[name]) and figures[name] >= 0 for name in numbers)
    assert figures["updates_per_s"] == pytest.approx(12 / figures["seconds"], rel=0.01)
    assert 0 < figures["metrics"]["accuracy"] <= 1
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
    assert done.result["metrics"] == {name: round(last[name], 6) for name in ("accuracy", "loss")}


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
    assert new["time_s"] == pytest.approx(old["time_s"])
    assert old["gamma"].tolist() == new["gamma"].tolist()


def test_what_is_said_of_the_data_is_said_before_training(own_mpi, runs, tmp_path):
    """The same file for training and testing, and a character that is not in the vocabulary."""
    with h5py.File(tmp_path / "plays.h5", "w") as file:
        file["examples/A/snippets"] = ["to be or n\u00f6t"]
    task = ("task.name=shakespeare", "task.train=plays.h5", "task.test=plays.h5", "task.window=4", "task.hidden=4")
    done = own_mpi.train(2, runs / "run.toml", "run_dir=run", *task, "limits.updates=1", cwd=tmp_path)
    assert done.status == 0, str(done)
    said = (tmp_path / "run" / "log.txt").read_text()
    assert "plays.h5 is trained on and tested on" in said
    assert "plays.h5: 8.33% of the characters are none of the 80 symbols known and are read as '}': '\u00f6' (1)" in said


def test_closed_streams_and_a_setting_of_openmp_that_is_no_number_change_nothing(own_mpi, folder):
    """The record must not get the number of a closed standard output: what is printed would go into it."""
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *PYTHON_M]
    env = own_mpi.env | {"OMP_NUM_THREADS": "abc"}
    done = run([*closed, "train", "run.toml", "--ranks", 2, "run_dir=run"], folder, env)
    assert (done.status, done.stdout, done.stderr) == (0, "", "")
    tables = record.read_record(folder / "run")
    assert len(tables.updates) == 12
    cores = tables.attributes["placement"]["cores"]
    assert tables.attributes["placement"]["threads"].tolist() == [max(1, int(share)) for share in cores]
