"""Reads numeric columns by name, from CSV, HDF5 or a *.npz, and a column of groups beside them.

In HDF5 a table is an array of a compound type, or a group with an array (rows,) for each column; in a *.npz the latter. The
content tells what a file is. A cell without a number is told with its column and its row.
"""

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asyncfeded.files.arrays import ZIP, Arrays, open_arrays
from asyncfeded.files.plain import HDF5, FileFaultError, cannot_read, check_file, csv_cells, known_kind


class Columns(NamedTuple):
    """Some columns of a table."""

    names: list[str]
    """Of the numeric columns."""
    values: np.ndarray
    """float64 (rows, columns), finite, at least one row."""
    groups: np.ndarray
    """The group of each row, numbers or strings (rows,); (0,) if none was asked for."""


def read_columns(path: Path, table: str, first: str, others: Sequence[str], group: str, advice: str = "") -> Columns:
    """Read columns of a table.

    Args:
        path: of the file.
        table: name of the array or of the group in HDF5; empty: the file itself. CSV and *.npz have no such name.
        first: name of the numeric column that comes first.
        others: names of the numeric columns behind it; none: all others but `group`, in the order of the table.
        group: name of the column of groups, whole numbers or texts; empty: none.
        advice: what to do if there is no such file.

    Raises:
        FileFaultError: there is no such file, or it is no table; a column is missing, is no text or no numbers where these
            are expected, or has a cell without a number; there is no row.
    """
    check_file(path, advice)
    try:
        with path.open("rb") as raw:
            begin = raw.read(64)
    except OSError as error:
        raise FileFaultError(cannot_read(path, error, advice)) from None
    wanted = [first, *others, *filter(None, [group])]
    if known_kind(begin) == HDF5 or begin.startswith(ZIP):
        with open_arrays(path) as file:
            columns = _read_arrays(file, path, table, wanted, group)
    elif table:
        raise FileFaultError(f"{path}: is no HDF5 file, so that no table {table!r} can be in it; leave task.table out")
    else:
        columns = _read_csv(path, wanted, group)
    if not columns.values.size:
        raise FileFaultError(f"{path}: holds no rows")
    return columns


def _read_csv(path: Path, wanted: list[str], group: str) -> Columns:
    rows = csv_cells(path, wanted)
    _, head = next(rows)
    names = _numeric(head, wanted, group)
    places, place_of_group = [head.index(name) for name in names], head.index(group) if group else 0
    values, groups, lines = array("d"), [], array("q")  # 8 bytes for a number, where a list takes 32
    for line, cells in rows:
        try:
            values.extend([float(cells[place]) for place in places])
        except ValueError:
            bad = next(place for place in places if not _is_number(cells[place]))
            raise _no_number(f"{path}: line {line}: {head[bad]}", repr(cells[bad])) from None
        lines.append(line)
        if group:
            groups.append(cells[place_of_group])
    numbers = np.frombuffer(values, np.float64).reshape(len(lines), len(places))
    if (broken := np.argwhere(~np.isfinite(numbers))).size:
        row, column = broken[0]
        raise _no_number(f"{path}: line {lines[row]}: {names[column]}", f"{numbers[row, column]:g}")
    return Columns(names, numbers, np.array(groups))


def _read_arrays(file: Arrays, path: Path, table: str, wanted: list[str], group: str) -> Columns:
    where = f"{path}: {table}" if table else str(path)
    read: Callable[[str], np.ndarray]
    if table and file.kind(table) == "array":
        whole = file.array(table).read()
        if whole.dtype.names is None:
            raise FileFaultError(f"{where}: is {whole.dtype} {whole.shape}, expected a compound type that names the columns")
        head, read = list(whole.dtype.names), whole.__getitem__
    else:
        inside = file.group(table) if table else file
        head, read = (
            [name for name in inside.names() if inside.kind(name) == "array"],
            lambda name: inside.array(name).read(),
        )
    if missing := [name for name in wanted if name not in head]:
        raise FileFaultError(f"{where}: no column {missing[0]}, it has {', '.join(head[:10]) or 'none'}")
    names, columns = _numeric(head, wanted, group), list[np.ndarray]()
    for name in [*names, *filter(None, [group])]:
        column = read(name)
        if column.ndim != 1 or (columns and len(column) != len(columns[0])):
            expected = f"({len(columns[0])},) as {names[0]} has" if columns else "(rows,)"
            raise FileFaultError(f"{where}: {name} has shape {column.shape}, expected {expected}")
        columns.append(_texts(column, f"{where}: {name}") if name == group else _floats(column, f"{where}: {name}"))
    groups = columns.pop() if group else np.zeros(0)
    return Columns(names, np.stack(columns, axis=1), groups)


def _numeric(head: list[str], wanted: list[str], group: str) -> list[str]:
    """Names of the numeric columns: those wanted, or the first and all others but the groups."""
    names = [name for name in wanted if name != group]
    return names if len(names) > 1 else [*names, *(name for name in head if name not in (*names, group))]


def _floats(column: np.ndarray, where: str) -> np.ndarray:
    if column.dtype.kind not in "fiub":
        raise FileFaultError(
            f"{where}: is {column.dtype}, expected numbers; write it so, or leave the column out (task.features)"
        )
    column = column.astype(np.float64)
    if (broken := np.flatnonzero(~np.isfinite(column))).size:
        raise _no_number(f"{where}: row {broken[0]}", f"{column[broken[0]]:g}")
    return column


def _texts(column: np.ndarray, where: str) -> np.ndarray:
    """A column of groups: whole numbers as they are, anything else as strings."""
    if column.dtype.kind in "iu":
        return column
    if column.dtype.kind not in "OSU":
        raise FileFaultError(f"{where}: is {column.dtype}, expected whole numbers or texts, the group of each row")
    try:
        return np.array([value.decode() if isinstance(value, bytes) else str(value) for value in column.tolist()])
    except UnicodeDecodeError as error:
        raise FileFaultError(f"{where}: holds bytes that are not UTF-8 ({error})") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _no_number(where: str, value: str) -> FileFaultError:
    return FileFaultError(
        f"{where} is {value}, expected a number; fill the gap, or leave the row or the column out (task.features)"
    )
