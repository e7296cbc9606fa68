"""The grid of a scaling study: clients x models x rules x ranks per node x seeds, with the work divided or multiplied."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from asyncfeded.config import Config, Settings, load_section
from asyncfeded.studies.jobs import GridJob, Labelled, compose, digest


class Variant(Settings):
    """One model or one rule of the grid."""

    run: dict[str, Any] = Field(default_factory=dict)
    """The part of a run's config that belongs to it."""


class Wanted(Settings):
    """A run that is planned: how many server ranks does it need?"""

    params: int = Field(ge=1)
    """Parameters of its model."""
    clients: int = Field(ge=1)
    """Its clients."""
    round_s: float = Field(ge=0)
    """Seconds that a client trains between two updates."""
    link_gbit: float = Field(0.0, ge=0)
    """Gbit/s of each host's link, in each direction. 0: the links are no limit."""
    hosts: int = Field(0, ge=0)
    """Hosts of the clients, without the server's, of which each server rank has one. 0: one for each client."""


class ScalingGrid(Settings):
    """A scaling study.

    Every client makes `rounds` rounds. Strong: the data, and so the work, is the same for any number of clients; each of N
    clients has an N-th. Weak: each client has as much data as in the run with the fewest clients. That run is the same in
    both.
    """

    run: dict[str, Any]
    """Config that all runs share."""
    scaling: tuple[Literal["strong", "weak"], ...] = ("strong", "weak")
    """What stays the same when clients are added: all data (strong), or the data of each client (weak; task synthetic)."""
    clients: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of clients, rising. Speed-ups are relative to the first."""
    rounds: int = Field(50, ge=3)
    """Rounds of each client: limits.updates is that times the number of clients."""
    samples: int = Field(0, ge=0)
    """Task synthetic: samples, training and test, of the fewest clients together, in devices of equal size, as many as the
    most clients. 0: the task has its own data, divided over the clients."""
    round_s: float = Field(0.0, ge=0)
    """Pace: in the run with the fewest clients a round takes at least so many seconds; the client sleeps until then. Strong
    scaling divides this time as it divides the data. So clients that share cores are as fast as on cores of their own, as
    long as they sleep most of the time. 0: no pause."""
    models: Labelled[Variant]
    """By label: a model size, for instance run.task.hidden."""
    rules: Labelled[Variant]
    """By label."""
    ranks_per_node: tuple[int, ...] = (0,)
    """Ranks on each node; the nodes follow from the clients. 0: all on one node."""
    seeds: tuple[int, ...] = (1,)
    """Seeds of the runs, which are repetitions of a measurement: tables and figures show medians over them."""
    target: float = 0.0
    """Value of the task's metric (evaluation.metric); the time to reach it is measured. 0: none."""
    fit: tuple[int, ...] = ()
    """Numbers of clients whose runs the prediction is fitted on; the others test it. Empty: the two fewest."""
    predict: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 10000)
    """Numbers of clients, besides those measured, that are predicted."""
    wanted: Labelled[Wanted] = Field(default_factory=dict)
    """By label: runs for which the prediction says how many server ranks they need."""
    caption: str = ""
    """Text above the tables."""

    @field_validator("clients")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or value[0] < 1 or list(value) != sorted(set(value)):
            raise ValueError("expected rising numbers, each at least 1, such as [1, 2, 4, 8]")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "ScalingGrid":
        if unknown := set(self.fit) - set(self.clients):
            raise ValueError(f"fit names {sorted(unknown)} clients, which no run has; expected some of {list(self.clients)}")
        if "weak" in self.scaling and not self.samples:
            raise ValueError('weak scaling needs `samples`: data that grows with the clients; or set scaling = ["strong"]')
        if self.samples and self.samples < 2 * self.clients[-1]:
            raise ValueError(
                f"samples = {self.samples}: expected at least {2 * self.clients[-1]}, one to train and one to test for each "
                f"of {self.clients[-1]} devices"
            )
        return self

    @property
    def fitted(self) -> tuple[int, ...]:
        """Numbers of clients whose runs the prediction is fitted on."""
        return self.fit or self.clients[:2]


class ScalingRun(NamedTuple):
    """One run of the grid."""

    scaling: str
    model: str
    rule: str
    ranks_per_node: int
    clients: int
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """Name of its folder; ends with the hash of its config."""
        nodes = f"-r{self.ranks_per_node}" if self.ranks_per_node else ""
        return f"{self.model}-{self.rule}-c{self.clients}{nodes}-s{self.seed}-{digest(self.config)[:8]}"

    @property
    def ranks(self) -> int:
        """MPI ranks."""
        return self.clients + self.config.servers

    @property
    def nodes(self) -> int:
        """Number of nodes that it needs."""
        return -(-self.ranks // self.ranks_per_node) if self.ranks_per_node else 1

    @property
    def line(self) -> tuple[str, str, str, int]:
        """The line of a figure in which this run is a point."""
        return self.scaling, self.model, self.rule, self.ranks_per_node

    @property
    def job(self) -> GridJob:
        """This run as a job."""
        return GridJob(self.name, self.config, self.ranks)


def load_scaling_grid(path: Path, overrides: Sequence[str] = ()) -> ScalingGrid:
    """Read a grid and check it, with the config of every run that it makes.

    Args:
        path: a TOML file.
        overrides: `section.key=value`, as for a run.

    Raises:
        ValueError: a key or a value is wrong.
    """
    grid = load_section(ScalingGrid, path, overrides)
    for run in expand(grid):  # all configs are checked as they are made
        if run.config.clock != "wall":
            raise ValueError(f"{path}: run.clock = {run.config.clock}: a scaling study measures wall time; leave it out")
    return grid


def expand(grid: ScalingGrid) -> Iterator[ScalingRun]:
    """The runs of a grid; the strong and the weak run with the fewest clients have the same name."""
    for point in itertools.product(grid.seeds, grid.scaling, grid.models, grid.rules, grid.ranks_per_node, grid.clients):
        seed, scaling, model, rule, ranks_per_node, clients = point
        times = clients / grid.clients[0]
        work: dict[str, Any] = {"seed": seed, "clients": clients, "limits": {"updates": grid.rounds * clients}}
        if grid.samples:
            devices = grid.clients[-1]
            size = grid.samples // devices
            work["task"] = {"sizes_given": [size] * round(devices * (times if scaling == "weak" else 1))}
        if grid.round_s:
            work["heterogeneity"] = {"round_s": [grid.round_s / (times if scaling == "strong" else 1)]}
        layers = (grid.run, grid.models[model].run, grid.rules[rule].run, work)
        config = compose(layers, f"{scaling} scaling of {model} with {rule}, {clients} clients")
        yield ScalingRun(scaling, model, rule, ranks_per_node, clients, seed, config)
