"""Reads batches of samples that are no tensors, in this process or, ahead of time, in `training.loader_workers` others.

Nothing but these batches is held. The random numbers that are drawn while a batch is read (augmentation) follow from the
seed, the client, the round and the number of the batch, and not from the process that reads it: a run is the same to the bit
with any number of processes.
"""

import copy
import dataclasses
import os
import signal
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import suppress
from itertools import islice
from multiprocessing import parent_process
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from asyncfeded.mpi.tether import tie
from asyncfeded.seeds import seeded
from asyncfeded.tasks.classification import Batch, Data, Samples, is_stream
from asyncfeded.tasks.contract import CheckedTask, TaskError, fault

COLLATE = (
    "let all samples hold tensors, arrays and numbers of the same shapes, or give the task a method collate(samples), which "
    "makes a batch of a list of them"
)
"""What to do where torch's default_collate makes no batch."""
SEND = (
    "open files in __getitem__ and not before, define classes and functions at the top of a file (no lambda), keep many "
    "small tensors in one, or set training.loader_workers = 0"
)
"""What to do where samples cannot be sent to another process."""


class Stored(NamedTuple):
    """Samples that a loader reads."""

    loader: "Loader"
    number: int
    """Which of the loader's."""
    samples: int
    """How many there are in an epoch; -1: a stream is read to its end."""
    stream: bool
    """Whether they can only be iterated over."""


class Wanted(NamedTuple):
    """A batch that is to be read; see `read`."""

    number: int
    """Which samples of the loader."""
    rows: Sequence[int]
    key: tuple[int, ...]
    where: str
    whole: bool
    """Whether no sample of it may be missing."""
    kept: range | None = None
    """Which of the rows to keep, of a stream; None: all."""


class Got(NamedTuple):
    """A batch that was read; no batch of no samples, behind the end of a stream."""

    batch: Batch
    samples: int


class Shelf(Dataset[Got | TaskError]):
    """The samples of a loader, of which it reads batches. Every process has its own.

    Args:
        name: name of the task, for messages.
        collate: makes a batch of a list of samples; None: torch's default_collate.
        seed: seed of the run.
    """

    def __init__(self, name: str, collate: Callable[[list[Any]], Batch] | None, seed: int) -> None:
        self.samples: list[Any] = []
        self._name, self._collate, self._seed = name, collate, seed
        self._iterator: Iterator[Any] = iter(())  # of the stream that is being read
        self._sent: set[int] = set()  # samples of which a batch could be sent to another process

    def __getitem__(self, wanted: Wanted) -> Got | TaskError:
        """Read a batch. What is wrong is returned: an exception would not reach another process as it is."""
        with seeded(self._seed, *wanted.key):
            try:
                items = self._read(wanted)
                got = Got(self._make_batch(wanted, items) if items else None, len(items))
                self._check_sending(wanted, got)
            except TaskError as error:
                return error
            return got

    def _check_sending(self, wanted: Wanted, got: Got) -> None:
        """Whether a batch can leave a loader process: what cannot would be lost there, and the rank would wait for ever."""
        if wanted.number in self._sent or get_worker_info() is None:
            return
        try:
            ForkingPickler.dumps(got)
        except Exception as error:
            raise fault(self._name, f"{wanted.where}, a batch for another process", error, SEND) from None
        self._sent.add(wanted.number)

    def _read(self, wanted: Wanted) -> list[Any]:
        samples, items = self.samples[wanted.number], list[Any]()
        if hasattr(samples, "__getitems__") and wanted.rows:  # of several at once
            with suppress(Exception):  # one by one they tell which one fails
                items = list(samples.__getitems__(list(wanted.rows)))
                if len(items) == len(wanted.rows):
                    return items
            items = []
        try:
            if is_stream(samples):
                if wanted.rows[0] == 0:
                    self._iterator = iter(samples)
                for item in islice(self._iterator, len(wanted.rows)):
                    items.append(item)  # one by one: their number tells which one fails
            else:
                for row in wanted.rows:
                    items.append(samples[row])
        except (Exception, SystemExit) as error:
            raise fault(self._name, f"{wanted.where}, sample {wanted.rows[len(items)]}", error) from None
        if wanted.whole and len(items) < len(wanted.rows):
            raise TaskError(
                f"task {self._name}, {wanted.where}: the samples end after {wanted.rows[0] + len(items)}, but sizes "
                f"says that there are more"
            )
        return items if wanted.kept is None else items[wanted.kept.start : wanted.kept.stop]

    def _make_batch(self, wanted: Wanted, items: list[Any]) -> Batch:
        collate = self._collate or default_collate
        try:
            return collate(items)
        except (Exception, SystemExit) as error:
            row = wanted.rows[(wanted.kept or range(1)).start + _odd_one(collate, items)]
            advice = "" if self._collate else COLLATE
            raise fault(self._name, f"{wanted.where}, a batch with sample {row}", error, advice) from None


