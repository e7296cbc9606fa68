"""Memory that lies in a file, for the buffers of clients whose turn is far away. What is in which buffer is not known here.

The file is mapped, so that a buffer is used like any other: its pages come back from the file when they are touched. All its
room is reserved at the start, so that a full disk is found before training, and it has no name, so that it goes away with
the process however that ends, and two runs may use one folder.
"""

import mmap
import os
import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asyncfeded.files.paths import kind_of

MAPPED = Path("/proc/mounts")


class Disk:
    """Buffers in a file.

    Args:
        folder: where the file lies.
        size: elements of a buffer.
        number: how many there may be at a time.

    Raises:
        ValueError: the folder cannot hold them; the message says how much is needed and how much there is.
    """

    def __init__(self, folder: Path, size: int, number: int) -> None:
        self._size = size
        self._stride = max(-(-4 * size // mmap.PAGESIZE), 1) * mmap.PAGESIZE  # a slice may be empty
        self.num_bytes = number * self._stride
        where = f"bases_dir = {str(folder)!r}"
        try:
            kind = kind_of(folder.resolve(), MAPPED.read_text(encoding="utf-8")) if MAPPED.exists() else ""
            if kind in ("tmpfs", "ramfs"):
                raise ValueError(f"{where}: that folder lies in memory ({kind}); name one on a disk, or set bases = memory")
            with tempfile.TemporaryFile(dir=folder) as file:
                os.posix_fallocate(file.fileno(), 0, self.num_bytes)
                self._map = mmap.mmap(file.fileno(), self.num_bytes)
        except OSError as error:
            free = f", and {shutil.disk_usage(folder).free / 1e9:.3g} GB are free" if folder.is_dir() else ""
            raise ValueError(
                f"{where}: {error.strerror or error}; the bases of the clients need {self.num_bytes / 1e9:.3g} GB there"
                f"{free}; name another folder, or take fewer clients"
            ) from None
        self._start = torch.frombuffer(self._map, dtype=torch.uint8).data_ptr()
        self._free = [i * self._stride for i in reversed(range(number))]

    def new(self) -> Tensor:
        """A buffer, float32 (size,): of zeros, or with what an earlier one held that nothing refers to any more."""
        offset = self._free.pop()
        place = np.frombuffer(self._map, np.float32, self._size, offset)
        weakref.finalize(place, self._free.append, offset).atexit = False
        return torch.from_numpy(place)  # its memory keeps `place`

    def put_away(self, buffer: Tensor) -> None:
        """Take the memory from a buffer: what is in it stays in the file."""
        self._advise(buffer, mmap.MADV_DONTNEED)

    def read_ahead(self, buffer: Tensor) -> None:
        """Begin to read a buffer that will be used soon. Does not wait."""
        self._advise(buffer, mmap.MADV_WILLNEED)

    def _advise(self, buffer: Tensor, advice: int) -> None:
        offset = buffer.data_ptr() - self._start
        if 0 <= offset < self.num_bytes:  # not an empty slice, nor what is left of a forgotten client
            self._map.madvise(advice, offset, self._stride)
