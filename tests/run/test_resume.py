"""Going on from a checkpoint: the same end to the bit whenever a run was left, on whatever number of workers; and what is
refused. Without MPI: workers that train by a formula, behind the real clock, server, record and checkpoints. Then real jobs.
"""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn

from asyncfeded import rules
from asyncfeded.config import Config
from asyncfeded.model.flat import FlatModel
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.run import resume
from asyncfeded.store import record
from asyncfeded.store.checkpoint import FOLDER, Writer
from asyncfeded.store.record import Record
from asyncfeded.tasks.classification import Data
from asyncfeded.training.clock import OrderedClock, Resumed
from asyncfeded.training.evaluation import Evaluator
from asyncfeded.training.heterogeneity import PROFILE
from asyncfeded.training.server import Server
from asyncfeded.wire.messages import Arrival, Lost
from conftest import Job, places, run_asyncfeded

CLIENTS, UPDATES = 3, 36
"""Clients; updates of a whole run."""
RULES = [{"name": name} for name in rules.RULES] + [{"name": "asyncfeded", "distance": "mahalanobis"}]
RULES = [rule | {"M": 4} if rule["name"] in ("area", "fedbuff", "fadas", "ca2fl") else rule for rule in RULES]


class KilledError(Exception):
    """In place of SIGKILL."""


class Toy:
    """A task with statistics in its model, and two test samples."""

    def test_data(self):
        return Data(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]), torch.zeros(2, dtype=torch.int64))

    def evaluate(self, outputs, targets):
        return outputs.sum().item(), int((outputs[:, 0] > 0).sum()), len(targets)


class Workers:
    """A wire whose workers take one order each and finish in an order drawn by `rng`; what they send follows from the model
    that they were sent, client, round and K. One update is not finite."""

    def __init__(self, num_workers, rng):
        self.rng, self.waiting = rng, [[] for _ in range(num_workers)]

    def reply(self, order, weights, ready, due):
        ready(len(weights))
        self.waiting[order.client % len(self.waiting)].append((due, order, weights.clone()))

    def next(self):
        busy = [orders for orders in self.waiting if orders]
        if not busy or self.rng.random() < 0.3:
            return None
        orders = self.rng.choice(busy)
        orders.sort(key=lambda waiting: waiting[:2])
        _, order, base = orders.pop(0)
        noise = torch.from_numpy(np.random.default_rng([order.client, order.round]).random(len(base), np.float32))
        w = 0.9 * base + 0.1 * order.epochs * noise
        if (order.client, order.round) == (1, 3):
            w[0] = torch.nan
        return Arrival(order.client, order.round, order.version, order.epochs, 4 + order.client, 1, 0.5, 0.0, 0.0, w)

    def release(self, arrival):
        pass

    def pause(self):
        pass

    def stop(self):
        return 0


def due(order, now):
    return now + 0.5 + ((7 * order.client + 3 * order.round) % 5) / 4


class Told:
    """In place of `Progress`."""

    def __init__(self):
        self.said, self.logged = [], []
        self.say, self.log = self.said.append, self.logged.append