def _odd_one(collate: Callable[[list[Any]], Batch], items: list[Any]) -> int:
    """Which sample makes no batch by itself or with the first one; 0 if each does."""
    for place, item in enumerate(items):
        try:
            collate([item])
            collate([items[0], item])
        except (Exception, SystemExit):
            return place
    return 0


class _Sampler:
    """What a DataLoader is asked for."""

    def __init__(self) -> None:
        self.wanted: Iterator[Wanted] = iter(())

    def __iter__(self) -> Iterator[Wanted]:
        return self.wanted


class Loader:
    """Reads samples in batches, in this process or in others, by torch's DataLoader.

    The others start with the first batch, as new programs, and never as copies of this one, which may have called MPI_Init.
    They end with it, and each reads two batches ahead. A stream is read in one process.

    Args:
        task: gives the name, and `collate` if it has one.
        device: where batches go; by way of pinned memory, beside what a GPU computes.
        workers: number of other processes; 0: none.
        seed: seed of the run.
    """

    def __init__(self, task: CheckedTask, device: torch.device, workers: int, seed: int) -> None:
        self._shelf = Shelf(task.name, task.collate, seed)
        self._name, self._device, self._workers = task.name, device, workers
        self._sampler = _Sampler()
        self._loader: DataLoader[Got | TaskError] | None = None

    def add(self, samples: Samples, size: int = -1) -> Data | Stored:
        """Take samples; tensors are moved to the device at once.

        Args:
            samples: the samples.
            size: how many a stream gives in an epoch; -1: all that it has.
        """
        if isinstance(samples, Data):
            return Data(*(part.to(self._device) for part in samples))
        self._shelf.samples.append(samples)
        self._loader = None  # its processes know the samples before
        stream = is_stream(samples)
        return Stored(self, len(self._shelf.samples) - 1, size if stream else len(samples), stream)  # type: ignore[arg-type]

    def read(self, wanted: Iterator[Wanted]) -> Iterator[Got]:
        """Read batches. One call at a time: the next gives up what the last one has not read. Raises TaskError as `read`."""
        self._sampler.wanted = wanted
        try:
            if self._loader is None:  # not its truth, which is that of a length
                self._loader = self._open()
            batches = iter(self._loader)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise TaskError(f"task {self._name}: its samples cannot be sent to loader processes ({what}); {SEND}") from None
        while True:
            try:
                got = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                raise TaskError(
                    f"task {self._name}: a loader process has ended: {error}; what it said stands above, and with "
                    f"training.loader_workers = 0 the rank says it"
                ) from None
            if isinstance(got, TaskError):
                raise got
            yield got if self._device.type == "cpu" else got._replace(batch=moved(got.batch, self._device))

    def _open(self) -> DataLoader[Got | TaskError]:
        workers = min(self._workers, 1) if any(map(is_stream, self._shelf.samples)) else self._workers
        return DataLoader(
            self._shelf,
            batch_size=None,
            sampler=self._sampler,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=self._device.type != "cpu",
            worker_init_fn=_begin,
            multiprocessing_context="spawn" if workers else None,
            generator=torch.Generator(),  # it would draw from the global one
            persistent_workers=workers > 0,
        )


def _as_it_is(got: Any) -> Any:  # noqa: ANN401, what a DataLoader takes for collate_fn
    return got


def _begin(_worker: int) -> None:
    """Let a loader process end with its rank, however that ends, and be spared what a launcher signals to all of a job."""
    os.setpgid(0, 0)
    parent = parent_process()
    if parent and parent.pid and not tie(parent.pid, signal.SIGKILL):
        os._exit(1)


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device: tensors, what has a method `to`, and mappings, sequences and dataclasses of these."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return batch.to(device) if hasattr(batch, "to") else with_parts(batch, lambda part: moved(part, device))


def with_parts(batch: Batch, change: Callable[[Batch], Batch]) -> Batch:
    """A mapping, a sequence or a dataclass of the same kind, with its parts changed; anything else is returned as it is."""
    if isinstance(batch, MutableMapping):
        other = copy.copy(batch)
        other.update({key: change(part) for key, part in batch.items()})
        return other
    if isinstance(batch, tuple | list):
        parts = [change(part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in dataclasses.fields(batch) if field.init]
        return dataclasses.replace(batch, **{name: change(getattr(batch, name)) for name in names})
    return batch
