"""Sixty ways in which a file that a user gives is broken, each a function of the path at which it is to lie."""

import bz2
import gzip
import os
import socket
import zipfile
from pathlib import Path

import h5py
import numpy as np

SIDE = 4


def images(n=3):
    return np.ones((n, SIDE, SIDE), np.float32)


def write_h5(path, writers=("a", "bad"), **keys):
    """A good data set of some writers, in the layout of TensorFlow Federated."""
    with h5py.File(path, "w", **keys) as file:
        for writer in writers:
            file[f"examples/{writer}/pixels"] = images()
            file[f"examples/{writer}/label"] = np.zeros(3, np.int64)


def h5(edit):
    """The way that changes a good file in place."""

    def write(path):
        write_h5(path)
        with h5py.File(path, "r+") as file:
            edit(file["examples/bad"], path)

    return write


def replace(field, make):
    """The way that puts something else in the place of a field of the writer `bad`."""

    def edit(writer, path):
        del writer[field]
        make(writer, field, path)

    return h5(edit)


def content(raw):
    return lambda path: path.write_bytes(raw)


def part(start, stop):
    """The way that keeps a part of a good file; negative numbers count from its end."""

    def write(path):
        write_h5(path)
        path.write_bytes(path.read_bytes()[start:stop])

    return write


def virtual(*sources, shape=(3, SIDE, SIDE), dtype=np.float32, source_shape=None):
    """Pixels of sources (file, name, from, to), which may be absent: all of a source, or the beginning of `source_shape`."""

    def make(writer, field, path):
        layout = h5py.VirtualLayout(shape, dtype)
        for file, name, start, stop in sources:
            of = h5py.VirtualSource(file, name, (source_shape or (stop - start, SIDE, SIDE)), dtype)
            layout[start:stop] = of[: stop - start] if source_shape else of
        writer.create_virtual_dataset(field, layout)

    return replace("pixels", make)


def unwritten(shape, dtype=np.float32, **keys):
    return replace("pixels", lambda writer, field, path: writer.create_dataset(field, shape, dtype, **keys))


def half_written(writer, field, path):
    dataset = writer.create_dataset(field, (3, SIDE, SIDE), np.float32, chunks=(1, SIDE, SIDE))
    dataset[0] = 1


