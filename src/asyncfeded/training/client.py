"""A client receives a model, trains a round on its own data at its own pace, and sends the result, until it must stop."""

import math
import time
from collections.abc import Callable

from torch import Tensor

from asyncfeded import accelerator
from asyncfeded.config import Training
from asyncfeded.model.flat import FlatModel
from asyncfeded.seeds import Stream, generator, seed_globals
from asyncfeded.tasks.contract import CheckedTask, TaskError
from asyncfeded.training.batches import WHOLE, ClientData, batch_sizes, read_round
from asyncfeded.training.held_out import HeldOut
from asyncfeded.training.rounds import Workload
from asyncfeded.training.step import Stepper
from asyncfeded.wire.client_wire import ClientWire
from asyncfeded.wire.group import Group
from asyncfeded.wire.member_wire import MemberWire
from asyncfeded.wire.messages import NO_SCORES, Order


class Trainer:
    """Trains the models of clients in place, one at a time.

    Args:
        task: gives the loss.
        flat: the model; its parameters are trained in its buffer.
        training: how to train.
        proximal: mu of the proximal term.
        seed: seed of the run.
        group: the ranks that train each client together; None: this one.
        measures: what the rule asks for, one of `rules.contract.MEASURED`.

    Raises:
        ValueError: see `Stepper`.
    """

    def __init__(
        self,
        task: CheckedTask,
        flat: FlatModel,
        training: Training,
        proximal: float,
        seed: int,
        group: Group | None = None,
        measures: str = "",
    ) -> None:
        self._name, self._flat, self._training, self._seed = task.name, flat, training, seed
        self._group, self.part = group, group.part if group else WHOLE
        self._stepper = Stepper(task, flat, training, proximal, group, measures)
        self.samples, self.steps, self.loss, self.measured = 0, 0, 0.0, math.nan

    def round(self, order: Order, client_data: ClientData, stopped: Callable[[], bool]) -> bool:
        """Train K epochs or steps from the model as it stands.

        All random numbers follow from the seed, the client and the number of its round. Afterwards `samples`, `steps` and
        `loss` (mean over the samples seen) describe the round, and `measured` what the rule asks for.

        Args:
            order: client, round and K.
            client_data: data and pace of this client.
            stopped: is called in every step; says whether to give up. In a group, one rank that gives up is enough.

        Returns:
            Whether the round was finished.

        Raises:
            GroupLostError: a rank of the group has died.
        """
        self._flat.as_made.restore()
        stream = (Stream.TRAINING, order.client, order.round)
        seed_globals(self._seed, *stream, *([self.part.rank] if self._group else []))
        self._flat.module.train()
        workload = Workload(client_data.samples, client_data.batch_size, self._training)
        work = workload.of(order.epochs)
        self._stepper.begin(order, work.steps)
        sizes = batch_sizes(client_data.samples, client_data.batch_size, self._training.last_batch)
        # All ranks of a group shuffle alike, though each draws its own numbers for its own samples.
        shuffling = generator(self._seed, *stream) if self._group else None
        batches = read_round(client_data, sizes, work.batches, order.client, order.round, self.part, shuffling)
        self.samples = self.steps = 0
        while self.steps < work.steps:
            began = time.perf_counter()
            samples = workload.samples_of(self.steps)
            if self._stepper.take(batches, workload.batches_of(self.steps), samples, stopped):
                return False
            self.samples += samples
            self.steps += 1
            if client_data.slowdown > 1:
                accelerator.synchronize(self._flat.buffer.device)
                time.sleep((client_data.slowdown - 1) * (time.perf_counter() - began))
            if self._group is None and stopped():
                return False
        loss_sum = float(self._stepper.loss_sum)
        self.measured = self._stepper.measured
        self.loss = (self._group.total(loss_sum) if self._group else loss_sum) / self.samples
        try:
            self._stepper.end()
            self._flat.check_views()
        except ValueError as error:
            raise TaskError(f"task {self._name}, round {order.round} of client {order.client}: {error}") from None
        return True


def work(
    wire: ClientWire | MemberWire,
    trainer: Trainer,
    client_data: Callable[[int], ClientData],
    lost_s: Callable[[Order, float], float],
    flat: FlatModel,
    host: Tensor,
    held_out: HeldOut | None = None,
) -> None:
    """The loop of a worker; it ends when the server says stop. Client ranks.

    Args:
        wire: the wire to the server.
        trainer: trains in `flat`.
        client_data: returns the data of a client.
        lost_s: seconds to pause after a round that took so long, for failures and network, on the wall clock.
        flat: the model that the trainer trains.
        host: float32 (size,), the wire's buffer: that of the model if it is in host memory, else a pinned copy.
        held_out: tests in `flat`; None: clients do not test.
    """
    staged = host.data_ptr() != flat.buffer.data_ptr()
    waiting_since = time.perf_counter()
    while (order := wire.receive()) is not None:
        began = time.perf_counter()
        if staged:
            flat.buffer.copy_(host)
        scores = held_out.scores(order, wire.stopped) if held_out else NO_SCORES
        if not trainer.round(order, client_data(order.client), wire.stopped):
            break
        if staged:
            host.copy_(flat.buffer)
        ended = time.perf_counter()
        if (lost := lost_s(order, ended - began)) and not _pass(lost, wire.stopped):
            break
        wait_s, waiting_since = began - waiting_since, time.perf_counter()
        done = (trainer.samples, trainer.steps, trainer.loss)
        wire.send(order, *done, compute_s=ended - began, wait_s=wait_s, scores=scores, measured=trainer.measured)
    wire.finish()


def _pass(seconds: float, stopped: Callable[[], bool]) -> bool:
    """Pause. Returns whether no stop came meanwhile."""
    until = time.perf_counter() + seconds
    while (left := until - time.perf_counter()) > 0:
        if stopped():
            return False
        time.sleep(min(left, 0.05))
    return True
