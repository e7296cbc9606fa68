"""Arrays of HDF5 and of NumPy's archives are read alike; what is wrong with such an archive is told in one sentence."""

import io
import zipfile

import h5py
import numpy as np
import pytest

from asyncfeded.files import arrays
from asyncfeded.files.arrays import find, open_arrays
from files.broken import EVERYWHERE

PIXELS = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def npy(array, version=None, **header):
    """The content of a *.npy whose header may say something else."""
    file = io.BytesIO()
    if header:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2, 3, 4)} | header)
        file.write(array.tobytes())
    else:
        np.lib.format.write_array(file, array, version)
    return file.getvalue()


def archive(content, compression=zipfile.ZIP_DEFLATED, name="x.npy", edit=lambda raw: raw):
    """The way that writes an archive of one file."""

    def write(path):
        with zipfile.ZipFile(path, "w", compression) as file:
            file.writestr(name, content)
        path.write_bytes(edit(path.read_bytes()))

    return write


def flip(raw):
    """One bit of the values is wrong: behind the header of the archive and that of the array."""
    at = raw.index(b"NUMPY") + 140
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


GOOD = npy(PIXELS)
OBJECTS = io.BytesIO()
np.lib.format.write_array(OBJECTS, np.array([{}, None], object), allow_pickle=True)
NPZ = {
    "no array": (archive(b"a", name="a.txt"), "is a ZIP archive without a *.npy file in it"),
    "cut off": (archive(GOOD, edit=lambda raw: raw[:-30]), "cannot be read (File is not a zip file)"),
    "a wrong bit": (archive(GOOD, zipfile.ZIP_STORED, edit=flip), "x: cannot be read (Bad CRC-32"),
    "damaged": (archive(GOOD, edit=lambda raw: raw[:60] + bytes(40) + raw[100:]), "x: cannot be read ("),
    "no array of NumPy": (archive(b"x" * 100), "x: cannot be read (the magic string is not correct"),
    "another version": (archive(npy(PIXELS, (3, 0))), "x: cannot be read (it is of version 3.0 of *.npy"),
    "objects": (archive(OBJECTS.getvalue()), "x: holds Python objects, which are never unpickled; save numbers or text"),
    "compressed otherwise": (archive(GOOD, zipfile.ZIP_LZMA), "x: is compressed as NumPy does not do it"),
    "too large a shape": (
        archive(npy(PIXELS, shape=(2, 3, 5))),
        "declares float32 (2, 3, 5), 120 bytes, which is not",
    ),
    "too small a shape": (archive(npy(PIXELS, shape=(2, 3))), "which is not what it holds; the file is damaged"),
    "negative shape": (archive(npy(PIXELS, shape=(-2, -12))), "declares float32 (-2, -12), 96 bytes, which is not what"),
    "huge": (archive(npy(PIXELS, shape=(1 << 60, 4))), "bytes, more than this machine has memory"),
    "a header that runs code": (archive(GOOD.replace(b"False,", b"print,")), "x: cannot be read ("),
}


@pytest.mark.parametrize("way", [*sorted(EVERYWHERE.keys() - {"archive"}), *NPZ])
def test_a_broken_file_is_told_in_one_sentence(tmp_path, one_sentence, way):
    write, words = (EVERYWHERE | NPZ)[way]
    write(tmp_path / "data.npz")
    with one_sentence(tmp_path / "data.npz", words), open_arrays(tmp_path / "data.npz") as file:
        file.array("x").read()


def test_an_array_that_does_not_fit_is_not_allocated(tmp_path, one_sentence, monkeypatch):
    np.savez(tmp_path / "data.npz", x=PIXELS)
    monkeypatch.setattr(arrays.os, "sysconf", lambda name: 1)
    with one_sentence(tmp_path, "96 bytes, more than this machine has memory"), open_arrays(tmp_path / "data.npz") as file:
        file.array("x")


def test_a_length_that_nothing_can_be_unpacked_to_is_refused(tmp_path, one_sentence, monkeypatch):
    """8,000 bytes of zeros in a file of some 200, if nothing were made smaller than by a factor of 2."""
    np.savez_compressed(tmp_path / "data.npz", x=np.zeros(1000))
    monkeypatch.setattr(arrays, "DEFLATE", 2)
    with one_sentence(tmp_path, "which is not what it holds"), open_arrays(tmp_path / "data.npz") as file:
        file.array("x")


VALUES = {
    "x": PIXELS,
    "label": np.array([3, 1], ">i4"),
    "name": np.array([b"a", b"caf\xc3\xa9"]),
    "fortran": np.asfortranarray(PIXELS),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, "h5"])
def test_both_kinds_of_file_are_read_alike(tmp_path, save):
    path = tmp_path / "data"
    if save == "h5":
        with h5py.File(path, "w") as file:
            for name, values in VALUES.items():
                file[name] = values
    else:
        with path.open("wb") as raw:
            save(raw, **VALUES)
    with open_arrays(path) as file:
        assert file.names() == sorted(VALUES)
        assert [file.kind(name) for name in ("x", "y")] == ["array", ""]
        for name, values in VALUES.items():
            array = file.array(name)
            assert (array.shape, array.dtype, array.where) == (values.shape, values.dtype, f"{path}: {name}")
            assert np.array_equal(array.read(), values)
        assert (file.array("name").is_text, file.array("x").is_text) == (True, False)
        assert file.array("name").texts() == ["a", "caf\u00e9"]
        with pytest.raises(ValueError, match=r"data: no array 'y', it has fortran, label, name, x; name .* task\.images"):
            find(file, path, "y", "task.images")
        with pytest.raises(ValueError, match=r"data: x: is float32 .*, expected text"):
            file.array("x").texts()
        for ask in (file.array, file.group):
            with pytest.raises(ValueError, match="data: y: no such"):
                ask("y")


def test_text_that_is_not_utf_8_is_refused(tmp_path, one_sentence):
    np.savez(tmp_path / "data.npz", x=np.array([b"caf\xe9"]))
    with one_sentence(tmp_path, "x: holds bytes that are not UTF-8"), open_arrays(tmp_path / "data.npz") as file:
        file.array("x").texts()
