"""When the global model is tested, and what follows from its score: in idle moments, or at the times that are due.

evaluation.py makes the tests, or another rank does (elsewhere.py).
"""

import math
import time
from collections.abc import Callable

from torch import Tensor

from asyncfeded.training.elsewhere import Elsewhere
from asyncfeded.training.evaluation import Evaluator, Score
from asyncfeded.training.server_state import ServerSettings, ServerState


class Evaluations:
    """The tests of one training. Rank 0.

    Args:
        evaluator: tests snapshots of the global model.
        state: of the server; its score and its times of evaluations are written.
        settings: of the server.
        tell: is called with the time and the score of each evaluation.
        whole: gives the whole model, float32 (size,), where the state has a slice of it.

    Attributes:
        failed: why the run cannot continue: an evaluation gave no number; empty: it continues.
    """

    def __init__(
        self,
        evaluator: Evaluator | Elsewhere,
        state: ServerState,
        settings: ServerSettings,
        tell: Callable[[float, Score], None],
        whole: Callable[[Tensor], Tensor],
    ) -> None:
        self._evaluator, self._state, self._settings, self._tell, self._whole = evaluator, state, settings, tell, whole
        self._awaited_s: float | None = None  # when the test was due that another rank makes now, on an ordered clock
        self.failed = ""

    def go_on(self, now_s: float) -> bool:
        """Take a snapshot or test one batch, if it is due and within its share of time. Returns whether that kept it busy.

        Args:
            now_s: seconds of training.
        """
        state, asked = self._state, self._settings.evaluation
        began = time.perf_counter()
        changed = state.model.version != (state.score.version if state.score else 0)
        due = self._evaluator.running or (changed and now_s >= state.evaluation_due_s)
        if not due or state.evaluating_s > asked.share * now_s:
            return False
        if not self._evaluator.running:
            self._evaluator.start(self._whole(state.tested), state.model.version)
            state.evaluation_due_s = now_s
        elif (score := self._evaluator.step()) is not None:
            self._note(score, now_s + time.perf_counter() - began)
            state.evaluation_due_s += asked.every_s
        state.evaluating_s += time.perf_counter() - began
        return not isinstance(self._evaluator, Elsewhere)

    def make_up_to(self, time_s: float) -> None:
        """Make the evaluations that are due up to a time, each in one piece, of the current model."""
        state, limits = self._state, self._settings.limits
        until_s = min(time_s, limits.seconds or math.inf)
        while state.evaluation_due_s <= until_s and not (self.failed or self.good_enough()):
            began = time.perf_counter()
            self.settle()
            version, due_s = state.model.version, state.evaluation_due_s
            if state.score and state.score.version == version:
                self._note(state.score, due_s)
            elif isinstance(self._evaluator, Elsewhere) and not limits.target:
                self._evaluator.start(self._whole(state.tested), version)
                self._awaited_s = due_s
            else:
                self._note(self._evaluator.score(self._whole(state.tested), version), due_s)
            state.evaluation_due_s += self._settings.evaluation.every_s
            state.evaluating_s += time.perf_counter() - began

    def settle(self) -> None:
        """Wait for the score that another rank has yet to give, on an ordered clock. A checkpoint must not miss it.

        The next test waits for the last one, so that a run ends after the same update however long its tests take.
        """
        if self._awaited_s is not None and isinstance(self._evaluator, Elsewhere):
            due_s, self._awaited_s = self._awaited_s, None
            self._note(self._evaluator.finish(), due_s)

    def finish(self, x: Tensor, time_s: float) -> None:
        """Test the final model, float32 (size,), unless that was done."""
        state = self._state
        if state.score is None or state.score.version != state.model.version:
            self._note(self._evaluator.score(x, state.model.version), time_s)

    def good_enough(self) -> str:
        """That the last score reaches the target, as a sentence; empty if it does not."""
        score, target = self._state.score, self._settings.limits.target
        return self._settings.metrics.reached(score.values, target) if score and target else ""

    def _note(self, score: Score, time_s: float) -> None:
        self._state.score = score
        self._tell(time_s, score)
        if (bad := score.not_finite) and self._settings.faults.bad_loss == "refuse":
            self.failed = (
                f"version {score.version} of the model has {bad} on the test data; lower training.learning_rate or the "
                f"rule's step size, or set faults.bad_loss = take if it may be so"
            )
