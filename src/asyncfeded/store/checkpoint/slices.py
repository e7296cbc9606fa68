"""The slices of a checkpoint: a file with all vectors of each server rank.

The checkpoint itself is written last. It names these files with their checksums, so that all are there, or it is none:

    attributes      start, stop: the slice's place in a message
    model           float32, its part of the global model
    bases, own      as in a checkpoint, its part of each row; what is nobody's is not there
    rule/<name>     its part of the vectors of the rule; the model, or the parameters, are the last axis

Another number of server ranks reads what it needs of each.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asyncfeded.files.hdf5 import open_hdf5
from asyncfeded.files.plain import FileFaultError
from asyncfeded.model.slices import Slice
from asyncfeded.store.checkpoint.snapshot import Snapshot, numbered
from asyncfeded.store.rows import Rows, stored, together
from asyncfeded.store.sealed import checksum, write, written_checksum

LINE = re.compile(r"(slice-\d{10}-\d+\.h5) ([0-9a-f]{64})")


class Vectors(NamedTuple):
    """All arrays of a state whose last axis is the model, its parameters, or what is a client's own; or a slice of each."""

    model: np.ndarray
    bases: Rows
    own: Rows
    rule: dict[str, np.ndarray]

    def cut(self, held: Slice, start: int = 0) -> "Vectors":
        """The part of these that lies in a slice.

        Args:
            held: the slice.
            start: the place of their first element in a message.
        """
        behind = start + self.model.shape[-1]

        def part(array: np.ndarray, first: int) -> np.ndarray:
            return array[..., max(held.start - first, 0) : max(held.stop - first, 0)]

        own = self.own.cut(held.start - behind, held.stop - behind)
        return Vectors(
            part(self.model, start),
            self.bases.cut(held.start - start, held.stop - start),
            own if own.length else Rows(),
            {name: part(array, start) for name, array in self.rule.items()},
        )


def slice_name(rows: int, index: int) -> str:
    """File name of a slice of the checkpoint with so many rows."""
    return f"slice-{rows:010d}-{index}.h5"


def save_slice(folder: Path, snapshot: Snapshot, index: int, held: Slice) -> str:
    """Write the vectors of a server rank. Returns the line by which a checkpoint names them.

    Args:
        folder: that of the checkpoints.
        snapshot: its vectors are those of the slice.
        index: which slice it is.
        held: its place.

    Raises:
        OSError: the file cannot be written.
    """
    path = folder / slice_name(snapshot.update_rows, index)
    arrays = {
        "model": snapshot.model,
        **numbered("bases", snapshot.bases),
        **numbered("own", snapshot.own),
        **{f"rule/{name}": snapshot.rule[name] for name in snapshot.vectors},
    }
    write(path, arrays, {"start": held.start, "stop": held.stop})
    return f"{path.name} {written_checksum(path)}"


def read_slices(folder: Path, lines: Sequence[str], held: Slice | None) -> Vectors:
    """Read vectors from the slices of a checkpoint.

    Args:
        folder: that of the checkpoints.
        lines: what `save_slice` returned for each, in order.
        held: what to read of them; None: everything.

    Raises:
        ValueError: a slice is missing, is damaged, or is not the one of this checkpoint.
    """
    parts, end = [], 0
    for line in lines:
        said = LINE.fullmatch(line)
        if not said:
            raise FileFaultError(f"{folder}: names a slice {line!r:.100}; this program wrote no such checkpoint")
        path = folder / said[1]
        if checksum(path, "it belongs to a checkpoint") != said[2]:
            raise FileFaultError(f"{path}: is not the slice that its checkpoint was written with")
        with open_hdf5(path, sealed=True) as file:
            start, stop = (file.attributes().get(name) for name in ("start", "stop"))
            if start != end or not isinstance(stop, int) or stop < end:
                raise FileFaultError(f"{path}: begins at {start}, expected {end}")
            rule = file.group("rule") if file.kind("rule") == "group" else None
            vectors = {name: rule.array(name).read() for name in rule.names()} if rule else {}
            part = Vectors(file.array("model").read(), stored(path, file, "bases"), stored(path, file, "own"), vectors)
        model = part.model
        if model.dtype != np.float32 or not np.isfinite([model.min(initial=0), model.max(initial=0)]).all():
            raise FileFaultError(f"{path}: holds a value that is not finite, or no float32")
        parts.append(part if held is None else part.cut(held, end))
        end = stop
    return Vectors(
        np.concatenate([part.model for part in parts]),
        together([part.bases for part in parts], f"{folder}: bases"),
        together([part.own for part in parts], f"{folder}: own"),
        {name: np.concatenate([part.rule[name] for part in parts if name in part.rule], -1) for name in parts[0].rule},
    )
