"""The GPUs that torch computes on: CUDA, ROCm (which torch calls cuda too), XPU, MPS, or others that torch names.

A torch knows one kind of them; `torch.accelerator` (2.6 and later) names it, and an earlier torch knows CUDA alone. No other
room asks for a kind by its name: a tensor is in host memory (`is_cpu`), or it is not.
"""

from typing import Any

import torch


def kind() -> str:
    """The kind of the GPUs of this host that torch can use, such as `cuda`, as `device` names it; empty: there are none."""
    if torch.cuda.is_available():
        return "cuda"
    found = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None
    return found.type if found and torch.accelerator.is_available() else ""


def names() -> list[str]:
    """What the GPUs of this host call themselves."""
    if not (found := kind()):
        return []
    gpus = _functions(found)
    return [gpus.get_device_name(i) if hasattr(gpus, "get_device_name") else found for i in range(gpus.device_count())]


def count() -> int:
    """How many GPUs of this host torch can use."""
    return int(_functions(found).device_count()) if (found := kind()) else 0


def take(gpu: torch.device) -> None:
    """Make a GPU the one of this process: pinned memory is then also made in its context."""
    if hasattr(_functions(gpu.type), "set_device"):  # MPS has one GPU
        _functions(gpu.type).set_device(gpu)


def pci_address(gpu: torch.device) -> str:
    """The PCI address of a GPU, such as `0000:3b:00.0`; empty where torch does not give it."""
    tell = getattr(_functions(gpu.type), "get_device_properties", lambda gpu: None)
    about = tell(gpu)
    domain, bus, number = (getattr(about, f"pci_{part}_id", None) for part in ("domain", "bus", "device"))
    return "" if None in (domain, bus, number) else f"{domain:04x}:{bus:02x}:{number:02x}.0"


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was asked to; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)


def mark(gpu: torch.device) -> Any:  # noqa: ANN401, each kind has an Event of its own
    """An event behind all that the GPU was asked to do until now. Its `synchronize` waits until that is done."""
    event = _functions(gpu.type).Event()
    event.record()
    return event


def computes_bf16(gpu: torch.device) -> bool:
    """Whether a GPU computes in bfloat16 without imitating it; those that do not say are believed to."""
    supported = getattr(_functions(gpu.type), "is_bf16_supported", None)
    return bool(supported(including_emulation=False)) if supported else True


def random_state(device: torch.device) -> tuple[torch.Tensor, ...]:
    """The states of torch's global generators, which a device's computations draw from."""
    states = (torch.get_rng_state(),)
    return states if device.type == "cpu" else (*states, _functions(device.type).get_rng_state())


def draw_again(device: torch.device, states: tuple[torch.Tensor, ...]) -> None:
    """Set torch's global generators to what `random_state` gave."""
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        _functions(device.type).set_rng_state(states[1])


def sums(device: torch.device) -> torch.dtype:
    """The type that a device sums in: float64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def _functions(kind: str) -> Any:  # noqa: ANN401, torch.cuda, torch.xpu and so on have no type in common
    return getattr(torch, kind)


def nvtx() -> Any:  # noqa: ANN401, torch gives it no types
    """Functions of NVIDIA's profilers, `range_push` and `range_pop`; None where torch was built without CUDA."""
    return torch.cuda.nvtx if torch.version.cuda is not None else None
