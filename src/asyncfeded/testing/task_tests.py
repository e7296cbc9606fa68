"""The contract of a task, as tests that any task can run."""

from abc import abstractmethod

import numpy as np
import torch

from asyncfeded.config import Config
from asyncfeded.model.flat import FlatModel
from asyncfeded.tasks import Task
from asyncfeded.tasks.contract import CheckedTask
from asyncfeded.training.client import ClientData, Trainer
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
        task = self.make_task()
        for clients in range(1, self.most_clients + 1):
            sizes = task.sizes(clients, 5)
            assert sizes.dtype == np.int64
            assert sizes.shape == (clients,)
            assert sizes.tolist() == [len(task.client_data(client, clients, 5).targets) for client in range(clients)]

    def test_every_answer_is_of_the_right_kind(self) -> None:
        """As the program checks it: types, shapes and lengths."""
        task = CheckedTask(self.make_task(), "mine")
        task.sizes(self.most_clients, 5)
        for client in range(self.most_clients):
            task.client_data(client, self.most_clients, 5)
        with torch.inference_mode():
            task.score(task.model().eval(), task.test_data())

    def test_a_worker_finds_nothing_wrong(self) -> None:
        """Every batch of every client can be trained, and a round keeps nothing for the next one."""
        task, clients = CheckedTask(self.make_task(), "mine"), range(self.most_clients)
        config = Config.model_validate({"clock": "virtual", "clients": self.most_clients, "limits": {"updates": 1}})
        data = [ClientData(task.client_data(client, self.most_clients, 5), 16) for client in clients]
        flat = FlatModel(new_module(task, 5)[0], "cpu", find_statistics(task, 5, torch.device("cpu"), data[0]))
        flat.check_finite()
        Trial(task, flat, Trainer(task, flat, config.training, 0.0, 5), config).run(clients, data.__getitem__)

    def test_the_data_of_a_client_follows_from_the_seed(self) -> None:
        """Two loads of one client's data are equal to the bit."""
        for one, two in zip(self.make_task().client_data(0, 1, 5), self.make_task().client_data(0, 1, 5), strict=True):
            assert torch.equal(one, two)

    def test_a_step_inside_a_flat_model_lowers_the_loss(self) -> None:
        """And moves the buffer: the parameters are still views of it."""
        torch.manual_seed(0)
        task = self.make_task()
        flat = FlatModel(task.model())
        batch = task.client_data(0, 1, 0)
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
        inputs, targets = task.test_data()
        module, half = task.model().eval(), (len(targets) + 1) // 2
        with torch.inference_mode():
            whole = task.score(module, (inputs, targets))
            parts = [task.score(module, (inputs[rows], targets[rows])) for rows in (slice(half), slice(half, None))]
        for name, (total, count) in whole.items():
            assert np.isfinite(total)
            assert count > 0
            assert np.allclose(np.sum([part[name] for part in parts], axis=0), (total, count), rtol=1e-4)
