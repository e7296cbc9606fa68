"""When checkpoints of a run are written, and what the user is told if one cannot be. Without MPI: see lives.py."""

import pytest

from asyncfeded.run import keeper
from asyncfeded.store import record
from asyncfeded.store.checkpoint import FOLDER
from run.lives import ASYNCFEDED, UPDATES, Life, names, names_of, whole

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_one_at_the_start_and_every_so_many_updates(folder):
    life = Life(folder, ASYNCFEDED, checkpoint={"every_updates": 5, "keep": 99})
    assert not life.live(40)
    rows = len(record.read_record(folder).updates)
    assert names(folder) == names_of(0, 5, 11, 16, 21, 26, 31, 36)
    assert 36 <= rows < 41


def test_the_last_ones_are_kept(folder):
    assert Life(folder, ASYNCFEDED, checkpoint={"every_updates": 5, "keep": 1}).live()
    assert names(folder) == names_of(UPDATES + 1)


def test_without_a_wish_there_is_none(folder):
    assert Life(folder, ASYNCFEDED, every_updates=0).live()
    assert names(folder) == []


def test_one_that_is_wished_for_is_written_and_the_run_goes_on(folder):
    life = Life(folder, ASYNCFEDED, every_updates=0)
    life.tick = lambda server: wish_at(7, life, server)
    assert life.live()
    assert life.server.state.updates == UPDATES
    assert names(folder) == names_of(7, UPDATES + 1)  # the end has one too: nothing goes back behind it


def wish_at(updates, life, server):
    if server.state.updates == updates and not life.told.logged:
        life.keeper.wanted = not life.writer.busy and names(life.folder) == []
    life.keeper.tick(server)


def test_by_wall_time(folder, monkeypatch):
    now = 100.0
    monkeypatch.setattr(keeper.time, "monotonic", lambda: now)
    life = Life(folder, ASYNCFEDED, checkpoint={"every_s": 10.0})
    assert (life.keeper.wanted, life.keeper._due(life.server)) == (True, False)
    now += 11.0
    assert not life.keeper._due(life.server)  # nothing is new
    life.server.state.updates += 1
    assert life.keeper._due(life.server)
    life.record.close()


def test_a_disk_that_takes_no_checkpoint_is_told_of_and_training_goes_on(tmp_path, folder):
    expected = whole(tmp_path, ASYNCFEDED)
    (folder / FOLDER).write_text("in the way")
    life = Life(folder, ASYNCFEDED)
    assert life.live()
    assert life.end == expected
    assert life.told.said[0].startswith(f"checkpoint {folder / FOLDER}/checkpoint-0000000000.h5: ")
    assert life.told.said[0].endswith("the last good one: none")


def test_a_record_that_waits_for_room_is_told_of_once(folder):
    life = Life(folder, ASYNCFEDED, every_updates=0)
    for problem in ("full", "full", "", ""):
        life.record.problem = problem
        life.keeper.tick(life.server)
    life.record.close()
    assert life.told.said == ["full", "the rows of the record are on the disk again"]


def test_no_checkpoint_is_ahead_of_the_record(folder, monkeypatch):
    life = Life(folder, ASYNCFEDED)

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(life.record, "write", full)
    life.keeper.tick(life.server)
    assert life.told.said == ["no checkpoint is written, since the record cannot be: No space left on device"]
    monkeypatch.undo()
    life.record.close()
    assert names(folder) == []
