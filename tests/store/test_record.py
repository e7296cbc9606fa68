"""What a run writes down, that it is all there, and what it never holds."""

import errno
import os
import shutil
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from asyncfeded.metric import Metric, Metrics
from asyncfeded.store import record
from asyncfeded.store.record import UPDATE, Record, dtypes, read_record
from asyncfeded.training.heterogeneity import PROFILE
from conftest import METRICS, places

CLIENTS = np.zeros(20_000, PROFILE)


def update(number):
    """A row of updates, each field another multiple of number."""
    return (*(number * k for k in range(1, len(UPDATE))), True)


@pytest.fixture
def book(tmp_path):
    book = Record(tmp_path / "record.h5", "seed = 7\n", places("one", "two"), CLIENTS, METRICS)
    yield book
    book.close()


def test_rows_come_back_as_they_were_appended(tmp_path, book):
    book.updates.append(update(3))
    book.evaluations.append((0.5, 2, 0.75, 1.25))
    book.close()
    there = read_record(tmp_path)
    assert (there.updates.tolist(), there.updates.dtype) == ([update(3)], UPDATE)
    assert there.evaluations.tolist() == [(0.5, 2, 0.75, 1.25)]
    assert there.metrics == METRICS


def test_the_columns_of_evaluations_are_the_metrics_also_while_the_run_goes_on(tmp_path):
    metrics = Metrics({"top-5": Metric("max"), "Größe": Metric("min", "µm")}, "Größe")
    book = Record(tmp_path / "record.h5", "", places("one"), CLIENTS, metrics)
    book.evaluations.append((0.5, 2, 0.75, 1.25))
    book.client_evaluations.append((0.5, 2, 7, 3, 0.5, 1.5))
    book.write()
    for _ in range(2):
        there = read_record(tmp_path)
        assert (there.evaluations["top-5"][0], there.evaluations["Größe"][0]) == (0.75, 1.25)
        assert there.client_evaluations.dtype.names == ("time_s", "version", "client", "round", "top-5", "Größe")
        assert there.client_evaluations.tolist() == [(0.5, 2, 7, 3, 0.5, 1.5)]
        assert there.metrics == metrics
        book.close()


def test_events_stay_when_the_record_goes_on_and_their_text_is_cut_between_letters(tmp_path, book):
    began = time.time()
    book.note(1.5, "lost", 3, text="ä" * 150)
    book.note(2.0, "checkpoint", seconds=0.25)
    book.close()
    before = read_record(tmp_path)
    Record(tmp_path / "record.h5", "", places("three"), CLIENTS, METRICS, before).close()
    (at_s, *lost), (_, *written) = read_record(tmp_path).events.tolist()
    assert began <= at_s <= time.time()
    assert lost == [1.5, b"lost", 3, 0, 0.0, ("ä" * 100).encode()]
    assert written == [2.0, b"checkpoint", -1, 0, 0.25, b""]


@pytest.mark.parametrize("count", [0, 1, 1000, 5000])
def test_no_row_is_lost_however_many_there_are(tmp_path, book, count):
    for number in range(count):
        book.evaluations.append((0.0, number, 0.0, 0.0))
    book.close()
    assert read_record(tmp_path).evaluations["version"].tolist() == list(range(count))


