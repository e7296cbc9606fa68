"""What every section of the config is made of: `Settings`, whose fields are its keys, and kinds of values."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from asyncfeded.files.paths import expand
from asyncfeded.override import no_bool, read_words


class Settings(BaseModel):
    """A section of the config: unknown keys and values out of range are errors; a field's docstring describes it.

    A field that holds a path is a `Path`, relative to the folder where the command is typed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

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


INT32_MAX = 2**31 - 1
"""The largest number of epochs, rounds or steps that a message holds."""
Count = Annotated[int, Field(ge=1, le=INT32_MAX)]
