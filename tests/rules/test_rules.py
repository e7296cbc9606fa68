"""Properties that every rule keeps, and each rule against numbers worked by hand."""

import copy
import math
import re
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, Literal, final

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt
from torch.utils._python_dispatch import TorchDispatchMode

from asyncfeded import rules
from asyncfeded.config import Settings
from asyncfeded.model import kernel
from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules import distances
from asyncfeded.rules.decision import Decision, Reply, State, Update

CLIENTS, PARAMS, STATISTICS, FIRST_EPOCHS = 4, 6, 2, 2
VARIANTS = [
    *({"name": name} for name in rules.RULES),
    *({"name": "fedasync", "staleness": staleness} for staleness in ("hinge", "polynomial")),
    *({"name": "asyncfeded", "distance": distance} for distance in ("l1", "linf", "cosine", "squared_l2", "mahalanobis")),
    *({"name": name, "eta_g": 3.0} for name in ("fedbuff", "ca2fl")),
    {"name": "area", "M": 3},
    {"name": "delay_adaptive", "eta_0": 2.0, "tau_c": 1},
]
every_rule = pytest.mark.parametrize("table", VARIANTS, ids=lambda table: "-".join(map(str, table.values())))
barrier_rule = pytest.mark.parametrize("name", ["fedavg", "fedprox"])


def new_model(params=PARAMS, statistics=STATISTICS, clients=CLIENTS):
    layout = Layout((Entry("p", (params,), 0), Entry("s", (statistics,), params)), params, params + statistics)
    model = GlobalModel(torch.tensor([0.0] * params + [1.0] * statistics), layout, clients)
    for client in range(clients):
        model.hand_out(client)
    return model


def first_epochs(clients=CLIENTS, epochs=FIRST_EPOCHS):
    """K of the first rounds."""
    return np.full(clients, epochs, np.int64)


def measure(model, client, w, epochs=FIRST_EPOCHS, num_samples=10):
    """A client's update, measured as the server does."""
    w = torch.as_tensor(w, dtype=torch.float32)
    tau = model.version - int(model.base_version[client])
    return Update(client, tau, epochs, num_samples * epochs, *model.distances(client, w), w)


def send(rule, model, state, client, w, epochs=FIRST_EPOCHS, num_samples=10):
    """A client's update to a rule."""
    return rule.on_arrival(measure(model, client, w, epochs, num_samples), model, state)


def arrive(rule, model, state, client, delta, **keys):
    """A client comes back with its base + Delta; whoever is replied to is handed the global model."""
    w = model.base[client] + torch.as_tensor(delta, dtype=torch.float32)
    decision = send(rule, model, state, client, w, **keys)
    for reply in decision.replies:
        model.hand_out(reply.client)
    return decision


# --- every rule


def drive(rule, arrivals=120):
    """A training of random walks, clients arriving in random order; yields what there is after each arrival.

    Parameters are a base and a random step, statistics anything from 0 to 1. `w` is the update as the rule left it and
    `sent` as it came, `measured` what the rule was given, `version` the one before it, `held` the bases of the clients that
    were `out` meanwhile.
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
        yield SimpleNamespace(
            w=w,
            sent=sent,
            measured=measured,
            version=version,
            held=held,
            out=out,
            decision=decision,
            model=model,
            state=state,
        )


@every_rule
def test_the_global_model_stays_finite(table):
    for now in drive(rules.load_rule(table)):
        assert torch.isfinite(now.model.x).all()


@every_rule
def test_vectors_lie_where_the_model_does_and_never_meet_others(table, monkeypatch):
    """On torch's device without memory, which refuses to work together with host memory, or to give a number."""
    monkeypatch.setattr(distances, "follow_variance", lambda *_: 0.0)
    for name in ("l1", "linf", "mahalanobis"):
        monkeypatch.setattr(distances, name, lambda *_: (1.0, 1.0))
    monkeypatch.setattr(distances, "dot", lambda *_: 0.0)
    model, rule = new_model(), rules.load_rule(table)
    model._x, model.base = model.x.to("meta"), [base.to("meta") for base in model.base]
    state = rule.init(model, first_epochs())
    assert {array.device.type for array in state.values() if isinstance(array, torch.Tensor)} <= {"meta"}
    assert all(array.size <= CLIENTS for array in state.values() if isinstance(array, np.ndarray))
    for number in range(3 * CLIENTS):
        client, w = number % CLIENTS, torch.zeros(PARAMS + STATISTICS, device="meta")
        rule.on_arrival(Update(client, 0, 2, 20, 1.0, 1.0, w), model, state)
    assert model.x.device.type == "meta"
    assert model.version > 0


@every_rule
def test_the_global_model_moves(table):
    *_, last = drive(rules.load_rule(table))
    assert last.model.version > 0
    assert last.model.x[:PARAMS].abs().min() > 0


@every_rule
def test_the_state_is_arrays_and_tensors_written_in_place(table):
    rule = rules.load_rule(table)
    for now in drive(rule):
        state = now.state
        assert all(type(array) in (np.ndarray, torch.Tensor) and array.dtype != object for array in state.values())
        assert {key: (array.shape, array.dtype) for key, array in state.items()} == {
            key: (array.shape, array.dtype) for key, array in rule.init(new_model(), first_epochs()).items()
        }


@every_rule
def test_the_version_counts_up_by_at_most_one_per_arrival(table):
    for now in drive(rules.load_rule(table)):
        assert now.model.version in (now.version, now.version + 1)


