"""One step of a client: the gradients of its batches, what is done to them, and the optimizer."""

import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn

from asyncfeded import accelerator
from asyncfeded.config import Training
from asyncfeded.model.flat import FlatModel
from asyncfeded.tasks.at import At
from asyncfeded.tasks.classification import Batch
from asyncfeded.tasks.contract import CheckedTask, check_loss, fault
from asyncfeded.training.curvature import Curvature
from asyncfeded.training.gradients import Gradients
from asyncfeded.training.kept import Kept
from asyncfeded.training.loader import with_parts
from asyncfeded.training.optimizer import MadeAnew, find_descent
from asyncfeded.training.schedule import find_schedule
from asyncfeded.wire.group import Group
from asyncfeded.wire.messages import Order

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The types of training.precision that are not the model's own."""
SCALE = 2.0**10
"""Factor on the loss in fp16 when a round begins. torch begins with 2^16 and finds a lower one in steps that it leaves out,
which may be all steps of a short round."""


class Stepper:
    """Takes the steps of a round, one client at a time.

    Args:
        task: gives the loss, or takes the steps itself.
        flat: the model; its parameters are trained in its buffer.
        training: how to train.
        proximal: mu of the proximal term.
        group: the ranks that take each step together; None: this one.
        measures: what the rule asks for, one of `rules.contract.MEASURED`.

    Raises:
        ValueError: the device or the task cannot do what the config asks for, or its optimizer cannot be made.

    Attributes:
        descent: the optimizer, and what it has gathered in this round.
        loss_sum: float64, sum of the losses of the samples seen in this round.
        measured: what the rule asks for, measured in the first step of this round; NaN: nothing.
    """

    def __init__(
        self,
        task: CheckedTask,
        flat: FlatModel,
        training: Training,
        proximal: float,
        group: Group | None = None,
        measures: str = "",
    ) -> None:
        self._task, self._mu, self._clip_norm = task, proximal, training.clip_norm
        self._learning_rate, self._rate, self.measured = training.learning_rate, 1.0, math.nan
        device = flat.buffer.device
        check_device(training, device)
        check_task(task, training, proximal, group, measures)
        parameters = {name: p for name, p in flat.module.named_parameters() if p.requires_grad}
        self._params = list(parameters.values())
        self._gradients = Gradients(self._params, group) if group else None
        self.descent = find_descent(parameters, task, training)
        self._curvature = Curvature(flat) if measures == "curvature" else None
        self._kept = Kept(flat) if flat.layout.own else None
        self._schedule = find_schedule(task, training)
        self._model = compiled(flat.module) if training.compile else flat.module
        self._channels_last, self._scaled = training.channels_last, training.precision == "fp16"
        self._computing: AbstractContextManager[object] = nullcontext()
        if training.precision != "float32":
            self._computing = torch.autocast(device.type, TYPES[training.precision])
        self._scaler: torch.amp.GradScaler | None = None
        # The anchor x_s of the proximal term: a copy of the parameters at the start of a round; only with such a term.
        self._anchor = [torch.empty_like(p) for p in self._params] if proximal else []
        self.loss_sum = torch.zeros((), dtype=accelerator.sums(device), device=device)

    def begin(self, order: Order, steps: int) -> None:
        """Begin a round of so many steps, from the model as it stands."""
        self._at = At(order.client, order.round, 0, steps, order.steps, order.version, order.share)
        with torch.no_grad():
            for anchor, p in zip(self._anchor, self._params, strict=False):
                anchor.copy_(p)
        self._forget_gradients()
        self.loss_sum.zero_()
        self._rate = order.learning_rate / self._learning_rate if order.learning_rate else 1.0
        self.measured = math.nan
        self.descent.begin(self._at)
        if self._kept:
            self.descent.load(self._kept.load())
        if self._scaled:
            self._scaler = torch.amp.GradScaler(self.loss_sum.device.type, init_scale=SCALE)

    def end(self) -> None:
        """End a round that is finished: the optimizer's state goes with the model, where it is the client's own.

        Raises:
            ValueError: it has tensors that it had not before.
        """
        if self._kept:
            self._kept.store(self.descent.state())

    def take(
        self, batches: Iterator[tuple[Batch, int]], num_batches: int, samples: int, stopped: Callable[[], bool]
    ) -> bool:
        """Take a step, together with the other ranks of the group.

        Args:
            batches: gives the batches of this step, and those of later ones, each with its number of samples. In a group,
                they are this rank's part of each, and may be empty.
            num_batches: of this step.
            samples: of this step, on all ranks.
            stopped: whether to give up.

        Returns:
            Whether a group was told to give up, so that no rank of it has taken the step.
        """
        if self._task.step:
            self._let_task_step(*next(batches))
        else:
            of_step = islice(batches, num_batches)
            if self._curvature and not self._at.step:
                given_up = self._measure(self._curvature, list(of_step), samples, stopped)
            else:
                given_up = self._find_gradients(of_step, samples, stopped)
            if given_up:
                return True
            self._descend()
        self._at = self._at._replace(step=self._at.step + 1)
        return False

    def _find_gradients(self, batches: Iterable[tuple[Batch, int]], samples: int, stopped: Callable[[], bool]) -> bool:
        """Find the gradients of a step. Returns whether a group was told to give up."""
        self._forget_gradients()
        for batch, count in batches:
            if count:
                self._add_gradients(batch, count, samples)
        return bool(self._gradients and self._gradients.add_up(stopped()))

    def _measure(
        self, curvature: Curvature, batches: list[tuple[Batch, int]], samples: int, stopped: Callable[[], bool]
    ) -> bool:
        """Find the gradients of a step, and measure the curvature along them. Returns as `_find_gradients`."""
        drawn = accelerator.random_state(self.loss_sum.device)
        if self._find_gradients(batches, samples, stopped):
            return True
        loss_sum = self.loss_sum.clone()
        after = accelerator.random_state(self.loss_sum.device)
        with curvature.elsewhere():
            accelerator.draw_again(self.loss_sum.device, drawn)  # the same masks of dropout
            if self._find_gradients(batches, samples, stopped):
                return True
        accelerator.draw_again(self.loss_sum.device, after)
        self.loss_sum.copy_(loss_sum)
        self.measured = curvature.value / (self._scaler.get_scale() if self._scaler else 1.0)
        return False

    def _forget_gradients(self) -> None:
        if self._gradients:
            self._gradients.forget()
        for p in self._params:
            p.grad = None

    def _add_gradients(self, batch: Batch, count: int, samples: int) -> None:
        """Add the gradients of a batch of `count` samples to those of a step of `samples`; the task's code."""
        try:
            with self._computing:
                loss = self._task.loss(self._model, self._formatted(batch))
            try:
                part = loss if count == samples else loss / (samples / count)
                (self._scaler.scale(part) if self._scaler else part).backward()  # type: ignore[no-untyped-call]
            except (AttributeError, RuntimeError, TypeError):
                check_loss(self._task.name, loss, f"loss in {self._round}")
                raise
        except (Exception, SystemExit) as error:
            raise fault(self._task.name, f"{self._round}, a batch of {count}", error) from None
        self.loss_sum.add_(loss.detach().reshape(()), alpha=count)

    def _descend(self) -> None:
        """Do to the gradients what is to be done, and let the optimizer take its step."""
        scaler, descent = self._scaler, self.descent
        if scaler and isinstance(descent, MadeAnew):
            scaler.unscale_(descent.optimizer)
        for anchor, p in zip(self._anchor, self._params, strict=False):
            if p.grad is not None:
                p.grad.add_(p.detach(), alpha=self._mu).add_(anchor, alpha=-self._mu)
        if self._clip_norm:
            nn.utils.clip_grad_norm_(self._params, self._clip_norm)
        factor = self._rate * (self._schedule(self._at) if self._schedule else 1.0)
        if scaler and isinstance(descent, MadeAnew):
            descent.set_rate(factor)
            scaler.step(descent.optimizer)
            scaler.update()
        else:
            descent.step(factor)

    def _let_task_step(self, batch: Batch, count: int) -> None:
        """Let the task take the step."""
        assert self._task.step
        assert isinstance(self.descent, MadeAnew)
        self.descent.set_rate(self._rate * (self._schedule(self._at) if self._schedule else 1.0))
        try:
            loss = self._task.step(self._model, self._formatted(batch), self.descent.optimizer)
        except (Exception, SystemExit) as error:
            raise fault(self._task.name, f"step in {self._round}, a batch of {count}", error) from None
        check_loss(self._task.name, loss, f"step in {self._round}", trained=True)
        self.loss_sum.add_(loss.detach().reshape(()), alpha=count)

    def _formatted(self, batch: Batch) -> Batch:
        return channels_last(batch) if self._channels_last else batch

    @property
    def _round(self) -> str:
        return f"round {self._at.round} of client {self._at.client}"


