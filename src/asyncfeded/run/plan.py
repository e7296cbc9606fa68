"""The plan of a run, from its file, the same on every rank; and the place of this rank: its device and its threads."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from asyncfeded import own, rules, tasks
from asyncfeded.config import Config, Settings, load_config
from asyncfeded.files.digest import differing, digest_files
from asyncfeded.files.weights import weights_file
from asyncfeded.metric import Metrics
from asyncfeded.mpi import devices, launcher, placement
from asyncfeded.mpi.seats import Seats, deal
from asyncfeded.mpi.world import World, broadcast_text, compare_statements, gather_places, make_statement, share_cores
from asyncfeded.run import RESUMABLE, stopping
from asyncfeded.run.sinks import check_sinks
from asyncfeded.tasks.contract import CheckedTask, declared_metrics
from asyncfeded.tasks.kept import Kept
from asyncfeded.wire.messages import NO_SCORES

T = TypeVar("T")


class Plan(NamedTuple):
    """A run, as read from its file."""

    config: Config
    """The config with every default filled in."""
    task: CheckedTask
    rule: rules.Rule
    device: torch.device
    """The device of this rank."""
    origin: str
    """Digests of what the run is made from, besides its data: see `digest_origin`; and of the frozen parameters."""
    seats: Seats
    """Who does what."""

    @property
    def metrics(self) -> Metrics:
        """What the task measures, and which of it is the goal."""
        return Metrics(self.task.metrics, self.config.evaluation.metric)


def agree_on(world: World, prepare: Callable[[], T], tell: Callable[[T], np.ndarray]) -> T:
    """Return what `prepare` makes, if no rank had a problem with it and all ranks make the same statement. Collective.

    Args:
        world: all ranks.
        prepare: makes it; may raise ValueError or OSError; must send no message. A wish to stop interrupts it.
        tell: returns the statement (world.make_statement) about what was made.

    Raises:
        RefusedError: on every rank, with the same text.
    """
    try:
        made = stopping.unless_asked(lambda: correctable(prepare))
        statement = tell(made)
    except stopping.StopError as error:
        statement = make_statement(problem=str(error), status=RESUMABLE)
    except ValueError as error:
        statement = make_statement(problem=str(error))
    compare_statements(world, statement)
    return made


def correctable(prepare: Callable[[], T]) -> T:
    """Return what `prepare` makes.

    Raises:
        ValueError: something is wrong that a user can correct; a sentence.
    """
    try:
        return prepare()
    except (ValueError, OSError) as error:
        raise ValueError(str(error) or repr(error)) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise ValueError(f"not enough memory: {str(error).splitlines()[0] if str(error) else 'refused'}") from None


def read_plan(
    world: World,
    path: Path,
    overrides: list[str],
    resumed: Path | None,
    task: tasks.Task | None = None,
    rule: rules.Rule | None = None,
    kept: Kept | None = None,
) -> Plan:
    """Read the run in a file, for these ranks.

    Args:
        world: all ranks.
        path: the file.
        overrides: `key=value`, applied to the file.
        resumed: folder of the run to continue; None: a new run.
        task: the task, instead of the one that the config names; the config then has the name and the keys of its class.
        rule: the rule, likewise.
        kept: where the task of the config is taken from, if earlier runs of this process have had it; None: it is made.

    Raises:
        ValueError, OSError: something is wrong that the user can correct.
    """
    if resumed and not path.exists():
        raise ValueError(
            f"{path}: no such file; where a run was killed before it wrote that, type the line that began it again"
        )
    config = load_config(path, overrides)
    if resumed:
        if Path(config.run_dir).resolve() != resumed.resolve():
            raise ValueError(
                f"run_dir = {config.run_dir!r}: a run goes on in its own folder, {resumed}; leave run_dir out, or copy the "
                f"folder and resume the copy"
            )
        config = config.model_copy(update={"run_dir": str(resumed)})
    for section in ("task", "rule"):
        given = [text for text in overrides if text.startswith(f"{section}.") and not text.startswith("task.initial")]
        if given and {"task": task, "rule": rule}[section] is not None:
            raise ValueError(f"override {given[0]!r}: the {section} is given as an object; leave it out, and set it there")
    if task is not None:
        head = {key: value for key, value in config.task.items() if key in tasks.TAKEN}
        config = config.model_copy(update={"task": head | {"name": own.name_of(type(task), tasks.TASKS)}})
        task = tasks.check_task(task, config.task["name"])
    if rule is not None:
        config = config.model_copy(update={"rule": {"name": own.name_of(type(rule), rules.RULES)}})
        rule = rules.check_rule(rule, config.rule["name"])
    task = task or (kept.task(config) if kept else tasks.load_task(config.task))
    rule = rule or rules.load_rule(config.rule)
    origin = digest_origin(config)
    seats = deal(world.hosts, config.server, config.servers, config.evaluator, config.ranks_per_client)
    config, workers = fix_groups(config, seats), seats.workers
    num_clients = config.clients or workers + config.late
    if config.clock == "wall" and num_clients != workers + config.late:
        needed = seats.groups[0][0] + (num_clients - config.late) * len(seats.groups[0])
        late = f", and late = {config.late}" * bool(config.late)
        raise ValueError(
            f"clients = {num_clients}, but {world.size} ranks make 1 server and {workers} clients{late}; start it with "
            f"--ranks {needed} (mpiexec -n {needed}), or set clients={workers + config.late}"
        )
    if config.late and config.clock == "wall":
        check_late(config)
    if seats.serves(world.rank):
        check_sinks(config.record.trackers)
    wanted, key = (config.server_device, "server_device") if seats.serves(world.rank) else (config.device, "device")
    device = devices.device(wanted, world.turn(seats), key)
    config = fill_in(config.model_copy(update={"clients": num_clients}), task, rule)
    return Plan(config, CheckedTask(task, config.task["name"], tasks.load_initial(config.task)), rule, device, origin, seats)


def check_late(config: Config) -> None:
    """Check that clients may join the run. Raises ValueError."""
    if config.servers > 1 or config.ranks_per_client != 1:
        raise ValueError(
            f"late = {config.late}: a client that joins has one rank and speaks with one server; leave out late"
        )
    if not launcher.connects_jobs():
        raise ValueError(
            f"late = {config.late}, but {launcher.vendor()} cannot connect a job to one that goes on: nobody could join; "
            f"take MPICH (pip install 'asyncfeded[mpich]'), or leave out late and give every client a rank"
        )


def fix_groups(config: Config, seats: Seats) -> Config:
    """The config with the number of ranks that train a client, where it names none: results depend on it.

    Raises:
        ValueError: hosts have different numbers of ranks, and the result must not depend on where a client trains.
    """
    sizes = sorted({len(group) for group in seats.groups})
    if config.ranks_per_client != "node" or (len(sizes) > 1 and config.clock == "wall"):
        return config
    if len(sizes) > 1:
        raise ValueError(
            f"ranks_per_client = node: the hosts have {sizes[0]} to {sizes[-1]} ranks for clients, and with "
            f"clock = {config.clock} the result must not depend on the host that a client trains on; start as many on each "
            f"host, or set ranks_per_client to a number"
        )
    return config.model_copy(update={"ranks_per_client": sizes[0]})


def describe_server(config: Config) -> str:
    """`1 server`, or how many ranks it has."""
    return "1 server" if config.servers == 1 else f"a server of {config.servers} ranks"


def take_place(world: World, plan: Plan) -> tuple[World, np.ndarray]:
    """Take the GPU, move to the cores near it, and use as many threads as this rank then has cores. Collective.

    Returns:
        The ranks with their new shares of cores, and the places of all: placement.PLACE (ranks,), by rank in MPI_COMM_WORLD.

    Raises:
        RefusedError: ranks that train together cannot do so on their devices.
    """
    config, device = plan.config, plan.device
    devices.take(device)
    world = share_cores(world)
    use_threads(world, config)
    role = "server" if plan.seats.serves(world.rank) else "tester" if world.rank == config.evaluator else "worker"
    group = plan.seats.worker(plan.seats.order.index(world.rank)) if plan.seats.grouped else -1
    places = gather_places(world, role, devices.describe_device(device), torch.get_num_threads(), group)
    ranks = [[plan.seats.order[seat] for seat in group] for group in plan.seats.groups]
    agree_on(world, lambda: placement.check_groups(ranks, places), lambda _: make_statement())
    return world, places


def use_threads(world: World, config: Config) -> None:
    """Let torch use as many threads as the config says, or as this rank has cores."""
    if config.threads or config.clock == "virtual":
        torch.set_num_threads(config.threads or 1)
    elif not os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip().isdigit():  # else torch has taken it
        torch.set_num_threads(world.threads)


def fill_in(config: Config, task: tasks.Task, rule: rules.Rule) -> Config:
    """The config with the defaults of task and rule filled in, and the metric that is the goal.

    Raises:
        ValueError: the task has no such metric, or limits.target is none of its values; or its clients cannot test.
    """
    goal = _find_goal(config, task)
    heads = {
        "task": {"name": config.task["name"], "initial": tasks.load_initial(config.task)},
        "rule": {"name": config.rule["name"]},
    }
    filled: dict[str, object] = {"evaluation": config.evaluation.model_copy(update={"metric": goal})}
    for section, part in {"task": task, "rule": rule}.items():
        # TOML has no word for None: such a key is left out, and None again when the config is read.
        keys = part.model_dump(mode="json", by_alias=True, exclude_none=True) if isinstance(part, Settings) else {}
        for key, field in type(part).model_fields.items() if isinstance(part, Settings) else ():
            if getattr(part, key) is None and field.get_default(call_default_factory=True) is not None:
                raise ValueError(
                    f"{section}.{key} = None: a file of TOML has no None, so that a resume would take the default; let None "
                    f"be its default, or use another value"
                )
        head = {key: value for key, value in heads[section].items() if value}
        filled[section] = head | {key: value for key, value in keys.items() if key not in heads[section]}
    return config.model_copy(update=filled)


def _find_goal(config: Config, task: tasks.Task) -> str:
    """The metric of the goal, if the task can measure what the config asks for. Raises ValueError if not."""
    name, asked, target = config.task["name"], config.evaluation, config.limits.target
    metrics = declared_metrics(task, name)
    goal = asked.metric or next(iter(metrics))
    if goal not in metrics:
        known = ", ".join(metrics)
        raise ValueError(f"evaluation.metric = {goal!r}: task {name} has no such metric, expected one of: {known}")
    if metrics[goal].is_fraction and not 0 <= target <= 1:
        raise ValueError(f"limits.target = {target:g}: {goal} is a fraction, expected a number from 0 to 1")
    where = f"evaluation.client_rounds = {asked.client_rounds}: task {name}"
    if asked.client_rounds and not isinstance(task, tasks.HoldsOut):
        raise ValueError(
            f"{where} has no held-out data of its clients; set it to 0, or give the task a method "
            f"held_out(client, num_clients, seed)"
        )
    if asked.client_rounds and len(metrics) > len(NO_SCORES):
        raise ValueError(
            f"{where} has {len(metrics)} metrics, and a client sends at most {len(NO_SCORES)}; set it to 0, or take fewer"
        )
    return goal


def digest_origin(config: Config) -> str:
    """Digests of the files that own tasks, own rules and the first weights come from (files/digest.py); empty for none.

    Raises:
        ValueError: a file cannot be read.
    """
    initial = tasks.load_initial(config.task)
    files = own.sources((config.task["name"], config.rule["name"])) + ([weights_file(Path(initial))] if initial else [])
    return digest_files({str(path): path for path in files})


def agree_on_digests(world: World, mine: str) -> None:
    """Check that every rank has the same digests as rank 0. Collective.

    Args:
        world: all ranks.
        mine: the digests of this rank, a line for each (files/digest.py).

    Raises:
        RefusedError: on every rank, with the same text, which says what differs.
    """
    first = broadcast_text(world, mine)

    def check() -> None:
        if names := differing(first, mine):
            more = f" and {len(names) - 3} more" if names[3:] else ""
            raise ValueError(f"{', '.join(names[:3])}{more}: not the same as on rank 0; every host must have the same")

    agree_on(world, check, lambda _: make_statement())
