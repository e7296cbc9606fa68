"""What takes the steps of a round: plain SGD by its function, or any optimizer of torch, new in every round."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

from asyncfeded.config import Training
from asyncfeded.tasks.at import At
from asyncfeded.tasks.contract import CheckedTask, fault

OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
}
"""The optimizers of torch by their names in small letters."""


class Descent(Protocol):
    """Takes the steps of a client, from the gradients in its parameters."""

    def begin(self, at: At) -> None:
        """Begin a round, with nothing gathered yet."""

    def step(self, factor: float) -> None:
        """Take a step with the learning rate times `factor`."""

    def state(self) -> dict[str, Tensor]:
        """What it has gathered in this round, as `<name of the parameter>.<name of torch>`: no copies."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """After `begin`: go on from what `state` gave. The tensors are taken as they are, and written by the steps."""


def find_descent(parameters: Mapping[str, Tensor], task: CheckedTask, training: Training) -> Descent:
    """What takes the steps.

    Args:
        parameters: those that are trained, by name.
        task: it may make its own optimizer, or take the steps itself with the one that it is given.
        training: how to train.

    Raises:
        ValueError: the config's optimizer cannot be made, or the task makes another.
    """
    if task.optimizer:
        for key in ("optimizer", "optimizer_options", "learning_rate", "learning_rate_end", "momentum", "weight_decay"):
            if (value := getattr(training, key)) != type(training).model_fields[key].default:
                raise ValueError(f"task {task.name} makes its own optimizer; leave training.{key} = {value} out")
        return MadeAnew(parameters, task.optimizer)
    plain = training.optimizer == "sgd" and not training.optimizer_options
    if plain and training.precision != "fp16" and not task.step:
        return PlainSgd(parameters, training)
    make = _named(training, closures=bool(task.step))
    make(list(parameters.values()))  # what is wrong with its options is told now
    return MadeAnew(parameters, lambda parameters, at: make(parameters))


def state_after_step(parameters: Mapping[str, Tensor], task: CheckedTask, training: Training) -> dict[str, Tensor]:
    """What the optimizer has gathered after a step of every parameter, with gradients of 0; by name, as `Descent.state`.

    Args:
        parameters: those that are trained, by name; they may change.
        task: as in `find_descent`.
        training: how to train.

    Raises:
        ValueError: as in `find_descent`; or it has gathered something else than dense tensors of float32 for the parameters,
            which cannot be sent.
        TaskError: it cannot take such a step.
    """
    descent = find_descent(parameters, task, training)
    descent.begin(At(0, 0, 0, 1, 0, 0, 0.0))
    before = _elsewhere(parameters, descent)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    try:
        descent.step(1.0)
    except Exception as error:
        doing = "a step of the optimizer with gradients of 0, which training.optimizer_state = kept tries"
        raise fault(task.name, doing, error, "set optimizer_state = fresh, or take another optimizer") from None
    state, after = descent.state(), _elsewhere(parameters, descent)
    kinds = {name: value.dtype if isinstance(value, Tensor) else type(value).__name__ for name, value in state.items()}
    wrong = {name: f"is {kind}, expected a tensor of torch.float32" for name, kind in kinds.items() if kind != torch.float32}
    wrong |= {name: "changes, and belongs to no parameter" for name in after if after[name] != before.get(name)}
    for name, what in wrong.items():
        raise ValueError(
            f"training.optimizer_state = kept: the optimizer's {name} {what}, so that it cannot be sent; take another "
            f"optimizer, or set optimizer_state = fresh"
        )
    return state


def _elsewhere(parameters: Mapping[str, Tensor], descent: Descent) -> dict[str, str]:
    """What an optimizer holds besides the states of the parameters, by name, as text."""
    if not isinstance(descent, MadeAnew):
        return {}
    optimizer, known = descent.optimizer, set(map(id, parameters.values()))
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    found = {f"{key} of group {i}": repr(value) for i, group in enumerate(groups) for key, value in group.items()}
    return found | {str(key): repr(value) for key, value in optimizer.state.items() if id(key) not in known}


def vectors_held(training: Training) -> int:
    """How many numbers the config's optimizer gathers for each parameter, at least: 1 with momentum, 2 for Adam."""
    if training.optimizer == "sgd":
        return int(bool(training.momentum))
    kind = OPTIMIZERS.get(training.optimizer)
    return 2 if kind and issubclass(kind, torch.optim.Adam) else 1


