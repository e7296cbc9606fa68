"""An HDF5 file with a checksum, written whole or not at all. This module knows nothing of runs.

The file begins with a head of 512 bytes, which HDF5 leaves to the user (its user block): three lines of text with the size
of the file and the SHA-256 of all bytes after the head. So a file that was cut off, or has any one bit changed, is detected
before HDF5 reads it. The checksums of HDF5's chunks (fletcher32) do not cover names, attributes and structure.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from asyncfeded.files.plain import FileFaultError, cannot_read, check_file
from asyncfeded.store.rows import Rows

HEAD = 512  # bytes, the smallest user block
SMALL = 1 << 16  # bytes: HDF5 itself writes what is smaller
BLOCK = 8 << 20  # bytes written, and added to the checksum, at a time


Arrays = Mapping[str, np.ndarray | Rows]
"""By name: an array, or the rows of one. C-contiguous, of any dtype except object."""


def write(path: Path, arrays: Arrays, attributes: Mapping[str, int | float | str]) -> int:
    """Write a file under another name. Once it is on the disk, rename it.

    Args:
        path: the file; replaced if it exists. `<path>.part` is the name until then.
        arrays: a slash in a name makes a group. An array that stands under several names is written once.
        attributes: attributes of the file.

    Returns:
        The size of the file in bytes.

    Raises:
        OSError: the file cannot be written; `path` is unchanged.
    """
    part, digest = path.with_name(path.name + ".part"), hashlib.sha256()
    try:
        with part.open("wb", buffering=0) as file:
            file.write(bytes(HEAD))
            for piece in _hdf5(arrays, attributes):
                for start in range(0, len(piece), BLOCK):
                    block = piece[start : start + BLOCK]
                    digest.update(block)
                    while block:  # a disk that becomes full takes only the beginning
                        block = block[file.write(block) :]
            size = file.tell()
            file.seek(0)
            file.write(_head(size, digest.hexdigest()))
            os.fsync(file.fileno())
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)
    return size


def text(raw: bytes | list[bytes]) -> np.ndarray:
    """UTF-8 of a fixed length, as an array for `write`: numpy would store texts of variable length as objects."""
    longest = len(raw) if isinstance(raw, bytes) else max(map(len, raw))
    return np.array(raw, h5py.string_dtype("utf-8", max(longest, 1)))


def sync(folder: Path) -> None:
    """Force the names in a folder onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path, advice: str = "") -> str:
    """The SHA-256 of a file, in hexadecimal, if it equals the one in its head.

    Args:
        path: of the file.
        advice: what to do if there is no such file.

    Raises:
        FileFaultError: it does not, the length of the file has changed, or the file cannot be read.
    """
    check_file(path, advice)
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(HEAD)
            while count := file.readinto(block):
                digest.update(block[:count])
            size = file.tell()
    except OSError as error:
        raise FileFaultError(cannot_read(path, error)) from None
    if head == _head(size, digest.hexdigest()):
        return digest.hexdigest()
    said = re.match(rb"asyncfeded, HDF5 behind 512 bytes\nbytes (\d+)\nsha256 [0-9a-f]{64}\n", head)
    if not said:
        raise FileFaultError(f"{path}: its head is damaged, or this program did not write it")
    if int(said[1]) != size:
        raise FileFaultError(f"{path}: has {size} bytes, but {int(said[1])} were written")
    raise FileFaultError(f"{path}: is damaged: its checksum is not the one it was written with")


def written_checksum(path: Path) -> str:
    """The SHA-256 that a file was written with, in hexadecimal, from its head. Raises OSError."""
    with path.open("rb") as file:
        return file.read(HEAD).rpartition(b"sha256 ")[2][:64].decode()


def _head(size: int, digest: str) -> bytes:
    return f"asyncfeded, HDF5 behind 512 bytes\nbytes {size}\nsha256 {digest}\n".encode().ljust(HEAD, b"\0")


def _hdf5(arrays: Arrays, attributes: Mapping[str, int | float | str]) -> Iterator[memoryview]:
    """An HDF5 file without its head, as pieces: what HDF5 writes, and between that the large arrays themselves.

    A piece is valid until the next one is asked for.

    HDF5 writes to a file in memory. There it reserves the places of the large arrays, and leaves them as holes. On a full
    disk HDF5 2.0 ends the process with a segmentation fault when it closes a file; here that is an OSError. Also, while h5py
    writes a large array, its lock keeps the server from writing its record: up to 0.8 s in a file of 500 MB; this way, 4 ms.
    """
    contiguous = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    contiguous.set_layout(h5py.h5d.CONTIGUOUS)
    contiguous.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    contiguous.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    places: list[tuple[int, np.ndarray | Rows]] = []
    with os.fdopen(os.memfd_create("hdf5"), "w+b", buffering=0) as memory:
        with h5py.File(memory, "w", userblock_size=HEAD) as file:
            for name, value in attributes.items():
                file.attrs[name] = value
            names: dict[int, str] = {}
            for name, array in arrays.items():
                assert not array.dtype.hasobject, name
                if (first := names.setdefault(id(array), name)) != name:
                    file[name] = file[first]  # a second name of the same dataset
                elif array.nbytes < SMALL or not array.shape:  # h5py reserves no place for one without shape
                    file[name] = np.reshape(list(array.each()), array.shape) if isinstance(array, Rows) else array
                else:
                    dataset = file.create_dataset(name, array.shape, array.dtype, dcpl=contiguous)
                    places.append((dataset.id.get_offset(), array))
        number, at = memory.fileno(), HEAD
        for offset, array in sorted(places, key=lambda place: place[0]):
            yield memoryview(os.pread(number, offset - at, at))
            for row in array.each() if isinstance(array, Rows) else [array]:
                yield memoryview(row.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # numpy's stubs
            at = offset + array.nbytes
        yield memoryview(os.pread(number, os.fstat(number).st_size - at, at))
