"""What a server knows between two updates, and all that a checkpoint must hold so that another server can go on from it."""

from dataclasses import dataclass, field

import numpy as np

from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.decision import Reply, State
from asyncfeded.training.evaluation import Score


@dataclass
class ServerState:
    """The state of a server: `resume.snapshot` saves it, `resume.restore` restores it. Rank 0.

    Args:
        model: the global model, with the bases of its clients.
        rule: the state of the rule.
        epochs: int64 (clients,), K that each client was sent last, before the first round the K of that round.
    """

    model: GlobalModel
    rule: State
    epochs: np.ndarray
    rounds: np.ndarray = field(init=False)
    """int64 (clients,), rounds asked of each client."""
    counts: np.ndarray = field(init=False)
    """int64 (clients,), updates merged of each client."""
    out: np.ndarray = field(init=False)
    """bool (clients,), clients that have an order whose update was not taken yet."""
    refused_in_a_row: np.ndarray = field(init=False)
    """int64 (clients,)."""
    lost: np.ndarray = field(init=False)
    """bool (clients,), clients whose worker was given up."""
    dropped: np.ndarray = field(init=False)
    """bool (clients,), clients that were refused too often."""
    withheld: tuple[Reply, ...] = ()
    """Replies that the last update would have got if the run had not stopped."""
    updates: int = 0
    """Updates merged; those refused are not among them."""
    refused: int = 0
    """Updates and other messages that were not merged."""
    score: Score | None = None
    """Of the last evaluation."""
    taken_s: float = 0.0
    """When the last update was taken, on the run's clock."""
    evaluation_due_s: float = 0.0
    """When the evaluation that runs or comes next was due, on the run's clock."""
    busy_s: float = 0.0
    """Processor time spent on updates, from taking one to having recorded it."""
    evaluating_s: float = 0.0
    """Wall time spent on evaluations while training."""
    compute_s: float = 0.0
    """Wall time that the clients spent on the updates taken."""
    wall_before_s: float = 0.0
    """Wall time of training before this server, in a run that goes on."""

    def __post_init__(self) -> None:
        self.epochs = self.epochs.astype(np.int64)
        for name in ("rounds", "counts", "refused_in_a_row"):
            setattr(self, name, np.zeros(len(self.epochs), np.int64))
        for name in ("out", "lost", "dropped"):
            setattr(self, name, np.zeros(len(self.epochs), np.bool_))
