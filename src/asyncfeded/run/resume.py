"""The state of a run in a checkpoint, and a run that goes on: what is kept, what is restored, what may change.

`checkpoint/` writes checkpoints and finds them again; keeper.py says when.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from asyncfeded.config import Config, section
from asyncfeded.files.plain import parse_toml
from asyncfeded.metric import Metrics
from asyncfeded.model.bases import in_turn
from asyncfeded.model.flat import Layout
from asyncfeded.model.slices import Slice
from asyncfeded.rules.decision import State
from asyncfeded.run import folder, result
from asyncfeded.store import checkpoint, record
from asyncfeded.store.checkpoint import Rows, Snapshot
from asyncfeded.training.evaluation import Score
from asyncfeded.training.server import Server
from asyncfeded.training.server_state import ServerState

MAY_CHANGE = (
    "limits", "evaluation", "checkpoint", "record", "faults", "wait", "device", "late", "server", "servers", "evaluator",
    "server_device", "bases", "bases_dir", "bases_gb", "training.loader_workers",
)  # fmt: skip
"""Keys and sections of the config that may change when a run is resumed; on the wall clock `threads` too."""
STAYS = ("evaluation.average",)  # of these: a mean cannot begin with versions that are gone
AVERAGE = "average of the model"  # among the arrays of the rule in a snapshot; no rule has a name with blanks
NUMBERS = ("updates", "refused", "busy_s", "evaluating_s", "compute_s", "evaluation_due_s")
"""Fields of `ServerState` that have the same name in a snapshot."""
BY_CLIENT = {
    "epochs": "epochs",
    "rounds": "rounds",
    "steps": "steps",
    "share": "share",
    "learning_rate": "learning_rate",
    "counts": "updates",
    "out": "out",
    "refused_in_a_row": "refused",
    "dropped": "dropped",
}
"""Fields of `ServerState` with a value for each client, and the columns of the checkpoint's `clients` that hold them."""


class ResumePoint(NamedTuple):
    """The point from which a run continues."""

    snapshot: Snapshot
    path: Path
    """Path of its checkpoint."""
    record: record.Tables
    """The rows of the run up to this point."""
    dropped: int
    """How many later updates the record holds; they are trained again."""
    damaged: tuple[str, ...]
    """Newer checkpoints that cannot be used, each with the reason."""


def find(
    run_dir: Path, config: Config, metrics: Metrics, layout: Layout, state: ServerState, held: Slice | None = None
) -> ResumePoint:
    """Find the newest good checkpoint of a run, and check that the run can continue from it.

    Args:
        run_dir: folder of the run.
        config: config for the rest of the run, resolved.
        metrics: those of the task.
        layout: layout of the model.
        state: at the start, for the names, shapes and dtypes of the rule's state.
        held: the slice that this server rank reads; None: everything.

    Raises:
        ValueError: there is no checkpoint, the run has ended behind it, or the config or the model is not that of the run.
    """
    tables = record.read_record(run_dir)
    if tables.metrics.columns != metrics.columns:
        raise ValueError(
            f"{run_dir}: the metrics of its task were {tables.metrics.columns}, and now are {metrics.columns}; a run cannot "
            f"go on with others"
        )

    def check(path: Path, snapshot: Snapshot) -> None:
        _check_config(run_dir, path, snapshot, config)
        _check_state(path, snapshot, config.clients, layout, state)
        _check_record(run_dir, path, snapshot, tables)

    found = checkpoint.newest(run_dir, check, held, vectors(kept(state)))
    snapshot, where = found.snapshot, found.path
    rows = {name: getattr(tables, name)[:count] for name, count in snapshot.rows.items()}
    if (ended := result.updates_at_end(run_dir)) > snapshot.updates:
        lines = (
            f"{run_dir}: the run has ended with {ended} updates, and {where.name}, its newest good checkpoint, holds "
            f"{snapshot.updates}: to go on from there would lose {ended - snapshot.updates} updates and the model of that "
            f"end; to do it all the same, copy model.h5, and move result.json away",
            *(f"not used: {text}" for text in found.damaged),
        )
        raise ValueError("\n  ".join(lines))
    part = run_dir / "config.toml.part"
    try:
        part.write_text(config.to_toml(), encoding="utf-8")
        part.unlink()
    except OSError as error:
        raise ValueError(
            f"{run_dir}: cannot be written: {error.strerror}; copy it to a disk with room, and resume it there"
        ) from None
    dropped = len(tables.updates) - snapshot.update_rows
    return ResumePoint(snapshot, where, tables._replace(**rows), dropped, found.damaged)


def _check_config(run_dir: Path, path: Path, snapshot: Snapshot, config: Config) -> None:
    """Whether a checkpoint is of a run with this config. Raises ValueError if not."""
    then = section(Config, parse_toml(snapshot.config, str(path)), str(path))
    if changed := _changed(then.model_copy(update={"run_dir": config.run_dir}), config):
        raise ValueError(
            f"{run_dir}: a run cannot go on with another {changed[0]} ({changed[1]} in the run, {changed[2]} now); what may "
            f"change is {', '.join(MAY_CHANGE)} (not {', '.join(STAYS)}) and, on the wall clock, threads"
        )


