"""Every rule keeps the same properties, refuses faulty keys by name, and the rule of the tutorial works."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt
from torch.utils._python_dispatch import TorchDispatchMode

from asyncfeded import rules
from asyncfeded.model import kernel
from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules import distances
from asyncfeded.rules.decision import Update
from asyncfeded.testing import RuleTests
from rules.models import CLIENTS, PARAMS, STATISTICS, arrive, drive, first_epochs, measure, new_model

VARIANTS = [
    *({"name": name} for name in rules.RULES),
    *({"name": "fedasync", "staleness": staleness} for staleness in ("hinge", "polynomial")),
    *({"name": "asyncfeded", "distance": distance} for distance in ("l1", "linf", "cosine", "squared_l2", "mahalanobis")),
    *({"name": name, "eta_g": 3.0} for name in ("fedbuff", "ca2fl")),
    {"name": "area", "M": 3},
    {"name": "delay_adaptive", "eta_0": 2.0, "tau_c": 1},
    {"name": "ringmaster", "R": 2},
    {"name": "fedat", "tiers": 2},
]
every_rule = pytest.mark.parametrize("table", VARIANTS, ids=lambda table: "-".join(map(str, table.values())))


# --- every rule


@pytest.mark.parametrize("table", VARIANTS, ids=lambda table: "-".join(map(str, table.values())))
class TestEveryRule(RuleTests):
    """The properties that a stranger's rule is tested for."""

    @pytest.fixture(autouse=True)
    def choose(self, table):
        self.table = table

    def make_rule(self):
        return rules.load_rule(self.table)


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
    assert sorted(reply.client for reply in replies) == [0, 1, 2, 3]
    if table["name"] not in ("asyncfeded", "delayed_nesterov"):
        assert sorted(replies) == [(0, 1, 0.0), (1, 2, 0.0), (2, 3, 0.0), (3, 4, 0.0)]


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
        *(({"name": name}, 0.0) for name in rules.RULES if name not in ("fedprox", "fedasync", "fedat")),
        ({"name": "fedprox", "mu": 0.1}, 0.1),
        ({"name": "fedasync", "rho": 0.2}, 0.2),
        ({"name": "fedat", "mu": 0.3}, 0.3),
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


# --- the documentation


def test_the_rule_of_the_tutorial_works():
    """One step by hand: x = 0 + 0.8 (w - 0) with w = 2."""
    page = (Path(__file__).parents[2] / "docs" / "tutorials" / "own_rule.md").read_text(encoding="utf-8")
    (code,) = re.findall(r'title="inverse.py"\n(.*?)```', page, re.DOTALL)
    names = {}
    exec(code, names)
    rule = names["Inverse"]()
    model = GlobalModel(torch.zeros(1), Layout((Entry("w", (1,), 0),), 1, 1), 1)
    state = rule.init(model, np.array([3]))
    model.hand_out(0)
    done = rule.on_arrival(Update(0, 0, 3, 1, 0.0, 2.0, torch.tensor([2.0])), model, state)
    assert model.x.item() == pytest.approx(1.6)
    assert done == (0.0, 0.8, ((0, 3, 0.0),))