@every_rule
def test_who_gets_a_reply_holds_the_global_model_of_now(table):
    for now in drive(rules.load_rule(table)):
        model = now.model
        for reply in now.decision.replies:
            assert model.base_version[reply.client] == model.version
            assert torch.equal(model.base[reply.client], model.x)


@every_rule
def test_the_base_of_a_client_that_is_out_is_never_written(table):
    """Its reply may still be on the way."""
    for now in drive(rules.load_rule(table)):
        for other, base in now.held.items():
            assert torch.equal(now.model.base[other], base)


@every_rule
def test_only_clients_that_have_come_back_get_a_reply_and_only_one(table):
    for now in drive(rules.load_rule(table)):
        replied = [reply.client for reply in now.decision.replies]
        assert len(set(replied)) == len(replied)
        assert not set(replied) & now.out


@every_rule
def test_replies_ask_for_at_least_one_epoch(table):
    for now in drive(rules.load_rule(table)):
        assert all(type(reply.epochs) is int and reply.epochs >= 1 for reply in now.decision.replies)


@every_rule
def test_the_weights_received_are_not_written(table):
    for now in drive(rules.load_rule(table)):
        assert torch.equal(now.w, now.sent)


@every_rule
def test_gamma_and_eta_are_not_negative(table):
    for now in drive(rules.load_rule(table)):
        assert now.decision.gamma >= 0
        assert 0 <= now.decision.eta < math.inf


@every_rule
def test_the_same_arrivals_give_the_same_model_to_the_bit(table):
    *_, one = drive(rules.load_rule(table))
    *_, two = drive(rules.load_rule(table))
    assert one.model.x.numpy().tobytes() == two.model.x.numpy().tobytes()
    assert one.decision == two.decision


@every_rule
def test_statistics_stay_between_the_least_and_the_largest_that_were_sent(table):
    """A variance is never negative, not even by rounding, whatever the step size."""
    for now in drive(rules.load_rule(table), arrivals=300):
        assert now.model.x[PARAMS:].min() >= 0
        assert now.model.x[PARAMS:].max() <= 1 + 1e-6


@every_rule
def test_every_parameter_is_treated_alike(table):
    """Other statistics, or none, lead to the same parameters."""
    rule, outcomes = rules.load_rule(table), []
    for statistics in (0, 3):
        rng = np.random.default_rng(0)
        model = new_model(PARAMS, statistics)
        state = rule.init(model, first_epochs())
        for number in range(40):
            delta = np.concatenate([rng.normal(0.1, 1.0, PARAMS), np.zeros(statistics)])
            arrive(rule, model, state, number % CLIENTS, delta)
        outcomes.append(model.x[:PARAMS].tolist())
    assert outcomes[0] == outcomes[1]


@every_rule
def test_a_copy_of_state_and_model_goes_on_to_the_same_model_to_the_bit(table):
    """What a checkpoint needs: nothing is remembered elsewhere. Continued from every arrival of two FedBuff steps."""
    rule = rules.load_rule(table)
    rng = np.random.default_rng(1)
    script = [(number % CLIENTS, rng.normal(0.1, 1.0, PARAMS + STATISTICS)) for number in range(24)]
    model = new_model()
    state = rule.init(model, first_epochs())
    copies, decisions = [], []
    for client, delta in script:
        copies.append((copy.deepcopy(model), copy.deepcopy(state)))
        decisions.append(arrive(rule, model, state, client, delta))
    for start, (other, its_state) in enumerate(copies):
        again = rules.load_rule(table)
        assert [arrive(again, other, its_state, *item) for item in script[start:]] == decisions[start:]
        assert other.x.numpy().tobytes() == model.x.numpy().tobytes()
        assert {key: np.asarray(array).tobytes() for key, array in its_state.items()} == {
            key: np.asarray(array).tobytes() for key, array in state.items()
        }


class NoNewVectors(TorchDispatchMode):
    """Fails where torch makes a tensor of more than so many elements in memory of its own."""

    def __init__(self, numel):
        super().__init__()
        self.numel = numel

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {each.untyped_storage().data_ptr() for each in (*args, *(kwargs or {}).values()) if torch.is_tensor(each)}
        if torch.is_tensor(out) and out.untyped_storage().data_ptr() not in known:
            assert out.numel() <= self.numel, f"{func} allocates {out.numel()} elements"
        return out


@every_rule
def test_no_update_allocates_a_vector_of_model_size_and_parts_give_the_same_model(table, monkeypatch):
    outcomes = []
    for chunk in (100, 2):
        monkeypatch.setattr(kernel, "CHUNK", chunk)
        rule, model = rules.load_rule(table), new_model()
        state = rule.init(model, first_epochs())
        rng = np.random.default_rng(2)
        for number in range(24):
            client = number % CLIENTS
            delta = torch.from_numpy(rng.normal(0.1, 1.0, PARAMS + STATISTICS).astype(np.float32))
            update = measure(model, client, model.base[client] + delta)
            with NoNewVectors(chunk):
                decision = rule.on_arrival(update, model, state)
            for reply in decision.replies:
                model.hand_out(reply.client)
        outcomes.append(model.x.tolist())
    assert outcomes[0] == pytest.approx(outcomes[1], rel=1e-5)  # sums of a distance differ in their order


@every_rule
def test_K_is_a_client_s_own(table):
    """Each starts with another; a rule without adaptive K leaves it at that."""
    model, rule = new_model(), rules.load_rule(table)
    state = rule.init(model, np.array([1, 2, 3, 4]))
    replies = [reply for client in range(4) for reply in arrive(rule, model, state, client, [1.0] * 8).replies]
    assert sorted(client for client, _ in replies) == [0, 1, 2, 3]
    if table["name"] not in ("asyncfeded", "delayed_nesterov"):
        assert sorted(replies) == [(0, 1), (1, 2), (2, 3), (3, 4)]


