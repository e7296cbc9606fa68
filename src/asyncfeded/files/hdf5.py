"""Opens HDF5 files for reading, and reads their groups, arrays and attributes.

A file is opened without a lock, since it is only read, and many file systems have none. A file of this program (a record, a
checkpoint) is `sealed`: it must consist of itself alone, and nothing is allocated for it that exceeds its size. Data of a
user may lie in other files behind external links and virtual datasets, but all of these must be there: HDF5 itself gives
fill values without a word for a source that is missing, and for what was never written.

Every fault is a `FileFaultError` of one sentence that names the file, the place in it, and what to do. On a broken file h5py
raises errors of many kinds (OSError, KeyError, ValueError, RuntimeError, TypeError, MemoryError, ...), so every call of it
in this room is guarded.
"""

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from math import prod
from pathlib import Path
from typing import NoReturn, Protocol

import h5py
import numpy as np

from asyncfeded.files.plain import HDF5, FileFaultError, cannot_read, check_file, known_kind

FILTERS = {307: "bzip2", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32026: "blosc2"}
"""Filters of compression that HDF5 does not bring, by their registered number."""
DEEPEST = 8
"""Most virtual datasets that may stand behind each other."""


@contextmanager
def open_hdf5(path: Path, *, sealed: bool = False, advice: str = "") -> Iterator["Group"]:
    """Open a file, and give its root group, which is usable until the end of the `with` block.

    Args:
        path: of the file.
        sealed: whether this program wrote the file, so that it must hold all of its content, and nothing by reference.
        advice: what to do if there is no such file.

    Raises:
        FileFaultError: there is no such file, or it is not HDF5.
    """
    with ExitStack() as opened:
        yield _File(path, sealed, advice, opened).root()


class _File:
    """An open file, and the files of its virtual sources.

    Attributes:
        left: of a sealed file, bytes that its arrays may still take.
    """

    def __init__(self, path: Path, sealed: bool, advice: str, opened: ExitStack) -> None:
        self.path, self.sealed, self._opened = path, sealed, opened
        self.left = check_file(path, advice)
        self._sources: dict[Path, _File] = {}
        try:
            self._file = opened.enter_context(_open(path))
        except Exception as error:  # see above
            raise FileFaultError(_no_hdf5(path, error)) from None

    def root(self) -> "Group":
        return Group(self._file, self, "")

    def source(self, name: str, folder: Path) -> "_File":
        """The file of a virtual source, as HDF5 looks for it: beside the file that names it, or from the current folder."""
        places = [folder / name, self.path.resolve().parent / name, Path(name)]
        path = next((place for place in places if place.is_file()), places[0])
        if path not in self._sources:
            self._sources[path] = _File(path, self.sealed, "", self._opened)
        return self._sources[path]


