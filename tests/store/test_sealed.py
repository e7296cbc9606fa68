"""A file with a checksum: what is in it comes back, and whatever happens to it is seen."""

import random

import h5py
import numpy as np
import pytest

from asyncfeded.store.rows import Rows
from asyncfeded.store.sealed import HEAD, SMALL, checksum, write, written_checksum
from store.snapshots import flip

LARGE = np.arange(SMALL, dtype=np.float32).reshape(2, -1)


@pytest.fixture
def good(tmp_path):
    """A file with small and large arrays; one array stands under two names, and one consists of rows that lie apart."""
    rows = Rows((0, 1), LARGE.shape[1], lambda: iter((LARGE[1], LARGE[0])))
    arrays = {"group/small": np.arange(3), "large": LARGE, "again": LARGE, "rows": rows}
    size = write(tmp_path / "file.h5", arrays, {"number": 7})
    assert size == (tmp_path / "file.h5").stat().st_size
    return tmp_path / "file.h5"


def is_refused(path, what):
    with pytest.raises(ValueError, match=f"^{path}: {what}"):
        checksum(path)


def test_what_is_written_comes_back(good):
    assert checksum(good) == written_checksum(good)
    with h5py.File(good) as file:
        assert (file["group/small"][:].tolist(), int(file.attrs["number"])) == ([0, 1, 2], 7)
        assert file["large"] == file["again"]
        assert file["large"][:].tobytes() == LARGE.tobytes()
        assert file["rows"][:].tobytes() == LARGE[::-1].tobytes()


def test_a_file_cut_off_anywhere_is_refused(good):
    whole, rng = good.read_bytes(), random.Random(0)
    for length in [*range(0, HEAD + 100, 7), *(rng.randrange(len(whole)) for _ in range(100)), len(whole) - 1]:
        good.write_bytes(whole[:length])
        said = f"has {length} bytes, but {len(whole)} were written"
        is_refused(good, said if length >= HEAD else f"({said}|its head is damaged)")


def test_a_file_that_has_grown_is_refused(good):
    with good.open("ab") as file:
        file.write(b"\0")
    is_refused(good, r"has \d+ bytes, but \d+ were written")


def test_a_bit_flipped_anywhere_is_seen(good):
    size, rng = good.stat().st_size, random.Random(0)
    for at in [*range(HEAD + 100), *(rng.randrange(size) for _ in range(100)), size - 1]:
        bit = rng.randrange(8)
        flip(good, at, bit)
        is_refused(good, "")
        flip(good, at, bit)
    checksum(good)


def test_something_else_in_its_place_is_refused(good):
    for content in (b"", b"x" * 5000, bytes(5000)):
        good.write_bytes(content)
        is_refused(good, "its head is damaged, or this program did not write it")
    good.unlink()
    with h5py.File(good, "w") as file:
        file["model"] = 1
    is_refused(good, "its head is damaged, or this program did not write it")
    good.unlink()
    good.mkdir()
    is_refused(good, "is a directory, expected a file")
