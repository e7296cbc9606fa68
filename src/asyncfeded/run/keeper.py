"""Writes the checkpoints of a run when they are due. What is in one: resume.py."""

import time
from collections.abc import Callable

from asyncfeded.config import Checkpoint
from asyncfeded.run.progress import Progress
from asyncfeded.store import checkpoint, record
from asyncfeded.store.checkpoint import Snapshot, Writer
from asyncfeded.training.server import Server


class Keeper:
    """Writes checkpoints of a run when they are due. Rank 0.

    Args:
        settings: when checkpoints are due.
        writer: writes them to the disk in the background.
        book: the record of the run.
        take: takes the state of a server.
        progress: shows what goes wrong to the user; all else goes to its log only.
        updates: updates merged before; None: the run is new, and its first checkpoint is due at once.

    Attributes:
        wanted: set it to write a checkpoint now.
        first: whether the first checkpoint of a new run is not on the disk yet. No row may be there before it: a run without
            an update and a checkpoint begins again, but nothing could go on with one that has updates and no checkpoint.
    """

    def __init__(
        self,
        settings: Checkpoint,
        writer: Writer,
        book: record.Record,
        take: Callable[[Server], Snapshot],
        progress: Progress,
        updates: int | None,
    ) -> None:
        self._settings, self._writer, self._record = settings, writer, book
        self._take, self._progress = take, progress
        on = bool(settings.every_updates or settings.every_s)
        self._problem = ""
        self.wanted = self.first = on and updates is None
        self._kept = on or updates is not None  # whether there ever was one: then the end gets one too
        self._last_updates, self._last_s, self._time_s = updates or 0, time.monotonic(), 0.0

    def tick(self, server: Server) -> None:
        """Start a checkpoint if one is due; at the end of a run, write the last. Reports a record that cannot be written."""
        if self._record.problem != self._problem:
            self._problem = self._record.problem
            self._say(self._problem or "the rows of the record are on the disk again")
        if server.stopping:
            if self._kept or self.wanted or server.interrupted or server.failed:
                self.finish()
                self._start(server)
            return
        self._tell(self._writer.poll())
        if not self._writer.busy and (self.wanted or self._due(server)):
            self._start(server)

    def finish(self) -> None:
        """Wait until the checkpoint under way is written."""
        self._tell(self._writer.wait())

    def _due(self, server: Server) -> bool:
        settings, new = self._settings, server.state.updates - self._last_updates
        late = settings.every_s and new and time.monotonic() - self._last_s >= settings.every_s
        return bool(late or (settings.every_updates and new >= settings.every_updates))

    def _start(self, server: Server) -> None:
        self.wanted, self._kept = False, True
        self._last_updates, self._last_s, self._time_s = server.state.updates, time.monotonic(), server.elapsed_s
        try:
            self._record.write()  # no checkpoint may be ahead of the record
        except OSError as error:
            self._say(f"no checkpoint is written, since the record cannot be: {error.strerror}")
            self.first = False
            return
        self._writer.start(self._take(server))

    def _tell(self, written: checkpoint.Written | None) -> None:
        if written is not None:
            self.first = False
            if written.problem:
                self._say(written.problem)
            else:
                size = f"{written.num_bytes / 1e6:.1f} MB in {written.seconds:.2f} s"
                self._progress.log(f"checkpoint {written.path.name}: {size}")
                self._record.note(self._time_s, "checkpoint", seconds=written.seconds, text=f"{written.path.name}: {size}")

    def _say(self, sentence: str) -> None:
        self._progress.say(sentence)
        self._record.note(self._time_s, "trouble", text=sentence)
