"""Keeping the state of a run in checkpoints, and going on from one: what is kept when, what comes back, what may change.

How a checkpoint is written, and found again, is for `checkpoint/`.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from asyncfeded.config import Checkpoint, Config, section
from asyncfeded.model.flat import Layout
from asyncfeded.rules.decision import Reply, State
from asyncfeded.run.progress import Progress
from asyncfeded.store import checkpoint, record
from asyncfeded.store.checkpoint import Snapshot, Writer
from asyncfeded.training.evaluation import Score
from asyncfeded.training.server import Server
from asyncfeded.training.server_state import ServerState

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same module under its older name

MAY_CHANGE = ("limits", "evaluation", "checkpoint", "faults", "wait", "device", "server", "server_device")
"""Keys and sections of the config that a run may go on with others of; on the wall clock `threads` too."""


NUMBERS = ("updates", "refused", "busy_s", "evaluating_s", "compute_s", "evaluation_due_s")
"""Fields of `ServerState` that a snapshot has under the same name."""
BY_CLIENT = {
    "epochs": "epochs",
    "rounds": "rounds",
    "counts": "updates",
    "out": "out",
    "refused_in_a_row": "refused",
    "dropped": "dropped",
}
"""Fields of `ServerState` by client, and the columns of the checkpoint's `clients` that hold them."""


class ResumePoint(NamedTuple):
    """Where a run goes on."""

    snapshot: Snapshot
    path: Path
    """Of its checkpoint."""
    record: record.Tables
    """The run's rows up to there."""
    damaged: tuple[str, ...]
    """Newer checkpoints that cannot be used, and why."""


def find(run_dir: Path, config: Config, layout: Layout, state: State) -> ResumePoint:
    """The newest good checkpoint of a run, if the run can go on from it.

    Args:
        run_dir: its folder.
        config: to go on with, resolved.
        layout: of the model.
        state: of the rule at the start, for its names, shapes and dtypes.

    Raises:
        ValueError: there is none, or what is asked for is not the run that was left.
    """
    if record.is_going_on(run_dir):
        raise ValueError(f"{run_dir}: the run is going on; wait for its end, or stop it")
    tables = record.read_record(run_dir)
    found = checkpoint.newest(run_dir)
    snapshot, where = found.snapshot, found.path
    then = section(Config, tomllib.loads(snapshot.config), str(where))
    if changed := _changed(then.model_copy(update={"run_dir": config.run_dir}), config):
        raise ValueError(
            f"{run_dir}: a run cannot go on with another {changed[0]} ({changed[1]} in the run, {changed[2]} now); what may "
            f"change is {', '.join(MAY_CHANGE)} and, on the wall clock, threads"
        )
    shapes = {name: (array.shape, array.dtype) for name, array in _in_host_memory(state).items()}
    if snapshot.layout != layout or {name: (array.shape, array.dtype) for name, array in snapshot.rule.items()} != shapes:
        raise ValueError(f"{where}: holds another model, or another state of the rule, than this version of the program")
    updates, evaluations = tables.updates[: snapshot.update_rows], tables.evaluations[: snapshot.evaluation_rows]
    if (len(updates), len(evaluations)) != (snapshot.update_rows, snapshot.evaluation_rows):
        raise ValueError(
            f"{run_dir}: record.h5 has {len(updates)} updates and {len(evaluations)} evaluations, fewer than the "
            f"{snapshot.update_rows} and {snapshot.evaluation_rows} before {where.name}; the record of a resumed run would "
            f"have a gap"
        )
    # A barrier takes a step without an update when the client is lost that it waits for.
    if len(updates) and (updates["version"][-1] > snapshot.version or updates["time_s"][-1] > snapshot.time_s):
        raise ValueError(
            f"{run_dir}: record.h5 is not of the run of {where.name}: its update {len(updates)} made version "
            f"{updates['version'][-1]} at {updates['time_s'][-1]:g} s, expected {snapshot.version} by {snapshot.time_s:g} s"
        )
    part = run_dir / "config.toml.part"
    try:
        part.write_text(config.to_toml(), encoding="utf-8")
        part.unlink()
    except OSError as error:
        raise ValueError(
            f"{run_dir}: cannot be written: {error.strerror}; copy it to a disk with room, and resume it there"
        ) from None
    return ResumePoint(snapshot, where, tables._replace(updates=updates, evaluations=evaluations), found.damaged)


