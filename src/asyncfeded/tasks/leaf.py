"""LEAF's JSON layout: a directory of *.json files, each with the samples of some users.

A file is `{"users": [name, ...], "num_samples": [n, ...], "user_data": {name: {"x": [...], "y": [...]}, ...}}` (Caldas et
al. 2018, arXiv 1812.01097). All files of the directory are one data set; a user may be spread over several, and its
samples follow each other in the order of the files' names. The task checks the contents of x and y.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from asyncfeded.files.plain import read_json


class Piece(NamedTuple):
    """A user's samples in one file: `x` and `y` as JSON gave them, of the same length, at least 1."""

    file: Path
    x: list[Any]
    y: list[Any]


def counts(directory: Path) -> dict[str, int]:
    """Number of samples of every user, by name in order.

    Every file must be parsed for this, one at a time; the counts are kept, the samples are not.

    Raises:
        ValueError: there is no file, or one is broken; the message names the file, the user and the field.
    """
    index = _places(directory)
    return {user: sum(count for _, count in index[user]) for user in sorted(index)}


def read_leaf(directory: Path, users: Sequence[str], who: str) -> Iterator[tuple[str, list[Piece]]]:
    """The samples of some users of `counts`, in that order; only files that hold some of them are parsed.

    Raises:
        ValueError: as `counts`, or a user has the same x in two files.
    """
    index, kept = _places(directory), {user: list[Piece]() for user in users}
    for file in sorted({file for user in users for file, _ in index[user]}):
        for user, piece in _parse(file).items():
            if user not in kept:
                continue
            if (twin := next((other for other in kept[user] if other.x == piece.x), None)) is not None:
                raise ValueError(
                    f"{file}: {who} {user}: x is the same as in {twin.file}, y is {'too' if twin.y == piece.y else 'not'}; "
                    f"a user may be spread over files, but each sample must be in one of them"
                )
            kept[user].append(piece)
    yield from kept.items()


def _places(directory: Path) -> dict[str, list[tuple[Path, int]]]:
    """Files and numbers of samples of every user."""
    files = sorted(directory.glob("*.json"))
    if not files:
        raise ValueError(f"{directory}: no *.json file in this directory, expected LEAF's data")
    return _index(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


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
        if len(y) == 0:
            raise ValueError(f"{where}: y is empty, expected samples; remove the user from the file")
        if len(x) != len(y) or number != len(y):
            raise ValueError(
                f"{where}: x has {len(x)} entries, y has {len(y)} and num_samples says {number}, expected one number"
            )
        pieces[user] = Piece(file, x, y)
    return pieces