@every_rule
def test_the_record_s_gamma_is_the_euclidean_one_unless_another_is_asked_for(table):
    rule = rules.load_rule(table)
    for now in drive(rule, arrivals=20):
        moved, change = now.measured.moved, now.measured.change
        if "distance" not in table:
            assert now.decision.gamma == moved / change


@pytest.mark.parametrize(
    ("table", "proximal"),
    [
        *(({"name": name}, 0.0) for name in rules.RULES if name not in ("fedprox", "fedasync")),
        ({"name": "fedprox", "mu": 0.1}, 0.1),
        ({"name": "fedasync", "rho": 0.2}, 0.2),
    ],
)
def test_the_proximal_term_that_a_rule_asks_for(table, proximal):
    assert rules.load_rule(table).proximal == proximal


@every_rule
def test_an_unknown_key_is_refused_by_name(table):
    with pytest.raises(ValueError, match=r"rule: unknown key surprise"):
        rules.load_rule({**table, "surprise": 1})


def bounds():
    """(rule, key, a value below its lower bound) of every bounded key of every rule."""
    for name, kind in rules.RULES.items():
        for attribute, field in kind.model_fields.items():
            for bound in field.metadata:
                if isinstance(bound, Ge | Gt):
                    low = bound.ge - 1 if isinstance(bound, Ge) else bound.gt
                    yield pytest.param(name, field.alias or attribute, low, id=f"{name}-{field.alias or attribute}")


@pytest.mark.parametrize(("name", "key", "value"), list(bounds()))
def test_a_value_out_of_range_is_refused_by_key(name, key, value):
    with pytest.raises(ValueError, match=rf"^rule: {key} = {value}: input should be greater than"):
        rules.load_rule({"name": name, key: value})


@pytest.mark.parametrize("table", [{}, {"name": "fedup"}])
def test_an_unknown_rule_is_refused_and_the_known_ones_named(table):
    with pytest.raises(ValueError, match=rf"rule\.name = {table.get('name')!r}: unknown rule.*asyncfeded"):
        rules.load_rule(table)


# --- AsyncFedED


def asyncfeded(**keys):
    return rules.load_rule({"name": "asyncfeded", **keys})


def start(rule, clients=2, epochs=2):
    """Two parameters, all clients out with version 0 at (0, 0)."""
    model = new_model(2, 0, clients)
    return model, rule.init(model, first_epochs(clients, epochs))


def stale_by_two(rule, epochs=2):
    """Client 0 moves the model by (3, 4), then client 1 comes with (0, 2.5) from version 0: gamma = 5 / 2.5 = 2."""
    model, state = start(rule, epochs=epochs)
    send(rule, model, state, 0, [3.0 / rule.lambda_ * rule.epsilon, 4.0 / rule.lambda_ * rule.epsilon])
    assert model.x.tolist() == pytest.approx([3.0, 4.0])
    return model, state, send(rule, model, state, 1, [0.0, 2.5])


def test_a_fresh_update_is_merged_with_lambda_over_epsilon():
    """Nothing has moved: gamma = 0, eta = 3 / 2, and x = 1.5 (2, 4)."""
    rule = asyncfeded(**{"lambda": 3.0, "epsilon": 2.0})
    model, state = start(rule)
    decision = send(rule, model, state, 0, [2.0, 4.0])
    assert (decision.gamma, decision.eta) == (0.0, 1.5)
    assert model.x.tolist() == [3.0, 6.0]


def test_gamma_eta_x_and_K_of_a_stale_update():
    """gamma = 2, eta = 1 / (2 + 1), x = (3, 4) + (0, 2.5) / 3, K = 2 + E[(3 - 2) 1] = 3."""
    model, state, decision = stale_by_two(asyncfeded(gamma_bar=3.0))
    assert decision.gamma == 2.0
    assert decision.eta == pytest.approx(1 / 3)
    assert model.x.tolist() == pytest.approx([3.0, 4.0 + 2.5 / 3])
    assert decision.replies == ((1, 3),)
    assert state["K"][1] == 3


def test_lambda_and_epsilon_of_a_stale_update():
    """eta = 3 / (2 + 0.5) = 1.2, x = (3, 4) + 1.2 (0, 2.5) = (3, 7)."""
    model, _, decision = stale_by_two(asyncfeded(**{"lambda": 3.0, "epsilon": 0.5}))
    assert decision.eta == pytest.approx(1.2)
    assert model.x.tolist() == pytest.approx([3.0, 7.0])


def test_a_merge_is_one_version():
    model, _, _ = stale_by_two(asyncfeded())
    assert model.version == 2
    assert model.base_version.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("step", "nearest", "floor"),
    [
        (0.0, 0, 0),
        (0.4, 0, 0),
        (0.5, 1, 0),
        (0.6, 1, 0),
        (1.5, 2, 1),
        (2.5, 3, 2),
        (-0.4, 0, -1),
        (-0.5, 0, -1),
        (-1.5, -1, -2),
    ],
)
def test_rounding_of_the_step_of_K(step, nearest, floor):
    """E[(gamma_bar - gamma) kappa]: to the nearest integer with halves up, or down."""
    assert asyncfeded(gamma_bar=3.0).next_epochs(5, 3.0 - step) == 5 + nearest
    assert asyncfeded(gamma_bar=3.0, rounding="floor").next_epochs(5, 3.0 - step) == 5 + floor


