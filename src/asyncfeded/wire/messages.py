"""The messages between server and clients: headers, orders, updates, and the reasons to refuse an update.

Clients train on workers, which are all ranks except the server: client i trains on worker i modulo the number of workers,
so that its data lies on one rank, unless that rank dies. An update is a header (80 bytes) and the model's raw buffer in
chunks (transfer.py), with what is the client's own behind the model; so is a reply. The two sides take turns:

1. The server replies to a client: header (round, version, K, steps before, learning rate, share of the run), weights. It
   does not touch that reply buffer until the client's next update: the buffer *is* the client's base model x_s. A worker
   has one order in hand at a time, or two (in_hand.py), which it answers in turn.
2. The worker trains K epochs and sends an update: header (base version, epochs done, ...), weights.
3. To end, the server sends a header with STOP to every worker, at any time. A worker answers with exactly one header with
   LAST, after the update that it may be sending; an order that came before the STOP it receives and does not train. When all
   have answered, nothing is left unreceived, and the server sends a header with BYE. It adds RANKS_LOST if a rank is lost:
   the others must then leave without waiting for each other.
4. A client that has joined (open_wire.py) may leave: the header of its last update has LEAVES. It gets a STOP in return.
5. A worker of several ranks ends when one of them has died: its leader sends a header with GONE, and nothing after it.

Nothing is pickled. The chunks of a worker's n-th message have a tag that follows from n, so that the rest of a refused
message is never taken for a part of the next one. server_wire.py and client_wire.py send and receive the messages.
"""

import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from asyncfeded.mpi.world import PROTOCOL
from asyncfeded.wire.transfer import Receiving

HEADER = np.dtype(
    [
        ("magic", np.uint32),
        ("protocol", np.uint32),
        ("flags", np.uint32),
        ("client", np.int32),
        ("epochs", np.int32),  # to a client: K, the epochs or steps to train; from a client: as many done
        ("round", np.int32),  # of this client: 0, 1, ...
        ("version", np.int64),  # to a client: of the model sent; from a client: of its base model
        ("steps", np.int64),  # to a client: done in its merged updates; from a client: done in this round
        ("samples", np.int64),  # samples seen
        ("train_loss", np.float64),  # mean over the samples seen; to a client: the learning rate, 0: that of the config
        ("compute_s", np.float64),  # of this round
        ("wait_s", np.float64),  # between the previous update and its reply
        ("measured", np.float64),  # what the rule asks for, or NaN; to a client: the part of the run that is done, 0 to 1
        ("scores", np.float64, (8,)),  # from a client: metrics of the model that it was sent; NaN: it was not tested
    ]
)
_CODES = {"u4": "I", "i4": "i", "i8": "q", "f8": "d"}
FIELDS = struct.Struct("=" + "".join(_CODES[HEADER[name].str[1:]] for name in HEADER.names or () if name != "scores"))
"""All but the scores: `unpack` and `pack` take 0.2 and 0.3 us, numpy takes 0.6 and 0.4, with the scores 6."""
NO_SCORES: tuple[float, ...] = (math.nan,) * HEADER["scores"].shape[0]
HEAD = HEADER.fields["scores"][1]  # type: ignore[index]
"""Bytes of a header that has no scores: all that is sent of it."""
EMPTY = np.zeros((), HEADER)
"""Empties a row: 0.04 us, where the number 0 takes 0.6 us."""
MAGIC = 0xA5F3DED0
STOP, LAST, BYE, RANKS_LOST, TESTED, LEAVES, GONE = 1, 2, 4, 8, 16, 32, 64  # flags; TESTED: scores follow
HEADER_TAG = 1


def unpack(rows: np.ndarray, index: int = 0) -> tuple[Any, ...]:
    """The fields of one row of HEADER (rows,), without scores."""
    return FIELDS.unpack_from(rows, index * HEADER.itemsize)  # type: ignore[arg-type]  # an array is a buffer


def pack(rows: np.ndarray, index: int, fields: tuple[int | float, ...]) -> None:
    """Write the fields of one row of HEADER (rows,), without scores."""
    FIELDS.pack_into(rows, index * HEADER.itemsize, *fields)  # type: ignore[arg-type]


def only(flags: int) -> tuple[int | float, ...]:
    """The fields of a header that carries nothing but flags, without scores."""
    return MAGIC, PROTOCOL, flags, -1, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0


def flagged(flags: int) -> np.ndarray:
    """uint8 (HEADER.itemsize,): a header that carries nothing but flags. A send of it keeps it."""
    header = np.zeros(1, HEADER)
    pack(header, 0, only(flags))
    return header.view(np.uint8)


class Header(NamedTuple):
    """The fields of a header that has arrived, as HEADER names them."""

    magic: int
    protocol: int
    flags: int
    client: int
    epochs: int
    round: int
    version: int
    steps: int
    samples: int
    train_loss: float
    compute_s: float
    wait_s: float
    measured: float
    scores: tuple[float, ...] = NO_SCORES

    @property
    def foreign(self) -> str:
        """Why this is not a header of this program, as a sentence; empty if it is one."""
        if self[:3] == (MAGIC, PROTOCOL, 0):
            return ""
        if self.magic != MAGIC:
            return f"magic {self.magic:#x}, expected {MAGIC:#x}"
        if self.protocol != PROTOCOL:
            return f"protocol {self.protocol}, expected {PROTOCOL}"
        if self.flags & ~(TESTED | LEAVES) and self.flags not in (LAST, GONE):
            return f"flags {self.flags:#x}, expected {LAST:#x}, {GONE:#x}, or of {TESTED | LEAVES:#x}"
        return ""

    @classmethod
    def read(cls, rows: np.ndarray, worker: int) -> "Header":
        """A row of HEADER (workers,) that has arrived."""
        fields = unpack(rows, worker)
        return cls._make((*fields, tuple(rows["scores"][worker].tolist()) if fields[2] & TESTED else NO_SCORES))

    def arrival(self, weights: Tensor, began_s: float) -> "Arrival":
        """The update that this header announced, with its weights; `began_s`: see `Arrival`."""
        _, _, _, client, epochs, number, version, steps, samples, train_loss, compute_s, wait_s, measured, scores = self
        figures = (samples, steps, train_loss, compute_s, wait_s, weights, 0, scores, began_s, measured)
        return Arrival(client, number, version, epochs, *figures)


