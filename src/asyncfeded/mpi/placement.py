"""Where a rank runs: its share of the host's cores, and the map of all ranks.

This file uses neither MPI nor torch: world.py exchanges this information between ranks, devices.py chooses GPUs.
"""

from collections.abc import Iterable, Sequence

import numpy as np

COLUMNS = ("host", "role", "device", "cores", "threads", "group")
PLACE = np.dtype(list(zip(COLUMNS, ("S64", "S8", "S40", np.float64, np.int32, np.int32), strict=True)))
"""Where one rank runs. device: `cpu`, or `cuda:0` and its PCI address, where torch gives it. group: the number of the ranks
that train clients together, of which it is one; -1: it trains alone, or not at all."""
ROWS = 16
"""Up to this many ranks, a map shows them one by one. If there are more, equal ranks share a row."""


def share_cores(masks: np.ndarray, quotas: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The cores of each rank of a host. Ranks that share a core or a quota get equal parts of it.

    Args:
        masks: bool or uint8 (ranks, cores), where each rank may run.
        quotas: float64 (ranks,), see `quota`.
        groups: int64 (ranks,), the control group that each quota belongs to.

    Returns:
        float64 (ranks,).
    """
    cores = (masks / np.maximum(masks.sum(axis=0), 1)).sum(axis=1)
    sharing = (groups[:, None] == groups).sum(axis=1)
    parts: np.ndarray = np.minimum(cores, quotas / sharing)
    return parts


def table(places: np.ndarray) -> list[str]:
    """The map of ranks as lines. The first line has the heads of the columns.

    Args:
        places: PLACE (ranks,), by rank in MPI_COMM_WORLD. If there are more than ROWS, ranks that differ only in rank and
            host share a line.
    """
    grouped = len(places) > ROWS
    groups: dict[tuple[object, ...], list[int]] = {}
    for rank, place in enumerate(places.tolist()):
        groups.setdefault(place[1:] if grouped else (rank,), []).append(rank)
    several = bool((places["group"] >= 0).any())
    rows = [("rank", *COLUMNS[: 6 if several else 5])]
    for ranks in groups.values():
        host, role, device, cores, threads, group = places[ranks[0]].tolist()
        hosts = len(np.unique(places["host"][ranks]))
        where = host.decode() if hosts == 1 else f"{hosts} hosts"
        row = (numbers(ranks), where, role.decode(), device.decode(), f"{cores:.3g}", str(threads))
        rows.append((*row, str(group) if group >= 0 else "")[: len(rows[0])])
    return columns(rows)


def check_groups(groups: Iterable[Sequence[int]], places: np.ndarray) -> None:
    """Whether the ranks of every group can add up their gradients.

    Args:
        groups: the ranks of each.
        places: PLACE (ranks,).

    Raises:
        ValueError: they compute on devices of several kinds, or two of them on one GPU.
    """
    for ranks in map(list, groups):
        devices = [device.decode() for device in places["device"][ranks]]
        if len(kinds := sorted({device.partition(":")[0] for device in devices})) > 1:
            raise ValueError(
                f"ranks {numbers(ranks)} train a client together, some on {kinds[0]} and some on {kinds[1]}; set "
                f"device = {kinds[0]}, or start ranks where all hosts have as many GPUs"
            )
        taken = list(zip(places["host"][ranks].tolist(), devices, strict=True))
        if devices[0] != "cpu" and len(set(taken)) < len(ranks):
            raise ValueError(
                f"ranks {numbers(ranks)} train a client together, and share a GPU: each needs one of its own; take a "
                f"smaller ranks_per_client, or device = cpu"
            )


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of words as lines, with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def numbers(some: Iterable[int]) -> str:
    """Rising numbers as `0-3,7`. If there are many ranges: the first few, and how many numbers there are."""
    ranges: list[list[int]] = []
    count = 0
    for number in some:
        count += 1
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    words = [f"{first}-{last}" if last > first else str(first) for first, last in ranges]
    return ",".join(words) if len(words) <= 4 else f"{','.join(words[:3])},... ({count})"