@pytest.mark.parametrize(("kappa", "expected"), [(0.0, 4), (0.5, 5), (2.0, 8)])
def test_kappa_scales_the_step_of_K(kappa, expected):
    """4 + E[(3 - 1) kappa]."""
    assert asyncfeded(gamma_bar=3.0, kappa=kappa).next_epochs(4, 1.0) == expected


def test_K_stays_within_its_bounds():
    rule = asyncfeded(gamma_bar=3.0, epochs_min=2, epochs_max=6)
    assert rule.next_epochs(5, 0.0) == 6
    assert rule.next_epochs(3, 100.0) == 2


def test_K_of_a_very_stale_client_never_falls_below_1():
    """Client 1 answers every move of 100 by one of 0.01."""
    rule = asyncfeded(kappa=10.0)
    model, state = start(rule)
    for _ in range(5):
        send(rule, model, state, 0, model.base[0] + torch.tensor([100.0, 0.0]))
        decision = send(rule, model, state, 1, model.base[1] + torch.tensor([0.0, 0.01]))
        assert decision.gamma > 1000
        assert decision.replies == ((1, 1),)


def test_K_of_one_client_leaves_the_others_alone():
    _, state, _ = stale_by_two(asyncfeded(gamma_bar=3.0), epochs=4)
    assert state["K"].tolist() == [4 + 3, 4 + 1]


def test_staleness_counts_from_the_download_not_from_the_last_upload():
    """Client 0 uploads (4, 0) and, as lambda is 0.5, downloads x = (2, 0). Client 1, fresh from (0, 0), moves x on:
    gamma = 2 / 6, eta = 0.5 / (1/3 + 1) = 3/8, x = (2, 0) + 3/8 (0, 6) = (2, 2.25). Client 0 comes with (2, 0) + (0, 9):
    gamma = 2.25 / 9 from the download, and would be |(-2, 2.25)| / 9 from the upload.
    """
    rule = asyncfeded(**{"lambda": 0.5})
    model, state = start(rule)
    send(rule, model, state, 0, [4.0, 0.0])
    assert model.x.tolist() == model.base[0].tolist() == [2.0, 0.0]
    send(rule, model, state, 1, [0.0, 6.0])
    assert send(rule, model, state, 0, [2.0, 9.0]).gamma == pytest.approx(0.25)


def test_one_client_alone_is_always_fresh():
    """tau = 0 in every round: x goes on by lambda / epsilon Delta, and eta does not compound."""
    rule = asyncfeded(**{"lambda": 1.0, "epsilon": 2.0})
    model, state = start(rule, clients=1)
    for number in range(1, 11):
        decision = send(rule, model, state, 0, model.base[0] + torch.tensor([2.0, -4.0]))
        assert (decision.gamma, decision.eta) == (0.0, 0.5)
        assert model.x.tolist() == [1.0 * number, -2.0 * number]


def test_eta_of_two_clients_in_turn_does_not_compound():
    """Each meets a model moved once by the other: from the third round on gamma and eta are what they were."""
    rule = asyncfeded(kappa=0.0)
    model, state = start(rule)
    etas = []
    for number in range(40):
        client = number % 2
        etas.append(send(rule, model, state, client, model.base[client] + torch.tensor([1.0, 0.0])).eta)
    assert etas[20:] == pytest.approx([etas[20]] * 20, rel=1e-4)


def test_no_change_of_an_unmoved_model_is_fresh_and_changes_nothing_but_the_version():
    rule = asyncfeded(**{"lambda": 1.0, "epsilon": 4.0})
    model, state = start(rule)
    decision = send(rule, model, state, 0, [0.0, 0.0])
    assert decision == (0.0, 0.25, ((0, 2),))
    assert (model.x.tolist(), model.version) == ([0.0, 0.0], 1)


def test_no_change_against_a_moved_model_is_infinitely_stale_and_changes_nothing_but_the_version():
    rule = asyncfeded()
    model, state = start(rule)
    send(rule, model, state, 0, [3.0, 4.0])
    decision = send(rule, model, state, 1, [0.0, 0.0])
    assert decision == (math.inf, 0.0, ((1, 2),))
    assert (model.x.tolist(), model.version) == ([3.0, 4.0], 2)


def test_the_slightest_change_of_an_unmoved_model_is_fresh():
    rule = asyncfeded()
    model, state = start(rule)
    assert send(rule, model, state, 0, [1e-30, 0.0]).gamma == 0.0


@pytest.mark.parametrize("epochs", [1, 7])
def test_first_epochs_outside_of_the_bounds_are_refused(epochs):
    rule = asyncfeded(epochs_min=2, epochs_max=6)
    with pytest.raises(ValueError, match=rf"training\.epochs = {epochs} is outside the bounds of K, 2 to 6.*rule\.epochs_m"):
        rule.init(new_model(2, 0, 3), first_epochs(3, epochs))


@pytest.mark.parametrize("epochs", [2, 6])
def test_first_epochs_on_the_bounds_are_taken(epochs):
    assert start(asyncfeded(epochs_min=2, epochs_max=6), 3, epochs)[1]["K"].tolist() == [epochs] * 3


def test_bounds_that_cross_are_refused():
    with pytest.raises(ValueError, match=r"^rule: epochs_min = 5 is above epochs_max = 2"):
        asyncfeded(epochs_min=5, epochs_max=2)


def test_another_rounding_is_refused():
    with pytest.raises(ValueError, match=r"rule: rounding = 'up'.*'nearest' or 'floor'"):
        asyncfeded(rounding="up")


