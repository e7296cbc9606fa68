"""The properties of every rule, as tests that any rule can run: what must be so after each update of a random training."""

import copy
import math
import threading
from abc import abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.model.kernel import CHUNK
from asyncfeded.model.slices import Gather, Slice, cut
from asyncfeded.rules import Rule
from asyncfeded.rules.decision import Decision, State, Update

CLIENTS, PARAMS, STATISTICS, FIRST_EPOCHS = 4, 6, 2, 2


def new_model(params: int = PARAMS, statistics: int = STATISTICS, clients: int = CLIENTS) -> GlobalModel:
    """A global model of zeros, its statistics ones, that all clients were handed out."""
    layout = Layout((Entry("p", (params,), 0), Entry("s", (statistics,), params)), params, params + statistics)
    model = GlobalModel(torch.tensor([0.0] * params + [1.0] * statistics), layout, clients)
    for client in range(clients):
        model.hand_out(client)
    return model


def first_epochs(clients: int = CLIENTS, epochs: int = FIRST_EPOCHS) -> np.ndarray:
    """K of the first rounds, int64 (clients,)."""
    return np.full(clients, epochs, np.int64)


def measure(
    model: GlobalModel, client: int, w: Tensor | list[float], epochs: int = FIRST_EPOCHS, num_samples: int = 10
) -> Update:
    """A client's update, measured as the server does."""
    w = torch.as_tensor(w, dtype=torch.float32)
    tau = model.version - int(model.base_version[client])
    return Update(client, tau, epochs, num_samples * epochs, *model.distances(client, w), w)


def arrive(
    rule: Rule,
    model: GlobalModel,
    state: State,
    client: int,
    delta: Tensor | np.ndarray | list[float],
    epochs: int = FIRST_EPOCHS,
    num_samples: int = 10,
) -> Decision:
    """A client comes back with its base + Delta; each client that gets a reply is handed the global model."""
    w = model.base[client] + torch.as_tensor(delta, dtype=torch.float32)
    decision = rule.on_arrival(measure(model, client, w, epochs, num_samples), model, state)
    for reply in decision.replies:
        model.hand_out(reply.client)
    return decision


class Moment(NamedTuple):
    """What there is after an arrival."""

    w: Tensor
    """The update as the rule left it."""
    sent: Tensor
    """The update as it came."""
    measured: Update
    """What the rule was given."""
    version: int
    """Of the global model before."""
    held: dict[int, Tensor]
    """The bases, before, of the clients that are out."""
    out: set[int]
    """Clients that were training meanwhile."""
    decision: Decision
    model: GlobalModel
    state: State


def drive(rule: Rule, arrivals: int = 120) -> Iterator[Moment]:
    """A training of random walks, clients arriving in random order.

    Parameters are a base and a random step, statistics anything from 0 to 1.
    """
    rng = np.random.default_rng(0)
    model = new_model()
    state = rule.init(model, first_epochs())
    epochs = dict.fromkeys(range(CLIENTS), FIRST_EPOCHS)  # of those that are out training
    for _ in range(arrivals):
        assert epochs, "nobody trains and nobody gets a reply: the run would hang"
        client = int(rng.choice(sorted(epochs)))
        w = model.base[client] + torch.from_numpy(rng.normal(0.1, 1.0, PARAMS + STATISTICS).astype(np.float32))
        w[PARAMS:] = torch.from_numpy(rng.choice([0.0, 1e-6, rng.random(), 1.0], STATISTICS))
        sent, version = w.clone(), model.version
        held = {other: model.base[other].clone() for other in epochs if other != client}
        measured = measure(model, client, w, epochs.pop(client))
        decision = rule.on_arrival(measured, model, state)
        out = set(epochs)
        for reply in decision.replies:
            model.hand_out(reply.client)
            epochs[reply.client] = reply.epochs
        yield Moment(w, sent, measured, version, held, out, decision, model, state)


class Meeting:
    """Threads with a slice of a model each, which bring their numbers together as server ranks do."""

    def __init__(self, slices: int) -> None:
        self._numbers = [np.empty(0)] * slices
        self._all_here = threading.Barrier(slices, timeout=10)

    def gather(self, index: int, numbers: np.ndarray) -> np.ndarray:
        """See `slices.Gather`; `index` says whose numbers these are."""
        self._numbers[index] = numbers
        self._all_here.wait()
        everything = np.concatenate(self._numbers)
        self._all_here.wait()
        return everything


def train_slice(rule: Rule, whole: Layout, held: Slice, gather: Gather | None) -> tuple[list[Decision], Tensor]:
    """What a rule decides on a slice of a model that 12 updates reach, and that slice of the global model."""
    n = whole.num_params
    initial = torch.cat([torch.zeros(n), torch.ones(whole.size - n)])[held.start : held.stop]
    direction = torch.linspace(-1.0, 1.0, whole.size)[held.start : held.stop]
    model = GlobalModel(initial, held.of(whole), CLIENTS, gather=gather)
    for client in range(CLIENTS):
        model.hand_out(client)
    state = rule.init(model, first_epochs())
    decisions = [arrive(rule, model, state, number % CLIENTS, direction / (number + 3)) for number in range(12)]
    return decisions, model.x


