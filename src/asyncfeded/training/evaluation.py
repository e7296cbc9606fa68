"""The metrics of a snapshot of the global model, one batch at a time.

The server calls `step` when it has nothing to do; an update that arrives meanwhile waits for one batch at most. The server
alone decides when to evaluate.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from asyncfeded.metric import DEFAULT
from asyncfeded.model.flat import FlatModel
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks.classification import Batch
from asyncfeded.tasks.contract import CheckedTask, TaskError, fault


class Score(NamedTuple):
    """The result of an evaluation."""

    version: int
    values: dict[str, float]
    """By metric, in the order of the task."""


class Tally:
    """The sums and counts of a task's metrics over some batches.

    Args:
        task: gives them for each batch.
    """

    def __init__(self, task: CheckedTask) -> None:
        self._task, self._sums = task, {name: [0.0, 0.0] for name in task.metrics}

    def add(self, model: nn.Module, batch: Batch) -> None:
        """Test a model on a batch. Raises TaskError if that fails."""
        for name, (total, count) in self._task.score(model, batch).items():
            self._sums[name][0] += total
            self._sums[name][1] += count

    @property
    def uncounted(self) -> list[str]:
        """The metrics whose count is 0."""
        return [name for name, (_, count) in self._sums.items() if not count]

    def values(self) -> dict[str, float]:
        """The value of each metric; NaN where the count is 0. Raises TaskError if the task's `finish` fails."""
        values = {}
        for name, (total, count) in self._sums.items():
            try:
                values[name] = self._task.metrics[name].value(total, count) if count else math.nan
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
    """

    def __init__(self, task: CheckedTask, flat: FlatModel, batch_size: int, seed: int) -> None:
        device = flat.buffer.device
        inputs, targets = task.test_data()
        self._task, self._flat, self._seed = task, flat, seed
        self._batches = list(
            zip(torch.split(inputs.to(device), batch_size), torch.split(targets.to(device), batch_size), strict=True)
        )
        self._next = len(self._batches)
        self._version, self._tally = -1, Tally(task)
        flat.module.eval()

    @property
    def num_bytes(self) -> int:
        """Memory of the snapshot."""
        return 4 * self._flat.layout.size

    @property
    def running(self) -> bool:
        """Whether a snapshot has batches left."""
        return self._next < len(self._batches)

    def start(self, x: Tensor, version: int) -> None:
        """Take a snapshot of x, float32 (size,)."""
        self._flat.as_made.restore()
        seed_globals(self._seed, Stream.EVALUATION)
        self._flat.buffer.copy_(x)
        self._version, self._next, self._tally = version, 0, Tally(self._task)

    @torch.inference_mode()
    def step(self) -> Score | None:
        """Test the snapshot on its next batch; the score after the last one."""
        self._tally.add(self._flat.module, self._batches[self._next])
        self._next += 1
        return None if self.running else Score(self._version, self._tally.values())

    def try_out(self, refuse: bool) -> None:
        """Test the model as it stands on its first batch and on the last, which may be smaller.

        Where a metric counts nothing in these, the other batches follow, until each has counted something.

        Args:
            refuse: whether a value that is not finite is an error (faults.bad_loss).

        Raises:
            TaskError: the task or its model raises something, or gives back something that is no score.
        """
        self.start(self._flat.buffer, -1)
        last = len(self._batches) - 1
        for number in (*sorted({0, last}), *range(1, last)):
            if number in (0, last) or self._tally.uncounted:
                self._next = number
                self.step()
        self._next = len(self._batches)
        name = f"task {self._task.name}, score"
        if none := self._tally.uncounted:
            raise TaskError(f"{name}: the count of {', '.join(none)} is 0 over all test data, so that there is no value")
        values = self._tally.values().items()
        bad = ", ".join(f"{metric} is {value:g}" for metric, value in values if not math.isfinite(value))
        if bad and refuse:
            raise TaskError(
                f"{name}: {bad} with the weights that the model begins with; mend the test data, the model or the metric, "
                f"or set faults.bad_loss = take if it may be so"
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