def test_the_paper_s_lambda_is_the_key_not_its_python_name():
    with pytest.raises(ValueError, match=r"unknown key lambda_; did you mean lambda\?"):
        asyncfeded(lambda_=1.0)


@pytest.mark.parametrize(
    ("distance", "gamma"),
    [("euclidean", 5 / 2.5), ("l1", 7 / 2.5), ("linf", 4 / 2.5), ("squared_l2", 25 / 6.25), ("cosine", 1 - 10 / 12.5)],
)
def test_gamma_by_distance(distance, gamma):
    """The model has moved by (3, 4), the client by (0, 2.5)."""
    _, _, decision = stale_by_two(asyncfeded(distance=distance))
    assert decision.gamma == pytest.approx(gamma)
    assert decision.eta == pytest.approx(1 / (gamma + 1))


def test_gamma_by_mahalanobis_distance():
    """v is (9, 16) / 2 after client 0, and (9, 16) / 4 + (0, 6.25) / 2 when client 1 is measured: in that order."""
    _, state, decision = stale_by_two(asyncfeded(distance="mahalanobis", variance_decay=0.5, variance_floor=1e-9))
    v = np.array([9, 16]) / 4 + np.array([0, 6.25]) / 2
    assert state["variance"] == pytest.approx(v)
    assert decision.gamma == pytest.approx(math.sqrt((9 / v[0] + 16 / v[1]) / (6.25 / v[1])))


def test_the_floor_of_the_variance_is_in_units_of_its_mean():
    """With a very large one all parameters weigh the same, whatever the size of the updates: the Euclidean gamma."""
    _, _, decision = stale_by_two(asyncfeded(distance="mahalanobis", variance_floor=1e9))
    assert decision.gamma == pytest.approx(2.0)


@pytest.mark.parametrize("distance", ["euclidean", "l1", "linf", "squared_l2", "cosine", "mahalanobis"])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_gamma_is_a_number_for_updates_of_extreme_size(distance, scale):
    rule = asyncfeded(distance=distance)
    model, state = start(rule)
    send(rule, model, state, 0, [3.0 * scale, 4.0 * scale])
    decision = send(rule, model, state, 1, [0.0, 2.5 * scale])
    assert math.isfinite(decision.gamma)
    assert decision.gamma > 0


@pytest.mark.parametrize("distance", ["l1", "linf", "squared_l2", "cosine", "mahalanobis"])
def test_no_change_has_the_same_gamma_by_every_distance(distance):
    rule = asyncfeded(distance=distance)
    model, state = start(rule)
    assert send(rule, model, state, 0, [0.0, 0.0]).gamma == 0.0
    send(rule, model, state, 0, [3.0, 4.0])
    assert send(rule, model, state, 1, [0.0, 0.0]) == (math.inf, 0.0, ((1, 2),))


# --- FedAvg and FedProx


@barrier_rule
def test_a_round_is_the_mean_weighted_with_samples(name):
    """Samples 10, 30, 60 and 100 of 200: 0.05 (20, 0) + 0.15 (0, 20) + 0.3 (10, 10) + 0.5 (2, 4) = (5, 8)."""
    rule = rules.load_rule({"name": name})
    model, state = start(rule, clients=4)
    deltas, samples = [(20, 0), (0, 20), (10, 10), (2, 4)], [10, 30, 60, 100]
    for number in (1, 2):
        etas = [arrive(rule, model, state, i, deltas[i], num_samples=samples[i]).eta for i in (2, 0, 3, 1)]
        assert etas == [0, 0, 0, pytest.approx(0.15)]
        assert model.x.tolist() == pytest.approx([5.0 * number, 8.0 * number])
        assert model.version == number


def test_samples_are_those_of_a_client_whatever_its_K():
    """Clients of 10 and 30 samples; the first trains 3 epochs. 0.25 (4, 0) + 0.75 (0, 4)."""
    rule = rules.load_rule({"name": "fedavg"})
    model, state = start(rule)
    arrive(rule, model, state, 0, [4.0, 0.0], epochs=3, num_samples=10)
    arrive(rule, model, state, 1, [0.0, 4.0], epochs=1, num_samples=30)
    assert model.x.tolist() == pytest.approx([1.0, 3.0])


@barrier_rule
def test_a_round_is_the_same_to_the_bit_in_whatever_order_clients_arrive(name):
    rule, rng = rules.load_rule({"name": name}), np.random.default_rng(3)
    rounds = rng.normal(0.0, 1.0, (2, CLIENTS, PARAMS + STATISTICS)) * [[[1e-4], [1.0], [1e4], [3.0]]]
    outcomes = set()
    for order in permutations(range(CLIENTS)):
        model = new_model()
        state = rule.init(model, first_epochs())
        for deltas in rounds:
            for client in order:
                arrive(rule, model, state, client, deltas[client], num_samples=7 + client)
        outcomes.add(model.x.numpy().tobytes())
    assert len(outcomes) == 1


@barrier_rule
def test_nobody_is_replied_to_before_the_last_and_then_everybody_once(name):
    rule = rules.load_rule({"name": name})
    model, state = start(rule, clients=3, epochs=5)
    for order in permutations(range(3)):
        replies = [arrive(rule, model, state, client, [1.0, 1.0]).replies for client in order]
        assert replies == [(), (), ((0, 5), (1, 5), (2, 5))]


@barrier_rule
def test_a_round_leaves_the_mean_of_the_statistics(name):
    rule = rules.load_rule({"name": name})
    model = new_model(1, 1, clients=2)
    state = rule.init(model, first_epochs(2))
    send(rule, model, state, 1, [0.0, 7.0], num_samples=30)
    send(rule, model, state, 0, [0.0, 3.0], num_samples=10)
    assert model.x.tolist() == pytest.approx([0.0, 6.0])


