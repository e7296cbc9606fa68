"""GPUs of whatever kind, where this host has none: what torch has for them stands here in its place."""

from types import SimpleNamespace

import pytest
import torch

from asyncfeded import accelerator, seeds
from asyncfeded.mpi import devices


class Event:
    def record(self):
        done.append("record")

    def synchronize(self):
        done.append("wait")


done = []
"""What the GPUs of the test were asked to do."""


@pytest.fixture
def xpus(monkeypatch):
    """A host with two GPUs of the kind xpu, and a torch that was built for them."""
    done.clear()
    xpu = SimpleNamespace(
        device_count=lambda: 2,
        set_device=lambda gpu: done.append(f"take {gpu}"),
        get_device_name=lambda index: f"Data Center GPU Max {index}",
        get_device_properties=lambda gpu: SimpleNamespace(name="no address"),
        is_bf16_supported=lambda including_emulation: including_emulation,
        Event=Event,
    )
    monkeypatch.setattr(torch, "xpu", xpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda gpu: done.append(f"wait for {gpu}"))


XPU = torch.device("xpu", 1)


def test_another_kind_of_gpu_is_found_dealt_and_told(xpus):
    assert (accelerator.kind(), accelerator.count()) == ("xpu", 2)
    assert accelerator.names() == ["Data Center GPU Max 0", "Data Center GPU Max 1"]
    assert [devices.device("auto", turn) for turn in range(3)] == [torch.device("xpu", index) for index in (0, 1, 0)]
    assert [devices.device(wanted, 0) for wanted in ("xpu", "xpu:1")] == [torch.device("xpu", 0), XPU]
    with pytest.raises(ValueError, match="0 GPUs of the kind cuda that torch can use, and 2 of the kind xpu"):
        devices.device("cuda", 0)
    assert devices.describe_device(XPU) == "xpu:1"


def test_another_kind_of_gpu_is_taken_waited_for_and_asked_what_it_can(xpus):
    devices.take(XPU)
    accelerator.mark(XPU).synchronize()
    accelerator.synchronize(XPU)
    accelerator.synchronize(torch.device("cpu"))
    assert done == ["take xpu:1", "record", "wait", "wait for xpu:1"]
    assert not accelerator.computes_bf16(XPU)
    assert accelerator.sums(XPU) == torch.float64


def test_a_gpu_is_seeded_with_the_cpu(xpus, monkeypatch):
    """torch.manual_seed seeds the GPUs of every kind."""
    monkeypatch.setattr(torch, "manual_seed", done.append)
    seeds.seed_globals(0, seeds.Stream.TRAINING, 1, 2)
    assert len(done) == 1


def test_a_kind_that_can_do_less_is_asked_for_less(monkeypatch):
    """MPS has one GPU, no name for it, and no float64."""
    monkeypatch.setattr(torch, "mps", SimpleNamespace(device_count=lambda: 1))
    monkeypatch.setattr(accelerator, "kind", lambda: "mps")
    gpu = devices.device("auto", 3)
    devices.take(gpu)
    assert (accelerator.names(), devices.describe_device(gpu)) == (["mps"], "mps:0")
    assert accelerator.computes_bf16(gpu)
    assert torch.zeros((), dtype=accelerator.sums(gpu)).dtype == torch.float32


def test_an_earlier_torch_knows_cuda_alone(monkeypatch):
    monkeypatch.delattr(torch, "accelerator")
    for there, kind in ((False, ""), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert accelerator.kind() == kind
