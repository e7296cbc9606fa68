"""An HDF5 file with a checksum, written whole or not at all. Knows no run.

It begins with a head of 512 bytes that HDF5 leaves to the user (its user block): three lines of text with the size of the
file and the SHA-256 of all bytes behind the head. So a file that was cut off, and a change of any one bit of it, is seen
before HDF5 reads it, which the checksums of HDF5's chunks (fletcher32) do not do for names, attributes and structure.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

HEAD = 512  # bytes, the smallest user block
SMALL = 1 << 16  # bytes: what is smaller HDF5 writes itself
BLOCK = 8 << 20  # bytes written, and summed, at a time


def write(path: Path, arrays: dict[str, np.ndarray], attributes: Mapping[str, int | float | str]) -> int:
    """Write a file under another name; once it is on the disk, rename it.

    Args:
        path: the file; replaced if it exists. `<path>.part` is written meanwhile.
        arrays: C-contiguous, of any dtype but object, by name; a slash in a name makes a group.
        attributes: of the file.

    Returns:
        Its size in bytes.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    part, digest = path.with_name(path.name + ".part"), hashlib.sha256()
    try:
        with part.open("wb", buffering=0) as file:
            file.write(bytes(HEAD))
            for piece in _hdf5(arrays, attributes):
                for start in range(0, len(piece), BLOCK):
                    block = piece[start : start + BLOCK]
                    digest.update(block)
                    while block:  # a disk that is getting full takes the beginning of it
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
    """UTF-8 of a fixed length, as an array for `write`: texts of any length would be objects to numpy."""
    longest = len(raw) if isinstance(raw, bytes) else max(map(len, raw))
    return np.array(raw, h5py.string_dtype("utf-8", max(longest, 1)))


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal, if it is the one in its head.

    Raises:
        ValueError: it is not, the file is not as long as it was, or it cannot be read.
    """
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(HEAD)
            while count := file.readinto(block):
                digest.update(block[:count])
            size = file.tell()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if head == _head(size, digest.hexdigest()):
        return digest.hexdigest()
    said = re.match(rb"asyncfeded, HDF5 behind 512 bytes\nbytes (\d+)\nsha256 [0-9a-f]{64}\n", head)
    if not said:
        raise ValueError(f"{path}: its head is damaged, or it is no checkpoint")
    if int(said[1]) != size:
        raise ValueError(f"{path}: has {size} bytes, but {int(said[1])} were written")
    raise ValueError(f"{path}: is damaged: its checksum is not the one it was written with")


def _head(size: int, digest: str) -> bytes:
    return f"asyncfeded, HDF5 behind 512 bytes\nbytes {size}\nsha256 {digest}\n".encode().ljust(HEAD, b"\0")


def _hdf5(arrays: dict[str, np.ndarray], attributes: Mapping[str, int | float | str]) -> list[memoryview]:
    """An HDF5 file without its head, as pieces: what HDF5 writes, and in between the large arrays themselves.

    HDF5 writes to a file in memory, in which it reserves the places of the large arrays and leaves holes there. On a full
    disk HDF5 2.0 ends the process by a segmentation fault when it closes a file; here that is an OSError. And while h5py
    writes a large array its lock keeps the server from writing its record: up to 0.8 s in a file of 500 MB, so it is 4 ms.
    """
    contiguous = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    contiguous.set_layout(h5py.h5d.CONTIGUOUS)
    contiguous.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    contiguous.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    places: list[tuple[int, np.ndarray]] = []
    with os.fdopen(os.memfd_create("hdf5"), "w+b", buffering=0) as memory:
        with h5py.File(memory, "w", userblock_size=HEAD) as file:
            for name, value in attributes.items():
                file.attrs[name] = value
            for name, array in arrays.items():
                assert not array.dtype.hasobject, name
                if array.nbytes < SMALL or not array.shape:  # h5py gives no place to what has no shape
                    file[name] = array
                else:
                    dataset = file.create_dataset(name, array.shape, array.dtype, dcpl=contiguous)
                    places.append((dataset.id.get_offset(), array))
        number, at = memory.fileno(), HEAD
        pieces: list[memoryview] = []
        for offset, array in sorted(places, key=lambda place: place[0]):
            pieces.append(memoryview(os.pread(number, offset - at, at)))
            pieces.append(memoryview(array.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]  # numpy's stubs
            at = offset + array.nbytes
        pieces.append(memoryview(os.pread(number, os.fstat(number).st_size - at, at)))
    return pieces
