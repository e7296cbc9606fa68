"""Which samples make a batch, in training and in a test; batches of tensors are cut here, others are read by a `Loader`."""

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from asyncfeded.mpi.seats import Part
from asyncfeded.seeds import Stream
from asyncfeded.tasks.classification import Batch, Data
from asyncfeded.training.loader import Stored, Wanted

WHOLE = Part()
"""All of a batch."""


class ClientData(NamedTuple):
    """The data and the pace of one client."""

    data: Data | Stored
    """Tensors on the model's device, or samples."""
    batch_size: int
    slowdown: float = 1.0
    """Factor by which the client lengthens the time of a round."""

    @property
    def samples(self) -> int:
        """Number of samples of an epoch."""
        return count(self.data)

    def first(self, samples: int) -> "ClientData":
        """The same client with its first samples only."""
        if isinstance(self.data, Data):
            return self._replace(data=Data(*(part[:samples] for part in self.data)))
        return self._replace(data=self.data._replace(samples=samples))


def count(data: Data | Stored) -> int:
    """Number of samples of an epoch; -1: a stream is read to its end."""
    return len(data.targets) if isinstance(data, Data) else data.samples


def batch_sizes(samples: int, batch_size: int, last_batch: str) -> list[int]:
    """The sizes of the batches of one epoch, in order; with `drop` their sum may be less than `samples`.

    Args:
        samples: number of the client's training samples, at least 1.
        batch_size: samples per step of this client.
        last_batch: training.last_batch.
    """
    full, rest = divmod(samples, batch_size)
    sizes = [batch_size] * full
    if rest and (not full or last_batch == "keep"):
        sizes.append(rest)
    elif last_batch == "join":
        sizes[-1] += rest
    return sizes


def successive(sizes: Iterable[int]) -> Iterator[range]:
    """The rows of batches of these sizes, in order."""
    begin = 0
    for size in sizes:
        yield range(begin, begin + size)
        begin += size


def in_order(data: Data | Stored, batch_size: int) -> Iterator[range]:
    """The rows of all batches of an epoch, in order; without end where a stream is read to its own end."""
    known = count(data) >= 0
    return successive(batch_sizes(count(data), batch_size, "keep") if known else repeat(batch_size))


def read(
    data: Data | Stored,
    batches: Iterable[Tensor | range],
    key: tuple[int, ...],
    where: str,
    first: int = 0,
    part: Part = WHOLE,
) -> Iterator[tuple[Batch, int]]:
    """Read batches, on the device; each comes with its number of samples.

    Args:
        data: the samples.
        batches: the rows of each, int64 or a range. Of a stream they are ranges that follow each other; from 0 on it is
            iterated over anew, and the last batch may have fewer samples where it is read to its end.
        key: Stream and indices of their random numbers, before the number of the batch.
        where: whose they are, for messages.
        first: number of the first batch.
        part: what to read of each batch; that may be nothing, unless it is the whole.

    Raises:
        TaskError: the task's code raises something, or a batch cannot be made or sent.
    """
    if isinstance(data, Data):
        for rows in batches:
            mine = _of(part, rows)
            place = slice(mine.start, mine.stop) if isinstance(mine, range) else mine
            yield (data.inputs[place], data.targets[place]), len(mine)
        return
    for got in data.loader.read(_wanted(data, batches, key, where, first, part)):
        if not got.samples and part is WHOLE:
            return
        yield got.batch, got.samples


def _wanted(
    data: Stored, batches: Iterable[Tensor | range], key: tuple[int, ...], where: str, first: int, part: Part
) -> Iterator[Wanted]:
    """What `read` asks a loader for."""
    drawn = () if part is WHOLE else (part.rank,)  # no two ranks draw the same for their samples
    for number, rows in enumerate(batches, first):
        kept = part.of(len(rows)) if data.stream and part is not WHOLE else None  # a stream is read whole
        mine = _of(part, rows) if kept is None else rows
        listed = mine if isinstance(mine, range) else mine.tolist()
        yield Wanted(data.number, listed, (*key, number, *drawn), where, data.samples >= 0, kept)


def _of(part: Part, rows: Tensor | range) -> Tensor | range:
    """A part of the rows of a batch."""
    if part is WHOLE:
        return rows
    mine = part.of(len(rows))
    return rows[mine.start : mine.stop]


def read_round(
    data: ClientData,
    sizes: list[int],
    num_batches: int,
    client: int,
    number: int,
    part: Part = WHOLE,
    shuffling: torch.Generator | None = None,
) -> Iterator[tuple[Batch, int]]:
    """Read the batches of a round, epoch after epoch, each shuffled when it begins; see `read`.

    Args:
        data: of the client.
        sizes: of the batches of an epoch.
        num_batches: of the round.
        client: the client.
        number: of its round.
        part: what to read of each batch.
        shuffling: the generator that shuffles; None: torch's global one.
    """
    for done in range(0, num_batches, len(sizes)):
        epoch = sizes[: num_batches - done]
        if isinstance(data.data, Stored) and data.data.stream:
            batches: Iterable[Tensor | range] = successive(epoch)
        else:
            rows = torch.randperm(data.samples, generator=shuffling)[: sum(epoch)]
            batches = torch.split(rows.to(data.data.targets.device) if isinstance(data.data, Data) else rows, epoch)
        where = f"round {number} of client {client}"
        yield from read(data.data, batches, (Stream.BATCH, client, number), where, done, part)
