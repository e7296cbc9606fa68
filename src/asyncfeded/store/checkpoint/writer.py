"""Writes checkpoints in the background, while the server goes on."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asyncfeded.store.checkpoint.reading import checkpoints
from asyncfeded.store.checkpoint.snapshot import Snapshot, save
from asyncfeded.store.sealed import sync


class Written(NamedTuple):
    """How writing a checkpoint went."""

    path: Path
    num_bytes: int
    seconds: float
    """Time that the background thread took."""
    problem: str
    """Empty, or what went wrong, as a sentence. The last good checkpoint is then unchanged."""


class Writer:
    """Writes checkpoints, one at a time. Rank 0.

    A thread writes, because a process in which MPI is initialised must not fork. The thread makes no MPI call, and releases
    the interpreter's lock while it computes the checksum and writes. What changes meanwhile, the model and the rule's state,
    is copied, into memory that is used again for the next checkpoint. The bases are not: the server holds them
    (`GlobalModel.keep`) until they are written, and a client that moves on gets another buffer.

    Args:
        folder: folder of the checkpoints; made when the first one is written.
        keep: how many of the last checkpoints to keep; at least 1.
        before: called in the thread before a checkpoint is written. It forces onto the disk what must not be older than
            the checkpoint. Any OSError that it raises is a problem of that checkpoint.
        resumed: the checkpoint that the run resumes from; None: the run is new. Later checkpoints in the folder are damaged,
            or belong to a run that was given up: they are deleted when the first one is written.
    """

    def __init__(
        self, folder: Path, keep: int, resumed: Path | None = None, before: Callable[[], None] = lambda: None
    ) -> None:
        assert keep >= 1
        self._folder, self._keep, self._before = folder, keep, before
        self._good = [path.name for path in checkpoints(folder) if resumed and path.name <= resumed.name]
        self._copies: dict[str, np.ndarray] = {}
        self._thread: threading.Thread | None = None
        self._let_go: Callable[[], object] = int
        self._written: Written | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of the copy."""
        return sum(array.nbytes for array in self._copies.values())

    @property
    def busy(self) -> bool:
        """Whether a checkpoint was begun, and its result was not yet asked for."""
        return self._thread is not None

    def start(self, snapshot: Snapshot) -> bool:
        """Begin to write a snapshot. Its arrays may change after the return, except the rows of `bases` and `own`.

        Returns:
            Whether it was begun; it is not begun if `busy`.
        """
        if self.busy:
            return False
        copied = replace(
            snapshot,
            model=self._copy("model", snapshot.model),
            clients=self._copy("clients", snapshot.clients),
            rule={name: self._copy(f"rule {name}", array) for name, array in snapshot.rule.items()},
        )
        self._let_go = snapshot.let_go
        # A daemon thread: a job that ends with an error does not wait for a disk.
        self._thread = threading.Thread(target=self._write, args=(copied,), name="checkpoint", daemon=True)
        self._thread.start()
        return True

    def poll(self) -> Written | None:
        """The result of the checkpoint begun last. Given only once, when it is done; otherwise None. Never waits."""
        return None if self._thread is None or self._thread.is_alive() else self.wait()

    def wait(self) -> Written | None:
        """As `poll`, but waits until the checkpoint is done; None if none was begun since."""
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        self._let_go()
        return self._written

    def _copy(self, slot: str, source: np.ndarray) -> np.ndarray:
        copy = self._copies.get(slot)
        if copy is None or (copy.shape, copy.dtype) != (source.shape, source.dtype):
            copy = self._copies[slot] = np.empty(source.shape, source.dtype)
        np.copyto(copy, source)
        return copy

    def _write(self, snapshot: Snapshot) -> None:
        began, path, num_bytes, problem = time.perf_counter(), self._folder / snapshot.file_name, 0, ""
        try:
            self._before()
            if not self._folder.is_dir():
                self._folder.mkdir(exist_ok=True)
                sync(self._folder.parent)
            num_bytes = self._store(path, snapshot)
        except Exception as error:  # whatever it is, training goes on, and `poll` reports it
            why = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
            last = self._good[-1] if self._good else "none"
            problem = f"checkpoint {path}: {why}; the last good one: {last}"
        self._written = Written(path, num_bytes, time.perf_counter() - began, problem)

    def _store(self, path: Path, snapshot: Snapshot) -> int:
        """Write a checkpoint, and remove what is too old. Returns its size."""
        for leftover in self._folder.glob("checkpoint-*.part"):  # left by a crash
            leftover.unlink()
        num_bytes = self._save(path, snapshot)
        self._good = [*(name for name in self._good if name != path.name), path.name][-self._keep :]
        for other in checkpoints(self._folder):
            if other.name not in self._good:
                other.unlink()
        kept = {name[len("checkpoint-") : -len(".h5")] for name in self._good}
        for part in self._folder.glob("slice-*"):
            if part.name.split("-")[1] not in kept:
                part.unlink()
        return num_bytes

    def _save(self, path: Path, snapshot: Snapshot) -> int:
        return save(path, snapshot)
