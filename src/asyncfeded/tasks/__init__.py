"""Tasks: model, loss, metric, and the split of the data over the clients. Each file holds one task.

A task is a section of the config with a few methods. It knows no MPI; a rank asks it only for what that rank needs, so
that data lies where it is used.
"""

from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from pydantic import AfterValidator
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from asyncfeded.config import Settings, section
from asyncfeded.files.paths import expand
from asyncfeded.own import load, wrong_methods
from asyncfeded.tasks.at import At
from asyncfeded.tasks.classification import Batch, Samples, Sums
from asyncfeded.tasks.contract import TaskError
from asyncfeded.tasks.digits import Digits
from asyncfeded.tasks.federated_h5 import FederatedH5
from asyncfeded.tasks.images import Images
from asyncfeded.tasks.language import Language
from asyncfeded.tasks.shakespeare import Shakespeare
from asyncfeded.tasks.synthetic import Synthetic
from asyncfeded.tasks.tabular import Tabular


class Task(Protocol):
    """The interface between a task and server or clients.

    A round knows nothing but the model that it was sent. It begins with the parameters, and with the statistics: those
    frozen parameters and persistent buffers of floating point that training changes. Everything else in the module (integer
    buffers, buffers that are not persistent, attributes) begins every round as `model` made it. Tensors that training does
    not change must never change: frozen parameters must be the same on every rank, buffers become those of the server. What
    cannot be put back (an object that is no tensor and is changed inside, such as a list that grows or a generator of its
    own, and state outside the module) must not change the result of a round: before training a worker trains a short round
    twice from one model, and refuses the task if the two differ.

    The global generators of torch, numpy and random are seeded before each round, before each test of the model, before
    `model`, `sizes` and `test_data`, and for each client before `client_data`. Then a run is the same to the bit on any
    number of ranks.

    Answers are checked (contract.py). A ValueError that a method raises itself is a sentence for the user; any other
    exception is told with the task's own traceback. Both end the run on all ranks, before training where they can be found.

    A class attribute `metrics` says by name what `score` measures, a `Metric` for each; the first one is what limits.target,
    tables and figures look at, unless evaluation.metric names another. A task without it has accuracy and loss.
    """

    def model(self) -> nn.Module:
        """A new model, its trained parameters float32 and finite, its weights drawn from a global generator.

        It has all parameters and buffers, also before the first batch. Each call gives the same.
        """

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """Number of training samples of every client, int64 (num_clients,): what `client_data` would give, much cheaper.

        Every client has at least one.

        Raises:
            ValueError: as `client_data`, where a look at the sizes tells.
        """

    def client_data(self, client: int, num_clients: int, seed: int) -> Samples:
        """The training data of one client, as many samples as `sizes` says.

        `Data` lies on the worker's device. Of other samples each batch is read when it is trained, and nothing else is held.
        The global generators are seeded for each batch that is read, so that a sample may draw random numbers; it comes out
        the same in whichever process it is read (training.loader_workers). What can only be iterated over is not shuffled:
        an epoch takes as many samples as `sizes` says from a new iteration, which may be endless, and may draw its start.

        Raises:
            ValueError: the data is missing or broken, or does not suffice for so many clients.
        """

    def test_data(self) -> Samples:
        """The samples that the global model is tested on, at least one; what can only be iterated over must end.

        Raises:
            ValueError: as `client_data`.
        """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of the model on a batch, a tensor of one number, to be differentiated."""

    def score(self, model: nn.Module, batch: Batch) -> Sums:
        """The metrics of the model on a batch: for each of `metrics` its sum over the batch, and the count of what it sums.

        Sums and counts of all batches are added, the one is divided by the other, and `Metric.finish` is applied. A count
        may be 0 in a batch, but not in all.
        """


@runtime_checkable
class Collates(Protocol):
    """A task that makes batches of its samples itself, where torch's default_collate does not do it."""

    def collate(self, samples: list[Any]) -> Batch:
        """A batch of some samples, of any structure of tensors. It is called in loader processes too."""


@runtime_checkable
class HoldsOut(Protocol):
    """A task whose clients have data of their own to test with (evaluation.client_rounds)."""

    def held_out(self, client: int, num_clients: int, seed: int) -> Samples:
        """Data of one client that is not in its `client_data`, at least one sample; read as that is, and in order.

        The global generators are seeded as they are before `client_data` of this client: both may draw the same split.

        Raises:
            ValueError: as `client_data`.
        """


@runtime_checkable
class Remarks(Protocol):
    """A task that has something to say about its data, besides what it refuses."""

    def remarks(self) -> list[str]:
        """Sentences for the user, said before training: what is left out of the files, or is not read as it stands there.

        Raises:
            ValueError: as `Task.client_data`.
        """


@runtime_checkable
class Optimizes(Protocol):
    """A task that makes the optimizer of its clients itself."""

    def optimizer(self, parameters: list[Parameter], at: At) -> Optimizer:
        """A new optimizer, at the start of every round.

        Args:
            parameters: those that are trained, in the order of the model.
            at: the first step of the round.
        """


@runtime_checkable
class Schedules(Protocol):
    """A task that has a schedule of its own."""

    def factor(self, at: At) -> float:
        """The factor on the learning rate in a step, at least 0; on those of the task's optimizer, if it makes one."""


@runtime_checkable
class Steps(Protocol):
    """A task that takes the steps itself: it may compute the loss twice, step less often, or change the gradients."""

    def step(self, model: nn.Module, batch: Batch, optimizer: Optimizer) -> Tensor:
        """A step: from the batch to the new parameters. The gradients are those that the step before left.

        Returns:
            The mean loss of the batch, a tensor of one number.
        """


OPTIONAL = (Collates, HoldsOut, Remarks, Optimizes, Schedules, Steps)
"""What a task may have besides the methods of `Task`."""
TASKS: dict[str, type[Settings]] = {
    "digits": Digits,
    "federated_h5": FederatedH5,
    "femnist": FederatedH5,  # its name in the literature
    "synthetic": Synthetic,
    "shakespeare": Shakespeare,
    "images": Images,
    "language": Language,
    "tabular": Tabular,
}


class Initial(Settings):
    """The key that every task has besides those of its class."""

    initial: Annotated[str, AfterValidator(expand)] = ""
    """Weights that the model begins with, instead of those that it is made with: a file (.pt, .pth, .safetensors, .h5) or
    the folder of a run that has ended. Empty: none."""


TAKEN = ("name", *Initial.model_fields)
"""Keys of the section that are none of the task's class."""


def load_task(table: dict[str, Any]) -> Task:
    """The task that a config's section `task` describes.

    Raises:
        ValueError: an unknown task, an unknown key or a value out of range; or whatever the task's class raises.
        TaskError: the class is not one of a task.
    """
    return check_task(load(TASKS, table, "task", TAKEN), table["name"])


def check_task(task: object, name: str) -> Task:
    """The same object, if it is a task. Raises TaskError if a method is missing, or takes other arguments."""
    if faults := wrong_methods(task, Task, OPTIONAL):
        raise TaskError(f"task {name}: {'; '.join(faults)}")
    return task  # type: ignore[return-value]


def load_initial(table: dict[str, Any]) -> str:
    """`task.initial`, from a config's section `task`. Raises ValueError if it is no path."""
    return section(Initial, {key: table[key] for key in Initial.model_fields if key in table}, "task").initial