class Group:
    """A group of an open file."""

    def __init__(self, group: h5py.Group, file: _File, place: str) -> None:
        self._group, self._file, self._place = group, file, place

    def where(self, name: str = "") -> str:
        """File and place of a member, or of this group, for messages."""
        place = "/".join(filter(None, (self._place, name)))
        return f"{self._file.path}: {place}" if place else str(self._file.path)

    def __len__(self) -> int:
        """Number of members."""
        return len(self._group)

    def names(self) -> list[str]:
        """Names of the members, in order. Raises FileFaultError if they cannot be read, or one is not UTF-8."""
        try:
            names = list(self._group)
        except Exception as error:
            _damaged(self.where(), error)
        if odd := [name for name in names if not isinstance(name, str)]:
            raise FileFaultError(
                f"{self.where()}: the name {odd[0]!r} in it is not UTF-8; write the file with names in UTF-8"
            )
        return sorted(names)

    def names_of_one(self) -> tuple[str, str] | None:
        """Two names of one and the same member, which links can give it; a link that leads nowhere is not looked at."""
        seen: dict[tuple[int, int], str] = {}
        for name in self.names():
            with suppress(Exception):
                about = h5py.h5o.get_info(self._group.id, name.encode())
                first = seen.setdefault((about.fileno, about.addr), name)
                if first != name:
                    return first, name
        return None

    def kind(self, name: str) -> str:
        """`group`, `array`, or empty for a member that is absent. Raises FileFaultError if a link leads nowhere."""
        found = self._get(name)
        return "group" if isinstance(found, h5py.Group) else "array" if isinstance(found, h5py.Dataset) else ""

    def group(self, name: str) -> "Group":
        """A group in this one. Raises FileFaultError if there is none."""
        found = self._get(name)
        if not isinstance(found, h5py.Group):
            raise FileFaultError(f"{self.where(name)}: {'is not a group' if found is not None else 'no such group'}")
        return Group(found, self._file, "/".join(filter(None, (self._place, name))))

    def array(self, name: str) -> "Array":
        """An array in this group. Raises FileFaultError if there is none, or it is of a kind that numpy does not know."""
        found = self._get(name)
        if not isinstance(found, h5py.Dataset):
            raise FileFaultError(f"{self.where(name)}: {'is not an array' if found is not None else 'no such array'}")
        return Array(found, self._file, self.where(name))

    def attributes(self) -> dict[str, int | float | str]:
        """The attributes that are one number or one text. Raises FileFaultError if one is something else."""
        values: dict[str, int | float | str] = {}
        try:
            for name in self._group.attrs:
                if self._group.attrs.get_id(name).shape != ():
                    raise ValueError(f"the attribute {name!r} is not one value")
                value = self._group.attrs[name]
                if not isinstance(value, (str, np.integer, np.floating)):
                    raise ValueError(f"the attribute {name!r} is neither a number nor a text")
                values[name] = value if isinstance(value, str) else value.item()
        except Exception as error:
            _damaged(self.where(), error)
        return values

    def _get(self, name: str) -> object:
        """The member of a name, which may be a path; None if there is none."""
        head, _, rest = name.partition("/")
        where = self.where(head)
        try:
            link = self._group.get(head, getlink=True)
        except Exception as error:
            _damaged(where, error)
        if link is None:
            return None
        outside = isinstance(link, h5py.ExternalLink)
        target = f"{link.path} in {link.filename}" if outside else getattr(link, "path", "")
        if self._file.sealed and not isinstance(link, h5py.HardLink):
            raise FileFaultError(f"{where}: is a link to {target}; this program wrote no such file")
        try:
            found = self._group[head]
        except Exception as error:
            if not target:
                _damaged(where, error)
            place = f"put that file there, as seen from {self._file.path.parent}, or " if outside else ""
            raise FileFaultError(
                f"{where}: is a link to {target}, which cannot be opened ({_reason(error)}); {place}mend the link"
            ) from None
        if rest and not isinstance(found, h5py.Group):
            return None
        return Group(found, self._file, "/".join(filter(None, (self._place, head))))._get(rest) if rest else found


class NamedArray(Protocol):
    """An array of an open file; nothing of it is read before `read`."""

    where: str
    """File and place, for messages."""
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    is_text: bool
    """Whether it holds strings."""

    def read(self) -> np.ndarray:
        """All values, of `shape`. Raises FileFaultError if they are damaged, or would not fit into memory."""

    def texts(self) -> list[str]:
        """All values of an array of strings. Raises FileFaultError as `read`, or if it holds others."""