# --- FedAsync


def test_fedasync_mixes_with_alpha_again_and_again():
    """x = 0.4 (0, 0) + 0.6 (10, 20), and then 0.4 (6, 12) + 0.6 (0, 10): alpha does not compound."""
    rule = rules.load_rule({"name": "fedasync"})
    model, state = start(rule)
    assert send(rule, model, state, 0, [10.0, 20.0]).eta == 0.6
    assert model.x.tolist() == pytest.approx([6.0, 12.0])
    assert send(rule, model, state, 1, [0.0, 10.0]).eta == 0.6
    assert model.x.tolist() == pytest.approx([2.4, 10.8])


@pytest.mark.parametrize("staleness", ["constant", "hinge", "polynomial"])
def test_alpha_of_a_fresh_client_is_the_same_after_many_rounds(staleness):
    rule = rules.load_rule({"name": "fedasync", "staleness": staleness, "alpha": 0.5})
    model, state = start(rule, clients=1)
    assert [arrive(rule, model, state, 0, [1.0, 0.0]).eta for _ in range(50)] == [0.5] * 50


def test_fedasync_with_alpha_1_is_the_last_local_model():
    rule = rules.load_rule({"name": "fedasync", "alpha": 1.0})
    model, state = start(rule)
    for client, w in ((0, [0.3, -7.0]), (1, [0.1, 1e-8]), (0, [-3.3, 1e8])):
        send(rule, model, state, client, w)
        assert torch.equal(model.x, torch.tensor(w))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"staleness": "constant"}, {0: 1, 100: 1}),
        ({"staleness": "hinge", "b": 4, "c": 10.0}, {0: 1, 4: 1, 5: 1 / 11, 6: 1 / 21}),
        ({"staleness": "hinge", "b": 6, "c": 0.5}, {6: 1, 7: 1 / 1.5, 8: 1 / 2}),
        ({"staleness": "polynomial", "p": 0.5}, {0: 1, 3: 1 / 2, 8: 1 / 3}),
        ({"staleness": "polynomial", "p": 2.0}, {0: 1, 1: 1 / 4}),
    ],
)
def test_s_of_tau(keys, expected):
    rule = rules.load_rule({"name": "fedasync", **keys})
    assert {tau: rule.s(tau) for tau in expected} == pytest.approx(expected)


# --- FedBuff


def test_fedbuff_steps_every_M_updates_by_their_weighted_mean():
    """First step: (2 + 4) / 2 of fresh ones. Then client 2 of version 0, s = 2^-0.5, and a fresh client 0."""
    rule = rules.load_rule({"name": "fedbuff", "M": 2, "eta_g": 0.5})
    model, state = start(rule, clients=3)
    assert arrive(rule, model, state, 0, [2.0, 0.0]) == (0.0, 0.0, ((0, 2),))
    assert (model.version, model.x.tolist()) == (0, [0.0, 0.0])
    assert arrive(rule, model, state, 1, [4.0, 0.0]).eta == 0.25
    assert (model.version, model.x.tolist()) == (1, [1.5, 0.0])
    arrive(rule, model, state, 2, [0.0, 8.0])
    arrive(rule, model, state, 1, [1.0, 0.0])
    assert model.x.tolist() == pytest.approx([1.5 + 0.25 * 1.0, 0.25 * 8 / math.sqrt(2)])


def test_fedbuff_of_one_update_without_weights_is_asynchronous_averaging():
    """The sum of all deltas, as stale as they may be."""
    rule = rules.load_rule({"name": "fedbuff", "M": 1, "p": 0.0})
    model, state = start(rule)
    for client, delta in ((0, [1.0, 2.0]), (0, [4.0, 8.0]), (1, [16.0, 32.0])):
        assert arrive(rule, model, state, client, delta).eta == 1.0
    assert model.x.tolist() == [21.0, 42.0]


def test_a_buffer_leaves_the_weighted_mean_of_the_statistics():
    """Fresh 5 (s = 1) and stale 3 (s = 1/2, tau = 3): the mean is (5 + 1.5) / 1.5, its share 1.5 / 2."""
    rule = rules.load_rule({"name": "fedbuff", "M": 2})
    model = new_model(1, 1, clients=2)
    state = rule.init(model, first_epochs(2))
    for _ in range(6):
        send(rule, model, state, 0, [0.0, 1.0])
        model.hand_out(0)
    assert model.version == 3
    send(rule, model, state, 0, [0.0, 5.0])
    send(rule, model, state, 1, [0.0, 3.0])
    assert model.x[1].item() == pytest.approx(0.25 * 1.0 + 0.75 * 6.5 / 1.5)


# --- delay-adaptive


@pytest.mark.parametrize(("tau_c", "expected"), [(0, 2 * 2 / 4), (3, 2 * 3 / 4), (4, 2.0), (10**9, 2.0)])
def test_delay_adaptive_step(tau_c, expected):
    """eta_0 2, two clients, tau 4; tau_c 0 is the number of clients, and beyond all delays the step is constant."""
    rule = rules.load_rule({"name": "delay_adaptive", "eta_0": 2.0, "tau_c": tau_c})
    model, state = start(rule)
    for _ in range(4):
        assert arrive(rule, model, state, 0, [1.0, 0.0]).eta == 2.0
    assert arrive(rule, model, state, 1, [0.0, 1.0]).eta == expected
    assert model.x.tolist() == [8.0, expected]


# --- AREA


