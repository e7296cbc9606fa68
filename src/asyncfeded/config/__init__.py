"""The schema of a run: it turns one TOML file and `key=value` overrides into a checked `Config`.

The class that the `name` of a `task` or `rule` section chooses (tasks/, rules/) checks that section, through `own.load`.
This module does not use MPI and reads only the config file.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from asyncfeded.config.settings import INT32_MAX as INT32_MAX
from asyncfeded.config.settings import Count as Count
from asyncfeded.config.settings import Settings as Settings
from asyncfeded.config.settings import meanings as meanings
from asyncfeded.config.training import Training as Training
from asyncfeded.files.paths import absolute, expand
from asyncfeded.files.plain import read_toml
from asyncfeded.override import Word, override
from asyncfeded.wording import sentences


def known_device(value: str) -> str:
    """Return the name of a device. Raises ValueError if it is neither auto nor cpu nor a kind of GPU that torch names."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        import torch  # knows the other kinds

        try:
            unfit = torch.device(value).type == "cpu"
        except RuntimeError:
            unfit = True
        if unfit:
            raise ValueError(f"expected the device auto, cpu, or a GPU as torch names it (cuda, xpu, cuda:1), got {value!r}")
    return value


Device = Annotated[str, AfterValidator(known_device)]
Folder = Annotated[str, AfterValidator(expand)]
"""A folder, as a user writes it: `~` and `$NAME` are replaced. Empty: none."""


class Limits(Settings):
    """When a run stops: at the first limit reached. At least one must be set."""

    updates: int = Field(0, ge=0)
    """Updates merged into the global model. 0: no limit."""
    seconds: float = Field(0.0, ge=0)
    """Time of training in seconds, on the run's clock, from the first model sent. 0: no limit."""
    target: float = 0.0
    """Value of evaluation.metric that an evaluation must reach: so high, or so low where the smallest is the best. 0: no
    limit. The final model may be some updates newer than the evaluated one."""


class Heterogeneity(Settings):
    """Which clients are slow or fail, and how much. Lists are by client, and repeated or cut to the number of clients."""

    slowdown: tuple[float, ...] = (1.0,)
    """Factor by which a client's round takes longer than it needs, at least 1."""
    slowdown_sigma: float = Field(0.0, ge=0, le=100)
    """Spread sigma of further slowdowns, drawn from exp(sigma N(0, 1)); the fastest client is set to 1. 0: off."""
    batch_size: tuple[Count, ...] = ()
    """Samples per step. Empty: training.batch_size for all."""
    epochs: tuple[Count, ...] = ()
    """First K, in training.unit. Empty: training.epochs, or training.steps, for all."""
    delay_s: tuple[NonNegativeFloat, ...] = (0.0,)
    """Seconds that the network adds to each round."""
    error_probability: float = Field(0.0, ge=0, lt=1)
    """Probability that a round yields no update. It then costs uniform(0, 3) times the client's normal round, and the client
    trains it again."""
    round_s: tuple[PositiveFloat, ...] = ()
    """Seconds of a round with the first K. Virtual clock: the round takes this long. Wall clock: it takes at least this
    long; the client sleeps until then. A round with another K takes so much more or less. Empty: sample_s x the samples of
    the first K; 0 on the wall clock."""
    sample_s: float = Field(1e-3, gt=0)
    """Virtual clock: seconds per sample trained, where round_s is empty."""

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

    metric: str = ""
    """The metric of the task that limits.target, tables and figures look at. Empty: its first."""
    every_s: float = Field(2.0, gt=0)
    """Seconds between the starts of two evaluations, if the model has changed; on the run's clock."""
    average: float = Field(0.0, ge=0)
    """a: what is tested and saved is a running mean of the global model, in which version t enters with weight
    (a + 1) / (t + a); clients go on training the global model itself. 8 is a good value: about the last ninth of all
    versions counts. It takes a model of memory more, with any rule. 0: off, the newest model is tested."""
    batch_size: Count = 256
    """Samples per batch: an update that arrives waits for one batch at most."""
    client_rounds: int = Field(0, ge=0)
    """Each client tests the model that it receives on its own held-out data before so many-th of its rounds, from the first
    on; the task needs a method held_out, and has at most 8 metrics. 0: off."""
    share: float = Field(0.2, gt=0, le=1)
    """Largest part of the server's time that evaluations may take; clients that share its cores lose that time too. A large
    test set is then evaluated less often than `every_s`. Wall clock only."""


