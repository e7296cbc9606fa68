"""Properties that every rule keeps, and AsyncFedED against numbers worked by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt

from asyncfeded import rules
from asyncfeded.flat import Entry, Layout
from asyncfeded.rules.decision import Update
from asyncfeded.staleness import GlobalModel

CLIENTS, PARAMS, STATISTICS, FIRST_EPOCHS = 4, 6, 2, 2
every_rule = pytest.mark.parametrize("name", rules.RULES)


def new_model(params=PARAMS, statistics=STATISTICS, clients=CLIENTS):
    layout = Layout((Entry("p", (params,), 0), Entry("s", (statistics,), params)), params, params + statistics)
    model = GlobalModel(torch.zeros(layout.size), layout, clients)
    for client in range(clients):
        model.hand_out(client)
    return model


def send(rule, model, state, client, w, epochs=FIRST_EPOCHS):
    """A client's update to a rule, measured as the server does."""
    w = torch.as_tensor(w, dtype=torch.float32)
    tau = model.version - int(model.base_version[client])
    update = Update(client, tau, epochs, 10 * epochs, *model.distances(client, w), w)
    return rule.on_arrival(update, model, state)


# --- every rule


def drive(rule, arrivals=200):
    """A training of random walks, clients arriving in random order; yields what there is after each arrival.

    `w` is the update as the rule left it and `sent` as it came, `version` the one before it, `held` the bases of the clients
    that were `out` meanwhile.
    """
    rng = np.random.default_rng(0)
    model, state = new_model(), rule.init(CLIENTS, FIRST_EPOCHS)
    epochs = dict.fromkeys(range(CLIENTS), FIRST_EPOCHS)  # of those that are out training
    for _ in range(arrivals):
        assert epochs, "nobody trains and nobody gets a reply: the run would hang"
        client = int(rng.choice(sorted(epochs)))
        w = model.base[client] + torch.from_numpy(rng.normal(0.1, 1.0, PARAMS + STATISTICS).astype(np.float32))
        sent, version = w.clone(), model.version
        held = {other: model.base[other].clone() for other in epochs if other != client}
        decision = send(rule, model, state, client, w, epochs.pop(client))
        out = set(epochs)
        for reply in decision.replies:
            model.hand_out(reply.client)
            epochs[reply.client] = reply.epochs
        yield SimpleNamespace(
            w=w, sent=sent, version=version, held=held, out=out, decision=decision, model=model, state=state
        )


@every_rule
def test_the_global_model_stays_finite(name):
    for now in drive(rules.load({"name": name})):
        assert torch.isfinite(now.model.x).all()


@every_rule
def test_the_global_model_moves(name):
    *_, last = drive(rules.load({"name": name}))
    assert last.model.version > 0
    assert last.model.x[:PARAMS].abs().min() > 0


@every_rule
def test_the_state_is_numpy_arrays_written_in_place(name):
    rule = rules.load({"name": name})
    for now in drive(rule):
        state = now.state
        assert all(type(array) is np.ndarray and array.dtype != object for array in state.values())
        assert {key: (array.shape, array.dtype) for key, array in state.items()} == {
            key: (array.shape, array.dtype) for key, array in rule.init(CLIENTS, FIRST_EPOCHS).items()
        }


@every_rule
def test_the_version_counts_up_by_at_most_one_per_arrival(name):
    for now in drive(rules.load({"name": name})):
        assert now.model.version in (now.version, now.version + 1)


@every_rule
def test_who_gets_a_reply_holds_the_global_model_of_now(name):
    for now in drive(rules.load({"name": name})):
        model = now.model
        for reply in now.decision.replies:
            assert model.base_version[reply.client] == model.version
            assert torch.equal(model.base[reply.client], model.x)


@every_rule
def test_the_base_of_a_client_that_is_out_is_never_written(name):
    """Its reply may still be on the way."""
    for now in drive(rules.load({"name": name})):
        for other, base in now.held.items():
            assert torch.equal(now.model.base[other], base)


@every_rule
def test_only_clients_that_have_come_back_get_a_reply_and_only_one(name):
    for now in drive(rules.load({"name": name})):
        replied = [reply.client for reply in now.decision.replies]
        assert len(set(replied)) == len(replied)
        assert not set(replied) & now.out


@every_rule
def test_replies_ask_for_at_least_one_epoch(name):
    for now in drive(rules.load({"name": name})):
        assert all(type(reply.epochs) is int and reply.epochs >= 1 for reply in now.decision.replies)


@every_rule
def test_the_weights_received_are_not_written(name):
    for now in drive(rules.load({"name": name})):
        assert torch.equal(now.w, now.sent)


@every_rule
def test_gamma_and_eta_are_not_negative(name):
    for now in drive(rules.load({"name": name})):
        assert now.decision.gamma >= 0
        assert 0 <= now.decision.eta < math.inf


@every_rule
def test_the_same_arrivals_give_the_same_model_to_the_bit(name):
    *_, one = drive(rules.load({"name": name}))
    *_, two = drive(rules.load({"name": name}))
    assert one.model.x.numpy().tobytes() == two.model.x.numpy().tobytes()
    assert one.decision == two.decision


@every_rule
def test_an_unknown_key_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"rule: unknown key surprise"):
        rules.load({"name": name, "surprise": 1})


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
        rules.load({"name": name, key: value})


@pytest.mark.parametrize("table", [{}, {"name": "fedup"}])
def test_an_unknown_rule_is_refused_and_the_known_ones_named(table):
    with pytest.raises(ValueError, match=rf"rule\.name = {table.get('name')!r}: unknown rule.*asyncfeded"):
        rules.load(table)


# --- AsyncFedED


def asyncfeded(**keys):
    return rules.load({"name": "asyncfeded", **keys})


def start(rule, clients=2, epochs=2):
    """Two parameters, all clients out with version 0 at (0, 0)."""
    return new_model(2, 0, clients), rule.init(clients, epochs)


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
    assert model.base[0].tolist() == [2.0, 0.0]
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
        rule.init(3, epochs)


@pytest.mark.parametrize("epochs", [2, 6])
def test_first_epochs_on_the_bounds_are_taken(epochs):
    assert asyncfeded(epochs_min=2, epochs_max=6).init(3, epochs)["K"].tolist() == [epochs] * 3


def test_bounds_that_cross_are_refused():
    with pytest.raises(ValueError, match=r"^rule: epochs_min = 5 is above epochs_max = 2"):
        asyncfeded(epochs_min=5, epochs_max=2)


def test_another_rounding_is_refused():
    with pytest.raises(ValueError, match=r"rule: rounding = 'up'.*'nearest' or 'floor'"):
        asyncfeded(rounding="up")


def test_the_paper_s_lambda_is_the_key_not_its_python_name():
    with pytest.raises(ValueError, match=r"unknown key lambda_; did you mean lambda\?"):
        asyncfeded(lambda_=1.0)
