"""The metrics of a snapshot of the global model, one batch at a time.

The server calls `step` when it has nothing to do; an update that arrives meanwhile waits for one batch at most. The server
alone decides when to evaluate.
"""

import math
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from asyncfeded.metric import DEFAULT
from asyncfeded.model.flat import FlatModel
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks.classification import Batch
from asyncfeded.tasks.contract import CheckedTask, TaskError, fault
from asyncfeded.training.batches import count, in_order, read
from asyncfeded.training.loader import Loader


class Score(NamedTuple):
    """The result of an evaluation."""

    version: int
    values: dict[str, float]
    """By metric, in the order of the task."""

    @property
    def not_finite(self) -> str:
        """Which values are infinite or no number, as text; empty if none is."""
        return ", ".join(f"{name} {value:g}" for name, value in self.values.items() if not math.isfinite(value))


class Tally:
    """The sums and counts of a task's metrics over some batches.

    Args:
        task: gives them for each batch.
    """

    def __init__(self, task: CheckedTask) -> None:
        self._task, self._sums = task, {name: [0.0, 0.0] for name in task.metrics}

    def add(self, model: nn.Module, batch: Batch) -> None:
        """Test a model on a batch. Raises TaskError if that fails."""
        for name, (total, counted) in self._task.score(model, batch).items():
            self._sums[name][0] += total
            self._sums[name][1] += counted

    @property
    def uncounted(self) -> list[str]:
        """The metrics whose count is 0."""
        return [name for name, (_, counted) in self._sums.items() if not counted]

    def values(self) -> dict[str, float]:
        """The value of each metric; NaN where the count is 0. Raises TaskError if the task's `finish` fails."""
        values = {}
        for name, (total, counted) in self._sums.items():
            try:
                values[name] = self._task.metrics[name].value(total, counted) if counted else math.nan
            except Exception as error:
                raise fault(self._task.name, f"finish of the metric {name}", error) from None
        return values


class Evaluator:
    """Tests snapshots of the global model.

    Args:
        task: gives the test data and the metrics.
        flat: a separate model for the snapshot, on the device that evaluates.
        batch_size: samples per step.
        seed: seed of the run. A model that draws random numbers when it is tested draws the same for every snapshot.
        workers: processes that read the test data ahead, where it is no `Data`.

    Attributes:
        seconds: wall time of the last evaluation, from its snapshot to its last batch.
    """

    def __init__(self, task: CheckedTask, flat: FlatModel, batch_size: int, seed: int, workers: int = 0) -> None:
        self._task, self._flat, self._seed, self._batch_size = task, flat, seed, batch_size
        self._data = Loader(task, flat.buffer.device, workers, seed).add(task.test_data())
        self._batches: Iterator[tuple[Batch, int]] = iter(())
        self._next: tuple[Batch, int] | None = None
        self._version, self._tally = -1, Tally(task)
        self._began = self.seconds = 0.0
        flat.module.eval()

    @property
    def num_bytes(self) -> int:
        """Memory of the snapshot."""
        return 4 * self._flat.layout.size

    @property
    def running(self) -> bool:
        """Whether a snapshot has batches left."""
        return self._next is not None

    def start(self, x: Tensor, version: int) -> None:
        """Take a snapshot of x, float32 (size,), and read the first batch."""
        self._start(x, version, in_order(self._data, self._batch_size))

    def _start(self, x: Tensor, version: int, batches: Iterable[range]) -> None:
        self._began = time.perf_counter()
        self._flat.as_made.restore()
        seed_globals(self._seed, Stream.EVALUATION)
        self._flat.buffer.copy_(x)
        self._version, self._tally = version, Tally(self._task)
        self._batches = read(self._data, batches, (Stream.EVALUATION,), "test_data")
        self._next = next(self._batches, None)

    def step(self) -> Score | None:
        """Test the snapshot on its next batch, and read the one after it; the score after the last one."""
        assert self._next
        with torch.inference_mode():
            self._tally.add(self._flat.module, self._next[0])
        self._next = next(self._batches, None)
        if self.running:
            return None
        self.seconds = time.perf_counter() - self._began
        return Score(self._version, self._tally.values())

    def try_out(self, refuse: bool) -> None:
        """Test the model as it stands on its first batch and on the last, which may be smaller; on two of a stream.

        Where a metric counts nothing in these, the other batches follow, until each has counted something.

        Args:
            refuse: whether a value that is not finite is an error (faults.bad_loss).

        Raises:
            TaskError: the task or its model raises something, or gives back something that is no score.
        """
        batches: Iterable[range] = in_order(self._data, self._batch_size)
        if count(self._data) >= 0:
            first, *more = batches
            batches = [first, *more[-1:], *more[:-1]]
        self._start(self._flat.buffer, -1, batches)
        if not self.running:
            raise TaskError(f"task {self._task.name}, test_data: has no sample; the model cannot be tested without one")
        tried = 0
        while self.running and (tried < 2 or self._tally.uncounted):
            self.step()
            tried += 1
        self._next = None
        name = f"task {self._task.name}, score"
        if none := self._tally.uncounted:
            raise TaskError(f"{name}: the count of {', '.join(none)} is 0 over all test data, so that there is no value")
        if (bad := Score(-1, self._tally.values()).not_finite) and refuse:
            raise TaskError(
                f"{name}: gives {bad} with the weights that the model begins with; mend the test data, the model or the "
                f"metric, or set faults.bad_loss = take if it may be so"
            )

    def score(self, x: Tensor, version: int) -> Score:
        """Evaluate x in one piece."""
        self.start(x, version)
        while True:
            if (score := self.step()) is not None:
                return score


class NoEvaluator:
    """An `Evaluator` that takes no time and tests nothing, for measurements of the server alone."""

    running = False

    def start(self, x: Tensor, version: int) -> None:
        """See `Evaluator`."""

    def score(self, x: Tensor, version: int) -> Score:
        """See `Evaluator`."""
        return Score(version, dict.fromkeys(DEFAULT, 0.0))
