"""Many vectors of one length, each with a number. They are written and read one after the other, never held together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from asyncfeded.files.hdf5 import Group, open_hdf5
from asyncfeded.files.plain import FileFaultError

BLOCK = 8 << 20  # bytes that are read at a time, if a row is not longer


@dataclass(frozen=True)
class Rows:
    """Rows, float32 (length,), by their numbers. To iterate gives pairs of number and row, each time from the beginning."""

    numbers: tuple[int, ...] = ()
    length: int = 0
    each: Callable[[], Iterator[np.ndarray]] = field(default=lambda: iter(()), repr=False)
    """Gives the rows in order. A row is valid until the next one is asked for."""

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and length of one."""
        return len(self), self.length

    @property
    def nbytes(self) -> int:
        """Size of all, in bytes."""
        return 4 * len(self) * self.length

    def __len__(self) -> int:
        """How many."""
        return len(self.numbers)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """See `each`."""
        return zip(self.numbers, self.each(), strict=True)

    def cut(self, start: int, stop: int) -> "Rows":
        """Elements [start, stop) of each row, as far as they are there."""
        part = slice(*(min(max(at, 0), self.length) for at in (start, stop)))
        length = part.stop - part.start
        if not length:
            return Rows(self.numbers, 0, lambda: iter(np.zeros((len(self), 0), np.float32)))
        return Rows(self.numbers, length, lambda: (row[part] for row in self.each()))


def together(parts: Sequence[Rows], what: str) -> Rows:
    """Rows whose parts lie in several places, one behind the other; `what` names them in an error.

    Raises:
        FileFaultError: the parts are not of the same rows.
    """
    there = [part for part in parts if part.length]
    if len({part.numbers for part in there}) > 1:
        raise FileFaultError(f"{what}: its slices hold different rows")
    if len(there) < 2:
        return next(iter(there or parts), Rows())
    length = sum(part.length for part in there)
    return Rows(there[0].numbers, length, lambda: map(np.concatenate, zip(*(part.each() for part in there), strict=True)))


def stored(path: Path, file: Group, what: str, length: int | None = None) -> Rows:
    """The rows of a group of a checkpoint; none where there is no such group. They are read from the file when asked for.

    Args:
        path: of the file.
        file: the same, open.
        what: name of the group.
        length: that they must have; None: any.

    Raises:
        FileFaultError: they are not finite float32 of that length, or their numbers are not different ones from 0.
    """
    if file.kind(what) != "group":
        return Rows()
    group = file.group(what)
    numbers, rows = group.array("numbers"), group.array("rows")
    expected = rows.shape[-1] if length is None and rows.shape else length
    if numbers.dtype != np.int64 or len(numbers.shape) != 1 or rows.shape != (*numbers.shape, expected):
        raise FileFaultError(
            f"{group.where()}: holds rows of {rows.shape} for numbers of {numbers.dtype} {numbers.shape}, expected (n, "
            f"{'any' if length is None else length}) for int64 (n,)"
        )
    found = numbers.read()
    if found.min(initial=0) < 0 or len(np.unique(found)) < len(found):
        raise FileFaultError(f"{numbers.where}: holds a number below 0, or one twice")
    if rows.dtype != np.float32:
        raise FileFaultError(f"{rows.where}: is {rows.dtype}, expected float32")
    at_once = max(BLOCK // max(4 * rows.shape[1], 1), 1)
    for block in rows.blocks(at_once):
        if not np.isfinite([block.min(initial=0), block.max(initial=0)]).all():
            raise FileFaultError(f"{rows.where}: holds a value that is not finite")

    def each() -> Iterator[np.ndarray]:
        with open_hdf5(path, sealed=True) as again:
            for block in again.group(what).array("rows").blocks(at_once):
                yield from block

    return Rows(tuple(found.tolist()), rows.shape[1], each)
