"""Where a client is in its training: what a schedule, and an optimizer that a task makes, are told."""

from typing import NamedTuple


class At(NamedTuple):
    """A step of a client. It is the same in a replay and in a run that goes on, so that what follows from it is too."""

    client: int
    round: int
    """Of this client, from 0."""
    step: int
    """Of this round, from 0."""
    steps: int
    """Steps of this round."""
    steps_before: int
    """Steps that the client has done before this round, in its merged updates."""
    version: int
    """Of the global model that the round began from."""
    share: float
    """Part of the run that was done when that model was sent, 0 to 1, by limits.updates or limits.seconds."""
