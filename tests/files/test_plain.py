"""What is wrong with a file of text is told in one sentence."""

from functools import partial
from pathlib import Path

import pytest

from asyncfeded.config import load_config
from asyncfeded.files.plain import read_bytes, read_csv, read_json, read_toml
from files.broken import CSV, EVERYWHERE, JSON, TOML, UTF_8

READ = {"toml": (read_toml, TOML), "json": (read_json, JSON), "csv": (partial(read_csv, columns=("a", "b")), CSV)}
WAYS = [
    (kind, way)
    for kind, (_, own) in READ.items()
    for way in {**EVERYWHERE, **UTF_8, **own}
    if (kind, way) != ("toml", "empty")
]


@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_a_broken_file_is_told_in_one_sentence(tmp_path, one_sentence, kind, way):
    read, own = READ[kind]
    write, words = {**EVERYWHERE, **UTF_8, **own}[way]
    path = tmp_path / f"data.{kind}"
    write(path)
    with one_sentence(path, words):
        read(path)


def test_advice_follows_where_there_is_no_file(tmp_path, one_sentence):
    with one_sentence(tmp_path, "is a directory, expected a file; give a file"):
        read_bytes(tmp_path, "give a file")
    with one_sentence(tmp_path / "a\0b", "embedded null"):
        read_bytes(tmp_path / "a\0b")


def test_an_error_of_the_system_is_told(tmp_path, one_sentence, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with one_sentence(tmp_path / "a", "a: cannot be read: Permission denied"):
        read_bytes(tmp_path / "a")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["unix", "windows"])
def test_marks_and_ends_of_lines_of_other_systems_are_read(tmp_path, mark, end):
    (tmp_path / "a.csv").write_bytes(mark + b"a,b" + end + b'1,"x,y"' + end)
    assert read_csv(tmp_path / "a.csv", ("a", "b")) == [(2, {"a": "1", "b": "x,y"})]
    (tmp_path / "a.json").write_bytes(mark + b'{"a":' + end + b"1}")
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.toml").write_bytes(mark + b"seed = 3" + end + b"[limits]" + end + b"updates = 1" + end)
    assert load_config(tmp_path / "a.toml", []).seed == 3
