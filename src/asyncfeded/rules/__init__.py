"""How an update enters the global model, one rule per file.

A rule is a section of the config with two methods, and remembers nothing but its state, a dict of numpy arrays. It sends
nothing and knows no MPI; the updates that reach it are finite.
"""

from typing import Any, Protocol

from asyncfeded.config import Settings, choose
from asyncfeded.rules.asyncfeded import AsyncFedED
from asyncfeded.rules.decision import Decision, State, Update
from asyncfeded.staleness import GlobalModel


class Rule(Protocol):
    """What the server asks of a rule."""

    name: str

    def init(self, num_clients: int, epochs: int) -> State:
        """The state before the first update.

        Args:
            num_clients: number of clients.
            epochs: K of every client's first round.

        Raises:
            ValueError: the rule does not allow such a K.
        """

    def on_arrival(self, update: Update, model: GlobalModel, state: State) -> Decision:
        """Take one update: write `model` and `state` in place, and say what was done and who gets a reply now."""


RULES: dict[str, type[Settings]] = {"asyncfeded": AsyncFedED}


def load(table: dict[str, Any]) -> Rule:
    """The rule that a config's section `rule` describes.

    Raises:
        ValueError: an unknown rule, an unknown key or a value out of range.
    """
    rule: Rule = choose(RULES, table, "rule")  # type: ignore[assignment]
    return rule
