"""The measurements as a user starts them, and what they count; none of the figures is judged here."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asyncfeded import bench
from asyncfeded.bench import kernel, wait
from asyncfeded.tasks import TASKS
from asyncfeded.wire.messages import Arrival
from conftest import run, run_asyncfeded

KERNEL = [
    "params", "threads", "sums_gb_per_s", "apply_gb_per_s", "triad_gb_per_s", "fraction_of_triad",
    "torch_inplace_over_kernel", "torch_naive_over_kernel", "machine",
]  # fmt: skip
WAIT = [
    "ranks", "cores", "wait", "beside", "server_idle_core_fraction", "client_idle_core_fraction", "throughput_kept",
    "reaction_s_p50", "reaction_s_p99",
]  # fmt: skip
TURNS = [f"turnaround_{kind}_{q}" for q in ("p50", "p99") for kind in ("s", "over_spin_alone")]
SERVER = [
    "params", "clients", "mpi", "device", "threads", "wait", "turnaround_s_p50", "turnaround_s_p99", "updates_per_s",
    "echo_s_p50", "turnaround_over_echo", "server_busy_s_per_update", "payload_gb_per_s", "triad_gb_per_s",
    "bytes_touched_per_update", "server_peak_bytes", "server_models",
]  # fmt: skip
CHECKPOINTING = [
    "turnaround_s_p50_checkpointing", "turnaround_s_p99_checkpointing", "p99_checkpointing_over_p99", "checkpoints",
    "checkpoint_bytes",
]  # fmt: skip
SERVERS = [
    "params", "servers", "clients", "hosts", "mpi", "wait", "round_s", "updates_per_s", "exchanges_per_s",
    "updates_over_exchanges", "client_wait_s", "busiest_host", "cpu_s_per_update", "resident_bytes", "models_bytes",
]  # fmt: skip
OWN = """
import numpy as np
import torch
from torch import nn
from asyncfeded.config import Settings


class Mine(Settings):
    def model(self):
        return nn.Linear(2, 1)

    def sizes(self, num_clients, seed):
        return np.full(num_clients, 5)

    def client_data(self, client, num_clients, seed):
        return [{"x": torch.ones(2), "name": "one"}] * 5

    def test_data(self):
        return self.client_data(0, 1, 0)

    def loss(self, model, batch):
        return model(batch["x"]).square().mean()

    def score(self, model, batch):
        return {"accuracy": (0.0, 1.0), "loss": (0.0, 1.0)}

    def step(self, model, batch, optimizer):
        optimizer.zero_grad()
        loss = self.loss(model, batch)
        loss.backward()
        optimizer.step()
        return loss
