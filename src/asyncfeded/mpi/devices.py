"""The GPU of a rank, and the cores near it."""

import os
from contextlib import suppress
from pathlib import Path

import torch

from asyncfeded import accelerator


def device(wanted: str, turn: int, key: str = "device") -> torch.device:
    """The device of a rank. The GPUs of a host are given to its ranks in turn.

    Args:
        wanted: auto, cpu, or a kind of GPU with or without a number, as in the config's `device`.
        turn: index of this rank, from 0, among the ranks of its host that get a GPU.
        key: the setting that `wanted` comes from, for the error message.

    Raises:
        ValueError: there is no such GPU.
    """
    kind, count = accelerator.kind(), accelerator.count()
    if wanted == "cpu" or (wanted == "auto" and not count):
        return torch.device("cpu")
    name, _, number = wanted.partition(":")
    if name not in ("auto", kind):
        others = f", and {count} of the kind {kind}: take {key}={kind}" if count else f"; take {key}=cpu"
        raise ValueError(f"{key} = {wanted!r}: this host has 0 GPUs of the kind {name} that torch can use{others}")
    index = int(number or turn % max(count, 1))
    if index >= count:
        raise ValueError(f"{key} = {wanted!r}: this host has {count} GPUs that torch can use; take {key}=cpu")
    return torch.device(kind, index)


def take(gpu: torch.device) -> None:
    """Make this GPU the rank's own, and run near it. Call it before touching any memory that is to lie near the GPU."""
    if gpu.type != "cpu":
        accelerator.take(gpu)
        run_near(accelerator.pci_address(gpu))


def describe_device(device: torch.device) -> str:
    """The device as the map shows it: `cpu`, or `cuda:0 0000:3b:00.0`."""
    return str(device) if device.type == "cpu" else f"{device} {accelerator.pci_address(device)}".strip()


def run_near(address: str, system: Path = Path("/sys")) -> None:
    """Keep this rank on the cores of the NUMA node of a PCI device. Memory lies on the node whose core touches it first.

    Does nothing where the system does not name these cores, or where the rank may run on none of them.
    """
    with suppress(OSError, ValueError):
        near = _cores((system / "bus/pci/devices" / address / "local_cpulist").read_text())
        if mine := near & os.sched_getaffinity(0):
            os.sched_setaffinity(0, mine)


def _cores(text: str) -> set[int]:
    """The cores in a list such as `0-3,8`."""
    ends = [[int(end) for end in part.split("-")] for part in text.strip().split(",")]
    return {core for part in ends for core in range(part[0], part[-1] + 1)}
