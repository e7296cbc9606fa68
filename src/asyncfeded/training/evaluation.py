"""The accuracy of a snapshot of the global model, one batch at a time.

The server calls `step` when it has nothing to do; an update that arrives meanwhile waits for one batch at most. The server
alone decides when to evaluate.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from asyncfeded.model.flat import FlatModel
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks.contract import CheckedTask


class Score(NamedTuple):
    """The result of an evaluation."""

    version: int
    accuracy: float
    loss: float


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
        self._version = -1
        self._sums: dict[str, list[float]] = {}  # sum and count of each metric
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
        self._version, self._next = version, 0
        self._sums = {}

    @torch.inference_mode()
    def step(self) -> Score | None:
        """Test the snapshot on its next batch; the score after the last one."""
        for name, (total, count) in self._task.score(self._flat.module, self._batches[self._next]).items():
            sums = self._sums.setdefault(name, [0.0, 0.0])
            sums[0] += float(total)
            sums[1] += float(count)
        self._next += 1
        if self.running:
            return None
        return Score(self._version, *(self._sums[name][0] / self._sums[name][1] for name in Score._fields[1:]))

    def try_out(self) -> None:
        """Test the model as it stands on its first batch and on the last, which may be smaller.

        Raises:
            TaskError: the task or its model raises something, or gives back something that is no score.
        """
        self.start(self._flat.buffer, -1)
        for number in sorted({0, len(self._batches) - 1}):
            self._next = number
            self.step()
        self._next = len(self._batches)

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
        return Score(version, 0.0, 0.0)
