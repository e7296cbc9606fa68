"""`shakespeare`: the next character of the speeches of one role, as LEAF has it (Caldas et al. 2018, arXiv 1812.01097).

TensorFlow Federated's layout (an HDF5 file): `examples/<role>/snippets`, strings in UTF-8; a role's snippets, joined with a
space, are one text, and windows are cut from it. LEAF's (a directory of *.json files): for each role `x`, n strings of one
window each, and `y`, n strings of one character, cut already.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from asyncfeded.tasks import leaf, tff
from asyncfeded.tasks.classification import Classification, Data, deal

VOCABULARY = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""LEAF's 80 symbols in the order of their indices."""
UNKNOWN = 79
"""Index of every other character: that of `}`, as LEAF's one-hot targets have it."""
_INDEX = np.full(128, UNKNOWN, np.uint8)
_INDEX[[ord(symbol) for symbol in VOCABULARY]] = np.arange(len(VOCABULARY))


@final
class Shakespeare(Classification):
    """Roles are dealt to the clients in turn, in the order of their names: client i gets roles i, i + n, i + 2n, ...

    Inputs are uint8 (n, window), turned into indices within the model: a character of a text is in `window` windows, so
    that int64 would take 640 bytes for each character, and a large client would not fit into memory.
    """

    train: Path
    """HDF5 file, or LEAF directory, of the training data."""
    test: Path
    """HDF5 file, or LEAF directory, of the test data; the model is tested on the training roles in it."""
    snippets: str = Field("snippets", min_length=1)
    """Field of the texts in an HDF5 file."""
    roles: int = Field(0, ge=0)
    """Use only so many roles, the first of the training data by name. 0: all."""
    role_names: tuple[str, ...] = ()
    """Use only these roles, dealt in this order. Empty: as `roles` says."""
    too_short: Literal["refuse", "skip"] = "refuse"
    """A role with too little text for one window is an error, or is left out before roles are counted."""
    repeated: Literal["refuse", "keep"] = "refuse"
    """A role's window that is in two files of a LEAF directory is an error, or is taken twice (as of a refrain)."""
    window: int = Field(80, ge=1)
    """Number of characters that the model sees before the one to predict."""
    stride: int = Field(1, ge=1)
    """Characters between the starts of two windows; of LEAF's windows every so many-th is taken."""
    windows_max: int = Field(0, ge=0)
    """Largest number of training windows of a role, the first of its text. 0: all."""
    test_windows_max: int = Field(0, ge=0)
    """Largest number of test windows of a role, the first of its text. 0: all."""
    embedding: int = Field(8, ge=1)
    """Length of the vector that embeds a character."""
    hidden: int = Field(256, ge=1)
    """Units of each LSTM layer."""
    layers: int = Field(2, ge=1)
    """LSTM layers."""

    def model(self) -> nn.Module:
        """Embedding, LSTM and one linear layer; LEAF's sizes by default, 819,920 parameters."""
        return NextCharacter(self.embedding, self.hidden, self.layers)

    @model_validator(mode="after")
    def _one_choice_of_roles(self) -> "Shakespeare":
        if self.role_names and self.roles:
            raise ValueError(f"both roles = {self.roles} and role_names are given; leave one of them out")
        if twice := [role for role, times in Counter(self.role_names).items() if times > 1]:
            raise ValueError(f"role_names holds {twice[0]!r} twice; name each role once")
        return self

    def sizes(self, num_clients: int, seed: int) -> np.ndarray:
        """See `Task`; cuts no window, though the length of a text must be read from the text."""
        dealt = [self._dealt(client, num_clients) for client in range(num_clients)]
        roles = [role for roles in dealt for role in roles]
        taken = {role: self._taken(count, self.windows_max) for role, count in self._counts(self.train, roles)}
        return np.array([sum(taken[role] for role in roles) for roles in dealt], np.int64)

    def client_data(self, client: int, num_clients: int, seed: int) -> Data:
        """See `Task`; the seed plays no part."""
        return self._read(self.train, self._dealt(client, num_clients), self.windows_max)

    def test_data(self) -> Data:
        """See `Task`."""
        return self._read(self.test, self._test_roles(), self.test_windows_max)

    def remarks(self) -> list[str]:
        """See `Remarks`; reads all text once."""
        sentences = leaf.remarks(self.train, self.test)
        known, roles, there = self.role_names or _names(self.train), self._roles, _names(self.test)
        if self.too_short == "skip" and (short := len(known) - len(self._long_enough(self.train, known))):
            sentences.append(f"{self.train}: {short} of {len(known)} roles are too short and left out (task.too_short)")
        tested = self._test_roles()
        if len(tested) < max(len(roles), len(there)):
            sentences.append(
                f"{self.test}: tested on {len(tested)} roles, of {len(roles)} trained on and {len(there)} in the file"
            )
        for path, some in ((self.train, roles), (self.test, tested)):
            count = Counter[str]()
            for text in self._to_predict(path, some):
                count.update(text)
            unknown = Counter({symbol: n for symbol, n in count.items() if symbol not in VOCABULARY})
            if unknown:
                most = ", ".join(f"{symbol!r} ({n})" for symbol, n in unknown.most_common(5))
                sentences.append(
                    f"{path}: {unknown.total() / count.total():.2%} of the characters are none of the 80 symbols known "
                    f"and are read as '}}': {most}"
                )
        return sentences

    def _to_predict(self, path: Path, roles: Sequence[str]) -> Iterator[str]:
        """The text of some roles, of LEAF the characters that follow its windows."""
        if not path.is_dir():
            yield from (text for _, _, text in tff.texts(path, roles, self.snippets))
        else:
            yield from ("".join(piece.y) for _, pieces in leaf.read_leaf(path, roles, "role", True) for piece in pieces)

    def _test_roles(self) -> list[str]:
        """The training roles of the test data, in order."""
        test_names = set(_names(self.test))
        roles = self._long_enough(self.test, [role for role in self._roles if role in test_names])
        if not roles:
            raise ValueError(
                f"{self.test}: none of the roles chosen from {self.train} is here; they are the roles to test on"
            )
        return roles

    @cached_property
    def _roles(self) -> list[str]:
        """The training roles, in order."""
        names = _names(self.train)
        if missing := sorted(set(self.role_names) - set(names)):
            near = difflib.get_close_matches(missing[0], names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{self.train}: no role {missing[0]!r} (task.role_names){hint}")
        roles = self._long_enough(self.train, self.role_names or names)
        return roles[: self.roles] if self.roles else roles

    def _long_enough(self, path: Path, roles: Sequence[str]) -> list[str]:
        """The roles with text for at least one window; all roles if a short one is an error, which is found later."""
        if self.too_short == "refuse":
            return list(roles)
        return [role for role, count in self._counts(path, roles, allow_none=True) if count]

    def _dealt(self, client: int, num_clients: int) -> Sequence[str]:
        roles = self._roles
        return deal(roles, client, num_clients, f"{self.train} has {len(roles)} roles (task.roles = {self.roles})")

    def _taken(self, count: int, maximum: int) -> int:
        """Windows taken of `count` windows of stride 1."""
        taken = -(-count // self.stride)
        return min(taken, maximum) if maximum else taken

    def _counts(self, path: Path, roles: Sequence[str], allow_none: bool = False) -> Iterator[tuple[str, int]]:
        """Roles and the numbers of their windows of stride 1."""
        if path.is_dir():
            counts = leaf.counts(path)
            for role in roles:
                if not counts[role] and not allow_none:
                    raise _nothing(path, role)
                yield role, counts[role]
        else:
            for role, where, text in tff.texts(path, roles, self.snippets):
                yield role, 0 if allow_none and len(text) <= self.window else self._checked(where, text)

    def _checked(self, where: str, text: str) -> int:
        """Number of windows of stride 1 of a text, at least 1."""
        if len(text) <= self.window:
            raise ValueError(
                f"{where}: {self.snippets} hold {len(text)} characters, too few for one window of {self.window} "
                f"(task.window) and the character behind it; set task.too_short = 'skip', leave the role out of "
                f"task.role_names, or take a shorter window"
            )
        return len(text) - self.window

    def _read(self, path: Path, roles: Sequence[str], maximum: int) -> Data:
        """The windows of some roles."""
        cut = self._leaf_windows(path, roles) if path.is_dir() else self._tff_windows(path, roles)
        taken = [windows[:: self.stride][: maximum or None] for windows in cut]
        inputs = np.concatenate([windows[:, :-1] for windows in taken])
        targets = np.concatenate([windows[:, -1] for windows in taken])
        return Data(torch.from_numpy(inputs), torch.from_numpy(targets.astype(np.int64)))

    def _tff_windows(self, path: Path, roles: Sequence[str]) -> Iterator[np.ndarray]:
        """For each role all windows with the character after them, uint8 (n, window + 1): views of the text."""
        for _, where, text in tff.texts(path, roles, self.snippets):
            self._checked(where, text)
            yield np.lib.stride_tricks.sliding_window_view(encode(text), self.window + 1)

    def _leaf_windows(self, path: Path, roles: Sequence[str]) -> Iterator[np.ndarray]:
        """The same of LEAF's strings."""
        for role, pieces in leaf.read_leaf(path, roles, "role", self.repeated == "keep"):
            if not pieces:
                raise _nothing(path, role)
            for piece in pieces:
                for field, strings, length in (("x", piece.x, self.window), ("y", piece.y, 1)):
                    for string in strings:
                        if not isinstance(string, str) or len(string) != length:
                            got = f"a string of {len(string)}" if isinstance(string, str) else repr(string)[:40]
                            raise ValueError(
                                f"{piece.file}: role {role}: {field} holds {got}, expected strings of {length} "
                                f"character{'s (task.window)' if field == 'x' else ''}"
                            )
            strings = [x + y for piece in pieces for x, y in zip(piece.x, piece.y, strict=True)]
            yield encode("".join(strings)).reshape(len(strings), self.window + 1)


class NextCharacter(nn.Module):
    """Scores of the character that follows a window.

    Args:
        embedding: numbers that a character is turned into.
        hidden: units of each LSTM layer.
        layers: LSTM layers.
    """

    def __init__(self, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, len(VOCABULARY))

    def forward(self, windows: Tensor) -> Tensor:
        """Windows uint8 (n, window) to scores (n, 80), from the LSTM's output at the last character."""
        states, _ = self.lstm(self.embedding(windows.int()))
        scores: Tensor = self.output(states[:, -1])
        return scores


def encode(text: str) -> np.ndarray:
    """Indices of a text's characters in the vocabulary, uint8 (len(text),)."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return _INDEX[np.minimum(codes, 127)]  # 127 is no symbol


def _nothing(path: Path, role: str) -> ValueError:
    return ValueError(f'{path}: role {role}: no samples; remove the role, or set task.too_short = "skip"')


def _names(path: Path) -> list[str]:
    if path.is_dir():
        return list(leaf.counts(path))
    with tff.open_examples(path, "role") as examples:
        return tff.names(examples, path, "role")
