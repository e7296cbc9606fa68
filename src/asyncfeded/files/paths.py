"""What a path means that a user wrote in a file or behind an equals sign, where no shell expands it."""

import os
import re
from pathlib import Path

NAME_MAX = 255
"""Bytes of a name in a folder, on all file systems of Linux."""


def kind_of(path: Path, mounts: str) -> str:
    """The kind of the file system of a path: that of its nearest mount. Empty if there is none.

    Args:
        path: absolute, without links.
        mounts: the text of /proc/mounts.
    """
    kinds = {}  # if two are mounted at one place, the later one counts
    for line in mounts.splitlines():
        _, place, kind = line.split()[:3]
        kinds[Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place))] = kind
    return next((kinds[place] for place in (path, *path.parents) if place in kinds), "")


def expand(text: str) -> str:
    """A path with its `~`, `~name`, `$NAME` and `${NAME}` replaced, as a shell would. What exists as written stays.

    Raises:
        ValueError: a variable or a home is unknown, or the locale or a log cannot hold the name.
    """
    try:
        text.encode(), os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError(f"{text!r}: the locale has no such name; set LC_ALL=C.UTF-8, or rename it in UTF-8") from None
    if re.search(r"[\0-\x08\n-\x1f\x7f]", text) or text.isspace():
        raise ValueError(f"{text!r} holds a control character, or nothing but spaces; leave it out")
    if any(len(os.fsencode(name)) > NAME_MAX for name in text.split("/")):
        raise ValueError(f"{text!r} holds a name of more than {NAME_MAX} bytes; shorten it")
    if os.path.lexists(text):
        return text
    expanded = os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111, it leaves an unknown user as it is
    if unknown := re.search(r"\$(\w+|\{[^}]*\})", expanded):
        raise ValueError(f"{text!r}: the environment has no variable {unknown[0]}; set it, or write the path itself")
    if expanded.startswith("~"):
        raise ValueError(f"{text!r}: there is no such user, whose home that would be; write ./{text} for a name with a ~")
    return expanded


def absolute(name: str, folder: Path) -> str:
    """The name of a class with its file, `FILE.py:CLASS`, as seen from anywhere; other names stay.

    Args:
        name: as a user writes it.
        folder: where a relative path begins.

    Raises:
        ValueError: as `expand`.
    """
    file, colon, kind = (name, "", "") if name.endswith(".py") else name.rpartition(":")
    if not file.endswith(".py"):
        return name
    path = (folder / expand(file)).absolute()
    if ".." in path.parts:  # behind a link it is not the folder above that stands in the text
        path = path.parent.resolve() / path.name
    return f"{path}{colon}{kind}"
