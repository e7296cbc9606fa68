"""LEAF's JSON layout: a directory of *.json or *.json.gz files, each with the samples of some users.

A file is `{"users": [name, ...], "num_samples": [n, ...], "user_data": {name: {"x": [...], "y": [...]}, ...}}` (Caldas et
al. 2018, arXiv 1812.01097). All files of the directory are one data set; a user may be spread over several, and its
samples follow each other in the order of the files' names. The task checks the contents of x and y.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from asyncfeded.files.plain import read_json


class Piece(NamedTuple):
    """A user's samples in one file: `x` and `y` as JSON gave them, of the same length."""

    file: Path
    x: list[Any]
    y: list[Any]


def counts(directory: Path) -> dict[str, int]:
    """Number of samples of every user, by name in order; it may be 0.

    Every file must be parsed for this, one at a time; the counts are kept, the samples are not.

    Raises:
        ValueError: there is no file, or one is broken; the message names the file, the user and the field.
    """
    index = _places(directory)
    return {user: sum(count for _, count in index[user]) for user in sorted(index)}


def read_leaf(directory: Path, users: Sequence[str], who: str, repeated: bool) -> Iterator[tuple[str, list[Piece]]]:
    """The samples of some users of `counts`, in that order, where there are any; only files that hold some are parsed.

    Args:
        directory: of the files.
        users: their names.
        who: what a user is called, for messages.
        repeated: whether a user may have the same x in two files.

    Raises:
        ValueError: as `counts`, or a user has the same x in two files.
    """
    index, kept = _places(directory), {user: list[Piece]() for user in users}
    for file in sorted({file for user in users for file, _ in index[user]}):
        for user, piece in _parse(file).items():
            if user not in kept or not piece.y:
                continue
            if kept[user] and not repeated:
                _compare(kept[user], piece, f"{file}: {who} {user}")
            kept[user].append(piece)
    yield from kept.items()


def remarks(train: Path, test: Path) -> list[str]:
    """Sentences about what is not read of the directories of a data set, and about data that is trained and tested on."""
    sentences = []
    for path in (train, test):
        if path.is_dir() and (
            others := sorted({file.name for file in path.iterdir()} - {file.name for file in _files(path)})
        ):
            more = f" and {len(others) - 5} more" if len(others) > 5 else ""
            sentences.append(f"{path}: only *.json and *.json.gz are read, and not {', '.join(others[:5])}{more}")
    if train.exists() and test.exists() and train.samefile(test):
        sentences.append(f"{test} is trained on and tested on: the accuracy is that of samples that the clients know")
    return sentences


def _files(directory: Path) -> list[Path]:
    """The files of a data set, by name.

    Raises:
        ValueError: there are none, or some are named for training and some for testing.
    """
    names = {
        file.name: file for file in directory.iterdir() if re.fullmatch(r"[^.].*\.json(\.gz)?", file.name, re.IGNORECASE)
    }
    if not names:
        raise ValueError(f"{directory}: no *.json file in this directory, expected LEAF's data")
    named = [
        next((n for n in sorted(names) if re.search(rf"(?i)(?<![a-z]){kind}(?![a-z])", n)), "") for kind in ("train", "test")
    ]
    if all(named):
        raise ValueError(f"{directory}: holds {named[0]} and {named[1]}; give training and test data a directory each")
    return [names[name] for name in sorted(names)]


def _compare(before: list[Piece], piece: Piece, where: str) -> None:
    """Raise ValueError if a piece holds samples that a user has in another file too."""
    own = {json.dumps(x): y for x, y in zip(piece.x, piece.y, strict=True)}
    for other in before:
        same = [own[key] == y for x, y in zip(other.x, other.y, strict=True) if (key := json.dumps(x)) in own]
        if same:
            raise ValueError(
                f"{where}: x of {len(same)} of {len(other.y)} samples in {other.file} is here too, "
                f"y is {'too' if all(same) else 'not'}; each sample must be in one file; leave a file out, or set "
                f'task.repeated = "keep" to take them twice'
            )


def _places(directory: Path) -> dict[str, list[tuple[Path, int]]]:
    """Files and numbers of samples of every user."""
    return _index(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in _files(directory)))


@lru_cache(maxsize=4)  # training and test data of one task; names and numbers only
def _index(files: tuple[tuple[Path, int, int], ...]) -> dict[str, list[tuple[Path, int]]]:
    index: dict[str, list[tuple[Path, int]]] = {}
    for file, _, _ in files:
        for user, piece in _parse(file).items():
            index.setdefault(user, []).append((file, len(piece.y)))
    return index


def _parse(file: Path) -> dict[str, Piece]:
    """The samples of all users of one file, counted but not looked at."""
    content = read_json(file)
    kinds = {"users": (list, "a list"), "num_samples": (list, "a list"), "user_data": (dict, "an object")}
    for key, (kind, name) in kinds.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise ValueError(f"{file}: {key} is not {name}, expected LEAF's users, num_samples and user_data")
    users, numbers, data = content["users"], content["num_samples"], content["user_data"]
    if len(users) == 0 or not all(isinstance(user, str) for user in users):
        raise ValueError(f"{file}: users is empty or holds other things than names")
    if twice := [user for user, times in Counter(users).items() if times > 1]:
        raise ValueError(f"{file}: users names {twice[0]} twice")
    if unlisted := sorted(data.keys() - set(users)):
        raise ValueError(f"{file}: user_data holds {unlisted[0]}, which users does not name")
    if len(numbers) != len(users):
        raise ValueError(f"{file}: num_samples has {len(numbers)} numbers, expected {len(users)}, one for each of users")
    pieces = {}
    for user, number in zip(users, numbers, strict=True):
        where, fields = f"{file}: user {user}", data.get(user)
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: not in user_data, though users names it")
        for field in ("x", "y"):
            if not isinstance(fields.get(field), list):
                raise ValueError(f"{where}: {field} is not a list, expected x and y with an entry for each sample")
        x, y = fields["x"], fields["y"]
        if len(x) != len(y) or number != len(y):
            raise ValueError(
                f"{where}: x has {len(x)} entries, y has {len(y)} and num_samples says {number!r}, expected one number"
            )
        pieces[user] = Piece(file, x, y)
    return pieces
