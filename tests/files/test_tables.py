"""Numeric columns are read alike from CSV, HDF5 and npz; a cell without a number is told with column and row."""

from functools import partial

import h5py
import numpy as np
import pytest

from asyncfeded.files.tables import read_columns
from files.broken import CSV, EVERYWHERE, UTF_8, content

COLUMNS = {"age": [1.5, 2, 40], "dose": [7, 8, 9], "site": ["b", "a", "b"]}


def write_csv(path, columns=COLUMNS):
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in [columns, *rows]) + "\n")


def write_arrays(path, table="", columns=COLUMNS):
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[f"{table}/{name}"] = values


def write_compound(path, columns=COLUMNS):
    kinds = {float: "f8", int: "i8", str: h5py.string_dtype()}
    dtype = [(name, kinds[type(values[0])]) for name, values in columns.items()]
    with h5py.File(path, "w") as file:
        file["t"] = np.array(list(zip(*columns.values(), strict=True)), dtype)


def write_npz(path):
    with path.open("wb") as raw:
        np.savez(raw, **COLUMNS)


KINDS = {
    "csv": (write_csv, ""),
    "arrays": (write_arrays, ""),
    "group": (partial(write_arrays, table="a/b"), "a/b"),
    "compound": (write_compound, "t"),
    "npz": (write_npz, ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_read_by_name(tmp_path, kind):
    write, table = KINDS[kind]
    write(tmp_path / "data")
    names, values, groups = read_columns(tmp_path / "data", table, "dose", (), "site")
    assert (names, values.tolist(), groups.tolist()) == (["dose", "age"], [[7, 1.5], [8, 2], [9, 40]], ["b", "a", "b"])
    names, values, groups = read_columns(tmp_path / "data", table, "age", ("dose",), "")
    assert (names, values.dtype, values.tolist()) == (["age", "dose"], np.float64, [[1.5, 7], [2, 8], [40, 9]])
    assert len(groups) == 0


def test_groups_may_be_whole_numbers(tmp_path):
    write_arrays(tmp_path / "data", columns=COLUMNS | {"site": np.array([2, 10, 2])})
    assert read_columns(tmp_path / "data", "", "age", (), "site").groups.tolist() == [2, 10, 2]


def test_lines_of_a_csv_are_counted_as_an_editor_counts_them(tmp_path, one_sentence):
    """A quoted cell holds the end of a line, and an empty line is no row."""
    (tmp_path / "a.csv").write_text('x,y,z\n1,2,"a\nb"\n\n3,nan,c\n')
    with one_sentence(tmp_path, "a.csv: line 5: y is nan"):
        read_columns(tmp_path / "a.csv", "", "x", ("y",), "z")


OWN = {
    "a text": (content(b"x,y\n1,2\n3,NA\n"), "line 3: y is 'NA', expected a number; fill the gap, or leave the row or"),
    "a gap": (content(b"x,y\n1,2\n,4\n"), "line 3: x is '', expected a number"),
    "NaN": (content(b"x,y\n1,2\n3,4\n5,nan\n"), "line 4: y is nan, expected a number"),
    "infinite": (content(b"x,y\n1,-inf\n"), "line 2: y is -inf, expected a number"),
    "a decimal comma": (content(b"x,y\n1,5,2\n"), "line 2: 3 cells, expected 2"),
    "no rows": (content(b"x,y\n"), "holds no rows"),
    "semicolons": (content(b"x;y\n1;2\n"), "line 1: no column x, expected x; they are separated by ';', expected ','"),
}
ARRAYS = {
    "no column": ({"age": [1.0]}, "no column dose, it has age"),
    "text": (COLUMNS | {"dose": ["a", "b", "c"]}, "dose: is object, expected numbers; write it so, or leave"),
    "NaN": (COLUMNS | {"dose": [1.0, 2.0, np.nan]}, "dose: row 2 is nan, expected a number"),
    "another length": (COLUMNS | {"dose": [1.0]}, "dose has shape (1,), expected (3,) as age has"),
    "a matrix": (COLUMNS | {"age": np.ones((3, 2))}, "age has shape (3, 2), expected (rows,)"),
    "groups that are broken numbers": (COLUMNS | {"site": [0.5, 1, 2]}, "site: is float64, expected whole numbers or texts"),
    "groups not in UTF-8": (COLUMNS | {"site": [b"a", b"b", b"\xe9"]}, "site: holds bytes that are not UTF-8"),
    "empty": (dict.fromkeys(COLUMNS, np.zeros(0, int)), "holds no rows"),
}


@pytest.mark.parametrize("way", [*EVERYWHERE, *UTF_8, *OWN])
def test_a_broken_csv_is_told_in_one_sentence(tmp_path, one_sentence, way):
    write, words = (EVERYWHERE | UTF_8 | OWN)[way]
    write(tmp_path / "data")
    words = {"archive": "x: cannot be read", "HDF5": "no column x, it has none"}.get(way, words)
    with one_sentence(tmp_path / "data", words):
        read_columns(tmp_path / "data", "", "x", (), "")


@pytest.mark.parametrize("way", CSV)
def test_rows_of_a_csv_are_checked_as_those_of_any(tmp_path, one_sentence, way):
    write, words = CSV[way]
    write(tmp_path / "data")
    with one_sentence(tmp_path / "data", words):
        read_columns(tmp_path / "data", "", "a", ("b",), "")


@pytest.mark.parametrize("way", ARRAYS)
@pytest.mark.parametrize("table", ["", "t"])
def test_broken_columns_of_hdf5_are_told_in_one_sentence(tmp_path, one_sentence, way, table):
    columns, words = ARRAYS[way]
    write_arrays(tmp_path / "data", table, columns)
    with one_sentence(tmp_path / "data", words if way == "empty" else f"data: {table and 't: '}{words}"):
        read_columns(tmp_path / "data", table, "age", ("dose",), "site")


TABLES = {
    "absent": (write_arrays, "u", "u: no such group"),
    "a table in a CSV": (write_csv, "t", "is no HDF5 file, so that no table 't' can be in it"),
    "a group in an archive": (write_npz, "t", "t: no such group; a *.npz has none"),
    "an array without names": (write_arrays, "age", "age: is float64 (3,), expected a compound type that names the columns"),
}


@pytest.mark.parametrize("way", TABLES)
def test_a_table_that_is_none_is_told_in_one_sentence(tmp_path, one_sentence, way):
    write, table, words = TABLES[way]
    write(tmp_path / "data")
    with one_sentence(tmp_path / "data", words):
        read_columns(tmp_path / "data", table, "x", (), "")
