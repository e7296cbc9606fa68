"""The ranks of a measurement: they join, are refused and leave as the ranks of a run do."""

import math
import time
from collections.abc import Callable
from typing import cast, get_args

import torch

from asyncfeded.config import known_device
from asyncfeded.mpi import devices, launcher
from asyncfeded.mpi.waiting import Backoff, Wait
from asyncfeded.mpi.world import RefusedError, World, join_job, leave_job, refuse
from asyncfeded.wire.client_wire import ClientWire

EVERY = 4096
"""A client changes one of so many elements of its model."""


def in_job(measure: Callable[[World], None]) -> int:
    """Measure something with all ranks of the job. Collective. Returns the exit status: 2 if the ranks cannot start."""
    world: World | None = None
    with launcher.guard():
        try:
            world = join_job()
            measure(world)
            status = 0
        except RefusedError as error:
            status = refuse(error, world)
        leave_job(status)
    return status


def check(seconds: float, wait: str) -> Wait:
    """Check the options that the measurements have in common. Returns how to wait.

    Raises:
        RefusedError: the time or the way to wait is not valid.
    """
    if not 0 < seconds < math.inf:
        raise RefusedError(f"--seconds {seconds:g}: expected the seconds of a measurement, more than 0")
    for way in get_args(Wait):
        if way == wait:
            return cast(Wait, way)
    raise RefusedError(f"--wait {wait}: expected auto, spin or yield")


def device_of(wanted: str) -> torch.device:
    """The device that an option names. Raises ValueError if there is none."""
    try:
        return devices.device(known_device(wanted), 0, "--device")
    except ValueError as error:
        raise ValueError(f"--device {wanted}: {str(error).removeprefix(f'--device = {wanted!r}: ')}") from None


def mpi() -> str:
    """Vendor and version of the MPI in use."""
    return launcher.vendor()


def together(world: World) -> None:
    """Wait until all ranks have called this, without occupying a core that other ranks need. Collective."""
    Backoff().wait(world.comm.Ibarrier())


def answer(wire: ClientWire, buffer: torch.Tensor, round_s: float = 0.0) -> list[float]:
    """Return a changed model for each that comes, until the server stops. Client ranks.

    Args:
        wire: the wire to the server.
        buffer: float32 (size,), the model that it receives and sends.
        round_s: seconds that the client sleeps before it answers, as if it trained.

    Returns:
        Seconds from the end of each round to the next message, of which the last is the stop.
    """
    waits_s, order = [], wire.receive()
    while order is not None:
        if round_s:
            time.sleep(round_s)
        buffer[::EVERY] += 1e-3
        began = time.perf_counter()
        wire.send(order, 1, 1, 0.0, 0.0, 0.0)
        order = wire.receive()
        waits_s.append(time.perf_counter() - began)
    wire.finish()
    return waits_s