def _check_state(path: Path, snapshot: Snapshot, num_clients: int, layout: Layout, state: ServerState) -> None:
    """Whether a checkpoint holds a state that this program can have. Raises ValueError if not."""
    start, num_own = _in_host_memory(kept(state)), state.model.layout.sent - state.model.layout.size
    shapes = {name: (array.shape, array.dtype) for name, array in start.items()}
    if (
        snapshot.layout.with_own(()) != layout.with_own(())
        or len(snapshot.clients) != num_clients
        or {name: (array.shape, array.dtype) for name, array in snapshot.rule.items()} != shapes
    ):
        raise ValueError(f"{path}: holds another model, or another state of the rule, than this version of the program")
    if snapshot.own_names != layout.own_names or (len(snapshot.own) and snapshot.own.length != num_own):
        raise ValueError(f"{path}: holds another state of the optimizer than this version of the program, or of torch, has")
    for name, array in snapshot.rule.items():
        if array.dtype.kind == "f" and np.isfinite(start[name]).all() and not np.isfinite(array).all():
            raise ValueError(f"{path}: rule/{name} holds a value that is not finite")
    K = snapshot.rule.get("K", snapshot.clients["epochs"])
    if K.min() < 1 or K.max() > checkpoint.MOST_EPOCHS:
        raise ValueError(f"{path}: rule/K goes from {K.min()} to {K.max()}, expected 1 to {checkpoint.MOST_EPOCHS}")


def _check_record(run_dir: Path, path: Path, snapshot: Snapshot, tables: record.Tables) -> None:
    """Whether a record holds the rows before a checkpoint. Raises ValueError if not."""
    if snapshot.metrics.columns != tables.metrics.columns:
        raise ValueError(f"{path}: holds the metrics {snapshot.metrics.columns}, and record.h5 {tables.metrics.columns}")
    for name, count in snapshot.rows.items():
        if (there := len(getattr(tables, name))) < count:
            raise ValueError(
                f"{run_dir}: record.h5 has {there} {name.replace('_', ' ')}, fewer than the {count} before {path.name}; the "
                f"record of a resumed run would have a gap"
            )
    updates = tables.updates[: snapshot.update_rows]
    # A barrier takes a step without an update if it waits for one client and that client is lost.
    if len(updates) and (updates["version"][-1] > snapshot.version or updates["time_s"][-1] > snapshot.time_s):
        raise ValueError(
            f"{run_dir}: record.h5 is not of the run of {path.name}: its update {len(updates)} made version "
            f"{updates['version'][-1]} at {updates['time_s'][-1]:g} s, expected {snapshot.version} by {snapshot.time_s:g} s"
        )


def reopen(
    config: Config,
    metrics: Metrics,
    places: np.ndarray,
    clients: np.ndarray,
    point: ResumePoint,
    check: Callable[[], None] = lambda: None,
    data: str = "",
) -> record.Record:
    """Restore the folder of a run to a checkpoint, with the config for the rest of the run. Rank 0.

    Args:
        config: resolved.
        metrics: those of the task.
        places: placement.PLACE (ranks,).
        clients: heterogeneity.PROFILE (clients,).
        point: where the run continues.
        check: see `Record`.
        data: see `Record`.
    """
    folder.write_config(config)
    path = Path(config.run_dir) / "record.h5"
    return record.Record(path, config.to_toml(), places, clients, metrics, point.record, check, data)


def sentences(point: ResumePoint, threads: int) -> list[str]:
    """Sentences for the user: where the run continues, and what differs from before; `threads` is the number of now."""
    at, before = point.snapshot, point.record.attributes["threads"]
    lines = [f"not used: {text}" for text in point.damaged]
    lines.append(f"goes on from {point.path.name}: {at.time_s:.1f} s, {at.updates} updates, version {at.version}")
    if point.dropped:
        lines.append(f"the record holds {point.dropped} later updates: they are dropped, and that work is done again")
    if threads != before:
        lines.append(f"{threads} thread(s), {before} before: a replay will not be the same to the bit")
    return lines


def kept_due(snapshot: Snapshot) -> dict[int, float]:
    """For each client that has an order, the time when its update is due; for `clock.Resumed`."""
    due_s = snapshot.clients["due_s"]
    return {client: float(due_s[client]) for client in np.flatnonzero(~np.isnan(due_s)).tolist()}


