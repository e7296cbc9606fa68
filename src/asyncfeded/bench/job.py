"""The ranks of a measurement: joined, refused, and left as those of a run are."""

import sys
from collections.abc import Callable

from asyncfeded import launcher, world
from asyncfeded.world import World


def in_job(measure: Callable[[World], None]) -> int:
    """Measure something with all ranks of the job. Collective. Returns the exit status, 2 where the ranks cannot start."""
    here: World | None = None
    with launcher.guard():
        try:
            here = world.join()
            measure(here)
            status = 0
        except world.RefusedError as error:
            launched = launcher.launched_by()
            rank = here.rank if here else launched[2] if launched else 0
            if rank == 0:
                print(f"asyncfeded: {error}", file=sys.stderr, flush=True)  # noqa: T201
            status = 2 if here or rank == 0 else 0  # as run.train: no status of another rank may end rank 0 before it told
        world.leave()
    return status