def reopen(config: Config, places: np.ndarray, clients: np.ndarray, point: ResumePoint) -> record.Record:
    """The run's folder as it was at a checkpoint, with the config to go on with. Rank 0.

    Args:
        config: resolved.
        places: placement.PLACE (ranks,).
        clients: heterogeneity.PROFILE (clients,).
        point: where the run goes on.
    """
    path, toml = Path(config.run_dir) / "config.toml", config.to_toml()
    part = path.with_name("config.toml.part")
    part.write_text(toml, encoding="utf-8")
    part.replace(path)
    return record.Record(path.with_name("record.h5"), toml, places, clients, point.record)


def sentences(point: ResumePoint, threads: int) -> list[str]:
    """For a person: where the run goes on, and what is not as it was, with so many threads now."""
    at, before = point.snapshot, point.record.attributes["threads"]
    lines = [f"not used: {text}" for text in point.damaged]
    lines.append(f"goes on from {point.path.name}: {at.time_s:.1f} s, {at.updates} updates, version {at.version}")
    if threads != before:
        lines.append(f"{threads} thread(s), {before} before: a replay will not be the same to the bit")
    return lines


def kept_due(snapshot: Snapshot) -> dict[int, float]:
    """By client, when the update of the order is due that it is out with; for `clock.Resumed`."""
    due_s = snapshot.clients["due_s"]
    return {client: float(due_s[client]) for client in np.flatnonzero(~np.isnan(due_s)).tolist()}


def restore(state: ServerState, snapshot: Snapshot) -> None:
    """Make the state of a server, as it is at the start, that of a checkpoint."""
    at, clients = snapshot, snapshot.clients
    bases = {version: torch.from_numpy(base) for version, base in at.bases.items()}
    state.model.restore(torch.from_numpy(at.model), at.version, clients["base_version"], bases)
    for name, array in state.rule.items():
        torch.as_tensor(array).copy_(torch.from_numpy(at.rule[name]))
    for name, column in BY_CLIENT.items():
        getattr(state, name)[:] = clients[column]
    for name in NUMBERS:
        setattr(state, name, getattr(at, name))
    state.taken_s, state.wall_before_s = at.time_s, at.wall_s
    if at.score_version >= 0:
        state.score = Score(at.score_version, at.score_accuracy, at.score_loss)


def snapshot(server: Server, book: record.Record, config: str, due_s: Mapping[int, float]) -> Snapshot:
    """The state of a server between two updates, or when it has stopped.

    Its arrays are the server's own, unless the model is on a GPU.

    Args:
        server: which.
        book: the record of its run, written up to here.
        config: resolved, as TOML.
        due_s: by client, when the update of its last order is due; empty on the wall clock.
    """
    state = server.state
    model, score = state.model, state.score or Score(-1, math.nan, math.nan)
    clients = np.zeros(len(state.out), checkpoint.CLIENT_STATE)
    for name, column in BY_CLIENT.items():
        clients[column] = getattr(state, name)
    clients["base_version"] = model.base_version
    clients["due_s"] = [due_s.get(i, math.nan) if out else math.nan for i, out in enumerate(state.out.tolist())]
    lost = [Reply(client, int(state.epochs[client])) for client in np.flatnonzero(state.lost & ~state.dropped).tolist()]
    for client, epochs in (*state.withheld, *lost):  # given as soon as the run goes on
        clients["epochs"][client], clients["base_version"][client], clients["out"][client] = epochs, model.version, True
        clients["rounds"][client] += 1
    return Snapshot(
        config=config,
        provenance=book.provenance,
        # On an ordered clock an update that came too late for a limit has moved it on: the update is still to be taken.
        time_s=server.elapsed_s if server.settings.in_idle_moments else state.taken_s,
        wall_s=server.wall_s,
        version=model.version,
        update_rows=book.updates.count,
        evaluation_rows=book.evaluations.count,
        score_version=score.version,
        score_accuracy=score.accuracy,
        score_loss=score.loss,
        layout=model.layout,
        model=model.x.cpu().numpy(),
        bases={
            version: model.base[client].cpu().numpy()
            for client, (out, version) in enumerate(zip(state.out.tolist(), model.base_version.tolist(), strict=True))
            if out and version != model.version
        },
        clients=clients,
        rule=_in_host_memory(state.rule),
        **{name: getattr(state, name) for name in NUMBERS},
    )


