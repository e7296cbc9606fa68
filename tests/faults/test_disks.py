"""Disks that are full, read-only, slow or damaged under a real run."""

import json
import os
import shutil
import signal
from pathlib import Path

import h5py
import pytest

from asyncfeded.store import checkpoint, record
from conftest import Job, run, run_asyncfeded, same_rows
from faults.conftest import TOML, VIRTUAL, broken, names, updates_of


@pytest.fixture(scope="module")
def whole(own_mpi, tmp_path_factory):
    """Result of the run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "run.toml").write_text(TOML)
    return own_mpi.train(3, "run.toml", *VIRTUAL, f"run_dir={folder / 'run'}", cwd=folder).result


def resumed(mpi, folder, run_dir, *overrides):
    return run_asyncfeded("resume", run_dir, *overrides, cwd=folder, env=mpi.env)


def test_a_full_disk_does_not_end_the_run_and_the_last_good_checkpoint_stays_good(own_mpi, jobs, disk, whole):
    """The disk holds the record and one checkpoint, and not the second beside it."""
    one = checkpoint.newest(Path(whole["run_dir"])).path.stat().st_size
    run_dir = disk(f"size={one * 3 // 2 // 1024}k") / "run"
    done = own_mpi.train(3, "run.toml", *VIRTUAL, f"run_dir={run_dir}", cwd=jobs)
    assert "No space left on device; the last good one: checkpoint-00000000" in done.stderr, str(done)
    assert done.result["updates"] == 40
    assert done.status in (0, 1), str(done)  # 1: there was no room for the trained model, which is somewhere else then
    elsewhere = [run_dir, *jobs.glob("run-*")][-1]
    assert (elsewhere != run_dir) == done.status, str(done)
    with h5py.File(elsewhere / "model.h5") as file:
        assert file.attrs["version"] == 40
    assert checkpoint.newest(run_dir).damaged == ()
    disk("size=64m")
    (run_dir / "result.json").unlink(missing_ok=True)  # the checkpoint is behind that end
    done = resumed(own_mpi, jobs, run_dir)
    assert done.status == 0, str(done)
    assert done.result["model_sha256"] == whole["model_sha256"]
    assert same_rows(run_dir, whole["run_dir"])


def test_a_folder_for_checkpoints_that_cannot_be_written_does_not_end_the_run(own_mpi, jobs, disk):
    """The record is beside it."""
    disk("size=1m")
    disk("ro")
    (jobs / "run").mkdir()
    (jobs / "run" / "checkpoints").symlink_to(jobs / "disk")
    done = own_mpi.train(3, "run.toml", *VIRTUAL, "run_dir=run", cwd=jobs)
    assert done.status == 0, str(done)
    assert "Read-only file system; the last good one: none" in done.stderr, str(done)
    assert done.result["updates"] == 40


@pytest.mark.parametrize("name", ["run", "r" * 255])
def test_a_run_whose_folder_is_removed_ends_well_in_another_that_it_names(own_mpi, jobs, name):
    if own_mpi.vendor.startswith("Open MPI"):
        pytest.skip("Open MPI's mpiexec kills its ranks half a second after it got SIGTERM")
    with Job(jobs, own_mpi.env, "train", "run.toml", "--ranks", 3, f"run_dir={name}") as job:
        job.until(lambda: updates_of(jobs / name, 0) > 2)
        shutil.rmtree((jobs / name).rename(jobs / "gone"))  # the run still writes, and would stop a removal file by file
        os.kill(job.process.pid, signal.SIGTERM)
        status, said = job.end()
    (elsewhere,) = jobs.glob(f"{name[:50]}*/")
    assert status == 1, said
    gone = f"{name} is not this job's any more: it was removed or renamed; nothing more is written there"
    for file in ("model.h5", "record.h5", "result.json"):
        assert said.count(f"{name}/{file} cannot be written ({gone}); it is saved as ") == 1, said
        assert f"it is saved as {elsewhere.name}/{file}" in said
    assert "go on with" not in said
    result, rows = json.loads((elsewhere / "result.json").read_text()), record.read_record(elsewhere).updates
    assert result["updates"] == len(rows) > 2
    with h5py.File(elsewhere / "model.h5") as file:
        assert file.attrs["version"] == rows["version"][-1]


def test_a_run_in_a_folder_that_cannot_be_written_is_refused(own_mpi, jobs, disk):
    disk("size=1m")
    disk("ro")
    done = own_mpi.train(3, "run.toml", "run_dir=disk/run", cwd=jobs)
    assert (done.status, done.stdout) == (2, ""), str(done)
    said = "asyncfeded: run_dir = 'disk/run' cannot be written: Read-only file system; choose another folder\n"
    assert done.stderr == said


def test_a_run_that_cannot_be_written_any_more_is_not_resumed(own_mpi, jobs, disk):
    disk("size=64m")
    assert own_mpi.train(3, "run.toml", *VIRTUAL, "run_dir=disk/run", cwd=jobs).status == 0
    disk("ro")
    done = resumed(own_mpi, jobs, "disk/run", "limits.updates=50")
    assert (done.status, done.stdout) == (2, ""), str(done)
    assert done.stderr == (
        "asyncfeded: disk/run: cannot be written: Read-only file system; copy it to a disk with room, and resume it there\n"
    )


SLOW = """
import threading, time
from asyncfeded.training.server import Server

