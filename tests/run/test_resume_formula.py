"""Going on from a checkpoint: the same end to the bit whenever a run was left, on whatever number of workers; and
what is refused. Without MPI: see lives.py.
"""

import json
import random

import numpy as np
import pytest

from asyncfeded import rules
from asyncfeded.run import resume
from asyncfeded.store import record
from asyncfeded.store.checkpoint import FOLDER
from asyncfeded.wire.messages import Lost
from run.lives import ASYNCFEDED, CLIENTS, RULES, UPDATES, Life, contents, names, names_of, whole

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_a_run_killed_anywhere_ends_as_the_whole_one_to_the_bit(tmp_path, folder, rule):
    """Whether the bases lie in memory or on a disk."""
    expected, rng, kills = whole(tmp_path, rule), random.Random(str(rule)), 0
    life = Life(folder, rule, rng=rng)
    while not life.live(rng.randrange(1, 25)):
        kills += 1
        life = Life(folder, rule, num_workers=rng.choice([1, 2, 3]), rng=rng, resumed=True, disk=kills % 2 > 0)
    assert life.end == expected
    assert kills > 0
    assert record.read_record(folder).updates["accepted"].sum() == UPDATES == len(record.read_record(folder).updates) - 1


@pytest.mark.parametrize("rule", [{"name": name} for name in ("asyncfeded", "fedavg", "ace")], ids=lambda rule: rule["name"])
@pytest.mark.parametrize(
    "first", [{"updates": 7}, {"updates": 12}, {"seconds": 4.4}, {"seconds": 3.0}, {"target": 0.9}], ids=str
)
def test_a_finished_run_goes_on_with_larger_limits_as_if_it_had_had_them(tmp_path, folder, rule, first):
    """But for the last update before, which got no reply then."""
    expected = whole(tmp_path, rule)
    life = Life(folder, rule, limits=first)
    assert life.live()
    before = len(record.read_record(folder).updates)
    life = Life(folder, rule, num_workers=2, resumed=True)
    assert 0 < life.point.snapshot.update_rows == before < UPDATES
    assert life.live()
    end, rows = life.end, record.read_record(folder).updates
    for name in ("next_epochs", "bytes"):
        there = record.read_record(tmp_path / "whole").updates[name]
        assert set(np.flatnonzero(rows[name] != there)) <= {before - 1}
        end["updates"].pop(name), expected["updates"].pop(name)
    end["updates"].pop("share"), expected["updates"].pop("share")  # it follows from the limits
    assert end == expected


def test_a_run_that_has_reached_its_limits_ends_where_it_was(tmp_path, folder):
    expected = whole(tmp_path, ASYNCFEDED)
    assert Life(folder, ASYNCFEDED).live()
    life = Life(folder, ASYNCFEDED, resumed=True)
    assert life.live()
    assert life.end == expected


def test_time_on_the_wall_adds_up(folder):
    life = Life(folder, ASYNCFEDED)
    assert not life.live(30)
    life.server.state.wall_before_s = 100.0
    life = Life(folder, ASYNCFEDED, resumed=True)
    at = life.point.snapshot
    assert life.live()
    assert life.outcome.wall_s > at.wall_s > 0
    assert life.server.state.busy_s > at.busy_s > 0


def test_an_interrupted_run_writes_one_all_the_same(tmp_path, folder):
    expected = whole(tmp_path, ASYNCFEDED)
    life = Life(folder, ASYNCFEDED, every_updates=0)
    life.tick = lambda server: stop_at(7, life, server)
    assert life.live()
    assert life.outcome.reason == "interrupted by a signal"
    assert names(folder) == names_of(7)
    life = Life(folder, ASYNCFEDED, every_updates=0, resumed=True)
    assert life.live()
    assert life.end == expected


def stop_at(updates, life, server):
    server.interrupted = server.state.updates >= updates
    life.keeper.tick(server)


def test_a_step_that_a_barrier_took_for_want_of_a_client_is_no_gap(folder):
    """All but one have arrived when that is lost: the step that follows has no row in the record."""
    life = Life(folder, {"name": "fedavg"}, every_updates=0)
    server, take = life.server, life.server._wire._wire.next

    def lose_the_last():
        waits = server.state.updates == CLIENTS - 1 and not server.state.lost.any()
        return Lost("rank 1", (int(np.flatnonzero(server.state.out)[0]),), "dead") if waits else take()

    def stop_then(server):
        server.interrupted = bool(server.state.lost.any())
        life.keeper.tick(server)

    server._wire._wire.next, life.tick = lose_the_last, stop_then
    assert life.live()
    assert (server.state.model.version, life.record.updates.count) == (1, CLIENTS - 1)
    life = Life(folder, {"name": "fedavg"}, every_updates=0, resumed=True)
    assert life.live()
    assert life.server.state.updates == UPDATES
    assert life.server.state.counts.min() > 0


@pytest.mark.parametrize("clock", ["virtual", "wall"])
def test_a_limit_that_was_passed_long_ago_does_not_turn_back_the_time(folder, clock):
    """Both lives after the first write no checkpoint but that of their end."""
    first = Life(folder, ASYNCFEDED, limits={"updates": 12}, clock=clock)
    assert first.live()
    second = Life(folder, ASYNCFEDED, every_updates=0, resumed=True, limits={"updates": 30}, clock=clock)
    assert second.live()
    ended(folder, 30)
    third = Life(folder, ASYNCFEDED, every_updates=0, resumed=True, limits={"seconds": 1.0}, clock=clock)
    assert third.live()
    rows = record.read_record(folder).updates
    assert (len(rows), third.point.dropped) == (31, 0)
    assert third.outcome.seconds == second.outcome.seconds == rows["time_s"][-1] > 1.0