def restore(state: ServerState, snapshot: Snapshot) -> None:
    """Replace the state of a server at its start by the state in a checkpoint."""
    at, clients = snapshot, snapshot.clients
    bases, own = (((number, torch.from_numpy(row)) for number, row in rows) for rows in (at.bases, at.own))
    state.model.restore(torch.from_numpy(at.model), at.version, clients["base_version"], bases, own)
    for name, array in state.rule.items():
        torch.as_tensor(array).copy_(torch.from_numpy(at.rule[name]))
    if state.average:
        state.average.restore(torch.from_numpy(at.rule[AVERAGE]), at.version)
    for name, column in BY_CLIENT.items():
        getattr(state, name)[:] = clients[column]
    for name in NUMBERS:
        setattr(state, name, getattr(at, name))
    state.taken_s, state.wall_before_s, state.workers_before_s = at.time_s, at.wall_s, at.workers_s
    if at.score_version >= 0:
        state.score = Score(at.score_version, dict(zip(at.metrics.by_name, at.score.tolist(), strict=True)))


def kept(state: ServerState) -> State:
    """What a checkpoint keeps by name: the state of the rule, and the average of the model."""
    return state.rule | ({AVERAGE: state.average.mean} if state.average else {})


def vectors(state: State) -> tuple[str, ...]:
    """The names of a rule's vectors of model size: those that are tensors."""
    return tuple(name for name, value in state.items() if isinstance(value, torch.Tensor))


def snapshot(
    server: Server, book: record.Record, config: str, due_s: Mapping[int, float], workers: float, layout: Layout
) -> Snapshot:
    """Take the state of a server between two updates, or after it has stopped.

    The arrays of the snapshot share the server's memory, unless the model is on a GPU. Those of the bases stay as they are
    until its `let_go` is called.

    Args:
        server: the server.
        book: the record of its run, up to now.
        config: the resolved config, as TOML.
        due_s: for each client, when the update of its last order is due; empty on the wall clock.
        workers: their number.
        layout: of a whole message.
    """
    state = server.state
    model, metrics = state.model, server.settings.metrics
    score = state.score or Score(-1, dict.fromkeys(metrics.by_name, math.nan))
    clients = np.zeros(len(state.out), checkpoint.CLIENT_STATE)
    for name, column in BY_CLIENT.items():
        clients[column] = getattr(state, name)
    clients["base_version"] = model.base_version
    clients["due_s"] = [due_s.get(i, math.nan) if out else math.nan for i, out in enumerate(state.out.tolist())]
    lost = map(state.again, np.flatnonzero(state.lost & ~state.dropped).tolist())
    for client, epochs, rate in (*state.withheld, *lost):  # they get their orders as soon as the run continues
        clients["epochs"][client], clients["learning_rate"][client] = epochs, rate
        clients["base_version"][client], clients["out"][client] = model.version, True
        clients["rounds"][client] += 1
        clients["share"][client] = math.nan  # follows from the limits that the run then has
    replies, let_go = model.keep()
    bases = {
        version: reply
        for reply, out, version in zip(replies, state.out.tolist(), model.base_version.tolist(), strict=True)
        if out and version != model.version
    }
    size, sent = model.layout.size, model.layout.sent
    return Snapshot(
        config=config,
        provenance=book.provenance,
        # An update that came too late for a limit has moved an ordered clock forward, but a resumed run must still take it.
        time_s=server.elapsed_s if server.settings.in_idle_moments else state.taken_s,
        wall_s=server.wall_s,
        workers_s=result.workers_s(state, server.wall_s, workers),
        version=model.version,
        update_rows=book.updates.count,
        evaluation_rows=book.evaluations.count,
        client_evaluation_rows=book.client_evaluations.count,
        score_version=score.version,
        score=np.array(list(score.values.values()), np.float64),
        metrics=metrics,
        layout=layout.with_own(()),
        model=model.x.cpu().numpy(),
        bases=Rows(tuple(bases), size, lambda: in_turn(bases.values(), slice(size), model.disk)),
        own_names=layout.own_names,
        own=Rows(tuple(range(len(replies))), sent - size, lambda: in_turn(replies, slice(size - sent, None), model.disk))
        if sent > size
        else Rows(),
        clients=clients,
        rule=_in_host_memory(kept(state)),
        vectors=vectors(kept(state)),
        let_go=let_go,
        **{name: getattr(state, name) for name in NUMBERS},
    )


def _in_host_memory(state: State) -> dict[str, np.ndarray]:
    """The state of a rule as arrays; they share memory with tensors that are in host memory already."""
    return {name: torch.as_tensor(array).cpu().numpy() for name, array in state.items()}


def _changed(then: Config, now: Config) -> tuple[str, Any, Any] | None:
    """The first key that has changed and may not change, with its two values."""
    may = (*MAY_CHANGE, "threads") if now.clock == "wall" else MAY_CHANGE
    before, after = _flat(then.model_dump(mode="json", by_alias=True)), _flat(now.model_dump(mode="json", by_alias=True))
    for key in before | after:
        if before.get(key) != after.get(key) and (key in STAYS or not {key, key.partition(".")[0]} & {*may}):
            return key, before.get(key), after.get(key)
    return None


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
