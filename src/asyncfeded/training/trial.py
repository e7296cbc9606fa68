"""What a worker tries before the first message: the model on the data and the batches of its clients, and a round twice.

It finds what a task has wrong while nothing is lost yet: a batch that the model cannot take, a loss that is none, state that
would stay from one round to the next. Its cost is that of a few steps.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from asyncfeded.config import Config
from asyncfeded.files.digest import differing
from asyncfeded.model.flat import FlatModel, ModuleState, Shape, digest_frozen, named_views
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks.classification import Batch, Data
from asyncfeded.tasks.contract import NO_GRADIENT, CheckedTask, TaskError, check_loss, fault
from asyncfeded.training.batches import ClientData, batch_sizes, read, successive
from asyncfeded.training.client import Trainer
from asyncfeded.training.kept import own_tensors
from asyncfeded.training.optimizer import state_after_step
from asyncfeded.wire.messages import Order

NEARLY = {"float32": 1e-3, "bf16": 3e-2, "fp16": 1e-2}
"""Two trainings of a round may differ by this part of its change, where sums have no fixed order (GPU, threads)."""


def new_module(task: CheckedTask, seed: int) -> tuple[nn.Module, ModuleState]:
    """The module of a task, as every call makes it, and its tensors.

    Raises:
        TaskError: the task raises something, or the module cannot be trained.
    """
    seed_globals(seed, Stream.MODEL)
    module = task.model()
    try:
        return module, ModuleState(module)
    except ValueError as error:
        raise TaskError(f"task {task.name}, model: {error}") from None


def find_statistics(task: CheckedTask, seed: int, device: torch.device, data: ClientData) -> list[str]:
    """Find which tensors training changes besides the parameters; they travel with these.

    It makes a module, computes the gradients of up to two batches, and compares the module to a new one.

    Args:
        task: the task.
        seed: seed of the run.
        device: where to train.
        data: data of client 0.

    Returns:
        Names, of ModuleState.candidates.

    Raises:
        TaskError: the task raises something, or two calls of `model` give two models.
    """
    module, begun = new_module(task, seed)
    frozen = digest_frozen(begun.frozen(()))
    module.to(device).train()
    versions = {name: tensor._version for name, tensor in ModuleState(module).candidates.items()}
    first, *more = batch_sizes(data.samples, data.batch_size, "keep")[:2]
    sizes = [first, *(size for size in more if size == first)]  # the trial of all sizes comes later
    for batch, size in read(data.data, successive(sizes), (Stream.BATCH, 0, 0), "client 0"):
        _compute_gradients(task, module, data, batch, size)
    used, (_, made) = ModuleState(module), new_module(task, seed)
    if appeared := [name for name in used.all if name not in begun.all]:
        raise TaskError(
            f"task {task.name}, model: {', '.join(appeared)} appeared with the first batch; model() must make all "
            f"parameters and buffers, since what a message holds is fixed before training"
        )
    other = [name for name in begun.all | made.all if name not in begun.all or name not in made.all]
    differ = [name for name, tensor in made.all.items() if name not in other and not _same_bits(tensor, used.all[name])]
    redrawn = differing(frozen, digest_frozen(made.frozen(())))
    if wrong := [*other, *(name for name in differ if name in made.trained), *redrawn]:
        raise TaskError(
            f"task {task.name}, model: two calls gave two models, which differ in {', '.join(wrong[:5])}; draw what is "
            f"random from the global generator of torch, numpy or random, which the seed of the run sets before each call"
        )
    written = {name for name, tensor in used.candidates.items() if tensor._version != versions[name]}
    return [name for name in made.candidates if name in differ or name in written]  # a mean of weights is still equal


def find_own(task: CheckedTask, config: Config) -> list[Shape]:
    """Find what of the optimizer's state is each client's own, with training.optimizer_state = kept.

    Raises:
        TaskError: the task raises something.
        ValueError: the optimizer cannot be made, or its state cannot be sent.
    """
    if config.training.optimizer_state == "fresh":
        return []
    _, state = new_module(task, config.seed)
    return list(own_tensors(state_after_step(state.trained, task, config.training)))


def _compute_gradients(task: CheckedTask, module: nn.Module, data: ClientData, batch: Batch, size: int) -> None:
    """Compute the gradients of a batch of client 0, and check the loss."""
    try:
        loss = task.loss(module, batch)
    except (Exception, SystemExit) as error:
        raise _batch_fault(task.name, 0, size, data, False, error) from None
    check_loss(task.name, loss)
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except (Exception, SystemExit) as error:
        raise fault(task.name, f"the gradient of the loss, {_batch(0, size, data)}", error) from None
    if all(parameter.grad is None for parameter in module.parameters()):
        raise TaskError(f"task {task.name}, loss: {NO_GRADIENT}")


class Trial:
    """Tries what the clients of this worker will do. Call `run` once, before the first message.

    Args:
        task: the task.
        flat: the model; it is left as it was.
        trainer: trains `flat`.
        config: of the run.
    """

    def __init__(self, task: CheckedTask, flat: FlatModel, trainer: Trainer, config: Config) -> None:
        self._task, self._flat, self._trainer, self._config = task, flat, trainer, config

    def run(self, clients: Iterable[int], client_data: Callable[[int], ClientData]) -> None:
        """Try every size of batch, the extremes of the data, and a round twice.

        Args:
            clients: the clients of this worker.
            client_data: returns the data of one.

        Raises:
            TaskError: something is wrong with the task or its data; the message says what to change.
            ValueError: a batch has too few samples for the ranks of a client.
        """
        clients, x = list(clients), self._flat.buffer.clone()
        sizes: dict[int, int] = {}  # a client for each size of batch
        for client in clients:
            data = client_data(client)
            for size in set(batch_sizes(data.samples, data.batch_size, self._config.training.last_batch)):
                self._check_batch(client, size)
                if mine := len(self._trainer.part.of(size)):
                    sizes.setdefault(mine, client)
        largest = max(sizes, default=0)
        for size, client in sorted(sizes.items(), reverse=True):
            self._forward(client, client_data(client), range(size), size < largest)
        low, high = math.inf, -math.inf
        for client in clients:
            data = client_data(client)
            if not isinstance(data.data, Data):
                continue  # it would take a look at every sample
            broken, ends, least, most = _extremes(data.data)
            if len(broken) or least < low or most > high:
                low, high = min(low, least), max(high, most)
                rest = torch.arange(min(data.batch_size, data.samples))
                rows = torch.cat([broken[:1], ends, broken[1:], rest])[: len(rest)]
                self._forward(client, data, rows.to(data.data.targets.device), False)
        self._flat.buffer.copy_(x)
        if clients:
            self._train_twice(clients[0], client_data(clients[0]), x)
        self._flat.buffer.copy_(x)
        self._flat.as_made.restore()

    def _check_batch(self, client: int, size: int) -> None:
        """Whether every rank of a group has a sample of a batch, where batch norm needs one of each."""
        ranks = self._trainer.part.size
        if size < ranks and self._config.training.sync_batch_norm:
            raise ValueError(
                f"training.sync_batch_norm: client {client} has a batch of {size}, and each of the {ranks} ranks that train "
                f'it needs a sample; set training.last_batch = "join" or "drop", or a smaller ranks_per_client'
            )

    @torch.no_grad()
    def _forward(self, client: int, data: ClientData, rows: Tensor | range, smaller: bool) -> None:
        """Compute the loss of a batch in training mode; `smaller`: the model has taken a larger one."""
        [(batch, size)] = read(data.data, [rows], (Stream.BATCH, client, 0), f"client {client}")
        self._flat.as_made.restore()
        seed_globals(self._config.seed, Stream.TRAINING, client, 0)
        self._flat.module.train()
        try:
            loss = self._task.loss(self._flat.module, batch)
        except (Exception, SystemExit) as error:
            raise _batch_fault(self._task.name, client, size, data, smaller, error, self._trainer.part.size) from None
        value = float(loss) if isinstance(loss, Tensor) and loss.numel() == 1 else 0.0
        if not math.isfinite(value) and self._config.faults.bad_loss == "refuse":
            broken = _broken_rows(data.data).tolist() if isinstance(data.data, Data) else []
            where = f"; sample {broken[0]} of the client holds a value that is not finite" if broken else ""
            raise TaskError(
                f"task {self._task.name}, {_batch(client, size, data)}: its loss is {value:g} with the weights that the "
                f"model begins with{where}; mend the data or the model, or set faults.bad_loss = take if it may be so"
            )

    def _train_twice(self, client: int, data: ClientData, x: Tensor) -> None:
        """Train the same short round twice, and compare."""
        part = data.first(min(data.samples, 2 * data.batch_size))._replace(slowdown=1.0)
        self._flat.buffer.copy_(x)
        self._trainer.round(Order(client, 0, 0, 2), part, lambda: False)
        one, two = self._flat.buffer.clone(), self._flat.buffer
        self._flat.buffer.copy_(x)
        self._trainer.round(Order(client, 0, 0, 2), part, lambda: False)
        nearly = NEARLY[self._config.training.precision]
        exact = self._config.clock != "wall" and one.is_cpu
        if _same_bits(one, two) or (not exact and not (one - two).norm() > nearly * (one - x).norm()):
            return
        again = named_views(two, self._flat.layout)
        differ = [name for name, view in named_views(one, self._flat.layout).items() if not _same_bits(view, again[name])]
        inside = ", ".join(self._flat.as_made.changed_inside()[:5])
        raise TaskError(
            f"task {self._task.name}: the same round of client {client}, trained twice from the same model, gave two models "
            f"that differ in {', '.join(differ[:5])}; the module or the loss keeps something from round to round"
            f"{inside and f' (changed: {inside})'}, or draws random numbers that follow from no seed. Keep in a buffer what "
            f"training changes, and draw from the global generator of torch, numpy or random, which every round seeds"
        )


def _batch(client: int, size: int, data: ClientData) -> str:
    return f"a batch of {size} in training (client {client} has {data.samples} samples, in batches of {data.batch_size})"


def _batch_fault(
    name: str, client: int, size: int, data: ClientData, smaller: bool, error: BaseException, ranks: int = 1
) -> TaskError:
    """What the model or the loss has raised for a batch, with what to change if that may be its size."""
    advice = ""
    if ranks > 1 and (smaller or size == 1):
        advice = (
            f"each of the {ranks} ranks of the client has a part of a batch: set a larger batch_size, or training.last_batch"
        )
    elif data.samples > data.batch_size and size % data.batch_size:
        advice = 'set training.last_batch = "join" or "drop", or another training.batch_size'
    elif smaller or size == 1:
        advice = "if the model needs more than so many (batch norm does), give the client more samples, or lower clients"
    return fault(name, _batch(client, size, data), error, advice)


def _same_bits(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors are equal to the bit, NaN included."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    words = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, two)]
    return torch.equal(*words)


def _broken_rows(data: Data) -> Tensor:
    """Rows with an input or a target that is not finite, int64."""
    broken = torch.zeros(len(data.targets), dtype=torch.bool)
    for part in data:
        if isinstance(part, Tensor) and part.is_floating_point() and not (finite := torch.isfinite(part)).all():
            broken |= ~finite.reshape(len(part), -1).all(dim=1).cpu()
    return broken.nonzero()[:, 0]


def _extremes(data: Data) -> tuple[Tensor, Tensor, float, float]:
    """Rows that hold a value that is not finite, rows of the least and the largest integer target, and these targets."""
    targets, ends, low, high = data.targets, torch.zeros(0, dtype=torch.int64), math.inf, -math.inf
    if isinstance(targets, Tensor) and not (targets.is_floating_point() or targets.is_complex()) and targets.numel():
        flat = targets.reshape(len(targets), -1).long()
        low, high = float(flat.min()), float(flat.max())
        ends = torch.stack([flat.amin(dim=1).argmin(), flat.amax(dim=1).argmax()]).cpu()
    return _broken_rows(data), ends, low, high