def _in_host_memory(state: State) -> dict[str, np.ndarray]:
    """The state of a rule as arrays; the same memory where it is there already."""
    return {name: torch.as_tensor(array).cpu().numpy() for name, array in state.items()}


class Keeper:
    """Writes checkpoints of a run when they are due. Rank 0.

    Args:
        settings: when.
        writer: takes them to the disk in the background.
        book: the record of the run.
        take: the state of a server.
        progress: is told of what goes wrong; the rest goes to its log.
        updates: merged before; None: the run is new, and its first checkpoint is due at once.

    Attributes:
        wanted: set it to have one written now.
    """

    def __init__(
        self,
        settings: Checkpoint,
        writer: Writer,
        book: record.Record,
        take: Callable[[Server], Snapshot],
        progress: Progress,
        updates: int | None,
    ) -> None:
        self._settings, self._writer, self._record = settings, writer, book
        self._take, self._progress = take, progress
        self._on = bool(settings.every_updates or settings.every_s)
        self._problem = ""
        self.wanted = self._on and updates is None
        self._last_updates, self._last_s = updates or 0, time.monotonic()

    def tick(self, server: Server) -> None:
        """Start a checkpoint if one is due; at the end of a run, the last. Tells of a record that cannot be written."""
        if self._record.problem != self._problem:
            self._problem = self._record.problem
            self._progress.say(self._problem or "the rows of the record are on the disk again")
        if server.stopping:
            if self._on or self.wanted or server.interrupted or server.failed:
                self.finish()
                self._start(server)
            return
        self._tell(self._writer.poll())
        if not self._writer.busy and (self.wanted or self._due(server)):
            self._start(server)

    def finish(self) -> None:
        """Wait until the last one is written."""
        self._tell(self._writer.wait())

    def _due(self, server: Server) -> bool:
        settings, new = self._settings, server.state.updates - self._last_updates
        late = settings.every_s and new and time.monotonic() - self._last_s >= settings.every_s
        return bool(late or (settings.every_updates and new >= settings.every_updates))

    def _start(self, server: Server) -> None:
        self.wanted = False
        self._last_updates, self._last_s = server.state.updates, time.monotonic()
        try:
            self._record.write()  # no checkpoint is ahead of the record
        except OSError as error:
            self._progress.say(f"no checkpoint is written, since the record cannot be: {error.strerror}")
            return
        self._writer.start(self._take(server))

    def _tell(self, written: checkpoint.Written | None) -> None:
        if written is not None:
            if written.problem:
                self._progress.say(written.problem)
            else:
                size = f"{written.num_bytes / 1e6:.1f} MB in {written.seconds:.2f} s"
                self._progress.log(f"checkpoint {written.path.name}: {size}")


def _changed(then: Config, now: Config) -> tuple[str, Any, Any] | None:
    """The first key that may not change and has, with its values."""
    may = (*MAY_CHANGE, "threads") if now.clock == "wall" else MAY_CHANGE
    before, after = _flat(then.model_dump(mode="json", by_alias=True)), _flat(now.model_dump(mode="json", by_alias=True))
    for key in before | after:
        if before.get(key) != after.get(key) and key.partition(".")[0] not in may:
            return key, before.get(key), after.get(key)
    return None


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
