"""What a rule is; and asks one, checks what it gives back, and says what is wrong with it, with the rule's own traceback."""

import math
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from asyncfeded.config import INT32_MAX
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.own import CodeError, raised
from asyncfeded.rules.decision import Decision, Reply, State, Update

NUMBERS = (float, int, np.number)
"""What gamma and eta of a decision may be."""
WHOLE = (int, np.integer)
"""What client and K of a reply may be."""


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


@runtime_checkable
class Measures(Rule, Protocol):
    """A rule that asks its clients for a number, which they measure on the model that they are sent (`Update.measured`)."""

    measures: str
    """One of MEASURED. `curvature`: ||g(x_s) - g(x_s - h g)|| / ||h g||, where g is the gradient of the round's first step
    and h such that ||h g|| is 1 % of ||x_s||; it takes one gradient more per round."""


MEASURED = ("", "curvature")
"""What a rule can ask its clients to measure; empty: nothing."""


def measured_for(rule: Rule) -> str:
    """What a rule asks its clients to measure, one of MEASURED."""
    return rule.measures if isinstance(rule, Measures) else ""


class RuleError(CodeError):
    """What is wrong with a rule."""


def versions_held(rule: Rule, clients: int) -> int:
    """How many versions of the model the clients hold at least, once each has been replied to.

    Clients that wait for each other hold one, and the next one while it is handed out; in several groups (`groups` of the
    rule), each its own. A rule with an `M` makes a step for so many updates: no more clients than that are sent the same
    version. Any other rule may make a step for each.
    """
    if isinstance(rule, Waits):
        return min(2 * getattr(rule, "groups", 1), clients)
    return math.ceil(clients / max(1, getattr(rule, "M", 1)))


def init(rule: Rule, model: GlobalModel, epochs: np.ndarray) -> State:
    """See `Rule.init`. Raises RuleError if the rule raises, or gives back something else."""
    try:
        state = rule.init(model, epochs)
    except (Exception, SystemExit) as error:
        raise _fault(rule, "init", error) from None
    if not isinstance(state, dict) or not all(isinstance(value, np.ndarray | Tensor) for value in state.values()):
        raise _wrong(rule, "init", f"gave back {state!r:.200}, expected a dict of arrays and tensors by name")
    for name, value in state.items():
        if isinstance(value, Tensor) and (value.requires_grad or value.dtype == torch.bfloat16):
            what = "requires a gradient" if value.requires_grad else "is torch.bfloat16, which numpy has not"
            raise _wrong(rule, "init", f"{name} of its state {what}, so that no checkpoint can hold it")
    return state


def on_arrival(rule: Rule, round_: int, update: Update, model: GlobalModel, state: State, out: np.ndarray) -> Decision:
    """See `Rule.on_arrival`.

    Args:
        rule: the rule.
        round_: round of the client, for messages.
        update: the update.
        model: the global model.
        state: of the rule.
        out: bool (clients,), who trains now.

    Raises:
        RuleError: the rule raises, or gives back something else, or a reply that no client waits for.
    """
    try:
        decision = rule.on_arrival(update, model, state)
    except (Exception, SystemExit) as error:
        raise _fault(rule, f"on_arrival, round {round_} of client {update.client}", error) from None
    if not (isinstance(decision, Decision) and isinstance(decision.gamma, NUMBERS) and isinstance(decision.eta, NUMBERS)):
        problem = f"gave back {decision!r:.200}, expected Decision(gamma, eta, replies)"
    else:
        problem = _problem(decision.replies, out)
        if not decision.replies and not out.any():
            problem = "replies to nobody, and no client trains: the run would wait for ever"
    if problem:
        raise _wrong(rule, f"on_arrival, round {round_} of client {update.client}", problem)
    return decision


def on_loss(rule: Rule, client: int, model: GlobalModel, state: State, out: np.ndarray) -> tuple[Reply, ...]:
    """See `Waits.on_loss`; none of a rule whose clients do not wait. Arguments and errors: see `on_arrival`."""
    if not isinstance(rule, Waits):
        return ()
    try:
        replies = rule.on_loss(client, model, state)
    except (Exception, SystemExit) as error:
        raise _fault(rule, f"on_loss of client {client}", error) from None
    if problem := _problem(replies, out):
        raise _wrong(rule, f"on_loss of client {client}", problem)
    return replies


def _problem(replies: object, out: np.ndarray) -> str:
    """Why these replies cannot be sent; empty if they can."""
    expected = "expected a tuple of Reply(client, epochs)"
    if not isinstance(replies, tuple):
        return f"gave back the replies {replies!r:.200}, {expected}"
    seen = set[int]()
    for reply in replies:
        if not isinstance(reply, Reply):
            return f"gave back the replies {replies!r:.200}, {expected}"
        client, epochs, rate = reply
        if not (isinstance(client, WHOLE) and isinstance(epochs, WHOLE)):
            return f"gave back {reply!r:.200}, expected Reply(client, epochs) of two whole numbers"
        if not (isinstance(rate, NUMBERS) and 0 <= rate < math.inf):
            return f"gives client {client} the learning rate {rate!r}, expected a number from 0, which is that of the config"
        if not 0 <= client < len(out) or out[client] or client in seen:
            return f"replies to client {client}, which does not wait for a reply"
        if not 1 <= epochs <= INT32_MAX:
            return f"gives client {client} K = {epochs}, expected 1 to {INT32_MAX}"
        seen.add(client)
    return ""


def _fault(rule: Rule, doing: str, error: BaseException) -> RuleError:
    return RuleError(raised(f"rule {type(rule).__name__}, {doing}", error))


def _wrong(rule: Rule, doing: str, what: str) -> RuleError:
    return RuleError(f"rule {type(rule).__name__}, {doing}: {what}")