class PlainSgd:
    """The function behind torch.optim.SGD. The class would import torch._dynamo: 1.2 s of processor time on every worker."""

    def __init__(self, parameters: Mapping[str, Tensor], training: Training) -> None:
        self._names, self._parameters = list(parameters), list(parameters.values())
        self._learning_rate = training.learning_rate
        self._descend = partial(
            sgd,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        self._momentum: list[Tensor | None] = [None] * len(parameters)

    def begin(self, at: At) -> None:
        """See `Descent`."""
        self._momentum = [None] * len(self._parameters)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """See `Descent`."""
        trained = {i: p.grad for i, p in enumerate(self._parameters) if p.grad is not None}
        params: list[Tensor] = [self._parameters[i] for i in trained]
        momentum = [self._momentum[i] for i in trained]
        self._descend(params, list(trained.values()), momentum, lr=self._learning_rate * factor)
        for i, buffer in zip(trained, momentum, strict=True):
            self._momentum[i] = buffer

    def state(self) -> dict[str, Tensor]:
        """See `Descent`."""
        pairs = zip(self._names, self._momentum, strict=True)
        return {f"{name}.momentum_buffer": buffer for name, buffer in pairs if buffer is not None}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Descent`."""
        self._momentum = [state.get(f"{name}.momentum_buffer") for name in self._names]


class MadeAnew:
    """An optimizer of torch that is made in every round.

    Args:
        parameters: those that are trained, by name.
        make: makes the optimizer of a round.

    Attributes:
        optimizer: that of the round.
    """

    optimizer: Optimizer

    def __init__(self, parameters: Mapping[str, Tensor], make: Callable[[list[Tensor], At], Optimizer]) -> None:
        self._parameters, self._make = parameters, make
        self._rates: list[Any] = []
        self._factor = 1.0

    def begin(self, at: At) -> None:
        """See `Descent`."""
        self.optimizer = self._make(list(self._parameters.values()), at)
        self._rates, self._factor = [group["lr"] for group in self.optimizer.param_groups], 1.0

    def set_rate(self, factor: float) -> None:
        """Set the learning rates to those at the start of the round times `factor`; a factor that stays 1 sets none."""
        if factor == self._factor:
            return
        self._factor = factor
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def step(self, factor: float) -> None:
        """See `Descent`."""
        self.set_rate(factor)
        self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """See `Descent`."""
        return {
            f"{name}.{key}": value
            for name, parameter in self._parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if value is not None
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Descent`."""
        for name, value in state.items():
            parameter, _, key = name.rpartition(".")
            self.optimizer.state[self._parameters[parameter]][key] = value


def _named(training: Training, closures: bool) -> Callable[[list[Tensor]], Optimizer]:
    """What makes the optimizer that the config names.

    Raises:
        ValueError: there is none of that name, or it does not take an option. What it makes raises it where an option has
            a value that the optimizer refuses.
    """
    name, options = training.optimizer, training.optimizer_options
    if name not in OPTIMIZERS:
        near = difflib.get_close_matches(name, OPTIMIZERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(OPTIMIZERS))}"
        raise ValueError(f"training.optimizer = {name}: torch.optim has no such optimizer; {hint}")
    kind = OPTIMIZERS[name]
    if not closures and inspect.signature(kind.step).parameters["closure"].default is inspect.Parameter.empty:
        raise ValueError(
            f"training.optimizer = {name} computes the loss several times in a step, which only a task's own step can do; "
            f"take another, or give the task a method step(model, batch, optimizer)"
        )
    known = list(inspect.signature(kind).parameters)
    if unknown := [key for key in options if key not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known[1:])}"
        raise ValueError(f"training.optimizer_options: {kind.__name__} takes no {unknown[0]}; {hint}")
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    given["lr"] = training.learning_rate
    for key in ("weight_decay", "momentum") if name == "sgd" else ("weight_decay",):
        if key in known:
            given[key] = getattr(training, key)
        elif getattr(training, key):
            raise ValueError(f"training.{key} = {getattr(training, key):g}, but {kind.__name__} has none; leave it out")

    def make(parameters: list[Tensor]) -> Optimizer:
        try:
            return kind(parameters, **given)
        except (TypeError, ValueError, RuntimeError) as error:
            what = f"training.optimizer = {name}, with {', '.join(f'{key} = {value}' for key, value in given.items())}"
            raise ValueError(f"{what}: {kind.__name__} says: {error}") from None

    return make
