"""Asks a task, checks what it gives back, and says what is wrong with it: task, method, client, the task's own traceback.

Whatever a task raises or gives back wrong becomes a `TaskError`. Nothing is trained here (training/trial.py does that).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from asyncfeded.files.weights import read_weights, weights_file
from asyncfeded.metric import DEFAULT, Metric, check_metrics
from asyncfeded.model.initial import put_weights
from asyncfeded.own import CodeError, raised
from asyncfeded.tasks.at import At
from asyncfeded.tasks.classification import Batch, Data, Samples, is_stream

SAMPLES = (
    "a pair of torch.Tensor (inputs, targets) with one row per sample, a data set with __len__ and __getitem__, or an "
    "iterable of samples"
)
"""What samples may be."""
NO_GRADIENT = (
    "does not depend on the parameters (it has no gradient); compute it from the outputs, without detach(), item() or "
    "torch.no_grad()"
)
"""What is said of such a loss."""


class TaskError(CodeError):
    """What is wrong with a task."""


def fault(name: str, doing: str, error: BaseException, advice: str = "") -> TaskError:
    """What a task's code has raised, as a `TaskError`; see `own.raised`.

    Args:
        name: name of the task.
        doing: the method, and for which client.
        error: what it has raised.
        advice: what to change, if that is known.
    """
    return error if isinstance(error, TaskError) else TaskError(raised(f"task {name}, {doing}", error, advice))


def check_loss(name: str, loss: object, doing: str = "loss", trained: bool = False) -> None:
    """Whether a loss can be trained with; `trained`: it was already, and needs no gradient any more.

    Raises:
        TaskError: it cannot.
    """
    if not isinstance(loss, Tensor):
        raise TaskError(f"task {name}, {doing}: gave back {type(loss).__name__}, expected a torch.Tensor, the mean loss")
    if loss.numel() != 1 or not loss.is_floating_point():
        raise TaskError(
            f"task {name}, {doing}: gave back {loss.dtype} of shape {tuple(loss.shape)}, expected one number, the mean loss"
        )
    if not (trained or loss.requires_grad):
        raise TaskError(f"task {name}, {doing}: {NO_GRADIENT}")


def declared_metrics(task: object, name: str) -> dict[str, Metric]:
    """The metrics of a task by name, the goal of a run first if its config says nothing else.

    Raises:
        TaskError: what it declares is something else.
    """
    if "metrics" in getattr(type(task), "model_fields", ()):
        raise TaskError(f"task {name}, metrics: is a key of its section; write metrics: ClassVar = {{...}}, without a type")
    try:
        return check_metrics(getattr(task, "metrics", DEFAULT))
    except ValueError as error:
        raise TaskError(f"task {name}, {error}") from None


class CheckedTask:
    """A `Task` that passes on to another what it is asked, and checks the answers.

    Args:
        task: the other; it has the methods of a task (`tasks.check_task`).
        name: its name in the config.
        initial: where the weights are that its model begins with; empty: those that it is made with.

    Raises:
        TaskError: its metrics are no metrics. Every method raises it if that of the task raises or gives back something
            wrong.

    Attributes:
        name: as given.
        metrics: what `score` gives, by name.
        optimizer: see `Optimizes`; None if the task has no such method.
        factor: see `Schedules`; None likewise.
        step: see `Steps`; None likewise.
    """

    def __init__(self, task: object, name: str, initial: str = "") -> None:
        self.name, self._initial = name, initial
        self.metrics = declared_metrics(task, name)
        self._task, self._sizes = task, np.zeros(0, np.int64)
        self.collate: Callable[[list[Any]], Batch] | None = getattr(task, "collate", None)
        self.loss: Callable[[nn.Module, Batch], Tensor] = task.loss  # type: ignore[attr-defined]  # in every step: not checked
        self.optimizer = self._optimizer if hasattr(task, "optimizer") else None
        self.factor = self._factor if hasattr(task, "factor") else None
        self.step: Callable[[nn.Module, Batch, Optimizer], Tensor] | None = getattr(task, "step", None)

    def paths(self) -> dict[str, Path]:
        """The files and folders that its keys name, by key; those of a list by key and place."""
        named: dict[str, Path] = {}
        for key, value in getattr(self._task, "__dict__", {}).items():
            several = enumerate(value) if isinstance(value, tuple | list) else ()
            named |= {f"{key}[{place}]": one for place, one in several if isinstance(one, Path)}
            named |= {key: value} if isinstance(value, Path) else {}
        return named

    def model(self) -> nn.Module:
        """See `Task`."""
        module = self._ask("model")
        if not isinstance(module, nn.Module):
            raise self._wrong("model", module, "a torch.nn.Module")
        if self._initial:
            path = weights_file(Path(self._initial))
            try:
                put_weights(module, read_weights(path))
            except ValueError as error:
                raise TaskError(f"task {self.name}, task.initial = {self._initial!r}: {error}") from None
        return module

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """See `Task`; every client has at least one sample."""
        given = self._ask("sizes", num_clients, seed)
        try:
            sizes = np.asarray(given)
        except (TypeError, ValueError, RuntimeError):
            sizes = np.zeros(0)
        if sizes.dtype.kind not in "iu" or sizes.shape != (num_clients,):
            raise self._wrong("sizes", given, f"int64 ({num_clients},), the number of training samples of each client")
        sizes = sizes.astype(np.int64)
        if (sizes < 1).any():
            client = int(np.flatnonzero(sizes < 1)[0])
            raise TaskError(
                f"task {self.name}, sizes: client {client} has {sizes[client]} training samples, expected at least 1; lower "
                f"clients, or split the data otherwise"
            )
        self._sizes = sizes
        return sizes

    def client_data(self, client: int, num_clients: int, seed: int) -> Samples:
        """See `Task`; as many samples as `sizes` has said, if that was asked before."""
        method = f"client_data of client {client}"
        samples = self._samples(method, self._ask("client_data", client, num_clients, seed, doing=method))
        count, size = self._count(method, samples), int(self._sizes[client]) if self._sizes.size else None
        if size is not None and count is not None and (count < size or (count > size and not is_stream(samples))):
            raise TaskError(f"task {self.name}, {method}: gave back {count} samples, but sizes says {size}")
        return samples

    def test_data(self) -> Samples:
        """See `Task`; at least one sample."""
        samples = self._samples("test_data", self._ask("test_data"))
        if self._count("test_data", samples) == 0:
            raise TaskError(f"task {self.name}, test_data: gave back no sample; the model cannot be tested without one")
        return samples

    def held_out(self, client: int, num_clients: int, seed: int) -> Samples:
        """See `HoldsOut`; at least one sample, where they tell how many they are."""
        method = f"held_out of client {client}"
        samples = self._samples(method, self._ask("held_out", client, num_clients, seed, doing=method))
        if self._count(method, samples) == 0:
            raise TaskError(f"task {self.name}, {method}: gave back no sample; every client needs one to test with")
        return samples

    def score(self, model: nn.Module, batch: Batch) -> dict[str, tuple[float, float]]:
        """See `Task`; the metrics that it declares, in their order."""
        given = self._ask("score", model, batch)
        expected = 'for each metric its sum and its count, such as {"accuracy": (correct, len(targets))}'
        if not isinstance(given, Mapping):
            raise self._wrong("score", given, expected)
        if given.keys() != self.metrics.keys():
            names, declared = (", ".join(map(str, each)) or "nothing" for each in (given, self.metrics))
            raise TaskError(f"task {self.name}, score: gave back {names}, but the metrics of the task are {declared}")
        scores = {}
        for name in self.metrics:
            pair = given[name]
            try:
                total, count = pair
                scores[name] = float(total), float(count)
            except (TypeError, ValueError, OverflowError, RuntimeError):
                raise self._wrong(f"score, {name}", pair, "two numbers: sum and count") from None
            if not 0 <= scores[name][1] < math.inf:
                raise TaskError(f"task {self.name}, score: {name} has the count {count}, expected a number of at least 0")
        return scores

    def _optimizer(self, parameters: list[Tensor], at: At) -> Optimizer:
        """See `Optimizes`; over nothing but these parameters, and new."""
        doing = f"optimizer in round {at.round} of client {at.client}"
        given = self._ask("optimizer", parameters, at, doing=doing)
        if not isinstance(given, Optimizer):
            raise self._wrong(doing, given, "a torch.optim.Optimizer over the parameters that it is given")
        known = {id(parameter) for parameter in parameters}
        if any(id(parameter) not in known for group in given.param_groups for parameter in group["params"]):
            raise TaskError(f"task {self.name}, {doing}: has a parameter that is not among those that it is given")
        if any(float(one.get("step", 0)) > 0 for one in given.state.values() if isinstance(one, dict)):
            raise TaskError(f"task {self.name}, {doing}: gave back one that has taken steps; make a new one in every round")
        return given

    def _factor(self, at: At) -> float:
        """See `Schedules`."""
        doing = f"factor in step {at.step} of round {at.round} of client {at.client}"
        given = self._ask("factor", at, doing=doing)
        if not isinstance(given, int | float) or not 0 <= given < math.inf:
            raise self._wrong(doing, given, f"a factor on the learning rate, at least 0, and not {given!r}")
        return float(given)

    def remarks(self) -> list[str]:
        """See `Remarks`; none if the task has no such method."""
        if not hasattr(self._task, "remarks"):
            return []
        given = self._ask("remarks")
        if not isinstance(given, list) or not all(isinstance(sentence, str) for sentence in given):
            raise self._wrong("remarks", given, "a list of sentences")
        return given

    def _ask(self, method: str, *arguments: object, doing: str = "") -> object:
        try:
            return getattr(self._task, method)(*arguments)
        except (Exception, SystemExit) as error:
            raise fault(self.name, doing or method, error) from None

    def _samples(self, doing: str, given: object) -> Samples:
        """The samples, if they are tensors of equal length, or can be read one by one."""
        if isinstance(given, DataLoader):
            raise self._wrong(doing, given, "its data set; training.batch_size and training.loader_workers make the batches")
        if isinstance(given, Iterator):
            raise self._wrong(doing, given, "what can be read again and again: an object whose __iter__ begins anew")
        tensors = isinstance(given, list) and len(given) == 2 and isinstance(given[0], Tensor)
        if isinstance(given, tuple) or tensors:
            return self._data(doing, cast("Sequence[object]", given))
        if isinstance(given, Tensor | np.ndarray | Mapping | str) or (is_stream(given) and not hasattr(given, "__iter__")):
            raise self._wrong(doing, given, SAMPLES)
        return cast("Samples", given)

    def _data(self, doing: str, given: Sequence[object]) -> Data:
        if len(given) != 2:
            raise self._wrong(doing, given, SAMPLES)
        parts = []
        for name, part in zip(Data._fields, given, strict=True):
            if not isinstance(part, Tensor) or not part.ndim:
                raise self._wrong(f"{doing}, {name}", part, SAMPLES)
            parts.append(part.detach())
        if len(parts[0]) != len(parts[1]):
            counts = f"{len(parts[0])} inputs and {len(parts[1])} targets"
            raise TaskError(f"task {self.name}, {doing}: gave back {counts}, expected as many")
        return Data(*parts)

    def _count(self, doing: str, samples: Samples) -> int | None:
        """The number of samples; None if they do not tell."""
        if isinstance(samples, Data):
            return len(samples.targets)
        try:
            return len(samples) if isinstance(samples, Sized) else None
        except (Exception, SystemExit) as error:
            raise fault(self.name, f"{doing}, its length", error) from None

    def _wrong(self, doing: str, given: object, expected: str) -> TaskError:
        kind = "None" if given is None else type(given).__name__
        if isinstance(given, np.ndarray | Tensor):
            kind += f" of {given.dtype} {tuple(given.shape)}"
        elif isinstance(given, tuple | list):
            kind += f" ({', '.join(type(part).__name__ for part in given[:4])}{', ...' if len(given) > 4 else ''})"
        return TaskError(f"task {self.name}, {doing}: gave back {kind}, expected {expected}")
