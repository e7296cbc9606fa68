"""A client's own test: the model that it was sent, on data of its own that it does not train on. Client ranks."""

from collections.abc import Callable, Iterable
from functools import cache

import torch

from asyncfeded.config import Config
from asyncfeded.model.flat import FlatModel
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks.classification import Data
from asyncfeded.tasks.contract import CheckedTask, TaskError
from asyncfeded.training.batches import in_order, read
from asyncfeded.training.evaluation import Tally
from asyncfeded.training.loader import Loader, Stored
from asyncfeded.wire.messages import NO_SCORES, Order


class HeldOut:
    """Tests the model that lies in `flat` on the held-out data of the clients of this worker.

    Args:
        task: gives the data and the metrics.
        flat: the model; a test leaves its buffer as it is.
        config: of the run.
    """

    def __init__(self, task: CheckedTask, flat: FlatModel, config: Config) -> None:
        self._task, self._flat, self._config = task, flat, config
        self._loader = Loader(task, flat.buffer.device, 0, config.seed)
        self._data = cache(self._load)  # of the clients that live here, and of those that move here

    def try_out(self, clients: Iterable[int]) -> None:
        """Load the data of some clients, and test the model as it stands on the first batch of each.

        Raises:
            TaskError: the task raises something, gives back something wrong, or its model changes while it is tested.
        """
        x = self._flat.buffer.clone()
        for client in clients:
            self._test(client, 0, lambda: True)
        if not torch.equal(self._flat.buffer, x):
            raise TaskError(
                f"task {self._task.name}: a test changes the model, which its client is then to train; in evaluation mode "
                f"(module.eval()) it must change nothing that training changes, or set evaluation.client_rounds = 0"
            )

    def scores(self, order: Order, stopped: Callable[[], bool]) -> tuple[float, ...]:
        """The metrics of the model that the order came with, in the order of the task; NO_SCORES if it is not their turn.

        All random numbers follow from the seed, the client and the number of its round.

        Args:
            order: client and round.
            stopped: is called after every batch; says whether to give up.
        """
        if order.round % self._config.evaluation.client_rounds:
            return NO_SCORES
        values = tuple(self._test(order.client, order.round, stopped).values().values())
        return values + NO_SCORES[len(values) :]

    def _test(self, client: int, number: int, stopped: Callable[[], bool]) -> Tally:
        """Test the model on the batches of a client, until `stopped`."""
        data, tally = self._data(client), Tally(self._task)
        self._flat.as_made.restore()
        seed_globals(self._config.seed, Stream.EVALUATION, client, number)
        self._flat.module.eval()
        key, where = (Stream.EVALUATION, client, number), f"the held-out data of client {client}"
        with torch.no_grad():  # no inference mode: what a module keeps from it could not be trained with
            for batch, _ in read(data, in_order(data, self._config.evaluation.batch_size), key, where):
                tally.add(self._flat.module, batch)
                if stopped():
                    break
        return tally

    def _load(self, client: int) -> Data | Stored:
        # As before its training data: a split that is drawn is the same.
        seed_globals(self._config.seed, Stream.DATA, client)
        return self._loader.add(self._task.held_out(client, self._config.clients, self._config.seed))
