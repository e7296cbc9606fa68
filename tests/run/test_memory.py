"""What a run will hold, and whether the ranks of a host fit into what there is."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asyncfeded import rules
from asyncfeded.config import Config
from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.run.memory import RANK, Need, check, server_need, slurm_memory, worker_need
from conftest import run
from run.commands import PYTHON_M, refused

PARAMS, STATISTICS, CLIENTS = 1000, 24, 5
LAYOUT = Layout((Entry("w", (PARAMS,), 0), Entry("mean", (STATISTICS,), PARAMS)), PARAMS, PARAMS + STATISTICS)
MODEL = 4 * (PARAMS + STATISTICS)


def config(**sections):
    table = {"task": {"name": "synthetic"}, "clients": CLIENTS, "limits": {"updates": 1}} | sections
    return Config.model_validate(table)


def test_the_server_needs_a_model_for_each_client_the_global_one_and_a_receive_buffer():
    """A receive buffer of each client is reserved. K of every client: int64."""
    need = server_need(config(), rules.load_rule({"name": "fedasync"}), LAYOUT, pinned=False)
    state = 8 * CLIENTS
    assert need == Need((CLIENTS + 2) * MODEL + state, (2 * CLIENTS + 1) * MODEL + state)
    of_three = server_need(config(servers=3), rules.load_rule({"name": "fedasync"}), LAYOUT, pinned=False)
    assert of_three.touched == need.touched + 2 * MODEL  # as many updates arrive side by side


def test_checkpoints_are_written_from_a_copy():
    rule = rules.load_rule({"name": "fedasync"})
    without, with_copy = (server_need(config(checkpoint={"every_s": s}), rule, LAYOUT, pinned=False) for s in (0, 60))
    assert with_copy.touched - without.touched == MODEL + 8 * CLIENTS  # x, and K
    assert with_copy.reserved - without.reserved == (1 + CLIENTS) * MODEL + 8 * CLIENTS  # clients move on meanwhile


def test_bases_on_a_disk_take_no_memory_but_for_the_clients_that_are_near():
    rule, gb = (
        rules.load_rule({"name": "fedasync"}),
        {"clock": "virtual", "bases": "disk", "bases_dir": ".", "bases_gb": 2 * 2 * MODEL / 1e9},
    )
    need, state = server_need(config(**gb), rule, LAYOUT, pinned=False), 8 * CLIENTS
    assert need == Need((2 + 2) * MODEL + state, (2 * CLIENTS + CLIENTS + 1) * MODEL + state)


def test_an_average_of_the_model_is_a_model_more_and_one_in_the_copy_for_a_checkpoint():
    rule = rules.load_rule({"name": "fedasync"})
    for every_s, models in ((0, 1), (60, 2)):
        less, more = (
            server_need(config(evaluation={"average": a}, checkpoint={"every_s": every_s}), rule, LAYOUT, pinned=False)
            for a in (0.0, 8.0)
        )
        assert more.touched - less.touched == models * MODEL


def test_a_server_on_a_gpu_needs_two_pinned_buffers_for_each_client():
    rule = rules.load_rule({"name": "fedasync"})
    assert server_need(config(), rule, LAYOUT, pinned=True) == Need(2 * CLIENTS * MODEL, 2 * CLIENTS * MODEL)


def test_a_rule_that_takes_no_k_of_1_and_one_that_looks_at_the_layout_are_no_errors_of_memory():
    table = config(training={"unit": "steps", "steps": 20})
    rule = rules.load_rule({"name": "asyncfeded", "epochs_min": 10, "epochs_max": 200})
    assert server_need(table, rule, LAYOUT, pinned=False) == server_need(
        config(), rules.load_rule({"name": "asyncfeded"}), LAYOUT, pinned=False
    )
    picky = SimpleNamespace(init=lambda model, epochs: {}[model.layout.entries[0].name])
    assert server_need(table, picky, LAYOUT, pinned=False).touched == (CLIENTS + 2) * MODEL


def test_what_is_a_clients_own_is_held_for_each_client_and_with_every_update():
    """A worker has it behind its model."""
    rule, own = rules.load_rule({"name": "fedasync"}), 4 * 30
    kept, table = LAYOUT.with_own([("there", (1,)), ("w.m", (29,))]), config(checkpoint={"every_s": 60})
    less, more = (server_need(table, rule, layout, pinned=False) for layout in (LAYOUT, kept))
    assert more.touched - less.touched == (CLIENTS + 1) * own
    assert more.reserved - less.reserved == (CLIENTS + CLIENTS + CLIENTS) * own
    assert server_need(table, rule, kept, pinned=True).touched == 2 * CLIENTS * (MODEL + own)
    assert worker_need(table, 0.0, kept).touched - worker_need(table, 0.0, LAYOUT).touched == own


@pytest.mark.parametrize("name", rules.RULES)
def test_the_state_of_every_rule_is_foreseen(name):
    """On a model of parameters alone: to the byte. Rules with a buffer take M = 10 updates per step."""
    rule = rules.load_rule({"name": name})
    layout = Layout((Entry("w", (PARAMS,), 0),), PARAMS, PARAMS)
    model = GlobalModel(torch.zeros(PARAMS), layout, CLIENTS)
    state = sum(int(array.nbytes) for array in rule.init(model, np.ones(CLIENTS, np.int64)).values())
    held = {"fedbuff": 1, "ca2fl": 1, "fadas": 1} | dict.fromkeys(("fedavg", "fedprox", "fedavgm", "fedadam"), 2)
    assert server_need(config(), rule, layout, pinned=False).touched == (held.get(name, CLIENTS) + 2) * 4 * PARAMS + state


@pytest.mark.parametrize(
    ("training", "proximal", "vectors"),
    [({}, 0.0, 1), ({"momentum": 0.9}, 0.0, 2), ({"proximal": 0.1}, 0.0, 2), ({"momentum": 0.9}, 0.5, 3)],
)
def test_a_worker_needs_a_gradient_momentum_and_an_anchor(training, proximal, vectors):
    assert worker_need(config(training=training), proximal, LAYOUT) == Need(4 * PARAMS * vectors, 4 * PARAMS * vectors)


def test_a_worker_that_measures_the_curvature_needs_two_gradients_and_a_model_more():
    less, more = (worker_need(config(), 0.0, LAYOUT, measures=measures) for measures in (False, True))
    assert more.touched - less.touched == 3 * 4 * PARAMS


# --- what there is

FREE = {
    "touched": 10,
    "reserved": 20,
    "held": 5,
    "own": np.inf,
    "host": np.inf,
    "group": np.inf,
    "group_id": 0,
    "job": np.inf,
}


def ranks(*changes):
    return np.array([tuple((FREE | change)[name] for name in RANK.names) for change in changes], RANK)


def test_without_limits_everything_fits():
    check(ranks({}, {}), 0, "models")


@pytest.mark.parametrize(
    ("limit", "enough", "words"),
    [
        ("own", 20, "this rank needs 2e-08 GB more, but its limits (ulimit -v, ulimit -d) leave 1.9e-08 GB"),
        ("group", 30, "the ranks of this host need 3e-08 GB more, but their container or job (cgroup) has 2.9e-08 GB left"),
        ("host", 30, "the ranks of this host need 3e-08 GB more, but it has 2.9e-08 GB left"),
        ("job", 45, "the ranks of this host need 4.5e-08 GB, but the Slurm job has 4.4e-08 GB on it (--mem)"),
    ],
)
def test_a_limit_that_is_too_low_is_told_with_both_figures(limit, enough, words):
    """Of three ranks on a host, each needs 10 bytes, reserves 20 and holds 5."""
    check(ranks(*[{limit: enough}] * 3), 1, "models")
    with pytest.raises(ValueError, match=r"^not enough memory: ") as caught:
        check(ranks(*[{limit: enough - 1}] * 3), 1, "the models")
    advice = "take fewer clients, a smaller model, more memory, more servers on other hosts (servers), or bases = disk"
    assert str(caught.value) == f"not enough memory: {words}; the models; {advice}"


def test_ranks_in_control_groups_of_their_own_do_not_share_one():
    apart = ranks({"group": 10, "group_id": 1}, {"group": 10, "group_id": 2})
    check(apart, 0, "models")
    with pytest.raises(ValueError, match="container or job"):
        check(ranks(*[{"group": 10, "group_id": 1}] * 2), 0, "models")


@pytest.mark.parametrize(
    ("env", "size"),
    [
        ({}, np.inf),
        ({"SLURM_MEM_PER_NODE": "3000"}, 3000 * 2**20),
        ({"SLURM_MEM_PER_NODE": "0"}, np.inf),
        ({"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "4"}, 2000 * 2**20),
    ],
)
def test_the_memory_of_a_slurm_job_is_read(env, size):
    assert slurm_memory(env) == size


def test_a_run_that_cannot_fit_is_refused_before_anything_is_made(own_mpi, folder):
    """200 clients and 28,400,010 parameters: more than the 20 GB that a process may reserve here."""
    overrides = ["clock=virtual", "clients=200", "task.devices=200", "task.model=mlp", "task.hidden=400000", "run_dir=run"]
    train = [*PYTHON_M, "train", "run.toml", "--ranks", 2, *overrides]
    done = run(["bash", "-c", 'ulimit -v 20000000 && exec "$@"', "bash", *train], folder, own_mpi.env)
    refused(done, "asyncfeded: not enough memory: this rank needs ")
    assert "the server holds a model of " in done.stderr
    assert not (folder / "run").exists()
