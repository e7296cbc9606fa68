"""A client receives a model, trains K epochs on its own data at its own pace, and sends the result, until it must stop."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from asyncfeded.config import Training
from asyncfeded.model.flat import FlatModel
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks.classification import Batch
from asyncfeded.tasks.contract import CheckedTask, TaskError, check_loss, fault
from asyncfeded.training.batches import ClientData, batch_sizes, read_round
from asyncfeded.training.kept import Kept
from asyncfeded.wire.client_wire import ClientWire
from asyncfeded.wire.messages import Order


class Trainer:
    """Trains the models of clients in place, one at a time.

    Args:
        task: gives the loss.
        flat: the model; its parameters are trained in its buffer.
        training: how to train.
        proximal: mu of the proximal term.
        seed: seed of the run.
    """

    def __init__(self, task: CheckedTask, flat: FlatModel, training: Training, proximal: float, seed: int) -> None:
        self._task, self._flat, self._seed, self._mu = task, flat, seed, proximal
        self._last_batch, self._name = training.last_batch, task.name
        self._params = [p for p in flat.module.parameters() if p.requires_grad]
        # The function behind torch.optim.SGD. The class would import torch._dynamo: 1.2 s of processor time on every worker.
        self._descend = partial(
            sgd,
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        self._momentum: list[Tensor | None] = []  # by parameter
        self._names = [f"{name}.momentum_buffer" for name, p in flat.module.named_parameters() if p.requires_grad]
        self._kept = Kept(flat) if flat.layout.own else None
        # The anchor x_s of the proximal term: a copy of the parameters at the start of a round; only with such a term.
        self._anchor = [torch.empty_like(p) for p in self._params] if proximal else []
        self.samples, self.steps, self.loss = 0, 0, 0.0

    def round(self, order: Order, client_data: ClientData, stopped: Callable[[], bool]) -> bool:
        """Train K epochs from the model as it stands.

        All random numbers follow from the seed, the client and the number of its round. Afterwards `samples`, `steps` and
        `loss` (mean over the samples seen) describe the round.

        Args:
            order: client, round and K.
            client_data: data and pace of this client.
            stopped: is called after every step; says whether to give up.

        Returns:
            Whether the round was finished.
        """
        self._flat.as_made.restore()
        seed_globals(self._seed, Stream.TRAINING, order.client, order.round)
        self._momentum = [None] * len(self._params)
        if self._kept:
            kept = self._kept.load()
            self._momentum = [kept.get(name) for name in self._names]
        with torch.no_grad():
            for anchor, p in zip(self._anchor, self._params, strict=False):
                anchor.copy_(p)
        self._flat.module.train()
        sizes = batch_sizes(client_data.samples, client_data.batch_size, self._last_batch)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._flat.buffer.device)
        self.samples = self.steps = 0
        began = time.perf_counter()
        for batch, count in read_round(client_data, sizes, order.epochs * len(sizes), order.client, order.round):
            try:
                loss = self._loss(order, batch)
            except (Exception, SystemExit) as error:
                doing = f"round {order.round} of client {order.client}, a batch of {count}"
                raise fault(self._name, doing, error) from None
            self._step()
            loss_sum += loss.double() * count
            self.samples += count
            self.steps += 1
            if client_data.slowdown > 1:
                if loss_sum.is_cuda:
                    torch.cuda.synchronize(loss_sum.device)
                time.sleep((client_data.slowdown - 1) * (time.perf_counter() - began))
            if stopped():
                return False
            began = time.perf_counter()
        self.loss = float(loss_sum) / self.samples
        if self._kept:
            pairs = zip(self._names, self._momentum, strict=True)
            self._kept.store({name: momentum for name, momentum in pairs if momentum is not None})
        try:
            self._flat.check_views()
        except ValueError as error:
            raise TaskError(f"task {self._name}, round {order.round} of client {order.client}: {error}") from None
        return True

    def _loss(self, order: Order, batch: Batch) -> Tensor:
        """The loss of a batch, with its gradients; the task's code."""
        for p in self._params:
            p.grad = None
        loss = self._task.loss(self._flat.module, batch)
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except (AttributeError, RuntimeError):
            check_loss(self._name, loss, f"loss in round {order.round} of client {order.client}")
            raise
        return loss.detach().reshape(())

    def _step(self) -> None:
        """A step of SGD with the gradients of the batch."""
        for anchor, p in zip(self._anchor, self._params, strict=False):
            if p.grad is not None:
                p.grad.add_(p.detach(), alpha=self._mu).add_(anchor, alpha=-self._mu)
        trained = {i: p.grad for i, p in enumerate(self._params) if p.grad is not None}
        params: list[Tensor] = [self._params[i] for i in trained]
        momentum = [self._momentum[i] for i in trained]
        with torch.no_grad():
            self._descend(params, list(trained.values()), momentum)
        for i, buffer in zip(trained, momentum, strict=True):
            self._momentum[i] = buffer


def work(
    wire: ClientWire,
    trainer: Trainer,
    client_data: Callable[[int], ClientData],
    lost_s: Callable[[Order, float], float],
    flat: FlatModel,
    host: Tensor,
) -> None:
    """The loop of a worker; it ends when the server says stop. Client ranks.

    Args:
        wire: the wire to the server.
        trainer: trains in `flat`.
        client_data: returns the data of a client.
        lost_s: seconds to pause after a round that took so long, for failures and network, on the wall clock.
        flat: the model that the trainer trains.
        host: float32 (size,), the wire's buffer: that of the model if it is in host memory, else a pinned copy.
    """
    staged = host.data_ptr() != flat.buffer.data_ptr()
    waiting_since = time.perf_counter()
    while (order := wire.receive()) is not None:
        began = time.perf_counter()
        if staged:
            flat.buffer.copy_(host)
        if not trainer.round(order, client_data(order.client), wire.stopped):
            break
        if staged:
            host.copy_(flat.buffer)
        ended = time.perf_counter()
        if (lost := lost_s(order, ended - began)) and not _pass(lost, wire.stopped):
            break
        wait_s, waiting_since = began - waiting_since, time.perf_counter()
        wire.send(order, trainer.samples, trainer.steps, trainer.loss, compute_s=ended - began, wait_s=wait_s)
    wire.finish()


def _pass(seconds: float, stopped: Callable[[], bool]) -> bool:
    """Pause. Returns whether no stop came meanwhile."""
    until = time.perf_counter() + seconds
    while (left := until - time.perf_counter()) > 0:
        if stopped():
            return False
        time.sleep(min(left, 0.05))
    return True
