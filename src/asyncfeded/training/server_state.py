"""The state of a server between two updates, which a checkpoint holds so that another server can continue; its settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from asyncfeded.config import Evaluation, Faults, Limits
from asyncfeded.metric import Metrics
from asyncfeded.model.average import Average
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.decision import Reply, State
from asyncfeded.training.evaluation import Score
from asyncfeded.training.rounds import Workload


class ServerSettings(NamedTuple):
    """The settings of a server, from the config."""

    limits: Limits
    """When to stop."""
    faults: Faults
    """What to do about clients that die or that send updates that cannot be merged."""
    evaluation: Evaluation
    """How often to evaluate."""
    metrics: Metrics
    """What an evaluation gives."""
    in_idle_moments: bool
    """Whether evaluations wait for idle moments (wall clock); otherwise they run at their due time (ordered clocks)."""
    workloads: Sequence[Workload] = ()
    """What K means for each client: an update must say as many samples and steps. Empty: clients without data."""
    share: Callable[[int, int], float] | None = None
    """Gives what a client was told in a round about the part of the run that is done, in a replay. None: it follows from
    the limits."""
    sent: int = 0
    """Elements of a message, where the state has a slice of the model; 0: as many as the model says."""
    goes_on: Callable[[], bool] | None = None
    """In a replay: whether anything came later, such as the loss of a client after the last update."""


@dataclass
class ServerState:
    """The state of a server: `resume.snapshot` saves it, `resume.restore` restores it. Rank 0.

    Args:
        model: the global model, with the bases of its clients.
        rule: the state of the rule.
        epochs: int64 (clients,), the K (in epochs or in steps) last sent to each client; before the first round that of it.
        average: follows the global model, where a mean of it is tested; None: the newest one is tested.
    """

    model: GlobalModel
    rule: State
    epochs: np.ndarray
    average: Average | None = None
    rounds: np.ndarray = field(init=False)
    """int64 (clients,), number of rounds that each client was asked for."""
    steps: np.ndarray = field(init=False)
    """int64 (clients,), steps that each client has done in its merged updates."""
    share: np.ndarray = field(init=False)
    """float64 (clients,), part of the run that was done, 0 to 1, when each client got its last order. NaN: it has yet to
    get that order (only in a run that goes on)."""
    learning_rate: np.ndarray = field(init=False)
    """float64 (clients,), the learning rate that each client was sent last; 0: that of the config."""
    counts: np.ndarray = field(init=False)
    """int64 (clients,), number of merged updates of each client."""
    out: np.ndarray = field(init=False)
    """bool (clients,), clients with an order whose update was not taken yet."""
    refused_in_a_row: np.ndarray = field(init=False)
    """int64 (clients,), refusals of each client since its last merged update."""
    lost: np.ndarray = field(init=False)
    """bool (clients,), clients whose worker the server has given up."""
    dropped: np.ndarray = field(init=False)
    """bool (clients,), clients that were refused too often."""
    withheld: tuple[Reply, ...] = ()
    """Replies that the server would have sent after the last update if the run had not stopped."""
    updates: int = 0
    """Number of merged updates, without the refused ones."""
    refused: int = 0
    """Number of refused updates and other messages."""
    score: Score | None = None
    """Result of the last evaluation."""
    taken_s: float = 0.0
    """When the last update was taken, on the run's clock."""
    evaluation_due_s: float = 0.0
    """When the current or next evaluation is due, on the run's clock."""
    busy_s: float = 0.0
    """Processor time spent on updates, from taking to recording them."""
    evaluating_s: float = 0.0
    """Wall time spent on evaluations while training."""
    compute_s: float = 0.0
    """Wall time that the clients spent on the updates taken."""
    wall_before_s: float = 0.0
    """Wall time of training before this server, in a resumed run."""
    workers_before_s: float = 0.0
    """As `wall_before_s`, summed over the workers, whose number may have changed."""

    def __post_init__(self) -> None:
        self.epochs = self.epochs.astype(np.int64)
        self.share, self.learning_rate = np.zeros(len(self.epochs)), np.zeros(len(self.epochs))
        for name in ("rounds", "steps", "counts", "refused_in_a_row"):
            setattr(self, name, np.zeros(len(self.epochs), np.int64))
        for name in ("out", "lost", "dropped"):
            setattr(self, name, np.zeros(len(self.epochs), np.bool_))

    @property
    def tested(self) -> Tensor:
        """float32 (size,), the model that is tested and saved: the global model, or its average."""
        return self.average.mean if self.average else self.model.x

    def follow(self) -> None:
        """Take a new version of the global model into the average, if there is one."""
        if self.average:
            self.average.follow(self.model.x, self.model.version)

    def again(self, client: int) -> Reply:
        """What a client was asked for last."""
        return Reply(client, int(self.epochs[client]), float(self.learning_rate[client]))

    def share_done(self, limits: Limits, now: Callable[[], float]) -> float:
        """The part of the run that is done, 0 to 1, by the nearest of the limits of updates and of seconds.

        Args:
            limits: of the run.
            now: gives the seconds of training so far, on the run's clock.
        """
        updates, seconds = limits.updates, limits.seconds
        by_updates = self.updates / updates if updates else 0.0
        return min(max(by_updates, now() / seconds), 1.0) if seconds else min(by_updates, 1.0)
