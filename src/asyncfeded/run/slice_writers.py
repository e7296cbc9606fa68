"""Writes the checkpoints of a server of several ranks: each writes its slice, and rank 0 then the file that names them."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from asyncfeded.run import resume
from asyncfeded.store.checkpoint import Snapshot, Writer, Written, save, save_slice
from asyncfeded.store.record import Record
from asyncfeded.training.server import Server
from asyncfeded.wire.server_ranks import ServerRanks


class FirstSliceWriter(Writer):
    """Writes checkpoints of rank 0: its slice, and when all others have written theirs, the checkpoint that names them.

    Args:
        ranks: all ranks of the server.
        arguments: as for `Writer`.
    """

    def __init__(self, ranks: ServerRanks, *arguments: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments)
        self._ranks, self._all_there = ranks, threading.Event()
        self._told: list[tuple[str, str]] = []

    def start(self, snapshot: Snapshot) -> bool:
        """See `Writer`. Rank 0."""
        if self.busy:
            return False
        self._all_there.clear()
        self._ranks.begin_checkpoint(snapshot.update_rows)
        return super().start(snapshot)

    def poll(self) -> Written | None:
        """See `Writer`."""
        self._listen()
        return super().poll()

    def wait(self) -> Written | None:
        """See `Writer`."""
        while self.busy and not self._all_there.is_set():
            self._listen()
            time.sleep(1e-3)
        return super().wait()

    def _listen(self) -> None:
        if self.busy and not self._all_there.is_set() and (told := self._ranks.written()) is not None:
            self._told = told
            self._all_there.set()

    def _save(self, path: Path, snapshot: Snapshot) -> int:
        mine = save_slice(path.parent, snapshot, 0, self._ranks.mine)
        self._all_there.wait()
        if problem := next(filter(None, (problem for _, problem in self._told)), ""):
            raise OSError(0, problem)
        slices = path.parent.glob(f"slice-{path.stem.partition('-')[2]}-*")
        return save(path, snapshot, [mine, *(line for line, _ in self._told)]) + sum(each.stat().st_size for each in slices)


class SliceWriter:
    """Writes the slices of checkpoints of another server rank, in the background.

    Args:
        ranks: all ranks of the server.
        folder: that of the checkpoints, on a disk that all ranks of the server share.

    Attributes:
        take: takes the state of this rank for the checkpoint of a number; it must be set before the first one.
    """

    take: Callable[[int], Snapshot]

    def __init__(self, ranks: ServerRanks, folder: Path) -> None:
        self._ranks, self._folder = ranks, folder
        self._thread: threading.Thread | None = None
        self._let_go: Callable[[], object] = int
        self._told = ("", "")

    def begin(self, number: int) -> None:
        """See `SliceKeeper`."""
        at = self.take(number)
        at = replace(at, model=at.model.copy(), rule={name: array.copy() for name, array in at.rule.items()})
        self._let_go = at.let_go
        self._thread = threading.Thread(target=self._write, args=(at,), name="slice", daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """See `SliceKeeper`."""
        if self._thread is not None and not self._thread.is_alive():
            self.finish()

    def finish(self) -> None:
        """See `SliceKeeper`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._let_go()
            self._ranks.tell_written(*self._told)

    def _write(self, at: Snapshot) -> None:
        try:
            self._folder.mkdir(exist_ok=True)
            self._told = (save_slice(self._folder, at, self._ranks.index, self._ranks.mine), "")
        except Exception as error:  # whatever it is, training goes on, and rank 0 tells it
            self._told = ("", f"slice {self._ranks.index}: {getattr(error, 'strerror', '') or error!r}")


def slice_snapshot(server: Server, number: int) -> Snapshot:
    """The state of a server rank other than rank 0, for the checkpoint of a number; only its vectors count."""
    none = SimpleNamespace(count=0)
    book = SimpleNamespace(provenance={}, updates=SimpleNamespace(count=number), evaluations=none, client_evaluations=none)
    return resume.snapshot(server, cast(Record, book), "", {}, 1, server.state.model.layout)
