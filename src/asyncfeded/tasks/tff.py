"""The HDF5 layout that TensorFlow Federated publishes: one file, a group `examples/<name>` for each writer or role.

Opens such files and finds their fields; the task checks the contents of a field.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from asyncfeded.files.hdf5 import Array, Group, open_hdf5

ADVICE = "give the path of a data set as task.train=... and task.test=..."


@contextmanager
def open_examples(path: Path, who: str) -> Iterator[Group]:
    """The group `examples` of a file, usable until the end of the `with` block.

    Args:
        path: of the file.
        who: what a group of samples belongs to, for messages: `writer` or `role`.

    Raises:
        ValueError: there is no such file, it is not HDF5, or it has no groups.
    """
    with open_hdf5(path, advice=ADVICE) as file:
        examples = file.group("examples") if file.kind("examples") == "group" else None
        if not examples:
            raise ValueError(
                f"{path}: no group `examples` with a group for each {who}, as TensorFlow Federated lays out its data"
            )
        yield examples


def names(examples: Group, path: Path, who: str) -> list[str]:
    """The names of all writers or roles, in order.

    Args:
        examples: as `open_examples` gave it.
        path: of the file.
        who: as for `open_examples`.

    Raises:
        ValueError: two of them are one by way of a link: its samples would be taken twice.
    """
    if twins := examples.names_of_one():
        raise ValueError(
            f"{path}: {who}s {twins[0]} and {twins[1]} are one and the same by way of a link; remove one of them"
        )
    return examples.names()


def find(examples: Group, where: str, name: str, field: str, key: str) -> Array:
    """The array `examples/<name>/<field>`; nothing of it is read.

    Args:
        examples: as `open_examples` gave it.
        where: file and name, for the message.
        name: of the writer or role.
        field: wanted.
        key: of the config, that names the field.

    Raises:
        ValueError: there is no such array.
    """
    group = examples.group(name) if examples.kind(name) == "group" else None
    if group is None or group.kind(field) != "array":
        here = ", ".join(group.names()[:10]) if group else ""
        raise ValueError(
            f"{where}: no field {field!r}, it has {here or 'none'}{here and f'; name the right one with {key}'}"
        )
    return group.array(field)


def texts(path: Path, roles: Sequence[str], field: str) -> Iterator[tuple[str, str, str]]:
    """Roles, their places and their whole texts: a role's snippets, joined with a space.

    Args:
        path: of the file.
        roles: their names.
        field: of the snippets, strings of shape (n,).

    Raises:
        ValueError: as `open_examples` and `find`, or a field holds anything else.
    """
    with open_examples(path, "role") as examples:
        for role in roles:
            where = f"{path}: role {role}"
            snippets = find(examples, where, role, field, "task.snippets")
            if len(snippets.shape) != 1 or not snippets.is_text:
                raise ValueError(f"{where}: {field} is {snippets.dtype} {snippets.shape}, expected strings of shape (n,)")
            try:
                yield role, where, " ".join(snippet.decode("utf-8") for snippet in snippets.read())
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: {field} holds bytes that are not UTF-8 ({error})") from None
