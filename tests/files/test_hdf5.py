"""What is wrong with an HDF5 file is told in one sentence; what is right in it is read."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from asyncfeded import tasks
from asyncfeded.files import hdf5
from asyncfeded.files.hdf5 import open_hdf5
from files.broken import ARRAY, EVERYWHERE, HDF5, SIDE, h5, images, link, replace, virtual, write_h5


def read_all(path, good):
    """Read training data, and the whole as a run does."""
    task = tasks.load_task({"name": "femnist", "train": str(path), "test": str(good), "classes": 2, "model": "mlp"})
    task.model()
    task.sizes(1, 0)
    return task.client_data(0, 1, 0)


@pytest.fixture
def good(tmp_path):
    write_h5(tmp_path / "good.h5")
    (tmp_path / "text").write_text("text")
    return tmp_path / "good.h5"


@pytest.mark.parametrize("way", EVERYWHERE | HDF5)
def test_a_broken_file_is_told_in_one_sentence(tmp_path, good, one_sentence, way):
    write, words = (EVERYWHERE | HDF5)[way]
    path = tmp_path / "data.h5"
    write(path)
    with one_sentence(path, words):
        read_all(path, good)


@pytest.mark.parametrize("way", ARRAY)
def test_an_array_is_looked_at_before_it_is_read(tmp_path, good, one_sentence, way):
    write, words = ARRAY[way]
    path = tmp_path / "data.h5"
    write(path)
    with one_sentence(path, words), open_hdf5(path) as file:
        file.group("examples").group("bad").array("pixels").read()


def test_an_array_that_does_not_fit_is_not_allocated(tmp_path, one_sentence, monkeypatch):
    write_h5(tmp_path / "data.h5")
    monkeypatch.setattr(hdf5.os, "sysconf", lambda name: 1)
    with one_sentence(tmp_path / "data.h5", "more than this machine has memory"), open_hdf5(tmp_path / "data.h5") as file:
        file.group("examples").group("a").array("pixels").read()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_an_error_of_the_system_is_told(good, one_sentence, monkeypatch, error):
    """The tests may run as root, whom no permission stops."""

    def refuse(*args, **keys):
        raise error

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(hdf5.h5py, "File", refuse)
    with one_sentence(good, f"cannot be read: {error.strerror}"), open_hdf5(good):
        pass


def soft_link(writer, path):
    examples = writer.parent
    examples.file.move(writer.name, "/kept")
    examples["bad"] = h5py.SoftLink("/kept")


WHOLE = {
    "soft link": h5(soft_link),
    "external link": link(h5py.ExternalLink("good.h5", "/examples/a")),
    "gzip": replace("pixels", lambda w, f, p: w.create_dataset(f, data=images(), compression="gzip", shuffle=True)),
    "virtual": virtual(("good.h5", "/examples/a/pixels", 0, 3)),
    "virtual, of this file": virtual((".", "/examples/a/pixels", 0, 3)),
    "virtual, of two": virtual(
        (".", "/examples/a/pixels", 0, 1), ("good.h5", "examples/a/pixels", 1, 3), source_shape=(3, SIDE, SIDE)
    ),
    "compact": h5(lambda writer, path: None),
    "another order of bytes": replace("pixels", lambda w, f, p: w.create_dataset(f, data=images().astype(">f4"))),
    "half precision": replace("pixels", lambda w, f, p: w.create_dataset(f, data=images().astype("f2"))),
}


@pytest.mark.parametrize("way", WHOLE)
def test_what_is_whole_is_read(tmp_path, good, way):
    path = tmp_path / "data.h5"
    WHOLE[way](path)
    inputs, _ = read_all(path, good)
    assert inputs.shape == (6, 1, SIDE, SIDE)
    assert (inputs == 1).all()


@pytest.mark.parametrize("way", ["soft link", "external link", "gzip", "virtual"])
def test_a_sealed_file_consists_of_itself_alone(tmp_path, good, one_sentence, way):
    path = tmp_path / "data.h5"
    WHOLE[way](path)
    with one_sentence(path, "; this program wrote no such file"), open_hdf5(path, sealed=True) as file:
        file.group("examples").group("bad").array("pixels").read()


def test_arrays_of_a_sealed_file_take_no_more_than_its_size(tmp_path, one_sentence):
    """A hundred names for one array."""
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file["0"] = np.zeros(10_000)
        for number in range(1, 100):
            file[str(number)] = file["0"]
    with one_sentence(path, "more than the file has"), open_hdf5(path, sealed=True) as file:
        for name in file.names():
            file.array(name).read()


ATTRIBUTES = {"list": np.zeros(3), "reference": h5py.Reference(), "nothing": h5py.Empty("f4"), "text": np.array([b"x"])}


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_an_attribute_is_one_number_or_one_text(tmp_path, one_sentence, kind):
    with h5py.File(tmp_path / "it.h5", "w") as file:
        file.attrs.update({"n": 3, "x": 0.5, "t": "ü"})
    with open_hdf5(tmp_path / "it.h5") as file:
        assert file.attributes() == {"n": 3, "x": 0.5, "t": "ü"}
    with h5py.File(tmp_path / "it.h5", "a") as file:
        file.attrs["odd"] = ATTRIBUTES[kind]
    with one_sentence(tmp_path / "it.h5", "the attribute 'odd' is n"), open_hdf5(tmp_path / "it.h5") as file:
        file.attributes()


NO_LOCKS = """
#include <errno.h>
int flock(int fd, int operation) { errno = ENOLCK; return -1; }
"""
READ = """
import sys
from pathlib import Path
from asyncfeded.files.hdf5 import open_hdf5
for name in sys.argv[1:]:
    with open_hdf5(Path(name)) as file:
        print(file.group("examples").group("bad").array("pixels").read().sum())
"""


def test_a_file_system_without_locks_is_enough(tmp_path, good):
    """For the file itself, and for those behind links and virtual datasets."""
    (tmp_path / "locks.c").write_text(NO_LOCKS)
    library, names = tmp_path / "locks.so", []
    for way in ("compact", "external link", "virtual"):
        names.append(tmp_path / f"{way}.h5")
        WHOLE[way](names[-1])
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "locks.c"], check=True)
    except OSError:
        pytest.skip("needs a C compiler")
    done = subprocess.run(
        [sys.executable, "-c", READ, *names], env=os.environ | {"LD_PRELOAD": library}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("48.0\n" * 3, "")


def test_a_file_that_is_open_for_writing_elsewhere_is_read(good):
    code = f"import h5py; f = h5py.File({str(good)!r}, 'r+'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        with open_hdf5(good) as file:
            assert file.group("examples").names() == ["a", "bad"]
        writer.stdin.close()


@pytest.mark.parametrize("locking", [True, False, None])
def test_a_file_that_is_open_in_this_process_is_read(good, locking):
    """As in a notebook. HDF5 opens a file a second time only with the flags of the first."""
    with h5py.File(good, "r", locking=locking), open_hdf5(good) as file:
        assert file.group("examples").names() == ["a", "bad"]
