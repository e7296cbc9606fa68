"""Tasks: model, loss, metric, and the split of the data over the clients. Each file holds one task.

A task is a section of the config with a few methods. It knows no MPI; a rank asks it only for what that rank needs, so
that data lies where it is used.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from asyncfeded.config import Settings, choose
from asyncfeded.tasks.classification import Data
from asyncfeded.tasks.contract import fault
from asyncfeded.tasks.digits import Digits
from asyncfeded.tasks.federated_h5 import FederatedH5
from asyncfeded.tasks.shakespeare import Shakespeare
from asyncfeded.tasks.synthetic import Synthetic


class Task(Protocol):
    """The interface between a task and server or clients."""

    name: str

    def model(self) -> nn.Module:
        """A new model, float32, its weights drawn from torch's global generator."""

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """Number of training samples of every client, int64 (num_clients,): what `client_data` would give, much cheaper.

        Raises:
            ValueError: as `client_data`, where a look at the sizes tells.
        """

    def client_data(self, client: int, num_clients: int, seed: int) -> Data:
        """The training data of one client.

        Raises:
            ValueError: the data is missing or broken, or does not suffice for so many clients.
        """

    def test_data(self) -> Data:
        """The data that the global model is tested on. Raises ValueError as `client_data`."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch, to be differentiated."""

    def evaluate(self, outputs: Tensor, targets: Tensor) -> tuple[float, float, int]:
        """Sum of the losses, number of correct predictions and number of predictions (at least 1) of a batch."""


@runtime_checkable
class Remarks(Protocol):
    """A task that has something to say about its data, besides what it refuses."""

    def remarks(self) -> list[str]:
        """Sentences for the user, said before training: what is left out of the files, or is not read as it stands there.

        Raises:
            ValueError: as `Task.client_data`.
        """


TASKS: dict[str, type[Settings]] = {
    "digits": Digits,
    "federated_h5": FederatedH5,
    "femnist": FederatedH5,  # its name in the literature
    "synthetic": Synthetic,
    "shakespeare": Shakespeare,
}


def load_task(table: dict[str, Any]) -> Task:
    """The task that a config's section `task` describes.

    Raises:
        ValueError: an unknown task, an unknown key or a value out of range; or whatever the task's class raises.
    """
    try:
        task: Task = choose(TASKS, table, "task")  # type: ignore[assignment]
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        raise fault(str(table["name"]), "made from its keys", error) from None
    return task
