"""Says in a sentence what is wrong with a table that a schema refuses."""

import difflib
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Union, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

RENAMED = {"limits.accuracy": "it is limits.target now, of the metric that evaluation.metric names"}
"""Keys of older versions, and what became of them."""


def sentences(
    kind: type[BaseModel], faults: Sequence[ErrorDetails], where: str, overrides: Sequence[str] = ()
) -> Iterator[str]:
    """Each fault as a sentence: where, which key, what value, what to do.

    Args:
        kind: the schema.
        faults: what pydantic says. Of a value that fits none of several types, it says a fault for each type.
        where: the name of the table.
        overrides: `key=value`, which are in the table; the last that gave the value at fault is named instead of it.
    """
    told: dict[tuple[int | str, ...], ErrorDetails] = {}
    for fault in faults:
        loc = fault["loc"]
        if _names_a_type(kind, loc):
            loc = loc[:-1]
            before = f"{told[loc]['msg']}, or " if loc in told else ""
            fault = ErrorDetails(type="union", loc=loc, msg=before + _small(fault["msg"]), input=fault["input"])
        told[loc] = fault
    for fault in told.values():
        yield _sentence(kind, fault, where, overrides)


def _names_a_type(kind: type[BaseModel], loc: tuple[int | str, ...]) -> bool:
    """Whether the last part of a place is no key, but one of the types that a value may have."""
    known = kind
    for i, part in enumerate(loc):
        field = next((field for name, field in known.model_fields.items() if part in (name, field.alias)), None)
        if field is None:
            return False
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return i == len(loc) - 2 and get_origin(field.annotation) in (Union, UnionType)
        known = field.annotation
    return False


def _small(text: str) -> str:
    return text[0].lower() + text[1:]


def _sentence(kind: type[BaseModel], fault: ErrorDetails, where: str, overrides: Sequence[str]) -> str:
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path)
    keys = {text: f"{text.partition('=')[0].strip()}." for text in overrides}
    # Of the value at fault, of a section around it, or within the section at fault.
    given = [text for text, other in keys.items() if key and (f"{key}.".startswith(other) or other.startswith(f"{key}."))]
    where = f"override {given[-1]!r}" if given else where
    subject = f"{where}: {key}" if key else where
    if fault["type"] == "extra_forbidden":
        known = kind
        for part in path[:-1]:
            annotation = known.model_fields[part].annotation
            assert isinstance(annotation, type)
            known = annotation
        names = [field.alias or name for name, field in known.model_fields.items()]
        elsewhere = [full for full in _keys(kind) if full.rpartition(".")[2] == path[-1]]
        if key in RENAMED:
            return f"{where}: unknown key {key}; {RENAMED[key]}"
        near = elsewhere or difflib.get_close_matches(path[-1], names, n=1)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known here: {', '.join(names)}"
        return f"{where}: unknown key {key}; {hint}"
    if fault["type"] == "missing":
        return f"{subject}: required, but not given"
    if fault["type"] in ("dict_type", "model_type"):
        inner = f"{key}.name" if key in ("task", "rule") else f"{key}.KEY"
        return f"{subject} = {fault['input']!r}: expected a section, with keys such as {inner}"
    if fault["type"] in ("string_type", "path_type"):
        return f"{subject} = {fault['input']!r}: expected text; put it in quotes"
    if fault["type"] == "tuple_type":
        return f"{subject} = {fault['input']!r}: expected a list, such as [{fault['input']}]"
    if fault["type"] == "value_error":
        return f"{subject}: {fault['ctx']['error']}"
    return f"{subject} = {fault['input']!r}: {_small(fault['msg'])}"


def _keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All keys of a schema, those of its sections with their names."""
    for name, field in kind.model_fields.items():
        key = prefix + (field.alias or name)
        if isinstance(field.default, BaseModel):
            yield from _keys(type(field.default), f"{key}.")
        else:
            yield key
