"""What files are is told in a line for each, and what differs in a sentence."""

import hashlib

import pytest

from asyncfeded.files import digest
from asyncfeded.files.digest import compare_digests, digest_files


@pytest.fixture
def places(tmp_path):
    (tmp_path / "leaf" / "deep").mkdir(parents=True)
    for name in ("train.h5", "leaf/a.json", "leaf/deep/b c.json"):
        (tmp_path / name).write_bytes(name.encode())
    return {"train": tmp_path / "train.h5", "test": tmp_path / "leaf", "more": tmp_path / "absent"}


def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


def test_every_file_has_a_line(places):
    assert digest_files(places).splitlines() == [
        f"{sha256(b'leaf/a.json')} 11 test/a.json",
        f"{sha256(b'leaf/deep/b c.json')} 18 test/deep/b c.json",
        f"{sha256(b'train.h5')} 8 train",
    ]


def test_no_data_has_no_line():
    assert digest_files({}) == ""
    assert compare_digests("", "") == ""


def test_what_differs_is_told(places):
    before = digest_files(places)
    assert compare_digests(before, digest_files(places)) == ""
    places["train"].write_bytes(b"train.H5")
    (places["test"] / "a.json").write_bytes(b"")
    (places["test"] / "deep" / "b c.json").rename(places["test"] / "c.json")
    said = "test/a.json had 11 bytes and has 0, test/c.json is new, test/deep/b c.json is gone, and 1 more files differ"
    assert compare_digests(before, digest_files(places)) == said
    (places["test"] / "c.json").rename(places["test"] / "deep" / "b c.json")
    (places["test"] / "a.json").write_bytes(b"leaf/a.json")
    assert compare_digests(before, digest_files(places)) == "train has other content"


def test_of_a_large_file_blocks_count_that_lie_evenly_in_it(tmp_path, monkeypatch):
    """Of 100 bytes, 2 from every 10th on."""
    monkeypatch.setattr(digest, "BLOCK", 2)
    monkeypatch.setattr(digest, "WHOLE", 20)
    path, content = tmp_path / "large", bytes(range(100))
    path.write_bytes(content)
    assert digest_files({"x": path}).split()[0] == sha256(b"".join(content[i : i + 2] for i in range(0, 100, 10)))
    monkeypatch.setattr(digest, "WHOLE", 100)
    assert digest_files({"x": path}).split()[0] == sha256(content)