def texts_of(array: NamedArray) -> list[str]:
    """See `NamedArray.texts`."""
    if not array.is_text:
        raise FileFaultError(f"{array.where}: is {array.dtype} {array.shape}, expected text")
    try:
        return [raw.decode() if isinstance(raw, bytes) else raw for raw in array.read().reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise FileFaultError(f"{array.where}: holds bytes that are not UTF-8 ({error})") from None


class Array:
    """An array of an open file; nothing of it is read before `read`.

    Attributes:
        where: file and place, for messages.
        shape: as declared.
        dtype: as numpy has it.
        is_text: whether it holds strings.
        place: of the values; the same for two names of one array.
    """

    def __init__(self, dataset: h5py.Dataset, file: _File, where: str) -> None:
        self._dataset, self._file, self.where = dataset, file, where
        try:
            shape, dtype = dataset.shape, dataset.dtype
            self.is_text = h5py.check_string_dtype(dtype) is not None
            about = h5py.h5o.get_info(dataset.id)
        except Exception as error:  # such as a type that numpy has not
            raise FileFaultError(f"{where}: is of a kind that numpy cannot hold ({_reason(error)})") from None
        if shape is None:
            raise FileFaultError(f"{where}: is empty, without a shape")
        self.place: tuple[int, int] = about.fileno, about.addr
        self.shape: tuple[int, ...] = shape
        self.dtype: np.dtype[np.generic] = dtype

    def read(self) -> np.ndarray:
        """All values, as `dtype`, of `shape`; texts of variable length as bytes.

        Raises:
            FileFaultError: a part of them is missing or damaged, they are compressed with a filter that is not installed, or
                they would not fit into memory.
        """
        try:
            self._check(0)
            values: np.ndarray = self._dataset[...]
        except Exception as error:
            _damaged(self.where, error)
        return values

    def blocks(self, at_once: int) -> Iterator[np.ndarray]:
        """All values, so many entries of the first axis at a time. Raises FileFaultError as `read`."""
        try:
            self._check(0)
            for start in range(0, self.shape[0], at_once):
                yield self._dataset[start : start + at_once]
        except Exception as error:
            _damaged(self.where, error)

    def texts(self) -> list[str]:
        """All values of an array of strings, one after the other. Raises FileFaultError as `read`, or if it holds others."""
        return texts_of(self)

    def text(self) -> str:
        """The one string that the array is. Raises FileFaultError as `texts`, or if there are several."""
        if self.shape:
            raise FileFaultError(f"{self.where}: is {self.dtype} {self.shape}, expected one text")
        return self.texts()[0]

    def _check(self, depth: int) -> None:
        """Whether all values are there, and can be read."""
        dataset, sealed = self._dataset, self._file.sealed
        num_bytes = prod(self.shape) * max(self.dtype.itemsize, dataset.id.get_type().get_size())
        if outside := dataset.external:
            raise FileFaultError(f"{self.where}: its values lie in {outside[0][0]}, outside of HDF5; copy it with h5repack")
        if sealed and (dataset.is_virtual or dataset.chunks or self.dtype.hasobject):
            raise FileFaultError(f"{self.where}: does not hold its values itself; this program wrote no such file")
        if sealed:
            self._file.left -= num_bytes
        if num_bytes > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") or self._file.left < 0:
            raise FileFaultError(
                f"{self.where}: declares {self.dtype} {self.shape}, {num_bytes / 1e9:.3g} GB, more than "
                f"{'the file has' if sealed else 'this machine has memory'}; the file is damaged"
            )
        if dataset.is_virtual:
            self._check_sources(depth)
        elif num_bytes:
            self._check_written()

    def _check_written(self) -> None:
        """Whether every value was written, and the filters are there that made it smaller."""
        dataset = self._dataset
        properties = dataset.id.get_create_plist()
        for i in range(properties.get_nfilters()):
            number, _, _, own_name = properties.get_filter(i)
            if not _has_filter(number):
                name = FILTERS.get(number) or own_name.decode("utf-8", "replace").partition(":")[0] or "of an unknown name"
                raise FileFaultError(
                    f"{self.where}: is compressed with filter {number} ({name}), which is not installed; "
                    f"pip install hdf5plugin, or write the file without it (h5repack -f NONE)"
                )
        if dataset.chunks:
            expected = prod(-(-size // chunk) for size, chunk in zip(self.shape, dataset.chunks, strict=True))
            written = dataset.id.get_num_chunks()
        else:
            expected = prod(self.shape) * dataset.id.get_type().get_size()
            written = dataset.id.get_storage_size()
        if written < expected:
            raise FileFaultError(
                f"{self.where}: declares {self.dtype} {self.shape}, of which {written / expected:.0%} was written; "
                f"write the file again"
            )

    def _check_sources(self, depth: int) -> None:
        """Whether every source of a virtual dataset is there, and together they fill it."""
        if depth == DEEPEST:
            raise FileFaultError(f"{self.where}: more than {DEEPEST} virtual datasets stand behind each other")
        folder, filled = Path(self._dataset.file.filename).parent, 0
        for source in self._dataset.virtual_sources():
            told = f"{self.where}: is virtual, and its source {source.dset_name} in {source.file_name}"
            if "%b" in source.file_name + source.dset_name:
                raise FileFaultError(f"{told} is a pattern; name every source")
            try:
                file = self._file if source.file_name == "." else self._file.source(source.file_name, folder)
                array = file.root().array(source.dset_name.lstrip("/"))
                array._check(depth + 1)
            except FileFaultError as error:
                raise FileFaultError(f"{told} cannot be read ({error}); put it there, or write the file again") from None
            filled += (taken := source.vspace.get_select_npoints())
            if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:  # all of it, whatever its shape: it has no bounds
                fits = prod(array.shape) == taken
            else:
                _, last = source.src_space.get_select_bounds()
                fits = len(last) == len(array.shape) and all(at < size for at, size in zip(last, array.shape, strict=True))
            if not fits:
                raise FileFaultError(f"{told} has shape {array.shape}, which does not fit what is taken from it")
        if filled < prod(self.shape) and None not in self._dataset.maxshape:
            raise FileFaultError(
                f"{self.where}: is virtual, and its sources fill only {filled} of {prod(self.shape)} values"
            )


def _open(path: Path) -> h5py.File:
    """Open a file for reading, without a lock; HDF5 opens one that this process has open already only with its flags."""
    for locking in (False, True, "best-effort"):
        try:
            return h5py.File(path, "r", locking=locking)
        except OSError as error:
            if "flag values don't match" not in str(error):
                raise
            problem = error
    raise problem


def _has_filter(number: int) -> bool:
    """Whether a filter is there; hdf5plugin, where it is installed, brings some."""
    if not h5py.h5z.filter_avail(number):
        with suppress(ImportError):
            importlib.import_module("hdf5plugin")
    return bool(h5py.h5z.filter_avail(number))


def _no_hdf5(path: Path, error: Exception) -> str:
    """Why a file cannot be opened, as a sentence."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as problem:
        return cannot_read(path, problem)
    if not head:
        return f"{path}: is empty, expected an HDF5 file"
    if cut := re.search(r"truncated file: eof = (\d+).* stored_eof = (\d+)", str(error)):
        return f"{path}: is cut off: it has {cut[1]} bytes, and {cut[2]} were written; copy it again"
    kind = known_kind(head)
    if kind == HDF5:
        return f"{path}: cannot be read ({_reason(error)}); the file is damaged, or lies on a broken disk"
    return f"{path}: {kind or 'not a readable HDF5 file'} ({_reason(error)})"


def _reason(error: Exception) -> str:
    """What HDF5 says in its innermost parentheses, in one line, or the name of the error."""
    said = " ".join(str(error).split())
    return (re.search(r"\((.*)\)$", said) or ["", said])[1] or type(error).__name__


def _damaged(where: str, error: Exception) -> NoReturn:
    """Raise an error as a sentence about a place, if it is not one already."""
    if isinstance(error, FileFaultError):
        raise error
    if isinstance(error, MemoryError):
        raise FileFaultError(f"{where}: does not fit into memory") from None
    raise FileFaultError(f"{where}: cannot be read ({_reason(error)}); the file is damaged") from None
