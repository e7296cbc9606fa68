"""Rules: how an update enters the global model. Each file holds one rule.

A rule is a section of the config with two methods. It remembers only its state, a dict of tensors and arrays. It sends
nothing and knows no MPI; it gets finite updates only.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from asyncfeded.config import Settings, choose
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.ace import Ace
from asyncfeded.rules.area import Area
from asyncfeded.rules.asyncfeded import AsyncFedED
from asyncfeded.rules.ca2fl import Ca2fl
from asyncfeded.rules.decision import Decision, Reply, State, Update
from asyncfeded.rules.delay_adaptive import DelayAdaptive
from asyncfeded.rules.delayed_nesterov import DelayedNesterov
from asyncfeded.rules.fadas import Fadas
from asyncfeded.rules.fedasync import FedAsync
from asyncfeded.rules.fedavg import FedAvg
from asyncfeded.rules.fedbuff import FedBuff
from asyncfeded.rules.fedprox import FedProx


class Rule(Protocol):
    """The interface between the server and a rule."""

    proximal: float
    """mu of the proximal term that this rule asks of the clients' local loss; 0 for none."""

    def init(self, model: GlobalModel, epochs: np.ndarray) -> State:
        """The state before the first update.

        Args:
            model: the global model at its start.
            epochs: int64 (clients,), K of each client's first round.

        Raises:
            ValueError: the rule does not allow such a K.
        """

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """Take one update: write `model` and `state` in place; return what was done and which clients get a reply now."""


@runtime_checkable
class Waits(Rule, Protocol):
    """A rule whose clients wait for each other: it must know which clients are lost."""

    def on_loss(self, client: int, model: GlobalModel, state: State) -> tuple[Reply, ...]:
        """A client is lost until it arrives again: write `model` and `state` in place; return who gets a reply now."""


RULES: dict[str, type[Settings]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedasync": FedAsync,
    "fedbuff": FedBuff,
    "asyncfeded": AsyncFedED,
    "delay_adaptive": DelayAdaptive,
    "area": Area,
    "ca2fl": Ca2fl,
    "fadas": Fadas,
    "ace": Ace,
    "delayed_nesterov": DelayedNesterov,
}


def load_rule(table: dict[str, Any]) -> Rule:
    """The rule that a config's section `rule` describes.

    Raises:
        ValueError: an unknown rule, an unknown key or a value out of range.
    """
    rule: Rule = choose(RULES, table, "rule")  # type: ignore[assignment]
    return rule
