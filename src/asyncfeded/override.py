"""`section.key=value`, as a user types it, becomes a value of a table: text where the key holds text, else TOML.

A table does not know what its keys hold. So an override stands in it as a `Word`, and the schema that later checks the
table reads it (`config.Settings`), also that of a task or a rule, which is found by its name.
"""

import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tomli_w

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same module under its older name


class Word(str):
    """The value of an override, as typed. The schema that reads the key decides whether it is text or TOML."""

    __slots__ = ()

    @property
    def toml(self) -> Any:  # noqa: ANN401, any value of TOML
        """The value as TOML; a plain word is a string."""
        try:
            return tomllib.loads(f"value = {self}")["value"]
        except tomllib.TOMLDecodeError:
            return str(self)

    @property
    def text(self) -> str:
        """The value as text: a string of TOML without its quotes, and anything else as typed, such as 8123_4 or true."""
        value = self.toml
        return value if isinstance(value, str) else str(self)


def override(table: dict[str, Any], text: str) -> None:
    """Set `section.key=value` in a table, in place. A key that holds text takes the value as typed; others take TOML.

    Raises:
        ValueError: `text` is not an override, or uses a value as a section.
    """
    key, equals, typed = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"override {text!r}: expected key=value or section.key=value")
    *path, last = key.strip().split(".")
    for depth, name in enumerate(path):
        inner = table.setdefault(name, {})
        if isinstance(inner, Word):  # a whole section that an earlier override gave
            inner = table[name] = inner.toml
        if not isinstance(inner, dict):
            raise ValueError(f"override {text!r}: {'.'.join(path[: depth + 1])} is not a section")
        table = inner
    value = Word(typed)
    if last == "name" and path in (["task"], ["rule"]) and table.get("name") != value.text:
        table.clear()  # the other keys of the section belong to the old name
    table[last] = value.text if last == "name" else value


def setting(key: str, text: str) -> str:
    """The override that gives a key this text, whatever it looks like."""
    return tomli_w.dumps({key: text}).strip()


def read_words(value: Any, kind: Any) -> Any:  # noqa: ANN401, a value of any field
    """Read the words in the value of a field, whose annotation is `kind`; a later schema reads those where it is `Any`."""
    if isinstance(value, dict) and get_origin(kind) is dict:
        return {key: read_words(inner, get_args(kind)[1]) for key, inner in value.items()}
    if not isinstance(value, Word) or kind is Any:
        return value
    return value.text if _holds_text(kind) else value.toml


def no_bool(value: Any, kind: Any) -> Any:  # noqa: ANN401, a value of any field
    """The value of a field, with yes and no as words where it holds numbers, since pydantic takes true for 1."""
    if isinstance(value, list):
        return [no_bool(inner, kind) for inner in value]
    return str(value).lower() if isinstance(value, bool) and not _holds(kind, (None, Any, bool, str, Path)) else value


def _holds(kind: Any, some: tuple[Any, ...]) -> bool:  # noqa: ANN401, the annotation of any field
    return kind in some or any(_holds(inner, some) for inner in get_args(kind))


def _holds_text(kind: Any) -> bool:  # noqa: ANN401, the annotation of any field
    if get_origin(kind) is Annotated:
        return _holds_text(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return any(map(_holds_text, get_args(kind)))
    return isinstance(kind, type) and issubclass(kind, (str, Path))