def test_rows_are_written_when_it_is_time_and_can_be_read_meanwhile(tmp_path, book, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(record.time, "monotonic", lambda: now)
    book.flush_if_due()
    book.evaluations.append((0.0, 1, 0.0, 0.0))
    book.flush_if_due()
    assert len(read_record(tmp_path).evaluations) == 0
    now += book.FLUSH_S + 0.1
    book.flush_if_due()
    assert len(read_record(tmp_path).evaluations) == 1


def test_hdf5_gets_the_rows_in_the_background(tmp_path, book, monkeypatch):
    """So that h5py alone finds them in a killed run, too."""
    monkeypatch.setattr(book, "FLUSH_S", 0.0)
    monkeypatch.setattr(book, "PUBLISH_S", 0.0)
    book.updates.append(update(3))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        book.flush_if_due()
        with h5py.File(tmp_path / "record.h5") as file:
            if file["updates"][:].tolist() == [update(3)]:
                return
    raise AssertionError("record.h5 has no row")


def test_a_finished_record_is_one_file(tmp_path, book):
    book.updates.append(update(3))
    book.close()
    assert [path.name for path in tmp_path.iterdir()] == ["record.h5"]
    with h5py.File(tmp_path / "record.h5") as file:
        assert file["updates"][:].tolist() == [update(3)]


def test_a_row_cut_off_by_a_kill_is_left_out(tmp_path, book):
    for number in (1, 2, 3):
        book.updates.append(update(number))
    book.write()
    rows = tmp_path / "record.h5.updates"
    whole = rows.read_bytes()
    for length in range(len(whole) + 1):
        rows.write_bytes(whole[:length])
        assert read_record(tmp_path).updates.tolist() == [update(n) for n in range(1, 1 + length // UPDATE.itemsize)]


def test_a_record_goes_on_from_given_rows(tmp_path, book):
    for number in (1, 2, 3):
        book.updates.append(update(number))
    book.close()
    before = read_record(tmp_path)
    again = Record(
        tmp_path / "record.h5", "seed = 8\n", places("three"), CLIENTS, METRICS, before._replace(updates=before.updates[:2])
    )
    assert (again.updates.count, read_record(tmp_path).updates.tolist()) == (2, [update(1), update(2)])
    again.updates.append(update(4))
    again.close()
    there = read_record(tmp_path)
    assert there.updates.tolist() == [update(1), update(2), update(4)]
    attributes = there.attributes
    assert (attributes["config"], attributes["placement"].tolist()) == ("seed = 8\n", places("three").tolist())


def test_nothing_is_written_into_a_folder_that_is_not_the_jobs_any_more(tmp_path):
    lost = []

    def check():
        if lost:
            raise OSError(errno.ESTALE, "it is gone")

    book = Record(tmp_path / "record.h5", "", places("one"), CLIENTS, METRICS, check=check)
    book.updates.append(update(1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    lost.append(True)
    book.flush_if_due()
    assert book.problem == "rows of the record wait in memory: it is gone"
    for write in (book.write, book.sync, book.close):
        with pytest.raises(OSError, match="it is gone"):
            write()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    book.release()


FULL = """
import pathlib, sys
import numpy as np
from asyncfeded.training.heterogeneity import PROFILE
from asyncfeded.metric import DEFAULT, Metrics
from asyncfeded.mpi.placement import PLACE
from asyncfeded.store.record import UPDATE, Record, read_record
folder = pathlib.Path(sys.argv[1])
metrics, row = Metrics(DEFAULT, "accuracy"), (1,) * len(UPDATE)
book = Record(folder / "record.h5", "", np.zeros(1, PLACE), np.zeros(2, PROFILE), metrics)
book.FLUSH_S = 0.0
ballast = folder / "ballast"
try:
    ballast.write_bytes(bytes(2 << 20))
except OSError:
    pass
for _ in range(5000):
    book.updates.append(row)
    book.flush_if_due()
print(book.problem, len(read_record(folder).updates) < 5000)
ballast.unlink()
book.flush_if_due()
book.close()
print(book.problem, len(read_record(folder).updates))
"""


def test_on_a_full_disk_rows_wait_until_there_is_room(tmp_path):
    """A disk of 2 MiB, of which something else takes the rest; HDF5 would end the process with a segmentation fault."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path]).returncode:
        pytest.skip("needs to mount a small disk")
    try:
        done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, timeout=60)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    waiting = "rows of the record wait in memory: No space left on device True"
    assert done.stdout.splitlines() == [waiting, " 5000"], done.stderr
    assert done.returncode == 0


def test_a_record_says_where_the_run_came_from(tmp_path, book):
    attributes = read_record(tmp_path).attributes
    assert attributes["config"] == "seed = 7\n"
    assert attributes["placement"].tolist() == places("one", "two").tolist()
    assert attributes["schema"] == record.SCHEMA
    assert {"asyncfeded", "torch", "numpy", "mpi4py", "h5py", "python", "platform", "commit"} <= set(attributes)
    assert attributes["numpy"] == np.__version__


def test_a_record_holds_the_map_of_a_large_job(tmp_path):
    large = places(*(f"node{i:05d}.cluster" for i in range(10_000)))
    Record(tmp_path / "record.h5", "", large, CLIENTS, METRICS).close()
    assert read_record(tmp_path).attributes["placement"].tolist() == large.tolist()


def test_the_threads_of_a_record_are_those_of_its_workers(tmp_path):
    """The server has 8, the workers 2 and 3."""
    mixed = places("a", "b", "c")
    mixed["threads"] = 8, 2, 3
    Record(tmp_path / "record.h5", "", mixed, CLIENTS, METRICS).close()
    assert read_record(tmp_path).attributes["threads"] == 3


def test_a_record_holds_a_long_config(tmp_path):
    Record(tmp_path / "record.h5", "x" * 200_000, places("one"), CLIENTS, METRICS).close()
    assert read_record(tmp_path).attributes["config"] == "x" * 200_000


def test_a_record_holds_nothing_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hunter2-hunter2")
    Record(tmp_path / "record.h5", "", places("one"), CLIENTS, METRICS).close()
    assert b"hunter2" not in (tmp_path / "record.h5").read_bytes()


def test_the_fields_of_an_update_are_frozen():
    """Files of finished runs have them: a change needs a new SCHEMA."""
    assert record.SCHEMA == 5
    assert UPDATE.names == (
        "time_s", "client",
        "round", "version", "base_version", "tau", "gamma", "eta", "epochs", "next_epochs", "moved_norm",
        "change_norm", "train_loss", "samples", "steps", "share", "learning_rate", "measured", "compute_s",
        "wait_s", "service_s", "receive_s", "measure_s", "merge_s", "queue", "bytes", "accepted",
    )  # fmt: skip
    assert dtypes(METRICS)["evaluations"].names == ("time_s", "version", "accuracy", "loss")


# --- reading


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"record\.h5: no such file; give the folder of a run"):
        read_record(tmp_path)


def test_a_file_that_is_not_hdf5_is_refused(tmp_path):
    (tmp_path / "record.h5").write_text("time_s,client\n")
    with pytest.raises(ValueError, match=r"record\.h5: its head is damaged, or this program did not write it"):
        read_record(tmp_path)


def test_a_truncated_record_is_refused(tmp_path, book):
    book.close()
    path = tmp_path / "record.h5"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"record\.h5: has 1000 bytes, but \d+ were written"):
        read_record(tmp_path)


def test_another_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "record.h5", "w") as file:
        file["pixels"] = [1.0]
    with pytest.raises(ValueError, match=r"record\.h5: its head is damaged, or this program did not write it"):
        read_record(tmp_path)


# --- the commit


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A repository with one file, committed, that `record` takes for its own."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    source = tmp_path / "record.py"
    source.write_text("x = 1\n")

    def git(*arguments):
        name = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", "-C", tmp_path, *name, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", "record.py")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(record, "__file__", str(source))
    return source, git


def test_the_commit_of_an_unchanged_tree(tree):
    assert record.provenance()["commit"] == tree[1]("rev-parse", "HEAD")


def test_the_commit_of_a_changed_tree_has_a_mark(tree):
    tree[0].write_text("x = 2\n")
    assert record.provenance()["commit"] == tree[1]("rev-parse", "HEAD") + "+"


def test_there_is_no_commit_of_an_installed_program_in_another_s_repository(tree, tmp_path, monkeypatch):
    """A virtual environment inside some repository: that one's commit says nothing."""
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(record, "__file__", str(tmp_path / "site-packages" / "record.py"))
    assert record.provenance()["commit"] == ""


def test_there_is_no_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert record.provenance()["commit"] == ""