def check_device(training: Training, device: torch.device) -> None:
    """Whether a device can compute in the type that the config asks for.

    Raises:
        ValueError: it cannot.
    """
    if training.precision == "fp16" and device.type == "cpu":
        raise ValueError("training.precision = fp16 needs a GPU, and the client trains on the CPU; set it to bf16")
    if training.precision == "bf16" and device.type != "cpu" and not accelerator.computes_bf16(device):
        raise ValueError(f"training.precision = bf16 needs a later GPU than {device}; set it to fp16 or float32")


def check_task(
    task: CheckedTask, training: Training, proximal: float, group: Group | None = None, measures: str = ""
) -> None:
    """Whether a task that takes its steps itself is asked for what happens inside a step, or a rate is asked of no sgd.

    Raises:
        ValueError: it is.
    """
    asked = {
        "training.accumulate": training.accumulate > 1,
        "training.clip_norm": bool(training.clip_norm),
        "training.precision": training.precision != "float32",
        "training.proximal, or a rule with such a term": bool(proximal),
        "ranks_per_client": group is not None,
        f"a rule that measures the {measures}": bool(measures),
    }
    if task.step and (key := next((key for key, is_asked in asked.items() if is_asked), "")):
        raise ValueError(f"task {task.name} takes its steps itself, which {key} would change; do that in its step() instead")
    if measures and (task.optimizer or training.optimizer != "sgd"):
        what = f"task {task.name} makes its own" if task.optimizer else f"training.optimizer = {training.optimizer}"
        raise ValueError(
            f"{what}, but the rule finds the learning rate of plain sgd by the {measures}; set rule.rate = training, or "
            f"training.optimizer = sgd"
        )


def compiled(module: nn.Module) -> nn.Module:
    """The module, compiled at its first batch.

    Raises:
        ValueError: there is no compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        raise ValueError(f"training.compile needs a C++ compiler, and {compiler} is not there; install it, or set CXX")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes on the cores of other ranks
    return cast("nn.Module", torch.compile(module))


def channels_last(batch: Batch) -> Batch:
    """A batch whose 4-d tensors have that memory format."""
    if isinstance(batch, Tensor):
        return batch.contiguous(memory_format=torch.channels_last) if batch.dim() == 4 else batch
    return with_parts(batch, channels_last)
