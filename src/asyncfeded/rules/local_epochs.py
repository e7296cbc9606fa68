"""Bounds of K, for the rules that choose how many epochs a client trains next."""

import math

import numpy as np


def check_bounds(epochs_min: int, epochs_max: int) -> None:
    """Whether there is a K between the bounds.

    Raises:
        ValueError: there is none.
    """
    if epochs_min > epochs_max:
        raise ValueError(f"epochs_min = {epochs_min} is above epochs_max = {epochs_max}; swap or change one")


def check_first(epochs: np.ndarray, epochs_min: int, epochs_max: int) -> None:
    """Whether K of all clients' first rounds is within the bounds.

    Raises:
        ValueError: one is not.
    """
    for first in (int(epochs.min()), int(epochs.max())):
        if not epochs_min <= first <= epochs_max:
            raise ValueError(
                f"training.epochs (or steps) = {first} is outside the bounds of K, {epochs_min} to {epochs_max}; change it, "
                f"rule.epochs_min or rule.epochs_max"
            )


def by_speed(first: np.ndarray, done: np.ndarray, client: int) -> int:
    """K of a client in proportion to its speed, which is what it has done: all clients have had the same time.

    With such a K all clients arrive equally often. They are known when all have arrived once: `done` has no 0.

    Args:
        first: int64 (clients,), K of each client's first round.
        done: int64 (clients,), the epochs that each client has done so far.
        client: whose.
    """
    return nearest(float(first[client] * done[client] / done.mean()))


def nearest(number: float) -> int:
    """The nearest integer, halves up."""
    return math.floor(number + 0.5)
