"""Of all processes one owns a folder; what the dead leave behind keeps nobody out; who has lost it is told."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from asyncfeded.store import ownership
from asyncfeded.store.ownership import NAME, LostError, OwnedError, Ownership

OTHER = """
import os, pathlib, sys
from asyncfeded.store.ownership import OwnedError, Ownership
try:
    Ownership(pathlib.Path(sys.argv[1]), "it", print)
except OwnedError as error:
    print(error)
os._exit(0)
"""
"""Another process that takes it, or says why not, and dies without giving it up."""


def other(path):
    return subprocess.run([sys.executable, "-c", OTHER, path], capture_output=True, text=True, check=True).stdout


def own(path, told=None):
    return Ownership(path, "it", (told if told is not None else []).append)


@pytest.fixture
def path(tmp_path):
    return tmp_path / NAME


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(ownership, "SILENCE_S", 1.5)
    monkeypatch.setattr(ownership, "ENDING_S", 0.1)
    monkeypatch.setattr(ownership, "POLL_S", 0.01)


def rewrite(path, **fields):
    """As if it were the file of another process."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_one_process_owns_it_and_another_is_told_who(path):
    with own(path):
        said = other(path)
        assert said.startswith(f"it is in use by process {os.getpid()} of {os.uname().nodename} since 2"), said
        assert said.endswith("; wait for its end, or stop it\n")
        with pytest.raises(OwnedError, match="is in use by process"):
            own(path)
    assert list(path.parent.iterdir()) == []
    with own(path) as owned:
        owned.check()


def test_the_dead_are_followed_at_once(path):
    assert other(path) == ""
    assert path.exists()
    with own(path) as owned:
        owned.check()
        assert [each.name for each in path.parent.iterdir()] == [NAME]


def test_a_process_that_nobody_has_waited_for_is_dead(path):
    process = subprocess.Popen([sys.executable, "-c", OTHER, path])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    own(path).release()
    process.wait()


def test_a_process_that_is_about_to_end_is_waited_for(path):
    process = subprocess.Popen([sys.executable, "-c", OTHER.replace("os._exit(0)", "print(flush=True); input()"), path],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    process.stdout.readline()
    timer = threading.Timer(0.5, process.kill)
    timer.start()
    own(path).check()
    process.communicate()


def test_a_number_that_a_new_process_has_is_not_the_old_one(path):
    own(path)
    rewrite(path, started="1")
    own(path).check()


def test_who_only_looks_sees_whether_the_owner_is_alive(path, impatient, monkeypatch):
    assert not ownership.Watched(path).is_alive()
    with own(path):
        assert ownership.Watched(path).is_alive()
        rewrite(path, kernel="another")
        elsewhere = ownership.Watched(path)
        assert elsewhere.is_alive()
        monkeypatch.setattr(ownership, "SILENCE_S", 0.0)
        assert not elsewhere.is_alive()
        os.utime(path, ns=(1, 1))  # a sign of life, whatever the clock of that host shows
        monkeypatch.setattr(ownership, "SILENCE_S", 100.0)
        assert elsewhere.is_alive()
    other(path)
    assert not ownership.Watched(path).is_alive()


RACE = """
import multiprocessing, os, pathlib, sys
from asyncfeded.store import ownership
from asyncfeded.store.ownership import OwnedError, Ownership

ownership.ENDING_S = 0.0
folder, dead, rounds, processes = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), 40, 6

def run(barrier, counts):
    for number in range(rounds):
        barrier.wait()
        try:
            Ownership(folder / str(number), "it", print)
        except OwnedError:
            continue
        with counts.get_lock():
            counts[number] += 1
    barrier.wait()  # a winner is alive until the last one has lost

context = multiprocessing.get_context("fork")
counts, barrier = context.Array("i", rounds), context.Barrier(processes)
for number in range(0, rounds, 2):
    text = dead.read_text()
    (folder / str(number)).write_text(text.replace(text.split('"token": "')[1][:32], f"{number:032d}"))
everyone = [context.Process(target=run, args=(barrier, counts)) for _ in range(processes)]
[each.start() for each in everyone]
[each.join() for each in everyone]
print(list(counts) == [1] * rounds, sorted(os.listdir(folder), key=int) == [str(number) for number in range(rounds)])
"""


def test_of_many_at_once_one_gets_what_is_free_and_what_a_dead_process_owned(tmp_path, path):
    other(path)
    (tmp_path / "race").mkdir()
    command = [sys.executable, "-c", RACE, tmp_path / "race", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout == "True True\n", done.stdout + done.stderr


@pytest.mark.usefixtures("impatient")
def test_an_owner_on_another_host_lives_as_long_as_it_touches_its_file(path):
    own(path)
    rewrite(path, kernel="another", host="far")
    ended = threading.Event()

    def touch():
        while not ended.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(OwnedError, match=r"it is in use by process \d+ of far since"):
            own(path)
    finally:
        ended.set()
        thread.join()
    told = []
    own(path, told).check()
    assert len(told) == 1
    assert "it may be in use by process" in told[0]


def test_an_owner_touches_its_file(path, monkeypatch):
    monkeypatch.setattr(ownership, "BEAT_S", 0.01)
    with own(path):
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": 3}'])
def test_a_file_that_names_nobody_is_nobodys_when_nobody_touches_it(path, text):
    path.write_text(text)
    own(path).check()


@pytest.mark.usefixtures("impatient")
def test_a_copy_of_a_folder_in_use_is_not_in_use(path, tmp_path):
    with own(path) as owned:
        (tmp_path / "copy").mkdir()
        shutil.copy2(path, tmp_path / "copy" / NAME)
        own(tmp_path / "copy" / NAME).check()
        owned.check()


def test_who_has_lost_it_is_told_and_removes_nothing(tmp_path):
    folder = tmp_path / "folder"
    for lose in (lambda: shutil.rmtree(folder), lambda: folder.rename(tmp_path / "renamed")):
        folder.mkdir()
        owned = own(folder / NAME)
        owned.check()
        lose()
        with pytest.raises(
            LostError, match="it is not this job's any more: it was removed or renamed; nothing more is writ"
        ):
            owned.check()
        owned.release()
    assert (tmp_path / "renamed" / NAME).exists()
    folder.mkdir()
    owned = own(folder / NAME)
    rewrite(folder / NAME, pid=2**22 + 1, started="1")  # as if a host had slept
    again = own(folder / NAME)
    with pytest.raises(LostError, match=r"process \d+ of .* has taken it"):
        owned.check()
    owned.release()
    again.check()


def test_what_cannot_be_written_is_not_owned(tmp_path):
    with pytest.raises(FileNotFoundError):
        own(tmp_path / "nowhere" / NAME)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        own(tmp_path / "file" / NAME)
