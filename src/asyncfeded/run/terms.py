"""What a client that joins must agree on with the server, as the ranks of a job do before training. It sends no message."""

import base64
import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from asyncfeded.files.digest import differing
from asyncfeded.model.flat import ModuleState, Shape, digest_frozen
from asyncfeded.mpi.world import STATEMENT, compare, make_statement
from asyncfeded.run.plan import Plan
from asyncfeded.training.heterogeneity import ClientProfiles


class Offer(NamedTuple):
    """What a client that wants to join says of itself, and the server of its side."""

    statement: np.ndarray
    """STATEMENT (1,), about the config and the module."""
    origin: str
    """Digests of own files and of the first weights (plan.Plan.origin)."""
    profiles: str
    """Digest of the profiles of all clients."""

    def words(self) -> dict[str, str]:
        """It as JSON takes it."""
        return {"statement": self.statement.tobytes().hex(), "origin": self.origin, "profiles": self.profiles}


def offer(plan: Plan, state: ModuleState, profiles: ClientProfiles, origin: str) -> Offer:
    """What this process would train."""
    size = sum(tensor.numel() for tensor in state.all.values())
    statement = make_statement(config=plan.config.digest(), layout=state.digest(), num_params=state.num_params, size=size)
    return Offer(statement, origin, hashlib.sha256(profiles.clients.tobytes()).hexdigest())


class Terms(NamedTuple):
    """What the server tells a client that joins, once they agree."""

    offer: Offer
    """What the server would train."""
    statistics: list[str]
    """Names of the tensors that travel besides the parameters."""
    own: list[Shape]
    """What is each client's own."""
    frozen: str
    """Digests of the frozen parameters."""
    tables: list[Tensor]
    """The tensors that stay where they are and must be those of the server; see `kept`."""
    threads: int
    """Threads of each client: sums of floats depend on it."""

    def welcome(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Compare with what a client offers. Returns what to tell it. Raises ValueError if they do not agree."""
        mine, theirs = self.offer, bytes.fromhex(str(asked.get("statement")))
        if len(theirs) != STATEMENT.itemsize:
            raise ValueError("server and client speak different protocols; install the same asyncfeded on every host")
        statements = np.concatenate([mine.statement, np.frombuffer(theirs, STATEMENT)])
        if disagreement := compare(statements, ("the server", "the client that joins")):
            raise ValueError(disagreement)
        if names := differing(mine.origin, str(asked.get("origin"))):
            raise ValueError(f"{', '.join(names[:3])}: not the same as on the server; every host must have the same")
        if asked.get("profiles") != mine.profiles:
            raise ValueError("the clients have other samples than on the server; every host must have the same data")
        tables = [base64.b64encode(raw(tensor).numpy().tobytes()).decode() for tensor in self.tables]
        return {
            "statistics": self.statistics,
            "own": self.own,
            "frozen": self.frozen,
            "tables": tables,
            "threads": self.threads,
        }


def accept(told: dict[str, Any], state: ModuleState) -> tuple[list[str], list[Shape]]:
    """Take what the server has told: its tables become those of this process.

    Returns:
        The names of the tensors that travel besides the parameters, and what is each client's own.

    Raises:
        ValueError: a frozen parameter is not that of the server.
    """
    statistics, own = told["statistics"], [(name, tuple(shape)) for name, shape in told["own"]]
    if names := differing(told["frozen"], digest_frozen(state.frozen(statistics))):
        raise ValueError(f"{', '.join(names[:3])}: not the same as on the server; every host must have the same")
    for tensor, encoded in zip(kept(state, statistics), told["tables"], strict=True):
        if tensor.numel():
            put(tensor, torch.frombuffer(bytearray(base64.b64decode(encoded)), dtype=torch.uint8))
    return statistics, own


def kept(state: ModuleState, statistics: Iterable[str]) -> list[Tensor]:
    """The tensors that do not travel and are those of the server on every rank: hosts may compute a table differently."""
    names = {*statistics, *state.frozen([*statistics])}
    return [tensor for name, tensor in (state.candidates | state.local).items() if name not in names]


def raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, in host memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def put(tensor: Tensor, raw: Tensor) -> None:
    """Overwrite a tensor by bytes, uint8."""
    if not tensor.is_contiguous():  # its elements may share memory
        tensor.data = tensor.data.contiguous()
    tensor.data.copy_(raw.view(tensor.dtype).reshape(tensor.shape))
