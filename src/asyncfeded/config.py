"""The schema of a run: one TOML file and `key=value` overrides in, a checked `Config` out.

The sections `task` and `rule` are checked by the class that their `name` chooses (tasks/, rules/), through `choose`.
Knows no MPI and reads nothing but the file.
"""

import difflib
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same module under its older name


class Settings(BaseModel):
    """A section of the config: unknown keys and values out of range are errors; the docstring of a field describes it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


def known_device(value: str) -> str:
    """A device's name, if it may be one. Raises ValueError."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError(f"expected the device auto, cpu, cuda or cuda:N, got {value!r}")
    return value


Device = Annotated[str, AfterValidator(known_device)]


class Limits(Settings):
    """When a run stops: at the first limit reached. At least one must be set."""

    updates: int = Field(0, ge=0)
    """Updates merged into the global model. 0: no limit."""
    seconds: float = Field(0.0, ge=0)
    """Time of training in seconds, on the run's clock, from the first model sent. 0: no limit."""
    accuracy: float = Field(0.0, ge=0, le=1)
    """Test accuracy that an evaluation must reach, as a fraction. 0: no limit. The final model may be some updates ahead of
    the one that was evaluated."""


class Training(Settings):
    """What a client does between two messages: K epochs of SGD over its own data."""

    epochs: int = Field(2, ge=1)
    """Local epochs of a client's first round (the first K)."""
    batch_size: int = Field(32, ge=1)
    """Samples per step of SGD."""
    learning_rate: float = Field(0.05, gt=0)
    """Learning rate of SGD."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of SGD; starts at zero in every round, since the model received is not the one it was gathered on."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 penalty of SGD."""
    proximal: float = Field(0.0, ge=0)
    """mu of the proximal term (mu / 2) ||w - x_s||^2 in the local loss (FedProx). 0: none."""


