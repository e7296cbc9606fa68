"""What the files of a data set are: a line for each with its SHA-256, its size and its name, in the form of sha256sum."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from asyncfeded.files.plain import cannot_read, check_file

WHOLE = 256 << 20
"""Bytes up to which all of a file counts; of a larger file as many count, in blocks that lie evenly in it."""
BLOCK = 1 << 20


def digest_files(places: Mapping[str, Path]) -> str:
    """A line for each file; its name begins with the key of its place.

    Args:
        places: files, or folders, of which all files count, by key. What is not there has no line.

    Raises:
        ValueError: a file cannot be read.
    """
    lines = []
    for key, place in sorted(places.items()):
        files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        for path in files:
            if path.is_file():
                name = f"{key}/{path.relative_to(place)}" if place.is_dir() else key
                lines.append(f"{_sha256(path)} {path.stat().st_size} {name}\n")
    return "".join(lines)


def differing(before: str, now: str) -> list[str]:
    """The names whose lines are not the same in two results of `digest_files`."""
    then, today = _by_name(before), _by_name(now)
    return sorted(name for name in then.keys() | today.keys() if then.get(name) != today.get(name))


def compare_digests(before: str, now: str) -> str:
    """What differs between two results of `digest_files`, as a sentence; empty if nothing does."""
    (then, today), differences = (_by_name(text) for text in (before, now)), []
    for name in differing(before, now):
        if name not in today:
            differences.append(f"{name} is gone")
        elif name not in then:
            differences.append(f"{name} is new")
        elif then[name][1] != today[name][1]:
            differences.append(f"{name} had {then[name][1]} bytes and has {today[name][1]}")
        else:
            differences.append(f"{name} has other content")
    more = f", and {len(differences) - 3} more files differ" if len(differences) > 3 else ""
    return ", ".join(differences[:3]) + more


def _by_name(text: str) -> dict[str, tuple[str, str]]:
    """SHA-256 and size of each file."""
    lines = [line.split(" ", 2) for line in text.splitlines()]
    return {line[2]: (line[0], line[1]) for line in lines if len(line) == 3}


def _sha256(path: Path) -> str:
    size, digest = check_file(path), hashlib.sha256()
    step = max(BLOCK, size * BLOCK // WHOLE)  # bytes between the beginnings of two blocks
    try:
        with path.open("rb", buffering=0) as file:
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(BLOCK))
    except OSError as error:
        raise ValueError(cannot_read(path, error)) from None
    return digest.hexdigest()