def damaged(writer, field, path):
    rng = np.random.default_rng(0)
    pixels = rng.random((3, SIDE, SIDE), np.float32)
    dataset = writer.create_dataset(field, data=pixels, compression="gzip", fletcher32=True, chunks=(3, SIDE, SIDE))
    where = dataset.id.get_chunk_info(0)
    writer.file.close()
    with path.open("r+b") as file:
        file.seek(where.byte_offset + where.size // 2)
        file.write(b"\xff" * 8)


def no_filter(number, name=b""):
    """Compressed by a filter that is not there; it is optional when the file is written, so that HDF5 does without."""

    def make(writer, field, path):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((3, SIDE, SIDE))
        properties.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5py.h5s.create_simple((3, SIDE, SIDE))
        dataset = h5py.h5d.create(writer.id, field.encode(), h5py.h5t.IEEE_F32LE, space, properties)
        dataset.write_direct_chunk((0, 0, 0), images().tobytes())

    return replace("pixels", make)


def time_of_unix(writer, field, path):
    h5py.h5d.create(writer.id, field.encode(), h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((3,)))


def raw_outside(writer, field, path):
    path.with_name("outside.raw").write_bytes(images().tobytes())
    outside = [(str(path.with_name("outside.raw")), 0, images().nbytes)]
    writer.create_dataset(field, (3, SIDE, SIDE), np.float32, external=outside)


def name_not_utf8(writer, path):
    writer.parent.create_group(b"caf\xe9")


def array_for_writer(writer, path):
    examples = writer.parent
    del examples["bad"]
    examples["bad"] = np.zeros(3)


def loop(writer, path):
    del writer.parent["bad"]
    writer.file["examples/bad"] = h5py.SoftLink("/examples/bad")


def link(to):
    def edit(writer, path):
        examples = writer.parent
        del examples["bad"]
        examples["bad"] = to

    return h5(edit)


def own_source(writer, field, path):
    """A virtual dataset whose source is itself."""
    layout = h5py.VirtualLayout((3, SIDE, SIDE), np.float32)
    layout[...] = h5py.VirtualSource(".", "/examples/bad/pixels", (3, SIDE, SIDE), np.float32)
    writer.create_virtual_dataset(field, layout)


def zipped(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", b"x")


def fifo(path):
    os.mkfifo(path)


def unix_socket(path):
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as it:
            it.bind(path.name)
    finally:
        os.chdir(here)


def self_link(path):
    path.symlink_to(path.name)


EVERYWHERE = {
    "absent": (lambda path: None, "no such file"),
    "dangling link": (lambda path: path.symlink_to("gone"), "is a link to gone, which is not there"),
    "link to itself": (self_link, "cannot be read: Too many levels of symbolic links"),
    "directory": (lambda path: path.mkdir(), ""),
    "FIFO": (fifo, "is a FIFO, expected a file"),
    "socket": (unix_socket, "is a socket, expected a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device, expected a file"),
    "empty": (content(b""), ""),
    "zeros": (content(bytes(4096)), ""),
    "gzip": (content(gzip.compress(b"x")), "is compressed (gzip); unpack it"),
    "bzip2": (content(bz2.compress(b"x")), "is compressed (bzip2); unpack it"),
    "archive": (zipped, "is a ZIP archive, as *.npz"),
    "pointer of Git LFS": (content(b"version https://git-lfs.github.com/spec/v1\n"), "is a pointer of Git LFS"),
    "web page": (content(b"<!DOCTYPE html><html>404"), "is a web page; download the file itself"),
    "noise": (content(np.random.default_rng(0).bytes(2000)), ""),
}
"""What can lie in the place of any file, and words of the sentence about it."""

HDF5 = {
    "text": (content(b"label,pixels\n"), "not a readable HDF5 file (file signature not found)"),
    "cut in the middle": (part(0, -900), "is cut off: it has "),
    "cut to the signature": (part(0, 8), "cannot be read ("),
    "without its head": (part(16, None), "not a readable HDF5 file"),
    "soft link to nothing": (link(h5py.SoftLink("/none")), "examples/bad: is a link to /none, which cannot be opened"),
    "soft link to itself": (h5(loop), "examples/bad: is a link to /examples/bad, which cannot be opened"),
    "external link": (link(h5py.ExternalLink("gone.h5", "/w")), "examples/bad: is a link to /w in gone.h5, which cannot"),
    "external link into a file": (link(h5py.ExternalLink("good.h5", "/w")), "examples/bad: is a link to /w in good.h5"),
    "name in Latin-1": (h5(name_not_utf8), r"examples: the name b'caf\xe9' in it is not UTF-8"),
    "array in place of a writer": (h5(array_for_writer), "writer bad: no field 'label'"),
    "group in place of a field": (replace("pixels", lambda w, f, p: w.create_group(f)), "writer bad: no field 'pixels'"),
    "no field": (replace("pixels", lambda w, f, p: None), "writer bad: no field 'pixels'"),
    "type in place of a field": (replace("pixels", lambda w, f, p: w.__setitem__(f, np.dtype("f4"))), "no field 'pixels'"),
    "object references": (replace("pixels", lambda w, f, p: w.create_dataset(f, (3,), h5py.ref_dtype)), "pixels is object"),
    "type that numpy has not": (replace("pixels", time_of_unix), "pixels: is of a kind that numpy cannot hold ("),
    "compound": (unwritten((3, SIDE, SIDE), np.dtype([("a", "f4")])), "expected numbers of shape"),
    "complex": (unwritten((3, SIDE, SIDE), np.complex64), "pixels is complex64"),
    "no shape": (replace("pixels", lambda w, f, p: w.__setitem__(f, h5py.Empty("f4"))), "is empty, without a shape"),
    "one number": (replace("pixels", lambda w, f, p: w.__setitem__(f, 1.0)), "pixels is float64 ()"),
    "never written": (unwritten((3, SIDE, SIDE)), "of which 0% was written"),
    "half written": (replace("pixels", half_written), "of which 33% was written"),
    "damaged": (replace("pixels", damaged), "examples/bad/pixels: cannot be read (filter returned failure during read)"),
    "zstd": (no_filter(32015), "compressed with filter 32015 (zstd), which is not installed; pip install hdf5plugin"),
    "unknown filter": (no_filter(40000), "compressed with filter 40000 (of an unknown name)"),
    "values outside of HDF5": (replace("pixels", raw_outside), "outside.raw, outside of HDF5; copy it with h5repack"),
    "virtual, source gone": (virtual(("gone.h5", "p", 0, 3)), "its source p in gone.h5 cannot be read"),
    "virtual, array gone": (virtual(("good.h5", "p", 0, 3)), "good.h5: p: no such array"),
    "virtual, source no HDF5": (virtual(("text", "p", 0, 3)), "text: not a readable HDF5 file"),
    "virtual, one source gone": (
        virtual(("good.h5", "examples/a/pixels", 0, 2), ("gone.h5", "p", 2, 3), source_shape=(3, SIDE, SIDE)),
        "its source p in gone.h5 cannot be read",
    ),
    "virtual, a part without source": (
        virtual(("good.h5", "examples/a/pixels", 0, 2), source_shape=(3, SIDE, SIDE)),
        "fill only 32 of 48 values",
    ),
    "virtual, its own source": (replace("pixels", own_source), "more than 8 virtual datasets stand behind each other"),
}
"""The ways of data in HDF5."""

ARRAY = {
    "huge": (unwritten((1 << 50, SIDE, SIDE), chunks=(1, SIDE, SIDE)), "GB, more than this machine has memory"),
    "larger than a Python length": (
        unwritten(((1 << 63) - 1, SIDE, SIDE), np.int8, chunks=(1, SIDE, SIDE)),
        "more than this machine has memory",
    ),
    "large and never written": (unwritten((1 << 22, SIDE, SIDE)), "of which 0% was written"),
    "virtual, source too small": (
        virtual(("good.h5", "examples/a/pixels", 0, 9), shape=(9, SIDE, SIDE), source_shape=(9, SIDE, SIDE)),
        "has shape (3, 4, 4), which does not fit what is taken from it",
    ),
    "virtual, source of another size": (
        virtual(("good.h5", "examples/a/pixels", 0, 2), shape=(2, SIDE, SIDE)),
        "has shape (3, 4, 4), which does not fit what is taken from it",
    ),
}
"""The ways of one array of it, which a task would refuse for its shape already."""

UTF_8 = {
    "UTF-16": (content("x = 'é'\n".encode("utf-16")), "is no text in UTF-8 (but perhaps in UTF-16); save it as UTF-8"),
    "UTF-16 without mark": (content("x = 1\n".encode("utf-16-le")), "is no text in UTF-8"),
    "Latin-1": (content(b"# 1\n# caf\xe9\n"), "line 2: the byte 0xe9 is no UTF-8; save the file as UTF-8"),
    "HDF5": (write_h5, "is an HDF5 file"),
    "NumPy": (content(b"\x93NUMPY\x01\x00"), "is an array of NumPy (*.npy)"),
}
"""The ways of any text."""

TOML = {
    "half a line": (
        content(b"seed = 1\n[limits\n"),
        "is not TOML: Expected ']' at the end of a table declaration (at line 2",
    ),
    "a key twice": (content(b"seed = 1\nseed = 2\n"), "is not TOML: Cannot overwrite a value (at line 2"),
    "nested": (content(b"x = " + b"[" * 100_000), "nested too deeply"),
    "a number of 10,000 digits": (content(b"x = " + b"9" * 10_000), "is not TOML: Exceeds the limit"),
    "JSON": (content(b'{"seed": 1}'), "is not TOML: Invalid statement (at line 1"),
}
JSON = {
    "half": (content(b'{"users": ["a"'), "is not JSON: Expecting ',' delimiter: line 1"),
    "a key twice": (content(b'{"users": [], "users": []}'), "an object has the key 'users' twice"),
    "nested": (content(b"[" * 100_000), "nested too deeply"),
    "a number of 10,000 digits": (content(b"[" + b"9" * 10_000 + b"]"), "is not JSON: Exceeds the limit"),
    "one object a line": (content(b'{"a": 1}\n{"a": 2}\n'), "is not JSON: Extra data: line 2"),
    "one quote": (content(b"{'users': []}"), "is not JSON: Expecting property name"),
}
CSV = {
    "semicolons": (content(b"a;b\n1;2\n"), "line 1: no column a, expected a, b; they are separated by ';', expected ','"),
    "tabs": (content(b"a\tb\n1\t2\n"), "they are separated by '\\t', expected ','"),
    "a short row": (content(b"a,b\n1,2\n3\n"), "line 3: 1 cells, expected 2"),
    "a long row": (content(b"a,b\n1,2,3\n"), "line 2: 3 cells, expected 2"),
    "no such column": (content(b"a,c\n1,2\n"), "line 1: no column b, expected a, b"),
    "a column twice": (content(b"a,b,b\n1,2,3\n"), "line 1: two columns are named 'b'"),
    "an open quote": (content(b'a,b\n1,"2\n'), "is not CSV: unexpected end of data"),
    "a huge cell": (content(b"a,b\n1," + b"x" * 200_000), "is not CSV: field larger than field limit"),
}
