"""What every section of the config is made of: `Settings`, whose fields are its keys, and kinds of values."""

from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from asyncfeded.files.paths import expand
from asyncfeded.override import no_bool, read_words


class Settings(BaseModel):
    """A section of the config: unknown keys and values out of range are errors; a field's docstring describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_words(cls, table: Any) -> Any:  # noqa: ANN401, what a user gives for a section
        if not isinstance(table, dict):
            return table
        kinds = {field.alias or name: field.annotation for name, field in cls.model_fields.items()}
        read = {key: no_bool(read_words(value, kinds.get(key)), kinds.get(key)) for key, value in table.items()}
        return {key: _expanded(value) if _is_path(kinds.get(key)) else value for key, value in read.items()}


def _is_path(kind: Any) -> bool:  # noqa: ANN401, the annotation of any field
    """Whether a field holds a path, or None."""
    return kind is Path or Path in get_args(kind)


def _expanded(value: Any) -> Any:  # noqa: ANN401, what a user gives for a path
    return expand(str(value)) if isinstance(value, str | Path) else value


INT32_MAX = 2**31 - 1
"""The largest number of epochs, rounds or steps that a message holds."""
Count = Annotated[int, Field(ge=1, le=INT32_MAX)]
