"""Runs without MPI that can be killed and gone on with: workers that train by a formula, behind the real clock, server,
record and checkpoints.
"""

import random

import numpy as np
import torch
from torch import nn

from asyncfeded import rules
from asyncfeded.config import Config
from asyncfeded.model.average import Average
from asyncfeded.model.disk import Disk
from asyncfeded.model.flat import FlatModel
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.run import resume
from asyncfeded.run.keeper import Keeper
from asyncfeded.store import record
from asyncfeded.store.checkpoint import FOLDER, Writer
from asyncfeded.store.record import Record
from asyncfeded.tasks.classification import Data
from asyncfeded.training.clock import OrderedClock, Resumed
from asyncfeded.training.evaluation import Evaluator
from asyncfeded.training.heterogeneity import PROFILE
from asyncfeded.training.server import Server
from asyncfeded.training.server_state import ServerSettings, ServerState
from asyncfeded.wire.messages import Arrival
from conftest import METRICS, places

CLIENTS, UPDATES = 3, 36
"""Clients; updates of a whole run."""
RULES = [{"name": name} for name in rules.RULES] + [{"name": "asyncfeded", "distance": "mahalanobis"}]
RULES = [rule | {"M": 4} if rule["name"] in ("area", "fedbuff", "fadas", "ca2fl") else rule for rule in RULES]


class KilledError(Exception):
    """In place of SIGKILL."""


class Toy:
    """A task with statistics in its model, and two test samples."""

    collate = None

    name, metrics = "toy", METRICS.by_name

    def test_data(self):
        return Data(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]), torch.zeros(2, dtype=torch.int64))

    def score(self, model, batch):
        outputs = model(batch[0])
        return {"loss": (outputs.sum().item(), len(outputs)), "accuracy": (int((outputs[:, 0] > 0).sum()), len(outputs))}


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
        w = 0.9 * base + 0.1 * (order.epochs + order.learning_rate) * noise
        if (order.client, order.round) == (1, 3):
            w[0] = torch.nan
        figures = (order.epochs, 4 + order.client, 1, 0.5, 0.0, 0.0)
        scores, measured = tuple(w[:8].double().tolist()), 1.0 + (order.client + order.round) % 5
        return Arrival(order.client, order.round, order.version, *figures, w, scores=scores, measured=measured)

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

    def __init__(
        self, folder, rule, *, num_workers=1, rng=None, resumed=False, limits=None, every_updates=5, disk=False, **config
    ):
        self.folder, self.told, self.kill_in = folder, Told(), -1
        self.config = Config.model_validate(
            {
                "clock": "virtual", "clients": CLIENTS, "run_dir": str(folder), "rule": rule,
                "limits": limits or {"updates": UPDATES}, "evaluation": {"every_s": 1.5, "client_rounds": 2, "average": 2.0},
                "checkpoint": {"every_updates": every_updates},
            } | config
        )  # fmt: skip
        torch.manual_seed(0)
        flat = FlatModel(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
        layout = flat.layout.with_own([("there", (1,)), ("0.weight.momentum_buffer", (2, 3))])
        model = GlobalModel(flat.buffer, layout, CLIENTS, disk=Disk(folder, layout.sent, 2 * CLIENTS) if disk else None)
        rule, epochs, profiles = rules.load_rule(self.config.rule), np.full(CLIENTS, 2), np.zeros(CLIENTS, PROFILE)
        wire, toml = Workers(num_workers, rng or random.Random(0)), self.config.to_toml()
        state = ServerState(model, rule.init(model, epochs), epochs, Average(model.x, self.config.evaluation.average))
        self.point = resume.find(folder, self.config, METRICS, layout, state) if resumed else None
        if at := self.point and self.point.snapshot:
            clock = OrderedClock(wire, Resumed(resume.kept_due(at), due), at.time_s)
            self.record = resume.reopen(self.config, METRICS, places("here"), profiles, self.point)
            resume.restore(state, at)
        else:
            clock = OrderedClock(wire, due)
            self.record = Record(folder / "record.h5", toml, places("here"), profiles, METRICS)
        config = self.config
        self.writer = Writer(folder / FOLDER, config.checkpoint.keep, self.point and self.point.path, self.record.sync)
        self.keeper = Keeper(
            config.checkpoint,
            self.writer,
            self.record,
            lambda server: resume.snapshot(server, self.record, toml, clock.due_s, num_workers, layout),
            self.told,
            at and at.updates,
        )
        settings = ServerSettings(config.limits, config.faults, config.evaluation, METRICS, in_idle_moments=False)
        self.server = Server(clock, rule, state, Evaluator(Toy(), flat, 1, seed=0), settings, observer=self)
        self.tick = self._tick

    def on_update(self, row):
        self.record.updates.append(row)

    def on_evaluation(self, time_s, score):
        self.record.evaluations.append((time_s, score.version, *score.values.values()))

    def on_client_evaluation(self, time_s, arrival):
        told = (time_s, arrival.base_version, arrival.client, arrival.round, *arrival.scores[:2])
        self.record.client_evaluations.append(told)

    def say(self, sentence, kind="", client=-1):
        self.told.say(sentence)

    def _tick(self, server):
        self.record.flush_if_due()
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
            self.record.release()  # what was not written is lost
            return False
        self.keeper.finish()
        self.record.close()
        return True

    @property
    def end(self):
        """What must be the same to the bit: model, statistics, each client's own part, state of the rule, counts, record."""
        tables = record.read_record(self.folder)
        updates, evaluations = tables.updates, tables.evaluations
        told = [name for name in updates.dtype.names if name not in record.MEASURED]
        state = self.server.state
        return {
            "model": state.model.x.numpy().tobytes(),
            "average": state.average.mean.numpy().tobytes(),
            "own": [state.model.own(client).numpy().tobytes() for client in range(CLIENTS)],
            "numbers": (state.model.version, state.updates, state.refused, state.counts.tolist(), self.outcome.seconds),
            "rule": {name: np.asarray(array).tobytes() for name, array in state.rule.items()},
            "updates": {name: updates[name].tobytes() for name in told},
            "evaluations": evaluations.tobytes(),
            "client_evaluations": tables.client_evaluations.tobytes(),
        }


def whole(tmp_path, rule, **settings):
    """The end of the run that nothing disturbs."""
    (tmp_path / "whole").mkdir()
    life = Life(tmp_path / "whole", rule, **settings)
    assert life.live()
    return life.end


ASYNCFEDED = {"name": "asyncfeded"}


def names(folder):
    return [path.name for path in sorted((folder / FOLDER).iterdir())] if (folder / FOLDER).exists() else []


def names_of(*rows):
    return [f"checkpoint-{row:010d}.h5" for row in rows]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
