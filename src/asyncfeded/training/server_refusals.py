"""What the server does not merge: an update that is not finite, counts what its client does not have, or is too far off."""

import math
from collections.abc import Sequence

from asyncfeded.config import Faults
from asyncfeded.rules.decision import Update
from asyncfeded.training.rounds import Workload
from asyncfeded.wire.messages import Arrival


def why_refused(update: Update, arrival: Arrival, limits: Faults, workloads: Sequence[Workload]) -> str:
    """Why an update cannot be merged, as a sentence; empty if it can.

    Args:
        update: the update, measured.
        arrival: what came.
        limits: the section `faults`.
        workloads: what K means for each client; empty: clients without data.
    """
    train_loss = arrival.train_loss
    if not math.isfinite(update.change):
        return f"weights that are not finite (train loss {train_loss:g}): lower training.learning_rate if that is usual"
    if not math.isfinite(train_loss) and limits.bad_loss == "refuse":
        return f"train loss {train_loss:g}: lower training.learning_rate if that is usual, or set faults.bad_loss = take"
    if workloads:
        due = workloads[update.client].of(update.epochs)
        if (arrival.steps, arrival.samples) != (due.steps, due.samples):
            done = f"{arrival.samples} samples in {arrival.steps} steps"
            return f"{done}, but its data has {due.samples} in {due.steps} (K = {update.epochs})"
    if limits.max_gamma and update.gamma > limits.max_gamma:
        return f"staleness gamma = {update.gamma:g}, more than faults.max_gamma = {limits.max_gamma:g}"
    if limits.max_change and update.change > limits.max_change:
        return f"||Delta|| = {update.change:g}, more than faults.max_change = {limits.max_change:g}"
    return ""
