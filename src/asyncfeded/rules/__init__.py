"""Rules: how an update enters the global model. Each file holds one rule.

A rule is a section of the config with two methods (contract.py). It remembers only its state, a dict of tensors and arrays.
It sends nothing and knows no MPI; it gets finite updates only.
"""

from typing import Any

from asyncfeded.config import Settings
from asyncfeded.own import load, wrong_methods
from asyncfeded.rules.ace import Ace
from asyncfeded.rules.area import Area
from asyncfeded.rules.asyncfeded import AsyncFedED
from asyncfeded.rules.ca2fl import Ca2fl
from asyncfeded.rules.contract import MEASURED, Measures, Rule, RuleError, Waits, measured_for
from asyncfeded.rules.delay_adaptive import DelayAdaptive
from asyncfeded.rules.delayed_nesterov import DelayedNesterov
from asyncfeded.rules.fadas import Fadas
from asyncfeded.rules.fedadam import FedAdam
from asyncfeded.rules.fedasync import FedAsync
from asyncfeded.rules.fedat import FedAT
from asyncfeded.rules.fedavg import FedAvg
from asyncfeded.rules.fedavgm import FedAvgM
from asyncfeded.rules.fedbuff import FedBuff
from asyncfeded.rules.fedprox import FedProx
from asyncfeded.rules.reach import Reach
from asyncfeded.rules.ringleader import Ringleader
from asyncfeded.rules.ringmaster import Ringmaster

__all__ = ["RULES", "TAKEN", "Measures", "Rule", "Waits", "load_rule", "measured_for"]

TAKEN = ("name",)
"""Keys of the section that are none of the rule's class."""
RULES: dict[str, type[Settings]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedat": FedAT,
    "fedasync": FedAsync,
    "fedbuff": FedBuff,
    "asyncfeded": AsyncFedED,
    "delay_adaptive": DelayAdaptive,
    "area": Area,
    "ca2fl": Ca2fl,
    "fadas": Fadas,
    "ace": Ace,
    "delayed_nesterov": DelayedNesterov,
    "reach": Reach,
    "ringmaster": Ringmaster,
    "ringleader": Ringleader,
}


def load_rule(table: dict[str, Any]) -> Rule:
    """The rule that a config's section `rule` describes.

    Raises:
        ValueError: an unknown rule, an unknown key or a value out of range; or whatever the rule's class raises.
        RuleError: the class is not one of a rule.
    """
    return check_rule(load(RULES, table, "rule", TAKEN), table["name"])


def check_rule(rule: object, name: str) -> Rule:
    """The same object, if it is a rule. Raises RuleError if a method is missing, or takes other arguments."""
    faults = wrong_methods(rule, Rule, (Waits,))
    if not isinstance(getattr(rule, "proximal", None), float | int):
        faults.append("has no number proximal; write `proximal: ClassVar[float] = 0.0`")
    if measured_for(rule) not in MEASURED:  # type: ignore[arg-type]
        faults.append(f"measures {rule.measures!r}, expected one of {MEASURED}")  # type: ignore[attr-defined]
    if faults:
        raise RuleError(f"rule {name}: {'; '.join(faults)}")
    return rule  # type: ignore[return-value]