class Order(NamedTuple):
    """What the server asks of a client, together with the weights of that version."""

    client: int
    round: int
    """How many rounds the client has been asked for before."""
    version: int
    epochs: int
    """K, in epochs or in steps (training.unit)."""
    steps: int = 0
    """Steps that the client has done before, in its merged updates."""
    share: float = 0.0
    """Part of the run that is done, 0 to 1."""
    learning_rate: float = 0.0
    """Learning rate of this round, before the schedule; 0: that of the config."""

    @property
    def fields(self) -> tuple[int | float, ...]:
        """The fields of the header that carries it, without scores."""
        client, number, version, epochs, steps, share, learning_rate = self
        return MAGIC, PROTOCOL, 0, client, epochs, number, version, steps, 0, learning_rate, 0.0, 0.0, share

    def unanswered(self, header: Header) -> str:
        """Why a header does not answer this order, as a sentence; empty if it does."""
        client, number, version, epochs, *_ = self
        if header[3:7] != (client, epochs, number, version):
            if header.client != client:
                return f"it is from client {header.client}, who was not asked"
            if header.round != number:
                return f"it answers round {header.round}, expected {number}"
            if header.version != version:
                return f"it started from version {header.version}, which the client does not hold: it was sent {version}"
            return f"it has done K = {header.epochs}, expected {epochs}"
        if header.samples < 1 or header.steps < 1:
            return f"it has done {header.steps} steps and seen {header.samples} samples"
        if not (0 <= header.compute_s < math.inf and 0 <= header.wait_s < math.inf):
            return f"it took {header.compute_s} s and waited {header.wait_s} s"
        return ""


class Arrival(NamedTuple):
    """An update that has arrived completely."""

    client: int
    round: int
    base_version: int
    epochs: int
    samples: int
    steps: int
    train_loss: float
    compute_s: float
    wait_s: float
    weights: Tensor
    """float32 (size,), in a receive buffer of the wire; valid until `release`."""
    queue: int = 0
    """How many other updates were waiting when this one was taken: at least their headers had arrived."""
    scores: tuple[float, ...] = NO_SCORES
    """Metrics of the model that the client was sent, in the order of the task; NaN where there is none."""
    began_s: float = math.nan
    """When its receipt began, by time.perf_counter; NaN where nobody looks."""
    measured: float = math.nan
    """What the rule asks its clients to measure; NaN: nothing."""


class Refused(NamedTuple):
    """A message that does not count as an update: it was not read, or it was read and dropped."""

    client: int
    """The client whose order it should have answered; -1: there was no such order."""
    reason: str
    """A sentence."""
    answered: bool
    """Whether it came in place of the answer, so that the client now waits for the next order."""


class Lost(NamedTuple):
    """A worker that was given up. It is expected to send nothing more."""

    worker: str
    """Its name, such as `rank 2`."""
    clients: tuple[int, ...]
    """The clients that no worker trains now."""
    reason: str
    """A sentence."""
    left: bool = False
    """Whether it has left in order."""


class Joined(NamedTuple):
    """A client that was absent, or lost, and now waits for an order."""

    client: int
    where: str
    """Where it runs, in words."""


class Stuck(NamedTuple):
    """No update can come any more, though the run has not reached a limit."""

    reason: str
    """A sentence."""


class PendingOrder(NamedTuple):
    """An order on its way to a worker. Pending orders sort by the time at which they are due."""

    due: float
    number: int
    order: Order
    weights: Tensor


class Incoming(NamedTuple):
    """An update that the server is receiving."""

    worker: int
    header: Header
    slot: int
    """Index of its buffer."""
    receiving: Receiving
    refusal: str
    """What is wrong with its header, as a sentence; empty if nothing is."""
    began_s: float
    """When it began, by time.perf_counter."""


class Wire(Protocol):
    """What the server needs from its wire. `server_wire.ServerWire` is the wire over MPI."""

    def next(self) -> Arrival | Refused | Lost | Joined | Stuck | None:
        """The event that has waited longest, or None if there is none. Never waits."""

    def release(self, arrival: Arrival) -> None:
        """Say that the arrival's weights have been read: their buffer may receive the next update."""

    def reply(self, order: Order, weights: Tensor, ready: Callable[[int], object]) -> None:
        """Give a client an order and the model for it.

        Args:
            order: what to do.
            weights: float32 (size,); belongs to the wire until the client's next update arrives.
            ready: puts into `weights[:stop]` what is to be sent. It is called with a rising `stop`, the last time with
                size, before this method returns.
        """

    def now(self) -> float:
        """Seconds of training, on the clock of the run."""

    def pause(self) -> None:
        """Let other processes run, because there is nothing to do."""

    def stop(self) -> int:
        """Tell all workers to stop, and receive what is under way. Returns how many updates were discarded by that."""
