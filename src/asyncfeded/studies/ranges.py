"""The ranges that tuning draws values from, and how one goes on where the best value lies at its end. Knows no run."""

import math
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from asyncfeded.config import Settings

Number = float | int
END = 0.1
"""A value in the outermost tenth of its range is at its end."""
BEYOND = 0.5
"""A range goes on by so much of its length."""


class Range(Settings):
    """Values that tuning draws from. Two whole numbers give whole numbers."""

    from_: int | float = Field(alias="from")
    """The least value."""
    to: int | float
    """The greatest value."""
    scale: Literal["log", "linear"] = "log"
    """Whether the logarithm of the value is drawn evenly, as for a rate, or the value itself."""

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.from_ >= self.to:
            raise ValueError(f"from = {self.from_} is not below to = {self.to}; swap them")
        if self.scale == "log" and self.from_ <= 0:
            raise ValueError(f'from = {self.from_} has no logarithm; give more than 0, or scale = "linear"')
        return self

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return isinstance(self.from_, int) and isinstance(self.to, int)

    def draw(self, rng: np.random.Generator) -> Number:
        """A value at random, of three digits, so that it can be read and typed."""
        at = self._at(rng.random())
        return min(max(round(at), self.from_), self.to) if self.whole else float(f"{at:.3g}")

    def end(self, value: Number) -> Literal["", "from", "to"]:
        """At which end of the range a value lies; empty: at none."""
        if self.whole and value in (self.from_, self.to):
            return "from" if value == self.from_ else "to"
        low, high = self._scaled(self.from_), self._scaled(self.to)
        share = (self._scaled(value) - low) / (high - low)
        return "from" if share < END else "to" if share > 1 - END else ""

    def beyond(self, end: Literal["from", "to"]) -> "Range":
        """The range that follows this one at an end."""
        far = self._at(-BEYOND if end == "from" else 1 + BEYOND)
        if self.whole:
            far = min(round(far), int(self.from_) - 1) if end == "from" else max(round(far), int(self.to) + 1)
        else:
            far = float(f"{far:.3g}")
        ends = {"from": far, "to": self.from_} if end == "from" else {"from": self.to, "to": far}
        return Range.model_validate({**ends, "scale": self.scale})

    def _scaled(self, value: Number) -> float:
        return math.log(value) if self.scale == "log" else float(value)

    def _at(self, share: float) -> float:
        low, high = self._scaled(self.from_), self._scaled(self.to)
        scaled = low + share * (high - low)
        return math.exp(scaled) if self.scale == "log" else scaled


Tried = Range | list[Any]
"""What tuning tries for a key: a range, or a list of values to choose from."""


def draw(tune: dict[str, Tried], rng: np.random.Generator) -> dict[str, Any]:
    """A value for each key."""
    return {
        key: tried.draw(rng) if isinstance(tried, Range) else tried[int(rng.integers(len(tried)))]
        for key, tried in tune.items()
    }