def test_what_is_done_again_is_told(left):
    rows = record.read_record(left).updates
    with (left / "record.h5.updates").open("ab") as file:
        file.write(rows[-3:].tobytes())
    life = Life(left, ASYNCFEDED, resumed=True)
    assert life.live()
    assert life.point.dropped == len(rows) + 3 - life.point.snapshot.update_rows
    said = f"the record holds {life.point.dropped} later updates: they are dropped, and that work is done again"
    assert said in resume.sentences(life.point, 1)


# --- what is refused


def ended(folder, updates):
    """The run has left a result."""
    (folder / "result.json").write_text(json.dumps({"updates": updates}))


def test_going_back_behind_an_end_is_refused_until_its_result_is_moved_away(left):
    """Its last checkpoint could not be written, or is damaged."""
    before, newest = sorted((left / FOLDER).iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    ended(left, 34)
    is_refused(
        left,
        rf"the run has ended with 34 updates, and {before.name}, its newest good checkpoint, holds \d+: to go on from there "
        rf"would lose \d+ updates and the model of that end; .* move result.json away\n  not used: {newest}: ",
    )
    (left / "result.json").unlink()
    assert Life(left, ASYNCFEDED, resumed=True).live()


@pytest.fixture
def left(folder):
    """A run that was killed, with two checkpoints."""
    assert not Life(folder, ASYNCFEDED).live(35)
    assert len(names(folder)) == 2
    return folder


def is_refused(folder, match, rule=ASYNCFEDED, **settings):
    """With this sentence, and everything is left as it is."""
    before = contents(folder)
    with pytest.raises(ValueError, match=match):
        Life(folder, rule, resumed=True, **settings)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 9}, r"seed \(0 in the run, 9 now\)"),
        ({"training": {"learning_rate": 0.1}}, r"training.learning_rate \(0.05 in the run, 0.1 now\)"),
        ({"rule": {"name": "asyncfeded", "lambda": 0.5}}, r"rule.lambda \(None in the run, 0.5 now\)"),
        ({"heterogeneity": {"slowdown": [2.0]}}, r"heterogeneity.slowdown \(\[1.0\] in the run, \[2.0\] now\)"),
        ({"evaluation": {"average": 3.0}}, r"evaluation.average \(2.0 in the run, 3.0 now\)"),
        ({"threads": 2}, r"threads \(0 in the run, 2 now\)"),
    ],
)
def test_another_config_is_refused_by_the_key_that_differs(left, change, key):
    is_refused(left, rf"a run cannot go on with another {key}; what may change is limits, evaluation, ", **change)


@pytest.mark.parametrize(
    "change",
    [
        {"limits": {"seconds": 3.0}}, {"evaluation": {"every_s": 9.0, "average": 2.0}}, {"checkpoint": {"keep": 7}},
        {"wait": "yield"}, {"device": "cpu"}, {"server_device": "auto"}, {"evaluator": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_may_change_may(left, change):
    life = Life(left, ASYNCFEDED, resumed=True, **change)
    assert life.live()
    assert record.read_record(left).attributes["config"] == (left / "config.toml").read_text() == life.config.to_toml()


def test_a_folder_that_was_moved_goes_on(left):
    there = left.rename(left.with_name("moved"))
    assert Life(there, ASYNCFEDED, resumed=True).live()


def test_a_run_without_a_checkpoint_is_refused(folder):
    assert not Life(folder, ASYNCFEDED, every_updates=0).live(30)
    is_refused(folder, "has no checkpoint to go on from; train with checkpoint.every_s=60")


def test_a_folder_without_a_run_is_refused(folder):
    is_refused(folder, "no such file; give the folder of a run")


def test_a_record_that_lacks_rows_is_refused(left):
    rows = left / "record.h5.updates"
    rows.write_bytes(rows.read_bytes()[: 5 * record.UPDATE.itemsize])
    is_refused(left, r"record.h5 has 5 updates, fewer than the \d+ before .*would have a gap")


def test_a_record_of_another_run_is_refused(left):
    rows = np.fromfile(left / "record.h5.updates", record.UPDATE)
    rows["version"] += 1
    rows.tofile(left / "record.h5.updates")
    is_refused(left, r"record.h5 is not of the run of checkpoint-\d+.h5: its update \d+ made version ")


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, left):
    expected = whole(tmp_path, ASYNCFEDED)
    before, newest = sorted((left / FOLDER).iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    life = Life(left, ASYNCFEDED, resumed=True)
    said = resume.sentences(life.point, 0)
    assert life.point.path == before
    assert said[0].startswith(f"not used: {newest}: has ")
    assert said[1].startswith(f"goes on from {before.name}: ")
    assert life.live()
    assert life.end == expected


def test_another_state_of_the_rule_is_refused(left, monkeypatch):
    kind = rules.RULES["asyncfeded"]
    init = kind.init
    monkeypatch.setattr(kind, "init", lambda *args: init(*args) | {"more": np.zeros(1)})
    is_refused(left, "holds another model, or another state of the rule, than this version of the program")
