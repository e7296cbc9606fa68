"""Whether a run is still made from what its record says: one that is resumed or replayed on other data is another run.

Besides the data this is code of the user's, first weights, and frozen parameters (plan.Plan.origin).
"""

from pathlib import Path

import numpy as np

from asyncfeded.files.digest import compare_digests
from asyncfeded.store.record import Tables


def check_data(run_dir: Path, before: Tables, data: str, clients: np.ndarray) -> None:
    """Whether data, and what else a run is made from, is that of the run.

    Args:
        run_dir: folder of the run.
        before: its record.
        data: what all of it is now (files/digest.py).
        clients: heterogeneity.PROFILE (clients,) now.

    Raises:
        ValueError: it is not; the message says what differs. A record of an older version holds the samples only.
    """
    then, now, told = before.attributes["clients"]["samples"], clients["samples"], before.attributes["data"]  # type: ignore[index]
    differences = [] if told is None else list(filter(None, [compare_digests(str(told), data)]))
    if len(then) == len(now) and (other := np.flatnonzero(then != now)).size:
        client = other[0]
        more = f", and {other.size - 1} more clients differ" if other.size > 1 else ""
        differences.append(f"client {client} had {then[client]} samples and has {now[client]}{more}")
    if differences:
        what = "; ".join(differences)
        raise ValueError(f"{run_dir}: {what}: not what the run was made from; put that back, or train anew")