real, servers, merged = os.fsync, [], []
init = Server.__init__

def remember(server, *arguments, **keys):
    servers.append(server)
    init(server, *arguments, **keys)

def fsync(number):
    if servers and not servers[0].stopping:
        assert threading.current_thread() is not threading.main_thread()
        begin, deadline = servers[0].state.updates, time.monotonic() + 60
        while servers[0].state.updates < begin + 7 and not servers[0].stopping:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        with open("merged.txt", "a") as file:
            print(servers[0].state.updates - begin, file=file)
    real(number)

if RANK == 0:
    Server.__init__, os.fsync = remember, fsync
"""


def test_the_server_does_not_stop_for_a_slow_disk(own_mpi, jobs):
    """Whatever is brought to the disk takes until 7 more updates or more are merged, and not in the server's own thread."""
    command = broken(own_mpi, jobs, SLOW, "limits.updates=300", "checkpoint.every_updates=1")
    done = run(command, jobs, own_mpi.env)
    assert done.status == 0, str(done)
    merged = [int(line) for line in (jobs / "merged.txt").read_text().split()]
    assert sum(count >= 7 for count in merged) >= 5, f"{merged}\n{done}"
    assert done.result["updates"] == 300
    assert checkpoint.newest(jobs / "run").snapshot.updates == 300


def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(own_mpi, jobs):
    """It ends as the undisturbed one, 20 updates after the checkpoint that was the newest when it was killed."""
    endless = (*VIRTUAL, "limits.updates=1000000")
    with Job(jobs, own_mpi.env, "train", "run.toml", "--ranks", 3, *endless, "run_dir=run") as job:
        job.until(lambda: len(names(jobs / "run")) >= 2)
        job.kill()
    before, newest = (jobs / "run" / "checkpoints" / name for name in names(jobs / "run")[-2:])
    limit = f"limits.updates={checkpoint.newest(jobs / 'run').snapshot.updates + 20}"
    flip(newest)
    whole = own_mpi.train(3, "run.toml", *VIRTUAL, limit, "run_dir=whole", cwd=jobs)
    assert whole.status == 0, str(whole)
    done = resumed(own_mpi, jobs, "run", limit)
    assert done.status == 0, str(done)
    assert f"not used: run/checkpoints/{newest.name}: is damaged: " in done.stderr
    assert f"goes on from {before.name}: " in done.stderr
    assert done.result["model_sha256"] == whole.result["model_sha256"]
    assert same_rows(jobs / "run", jobs / "whole")
    for name in names(jobs / "run"):
        flip(jobs / "run" / "checkpoints" / name)
    done = resumed(own_mpi, jobs, "run", "limits.updates=1000000")
    assert (done.status, done.stdout) == (2, ""), str(done)
    assert done.stderr.startswith("asyncfeded: run: none of its checkpoints can be used\n"), str(done)


def flip(path):
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
