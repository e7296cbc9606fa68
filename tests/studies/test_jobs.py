"""Configs in layers, and whose runs are whose. That runs are skipped and lost is tested with the studies that they make."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from asyncfeded.config import Config
from asyncfeded.files.weights import write_weights
from asyncfeded.store.ownership import NAME, Ownership
from asyncfeded.store.record import Record
from asyncfeded.studies import jobs
from asyncfeded.studies.children import Children
from asyncfeded.studies.jobs import GridJob, check_labels, compose, execute, is_done, nest, overlay, own
from asyncfeded.training.heterogeneity import PROFILE
from conftest import METRICS, places, run

RULE = """
from asyncfeded.rules.fedavg import FedAvg

class Mine(FedAvg):
    \"\"\"A rule of the user's.\"\"\"
"""


def test_a_layer_replaces_values_and_merges_sections():
    below = {"clients": 3, "rule": {"name": "fedasync", "alpha": 0.5}}
    assert overlay(below, {"clients": 2, "rule": {"alpha": 0.1}, "seed": 7}) == {
        "clients": 2, "rule": {"name": "fedasync", "alpha": 0.1}, "seed": 7,
    }  # fmt: skip
    assert below == {"clients": 3, "rule": {"name": "fedasync", "alpha": 0.5}}


def test_keys_with_points_are_sections():
    assert nest({"rule.alpha": 0.1, "rule.name": "fedasync", "seed": 1}) == {
        "rule": {"alpha": 0.1, "name": "fedasync"}, "seed": 1,
    }  # fmt: skip


def test_a_config_of_layers_has_the_defaults_of_its_task_and_rule():
    config = compose([{"limits": {"updates": 5}}, {"rule": {"name": "fedasync"}}, {"limits": {"seconds": 2}}], "here")
    assert (config.limits.updates, config.limits.seconds) == (5, 2)
    assert config.rule["alpha"] > 0
    assert config.task["split"] == "dirichlet"


def test_a_run_is_named_by_its_config_and_by_what_its_files_hold(tmp_path, monkeypatch):
    """Not by where they lie: rows of the same runs are good on another machine, and none are when a file has changed."""

    def named(folder, value=1.0, rows=4, rule=RULE):
        monkeypatch.setattr(jobs, "FILES", {})
        monkeypatch.setattr(jobs, "DIGESTS", {})
        monkeypatch.delitem(sys.modules, "rule_of_a_study", raising=False)
        there = tmp_path / folder
        there.mkdir(exist_ok=True)
        save(there / "first.pt", value)
        np.savez(there / "digits.npz", images=np.zeros((rows, 2, 2), np.float32), labels=np.arange(rows) % 2)
        (there / "rule_of_a_study.py").write_text(rule)
        task = {"name": "images", "data": str(there / "digits.npz"), "initial": str(there / "first.pt")}
        layer = {"limits": {"updates": 1}, "task": task, "rule": {"name": f"{there / 'rule_of_a_study.py'}:Mine"}}
        config = compose([layer], "run")
        before = jobs.digest(config)
        save(there / "first.pt", value + 1)
        assert jobs.digest(config) == before  # while one study is made
        return before

    plain = compose([{"limits": {"updates": 1}}], "run")
    assert jobs.digest(plain) == plain.digest().hex()
    before = named("here")
    assert named("there") == before
    assert len({before, named("here", value=2.0), named("here", rows=6), named("here", rule=f"{RULE}# changed\n")}) == 4
    assert named("here") == before


def save(path, value):
    path.unlink(missing_ok=True)
    write_weights(path, {"w": torch.full((2,), value)})


def test_a_wrong_layer_is_refused_by_name():
    with pytest.raises(ValueError, match=r"weak with 3: unknown key limits\.update; did you mean updates"):
        compose([{"limits": {"update": 5}}], "weak with 3")


def test_a_grid_cannot_name_the_folder_of_its_runs():
    with pytest.raises(ValueError, match=r"weak with 3: run_dir = 'mine': a study names the folders of its runs; leave"):
        compose([{"run_dir": "mine"}, {"limits": {"updates": 5}}], "weak with 3")


@pytest.mark.parametrize("label", ["asyncfeded", "fedasync-hinge", "K = 5", "p=0.1, q", "3", "αβ", "日本", "x" * 80])
def test_a_label_may_be_what_names_a_file(label):
    assert check_labels({label: 1}) == {label: 1}


@pytest.mark.parametrize(
    "label", ["", " ", "a/b", "..", ".a", "-a", "_a", "a ", "a|b", "$a$", "a\nb", "a\0", "x" * 81, "日" * 27]
)
def test_a_label_that_cannot_name_a_file_is_refused(label):
    with pytest.raises(ValueError, match="cannot name a file; expected a letter or a digit, and then letters"):
        check_labels({label: 1})


@pytest.mark.parametrize("two", [("Ace", "ace"), ("\u00e9", "e\u0301"), ("straße", "STRASSE"), ("1", "\uff11")])
def test_labels_that_are_one_name_on_some_file_systems_are_refused(two):
    with pytest.raises(ValueError, match="are one name on some file systems; change one"):
        check_labels(dict.fromkeys(two))


def test_a_grid_without_a_label_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        check_labels({})


def test_a_run_is_done_when_it_has_a_result_and_is_not_being_tried(tmp_path):
    (tmp_path / "run").mkdir()
    assert not is_done(tmp_path, "run")
    (tmp_path / "run" / "result.json").touch()
    assert is_done(tmp_path, "run")
    (tmp_path / "run.toml").touch()  # it is going on, or was interrupted, or has failed
    assert not is_done(tmp_path, "run")


@pytest.mark.parametrize("owned", ["run.owner", f"run/{NAME}"], ids=["by another study", "by the run itself"])
def test_a_run_that_is_going_on_is_left_as_it_is(tmp_path, owned):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.h5").write_text("precious")
    said: list[str] = []
    job = GridJob("run", Config.model_validate({"limits": {"updates": 1}}), 2)
    with Ownership(tmp_path / owned, "run", said.append):
        assert execute([job], tmp_path, 1, said.append) == [job]
    assert len(said) == 2
    assert "run is in use by process" in said[1]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [(path.name, path.read_text()) for path in (tmp_path / "run").iterdir()] == [("record.h5", "precious")]


def test_runs_of_one_task_and_seed_follow_each_other_in_a_job():
    def job(name, seed, devices, ranks=2):
        given = {"limits": {"updates": 1}, "seed": seed, "task": {"name": "synthetic", "devices": devices}}
        return GridJob(name, Config.model_validate(given), ranks)

    planned = [job("a", 1, 2), job("b", 2, 2), job("c", 1, 3), job("d", 1, 2), job("e", 1, 2, ranks=3), job("f", 2, 2)]
    assert [[one.name for one in batch] for batch in jobs._batches(planned, 3)] == [["a", "d", "b"], ["f", "c"], ["e"]]


def test_a_run_of_a_job_ends_as_it_does_alone(own_mpi, tmp_path):
    """It has the data of those before it, and nothing else of them."""
    for name, rule in (("a", "fedasync"), ("b", "fedavg"), ("c", "fedasync"), ("alone", "fedavg")):
        (tmp_path / f"{name}.toml").write_text(
            f'run_dir = "{name}"\nclock = "virtual"\nclients = 2\nlimits.updates = 5\nrule.name = "{rule}"\n'
            f'[task]\nname = "synthetic"\nsamples_max = 60\ndevices = 2\n'
        )
    for files in (["a.toml", "b.toml", "c.toml"], ["alone.toml"]):
        done = run(own_mpi.command((2, [sys.executable, "-m", "asyncfeded", "batch", *files])), tmp_path, own_mpi.env)
        assert done.status == 0, str(done)
    model = {path.parent.name: path.read_bytes() for path in tmp_path.glob("*/model.h5")}
    assert model["a"] == model["c"] != model["b"] == model["alone"]


def test_a_study_has_one_owner_and_a_folder_that_can_be_written(tmp_path):
    with own(tmp_path / "a" / "out", print), pytest.raises(ValueError, match="out is in use by process"):
        own(tmp_path / "a" / "out", print)
    Path(tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file/out cannot be written: Not a directory; choose another folder"):
        own(tmp_path / "file" / "out", print)


@pytest.mark.parametrize("name", ["table.csv", "table.md", "chosen.toml", "prediction.csv", "digits-errors.png"])
def test_a_study_replaces_no_table_and_no_picture_of_a_user(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match=f"holds {name}, and no runs of a study; choose another folder"):
        own(tmp_path, print)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / "runs").mkdir()  # the folder of a study: it is its table
    own(tmp_path, print).release()


def test_a_run_that_is_refused_leaves_nothing_but_its_sentence_in_its_log(own_mpi, tmp_path):
    layer = {
        "clock": "virtual",
        "clients": 1,
        "limits": {"updates": 1},
        "task": {"name": "synthetic"},
        "training": {"epochs": 11},
    }
    job = GridJob("refused", compose([layer], "run"), 2)
    assert execute([job], tmp_path, 1, lambda line: None) == [job]
    (line,) = (tmp_path / "refused.log").read_text().splitlines()
    assert line.startswith("asyncfeded: rule AsyncFedED, init: training.epochs (or steps) = 11 is outside the bounds of K")


@pytest.mark.parametrize("status", [0, 1], ids=["it came back", "it did not"])
def test_a_run_that_gave_up_a_worker_is_not_done(tmp_path, monkeypatch, status):
    """On a busy machine it is silent for too long; the run has a result, and may have ended well."""

    def run(self, command, env, log, look):
        log.touch()
        (tmp_path / "run").mkdir()
        with Record(tmp_path / "run" / "record.h5", "", places("here"), np.zeros(1, PROFILE), METRICS) as book:
            book.events.append((0.0, 0.0, b"rank", -1, 0, 0.0, b"rank 1 is given up: it was silent"))
        (tmp_path / "run" / "result.json").touch()
        if not status:
            (tmp_path / "run.toml").unlink()
        return status

    monkeypatch.setattr(Children, "run", run)
    job, told = GridJob("run", Config.model_validate({"limits": {"updates": 1}}), 2), []
    assert execute([job], tmp_path, 1, lambda line: None, tell=lambda _, trouble: told.append(trouble)) == [job]
    assert told == ["rank 1 is given up: it was silent"]
    assert not is_done(tmp_path, "run")


def test_a_run_is_told_of_when_it_is_done_and_not_when_its_job_is(tmp_path, monkeypatch):
    told: dict[str, str] = {}
    known = {name: threading.Event() for name in "abcd"}

    def run(self, command, env, log, look):
        log.touch()
        first, second = (Path(file) for file in command[-2:])
        first.unlink()
        look()
        assert known[first.stem].wait(100)
        if second.stem == "b":
            second.unlink()
        return 1

    def tell(job, trouble):
        told[job.name] = trouble
        known[job.name].set()

    monkeypatch.setattr(Children, "run", run)
    planned = [GridJob(name, Config.model_validate({"limits": {"updates": 1}}), 2) for name in "abcd"]
    assert execute(planned, tmp_path, 1, lambda line: None, 2, tell=tell) == planned[3:]
    assert told == {"a": "", "b": "", "c": "", "d": f"failed with status 1, see {tmp_path / 'd.log'}"}


@pytest.mark.parametrize(("side_by_side", "jobs"), [(1, ["abcd"]), (2, ["a", "b", "c", "d"])])
def test_runs_that_no_other_runs_beside_share_one_job(tmp_path, monkeypatch, side_by_side, jobs):
    seen: list[str] = []

    def run(self, command, env, log, look):
        log.touch()
        files = [Path(word) for word in command if word.endswith(".toml")]
        seen.append("".join(file.stem for file in files))
        for file in files:
            file.unlink()
        return 0

    monkeypatch.setattr(Children, "run", run)
    planned = [GridJob(name, Config.model_validate({"limits": {"updates": 1}}), 2) for name in "abcd"]
    assert execute(planned, tmp_path, side_by_side, lambda line: None, 24) == []
    assert sorted(seen) == jobs