class Heterogeneity(Settings):
    """Who is slow, by how much, and whose round fails. Lists are by client, and repeated or cut to the number of clients."""

    slowdown: tuple[float, ...] = (1.0,)
    """How many times its own time a client's round takes, at least 1."""
    slowdown_sigma: float = Field(0.0, ge=0)
    """Spread of further slowdowns drawn from exp(sigma N(0, 1)), the fastest client set to 1. 0: none."""
    batch_size: tuple[PositiveInt, ...] = ()
    """Samples per step. Empty: training.batch_size for all."""
    epochs: tuple[PositiveInt, ...] = ()
    """First K. Empty: training.epochs for all."""
    delay_s: tuple[NonNegativeFloat, ...] = (0.0,)
    """Seconds that the network adds to each round."""
    error_probability: float = Field(0.0, ge=0, lt=1)
    """Probability that a round yields no update and costs uniform(0, 3) of the client's normal rounds, after which it is
    trained again."""
    round_s: tuple[PositiveFloat, ...] = ()
    """Seconds of a round of the first K: on the virtual clock what it takes, on the wall clock what it takes at least, the
    client sleeping until then. Empty: sample_s x samples x first K, on the wall clock 0."""
    sample_s: float = Field(1e-3, gt=0)
    """Virtual clock: seconds per sample and epoch, where round_s is empty."""

    @field_validator("slowdown")
    @classmethod
    def _at_least_one(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or min(value) < 1.0:
            raise ValueError("expected a list of numbers, each at least 1 (1: as fast as the machine)")
        return value

    @field_validator("delay_s")
    @classmethod
    def _some(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("expected a list of seconds, [0] for no delay")
        return value


class Evaluation(Settings):
    """How the global model is tested, by the server, in its idle moments."""

    every_s: float = Field(2.0, gt=0)
    """Seconds between the starts of two evaluations, if the model has changed; on the run's clock."""
    batch_size: int = Field(256, ge=1)
    """Samples per batch: a client that arrives waits for one batch at most."""
    share: float = Field(0.2, gt=0, le=1)
    """Largest part of the server's time that evaluations may take; where ranks share cores it is the clients' time too.
    A large test set is then evaluated less often than `every_s`. Wall clock only."""


class Checkpoint(Settings):
    """When the state of the run is written, so that it can go on later (asyncfeded resume).

    With `every_updates` or `every_s` the first is written at the start, and one when the run ends. SIGUSR1 writes one in any
    case, and so does the end of a run by SIGINT or SIGTERM.
    """

    every_updates: int = Field(0, ge=0)
    """Updates merged between two checkpoints. 0: they are not counted."""
    every_s: float = Field(0.0, ge=0)
    """Wall time in seconds between the starts of two checkpoints. 0: it is not watched."""
    keep: int = Field(2, ge=1)
    """How many checkpoints stay, the last ones."""


class Faults(Settings):
    """What happens when a client dies, falls silent, or sends what cannot be merged.

    A death that MPI reports (Open MPI 5 with ULFM, which --ranks switches on) is known at once. Elsewhere a client is given
    up that is silent for longer than the median of its last rounds plus `patience` times their spread; comes it back after
    that, its update is refused and it starts anew.
    """

    on_death: Literal["continue", "reassign", "abort"] = "continue"
    """When a rank dies: continue (without its clients), reassign (its clients move to the other ranks) or abort (end the
    run, with a checkpoint). On the virtual clock, and in a replay, they move in any case but the last, and the result stays
    the same to the bit."""
    patience: float = Field(100.0, ge=0)
    """How long a client may be silent, in multiples of the spread of its rounds (at least a tenth of their median). 0: for
    ever."""
    patience_s: float = Field(10.0, gt=0)
    """No client is given up before it was silent for so many seconds."""
    max_refusals: int = Field(10, ge=1)
    """Refused updates in a row after which a client is asked no more."""
    max_gamma: float = Field(0.0, ge=0)
    """Updates of greater staleness gamma are refused. 0: none."""
    max_change: float = Field(0.0, ge=0)
    """Updates with a longer step ||Delta|| are refused. 0: none."""


class Config(Settings):
    """One run."""

    seed: int = Field(0, ge=0)
    """The one seed: initial model, split of the data, and every random number of every client and round."""
    run_dir: str = ""
    """Folder for the results of the run, created; must not hold a run already. Empty: runs/<time>-<task>-<rule>."""
    device: Device = "auto"
    """Where clients train: auto (a GPU where there is one), cpu, cuda (GPUs of a host are dealt to its clients in turn) or
    cuda:N."""
    server: int = Field(0, ge=0)
    """Rank of MPI_COMM_WORLD that is the server."""
    server_device: Device = "cpu"
    """Where the global model lies, is merged and tested, as `device`: the server's turn at the GPUs of its host comes after
    those of the clients, so that it shares one if there are not more GPUs than these."""
    clock: Literal["wall", "virtual", "replay"] = "wall"
    """Order of updates: wall (of arrival), virtual (of arrival at the times that `heterogeneity` declares, on any number of
    ranks and to the bit the same) or replay (as the run in `replay` recorded it)."""
    replay: str = ""
    """Folder of the run that clock = replay repeats; `asyncfeded replay` sets it."""
    threads: int = Field(0, ge=0)
    """Threads of each rank. 0: its share of the host's cores, OMP_NUM_THREADS if set; 1 on the virtual clock, since sums of
    floats depend on the number of threads."""
    clients: int = Field(0, ge=0)
    """Number of clients. 0: one on every rank but the server's (wall clock)."""
    wait: Literal["auto", "spin", "yield"] = "auto"
    """How a rank waits for a message: spin (polls; a core of its own for every rank), yield (sleeps 10 us to 2 ms between
    polls) or auto (spin where every rank of the host has a core of its own)."""
    limits: Limits = Limits()
    task: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """The task: `name`, and the keys of that task."""
    rule: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """How an update enters the global model: `name`, and the keys of that rule."""
    training: Training = Training()
    heterogeneity: Heterogeneity = Heterogeneity()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    faults: Faults = Faults()

    @field_validator("task", "rule")
    @classmethod
    def _named(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return {"name": {"task": "digits", "rule": "asyncfeded"}[str(info.field_name)]} | value

    @model_validator(mode="after")
    def _ordered(self) -> "Config":
        if self.clock != "wall" and not self.clients:
            raise ValueError(f"clock = {self.clock} needs clients = N: its result must not depend on the number of ranks")
        if (self.clock == "replay") != bool(self.replay):
            raise ValueError("clock = replay and replay = RUN_DIR go together; type asyncfeded replay RUN_DIR")
        return self

    @field_validator("limits")
    @classmethod
    def _some_limit(cls, value: Limits) -> Limits:
        if value == Limits():
            raise ValueError(
                "no limit is set, the run would never end: set limits.updates, limits.seconds or limits.accuracy"
            )
        return value

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of everything that all ranks must agree on: all but the folder, the device and checkpoints."""
        shared = self.model_dump(mode="json", exclude={"run_dir", "device", "checkpoint"})
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).digest()

    def to_toml(self) -> str:
        """The config as TOML, all defaults filled in."""
        return tomli_w.dumps(self.model_dump(mode="json", by_alias=True))


S = TypeVar("S", bound=Settings)


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        ValueError: the file cannot be read, or is not TOML.
    """
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from None
    return table


def load_config(path: Path, overrides: list[str]) -> Config:
    """Read a run's config.

    Args:
        path: a TOML file.
        overrides: `key=value` or `section.key=value`; the value is TOML, or a plain word taken as a string.

    Raises:
        ValueError: the file cannot be read, or a key or a value is wrong; the message lists every fault.
    """
    table = read_toml(path)
    # A name first: it clears the keys of the task or rule that stood there before.
    for text in sorted(overrides, key=lambda text: not text.partition("=")[0].strip().endswith(".name")):
        override(table, text)
    table.setdefault("limits", {})
    return section(Config, table, str(path))


def load_section(kind: type[S], path: Path, overrides: Iterable[str]) -> S:
    """Read a file of another schema than a run's, such as a grid of runs. As `load_config`."""
    table = read_toml(path)
    for text in overrides:
        override(table, text)
    return section(kind, table, str(path))


def override(table: dict[str, Any], text: str) -> None:
    """Set `section.key=value` in a table, in place; the value is TOML, or a plain word taken as a string.

    Raises:
        ValueError: it is none, or names a value as a section.
    """
    key, equals, word = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"override {text!r}: expected key=value or section.key=value")
    try:
        value = tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        value = word
    *path, last = key.strip().split(".")
    for depth, name in enumerate(path):
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ValueError(f"override {text!r}: {'.'.join(path[: depth + 1])} is not a section")
    if last == "name" and path in (["task"], ["rule"]) and table.get("name") != value:
        table.clear()  # the other keys of a section belong to the name that chose them
    table[last] = value


def section(kind: type[S], table: dict[str, Any], where: str) -> S:
    """A table checked against its schema.

    Args:
        kind: the schema.
        table: keys and values.
        where: what to call the table in a message: a file, or a section such as `rule`.

    Raises:
        ValueError: an unknown key, or a value out of range; the message lists every fault.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise ValueError("\n".join(_sentence(kind, fault, where) for fault in error.errors())) from None


def choose(kinds: Mapping[str, type[Settings]], table: dict[str, Any], where: str) -> Settings:
    """A table checked against the schema that its `name` chooses.

    Args:
        kinds: the schemas by name.
        table: keys and values.
        where: the section, such as `rule`.

    Raises:
        ValueError: an unknown name, an unknown key or a value out of range.
    """
    name = table.get("name")
    if not isinstance(name, str) or name not in kinds:
        raise ValueError(f"{where}.name = {name!r}: unknown {where}, expected one of: {', '.join(kinds)}")
    return section(kinds[name], table, where)


def describe_keys(kind: type[Settings], prefix: str = "") -> list[tuple[str, str, str]]:
    """(key, default, meaning) of every key of a schema, sections flattened."""
    rows = []
    for name, field in kind.model_fields.items():
        key = prefix + (field.alias or name)
        if isinstance(field.default, Settings):
            rows += describe_keys(type(field.default), f"{key}.")
        elif field.description and name not in ("task", "rule"):
            default = "required" if field.is_required() else json.dumps(field.default)
            rows.append((key, default, " ".join(field.description.split())))
    return rows


def _sentence(kind: type[BaseModel], fault: ErrorDetails, where: str) -> str:
    """One fault as: where, what, got, what to do."""
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path)
    subject = f"{where}: {key}" if key else where
    if fault["type"] == "extra_forbidden":
        known = kind
        for part in path[:-1]:
            annotation = known.model_fields[part].annotation
            assert isinstance(annotation, type)
            known = annotation
        names = [field.alias or name for name, field in known.model_fields.items()]
        near = difflib.get_close_matches(path[-1], names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
        return f"{where}: unknown key {key}; {hint}"
    if fault["type"] == "missing":
        return f"{subject}: required, but not given"
    if fault["type"] in ("dict_type", "model_type"):
        inner = f"{key}.name" if key in ("task", "rule") else f"{key}.KEY"
        return f"{subject} = {fault['input']!r}: expected a section, with keys such as {inner}"
    if fault["type"] == "tuple_type":
        return f"{subject} = {fault['input']!r}: expected a list, such as [{fault['input']}]"
    if fault["type"] == "value_error":
        return f"{subject}: {fault['ctx']['error']}"
    return f"{subject} = {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