def test_area_is_the_mean_of_everybody_s_latest_model():
    """Client 0 is twenty times as fast as client 2; who has not come yet counts with x_0."""
    rule, rng = rules.load_rule({"name": "area"}), np.random.default_rng(4)
    model = new_model(clients=3)
    state = rule.init(model, first_epochs(3))
    latest = np.tile(model.x.numpy(), (3, 1))
    for client in rng.choice(3, 300, p=[0.8, 0.16, 0.04]):
        latest[client] = model.base[client].numpy() + rng.random(PARAMS + STATISTICS)
        assert send(rule, model, state, int(client), latest[client]).eta == pytest.approx(1 / 3)
        model.hand_out(int(client))
        assert model.x.numpy() == pytest.approx(latest.mean(0), rel=1e-5)


def test_area_of_M_updates_waits_for_them():
    """0 and 1 send (4, 0) and (0, 4), then 0 sends (8, 8): y = (8, 8), (0, 4) at the second step."""
    rule = rules.load_rule({"name": "area", "M": 2})
    model, state = start(rule)
    steps = [
        (0, [4.0, 0.0], [0.0, 0.0]),
        (1, [0.0, 4.0], [2.0, 2.0]),
        (0, [8.0, 8.0], [2.0, 2.0]),
        (0, [8.0, 8.0], [4.0, 6.0]),
    ]
    for client, w, expected in steps:
        send(rule, model, state, client, w)
        model.hand_out(client)
        assert model.x.tolist() == expected


# --- CA2FL


def test_ca2fl_with_everybody_fresh_is_the_mean_of_deltas():
    rule, rng = rules.load_rule({"name": "ca2fl", "M": CLIENTS}), np.random.default_rng(5)
    model = new_model()
    state = rule.init(model, first_epochs())
    for _ in range(5):
        deltas = rng.normal(0.0, 1.0, (CLIENTS, PARAMS + STATISTICS))
        expected = model.x[:PARAMS].numpy() + deltas[:, :PARAMS].mean(0)
        for client in rng.permutation(CLIENTS):
            arrive(rule, model, state, int(client), deltas[client])
        assert model.x[:PARAMS].numpy() == pytest.approx(expected, abs=1e-5)


def test_ca2fl_calibrates_with_the_latest_update_of_everybody():
    """As written down: h, h_bar and acc in numpy, clients of different speeds, M = 2."""
    rule, rng = rules.load_rule({"name": "ca2fl", "M": 2, "eta_g": 0.5}), np.random.default_rng(6)
    model, state = start(rule, clients=3)
    x, acc, h, h_bar = np.zeros(2), np.zeros(2), np.zeros((3, 2)), np.zeros(2)
    for number in range(1, 41):
        client, delta = int(rng.choice(3, p=[0.6, 0.3, 0.1])), rng.normal(0.0, 1.0, 2)
        acc += delta - h[client]
        h[client] = delta
        if number % 2 == 0:
            x += 0.5 * (h_bar + acc / 2)
            h_bar, acc = h.mean(0), np.zeros(2)
        assert arrive(rule, model, state, client, delta).eta == (0.0 if number % 2 else 0.25)
        assert model.x.numpy() == pytest.approx(x, abs=1e-5)


# --- FADAS


@pytest.mark.parametrize("betas", [{"beta1": 0.0, "beta2": 0.0}, {}])
def test_the_first_step_of_fadas_is_eta_times_the_sign(betas):
    """m = (1 - beta1) D and v = (1 - beta2) D^2: the ratio is sign(D), 0.1 / sqrt(0.01) = 1 with the defaults."""
    rule = rules.load_rule({"name": "fadas", "M": 1, "eta": 0.5, **betas})
    model = new_model(3, 0, 1)
    state = rule.init(model, first_epochs(1))
    assert arrive(rule, model, state, 0, [3.0, -0.01, 0.0]).eta == 0.5
    assert model.x.tolist() == pytest.approx([0.5, -0.5, 0.0], rel=1e-4)


def test_fadas_as_written_down():
    rule = rules.load_rule({"name": "fadas", "M": 2, "eta": 0.3, "beta1": 0.5, "beta2": 0.7, "epsilon": 0.1})
    rng = np.random.default_rng(7)
    model, state = start(rule)
    x, m, v, v_max = np.zeros((4, 2))
    for scale in (1.0, 5.0, 0.1, 0.1):
        deltas = scale * rng.normal(0.0, 1.0, (2, 2))
        m = 0.5 * m + 0.5 * deltas.mean(0)
        v = 0.7 * v + 0.3 * deltas.mean(0) ** 2
        v_max = np.maximum(v_max, v)
        x = x + 0.3 * m / (np.sqrt(v_max) + 0.1)
        assert [arrive(rule, model, state, client, deltas[client]).eta for client in (0, 1)] == [0.0, 0.3]
        assert model.x.numpy() == pytest.approx(x, rel=1e-5)


def test_fadas_bounds_its_step_by_the_longest_delay_of_the_buffer():
    """Client 1 comes with tau 4, and client 0 after it; the next buffer is fresh again."""
    rule = rules.load_rule({"name": "fadas", "M": 2, "eta": 0.9, "tau_c": 3})
    model, state = start(rule)
    for _ in range(8):
        decision = arrive(rule, model, state, 0, [1.0, 1.0])
    assert (model.version, decision.eta) == (4, 0.9)
    etas = [arrive(rule, model, state, client, [1.0, 1.0]).eta for client in (1, 0, 0, 0)]
    assert etas == [0.0, 0.25, 0.0, 0.9]


# --- ACE


