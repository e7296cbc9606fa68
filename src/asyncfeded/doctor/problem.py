"""Judges the measurements of a job and names the problems. Pure: it knows no MPI and measures nothing itself."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from asyncfeded.mpi.placement import numbers

SKEW_S = 1.0
"""Largest difference between clocks that is no problem."""
THIN = 0.2e9
"""Bytes per second between hosts; less is reported as a problem."""


class Problem(NamedTuple):
    """One line for the user: what is wrong, and what to do."""

    text: str
    stops: bool = False
    """Whether no run can start, or end well, with this problem."""


class Link(NamedTuple):
    """The link between the server and a client."""

    rank: int
    latency_s: float
    """Half of a round trip of 8 bytes, median."""
    bytes_per_s: float
    """One way."""
    skew_s: float
    """How far the client's clock is ahead of the server's."""
    skew_error_s: float
    """Half of the round trip that measured `skew_s`."""


def of_links(links: Sequence[Link], hosts: Sequence[str]) -> list[Problem]:
    """Slow links and wrong clocks.

    A link is compared with the links of its kind (within the server's host, or to other hosts), if there are at least three.

    Args:
        links: of every client.
        hosts: of every rank.
    """
    noticed = []
    for beyond in (False, True):
        kind = [link for link in links if (hosts[link.rank] != hosts[0]) == beyond]
        if not kind:
            continue
        latency_s = statistics.median(link.latency_s for link in kind)
        bytes_per_s = statistics.median(link.bytes_per_s for link in kind)
        if beyond and bytes_per_s < THIN:
            noticed.append(
                Problem(
                    f"the network moves {bytes_per_s / 1e9:.2f} GB/s between hosts; see that MPI uses the fast one "
                    f"(UCX_NET_DEVICES, FI_PROVIDER, OMPI_MCA_btl_tcp_if_include)"
                )
            )
        for link in kind if len(kind) > 2 else []:
            place = f"rank {link.rank} on {hosts[link.rank]}"
            if link.bytes_per_s < bytes_per_s / 4:
                speeds = f"{link.bytes_per_s / 1e9:.2f} GB/s, others {bytes_per_s / 1e9:.2f}"
                noticed.append(Problem(f"{place} is reached with {speeds}; look at its link, or leave that host out"))
            elif link.latency_s > max(10 * latency_s, 100e-6):
                speeds = f"{link.latency_s * 1e6:.0f} us, others {latency_s * 1e6:.0f}"
                noticed.append(Problem(f"{place} is reached in {speeds}; see what else runs there, or leave that host out"))
    late = {hosts[link.rank]: link.skew_s for link in links if abs(link.skew_s) - link.skew_error_s > SKEW_S}
    noticed += [
        Problem(f"the clock of {host} is {skew_s:+.1f} s off the server's; set it (NTP), or times in logs do not compare")
        for host, skew_s in late.items()
    ]
    return noticed


def of_places(places: np.ndarray) -> list[Problem]:
    """Ranks that share a core or a GPU.

    Args:
        places: placement.PLACE (ranks,).
    """
    noticed, crowded, gpus = [], defaultdict(list), defaultdict(list)
    for rank, place in enumerate(places):
        host, device = place["host"].decode(), place["device"].decode()
        if place["cores"] < 1 - 1e-9:
            crowded[host].append(rank)
        if " " in device:  # it has an address; without one, equal names may be different GPUs, one visible to each rank
            gpus[host, device].append(rank)
    for host, ranks in crowded.items():
        cores = places["cores"][ranks].sum()
        noticed.append(
            Problem(
                f"ranks {numbers(ranks)} on {host} share {cores:.3g} core(s); start fewer there, or ask for more cores "
                f"(srun --cpus-per-task, mpiexec --bind-to none)"
            )
        )
    for (host, device), ranks in gpus.items():
        if len(ranks) > 1:
            noticed.append(Problem(f"ranks {numbers(ranks)} on {host} share GPU {device}; start one client for each GPU"))
    return noticed


def of_versions(facts: Mapping[str, Sequence[str]], hosts: Sequence[str]) -> list[Problem]:
    """Software that is not the same on every rank.

    Args:
        facts: by name of the software, its version on every rank.
        hosts: of every rank.
    """
    noticed = []
    for name, versions in facts.items():
        odd = next((rank for rank, version in enumerate(versions) if version != versions[0]), None)
        if odd is not None:
            what = f"{name} is {versions[0]} on {hosts[0]} and {versions[odd]} on {hosts[odd]}"
            noticed.append(Problem(f"{what}; install the same on every host", stops=name == "asyncfeded"))
    return noticed


def of_thread_level(level: int, needed: int) -> list[Problem]:
    """A problem if MPI forbids other threads beside the one that calls it."""
    if level >= needed:
        return []
    return [Problem("this MPI allows no threads, and torch has some; use one with MPI_THREAD_FUNNELED", stops=True)]


def failures(offered: bool, vendor: str, launcher: str, env: Mapping[str, str]) -> str:
    """Whether a rank's death is reported to the others (ULFM), as a sentence.

    Args:
        offered: whether the library offers the calls of ULFM.
        vendor: such as `Open MPI 5.0.11`.
        launcher: who started the ranks; empty if unknown.
        env: of this process.
    """
    if not offered:
        return "no: this MPI does not offer it; who dies is found by its silence (docs/cluster.md)"
    if not vendor.startswith("Open MPI"):
        return f"no: {vendor} answers its calls, but reports nothing; who dies is found by its silence (docs/cluster.md)"
    on = env.get("OMPI_MCA_mpi_ft_enable", "").lower() in ("1", "true", "yes")
    if on and launcher.startswith("Open MPI"):
        return "on"
    return "off: start with Open MPI's mpiexec --with-ft ulfm; otherwise a rank that dies ends the job"
