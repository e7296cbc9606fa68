"""The tests of the server run it without MPI with these: a script of arrivals goes in, replies and a record come out.

The model has two parameters and starts at (0, 0); the test data is three inputs in three batches, with outputs a, b and
a + b of a model (a, b), whose mean is the loss and whose share above 0 is the accuracy.
"""

from itertools import cycle

import numpy as np
import torch
from torch import nn

from asyncfeded.config import Evaluation, Faults, Limits
from asyncfeded.model.average import Average
from asyncfeded.model.flat import FlatModel
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.asyncfeded import AsyncFedED
from asyncfeded.rules.decision import Decision, Reply
from asyncfeded.store import record
from asyncfeded.tasks.classification import Data
from asyncfeded.testing import FakeWire
from asyncfeded.training.evaluation import Evaluator
from asyncfeded.training.heterogeneity import PROFILE
from asyncfeded.training.server import Server
from asyncfeded.training.server_state import ServerSettings, ServerState
from conftest import METRICS, places


class Toy:
    """A task of three test inputs."""

    name, metrics, collate = "toy", METRICS.by_name, None

    def test_data(self):
        return Data(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.zeros(3, dtype=torch.int64))

    def score(self, model, batch):
        outputs = model(batch[0])
        return {"loss": (outputs.sum().item(), len(outputs)), "accuracy": (int((outputs > 0).sum()), len(outputs))}


class Barrier:
    """A rule that answers nobody until all clients have arrived: their mean is the next model."""

    def init(self, model, epochs):
        return {"sum": np.zeros(2, np.float32), "arrived": np.zeros(len(epochs), bool)}

    def on_arrival(self, update, model, state):
        state["sum"] += update.weights.numpy()
        state["arrived"][update.client] = True
        if not state["arrived"].all():
            return Decision(0.0, 0.0, ())
        clients = len(state["arrived"])
        model.x.copy_(torch.from_numpy(state["sum"] / clients))
        model.version += 1
        state["sum"][:], state["arrived"][:] = 0, False
        return Decision(0.0, 1.0, tuple(Reply(client, 7) for client in range(clients)))


class Bench:
    """A server with all that it needs, two clients, K = 2 at first; `run` trains."""

    def __init__(
        self,
        folder,
        script,
        *,
        updates=0,
        seconds=0.0,
        target=0.0,
        goal="accuracy",
        client_rounds=0,
        every_s=1e3,
        share=1.0,
        rule=None,
        statistics=0,
        own=0,
        workloads=(),
        average=0.0,
        **faults,
    ):
        module = nn.Linear(2, 1, bias=False)
        if statistics:
            module.register_buffer("statistics", torch.zeros(statistics))
        flat = FlatModel(module)
        flat.buffer.zero_()
        rule = rule or AsyncFedED(**{"lambda": 1.0}, epsilon=0.5, gamma_bar=3.0, kappa=1.0)
        model = GlobalModel(flat.buffer, flat.layout.with_own([("m", (own,))] if own else []), 2)
        self.wire = FakeWire(script)
        self.evaluator = Evaluator(Toy(), flat, batch_size=1, seed=0)
        self.record = record.Record(folder / "record.h5", "", places("here"), np.zeros(2, PROFILE), METRICS)
        self.ticks, self.said, self.tested = 0, [], []
        epochs = np.array([2, 2])
        self.server = Server(
            wire=self.wire,
            rule=rule,
            state=ServerState(model, rule.init(model, epochs), epochs, Average(model.x, average) if average else None),
            evaluator=self.evaluator,
            settings=ServerSettings(
                Limits(updates=updates, seconds=seconds, target=target),
                Faults(**faults),
                Evaluation(every_s=every_s, share=share, client_rounds=client_rounds),
                METRICS._replace(goal=goal),
                in_idle_moments=True,
                workloads=workloads,
            ),
            observer=self,
        )
        self._folder = folder
        step = self.evaluator.step
        self.evaluator.step = lambda: self.wire.events.append("batch") or step()

    def on_update(self, row):
        self.record.updates.append(row)

    def on_evaluation(self, time_s, score):
        self.record.evaluations.append((time_s, score.version, *score.values.values()))

    def on_client_evaluation(self, time_s, arrival):
        self.tested.append((arrival.client, arrival.round, arrival.scores))

    def tick(self, server):
        assert server is self.server
        self.record.flush_if_due()
        self.ticks += 1

    def say(self, sentence, kind="", client=-1):
        self.said.append(sentence)

    def run(self):
        self.outcome = self.server.run()
        assert self.wire.events.count("stop") == 1
        self.record.close()
        tables = record.read_record(self._folder)
        self.rows, self.evaluations = tables.updates, tables.evaluations
        return self


FIRST = (1, [1.0, 1.0])
"""An update before an evaluation: an untrained model is not evaluated."""


def flood():
    """Updates from both clients in turn, without end or pause."""
    return cycle([(0, [1.0, 0.0]), (1, [0.0, 1.0])])


HAND_WORKED = [(0, [1.5, 2.0]), (1, [6.0, 8.0]), (0, [3.0, 5.0])]
"""lambda = 1, epsilon = 0.5, gamma_bar = 3, kappa = 1, K = 2 at first, halves rounded up:

client 0 from (0, 0): moved 0, change 2.5, gamma 0, eta 1/0.5 = 2; x = (3, 4); K = 2 + E[3] = 5
client 1 from (0, 0): moved 5, change 10, gamma 0.5, eta 1/1 = 1; x = (9, 12); K = 2 + E[2.5] = 5
client 0 from (3, 4): moved |(6, 8)| = 10, change 1, gamma 10, eta 1/10.5; x = (9, 12 + 2/21); K = 5 + E[-7] = 1, the least
"""
