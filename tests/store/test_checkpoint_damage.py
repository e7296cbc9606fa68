"""Whatever happens to the file of a checkpoint is seen, and what people are told of it."""

import h5py
import pytest

from asyncfeded.store.checkpoint import newest
from asyncfeded.store.sealed import HEAD
from conftest import run_asyncfeded
from store.snapshots import a_snapshot, flip, put, the_same


@pytest.fixture
def good(tmp_path):
    """The one checkpoint of a run."""
    return put(tmp_path, a_snapshot())


def place(path, what):
    """Where a part of a checkpoint lies in its file."""
    whole = path.read_bytes()
    with h5py.File(path) as file:
        offsets = {
            name: file[name].id.get_offset() for name in ("model/0.weight", "bases/rows", "rule/K", "clients", "config")
        }
    marks = {
        "superblock": b"\x89HDF",
        "group": b"SNOD",
        "heap": b"HEAP",
        "name": b"0.bias",
        "attribute": b"update_rows",
    }
    return offsets[what] if what in offsets else whole.index(marks[what])


@pytest.mark.parametrize(
    "what",
    [
        *("superblock", "group", "heap", "name", "attribute"),
        *("model/0.weight", "bases/rows", "rule/K", "clients", "config"),
    ],
)
def test_damage_of_every_kind_is_named_and_the_one_before_is_used(tmp_path, what):
    before, after = put(tmp_path, a_snapshot(110)), put(tmp_path, a_snapshot(120))
    flip(after, place(after, what))
    found = newest(tmp_path)
    assert found.path == before
    assert the_same(found.snapshot, a_snapshot(110))
    assert found.damaged == (f"{after}: is damaged: its checksum is not the one it was written with",)


def test_the_newest_is_the_one_of_the_most_updates(tmp_path):
    for rows in (9, 1000, 20):
        put(tmp_path, a_snapshot(rows))
    found = newest(tmp_path)
    assert (found.snapshot.update_rows, found.damaged) == (1000, ())


def test_files_that_were_swapped_are_seen(tmp_path):
    old, new = put(tmp_path, a_snapshot(110)), put(tmp_path, a_snapshot(120))
    aside = old.with_suffix(".aside")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)
    with pytest.raises(ValueError, match=rf"{new.name}: holds what was written as {old.name}\n  .*{old.name}: holds"):
        newest(tmp_path)


@pytest.mark.parametrize("inside", [None, "checkpoints", "checkpoints/notes.h5"])
def test_a_run_without_a_checkpoint_is_refused(tmp_path, inside):
    if inside:
        (tmp_path / inside).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has no checkpoint to go on from; train with checkpoint\.every_s=60"):
        newest(tmp_path)


# --- told to people


def test_info_tells_what_a_checkpoint_holds(tmp_path):
    path = put(tmp_path, a_snapshot(updates=118, refused=2, version=118, score_version=110, time_s=61.0))
    done = run_asyncfeded("info", path, cwd=tmp_path)
    assert (done.status, done.stderr) == (0, ""), str(done)
    rows = {line[:12].strip(): line[12:].strip() for line in done.stdout.splitlines()}
    size, digest = path.stat().st_size, path.read_bytes()[:HEAD].strip(b"\0").split()[-1].decode()
    assert rows.pop("written by").startswith("asyncfeded 0")
    assert rows == {
        "checkpoint": str(path),
        "run": "runs/größe",
        "task": "digits",
        "rule": "asyncfeded",
        "time": "61.0 s (wall clock)",
        "updates": "118 merged, 2 refused",
        "version": "118",
        "clients": "3, 2 of them at work",
        "score": "accuracy 0.5000, loss 17.143 at version 110",
        "model": "30008 parameters, 3 statistics",
        "own": "5 numbers of each client",
        "size": f"{size / 1e6:.1f} MB",
        "checksum": f"right (sha256 {digest})",
    }


def test_info_of_a_damaged_checkpoint_says_so(tmp_path, good):
    flip(good, 5000)
    done = run_asyncfeded("info", good, cwd=tmp_path)
    said = f"asyncfeded: {good}: is damaged: its checksum is not the one it was written with\n"
    assert (done.status, done.stdout, done.stderr) == (2, "", said)


def test_info_of_no_file_says_so(tmp_path):
    done = run_asyncfeded("info", "absent.h5", cwd=tmp_path)
    said = "asyncfeded: absent.h5: no such file\n"
    assert (done.status, done.stdout, done.stderr) == (2, "", said)
