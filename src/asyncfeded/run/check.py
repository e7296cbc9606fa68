"""`asyncfeded check`: what a run does before its first message, in one process and without a job.

It takes the steps of the server and those of one worker, as run.py does on their ranks; the worker is home to all clients,
or to as many as there is time for. So it refuses what a run would refuse, in the same words.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from asyncfeded import accelerator
from asyncfeded.config import Config, load_config
from asyncfeded.model.flat import FlatModel, ModuleState
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.mpi import limits
from asyncfeded.mpi.seats import Part
from asyncfeded.mpi.world import imagine_job
from asyncfeded.rules import contract, measured_for
from asyncfeded.rules.decision import Update
from asyncfeded.run import folder, work
from asyncfeded.run.evaluate import make_evaluator
from asyncfeded.run.memory import server_need, worker_need
from asyncfeded.run.plan import Plan, correctable, describe_server, read_plan, use_threads
from asyncfeded.run.run import Loaded, flatten, load, make_module
from asyncfeded.run.work import ClientParts
from asyncfeded.training.evaluation import Evaluator
from asyncfeded.training.heterogeneity import ClientProfiles
from asyncfeded.wire.group import imagine_group
from asyncfeded.wire.messages import HEAD, Order

LOAD_S = 10.0
"""Seconds that the data of clients may take; then not all of them are tried."""
STEPS, STEPS_S = 20, 2.0
"""Most steps that are timed, and seconds after which none begins."""
SHOWN = 30
"""Most tensors that are listed."""


class Checked(NamedTuple):
    """What a check has found."""

    figures: dict[str, str]
    """By what they are about."""
    sentences: tuple[str, ...]
    """What the task has to say about its data, and what was not checked."""


def check(path: Path, overrides: list[str], ranks: int | None = None) -> Checked:
    """Do all that a run does before its first message, and time a few steps.

    Args:
        path: the run's TOML file.
        overrides: `key=value`, applied to the file.
        ranks: number of ranks of the run; None: one for each client on the wall clock, at most 5 on another.

    Raises:
        ValueError: the run would be refused; the message is that of the run.
    """
    return correctable(lambda: _check(path, overrides, ranks))


def _check(path: Path, overrides: list[str], ranks: int | None) -> Checked:
    config = load_config(path, overrides)
    if config.run_dir and not folder.is_unbegun(Path(config.run_dir)):
        folder.check_free(Path(config.run_dir))
    size, hosts = _ranks(config, ranks)
    held, job = limits.process_memory()[0], imagine_job(size, config.server, hosts)
    plan = read_plan(job, path, overrides, None)
    use_threads(job, plan.config)
    profiles, module, state = make_module(plan)
    parts, loaded, tried = _try_worker(
        read_plan(imagine_job(size, not config.server, hosts), path, overrides, None), profiles
    )
    flat = flatten(plan, module, loaded.changed, [])
    evaluator, remarks = make_evaluator(plan, flat)
    together = f" of {len(plan.seats.groups[0])} ranks" if plan.seats.grouped else ""
    server = describe_server(plan.config)
    figures = {"run": f"{plan.config.clock} clock, {server} and {plan.config.clients} clients{together} on {size} ranks"}
    figures |= _times(parts, evaluator, profiles) | {"metrics": f"{plan.metrics.columns}; goal: {plan.metrics.goal}"}
    _try_rule(plan, parts, flat)
    figures |= _tensors(state, parts.flat) | _bytes(size, held, plan, parts)
    if tried < plan.config.clients:
        remarks += (f"{tried} of {plan.config.clients} clients were tried; a run tries all of them, in more time",)
    return Checked(figures, remarks)


def _try_worker(plan: Plan, profiles: ClientProfiles) -> tuple[ClientParts, Loaded, int]:
    """Prepare a worker, as its rank would. Returns also how many clients it is home to."""
    num_clients = plan.config.clients
    loaded = load(imagine_job(num_clients + 1, 1), plan, profiles)  # the data of client 0, and what has to be set up
    (held, _), room, began_s = limits.process_memory(), limits.host_memory(), time.monotonic()
    loaded.client_data(num_clients - 1)
    took_s, taken = time.monotonic() - began_s, limits.process_memory()[0] - held
    every = max(1, math.ceil(num_clients * took_s / LOAD_S), math.ceil(num_clients * taken / (room / 2)))
    worker = imagine_job(every + 1, 1)  # home to each of so many clients
    together = len(plan.seats.groups[0])
    for place in sorted({0, together - 1}, reverse=True):  # of a group: the rank with the smallest parts, then the leader
        group = imagine_group(Part(place, together)) if together > 1 else None
        flat = flatten(plan, make_module(plan)[1], loaded.changed, loaded.own, group)
        parts = work.prepare(worker, plan, flat, profiles, loaded.client_data, group)
    return parts, loaded, len(worker.seats.homes(1, num_clients))


def _ranks(config: Config, ranks: int | None) -> tuple[int, list[str] | None]:
    """How many ranks the run has, and on which hosts: on this one, or one for each client that takes all ranks of a host."""
    workers = config.clients or 4 if config.clock == "wall" else min(config.clients, 4)
    others = config.servers + (config.evaluator >= 0)
    if config.ranks_per_client != "node":
        return (others + workers * config.ranks_per_client if ranks is None else ranks), None
    size = others + workers if ranks is None else ranks
    workers = min(config.clients or 1, size - 1) if config.clock == "wall" else 1
    return size, ["server", *(f"host {rank * workers // (size - 1)}" for rank in range(size - 1))]


def _try_rule(plan: Plan, parts: ClientParts, flat: FlatModel) -> None:
    """Let the rule take what client 0 has trained."""
    model, epochs = GlobalModel(flat.buffer, parts.flat.layout, 2), np.resize(parts.profiles.clients["epochs"], 2)
    epochs = epochs.astype(np.int64)
    state = contract.init(plan.rule, model, epochs)
    for client in (0, 1):
        model.hold(client)
        model.hand_out(client)
    moved, change = model.distances(0, parts.flat.buffer)
    trained = parts.flat.buffer[: model.layout.size]
    update = Update(0, 0, int(epochs[0]), parts.trainer.samples, moved, change, trained)
    contract.on_arrival(plan.rule, 0, update, model, state, np.array([False, True]))


def _times(parts: ClientParts, evaluator: Evaluator, profiles: ClientProfiles) -> dict[str, str]:
    """What a batch holds; the time of a step, and of a batch of the evaluation. Trains client 0 for a while."""
    batches, times, device = list[object](), [time.perf_counter()], parts.flat.buffer.device
    loss = parts.task.loss

    def noted(model: torch.nn.Module, batch: object) -> Tensor:
        batches.append(batch)
        return loss(model, batch)

    def enough() -> bool:
        accelerator.synchronize(device)
        times.append(time.perf_counter())
        return len(times) > STEPS or times[-1] - times[0] > STEPS_S

    parts.task.loss = noted
    order = Order(0, 0, 0, int(profiles.clients["epochs"][0]))
    parts.trainer.round(order, parts.client_data(0)._replace(slowdown=1.0), enough)
    parts.task.loss = loss
    evaluator.start(parts.flat.buffer[: parts.flat.layout.size], -1)
    began_s = time.perf_counter()
    evaluator.step()
    samples, sizes = profiles.clients["samples"], profiles.clients["batch_size"]
    return {
        "samples": f"{_range(samples)} of a client, {samples.sum()} in all, in batches of {_range(sizes)}",
        "batch": _shapes(batches[0]) if batches else "as the task's own step takes it",
        "step": f"{1e3 * median(np.diff(times)):.3g} ms on {device} with {torch.get_num_threads()} threads",
        "evaluation": f"{1e3 * (time.perf_counter() - began_s):.3g} ms for a batch",
    }


def _tensors(state: ModuleState, flat: FlatModel) -> dict[str, str]:
    """How many numbers of the model are sent, and how many each rank keeps; names and shapes."""
    sent = {entry.name for entry in flat.layout.entries}
    statistics = {name: tensor for name, tensor in state.candidates.items() if name in sent}
    frozen = {name: tensor for name, tensor in state.candidates.items() if name not in sent}
    parts = {"trained": state.trained, "statistics": statistics, "frozen": frozen, "other": state.local}
    told = {name: f"{tuple(tensor.shape)}" for name, tensor in state.all.items()}
    names = list(told)[:SHOWN]
    tables = {
        "trained": "parameters, sent",
        "statistics": "that training changes too, sent",
        "frozen": "kept, equal on all ranks",
        "other": "kept, as model() makes it",
    }
    figures = {part: f"{_numel(parts[part])} in {len(parts[part])} tensors, {tables[part]}" for part in parts if parts[part]}
    if own := flat.layout.own:
        figures["own"] = (
            f"{flat.layout.sent - flat.layout.size} in {len(own)} tensors, each client's own, sent behind the model"
        )
    figures |= {f"  {name}": told[name] for name in names}
    if len(told) > SHOWN:
        figures["  ..."] = f"and {len(told) - SHOWN} more"
    return figures


def _bytes(size: int, held: int, plan: Plan, parts: ClientParts) -> dict[str, str]:
    """Bytes of an update, and the memory of the ranks. `held`: of this process before it had a model."""
    config, layout = plan.config, parts.flat.layout
    server = 4 * layout.size + server_need(config, plan.rule, layout, plan.device.type != "cpu").touched
    together = len(plan.seats.groups[0])
    pinned, measures = not parts.flat.buffer.is_cpu, bool(measured_for(plan.rule))
    need = worker_need(config, plan.rule.proximal, layout, pinned, together, measures)
    worker = 4 * layout.size + need.touched
    in_all = server + (size - 1) * worker + size * held
    return {
        "update": f"{HEAD + 4 * layout.sent} bytes, and as many for the reply",
        "server": f"{_amount(server)} for its models",
        "worker": f"{_amount(worker)} for its model, besides the data of its clients and what a step takes",
        "all ranks": f"{_amount(in_all)}, {_amount(held)} of each for Python and libraries; this host has "
        f"{_amount(limits.host_memory())} left",
    }


def _shapes(batch: object) -> str:
    """Types and shapes in a batch."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return ", ".join(f"{name}: {_shapes(part)}" for name, part in batch.items())
    if isinstance(batch, tuple | list):
        return ", ".join(map(_shapes, batch))
    return type(batch).__name__


def _range(values: np.ndarray) -> str:
    least, most = values.min(), values.max()
    return str(least) if least == most else f"{least} to {most}"


def _numel(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _amount(num_bytes: float) -> str:
    unit, size = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if num_bytes >= pair[1]), ("kB", 1e3))
    return f"{num_bytes / size:.3g} {unit}"
