"""`language`: the next token of any text, by a GPT; tokens are bytes, or those of a tokenizer.

The text is one file, all files of a directory that have a pattern, or the roles of an HDF5 file in the layout of TensorFlow
Federated (`examples/<role>/snippets`). A file or a role is a source; its tokens are cut into blocks, so that each is
predicted once: a sample is `context` tokens, and the tokens that follow each of them.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from asyncfeded.config import Settings
from asyncfeded.files.plain import HDF5, check_file, check_text, known_kind, read_bytes, read_text
from asyncfeded.files.tokens import Tokenizer, read_tokenizer
from asyncfeded.metric import FRACTION, Metric
from asyncfeded.tasks import tff
from asyncfeded.tasks.classification import Batch, Data, Sums, deal
from asyncfeded.tasks.gpt import GPT


class Source(NamedTuple):
    """A file or a role, and how many blocks it has to train on and to test on."""

    name: str
    train: int
    test: int


@final
class Language(Settings):
    """A GPT learns the next token of any text; tokens are bytes, or those of a tokenizer.

    A rank reads the sources of its clients, one at a time, and counts the others. Tokens are uint8 where they are
    bytes, and int32 otherwise; the model turns them into indices.
    """

    metrics: ClassVar[Mapping[str, Metric]] = {
        "perplexity": Metric("min", finish=math.exp),
        "loss": Metric("min", "nats per token"),
        "accuracy": Metric("max", FRACTION),
    }

    data: Path
    """Text file, directory of text files, or HDF5 file of roles."""
    pattern: str = Field("*.txt", min_length=1)
    """Which files of a directory, and of the directories in it, are read, such as `*.py`."""
    split: Literal["file", "role", "blocks"] = "blocks"
    """How text is split: `blocks` (each client gets as many, which follow each other), `file` or `role` (files, or the roles
    of an HDF5 file, are dealt in turn by name)."""
    names: tuple[str, ...] = ()
    """Use only these roles, or files of a directory, in this order. Empty: all."""
    snippets: str = Field("snippets", min_length=1)
    """Field of the texts in an HDF5 file."""
    tokenizer: Path | None = None
    """File of a tokenizer: a tokenizer.json of Hugging Face's `tokenizers`, or a *.model of `sentencepiece`. Not given:
    tokens are bytes."""
    test: Path | None = None
    """Other text, of the same form, to test on. Not given: the end of each source is held back."""
    test_share: float = Field(0.1, gt=0, lt=1)
    """Part of each source that is held back for testing, its end, where `test` is not given."""
    too_short: Literal["refuse", "skip"] = "refuse"
    """A source with too few tokens for one block is an error, or is left out before sources are dealt."""
    context: int = Field(64, ge=1)
    """Tokens of a sample: the most that the model looks back."""
    layers: int = Field(4, ge=1)
    """Layers of the model, each of attention and two dense layers."""
    heads: int = Field(4, ge=1)
    """Heads of each attention; they divide `width`."""
    width: int = Field(128, ge=1)
    """Length of the vector of a token."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "Language":
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} cannot be divided by heads = {self.heads}")
        if len(set(self.names)) < len(self.names):
            raise ValueError("names holds a name twice; name each source once")
        return self

    def model(self) -> nn.Module:
        """A GPT whose embedding also gives the scores."""
        return GPT(self._tokenizer.size, self.context, self.layers, self.heads, self.width)

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """See `Task`; reads no file whose tokens are bytes."""
        runs = (self._runs(client, num_clients) for client in range(num_clients))
        return np.array([sum(stop - start for _, start, stop in run) for run in runs], np.int64)

    def client_data(self, client: int, num_clients: int, seed: int) -> Data:
        """See `Task`; the seed plays no part."""
        return self._cut(self.data, self._sources, self._runs(client, num_clients), test=False)

    def test_data(self) -> Data:
        """See `Task`."""
        path, sources = (self.test, self._test_sources) if self.test else (self.data, self._sources)
        runs = [(source, 0, sources[source].test) for source in range(len(sources))]
        if not sum(stop for _, _, stop in runs):
            raise ValueError(
                f"{path}: no source has a block of {self.context} tokens (task.context) to test on; raise task.test_share, "
                f"take a smaller context, or give other text as task.test"
            )
        return self._cut(path, sources, runs, test=True)

    def held_out(self, client: int, num_clients: int, seed: int) -> Data:
        """See `HoldsOut`: what is held back of the client's sources, or the client's part of all that is held back."""
        if self.test:
            raise ValueError("task.test is for the server; leave it out, so that each client holds back text of its own")
        runs = self._runs(client, num_clients, test=True)
        if not sum(stop - start for _, start, stop in runs):
            raise ValueError(f"client {client} holds back no block of {self.context} tokens; raise task.test_share")
        return self._cut(self.data, self._sources, runs, test=True)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy of a token in nats."""
        tokens, following = batch
        return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten().long())

    def score(self, model: nn.Module, batch: Batch) -> Sums:
        """Perplexity, cross-entropy in nats and accuracy of a token; longer before a token makes them better."""
        tokens, following = batch
        scores, following = model(tokens).flatten(0, 1), following.flatten().long()
        loss, n = F.cross_entropy(scores, following, reduction="sum"), len(following)
        return {"perplexity": (loss, n), "loss": (loss, n), "accuracy": ((scores.argmax(dim=1) == following).sum(), n)}

    def remarks(self) -> list[str]:
        """See `Remarks`."""
        sentences = []
        if self.data.is_dir():
            others = sorted(path.name for path in self.data.rglob("*") if path.is_file() and not path.match(self.pattern))
            if others:
                some = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
                sentences.append(f"{self.data}: only {self.pattern} is read (task.pattern), and not {some}")
        known = self._names(self.data)
        if short := len(known) - len(self._sources):
            sentences.append(f"{self.data}: {short} of {len(known)} sources are too short and left out (task.too_short)")
        if not self.test:
            sentences.append(
                f"{self.data}: the end of each source is held back for testing (task.test_share = {self.test_share:g})"
            )
        path, sources = (self.test, self._test_sources) if self.test else (self.data, self._sources)
        if untested := sum(not source.test for source in sources):
            sentences.append(f"{path}: {untested} of {len(sources)} sources are too short to be tested on")
        return sentences

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.tokenizer)

    @cached_property
    def _sources(self) -> list[Source]:
        """The sources that are trained on, in order."""
        sources: list[Source] = []
        for name, count in self._counts(self.data, self._names(self.data)):
            held = 0 if self.test else self._held(count)
            source = Source(name, self._blocks(count - held), self._blocks(held))
            if not source.train and self.too_short == "refuse":
                raise ValueError(
                    f"{self.data}: {name}: {count - held} tokens to train on, too few for a block of {self.context} "
                    f'(task.context) and the token behind it; set task.too_short = "skip", or take a smaller context'
                )
            sources += [source] * bool(source.train)
        if not sources:
            raise ValueError(f"{self.data}: no source has tokens enough for a block of {self.context} (task.context)")
        return sources

    @cached_property
    def _test_sources(self) -> list[Source]:
        """The sources of another text that are tested on; all of it is for testing."""
        assert self.test
        counts = self._counts(self.test, self._names(self.test))
        return [Source(name, 0, self._blocks(count)) for name, count in counts]

    def _blocks(self, tokens: int) -> int:
        """Blocks in so many tokens that follow each other; the last token of a block is also the first of the next."""
        return max(0, tokens - 1) // self.context

    @cached_property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Blocks up to the end of each source: to train on, and to test on."""
        counts = [(source.train, source.test) for source in self._sources]
        train, test = np.cumsum(np.array(counts, np.int64), axis=0).T
        return train, test

    def _runs(self, client: int, num_clients: int, test: bool = False) -> list[tuple[int, int, int]]:
        """Blocks of a client: source, first block, and the one behind the last."""
        ends = self._ends[test]  # those of client i are found in the time of its own sources, and not of all
        if self.split != "blocks":
            having = f"{self.data} has {len(ends)} {self.split}s (task.split = {self.split})"
            sources: Iterable[int] = deal(range(len(ends)), client, num_clients, having)
            begin, end = 0, int(ends[-1])
        else:
            begin, end = (int(ends[-1]) * part // num_clients for part in (client, client + 1))
            sources = range(int(np.searchsorted(ends, begin, "right")), int(np.searchsorted(ends, end, "left")) + 1)
        runs = []
        for source in sources:
            before = int(ends[source - 1]) if source else 0
            runs.append((source, max(begin - before, 0), min(end, int(ends[source])) - before))
        return runs

    def _cut(self, path: Path, sources: list[Source], runs: list[tuple[int, int, int]], test: bool) -> Data:
        """The samples of some runs."""
        runs = [run for run in runs if run[2] > run[1]]
        inputs, targets = [], []
        names = [sources[source].name for source, _, _ in runs]
        for tokens, (_, start, stop) in zip(self._tokens(path, names), runs, strict=True):
            held = self._held(len(tokens)) if test else len(tokens)
            tokens = tokens[len(tokens) - held + start * self.context :][: (stop - start) * self.context + 1]
            inputs.append(tokens[:-1].reshape(-1, self.context))
            targets.append(tokens[1:].reshape(-1, self.context))
        return Data(torch.from_numpy(np.concatenate(inputs)), torch.from_numpy(np.concatenate(targets)))

    def _held(self, tokens: int) -> int:
        """How many of a source's tokens, its last ones, are for testing: of other text all."""
        return tokens if self.test else int(tokens * self.test_share)

    def _names(self, path: Path) -> list[str]:
        """The sources that are used of a text, in order."""
        there = self._there(path)
        if path == self.test:
            return [name for name in self.names if name in there] or there
        if missing := [name for name in self.names if name not in there]:
            near = difflib.get_close_matches(missing[0], there, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{path}: no {'role' if self.split == 'role' else 'file'} {missing[0]!r} (task.names){hint}")
        return list(self.names) or there

    def _there(self, path: Path) -> list[str]:
        """All sources of a text, by name in order."""
        if self.split == "role":
            check_file(path, "give the path of an HDF5 file of roles as task.data=...")
            with tff.open_examples(path, "role") as examples:
                return tff.names(examples, path, "role")
        if not path.is_dir():
            check_file(path, "give the path of a text file, or of a directory, as task.data=...")
            return [path.name]
        try:
            found = sorted(str(file.relative_to(path)) for file in path.rglob(self.pattern) if file.is_file())
        except (ValueError, NotImplementedError) as error:
            raise ValueError(f"task.pattern = {self.pattern!r}: {error}; give one such as *.txt") from None
        if files := [name for name in found if not re.search(r"(^|/)\.", name)]:
            return files
        raise ValueError(f"{path}: no file {self.pattern} in this directory (task.pattern)")

    def _counts(self, path: Path, names: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Sources and the numbers of their tokens; a file of bytes has as many as bytes."""
        if self.split == "role" or self.tokenizer:
            yield from zip(names, map(len, self._tokens(path, names)), strict=True)
        else:
            yield from ((name, check_file(path / name if path.is_dir() else path)) for name in names)

    def _tokens(self, path: Path, names: Sequence[str]) -> Iterator[np.ndarray]:
        """The tokens of sources, (n,)."""
        if self.split == "role":
            yield from (self._tokenizer.encode(text) for _, _, text in tff.texts(path, names, self.snippets))
        else:
            yield from (self._read(path / name if path.is_dir() else path) for name in names)

    @cached_property
    def _read(self) -> Callable[[Path], np.ndarray]:
        """Of clients that share a file a rank asks for one after the other; the file may change from run to run."""
        return lru_cache(maxsize=1)(self._read_file)

    def _read_file(self, path: Path) -> np.ndarray:
        """The tokens of a file, (n,)."""
        if self.tokenizer:
            return self._tokenizer.encode(read_text(path))
        raw = read_bytes(path)
        if known_kind(raw) == HDF5:
            raise ValueError(f'{path}: is an HDF5 file; if it holds texts by role, set task.split = "role"')
        check_text(path, raw)
        return np.frombuffer(raw, np.uint8)
