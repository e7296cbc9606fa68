"""Reads files of bytes and of text: TOML, JSON, CSV. HDF5 has a room of its own (hdf5.py).

Every fault is a `FileFaultError` of one sentence that names the file, the place in it where that is known, and what to do.
"""

import codecs
import csv
import errno
import gzip
import io
import json
import math
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same module under its older name


class FileFaultError(ValueError):
    """What is wrong with a file, as a sentence for the user."""


HDF5 = "is an HDF5 file"
KINDS = (
    (b"\x89HDF\r\n\x1a\n", HDF5),
    (b"\x1f\x8b", "is compressed (gzip); unpack it"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd); unpack it"),
    (b"\xfd7zXZ\x00", "is compressed (xz); unpack it"),
    (b"BZh", "is compressed (bzip2); unpack it"),
    (b"PK\x03\x04", "is a ZIP archive, as *.npz, *.xlsx and *.pt are; write its content in the expected form"),
    (b"\x93NUMPY", "is an array of NumPy (*.npy); write its content in the expected form"),
    (b"CDF", "is a NetCDF file of the old form; convert it"),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself; fetch it with git lfs pull"),
    (b"<!DOCTYPE", "is a web page; download the file itself"),
    (b"<html", "is a web page; download the file itself"),
)
"""First bytes of files that are given by mistake, and what to say of each."""
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def check_file(path: Path, advice: str = "") -> int:
    """Whether there is a regular file. Nothing else is ever opened: a FIFO, for instance, would be waited for without end.

    Args:
        path: of the file.
        advice: what to do if there is none.

    Returns:
        Its size in bytes.

    Raises:
        FileFaultError: there is no such file, it cannot be looked at, or it is a directory, a FIFO or a device.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise FileFaultError(cannot_read(path, error, advice)) from None
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    raise FileFaultError(
        f"{path}: is {kinds.get(stat.S_IFMT(status.st_mode), 'a device')}, expected a file{advice and '; ' + advice}"
    )


def cannot_read(path: Path, error: Exception, advice: str = "") -> str:
    """A sentence about an error of the system."""
    what = f"cannot be read: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR):
        what = f"is a link to {path.readlink()}, which is not there" if path.is_symlink() else "no such file"
    return f"{path}: {what}{advice and '; ' + advice}"


def read_bytes(path: Path, advice: str = "") -> bytes:
    """The content of a file. Raises FileFaultError as `check_file` does, or if it cannot be read."""
    check_file(path, advice)
    try:
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise FileFaultError(cannot_read(path, error, advice)) from None


def read_text(path: Path, advice: str = "") -> str:
    """The text in a file in UTF-8, with or without a byte-order mark; unpacked if the name ends in .gz.

    Raises:
        FileFaultError: as `read_bytes`, or it is no text in UTF-8; the message says in which line.
    """
    raw = read_bytes(path, advice)
    if path.suffix.lower() == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, MemoryError, zlib.error) as error:
            raise FileFaultError(f"{path}: cannot be unpacked ({str(error) or type(error).__name__})") from None
    check_text(path, raw)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise FileFaultError(
            f"{path}: line {line}: the byte {raw[error.start]:#04x} is no UTF-8; save the file as UTF-8"
        ) from None


def check_text(path: Path, raw: bytes) -> None:
    """Whether the content of a file is text, though perhaps not in UTF-8. Raises FileFaultError if it is not."""
    if kind := known_kind(raw):
        raise FileFaultError(f"{path}: {kind}")
    if raw.startswith(UTF_16) or b"\0" in raw:
        raise FileFaultError(f"{path}: is no text in UTF-8 (but perhaps in UTF-16); save it as UTF-8")


def known_kind(head: bytes) -> str:
    """What a file that begins so is, as a sentence without subject; empty if that is not known."""
    return next((what for mark, what in KINDS if head.startswith(mark)), "")


def read_toml(path: Path, advice: str = "") -> dict[str, Any]:
    """The table in a TOML file. Raises FileFaultError as `read_text` and `parse_toml` do."""
    return parse_toml(read_text(path, advice), str(path))


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The table that a text in TOML holds.

    Raises:
        FileFaultError: it is no TOML; the message says in which line.
    """
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except ValueError as error:
        raise FileFaultError(f"{where}: is not TOML: {error}") from None
    except RecursionError:
        raise FileFaultError(f"{where}: is not TOML that can be read: it is nested too deeply") from None
    return table


def read_json(path: Path, advice: str = "") -> Any:  # noqa: ANN401, whatever the file holds
    """What a JSON file holds.

    Raises:
        FileFaultError: as `read_text`, or it is no JSON (the message says in which line), or an object names a key twice.
    """
    text = read_text(path, advice)
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        what = "is not JSON that can be read: it is nested too deeply"
    except MemoryError:
        what = "does not fit into memory"
    except ValueError as error:
        what = f"is not JSON: {error}"
    raise FileFaultError(f"{path}: {what}{advice and '; ' + advice}")


def read_numbers(path: Path, names: Sequence[str], advice: str = "") -> dict[str, int | float]:
    """Some numbers of the object in a JSON file, by name.

    Raises:
        FileFaultError: as `read_json`, or there is no object with these numbers.
    """
    table = read_json(path, advice)
    for name in names:
        number = table.get(name) if isinstance(table, dict) else None
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise FileFaultError(f"{path}: {name} is {number!r:.40}, expected a number{advice and '; ' + advice}")
    return {name: table[name] for name in names}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return table


def read_csv(path: Path, columns: Sequence[str], advice: str = "") -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file, with the number of the line that each ends in.

    Args:
        path: of the file; its first line names the columns, and commas separate them.
        columns: that it must have.
        advice: what to do if there is no such file.

    Raises:
        FileFaultError: as `read_text`, a column is missing, or a row has not as many cells as the first line.
    """
    rows = csv_cells(path, columns, advice)
    _, head = next(rows)
    return [(line, dict(zip(head, cells, strict=True))) for line, cells in rows]


def csv_cells(path: Path, columns: Sequence[str], advice: str = "") -> Iterator[tuple[int, list[str]]]:
    """The cells of the first line of a CSV file, which name the columns, and then of each row, with the number of the line.

    Arguments and errors are those of `read_csv`.
    """
    reader = csv.reader(io.StringIO(read_text(path, advice), newline=""), strict=True)
    try:
        head = next(reader, [])
        if twice := [name for name, times in Counter(head).items() if times > 1]:
            raise FileFaultError(f"{path}: line 1: two columns are named {twice[0]!r}")
        if missing := [name for name in columns if name not in head]:
            other = next((f"; they are separated by {mark!r}, expected ','" for mark in ";\t|" if mark in "".join(head)), "")
            raise FileFaultError(f"{path}: line 1: no column {missing[0]}, expected {', '.join(columns)}{other}")
        yield 1, head
        for cells in reader:
            if cells and len(cells) != len(head):
                raise FileFaultError(f"{path}: line {reader.line_num}: {len(cells)} cells, expected {len(head)}")
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise FileFaultError(f"{path}: line {reader.line_num}: is not CSV: {error}") from None
