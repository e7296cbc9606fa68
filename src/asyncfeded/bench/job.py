"""The ranks of a measurement: joined, refused, and left as those of a run are."""

import math
import sys
from collections.abc import Callable

from asyncfeded.mpi import launcher
from asyncfeded.mpi.world import Backoff, RefusedError, World, join_job, leave_job


def in_job(measure: Callable[[World], None]) -> int:
    """Measure something with all ranks of the job. Collective. Returns the exit status, 2 where the ranks cannot start."""
    world: World | None = None
    with launcher.guard():
        try:
            world = join_job()
            measure(world)
            status = 0
        except RefusedError as error:
            launched = launcher.launched_by()
            rank = world.rank if world else launched[2] if launched else 0
            if rank == 0:
                print(f"asyncfeded: {error}", file=sys.stderr, flush=True)  # noqa: T201
            status = 2 if world or rank == 0 else 0  # as run.train: no status of another rank may end rank 0 before it told
        leave_job(status)
    return status


def check(seconds: float, wait: str) -> None:
    """What the measurements have in common.

    Raises:
        RefusedError: no such time, or no such way to wait.
    """
    if wait not in ("auto", "spin", "yield"):
        raise RefusedError(f"--wait {wait}: expected auto, spin or yield")
    if not 0 < seconds < math.inf:
        raise RefusedError(f"--seconds {seconds:g}: expected the seconds of a measurement, more than 0")


def mpi() -> str:
    """Vendor and version of the MPI in use."""
    return launcher.vendor()


def together(world: World) -> None:
    """Go on when all ranks are here, without taking a core from those that are not. Collective."""
    Backoff(spin=False).wait(world.comm.Ibarrier())
