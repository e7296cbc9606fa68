"""Tasks that runs of one process have in common, as the runs of a study do."""

from functools import cache

from asyncfeded.config import Config
from asyncfeded.tasks import TASKS, Task, load_task


class Kept:
    """Gives runs that follow each other the same task, if they have the same keys and seed: its data is read once.

    A task of the user's own is made anew for each run, since its data may change while it is read.
    """

    def __init__(self) -> None:
        self._asked: tuple[object, ...] = ()
        self._task: Task | None = None

    def task(self, config: Config) -> Task:
        """The task of a run. Raises as `load_task`."""
        if config.task["name"] not in TASKS:
            return load_task(config.task)
        asked = config.task, config.seed
        if self._task is None or asked != self._asked:
            self._task = None  # before the next one reads its data
            task = load_task(config.task)
            vars(task).update({read: cache(getattr(task, read)) for read in ("sizes", "client_data", "test_data")})
            self._asked, self._task = asked, task
        return self._task
