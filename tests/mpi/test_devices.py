"""GPUs, and near cores, on systems made of files."""

import os
from types import SimpleNamespace

import pytest
import torch

from asyncfeded.mpi import devices

# --- GPUs


@pytest.fixture
def gpus(monkeypatch):
    """A host with so many GPUs."""

    def have(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return have


def test_gpus_are_dealt_in_turn(gpus):
    gpus(2)
    assert [devices.device("auto", turn).index for turn in range(5)] == [0, 1, 0, 1, 0]
    assert [devices.device("cuda", turn).index for turn in range(3)] == [0, 1, 0]


def test_a_gpu_may_be_named(gpus):
    gpus(4)
    assert devices.device("cuda:3", 0) == torch.device("cuda", 3)


@pytest.mark.parametrize(
    ("wanted", "count", "words"),
    [
        ("xpu", 2, "0 GPUs of the kind xpu that torch can use, and 2 of the kind cuda: take device=cuda"),
        ("mps:0", 0, "0 GPUs of the kind mps that torch can use; take device=cpu"),
    ],
)
def test_a_gpu_of_another_kind_is_refused(gpus, wanted, count, words):
    gpus(count)
    with pytest.raises(ValueError, match=f"^device = '{wanted}': this host has {words}$"):
        devices.device(wanted, 0)


@pytest.mark.parametrize(("wanted", "count"), [("cpu", 4), ("auto", 0)])
def test_the_cpu_is_taken_where_it_is_wanted_or_all_there_is(gpus, wanted, count):
    gpus(count)
    assert devices.device(wanted, 1) == torch.device("cpu")


@pytest.mark.parametrize(("wanted", "count"), [("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_that_is_not_there_is_refused(gpus, wanted, count):
    gpus(count)
    with pytest.raises(
        ValueError, match=rf"device = '{wanted}': this host has {count} GPUs .*that torch can use; take device=cpu"
    ):
        devices.device(wanted, 0)


def test_a_gpu_is_told_with_its_pci_address(monkeypatch):
    about = SimpleNamespace(pci_domain_id=1, pci_bus_id=0x3B, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: about)
    assert devices.describe_device(torch.device("cuda", 2)) == "cuda:2 0001:3b:00.0"
    assert devices.describe_device(torch.device("cpu")) == "cpu"


def test_an_older_torch_does_not_tell_the_address(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace())
    assert devices.describe_device(torch.device("cuda", 0)) == "cuda:0"


# --- near cores


@pytest.fixture
def near(tmp_path, monkeypatch):
    """Where a rank runs after `run_near`, which may run on some cores, beside a GPU whose near cores the system says so."""

    def run_near(may, said):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(may))
        now = [set(may)]
        monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: now.append(set(cores)))
        gpu = tmp_path / "bus/pci/devices/0000:3b:00.0"
        if said is not None:
            gpu.mkdir(parents=True)
            (gpu / "local_cpulist").write_text(said)
        devices.run_near("0000:3b:00.0", tmp_path)
        return now[-1]

    return run_near


def test_a_rank_keeps_to_the_cores_near_its_gpu(near):
    assert near(range(8), "4-6,8,10-11\n") == {4, 5, 6}


def test_a_rank_that_was_bound_elsewhere_stays_there(near):
    assert near([0, 1], "4-7\n") == {0, 1}


@pytest.mark.parametrize("said", [None, "\n", "?\n"])
def test_where_the_system_does_not_tell_nothing_changes(near, said):
    assert near(range(4), said) == {0, 1, 2, 3}
