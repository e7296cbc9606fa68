"""What a run writes down, that it is all there, and what it never holds."""

import shutil
import subprocess

import h5py
import numpy as np
import pytest

from asyncfeded import record
from asyncfeded.heterogeneity import CLIENT
from asyncfeded.record import BLOCK, EVALUATION, UPDATE, Record, Table, read

CLIENTS = np.zeros(1, CLIENT)


def update(number):
    """A row of updates, each field another multiple of number."""
    return (*(number * k for k in range(1, len(UPDATE))), True)


@pytest.fixture
def book(tmp_path):
    book = Record(tmp_path / "record.h5", "seed = 7\n", ["one", "two"], CLIENTS, 1)
    yield book
    if book._file:
        book.close()


def test_rows_come_back_as_they_were_appended(tmp_path, book):
    book.updates.append(update(3))
    book.evaluations.append((0.5, 2, 0.75, 1.25))
    book.close()
    updates, evaluations, _ = read(tmp_path)
    assert updates.tolist() == [update(3)]
    assert evaluations.tolist() == [(0.5, 2, 0.75, 1.25)]
    assert (updates.dtype, evaluations.dtype) == (UPDATE, EVALUATION)


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_no_row_is_lost_at_the_edge_of_a_block(tmp_path, book, count):
    for number in range(count):
        book.evaluations.append((0.0, number, 0.0, 0.0))
    book.close()
    assert read(tmp_path).evaluations["version"].tolist() == list(range(count))


def test_a_full_block_is_written_at_once(tmp_path):
    with h5py.File(tmp_path / "table.h5", "w") as file:
        table = Table(file, "rows", EVALUATION)
        for _ in range(BLOCK - 1):
            table.append((0.0, 1, 0.0, 0.0))
        assert len(file["rows"]) == 0
        table.append((0.0, 1, 0.0, 0.0))
        assert len(file["rows"]) == BLOCK


def test_rows_are_flushed_when_it_is_time_and_can_be_read_meanwhile(tmp_path, book, monkeypatch):
    now = book._flushed
    monkeypatch.setattr(record.time, "monotonic", lambda: now)
    book.evaluations.append((0.0, 1, 0.0, 0.0))
    book.flush_if_due()
    assert len(read(tmp_path).evaluations) == 0
    now += book.FLUSH_S + 0.1
    book.flush_if_due()
    assert len(read(tmp_path).evaluations) == 1


def test_a_record_that_exists_is_never_written_over(tmp_path, book):
    book.updates.append(update(1))
    book.close()
    with pytest.raises(FileExistsError):
        Record(tmp_path / "record.h5", "", ["one"], CLIENTS, 1)
    assert len(read(tmp_path).updates) == 1


def test_a_record_says_where_the_run_came_from(tmp_path, book):
    attributes = read(tmp_path).attributes
    assert attributes["config"] == "seed = 7\n"
    assert list(attributes["hosts"]) == ["one", "two"]
    assert attributes["schema"] == record.SCHEMA
    assert {"asyncfeded", "torch", "numpy", "mpi4py", "h5py", "python", "platform", "commit"} <= set(attributes)
    assert attributes["numpy"] == np.__version__


def test_a_record_holds_the_hosts_of_a_large_job(tmp_path):
    hosts = [f"node{i:05d}.cluster" for i in range(10_000)]
    Record(tmp_path / "record.h5", "", hosts, CLIENTS, 1).close()
    assert list(read(tmp_path).attributes["hosts"]) == hosts


def test_a_record_holds_a_long_config(tmp_path):
    Record(tmp_path / "record.h5", "x" * 200_000, ["one"], CLIENTS, 1).close()
    assert read(tmp_path).attributes["config"] == "x" * 200_000


def test_a_record_holds_nothing_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hunter2-hunter2")
    Record(tmp_path / "record.h5", "", ["one"], CLIENTS, 1).close()
    assert b"hunter2" not in (tmp_path / "record.h5").read_bytes()


def test_the_fields_of_an_update_are_frozen():
    """Files of finished runs have them: a change needs a new SCHEMA."""
    assert record.SCHEMA == 1
    assert UPDATE.names == (
        "time_s", "client",
        "round", "version", "base_version", "tau", "gamma", "eta", "epochs", "next_epochs", "moved_norm",
        "change_norm", "train_loss", "samples", "steps", "compute_s", "wait_s", "service_s", "bytes", "accepted",
    )  # fmt: skip
    assert EVALUATION.names == ("time_s", "version", "accuracy", "loss")


# --- reading


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"record\.h5: no such file; give the folder of a run"):
        read(tmp_path)


def test_a_file_that_is_not_hdf5_is_refused(tmp_path):
    (tmp_path / "record.h5").write_text("time_s,client\n")
    with pytest.raises(ValueError, match=r"record\.h5: not a readable record"):
        read(tmp_path)


def test_a_truncated_record_is_refused(tmp_path, book):
    book.close()
    path = tmp_path / "record.h5"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"record\.h5: not a readable record"):
        read(tmp_path)


def test_another_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "record.h5", "w") as file:
        file["pixels"] = [1.0]
    with pytest.raises(ValueError, match=r"record\.h5: not a readable record"):
        read(tmp_path)


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
