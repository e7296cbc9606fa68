"""Opens files of named arrays: HDF5 (hdf5.py), and NumPy's *.npz, a ZIP archive with a file *.npy for each array.

The content tells which of the two a file is. Nothing of a *.npz is unpickled, and nothing is allocated for an array before
its declared shape, the length that the archive has for it and the memory of this machine were compared.
"""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, NoReturn, Protocol

import numpy as np
from numpy.lib import format as npy

from asyncfeded.files.hdf5 import NamedArray, open_hdf5, texts_of
from asyncfeded.files.plain import FileFaultError, cannot_read, check_file

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
"""First bytes of an archive, and of an empty one."""
DEFLATE = 1032
"""Deflate makes nothing smaller than by this factor."""


class Arrays(Protocol):
    """An open file."""

    def names(self) -> list[str]:
        """Names of the members, in order."""

    def kind(self, name: str) -> str:
        """`array`, `group` (in HDF5), or empty for a member that is absent."""

    def group(self, name: str) -> "Arrays":
        """A group of members. Raises FileFaultError if there is none."""

    def array(self, name: str) -> NamedArray:
        """An array. Raises FileFaultError if there is none."""


@contextmanager
def open_arrays(path: Path, advice: str = "") -> Iterator[Arrays]:
    """Open a file, which is usable until the end of the `with` block.

    Args:
        path: of the file.
        advice: what to do if there is no such file.

    Raises:
        FileFaultError: there is no such file, or it is neither HDF5 nor a *.npz.
    """
    check_file(path, advice)
    try:
        with path.open("rb") as file:
            zipped = file.read(4) in ZIP
    except OSError as error:
        raise FileFaultError(cannot_read(path, error, advice)) from None
    if not zipped:
        with open_hdf5(path, advice=advice) as group:
            yield group
        return
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # as h5py, zipfile raises errors of many kinds on a broken file
        _damaged(str(path), error)
    with archive:
        yield _Npz(path, archive)


def find(file: Arrays, path: Path, name: str, key: str) -> NamedArray:
    """The array of a name; nothing of it is read.

    Args:
        file: as `open_arrays` gave it.
        path: of the file, for the message.
        name: of the array; in HDF5 it may be a path.
        key: of the config, that names the array.

    Raises:
        FileFaultError: there is no such array.
    """
    if file.kind(name) != "array":
        here = ", ".join(file.names()[:10]) or "nothing"
        raise FileFaultError(f"{path}: no array {name!r}, it has {here}; name the right one with {key}")
    return file.array(name)


class _Npz:
    """An open *.npz."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
        self._members = dict(sorted(members.items()))
        if not members:
            raise FileFaultError(f"{path}: is a ZIP archive without a *.npy file in it; write arrays with np.savez")

    def names(self) -> list[str]:
        return list(self._members)

    def kind(self, name: str) -> str:
        return "array" if name in self._members else ""

    def group(self, name: str) -> Arrays:
        raise FileFaultError(f"{self._path}: {name}: no such group; a *.npz has none")

    def array(self, name: str) -> "_NpyArray":
        if name not in self._members:
            raise FileFaultError(f"{self._path}: {name}: no such array")
        return _NpyArray(f"{self._path}: {name}", self._path, self._archive, self._members[name])


class _NpyArray:
    """An array of an open *.npz; see `NamedArray`."""

    def __init__(self, where: str, path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self.where, self._archive, self._info = where, archive, info
        try:
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise FileFaultError(f"{where}: is compressed as NumPy does not do it; write it with np.savez_compressed")
            with archive.open(info) as file:
                self.shape, self.dtype = _read_header(file)
                num_bytes = info.file_size - file.tell()
        except Exception as error:
            _damaged(where, error)
        if self.dtype.hasobject:
            raise FileFaultError(f"{where}: holds Python objects, which are never unpickled; save numbers or text")
        self.is_text = self.dtype.kind in "US"
        declared = prod(self.shape) * self.dtype.itemsize
        holds = f"declares {self.dtype} {self.shape}, {declared:,} bytes"
        if declared > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise FileFaultError(f"{where}: {holds}, more than this machine has memory")
        if min(self.shape, default=0) < 0 or declared != num_bytes or num_bytes > DEFLATE * path.stat().st_size:
            raise FileFaultError(f"{where}: {holds}, which is not what it holds; the file is damaged")

    def read(self) -> np.ndarray:
        """All values."""
        try:
            with self._archive.open(self._info) as file:
                values: np.ndarray = npy.read_array(file, allow_pickle=False)
                file.read(1)  # beyond the end: the archive compares the checksum there
        except Exception as error:
            _damaged(self.where, error)
        return values

    def texts(self) -> list[str]:
        """All values, strings; bytes are UTF-8."""
        return texts_of(self)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and type that a *.npy declares; the file then stands where its values begin."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it is of version {version[0]}.{version[1]} of *.npy, expected 1.0 or 2.0")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _damaged(where: str, error: Exception) -> NoReturn:
    """Raise an error as a sentence about a place, if it is not one already."""
    if isinstance(error, FileFaultError):
        raise error
    if isinstance(error, MemoryError):
        raise FileFaultError(f"{where}: does not fit into memory") from None
    said = " ".join(str(error).split())
    raise FileFaultError(f"{where}: cannot be read ({said or type(error).__name__}); the file is damaged") from None
