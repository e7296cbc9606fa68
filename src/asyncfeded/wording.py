"""Says in a sentence what is wrong with a table that a schema refuses."""

import difflib
from collections.abc import Iterator, Sequence

from pydantic import BaseModel
from pydantic_core import ErrorDetails

RENAMED = {"limits.accuracy": "it is limits.target now, of the metric that evaluation.metric names"}
"""Keys of older versions, and what became of them."""


def sentence(kind: type[BaseModel], fault: ErrorDetails, where: str, overrides: Sequence[str] = ()) -> str:
    """One fault as a sentence: where, which key, what value, what to do.

    Args:
        kind: the schema.
        fault: what pydantic says.
        where: the name of the table.
        overrides: `key=value`, which are in the table; the last that gave the value at fault is named instead of it.
    """
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
    return f"{subject} = {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All keys of a schema, those of its sections with their names."""
    for name, field in kind.model_fields.items():
        key = prefix + (field.alias or name)
        if isinstance(field.default, BaseModel):
            yield from _keys(type(field.default), f"{key}.")
        else:
            yield key