class RuleTests:
    """Subclass it in a test file and give `make_rule`; pytest then runs every method that begins with `test`."""

    @abstractmethod
    def make_rule(self) -> Rule:
        """A new rule; every call gives an equal one."""

    def test_the_global_model_stays_finite(self) -> None:
        """Whatever arrives, as long as it is finite."""
        for now in drive(self.make_rule()):
            assert torch.isfinite(now.model.x).all()

    def test_the_global_model_moves(self) -> None:
        """Every parameter of it."""
        *_, last = drive(self.make_rule())
        assert last.model.version > 0
        assert last.model.x[:PARAMS].abs().min() > 0

    def test_the_state_is_arrays_and_tensors_written_in_place(self) -> None:
        """So that a checkpoint can hold it and restore it."""
        rule = self.make_rule()
        for now in drive(rule):
            state = now.state
            assert all(type(array) in (np.ndarray, torch.Tensor) and array.dtype != object for array in state.values())
            assert {key: (array.shape, array.dtype) for key, array in state.items()} == {
                key: (array.shape, array.dtype) for key, array in rule.init(new_model(), first_epochs()).items()
            }

    def test_the_version_counts_up_by_at_most_one_per_arrival(self) -> None:
        """A version is a step of the global model."""
        for now in drive(self.make_rule()):
            assert now.model.version in (now.version, now.version + 1)

    def test_who_gets_a_reply_holds_the_global_model_of_now(self) -> None:
        """Its base is x_t, to the bit."""
        for now in drive(self.make_rule()):
            model = now.model
            for reply in now.decision.replies:
                assert model.base_version[reply.client] == model.version
                assert torch.equal(model.base[reply.client], model.x)

    def test_the_base_of_a_client_that_is_out_is_never_written(self) -> None:
        """Its reply may still be on the way."""
        for now in drive(self.make_rule()):
            for other, base in now.held.items():
                assert torch.equal(now.model.base[other], base)

    def test_only_clients_that_have_come_back_get_a_reply_and_only_one(self) -> None:
        """A client trains one order at a time."""
        for now in drive(self.make_rule()):
            replied = [reply.client for reply in now.decision.replies]
            assert len(set(replied)) == len(replied)
            assert not set(replied) & now.out

    def test_replies_ask_for_at_least_one_epoch(self) -> None:
        """K is an int, at least 1."""
        for now in drive(self.make_rule()):
            assert all(type(reply.epochs) is int and reply.epochs >= 1 for reply in now.decision.replies)

    def test_the_weights_received_are_not_written(self) -> None:
        """The receive buffer belongs to the wire."""
        for now in drive(self.make_rule()):
            assert torch.equal(now.w, now.sent)

    def test_gamma_and_eta_are_not_negative(self) -> None:
        """And eta is finite."""
        for now in drive(self.make_rule()):
            assert now.decision.gamma >= 0
            assert 0 <= now.decision.eta < math.inf

    def test_the_same_arrivals_give_the_same_model_to_the_bit(self) -> None:
        """A rule draws no random number and reads no clock."""
        *_, one = drive(self.make_rule())
        *_, two = drive(self.make_rule())
        assert one.model.x.numpy().tobytes() == two.model.x.numpy().tobytes()
        assert one.decision == two.decision

    def test_slices_of_the_model_lead_to_the_model_to_the_bit(self) -> None:
        """Several server ranks hold a slice each: a rule reduces a vector by `GlobalModel.over_parts` only, dot or norm."""
        params, size = CHUNK + 6, CHUNK + 12
        layout = Layout((Entry("p", (params,), 0), Entry("s", (size - params,), params)), params, size)
        decisions, x = train_slice(self.make_rule(), layout, Slice(0, size), None)
        slices, meeting = cut(size, 2), Meeting(2)

        def train(index: int) -> tuple[list[Decision], Tensor]:
            return train_slice(self.make_rule(), layout, slices[index], partial(meeting.gather, index))

        with ThreadPoolExecutor(2) as threads:
            trained = list(threads.map(train, range(2)))
        assert [each for each, _ in trained] == [decisions] * 2
        assert torch.cat([part for _, part in trained]).numpy().tobytes() == x.numpy().tobytes()

    def test_statistics_stay_between_the_least_and_the_largest_that_were_sent(self) -> None:
        """A variance is never negative, not even by rounding, whatever the step size."""
        for now in drive(self.make_rule(), arrivals=300):
            assert now.model.x[PARAMS:].min() >= 0
            assert now.model.x[PARAMS:].max() <= 1 + 1e-6

    def test_every_parameter_is_treated_alike(self) -> None:
        """Other statistics, or none, lead to the same parameters."""
        rule, outcomes = self.make_rule(), []
        for statistics in (0, 3):
            rng = np.random.default_rng(0)
            model = new_model(PARAMS, statistics)
            state = rule.init(model, first_epochs())
            for number in range(40):
                delta = np.concatenate([rng.normal(0.1, 1.0, PARAMS), np.zeros(statistics)])
                arrive(rule, model, state, number % CLIENTS, delta)
            outcomes.append(model.x[:PARAMS].tolist())
        assert outcomes[0] == outcomes[1]

    def test_a_copy_of_state_and_model_goes_on_to_the_same_model_to_the_bit(self) -> None:
        """What a checkpoint needs: nothing is remembered elsewhere. Continued from every arrival of two FedBuff steps."""
        rule = self.make_rule()
        rng = np.random.default_rng(1)
        script = [(number % CLIENTS, rng.normal(0.1, 1.0, PARAMS + STATISTICS)) for number in range(24)]
        model = new_model()
        state = rule.init(model, first_epochs())
        copies, decisions = [], []
        for client, delta in script:
            copies.append((copy.deepcopy(model), copy.deepcopy(state)))
            decisions.append(arrive(rule, model, state, client, delta))
        for start, (other, its_state) in enumerate(copies):
            again = self.make_rule()
            assert [arrive(again, other, its_state, *item) for item in script[start:]] == decisions[start:]
            assert other.x.numpy().tobytes() == model.x.numpy().tobytes()
            assert {key: np.asarray(array).tobytes() for key, array in its_state.items()} == {
                key: np.asarray(array).tobytes() for key, array in state.items()
            }