@pytest.mark.parametrize(("eta_g", "expected"), [(0.0, 1 / 3), (0.7, 0.7)])
def test_ace_steps_by_the_mean_of_everybody_s_latest_update(eta_g, expected):
    rule, rng = rules.load_rule({"name": "ace", "eta_g": eta_g}), np.random.default_rng(8)
    model, state = start(rule, clients=3)
    x, g = np.zeros(2), np.zeros((3, 2))
    for _ in range(50):
        client, delta = int(rng.choice(3, p=[0.6, 0.3, 0.1])), rng.normal(0.0, 1.0, 2)
        g[client] = delta
        x += expected * g.mean(0)
        assert arrive(rule, model, state, client, delta).eta == pytest.approx(expected / 3)
        assert model.x.numpy() == pytest.approx(x, rel=1e-4, abs=1e-5)


def test_rounding_does_not_stay_in_the_mean_of_ace():
    """A first update of 1e8 rounds off the third of 0.3; n steps after it is replaced nothing is left of it."""
    rule = rules.load_rule({"name": "ace"})
    model, state = start(rule, clients=3)
    arrive(rule, model, state, 0, [1e8, 1e8])
    for number in range(1, 10):
        client = number % 3
        send(rule, model, state, client, model.base[client] + 0.0)
        model.hand_out(client)
    assert state["g_bar"].tolist() == [0.0, 0.0]


# --- delayed Nesterov


def test_delayed_nesterov_as_written_down():
    rule, rng = rules.load_rule({"name": "delayed_nesterov", "eta": 0.6, "beta": 0.5}), np.random.default_rng(9)
    model, state = start(rule, clients=3)
    x, buf, m = np.zeros((3, 2))
    for number in range(1, 31):
        client, delta = int(rng.choice(3, p=[0.6, 0.3, 0.1])), rng.normal(0.0, 1.0, 2)
        x, buf = x + 0.6 * delta / 3, buf + delta
        if number % 3 == 0:
            m = 0.5 * m + buf / 3
            x, buf = x + 0.6 * 0.5 * m, np.zeros(2)
        assert arrive(rule, model, state, client, delta).eta == pytest.approx(0.2)
        assert model.x.numpy() == pytest.approx(x, rel=1e-4, abs=1e-5)
        assert model.version == number


def test_local_epochs_are_in_proportion_to_the_epochs_done():
    """First K 4. Until client 1 has come, K stays; then 12 and 4 epochs are done, 8 in the mean."""
    rule = rules.load_rule({"name": "delayed_nesterov"})
    model, state = start(rule, epochs=4)
    assert [arrive(rule, model, state, 0, [1.0, 0.0], epochs=4).replies for _ in range(3)] == [((0, 4),)] * 3
    assert arrive(rule, model, state, 1, [1.0, 0.0], epochs=4).replies == ((1, 2),)  # 4 * 4 / 8
    assert arrive(rule, model, state, 0, [1.0, 0.0], epochs=4).replies == ((0, 6),)  # 4 * 16 / 10 = 6.4
    assert state["K"].tolist() == [6, 2]


def test_local_epochs_settle_where_everybody_arrives_equally_often():
    """A client three times as fast is asked for three times the epochs, and goes on to be: not back and forth."""
    rule = rules.load_rule({"name": "delayed_nesterov", "epochs_max": 100})
    model, state = start(rule, epochs=20)
    seconds_per_epoch, K, due = (1.0, 3.0), [20, 20], [20.0, 60.0]
    for _ in range(200):
        client = due.index(min(due))
        K[client] = arrive(rule, model, state, client, [0.1, 0.0], epochs=K[client]).replies[0].epochs
        due[client] += K[client] * seconds_per_epoch[client]
    assert K == [30, 10]


def test_local_epochs_stay_within_their_bounds():
    rule = rules.load_rule({"name": "delayed_nesterov", "epochs_min": 2, "epochs_max": 5})
    model, state = start(rule, epochs=4)
    for _ in range(9):
        arrive(rule, model, state, 0, [1.0, 0.0], epochs=4)
    assert arrive(rule, model, state, 1, [1.0, 0.0], epochs=4).replies == ((1, 2),)
    assert arrive(rule, model, state, 0, [1.0, 0.0], epochs=4).replies == ((0, 5),)


def test_bounds_of_local_epochs_are_checked():
    with pytest.raises(ValueError, match=r"^rule: epochs_min = 5 is above epochs_max = 2"):
        rules.load_rule({"name": "delayed_nesterov", "epochs_min": 5, "epochs_max": 2})
    with pytest.raises(ValueError, match=r"training\.epochs = 11 is outside the bounds of K, 1 to 10"):
        start(rules.load_rule({"name": "delayed_nesterov"}), epochs=11)


# --- the documentation


def test_the_rule_in_the_readme_works():
    """One step by hand: x = 0 + 0.5 (w - 0) with w = 2."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(@final.*?)```", readme, re.DOTALL)
    names = {"Literal": Literal, "ClassVar": ClassVar, "final": final, "np": np, "Settings": Settings}
    names |= {"GlobalModel": GlobalModel, "State": State, "Update": Update, "Decision": Decision, "Reply": Reply}
    exec(code, names)
    rule = names["Constant"]()
    model = GlobalModel(torch.zeros(1), Layout((Entry("w", (1,), 0),), 1, 1), 1)
    state = rule.init(model, np.array([3]))
    model.hand_out(0)
    done = rule.on_arrival(Update(0, 0, 3, 1, 0.0, 2.0, torch.tensor([2.0])), model, state)
    assert model.x.item() == 1.0
    assert done == (0.0, 0.5, ((0, 3),))
