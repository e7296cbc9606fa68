"""What the system lets this process use: the cores and the memory of its control groups, limits and host.

It imports no torch: a launcher asks it before anything else is loaded.
"""

import math
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


def _least(controller: str, allows: Callable[[Path], float], system: Path, own: Path) -> tuple[float, int]:
    """The least that a control group of this process allows, and its inode; (inf, 0) if none says anything."""
    least = (math.inf, 0)
    for group in _control_groups(controller, system, own):
        with suppress(OSError, ValueError):
            least = min(least, (allows(group), group.stat().st_ino))
    return least


def _control_groups(controller: str, system: Path, own: Path) -> Iterator[Path]:
    """The folders of this process's control groups, from its own group up to the root; some may not exist."""
    for line in own.read_text().splitlines() if own.exists() else []:
        controllers, group = line.split(":", 2)[1:]
        if controllers and controller not in controllers.split(","):
            continue
        top = system / controllers  # version 1: a tree for each; version 2: one tree, no names
        folder = top / group.lstrip("/")
        yield from (place for place in (folder, *folder.parents) if place.is_relative_to(top))


def quota(system: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> tuple[float, int]:
    """Cores that control groups let this process use at a time, and the inode of the group that says so; (inf, 0): all."""
    return _least("cpu", _cores_of, system, own)


def memory(system: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> tuple[float, int]:
    """Bytes that control groups still let this process have, and the inode of the group that says so; (inf, 0): all."""
    return _least("memory", _bytes_left, system, own)


def host_memory(info: Path = Path("/proc/meminfo")) -> float:
    """Bytes that all processes of this host together could still take; inf if the system does not report it."""
    if not info.exists():
        return math.inf
    sizes = dict(line.split(":") for line in info.read_text().splitlines())
    return 1024 * float(sum(int(sizes.get(name, "0").split()[0]) for name in ("MemAvailable", "SwapFree")))


class Room(NamedTuple):
    """Bytes of a file system."""

    total: float
    free: float


def shared_memory(place: Path = Path("/dev/shm")) -> Room:
    """The room that processes have for memory that they share; inf where there is no such place."""
    if not place.is_dir():
        return Room(math.inf, math.inf)
    found = shutil.disk_usage(place)
    return Room(found.total, found.free)


def process_memory(status: Path = Path("/proc/self/status")) -> tuple[int, float]:
    """Bytes that this process holds, and how many more its limits let it reserve (`ulimit -v`, `ulimit -d`)."""
    sizes = dict(line.split(":", 1) for line in status.read_text().splitlines())
    now = {name: 1024 * int(sizes[name].split()[0]) for name in ("VmRSS", "VmSize", "VmData")}
    left = math.inf
    for limit, used in ((resource.RLIMIT_AS, now["VmSize"]), (resource.RLIMIT_DATA, now["VmData"])):
        soft = resource.getrlimit(limit)[0]
        left = left if soft == resource.RLIM_INFINITY else min(left, soft - used)
    return now["VmRSS"], left


def _cores_of(group: Path) -> float:
    """The cores of one control group, of version 2 or 1. Raises OSError or ValueError if it names no limit."""
    if (group / "cpu.max").exists():
        quota, period = (group / "cpu.max").read_text().split()
    else:
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return math.inf if quota == "max" or int(quota) < 0 else int(quota) / int(period)


def _bytes_left(group: Path) -> float:
    """The memory left in one control group, of version 2 or 1. Raises OSError or ValueError if it names no limit."""
    new = (group / "memory.max").exists()
    names = ("max", "current") if new else ("limit_in_bytes", "usage_in_bytes")
    limit, used = ((group / f"memory.{name}").read_text().strip() for name in names)
    if limit == "max":
        return math.inf
    cached = 0  # pages of files, which give way
    with suppress(OSError):
        sizes = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = sum(int(sizes.get(f"{'' if new else 'total_'}{which}_file", 0)) for which in ("active", "inactive"))
    return int(limit) - int(used) + cached