class Checkpoint(Settings):
    """When the run writes its state, so that it can continue later (asyncfeded resume).

    With `every_updates` or `every_s` it also writes a checkpoint at the start and at the end. SIGUSR1 always writes one, and
    so does a run that SIGINT or SIGTERM ends.
    """

    every_updates: int = Field(0, ge=0)
    """Updates merged between two checkpoints. 0: off."""
    every_s: float = Field(0.0, ge=0)
    """Wall time in seconds between the starts of two checkpoints. 0: off."""
    keep: int = Field(2, ge=1)
    """How many checkpoints are kept (the newest ones)."""


class Recording(Settings):
    """Where the numbers of a run go besides its record."""

    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Trackers that follow the run, each in a process of its own beside the server: tensorboard (files in the run's folder),
    mlflow and wandb (a server, or the run's folder). One that hangs or is offline loses its points, not the run. Each needs
    the extra of its name."""


class Faults(Settings):
    """What happens when a client dies, falls silent, or sends what cannot be merged.

    If MPI reports deaths (Open MPI 5 with ULFM, which --ranks switches on), the server knows at once. Otherwise it gives a
    client up that is silent for longer than the median of its last rounds plus `patience` times their spread, and for
    longer than twice the longest of these; if the client comes back after that, its update is refused and it starts anew.
    On a machine that is shared or overloaded a client that lives may be silent for longer than that: raise `patience` or
    `patience_s` there.

    Always refused are updates with weights that are not finite, and those that count other samples than the client has.
    """

    on_death: Literal["continue", "reassign", "abort"] = "continue"
    """When a rank dies: continue (without its clients), reassign (its clients move to the other ranks) or abort (end the
    run with a checkpoint). On the virtual clock and in a replay, continue moves them too, and the result stays the same to
    the bit."""
    patience: float = Field(100.0, ge=0)
    """How long a client may be silent, in multiples of the spread of its rounds (at least a tenth of their median). 0: no
    limit."""
    patience_s: float = Field(10.0, gt=0)
    """No client is given up before it has been silent for this many seconds."""
    max_refusals: int = Field(10, ge=1)
    """After this many refused updates in a row, a client gets no more work."""
    max_gamma: float = Field(0.0, ge=0)
    """Updates with a greater staleness gamma are refused. 0: off."""
    max_change: float = Field(0.0, ge=0)
    """Updates with a longer step ||Delta|| are refused. 0: off."""
    bad_loss: Literal["refuse", "take"] = "refuse"
    """When a loss or a metric is NaN or infinite: refuse (an update with such a train loss is refused, and an evaluation
    with such a metric ends the run with status 1) or take (both are recorded and training goes on)."""


class Config(Settings):
    """One run."""

    seed: int = Field(0, ge=0)
    """The one seed: initial model, split of the data, and every random number of every client and round."""
    run_dir: Folder = ""
    """Folder for the results of the run. It is created; it must not hold a run yet. Empty: runs/<time>-<task>-<rule>, with
    a number if that is taken."""
    device: Device = "auto"
    """Where clients train: auto (a GPU if there is one), cpu, or GPUs as torch names them: cuda (ROCm too), xpu, mps, ...;
    the clients of a host take them in turn, unless a number names one, as in cuda:1."""
    server: int = Field(0, ge=0)
    """Rank of MPI_COMM_WORLD that is the server; of a server of several ranks, the one that decides."""
    servers: Count = 1
    """Ranks of the server: each holds a part of the global model and of every client's base."""
    evaluator: int = Field(-1, ge=-1, le=INT32_MAX)
    """Rank of MPI_COMM_WORLD that does nothing but test the global model. -1: the server tests it in idle moments."""
    ranks_per_client: Count | Literal["node"] = 1
    """Ranks that train a client together, each on a part of every batch; node: all ranks of a host, but those of the
    server."""
    server_device: Device = "cpu"
    """Where the global model is stored, merged and tested; values as for `device`. The clients of the server's host get
    their GPUs first; the server shares a GPU with one of them if the host has no more GPUs than clients."""
    clock: Literal["wall", "virtual", "replay"] = "wall"
    """Order of updates: wall (as they arrive), virtual (as they would arrive at the times that `heterogeneity` declares; the
    result is the same to the bit on any number of ranks) or replay (as the run in `replay` recorded it)."""
    replay: Folder = ""
    """Folder of the run that clock = replay repeats; `asyncfeded replay` sets it."""
    threads: int = Field(0, ge=0, le=INT32_MAX)
    """Threads of each rank. 0: OMP_NUM_THREADS if set, else its share of the host's cores; 1 on the virtual clock, since
    sums of floats depend on the number of threads."""
    clients: int = Field(0, ge=0, le=INT32_MAX)
    """Number of clients. 0: one on every rank except the server's (wall clock)."""
    late: int = Field(0, ge=0, le=INT32_MAX)
    """How many of the clients, the last ones, have no rank in the job: each is absent until somebody joins the run in its
    place (asyncfeded join). Wall clock only."""
    wait: Literal["auto", "spin", "yield"] = "auto"
    """How a rank waits for a message: auto (looks for it as long as messages take to come, at most 200 us, and then sleeps;
    it only sleeps where cores are shared), spin (looks without a break; every rank needs a core of its own) or yield (only
    sleeps). A message from the same host wakes a rank that sleeps; for others it looks again after 10 us to 2 ms."""
    bases: Literal["memory", "disk"] = "memory"
    """Where the server keeps the models that its clients train from: memory, or disk (in `bases_dir`; in memory are those of
    the clients that are due next, and as many updates as `bases_gb` allows). Disk: virtual clock or replay, CPU only; the
    result is the same to the bit."""
    bases_dir: Folder = ""
    """An existing folder on a local disk, with room for two models of each client, for bases = disk. The file in it has no
    name and is gone when the run ends, however it ends."""
    bases_gb: float = Field(1.0, gt=0)
    """GB (1e9 bytes) of memory that bases = disk may use for bases and for updates that wait for their turn."""
    limits: Limits = Limits()
    task: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """The task: `name`, and the keys of that task."""
    rule: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """How an update enters the global model: `name`, and the keys of that rule."""
    training: Training = Training()
    heterogeneity: Heterogeneity = Heterogeneity()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    record: Recording = Recording()
    faults: Faults = Faults()

    @field_validator("task", "rule")
    @classmethod
    def _named(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return {"name": {"task": "digits", "rule": "asyncfeded"}[str(info.field_name)]} | value

    @model_validator(mode="after")
    def _ordered(self) -> "Config":
        if self.clock != "wall" and not self.clients:
            raise ValueError(f"clock = {self.clock} needs clients = N: its result must not depend on the number of ranks")
        if self.late and (self.clock == "virtual" or self.faults.on_death == "reassign"):
            other = "clock = virtual" if self.clock == "virtual" else "faults.on_death = reassign"
            raise ValueError(f"late = {self.late} and {other} exclude each other: that one needs a rank for every client")
        if (self.clock == "replay") != bool(self.replay):
            raise ValueError("clock = replay and replay = RUN_DIR go together; type asyncfeded replay RUN_DIR")
        if (self.bases == "disk") != bool(self.bases_dir):
            raise ValueError("bases = disk and bases_dir = FOLDER go together; name a folder on a local disk")
        if self.bases == "disk" and self.clock == "wall":
            raise ValueError(
                "bases = disk needs clock = virtual (or replay), since nobody knows on the wall clock who is due next; set "
                "bases = memory"
            )
        if self.training.schedule_over == "run" and not (self.limits.updates or self.limits.seconds):
            raise ValueError(
                'training.schedule_over = "run" needs limits.updates or limits.seconds: they say how long the run is'
            )
        return self

    @field_validator("limits")
    @classmethod
    def _some_limit(cls, value: Limits) -> Limits:
        if value == Limits():
            raise ValueError("no limit is set, the run would never end: set limits.updates, limits.seconds or limits.target")
        return value

    @property
    def present(self) -> int:
        """How many of the clients have a rank in the job: the first ones."""
        return self.clients - self.late if self.clock == "wall" else self.clients

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of the keys that all ranks must agree on: all except run_dir, device and checkpoint."""
        shared = self.model_dump(mode="json", exclude={"run_dir", "device", "checkpoint"})
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).digest()

    def to_toml(self) -> str:
        """The config as TOML, with all defaults filled in."""
        return tomli_w.dumps(self.model_dump(mode="json", by_alias=True))


S = TypeVar("S", bound=Settings)


def load_config(path: Path, overrides: list[str]) -> Config:
    """Read a run's config.

    Args:
        path: a TOML file.
        overrides: `key=value` or `section.key=value`; see `override`.

    Raises:
        ValueError: the file cannot be read, or a key or a value is wrong; the message lists every fault.
    """
    table = _read_table(path, overrides)
    _check_command(Config, table, path)
    table.setdefault("limits", {})
    return section(Config, table, str(path), overrides)


def load_section(kind: type[S], path: Path, overrides: Sequence[str]) -> S:
    """Like `load_config`, for a file with another schema than a run's, such as a grid of runs."""
    table = _read_table(path, overrides)
    _check_command(kind, table, path)
    return section(kind, table, str(path), overrides)


def _read_table(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The table of a file, with overrides; names of classes in files are made absolute.

    Such a name is as seen from the folder of the file, in an override from where the command is typed.
    """
    table = read_toml(path, "give the path of a TOML file")
    _find_files(table, path.parent)
    # Names first: a new name clears the keys of the previous task or rule.
    for text in sorted(overrides, key=lambda text: not text.partition("=")[0].strip().endswith(".name")):
        key, _, value = text.partition("=")
        named = re.fullmatch(r"(.*\.)?(task|rule)\.name", key.strip())
        override(table, f"{key}={absolute(Word(value).text, Path())}" if named else text)
    return table


def _find_files(table: dict[str, Any], folder: Path) -> None:
    """Make the names of classes in files absolute, in the sections `task` and `rule` of a run, or of the runs of a grid."""
    for key, inner in table.items():
        if isinstance(inner, dict):
            if key in ("task", "rule") and isinstance(inner.get("name"), str):
                inner["name"] = absolute(inner["name"], folder)
            _find_files(inner, folder)


COMMANDS = {
    "train": {"limits", "task", "rule", "training", "clock"},
    "study": {"tasks", "error_probabilities"},
    "scale": {"models", "rounds"},
}
"""The keys that tell which command a file is for."""


def _check_command(kind: type[Settings], table: dict[str, Any], path: Path) -> None:
    """Refuse a file that is plainly for another command, before its keys are refused one by one."""
    found = [command for command, keys in COMMANDS.items() if keys & table.keys()]
    meant = next((command for command, keys in COMMANDS.items() if keys <= kind.model_fields.keys()), "")
    if found and meant and meant not in found:
        what = "a run" if found[0] == "train" else "a grid of runs"
        raise ValueError(f"{path} is the file of {what}, for asyncfeded {found[0]}; asyncfeded {meant} takes another")


def section(kind: type[S], table: dict[str, Any], where: str, overrides: Sequence[str] = ()) -> S:
    """Check a table against its schema.

    Args:
        kind: the schema.
        table: keys and values.
        where: the name of the table in messages: a file, or a section such as `rule`.
        overrides: `key=value`, which are in the table already; a fault of such a value names its override.

    Raises:
        ValueError: an unknown key, or a value out of range; the message lists every fault.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise ValueError("\n".join(sentences(kind, error.errors(), where, overrides))) from None


def describe_keys(kind: type[Settings], prefix: str = "") -> list[tuple[str, str, str]]:
    """(key, default, meaning) of every key of a schema, with sections flattened."""
    rows, told_of = [], meanings(kind)
    for name, field in kind.model_fields.items():
        key = prefix + (field.alias or name)
        if isinstance(field.default, Settings):
            rows += describe_keys(type(field.default), f"{key}.")
        elif name not in ("task", "rule", "name"):
            default = field.get_default(call_default_factory=True)
            told = "required" if field.is_required() else json.dumps(default, default=str)
            rows.append((key, told, field.description or told_of.get(name, "")))
    return rows
