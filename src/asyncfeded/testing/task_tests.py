"""The contract of a task, as tests that any task can run."""

from abc import abstractmethod

import numpy as np
import torch

from asyncfeded.config import Config
from asyncfeded.model.flat import FlatModel
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks import Task, check_task
from asyncfeded.tasks.classification import Batch
from asyncfeded.tasks.contract import CheckedTask
from asyncfeded.training.batches import ClientData, batch_sizes, in_order, read, successive
from asyncfeded.training.client import Trainer
from asyncfeded.training.loader import Loader
from asyncfeded.training.trial import Trial, find_statistics, new_module


class TaskTests:
    """Subclass it in a test file and give `make_task`; pytest then runs every method that begins with `test`."""

    most_clients = 3
    """The task has data for 1 to so many clients."""
    learning_rate = 1e-2
    """One step of SGD with it lowers the loss of client 0."""

    @abstractmethod
    def make_task(self) -> Task:
        """The task, small enough to be loaded in a moment."""

    def test_sizes_are_what_the_clients_get(self) -> None:
        """`sizes` counts the samples that `client_data` gives, as int64 (clients,)."""
        for clients in range(1, self.most_clients + 1):
            sizes = self.make_task().sizes(clients, 5)
            assert sizes.dtype == np.int64
            assert sizes.shape == (clients,)
            for client, size in enumerate(sizes.tolist()):
                data = self._client(client, clients)
                batches = read(data.data, successive(batch_sizes(data.samples, 16, "keep")), (Stream.BATCH, client), "")
                assert sum(got for _, got in batches) == size

    def test_every_answer_is_of_the_right_kind(self) -> None:
        """As the program checks it: types, shapes and lengths."""
        task = CheckedTask(check_task(self.make_task(), "mine"), "mine")
        for client in range(self.most_clients):
            self._client(client, self.most_clients)
        with torch.inference_mode():
            task.score(task.model().eval(), self._test_batches(task, 1)[0])

    def test_a_worker_finds_nothing_wrong(self) -> None:
        """Every batch of every client can be trained, and a round keeps nothing for the next one."""
        task, clients = CheckedTask(self.make_task(), "mine"), range(self.most_clients)
        config = Config.model_validate({"clock": "virtual", "clients": self.most_clients, "limits": {"updates": 1}})
        data = [self._client(client, self.most_clients) for client in clients]
        flat = FlatModel(new_module(task, 5)[0], "cpu", find_statistics(task, 5, torch.device("cpu"), data[0]))
        flat.check_finite()
        Trial(task, flat, Trainer(task, flat, config.training, 0.0, 5), config).run(clients, data.__getitem__)

    def test_the_data_of_a_client_follows_from_the_seed(self) -> None:
        """A model has the same loss, to the bit, on two loads of one client's data."""
        module = self.make_task().model().eval()
        with torch.inference_mode():
            one, two = (self.make_task().loss(module, self._whole(self._client(0, 1))) for _ in range(2))
        assert torch.equal(one, two)

    def test_a_step_inside_a_flat_model_lowers_the_loss(self) -> None:
        """And moves the buffer: the parameters are still views of it."""
        torch.manual_seed(0)
        task = self.make_task()
        flat = FlatModel(task.model())
        batch = self._whole(self._client(0, 1))
        before = flat.buffer.clone()
        optimizer = torch.optim.SGD(flat.module.parameters(), lr=self.learning_rate)
        loss = task.loss(flat.module, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        flat.check_views()
        assert not torch.equal(flat.buffer, before)
        assert task.loss(flat.module, batch) < loss

    def test_the_scores_of_batches_add_up(self) -> None:
        """Sums and counts of the test data in two batches are those of one; all are finite."""
        task = CheckedTask(self.make_task(), "mine")
        module = task.model().eval()
        with torch.inference_mode():
            [whole], parts = ([task.score(module, batch) for batch in self._test_batches(task, n)] for n in (1, 2))
        for name, (total, counted) in whole.items():
            assert np.isfinite(total)
            assert counted > 0
            assert np.allclose(np.sum([part[name] for part in parts], axis=0), (total, counted), rtol=1e-4)

    def _client(self, client: int, clients: int) -> ClientData:
        """A client as a worker prepares it, in batches of 16."""
        task = CheckedTask(self.make_task(), "mine")
        size = int(task.sizes(clients, 5)[client])
        seed_globals(5, Stream.DATA, client)
        return ClientData(Loader(task, torch.device("cpu"), 0, 5).add(task.client_data(client, clients, 5), size), 16)

    def _whole(self, data: ClientData) -> Batch:
        """All samples of a client in a batch."""
        [(batch, _)] = read(data.data, [range(data.samples)], (Stream.BATCH,), "")
        return batch

    def _test_batches(self, task: CheckedTask, batches: int) -> list[Batch]:
        """The test data in so many batches."""
        data, key = Loader(task, torch.device("cpu"), 0, 5).add(task.test_data()), (Stream.EVALUATION,)
        samples = sum(got for _, got in read(data, in_order(data, 16), key, ""))
        return [batch for batch, _ in read(data, successive(batch_sizes(samples, -(-samples // batches), "keep")), key, "")]
