"""How the samples of one data set are split over the clients, where nothing in the data says whose they are.

A split is a list of the rows of each client, int64 (n,); together they are all rows, each once. Clients, classes and groups
are counted, and the samples themselves are not looked at, so that a split is cheap.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asyncfeded.seeds import Stream, numpy_rng
from asyncfeded.tasks.classification import deal


def hold_back(num_rows: int, share: float, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows to train on and those to test on, in order. They are drawn, but always the same.

    Args:
        num_rows: of the data set.
        share: part to test on; at least one row.
        where: what there is, for the message.

    Raises:
        ValueError: no row is left to train on.
    """
    rows = numpy_rng(0, Stream.SPLIT).permutation(num_rows)
    num_test = max(1, int(num_rows * share))
    if num_test >= num_rows:
        raise ValueError(
            f"{where}: {num_rows} samples, too few to hold back {share:g} of them for testing (task.test_share)"
        )
    return np.sort(rows[num_test:]), np.sort(rows[:num_test])


def remark_held_back(path: Path, rows: tuple[np.ndarray, np.ndarray], share: float, grouped: bool) -> str:
    """A sentence about what `hold_back` has given; `grouped`: whether clients get groups of rows."""
    train, test = map(len, rows)
    known = ", of all groups, also of those that are trained on" if grouped else ""
    return f"{path}: {test} of {train + test} samples are held back for testing (task.test_share = {share:g}){known}"


def split_even(num_rows: int, num_clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffled, in parts that differ by one at most."""
    return np.array_split(rng.permutation(num_rows), num_clients)


def split_dirichlet(
    labels: np.ndarray, num_clients: int, alpha: float, samples_min: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Every class is dealt in proportions drawn from Dirichlet(alpha) (Hsu et al. 2019, arXiv 1909.06335).

    Args:
        labels: class of each row, (n,).
        num_clients: number of clients.
        alpha: concentration. Small: each client sees few classes; large: all alike.
        samples_min: fewest rows of a client; the split is redrawn until all have them.
        rng: draws.

    Raises:
        ValueError: there are too few rows, or 1000 draws gave no such split.
    """
    if num_clients * samples_min > len(labels):
        raise ValueError(
            f"{len(labels)} training images are too few for {num_clients} clients of at least {samples_min}; lower clients "
            f"or task.samples_min"
        )
    for _ in range(1000):
        parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = np.cumsum(rng.dirichlet(np.full(num_clients, alpha)))[:-1]
            for part, piece in zip(parts, np.split(members, (shares * len(members)).astype(int)), strict=True):
                part.append(piece)
        drawn = [np.concatenate(part) for part in parts]
        if min(map(len, drawn)) >= samples_min:
            return drawn
    raise ValueError(
        f"no Dirichlet({alpha}) split of {len(labels)} images over {num_clients} clients gave each at least {samples_min} "
        f"in 1000 draws; raise task.alpha, or lower clients or task.samples_min"
    )


def split_by_class(labels: np.ndarray, num_clients: int, classes_each: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Each client gets few classes, and each class goes to its clients in equal parts.

    The classes stand in a circle, in a drawn order; client i takes the next `classes_each` of them behind those of client
    i - 1.

    Args:
        labels: class of each row, (n,).
        num_clients: number of clients.
        classes_each: classes of a client; more if a class had no client otherwise, and all if there are not so many.
        rng: draws.
    """
    circle = rng.permutation(np.unique(labels))
    each = min(len(circle), max(classes_each, -(-len(circle) // num_clients)))
    places = (np.arange(num_clients * each) % len(circle)).reshape(num_clients, each)
    parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for place, label in enumerate(circle):
        owners = np.flatnonzero((places == place).any(axis=1))
        members = rng.permutation(np.flatnonzero(labels == label))
        for owner, piece in zip(owners, np.array_split(members, len(owners)), strict=True):
            parts[owner].append(piece)
    return [np.concatenate(part) for part in parts]


def split_by_group(groups: np.ndarray, num_clients: int, where: str) -> list[np.ndarray]:
    """Groups are dealt to the clients in turn, in order: client i gets groups i, i + n, i + 2n, ...

    Args:
        groups: group of each row, numbers or strings, (n,).
        num_clients: n.
        where: where the groups stand, for the message.

    Raises:
        ValueError: there are fewer groups than clients.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    rows = np.split(np.argsort(group_of, kind="stable"), np.cumsum(np.bincount(group_of))[:-1])
    having = f"{where} has {len(names)} groups to train on"
    return [np.concatenate(deal(rows, client, num_clients, having)) for client in range(num_clients)]


def split_alike(kinds: np.ndarray, had: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Rows to test on, dealt as other rows are: each kind of them in the proportions in which the clients have it.

    Args:
        kinds: class or group of each row, (n,).
        had: for each client the kinds of the rows that it trains on.
    """
    names, numbers = np.unique(np.concatenate([kinds, *had]), return_inverse=True)
    own, client_of = numbers[: len(kinds)], np.repeat(np.arange(len(had)), [len(some) for some in had])
    counts = np.zeros((len(names), len(had)), np.int64)
    np.add.at(counts, (numbers[len(kinds) :], client_of), 1)
    parts: list[list[np.ndarray]] = [[] for _ in had]
    for number in np.unique(own[counts.sum(axis=1)[own] > 0]):  # what nobody trains on is nobody's
        rows = np.flatnonzero(own == number)
        ends = np.cumsum(counts[number]) * len(rows) // counts[number].sum()
        for part, piece in zip(parts, np.split(rows, ends[:-1]), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate([np.zeros(0, np.int64), *part])) for part in parts]
