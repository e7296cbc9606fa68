"""The thread that writes checkpoints: which are kept, what is copied, and a writer that is killed or has no room."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asyncfeded.model.flat import Entry, Layout
from asyncfeded.store.checkpoint import Writer, newest, save
from asyncfeded.store.checkpoint import writer as writer_room
from conftest import run
from store.snapshots import a_snapshot, flip, idle, names, noise, numbered, put, the_same, written

BIG = Layout((Entry("w", (1 << 20,), 0),), 1 << 20, 1 << 20)


def test_the_last_ones_are_kept(tmp_path):
    writer = Writer(tmp_path / "checkpoints", 2)
    for rows in (8, 9, 10, 11):
        done = written(writer, a_snapshot(rows))
        assert (done.problem, done.num_bytes) == ("", done.path.stat().st_size)
        assert newest(tmp_path).path == done.path
    assert names(tmp_path / "checkpoints") == ["checkpoint-0000000010.h5", "checkpoint-0000000011.h5"]


def test_a_checkpoint_of_the_same_updates_replaces_the_one_before(tmp_path):
    writer = Writer(tmp_path / "checkpoints", 2)
    for rows, time_s in ((8, 1.0), (9, 2.0), (9, 3.0)):
        written(writer, a_snapshot(rows, time_s=time_s))
    assert names(tmp_path / "checkpoints") == ["checkpoint-0000000008.h5", "checkpoint-0000000009.h5"]
    assert newest(tmp_path).snapshot.time_s == 3.0


def test_what_is_written_is_the_state_at_the_start(tmp_path, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(writer_room, "save", lambda path, snapshot: go.wait(60) and save(path, snapshot))
    snapshot, writer = a_snapshot(), Writer(tmp_path / "checkpoints", 1)
    assert writer.start(snapshot)
    for array in (snapshot.model, snapshot.clients, *snapshot.rule.values()):
        array[...] = np.zeros((), array.dtype)
    go.set()
    writer.wait()
    assert the_same(newest(tmp_path).snapshot, a_snapshot())


def test_the_bases_are_not_copied_but_held_until_the_outcome_is_told(tmp_path):
    let_go, large = [], numbered({version: noise(1 << 20, version) for version in range(8)})
    snapshot = a_snapshot(
        bases=large, let_go=lambda: let_go.append(1), layout=BIG, model=noise(1 << 20, 9), clients=idle(), rule={}
    )
    writer = Writer(tmp_path / "checkpoints", 1)
    assert writer.start(snapshot)
    while (done := writer.poll()) is None:
        assert not let_go
    assert (done.problem, let_go) == ("", [1])
    assert writer.num_bytes == (4 << 20) + snapshot.clients.nbytes  # the model
    assert the_same(newest(tmp_path).snapshot, snapshot)


def test_one_is_written_at_a_time_and_its_outcome_told_once(tmp_path, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(writer_room, "save", lambda path, snapshot: go.wait(60) and save(path, snapshot))
    writer = Writer(tmp_path / "checkpoints", 3)
    assert (writer.poll(), writer.wait()) == (None, None)
    assert writer.start(a_snapshot(1))
    assert not writer.start(a_snapshot(2))
    assert writer.poll() is None
    go.set()
    assert writer.wait().path.name == "checkpoint-0000000001.h5"
    assert (writer.poll(), writer.wait()) == (None, None)
    assert written(writer, a_snapshot(3)).problem == ""
    assert names(tmp_path / "checkpoints") == ["checkpoint-0000000001.h5", "checkpoint-0000000003.h5"]


def test_the_copy_serves_again(tmp_path):
    base = noise(1 << 20, 1)
    snapshot = a_snapshot(layout=BIG, model=noise(1 << 20, 0), bases=numbered({7: base}), clients=idle(), rule={})
    writer = Writer(tmp_path / "checkpoints", 1)
    written(writer, snapshot)
    assert writer.num_bytes == (4 << 20) + snapshot.clients.nbytes
    tracemalloc.start()
    written(writer, replace(snapshot, bases=numbered({8: base})))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20  # bytes; a model has four times as many
    assert newest(tmp_path).snapshot.bases.numbers == (8,)


def test_after_a_restart_the_later_ones_go_and_the_earlier_ones_stay(tmp_path):
    paths = [put(tmp_path, a_snapshot(rows)) for rows in (80, 100, 120, 140)]
    flip(paths[2], 5000)
    flip(paths[3], 5000)
    found = newest(tmp_path)
    assert (found.path, len(found.damaged)) == (paths[1], 2)
    writer = Writer(tmp_path / "checkpoints", 3, found.path)
    written(writer, a_snapshot(110))
    assert [name[-6:-3] for name in names(tmp_path / "checkpoints")] == ["080", "100", "110"]
    written(writer, a_snapshot(130))
    assert [name[-6:-3] for name in names(tmp_path / "checkpoints")] == ["100", "110", "130"]


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "notes.part").touch()
    (tmp_path / "checkpoints" / "mine.h5").touch()
    written(Writer(tmp_path / "checkpoints", 1), a_snapshot(1))
    assert names(tmp_path / "checkpoints") == ["checkpoint-0000000001.h5", "mine.h5", "notes.part"]


def test_an_error_is_told_and_the_next_checkpoint_is_written(tmp_path):
    writer = Writer(tmp_path / "absent" / "checkpoints", 1)
    done = written(writer, a_snapshot(1))
    assert done.problem == f"checkpoint {done.path}: No such file or directory; the last good one: none"
    (tmp_path / "absent").mkdir()
    assert written(writer, a_snapshot(2)).problem == ""


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from store.snapshots import a_snapshot, written
from asyncfeded.store import sealed
from asyncfeded.store.checkpoint import Writer

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

writer = Writer(Path("checkpoints"), 1)
assert not written(writer, a_snapshot(1)).problem
real, writes = Path.open, []
if sys.argv[2] == "while it writes":
    def open_(path, *arguments, **keys):
        handle = real(path, *arguments, **keys)
        class Handle:
            def write(self, block):
                handle.write(bytes(block)[: len(block) // 2])
                writes.append(len(block))
                return die() if len(writes) == 6 else len(block) // 2
            def __getattr__(self, name): return getattr(handle, name)
            def __enter__(self): return self
            def __exit__(self, *_): handle.close()
        return Handle()
    Path.open = open_
else:
    place, name = {
        "before its head is written": (sealed, "_head"),
        "before it is on the disk": (os, "fsync"),
        "before it has its name": (Path, "replace"),
        "before the older one goes": (Path, "unlink"),
    }[sys.argv[2]]
    setattr(place, name, die)
written(writer, a_snapshot(2))
"""


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("while it writes", 1),
        ("before its head is written", 1),
        ("before it is on the disk", 1),
        ("before it has its name", 1),
        ("before the older one goes", 2),
    ],
)
def test_a_writer_that_is_killed_leaves_a_good_checkpoint_and_the_next_one_cleans_up(tmp_path, moment, left):
    done = run([sys.executable, "-c", KILLED, Path(__file__).parents[1], moment], tmp_path)
    assert done.status == -signal.SIGKILL, str(done)
    found = newest(tmp_path)
    assert (found.snapshot.update_rows, found.damaged) == (left, ())
    assert len(names(tmp_path / "checkpoints")) == 2
    assert written(Writer(tmp_path / "checkpoints", 1, found.path), a_snapshot(3)).problem == ""
    assert names(tmp_path / "checkpoints") == ["checkpoint-0000000003.h5"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system for two checkpoints and a half."""
    save(tmp_path / "it.h5", a_snapshot())
    size = 5 * (tmp_path / "it.h5").stat().st_size // 2
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(["-t", "tmpfs", "-o", f"size={size}", "none", disk])
    yield disk
    subprocess.run(["umount", "-l", disk], check=True, timeout=60)


def mount(arguments):
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a small file system to fill it")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


def test_a_full_disk_leaves_the_checkpoints_before(small_disk):
    writer = Writer(small_disk / "checkpoints", 3)
    for rows in (1, 2):
        assert written(writer, a_snapshot(rows)).problem == ""
    done = written(writer, a_snapshot(3))
    assert done.problem == (f"checkpoint {done.path}: No space left on device; the last good one: checkpoint-0000000002.h5")
    assert names(small_disk / "checkpoints") == ["checkpoint-0000000001.h5", "checkpoint-0000000002.h5"]
    assert the_same(newest(small_disk).snapshot, a_snapshot(2))
    newest(small_disk).path.unlink()
    assert written(writer, a_snapshot(4)).problem == ""


def test_a_disk_that_can_no_longer_be_written_leaves_the_checkpoints_before(small_disk):
    writer = Writer(small_disk / "checkpoints", 1)
    assert written(writer, a_snapshot(1)).problem == ""
    mount(["-o", "remount,ro", small_disk])
    done = written(writer, a_snapshot(2))
    assert done.problem == (f"checkpoint {done.path}: Read-only file system; the last good one: checkpoint-0000000001.h5")
    assert the_same(newest(small_disk).snapshot, a_snapshot(1))
