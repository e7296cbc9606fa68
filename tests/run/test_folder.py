"""The folder of a run: two runs never have the same, and a run that does not start leaves what was there."""

import time
from contextlib import ExitStack, suppress

import numpy as np
import pytest

from asyncfeded.config import Config
from asyncfeded.run import folder
from asyncfeded.store.ownership import NAME, OwnedError
from asyncfeded.store.record import UPDATE, Record
from asyncfeded.training.heterogeneity import PROFILE
from conftest import METRICS, places
from run.lives import contents


def config(run_dir=""):
    return Config.model_validate({"run_dir": str(run_dir), "limits": {"updates": 1}})


@pytest.fixture
def cleanup():
    with ExitStack() as cleanup:
        yield cleanup


def test_runs_without_a_name_that_start_in_the_same_second_have_different_names(tmp_path, monkeypatch, cleanup):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda how: "now")
    names = [folder.take(config(), None, cleanup)[0].run_dir for _ in range(3)]
    assert names == [f"runs/now-digits-asyncfeded{suffix}" for suffix in ("", "-2", "-3")]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [name.removeprefix("runs/") for name in names]


def test_a_folder_that_another_run_owns_is_refused_and_left_as_it_is(tmp_path, cleanup):
    with ExitStack() as loser:
        folder.take(config(tmp_path / "a" / "run"), None, cleanup)
        for resumed in (None, tmp_path / "a" / "run"):
            with pytest.raises(OwnedError, match="a/run is in use by process"):
                folder.take(config(tmp_path / "a" / "run"), resumed, loser)
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == [NAME]


def test_a_run_that_does_not_start_removes_the_folders_that_it_made_and_no_others(tmp_path):
    (tmp_path / "mine").mkdir()
    with suppress(OSError), ExitStack() as cleanup:
        folder.take(config(tmp_path / "mine" / "a" / "b"), None, cleanup)
        (tmp_path / "mine" / "a" / "others").touch()
    assert [path.name for path in (tmp_path / "mine" / "a").iterdir()] == ["others"]


def test_a_run_that_is_there_is_not_begun_again(tmp_path):
    (tmp_path / "record.h5").touch()
    with pytest.raises(ValueError, match="holds a run already"), ExitStack() as cleanup:
        folder.take(config(tmp_path), None, cleanup)
    assert [path.name for path in tmp_path.iterdir()] == ["record.h5"]


@pytest.mark.parametrize("name", [*folder.FILES, "record.h5.updates", "checkpoints/checkpoint-0000000005.h5"])
def test_what_a_run_would_replace_is_named_and_left_as_it_is(tmp_path, name):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).write_text("precious")
    before = contents(tmp_path)
    said = f"holds {name}, which the run would replace, and no record of a run that has written it; choose another folder"
    with pytest.raises(ValueError, match=said), ExitStack() as cleanup:
        folder.take(config(tmp_path), None, cleanup)
    assert contents(tmp_path) == before


def test_other_files_are_in_nobodys_way(tmp_path, cleanup):
    """Nor are rows without a row, which a start leaves that was killed before there was a record."""
    for name in ("run.toml", "notes.txt", "record.h5.updates", "record.h5.evaluations", "record.h5.part"):
        (tmp_path / name).touch()
    assert folder.take(config(tmp_path), None, cleanup)[0].run_dir == str(tmp_path)


@pytest.fixture
def begun(tmp_path):
    """What a run that was killed before its first update leaves."""
    Record(tmp_path / "record.h5", "", places("here", "there"), np.zeros(1, PROFILE), METRICS).release()
    (tmp_path / "config.toml").touch()
    return tmp_path


def test_a_run_without_an_update_begins_again(begun, cleanup):
    assert folder.is_unbegun(begun)
    folder.take(config(begun), None, cleanup)


@pytest.mark.parametrize("name", ["result.json", "checkpoints/checkpoint-0000000000.h5", "record.h5.updates", "record.h5"])
def test_one_that_has_more_does_not(begun, name):
    (begun / "checkpoints").mkdir()
    with (begun / name).open("ab") as file:
        file.truncate(0) if name == "record.h5" else file.write(bytes(UPDATE.itemsize))
    assert not folder.is_unbegun(begun)
    with pytest.raises(ValueError, match="holds a run already"), ExitStack() as cleanup:
        folder.take(config(begun), None, cleanup)


def test_a_folder_to_resume_that_is_not_there_is_refused(tmp_path, cleanup):
    with pytest.raises(ValueError, match="none: cannot be written: No such file or directory; copy it to a disk"):
        folder.take(config(tmp_path / "none"), tmp_path / "none", cleanup)


def test_what_a_run_has_written_is_removed_and_nothing_else(tmp_path):
    places_of_a_run = ("record.h5", "record.h5.updates", "config.toml", "model.h5", "checkpoints/checkpoint-0000000003.h5")
    mine = ("notes.txt", "checkpoints/best.h5", "figures/run.png")
    for name in (*places_of_a_run, *mine):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    folder.clear(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(mine)
