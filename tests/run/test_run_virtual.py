"""Real runs whose order is given: on the virtual clock."""

import numpy as np
import pytest

from asyncfeded.store import record
from conftest import same_rows

TRAINING = (
    "optimizer=adamw", "learning_rate=0.01", "optimizer_state=kept", "unit=steps", "steps=2", "accumulate=2",
    "clip_norm=0.5", "schedule=cosine", "schedule_over=run", "warmup=3", "precision=bf16",
)  # fmt: skip
VIRTUAL = (
    "clock=virtual", "clients=4", "limits.updates=25", "heterogeneity.error_probability=0.2",
    "evaluation.client_rounds=2",
    *(f"training.{key}" for key in TRAINING),
)  # fmt: skip


@pytest.fixture(scope="module")
def virtual(own_mpi, runs):
    """A run on the virtual clock, on one worker."""
    return own_mpi.train(2, "run.toml", *VIRTUAL, f"run_dir={runs / 'virtual'}", cwd=runs).result


@pytest.mark.parametrize("ranks", [3, 4, 5])
def test_a_virtual_run_is_the_same_to_the_bit_on_any_number_of_ranks(own_mpi, virtual, runs, ranks):
    """And with bases on disk, where base and update of 2 of the 4 clients are in memory; and with a rank that only tests."""
    run_dir = runs / f"virtual-{ranks}"
    more = {3: ("bases=disk", f"bases_dir={runs}", "bases_gb=3e-5", "checkpoint.every_updates=4"), 5: ("evaluator=2",)}
    done = own_mpi.train(ranks, "run.toml", *VIRTUAL, *more.get(ranks, ()), f"run_dir={run_dir}", cwd=runs).result
    assert done["model_sha256"] == virtual["model_sha256"]
    assert same_rows(run_dir, runs / "virtual")


def test_clients_test_what_they_receive_on_their_own_data(virtual, runs):
    tables = record.read_record(runs / "virtual")
    merged = tables.updates[tables.updates["accepted"] & (tables.updates["round"] % 2 == 0)]
    tests = tables.client_evaluations
    columns = {"time_s": "time_s", "client": "client", "round": "round", "version": "base_version"}
    assert all(tests[name].tolist() == merged[other].tolist() for name, other in columns.items())
    assert len(np.unique(tests["client"])) == 4
    assert ((tests["accuracy"] >= 0) & (tests["accuracy"] <= 1)).all()
    assert virtual["clients"]["loss"]["worst"] == round(max(tests[tests["client"] == i]["loss"][-1] for i in range(4)), 6)


def test_a_virtual_run_is_the_same_to_the_bit_under_another_mpi(other_mpi, virtual, runs):
    run_dir = runs / "virtual-mpi"
    done = other_mpi.train(3, "run.toml", *VIRTUAL, f"run_dir={run_dir}", cwd=runs).result
    assert done["model_sha256"] == virtual["model_sha256"]
    assert same_rows(run_dir, runs / "virtual")


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
