"""Tests of the file system that a run would write to: atomic renames, fsync and free space."""

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asyncfeded.doctor.problem import Problem
from asyncfeded.files.paths import kind_of
from asyncfeded.store.sealed import write

SYNCS = 5
ROOM = 1 << 30
"""Number of bytes that should be free."""
SLOW_S = 0.5
"""An fsync that takes longer is reported as a problem."""


class Folder(NamedTuple):
    """The findings about a folder. The last three fields each hold a problem as a sentence, or are empty."""

    path: str
    """The folder that was tested: the folder of the run, or its nearest parent that exists."""
    kind: str = ""
    """Kind of the file system, such as ext4 or nfs4; empty if the system does not report it."""
    free_bytes: int = 0
    fsync_s: float = 0.0
    """Time of an fsync of 4 KiB, median of SYNCS."""
    writing: str = ""
    renaming: str = ""
    saving: str = ""
    """The test with HDF5 files, as records and checkpoints are."""


def look(run_dir: Path) -> Folder:
    """Test a folder with a few small files in a temporary folder, which is removed afterwards. Rank 0."""
    place = run_dir.absolute()
    while not place.exists():
        place = place.parent
    kind = kind_of(place.resolve(), Path("/proc/mounts").read_text()) if Path("/proc/mounts").exists() else ""
    found = Folder(str(place), kind)
    try:
        found = found._replace(free_bytes=shutil.disk_usage(place).free)
        with tempfile.TemporaryDirectory(prefix=".asyncfeded-doctor-", dir=place) as trial:
            fsync_s = statistics.median(_fsync_s(Path(trial) / "synced") for _ in range(SYNCS))
            return found._replace(
                fsync_s=fsync_s,
                renaming=_renaming(Path(trial)),
                saving=_saving(Path(trial) / "saved.h5"),
            )
    except OSError as error:
        return found._replace(writing=error.strerror or str(error))


def problems(found: Folder) -> list[Problem]:
    """The findings that are problems for a run."""
    other = "choose another folder (run_dir=...)"
    if found.writing:
        return [Problem(f"{found.path} cannot be written: {found.writing}; {other}", stops=True)]
    noticed = []
    if found.renaming:
        noticed.append(Problem(f"{found.path} does not rename files at once: {found.renaming}; {other}", stops=True))
    if found.saving:
        remedy = f"set HDF5_USE_FILE_LOCKING=FALSE if it is about locks, or {other}"
        noticed.append(Problem(f"{found.path} takes no HDF5 files: {found.saving}; {remedy}", stops=True))
    if found.free_bytes < ROOM:
        what = f"{found.path} has {found.free_bytes / 1e9:.2f} GB free"
        noticed.append(Problem(f"{what}: on a full disk no checkpoints are written; make room, or {other}"))
    if found.fsync_s > SLOW_S:
        what = f"{found.path} takes {found.fsync_s:.1f} s to bring 4 KiB to the disk"
        noticed.append(Problem(f"{what}: let many seconds pass between checkpoints (checkpoint.every_s), or {other}"))
    if found.kind in ("tmpfs", "ramfs"):
        what = f"{found.path} lies in memory ({found.kind})"
        noticed.append(Problem(f"{what}: the run is lost with the machine, and its files take the job's memory; {other}"))
    return noticed


def _fsync_s(path: Path) -> float:
    with path.open("wb", buffering=0) as file:
        file.write(bytes(4096))
        began = time.perf_counter()
        os.fsync(file.fileno())
        return time.perf_counter() - began


def _renaming(trial: Path) -> str:
    old, new = trial / "old", trial / "new"
    try:
        old.write_text("old")
        new.write_text("new")
        new.replace(old)
        return "" if old.read_text() == "new" and not new.exists() else "the old file is still there"
    except OSError as error:
        return error.strerror or str(error)


def _saving(path: Path) -> str:
    try:
        write(path, {"rows": np.arange(4)}, {"schema": 0})
    except OSError as error:
        return str(error)
    return ""
