"""What every section of the config is made of: `Settings`, whose fields are its keys, and kinds of values."""

import ast
import inspect
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from asyncfeded.files.paths import expand
from asyncfeded.override import no_bool, read_words


class Settings(BaseModel):
    """A section of the config: unknown keys and values out of range are errors; a field's docstring describes it.

    A field that holds a path is a `Path`, relative to the folder where the command is typed.
    """

    # A start makes the classes of all tasks and rules: to read their docstrings (use_attribute_docstrings) and to build what
    # checks them took 0.2 s on every rank. Only `asyncfeded keys` reads them; only what a run uses is built.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _read_words(cls, table: Any) -> Any:  # noqa: ANN401, what a user gives for a section
        if not isinstance(table, dict):
            return table
        kinds = {field.alias or name: field.annotation for name, field in cls.model_fields.items()}
        return {key: no_bool(read_words(value, kinds.get(key)), kinds.get(key)) for key, value in table.items()}

    @field_validator("*")
    @classmethod
    def _expand_paths(cls, value: Any) -> Any:  # noqa: ANN401, of any field
        """`~` and `$NAME` in paths, and in lists of paths, are replaced."""
        if isinstance(value, tuple | list):
            return type(value)(Path(expand(str(one))) if isinstance(one, Path) else one for one in value)
        return Path(expand(str(value))) if isinstance(value, Path) else value


def meanings(kind: type[Settings]) -> dict[str, str]:
    """The docstring of each field, by name, as one line; of those classes whose source can be read."""
    found = {}
    for each in reversed(kind.__mro__[: kind.__mro__.index(Settings)]):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        except (OSError, TypeError):  # made in a program, or typed
            continue
        assert isinstance(tree, ast.ClassDef)
        for field, text in pairwise(tree.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(told))):
                    found[name] = " ".join(told.split())
    return found


INT32_MAX = 2**31 - 1
"""The largest number of epochs, rounds or steps that a message holds."""
Count = Annotated[int, Field(ge=1, le=INT32_MAX)]
