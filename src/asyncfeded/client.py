"""A client: takes a model, trains K epochs on its own data at its own pace, sends the result, until told to stop."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from asyncfeded.config import Training
from asyncfeded.flat import FlatModel
from asyncfeded.seeds import Stream, seed_torch
from asyncfeded.tasks import Task
from asyncfeded.tasks.classification import Data
from asyncfeded.wire import ClientWire


class Trainer:
    """Trains one client's model in place.

    Args:
        task: loss of the task.
        flat: the client's model; its parameters are trained in their buffer.
        data: the client's data, on the model's device.
        training: how to train.
        seed: of the run.
        client: this client's id.
        slowdown: how many times its own compute time a round takes.
    """

    def __init__(
        self, task: Task, flat: FlatModel, data: Data, training: Training, seed: int, client: int, slowdown: float = 1.0
    ) -> None:
        self._task, self._flat, self._data, self._training = task, flat, data, training
        self._seed, self._client, self._slowdown = seed, client, slowdown
        self._params = [p for p in flat.module.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(
            self._params, lr=training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
        )
        # The proximal term's anchor x_s: a copy of the parameters at the start of a round, only where there is such a term.
        self._anchor = [torch.empty_like(p) for p in self._params] if training.proximal else []
        self.samples, self.steps, self.loss = 0, 0, 0.0

    def round(self, number: int, epochs: int, stopped: Callable[[], bool]) -> bool:
        """Train `epochs` epochs from the model as it stands.

        Everything random follows from seed, client and the number of the round. Afterwards `samples`, `steps` and `loss`
        (mean over the samples seen) tell what was done.

        Args:
            number: how many rounds this client has trained before.
            epochs: K.
            stopped: asked after every step whether to give up.

        Returns:
            Whether the round was finished.
        """
        seed_torch(self._seed, Stream.TRAINING, self._client, number)
        self._optimizer.state.clear()  # momentum starts at zero
        with torch.no_grad():
            for anchor, p in zip(self._anchor, self._params, strict=False):
                anchor.copy_(p)
        self._flat.module.train()
        inputs, targets = self._data
        loss_sum = torch.zeros((), dtype=torch.float64, device=inputs.device)
        self.samples = self.steps = 0
        for _ in range(epochs):
            order = torch.randperm(len(targets)).to(inputs.device)
            for batch in torch.split(order, self._training.batch_size):
                began = time.perf_counter()
                loss_sum += self._step(inputs[batch], targets[batch]).double() * len(batch)
                self.samples += len(batch)
                self.steps += 1
                if self._slowdown > 1:
                    if inputs.is_cuda:
                        torch.cuda.synchronize(inputs.device)
                    time.sleep((self._slowdown - 1) * (time.perf_counter() - began))
                if stopped():
                    return False
        self.loss = float(loss_sum) / self.samples
        self._flat.check_views()
        return True

    def _step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self._optimizer.zero_grad()
        loss = self._task.loss(self._flat.module(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        mu = self._training.proximal
        for anchor, p in zip(self._anchor, self._params, strict=False):
            if p.grad is not None:
                p.grad.add_(p.detach(), alpha=mu).add_(anchor, alpha=-mu)
        self._optimizer.step()
        return loss.detach()


def work(wire: ClientWire, trainer: Trainer, flat: FlatModel, host: Tensor) -> None:
    """The client's loop, until the server says stop. Client ranks.

    Args:
        wire: to the server.
        trainer: of this client.
        flat: the model that the trainer trains.
        host: float32 (size,), the wire's buffer: the model's own where that lies in host memory, else a pinned copy.
    """
    staged = host.data_ptr() != flat.buffer.data_ptr()
    number = 0
    waiting_since = time.perf_counter()
    while (order := wire.receive()) is not None:
        began = time.perf_counter()
        if staged:
            flat.buffer.copy_(host)
        if not trainer.round(number, order.epochs, wire.stopped):
            break
        if staged:
            host.copy_(flat.buffer)
        ended = time.perf_counter()
        wire.send(
            order.version,
            epochs=order.epochs,
            samples=trainer.samples,
            steps=trainer.steps,
            train_loss=trainer.loss,
            compute_s=ended - began,
            wait_s=began - waiting_since,
        )
        number, waiting_since = number + 1, ended
    wire.finish()
