"""Checkpoints and the trained model as files: all of it, to the bit, and whatever happens to a file is seen."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from asyncfeded import rules
from asyncfeded.config import Config
from asyncfeded.model.flat import Entry, FlatModel, Layout
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.store import checkpoint, record
from asyncfeded.store.checkpoint import CLIENT_STATE, Snapshot, Writer, newest, read_checkpoint, save, save_model
from asyncfeded.store.checkpoint import writer as writer_room
from asyncfeded.store.checkpoint.file import HEAD, SMALL
from conftest import run, run_asyncfeded

CONFIG = Config(run_dir="runs/größe", clients=3).to_toml()
LAYOUT = Layout(
    (
        Entry("0.weight", (150, 200), 0),
        Entry("0.bias", (7,), 30000),
        Entry("scale", (), 30007),
        Entry("1.mean", (3,), 30008),
    ),
    num_params=30008,
    size=30011,
)
NUMBERS = {field.name: field.type for field in fields(Snapshot) if field.type in (int, float)}


def noise(size, seed):
    """float32 (size,) of any bits: NaNs with their payload, infinities, subnormals."""
    return np.random.default_rng(seed).integers(0, 2**32, size, np.uint32).view(np.float32)


def a_snapshot(rows=120, layout=LAYOUT, **changes):
    """A state in which no two numbers are equal."""
    numbers = {name: kind(rows + i) if kind is int else rows + i / 7 for i, (name, kind) in enumerate(NUMBERS.items())}
    who = [
        (2, 40, 39, 117, True, 3.5, 0, False),
        (5, 9, 9, 119, False, np.nan, 10, True),
        (1, 8, 7, -1, True, np.inf, 3, False),
    ]
    clients = np.array(who, CLIENT_STATE)
    snapshot = Snapshot(
        config=CONFIG,
        provenance=record.provenance() | {"commit": ""},
        **numbers | {"update_rows": rows},
        layout=layout,
        model=noise(layout.size, rows),
        bases={117: noise(layout.size, rows + 1), 1: noise(layout.size, rows + 2)},
        clients=clients,
        rule={
            "K": np.array([2, 5, 1]),
            "B": noise(layout.size, 3),
            "weight": np.array([0.1]),
            "y": noise(24, 4).reshape(2, 3, 4),
        },
    )
    return replace(snapshot, **changes)


def bits(value):
    """What two values have in common if and only if they are the same to the bit."""
    if isinstance(value, dict):
        return {name: bits(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    return type(value), np.float64(value).tobytes() if isinstance(value, float) else value


def the_same(one, other):
    return all(bits(getattr(one, field.name)) == bits(getattr(other, field.name)) for field in fields(Snapshot))


def put(run_dir, snapshot):
    """A checkpoint in its place."""
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    path = run_dir / "checkpoints" / snapshot.file_name
    save(path, snapshot)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- there and back


def test_everything_comes_back_to_the_bit(tmp_path):
    there = a_snapshot()
    save(tmp_path / "it.h5", there)
    back = read_checkpoint(tmp_path / "it.h5")
    assert the_same(back, there)
    assert not the_same(back, replace(there, refused=there.refused + 1))


ONE = Layout((Entry("w", (1,), 0),), 1, 1)
MANY = Layout(tuple(Entry(f"{i}", (2, 1), 2 * i) for i in range(300)), 600, 600)


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": ONE, "model": noise(1, 0), "bases": {}},
        {"layout": MANY, "model": noise(600, 0), "bases": {}},
        {"layout": replace(LAYOUT, num_params=LAYOUT.size)},
        {"bases": {}},
        {"bases": {version: noise(LAYOUT.size, version) for version in range(20)}},
        {"rule": {}},
        {"rule": {"nothing": np.zeros((0, 3), np.float32), "one": np.array(3), "kept": np.array([True, False])}},
        {"clients": np.zeros(5000, CLIENT_STATE)},
        {"score_version": -1, "score_accuracy": np.nan, "score_loss": np.nan},
        {"config": CONFIG + "# " + 100_000 * "ü"},
    ],
    ids=[
        "one element",
        "order",
        "no statistics",
        "no bases",
        "bases",
        "no rule",
        "odd rule",
        "clients",
        "no score",
        "config",
    ],
)
def test_states_of_other_kinds_come_back_to_the_bit(tmp_path, changes):
    there = a_snapshot(**changes)
    save(tmp_path / "it.h5", there)
    assert the_same(read_checkpoint(tmp_path / "it.h5"), there)


@pytest.mark.parametrize("name", rules.RULES)
@pytest.mark.parametrize("layout", [ONE, LAYOUT], ids=["one", "large"])
def test_the_state_of_every_rule_comes_back_to_the_bit(tmp_path, name, layout):
    model = GlobalModel(torch.from_numpy(noise(layout.size, 0)), layout, 3)
    state = {
        key: np.asarray(array) for key, array in rules.load_rule({"name": name}).init(model, np.array([2, 2, 2])).items()
    }
    for seed, array in enumerate(state.values()):
        array.view(np.uint8)[...] = np.random.default_rng(seed).integers(0, 256, array.view(np.uint8).shape)
    there = a_snapshot(layout=layout, model=model.x.numpy(), bases={}, rule=state)
    save(tmp_path / "it.h5", there)
    assert the_same(read_checkpoint(tmp_path / "it.h5"), there)


def test_the_same_state_gives_the_same_file(tmp_path):
    assert (
        save(tmp_path / "a.h5", a_snapshot()) == save(tmp_path / "b.h5", a_snapshot()) == (tmp_path / "a.h5").stat().st_size
    )
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_file_holds_no_objects(tmp_path):
    """Numbers, and texts of a fixed length: nothing that would be read with pickle."""
    save(tmp_path / "it.h5", a_snapshot())
    with h5py.File(tmp_path / "it.h5") as file:
        found = []
        file.visititems(lambda name, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
        attributes = dict(file.attrs)
        assert len(found) == 13
        assert not any(item.dtype.hasobject for item in found)
        assert {kind for item in found for kind in item.dtype.kind} <= set("iufbSV")
        assert not any(dict(item.attrs) for item in found)
    assert {type(value) for value in attributes.values()} == {str, np.int64, np.float64}


def test_a_module_takes_the_weights_as_the_docstring_says(tmp_path):
    torch.manual_seed(0)
    flat = FlatModel(nn.Sequential(nn.Linear(300, 100), nn.BatchNorm1d(100)))
    put(tmp_path, a_snapshot(layout=flat.layout, model=flat.buffer.numpy(), bases={}))
    module = nn.Sequential(nn.Linear(300, 100), nn.BatchNorm1d(100))
    lines = [line.strip() for line in checkpoint.__doc__.splitlines() if line.startswith("    ")][-3:]
    code = "\n".join(lines).replace("runs/mine", str(tmp_path))
    scope = {"h5py": h5py, "torch": torch, "module": module}
    exec(code, scope)
    scope["file"].close()
    expected = flat.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


def test_a_checkpoint_of_another_schema_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.snapshot, "SCHEMA", 2)
    save(tmp_path / "it.h5", a_snapshot())
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"it\.h5: expected a checkpoint of schema 1, this has schema 2"):
        read_checkpoint(tmp_path / "it.h5")


def test_a_model_is_no_checkpoint(tmp_path):
    save_model(tmp_path / "model.h5", torch.zeros(1), ONE, 0)
    with pytest.raises(ValueError, match=r"model\.h5: expected a checkpoint of schema 1, this has schema none"):
        read_checkpoint(tmp_path / "model.h5")


# --- damage


@pytest.fixture
def good(tmp_path):
    """The one checkpoint of a run."""
    return put(tmp_path, a_snapshot())


def is_refused(path, what):
    """Whether the run has no good checkpoint any more, and is told which file is damaged how."""
    with pytest.raises(ValueError, match=rf"none of its checkpoints can be used\n  .*{path.name}: {what}"):
        newest(path.parent.parent)


def test_a_file_cut_off_anywhere_is_refused(good):
    whole, rng = good.read_bytes(), random.Random(0)
    lengths = [*range(0, HEAD + 100, 7), *(rng.randrange(len(whole)) for _ in range(100)), len(whole) - 1]
    for length in lengths:
        good.write_bytes(whole[:length])
        said = f"has {length} bytes, but {len(whole)} were written"
        is_refused(good, said if length >= HEAD else f"({said}|its head is damaged)")


def test_a_file_that_has_grown_is_refused(good):
    with good.open("ab") as file:
        file.write(b"\0")
    is_refused(good, r"has \d+ bytes, but \d+ were written")


def flip(path, at, bit=0):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def test_a_bit_flipped_anywhere_is_seen(good):
    size, rng = good.stat().st_size, random.Random(0)
    for at in [*range(HEAD + 100), *(rng.randrange(size) for _ in range(400)), size - 1]:
        bit = rng.randrange(8)
        flip(good, at, bit)
        is_refused(good, "")
        flip(good, at, bit)
    assert the_same(newest(good.parent.parent).snapshot, a_snapshot())


def place(path, what):
    """Where a part of a checkpoint lies in its file."""
    whole = path.read_bytes()
    with h5py.File(path) as file:
        offsets = {
            name: file[name].id.get_offset() for name in ("model/0.weight", "bases/117", "rule/K", "clients", "config")
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
        *("model/0.weight", "bases/117", "rule/K", "clients", "config"),
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


def test_something_else_in_its_place_is_refused(good):
    for content in (b"", b"x" * 5000, bytes(5000)):
        good.write_bytes(content)
        is_refused(good, "its head is damaged, or it is no checkpoint")
    good.unlink()
    with h5py.File(good, "w") as file:
        file["model"] = 1
    is_refused(good, "its head is damaged, or it is no checkpoint")
    good.unlink()
    good.mkdir()
    is_refused(good, "cannot be read: Is a directory")


@pytest.mark.parametrize("inside", [None, "checkpoints", "checkpoints/notes.h5"])
def test_a_run_without_a_checkpoint_is_refused(tmp_path, inside):
    if inside:
        (tmp_path / inside).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has no checkpoint; give the folder of a run that has written one \(run_dir\)"):
        newest(tmp_path)


# --- the writer


def written(writer, snapshot):
    """How it went."""
    assert writer.start(snapshot)
    done = writer.wait()
    assert done is not None
    return done


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
    for array in (snapshot.model, snapshot.clients, *snapshot.bases.values(), *snapshot.rule.values()):
        array[...] = np.zeros((), array.dtype)
    snapshot.bases.clear()
    go.set()
    writer.wait()
    assert the_same(newest(tmp_path).snapshot, a_snapshot())


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
    layout = Layout((Entry("w", (1 << 20,), 0),), 1 << 20, 1 << 20)
    snapshot = a_snapshot(layout=layout, model=noise(1 << 20, 0), bases={7: noise(1 << 20, 1)}, rule={})
    writer = Writer(tmp_path / "checkpoints", 1)
    written(writer, snapshot)
    assert writer.num_bytes == (8 << 20) + snapshot.clients.nbytes
    tracemalloc.start()
    written(writer, replace(snapshot, bases={8: snapshot.bases[7]}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20  # bytes; a model has four times as many
    assert list(newest(tmp_path).snapshot.bases) == [8]


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
from store.test_checkpoint import a_snapshot, written
from asyncfeded.store.checkpoint import Writer, file

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
        "before its head is written": (file, "_head"),
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


# --- told to people


def test_info_tells_what_a_checkpoint_holds(tmp_path):
    path = put(tmp_path, a_snapshot(updates=118, refused=2, version=118, score_version=110, score_accuracy=0.5, time_s=61.0))
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
        "accuracy": "0.5000 at version 110",
        "model": "30008 parameters, 3 statistics",
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
    said = "asyncfeded: absent.h5: cannot be read: No such file or directory\n"
    assert (done.status, done.stdout, done.stderr) == (2, "", said)


# --- the trained model
@pytest.fixture
def flat():
    torch.manual_seed(0)
    return FlatModel(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))


def test_every_parameter_and_statistic_is_saved_under_its_name(tmp_path, flat):
    """A module loads them with load_state_dict; its integer buffers are its own."""
    save_model(tmp_path / "model.h5", flat.buffer, flat.layout, 0)
    with h5py.File(tmp_path / "model.h5") as file:
        saved = {name: torch.from_numpy(file[name][()]) for name in file}
    expected = {name: value for name, value in flat.module.state_dict().items() if value.is_floating_point()}
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], value) and saved[name].shape == value.shape for name, value in expected.items())


def test_what_is_saved_is_the_buffer_given(tmp_path, flat):
    save_model(tmp_path / "model.h5", torch.arange(21.0), flat.layout, 0)
    with h5py.File(tmp_path / "model.h5") as file:
        assert file["0.weight"][()].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
        assert file["1.running_var"].dtype == np.float32


def test_the_version_is_saved(tmp_path, flat):
    save_model(tmp_path / "model.h5", flat.buffer, flat.layout, 12)
    with h5py.File(tmp_path / "model.h5") as file:
        assert dict(file.attrs) == {"version": 12}


def test_a_parameter_without_dimensions_is_saved(tmp_path):
    module = nn.Module()
    module.scale = nn.Parameter(torch.tensor(3.0))
    flat = FlatModel(module)
    save_model(tmp_path / "model.h5", flat.buffer, flat.layout, 0)
    with h5py.File(tmp_path / "model.h5") as file:
        assert file["scale"][()] == 3.0


def test_nothing_else_is_left_in_the_folder(tmp_path, flat):
    save_model(tmp_path / "model.h5", flat.buffer, flat.layout, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]


def test_a_model_replaces_the_one_before(tmp_path, flat):
    save_model(tmp_path / "model.h5", flat.buffer, flat.layout, 1)
    save_model(tmp_path / "model.h5", flat.buffer, flat.layout, 2)
    with h5py.File(tmp_path / "model.h5") as file:
        assert file.attrs["version"] == 2


def test_a_model_that_cannot_be_written_leaves_the_one_before(tmp_path, flat):
    save_model(tmp_path / "model.h5", flat.buffer, flat.layout, 1)
    with pytest.raises(TypeError, match="no native HDF5 equivalent"):  # after the tensors have been written
        save_model(tmp_path / "model.h5", flat.buffer, flat.layout, object())
    with h5py.File(tmp_path / "model.h5") as file:
        assert file.attrs["version"] == 1


def test_a_large_tensor_is_saved_beside_small_ones(tmp_path):
    """Large ones do not pass through HDF5."""
    buffer = torch.from_numpy(noise(LAYOUT.size, 0))
    assert SMALL < 4 * 30000
    save_model(tmp_path / "model.h5", buffer, LAYOUT, 0)
    with h5py.File(tmp_path / "model.h5") as file:
        found = [file[entry.name][()] for entry in LAYOUT.entries]
    assert b"".join(array.tobytes() for array in found) == buffer.numpy().tobytes()
    assert [array.shape for array in found] == [entry.shape for entry in LAYOUT.entries]