"""


# the client


def test_the_client_is_measured(tmp_path):
    done = run_asyncfeded("bench", "client", "--seconds", 0.01, cwd=tmp_path)
    assert done.status == 0, str(done)
    tasks = [name for name in TASKS if name != "federated_h5"]  # the same task as femnist
    kinds = ("steps_per_s", "client_over_plain")
    names = {"device", "threads", *(f"{task}_{kind}" for task in tasks for kind in kinds), "machine"}
    assert done.result.keys() == names
    assert all(figure in done.stdout for figure in ("38,282", "819,920"))
    refused = run_asyncfeded("bench", "client", "--threads", 0, cwd=tmp_path)
    assert (refused.status, refused.stderr) == (2, "asyncfeded: --threads 0: expected a number of threads, at least 1\n")


def test_the_client_of_a_run_of_ones_own_is_measured(tmp_path):
    """Its data is a data set, its batches are dicts, and it takes its steps itself."""
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "run.toml").write_text('limits.updates = 1\ntask.name = "mine.py:Mine"\nrule.name = "fedavg"\n')
    done = run_asyncfeded("bench", "client", "run.toml", "training.batch_size=2", "--seconds", 0.01, cwd=tmp_path)
    assert done.status == 0, str(done)
    assert list(done.result)[2:4] == ["mine.py:Mine_steps_per_s", "mine.py:Mine_client_over_plain"]
    assert done.stdout.splitlines()[1].split()[:3] == ["mine.py:Mine", "3", "2"]


# virtual runs


def test_a_virtual_run_is_measured(own_mpi, tmp_path):
    # As many clients as the run that warms up has updates.
    simulation = ("bench", "simulation", "--ranks", 2, "--clients", 10, "--seconds", 0.001)
    done = run_asyncfeded(*simulation, cwd=tmp_path, env=own_mpi.env)
    assert done.status == 0, str(done)
    cases = done.result["cases"]
    assert [(case["params"], case["clients"], case["workers"]) for case in cases] == [(610, 10, 1), (37_995, 10, 1)]
    assert done.result["device"] == "cpu"
    for case in cases:
        assert case["efficiency"] == pytest.approx(case["alone_s"] * case["updates_per_s"] / case["workers"], rel=1e-2)
        assert 0 < case["ideal"] <= 1
        assert case["server_s"] > 0
    assert list(tmp_path.iterdir()) == []


# the ranks of a client


def test_the_sum_of_gradients_and_the_steps_of_a_group_are_measured(own_mpi, tmp_path):
    group = ("bench", "group", "--ranks", 2, "--seconds", 0.01)
    done = run_asyncfeded(*group, "--params", 1000, cwd=tmp_path, env=own_mpi.env)
    assert done.status == 0, str(done)
    names = ["params", "ranks", "batch", "sum_s", "allreduce_s", "sum_over_allreduce", "steps_per_s", "machine"]
    assert list(done.result) == names
    assert done.result["sum_over_allreduce"] == pytest.approx(done.result["sum_s"] / done.result["allreduce_s"], rel=1e-2)
    assert list(done.result["steps_per_s"]) == ["1", "2"]
    refused = run_asyncfeded(*group, "--params", 10, "--batch", 1, cwd=tmp_path, env=own_mpi.env)
    assert (refused.status, refused.stderr) == (
        2,
        "asyncfeded: --params 10 --batch 1: expected at least 1, and a sample for each rank\n",
    )


# the kernel


@pytest.mark.parametrize("params", [1, 3_000_001])
def test_the_kernel_is_measured(tmp_path, params):
    done = run_asyncfeded("bench", "kernel", "--params", params, "--threads", 1, cwd=tmp_path)
    assert done.status == 0, str(done)
    figures = done.result
    assert list(figures) == KERNEL
    assert figures.pop("params") == params
    assert figures.pop("threads") == 1
    assert figures.pop("machine") == bench.machine()
    assert min(figures.values()) > 0
    slower = min(figures["sums_gb_per_s"], figures["apply_gb_per_s"])
    assert figures["fraction_of_triad"] == pytest.approx(slower / figures["triad_gb_per_s"], rel=1e-2)
    assert figures["triad_gb_per_s"] < 1e5
    assert "naive, torch" in done.stdout


def test_measuring_the_kernel_loads_no_mpi(tmp_path):
    code = "import sys, asyncfeded.bench.kernel; sys.exit('mpi4py' in sys.modules)"
    done = run([sys.executable, "-c", code], tmp_path)
    assert done.status == 0, str(done)


@pytest.mark.parametrize("kind", ["", " in place, torch", " naive, torch"])
def test_the_passes_compared_do_the_same(kind):
    """Four elements, x = 1, w = 2, base = 0.5: sums 4 (0.5)^2 and 4 (1.5)^2. Merged, x = base = 1 + 0.3 * 1.5 = 1.45."""
    passes = kernel._passes(4)
    assert np.ravel(passes["sums" + kind]()).tolist() == [1.0, 9.0]  # of the one chunk, or of all
    passes["apply" + kind]()
    assert np.ravel(passes["sums" + kind]()) == pytest.approx([0.0, 4 * 0.55**2])


@pytest.mark.parametrize(("option", "value"), [("--params", 0), ("--params", -5), ("--threads", -1)])
def test_a_kernel_that_cannot_be_measured_is_refused_in_one_line(tmp_path, option, value):
    arguments = {"--params": 10, "--threads": 1} | {option: value}
    done = run_asyncfeded("bench", "kernel", *(part for pair in arguments.items() for part in pair), cwd=tmp_path)
    refused(done, f"{option} {value}: expected")


# waiting


@pytest.mark.parametrize(("ranks", "how", "beside"), [(2, "auto", 0), (3, "yield", 2)])
def test_waiting_is_measured(mpi, tmp_path, ranks, how, beside):
    arguments = ["bench", "wait", "--ranks", ranks, "--wait", how, "--seconds", 0.05, "--beside", beside]
    done = run_asyncfeded(*arguments, cwd=tmp_path, env=mpi.env, timeout=200)
    assert done.status == 0, str(done)
    figures = done.result
    ways = [f"{way}_{where}" for where in ("alone", *(["beside"] if beside else [])) for way in ("auto", "spin", "yield")]
    assert list(figures) == [*WAIT, *(f"{turn}_{way}" for way in ways for turn in TURNS), "machine"]
    assert figures["ranks"] == ranks
    assert figures["beside"] == beside
    assert figures["cores"] >= 1
    assert figures["wait"] == how
    for who in ("server", "client"):
        assert 0 < figures[f"{who}_idle_core_fraction"] < 2
    assert 0 < figures["throughput_kept"] < 100
    assert 0 < figures["reaction_s_p50"] <= figures["reaction_s_p99"] < 60
    assert figures["turnaround_over_spin_alone_p99_spin_alone"] == 1
    for way in ways:
        assert 0 < figures[f"turnaround_s_p50_{way}"] <= figures[f"turnaround_s_p99_{way}"] < 60
        ratio = figures[f"turnaround_s_p50_{way}"] / figures["turnaround_s_p50_spin_alone"]
        assert figures[f"turnaround_over_spin_alone_p50_{way}"] == pytest.approx(ratio, rel=1e-2)


@pytest.mark.parametrize("ranks", [0, 1, -3])
def test_one_rank_has_nobody_to_wait_for(tmp_path, ranks):
    refused(run_asyncfeded("bench", "wait", "--ranks", ranks, cwd=tmp_path), f"--ranks {ranks}: expected at least 2")


@pytest.mark.parametrize(("option", "value"), [("--wait", "nap"), ("--seconds", 0), ("--seconds", "nan")])
def test_a_wait_that_cannot_be_measured_is_told_once(own_mpi, tmp_path, option, value):
    done = run_asyncfeded("bench", "wait", "--ranks", 3, option, value, cwd=tmp_path, env=own_mpi.env)
    assert done.status != 0, str(done)
    assert done.stderr.count(f"asyncfeded: {option} {value}: expected") == 1, str(done)
    assert "Traceback" not in done.stderr


def test_notice_takes_from_the_sending(monkeypatch):
    """Sent after 2 s; polls of 0.25 s and pauses of 1 s: the third poll ends after 2.75 s."""
    update = Arrival(0, 0, 0, 1, 1, 1, 0.0, 2.0, 0.0, torch.zeros(1))
    clock, arrivals, released = [0.0], [None, None, update], []

    def passing(seconds, value=None):
        clock[0] += seconds
        return value

    wire = SimpleNamespace(next=lambda: passing(0.25, arrivals.pop(0)), pause=lambda: passing(1.0), release=released.append)
    monkeypatch.setattr(wait, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert wait._take(wire) == 0.75
    assert released == [update]


# the server


@pytest.mark.parametrize(("params", "clients"), [(1, 1), (10_000, 3), (25_000_000, 1)])
def test_the_server_is_measured(mpi, tmp_path, params, clients):
    arguments = ["bench", "server", "--params", params, "--clients", clients, "--seconds", 0.3]
    done = run_asyncfeded(*arguments, cwd=tmp_path, env=mpi.env, timeout=200)
    assert done.status == 0, str(done)
    figures = done.result
    assert list(figures) == [*SERVER, "machine"]
    assert (figures["params"], figures["clients"]) == (params, clients)
    assert 0 < figures["turnaround_s_p50"] <= figures["turnaround_s_p99"] < 60
    ratio = figures["turnaround_s_p50"] / figures["echo_s_p50"]
    assert figures["turnaround_over_echo"] == pytest.approx(ratio, rel=1e-2)
    assert figures["payload_gb_per_s"] == pytest.approx(8e-9 * params * figures["updates_per_s"], rel=1e-2)
    assert 0 < figures["server_busy_s_per_update"] < 60
    assert figures["bytes_touched_per_update"] == 36 * params
    if params == 25_000_000:  # a base for the client, the global model, a receive buffer; beside them little
        assert 2.9 < figures["server_models"] < 3.9


def test_the_server_is_measured_while_checkpoints_are_written(own_mpi, tmp_path):
    """In which are the model and three bases."""
    arguments = ["bench", "server", "--params", 10_000, "--clients", 3, "--seconds", 0.3, "--checkpoints"]
    done = run_asyncfeded(*arguments, cwd=tmp_path, env=own_mpi.env, timeout=200)
    assert done.status == 0, str(done)
    figures = done.result
    assert list(figures) == [*SERVER, *CHECKPOINTING, "machine"]
    assert 0 < figures["turnaround_s_p50_checkpointing"] <= figures["turnaround_s_p99_checkpointing"] < 60
    ratio = figures["turnaround_s_p99_checkpointing"] / figures["turnaround_s_p99"]
    assert figures["p99_checkpointing_over_p99"] == pytest.approx(ratio, rel=1e-2)
    assert figures["checkpoints"] >= 6  # each of the 6 windows begins with one
    assert 0 < figures["checkpoint_bytes"] - 4 * 4 * 10_000 < 100_000
    assert list(tmp_path.iterdir()) == []


def test_one_and_two_server_ranks_are_measured(own_mpi, tmp_path):
    """The second holds nothing of so small a model; a client that sleeps for 50 ms sends at most 20 updates a second."""
    options = ("--servers", 2, "--clients", 1, "--seconds", 0.3, "--round-s", 0.05)
    done = run_asyncfeded("bench", "servers", "--params", 1000, *options, cwd=tmp_path, env=own_mpi.env, timeout=200)
    assert done.status == 0, str(done)
    figures = done.result
    assert list(figures) == [*SERVERS, "machine"]
    assert (figures["servers"], figures["clients"], figures["hosts"], figures["round_s"]) == ([1, 2], 1, 1, 0.05)
    for i in (0, 1):
        assert 0 < figures["updates_per_s"][i] < 20
        ratio = figures["updates_per_s"][i] / figures["exchanges_per_s"][i]
        assert figures["updates_over_exchanges"][i] == pytest.approx(ratio, rel=1e-2)
        assert 0.05 < figures["client_wait_s"][i] + figures["round_s"] < 60
        assert 0 < figures["busiest_host"][i] <= 1
        for name in ("cpu_s_per_update", "resident_bytes", "models_bytes"):
            assert len(figures[name][i]) == i + 1


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["servers", "--params", 10, "--servers", 0, "--clients", 2], "--servers 0: expected at least 1"),
        (["server", "--params", 10], "--clients is missing: give a number of at least 1"),
        (["server", "--params", 10, "--clients", 0], "--clients 0: expected at least 1"),
        (["wait"], "--ranks is missing: give a number of at least 2"),
        (["wait", "--ranks", 1], "--ranks 1: expected at least 2"),
    ],
)
def test_an_option_that_is_missing_or_too_small_is_named(own_mpi, tmp_path, command, why):
    done = run_asyncfeded("bench", *command, cwd=tmp_path, env=own_mpi.env)
    assert (done.status, done.stderr) == (2, f"asyncfeded: {why}\n"), str(done)


@pytest.mark.parametrize(("option", "value"), [("--params", 0), ("--seconds", "inf"), ("--wait", "nap")])
def test_a_server_that_cannot_be_measured_is_told_once(own_mpi, tmp_path, option, value):
    arguments = {"--params": 10, "--clients": 2} | {option: value}
    done = run_asyncfeded(
        "bench", "server", *(part for pair in arguments.items() for part in pair), cwd=tmp_path, env=own_mpi.env
    )
    assert done.status != 0, str(done)
    assert done.stderr.count(f"asyncfeded: {option} {value}: expected") == 1, str(done)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("bench", [("server", "--params", 10, "--clients", 1), ("simulation", "--ranks", 2)], ids=str)
@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("gpu", "--device gpu: expected the device auto, cpu, or a GPU as torch names it"),
        ("cuda:99", "--device cuda:99: this host has"),
    ],
)
def test_a_device_that_is_not_there_is_told_once(own_mpi, tmp_path, device, why, bench):
    arguments = ["bench", *bench, "--device", device]
    done = run_asyncfeded(*arguments, cwd=tmp_path, env=own_mpi.env)
    assert done.status != 0, str(done)
    assert done.stderr.count(f"asyncfeded: {why}") == 1, str(done)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@pytest.mark.parametrize("params", [1, 10_000, 25_000_000])
def test_a_server_on_a_gpu_is_measured(mpi, tmp_path, params):
    arguments = ["bench", "server", "--params", params, "--clients", 1, "--seconds", 0.3, "--device", "cuda"]
    done = run_asyncfeded(*arguments, cwd=tmp_path, env=mpi.env, timeout=200)
    assert done.status == 0, str(done)
    assert list(done.result) == [*SERVER, "machine"]
    assert done.result["device"] == "cuda:0"


# what is printed


def test_a_report_ends_with_its_figures_in_one_line(capsys):
    bench.report([("what", "how much"), ("it", "1.5")], {"name": "it", "count": 12345678, "rate": 1.2345678e-6}, "a note")
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == {"name": "it", "count": 12345678, "rate": 1.235e-6, "machine": bench.machine()}
    assert [line.split() for line in lines[:2]] == [["what", "how", "much"], ["it", "1.5"]]
    assert f"(a note; on {bench.machine()})" in " ".join(lines)


def refused(done, text):
    """One line on standard error, and nothing measured."""
    assert done.status == 2, str(done)
    assert done.stderr.startswith(f"asyncfeded: {text}"), str(done)
    assert len(done.stderr.splitlines()) == 1, str(done)
    assert done.stdout == ""
