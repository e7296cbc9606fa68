"""The factor on the learning rate in each step: a warm-up, and a line or half a cosine over steps, rounds or the run."""

import math
from collections.abc import Callable

from asyncfeded.config import Training
from asyncfeded.tasks.at import At
from asyncfeded.tasks.contract import CheckedTask


def find_schedule(task: CheckedTask, training: Training) -> Callable[[At], float] | None:
    """What gives the factor on the learning rate: the task or the config; None: it stays 1.

    Raises:
        ValueError: both do.
    """
    configured = training.schedule != "constant" or bool(training.warmup)
    if task.factor:
        if configured:
            key = "schedule" if training.schedule != "constant" else "warmup"
            raise ValueError(f"task {task.name} has a schedule of its own (factor); leave training.{key} out")
        return task.factor
    return Schedule(training) if configured else None


class Schedule:
    """The schedule that the config describes.

    Args:
        training: with a schedule, or a warm-up, or both.
    """

    def __init__(self, training: Training) -> None:
        self._training, self._end = training, training.learning_rate_end / training.learning_rate

    def __call__(self, at: At) -> float:
        """The factor in a step."""
        training, done = self._training, at.steps_before + at.step
        warm = min(1.0, (done + 1) / training.warmup) if training.warmup else 1.0
        if training.schedule == "constant":
            return warm
        if training.schedule_over == "run":
            part = at.share
        elif training.schedule_over == "rounds":
            part = at.round / training.schedule_length
        else:
            part = (done - training.warmup) / (training.schedule_length - training.warmup)
        part = min(max(part, 0.0), 1.0)
        left = 1.0 - part if training.schedule == "linear" else (1.0 + math.cos(math.pi * part)) / 2.0
        return warm * (self._end + (1.0 - self._end) * left)