class Life:
    """A run from its start, or from its newest checkpoint, to its end or until it is killed; as in run.py."""

    def __init__(self, folder, rule, *, num_workers=1, rng=None, resumed=False, limits=None, every_updates=5, **config):
        self.folder, self.told, self.kill_in = folder, Told(), -1
        self.config = Config.model_validate(
            {
                "clock": "virtual", "clients": CLIENTS, "run_dir": str(folder), "rule": rule,
                "limits": limits or {"updates": UPDATES}, "evaluation": {"every_s": 1.5},
                "checkpoint": {"every_updates": every_updates},
            } | config
        )  # fmt: skip
        torch.manual_seed(0)
        flat = FlatModel(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
        model = GlobalModel(flat.buffer, flat.layout, CLIENTS)
        rule, epochs, lots = rules.load_rule(self.config.rule), np.full(CLIENTS, 2), np.zeros(CLIENTS, PROFILE)
        state, pipe, toml = rule.init(model, epochs), Workers(num_workers, rng or random.Random(0)), self.config.to_toml()
        self.point = resume.find(folder, self.config, flat.layout, state) if resumed else None
        if at := self.point and self.point.snapshot:
            clock = OrderedClock(pipe, Resumed(resume.kept_due(at), due), at.time_s)
            self.record = resume.reopen(self.config, places("here"), lots, self.point)
        else:
            clock = OrderedClock(pipe, due)
            self.record = Record(folder / "record.h5", toml, places("here"), lots)
        settings = self.config.checkpoint
        self.writer = Writer(folder / FOLDER, settings.keep, self.point and self.point.path, self.record.sync)
        self.keeper = resume.Keeper(
            settings, self.writer, lambda it: resume.snapshot(it, toml, clock.due_s), self.told, at and at.updates
        )
        self.server = Server(
            wire=clock, rule=rule, state=state, model=model, evaluator=Evaluator(Toy(), flat, 1), record=self.record,
            limits=self.config.limits, epochs=epochs, evaluation=self.config.evaluation, in_idle_moments=False,
            tick=self._tick, faults=self.config.faults, say=self.told.say,
        )  # fmt: skip
        if at:
            resume.restore(self.server, at)

    def _tick(self, server):
        self.keeper.tick(server)
        if self.writer.busy:
            self.writer._thread.join()  # the same checkpoints in every run of a test, however fast the disk
        self.kill_in -= 1
        if self.kill_in == 0:
            raise KilledError

    def live(self, kill_in=-1):
        """To the end, or until the `kill_in`-th turn of the loop. Returns whether the end was reached."""
        self.kill_in = kill_in
        try:
            self.outcome = self.server.run()
        except KilledError:
            if self.record._thread:
                self.record._thread.join()
            self.record.updates.file.close()  # what was not written is lost
            self.record.evaluations.file.close()
            return False
        self.keeper.finish()
        self.record.close()
        return True

    @property
    def end(self):
        """What must be the same to the bit: model, statistics, state of the rule, counts, record."""
        updates, evaluations, _ = record.read_record(self.folder)
        told = [name for name in updates.dtype.names if name not in ("compute_s", "wait_s", "service_s")]
        server = self.server
        return {
            "model": server.model.x.numpy().tobytes(),
            "numbers": (server.model.version, server.updates, server.refused, server.counts.tolist(), self.outcome.seconds),
            "rule": {name: np.asarray(array).tobytes() for name, array in server.state.items()},
            "updates": {name: updates[name].tobytes() for name in told},
            "evaluations": evaluations.tobytes(),
        }


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without asking git for the commit."""
    monkeypatch.setattr(record, "provenance", lambda: {"asyncfeded": "0", "commit": ""})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def whole(tmp_path, rule, **settings):
    """The end of the run that nothing disturbs."""
    (tmp_path / "whole").mkdir()
    life = Life(tmp_path / "whole", rule, **settings)
    assert life.live()
    return life.end


ASYNCFEDED = {"name": "asyncfeded"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_a_run_killed_anywhere_ends_as_the_whole_one_to_the_bit(tmp_path, folder, rule):
    expected, rng, kills = whole(tmp_path, rule), random.Random(str(rule)), 0
    life = Life(folder, rule, rng=rng)
    while not life.live(rng.randrange(1, 25)):
        kills += 1
        life = Life(folder, rule, num_workers=rng.choice([1, 2, 3]), rng=rng, resumed=True)
    assert life.end == expected
    assert kills > 0
    assert record.read_record(folder).updates["accepted"].sum() == UPDATES == len(record.read_record(folder).updates) - 1


@pytest.mark.parametrize("rule", [{"name": name} for name in ("asyncfeded", "fedavg", "ace")], ids=lambda rule: rule["name"])
@pytest.mark.parametrize(
    "first", [{"updates": 7}, {"updates": 12}, {"seconds": 4.4}, {"seconds": 3.0}, {"accuracy": 0.9}], ids=str
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
    life.server.wall_before_s = 100.0
    life = Life(folder, ASYNCFEDED, resumed=True)
    at = life.point.snapshot
    assert life.live()
    assert life.outcome.wall_s > at.wall_s > 0
    assert life.server.busy_s > at.busy_s > 0


# --- when checkpoints are written


def names(folder):
    return [path.name for path in sorted((folder / FOLDER).iterdir())] if (folder / FOLDER).exists() else []


def names_of(*rows):
    return [f"checkpoint-{row:010d}.h5" for row in rows]


def test_one_at_the_start_and_every_so_many_updates(folder):
    life = Life(folder, ASYNCFEDED, checkpoint={"every_updates": 5, "keep": 99})
    assert not life.live(40)
    rows = len(record.read_record(folder).updates)
    assert names(folder) == names_of(1, 6, 12, 17, 22, 27, 32, 37)
    assert 37 <= rows < 42


def test_the_last_ones_are_kept(folder):
    assert Life(folder, ASYNCFEDED, checkpoint={"every_updates": 5, "keep": 1}).live()
    assert names(folder) == names_of(UPDATES + 1)


def test_without_a_wish_there_is_none(folder):
    assert Life(folder, ASYNCFEDED, every_updates=0).live()
    assert names(folder) == []


def test_an_interrupted_run_writes_one_all_the_same(tmp_path, folder):
    expected = whole(tmp_path, ASYNCFEDED)
    life = Life(folder, ASYNCFEDED, every_updates=0)
    life._tick, life.server._tick = None, lambda server: stop_at(7, life, server)
    assert life.live()
    assert life.outcome.reason == "interrupted by a signal"
    assert names(folder) == names_of(7)
    life = Life(folder, ASYNCFEDED, every_updates=0, resumed=True)
    assert life.live()
    assert life.end == expected


def stop_at(updates, life, server):
    server.interrupted = server.updates >= updates
    life.keeper.tick(server)


def test_a_step_that_a_barrier_took_for_want_of_a_client_is_no_gap(folder):
    """All but one have arrived when that is lost: the step that follows has no row in the record."""
    life = Life(folder, {"name": "fedavg"}, every_updates=0)
    server, take = life.server, life.server._wire._pipe.next

    def lose_the_last():
        waits = server.updates == CLIENTS - 1 and not server.lost.any()
        return Lost(0, (int(np.flatnonzero(server.out)[0]),), "dead") if waits else take()

    def stop_then(server):
        server.interrupted = bool(server.lost.any())
        life.keeper.tick(server)

    server._wire._pipe.next, server._tick = lose_the_last, stop_then
    assert life.live()
    assert (server.model.version, server.record.updates.count) == (1, CLIENTS - 1)
    life = Life(folder, {"name": "fedavg"}, every_updates=0, resumed=True)
    assert life.live()
    assert life.server.updates == UPDATES
    assert life.server.counts.min() > 0


def test_one_that_is_wished_for_is_written_and_the_run_goes_on(folder):
    life = Life(folder, ASYNCFEDED, every_updates=0)
    life.server._tick = lambda server: wish_at(7, life, server)
    assert life.live()
    assert life.server.updates == UPDATES
    assert names(folder) == names_of(7)


def wish_at(updates, life, server):
    if server.updates == updates and not life.told.logged:
        life.keeper.wanted = not life.writer.busy and names(life.folder) == []
    life.keeper.tick(server)


def test_by_wall_time(folder, monkeypatch):
    now = 100.0
    monkeypatch.setattr(resume.time, "monotonic", lambda: now)
    life = Life(folder, ASYNCFEDED, checkpoint={"every_s": 10.0})
    assert (life.keeper.wanted, life.keeper._due(life.server)) == (True, False)
    now += 11.0
    assert not life.keeper._due(life.server)  # nothing is new
    life.server.updates += 1
    assert life.keeper._due(life.server)
    life.record.close()


def test_a_disk_that_takes_no_checkpoint_is_told_of_and_training_goes_on(tmp_path, folder):
    expected = whole(tmp_path, ASYNCFEDED)
    (folder / FOLDER).write_text("in the way")
    life = Life(folder, ASYNCFEDED)
    assert life.live()
    assert life.end == expected
    assert life.told.said[0].startswith(f"checkpoint {folder / FOLDER}/checkpoint-0000000001.h5: ")
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


# --- what is refused


@pytest.fixture
def left(folder):
    """A run that was killed, with two checkpoints."""
    assert not Life(folder, ASYNCFEDED).live(35)
    assert len(names(folder)) == 2
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
        ({"threads": 2}, r"threads \(0 in the run, 2 now\)"),
    ],
)
def test_another_config_is_refused_by_the_key_that_differs(left, change, key):
    is_refused(left, rf"a run cannot go on with another {key}; what may change is limits, evaluation, ", **change)


@pytest.mark.parametrize(
    "change",
    [
        {"limits": {"seconds": 3.0}}, {"evaluation": {"every_s": 9.0}}, {"checkpoint": {"keep": 7}},
        {"wait": "yield"}, {"device": "cpu"}, {"server_device": "auto"},
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


def test_a_run_that_goes_on_is_refused(folder):
    life = Life(folder, ASYNCFEDED)
    is_refused(folder, "the run is going on; wait for its end, or stop it")
    life.record.close()


def test_a_run_without_a_checkpoint_is_refused(folder):
    assert not Life(folder, ASYNCFEDED, every_updates=0).live(30)
    is_refused(folder, "has no checkpoint; give the folder of a run that has written one")


def test_a_folder_without_a_run_is_refused(folder):
    is_refused(folder, "no such file; give the folder of a run")


def test_a_record_that_lacks_rows_is_refused(left):
    rows = left / "record.h5.updates"
    rows.write_bytes(rows.read_bytes()[: 5 * record.UPDATE.itemsize])
    is_refused(left, r"record.h5 has 5 updates and \d+ evaluations, fewer than the \d+ and \d+ before .*would have a gap")


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


# --- real jobs


TOML = """
clock = "virtual"
clients = 4
limits.updates = 40
checkpoint.every_updates = 5
evaluation.every_s = 1.0
heterogeneity.error_probability = 0.2
[task]
name = "digits"
split = "even"
[training]
epochs = 1
[rule]
epochs_max = 2
"""


@pytest.fixture
def jobs(tmp_path):
    (tmp_path / "run.toml").write_text(TOML)
    return tmp_path


def same_rows(one, other):
    (updates, evaluations, _), (others, other_evaluations, _) = record.read_record(one), record.read_record(other)
    told = [name for name in updates.dtype.names if name not in ("compute_s", "wait_s", "service_s")]
    return np.array_equal(updates[told], others[told]) and np.array_equal(evaluations, other_evaluations)


def test_a_job_killed_at_any_time_goes_on_with_other_ranks_to_the_same_end(own_mpi, jobs):
    expected = own_mpi.train(3, "run.toml", "run_dir=whole", cwd=jobs).result
    with Job(jobs, own_mpi.env, "train", "run.toml", "--ranks", 3, "run_dir=run") as job:
        job.until(lambda: len(names(jobs / "run")) == 2)
        time.sleep(random.random())
        job.kill()
    while record.is_going_on(jobs / "run"):  # a process that was killed takes its time to end
        time.sleep(0.01)
    assert not (jobs / "run" / "result.json").exists()
    done = run_asyncfeded("resume", "run", "--ranks", 4, cwd=jobs, env=own_mpi.env)
    assert done.status == 0, str(done)
    assert done.result["model_sha256"] == expected["model_sha256"], str(done)
    assert same_rows(jobs / "run", jobs / "whole")


def test_on_the_wall_clock_a_run_is_kept_stopped_continued_and_replayed(own_mpi, jobs):
    """SIGUSR1 and SIGTERM go to mpiexec, which passes them on to all ranks."""
    if own_mpi.vendor.startswith("Open MPI"):
        pytest.skip("Open MPI's mpiexec kills its ranks half a second after it got SIGTERM")
    wall = ("clock=wall", "clients=2", "checkpoint.every_updates=0", "limits.updates=1000000", "run_dir=run")
    with Job(jobs, own_mpi.env, "train", "run.toml", "--ranks", 3, *wall) as job:
        job.until(lambda: (jobs / "run" / "log.txt").exists() and "accuracy" in (jobs / "run" / "log.txt").read_text())
        assert names(jobs / "run") == []
        os.kill(job.process.pid, signal.SIGUSR1)
        job.until(lambda: len(names(jobs / "run")) == 1)
        os.kill(job.process.pid, signal.SIGTERM)
        status, said = job.end()
    assert status == 75, said
    first = json.loads((jobs / "run" / "result.json").read_text())
    assert first["stopped"] == "interrupted by a signal"
    assert names(jobs / "run")[-1:] == names_of(first["updates"])
    limit = first["updates"] + 10
    done = run_asyncfeded("resume", "run", f"limits.updates={limit}", cwd=jobs, env=own_mpi.env)
    assert done.status == 0, str(done)
    assert (done.result["updates"], len(record.read_record(jobs / "run").updates)) == (limit, limit)
    assert done.result["seconds"] > first["seconds"]
    updates = record.read_record(jobs / "run").updates
    assert updates["version"].tolist() == list(range(1, limit + 1))
    assert (np.diff(updates["time_s"]) >= 0).all()
    for client in range(2):
        rounds = updates["round"][updates["client"] == client]
        assert rounds.tolist() == list(range(len(rounds)))
    again = run_asyncfeded("replay", "run", cwd=jobs, env=own_mpi.env)
    assert again.result["model_sha256"] == done.result["model_sha256"], str(again)


def test_resume_is_refused_where_there_is_no_run(own_mpi, tmp_path):
    done = run_asyncfeded("resume", "nowhere", cwd=tmp_path)
    assert done.status == 2
    assert done.stderr == "asyncfeded: nowhere/record.h5: no such file; give the folder of a run (run_dir)\n"


def test_a_refusal_of_resume_is_told_once_and_leaves_the_run_as_it_is(own_mpi, jobs):
    assert own_mpi.train(2, "run.toml", "limits.updates=6", "run_dir=run", cwd=jobs).status == 0
    before = contents(jobs / "run")
    done = run_asyncfeded("resume", "run", "limits.updates=9", "seed=3", "--ranks", 3, cwd=jobs, env=own_mpi.env)
    assert done.status == 2, str(done)
    assert done.stderr.count("a run cannot go on with another seed (0 in the run, 3 now)") == 1
    assert contents(jobs / "run") == before
