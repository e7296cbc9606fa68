"""One run: who is server, who is client, what is checked before the first message, and an orderly end.

The phases, on every rank: join the job; prepare (read the config, load the data, build the model); agree; train; leave. What
a user did wrong is found while preparing and told once, by rank 0. After that no rank leaves alone: an uncaught error ends
the whole job.
"""

import hashlib
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from asyncfeded import kernel, launcher, record, rules, tasks, world
from asyncfeded.checkpoint import save_model
from asyncfeded.client import Trainer, work
from asyncfeded.config import Config, load
from asyncfeded.evaluation import Evaluator
from asyncfeded.flat import FlatModel
from asyncfeded.progress import Progress
from asyncfeded.rules.decision import State
from asyncfeded.seeds import Stream, seed_torch
from asyncfeded.server import Outcome, Server
from asyncfeded.staleness import GlobalModel
from asyncfeded.tasks.classification import Data
from asyncfeded.wire import ClientWire, ServerWire
from asyncfeded.world import World

REFUSED = 2
"""Exit status when a run cannot start for a reason that a user can mend."""


def train(path: Path, overrides: list[str]) -> int:
    """Run a training. Collective: rank 0 is the server, rank i + 1 is client i.

    Args:
        path: the run's TOML file.
        overrides: `key=value` for it.

    Returns:
        The exit status: 0, or REFUSED after telling why on standard error.
    """
    here: World | None = None
    try:
        here = world.join()
        _train(here, path, overrides)
        world.leave()
    except world.RefusedError as error:
        launched = launcher.launched_by()
        if (here.rank if here else launched[2] if launched else 0) == 0:
            _complain(f"asyncfeded: {error}")
        world.leave()
        return REFUSED
    except BaseException as error:
        _end_job(here, error)
        raise
    return 0


@dataclass(frozen=True)
class Job:
    """What a rank has prepared: a model, and the data for its role."""

    config: Config
    task: tasks.Task
    rule: rules.Rule
    state: State
    num_clients: int
    flat: FlatModel
    trainer: Trainer | None
    """Of this rank's client; None on rank 0."""
    evaluator: Evaluator | None
    """On rank 0."""
    run_dir: Path
    """The folder of the run; on rank 0."""


def _train(here: World, path: Path, overrides: list[str]) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(here.threads)
    job: Job | None = None
    try:
        job = _prepare(here, path, overrides)
        layout = job.flat.layout
        said = world.statement(
            config=job.config.digest(), layout=layout.digest(), num_params=layout.num_params, size=layout.size
        )
    except (ValueError, OSError) as error:
        said = world.statement(problem=str(error) or repr(error))
    hosts = world.agree(here, said)
    assert job is not None
    if here.rank == 0:
        _serve(here, job, hosts)
    else:
        _work(here, job)


def _prepare(here: World, path: Path, overrides: list[str]) -> Job:
    """All that can be checked without a message.

    Raises:
        ValueError, OSError: something is wrong that a user can mend.
    """
    config = load(path, overrides)
    task, rule = tasks.load(config.task), rules.load(config.rule)
    num_clients = config.clients or here.size - 1
    if num_clients != here.size - 1:
        raise ValueError(
            f"clients = {num_clients}, but {here.size} ranks make 1 server and {here.size - 1} clients; start it with "
            f"--ranks {num_clients + 1} (mpiexec -n {num_clients + 1}), or set clients={here.size - 1}"
        )
    state = rule.init(num_clients, config.training.epochs)
    device = _device(config.device, here)
    seed_torch(config.seed, Stream.MODEL)
    flat = FlatModel(task.model(), device)
    trainer, evaluator, run_dir = None, None, Path()
    if here.rank == 0:
        evaluator = Evaluator(task, flat, config.evaluation.batch_size)
        run_dir = _run_dir(config)
    else:
        me, slowdown = here.rank - 1, config.heterogeneity.slowdown
        inputs, targets = task.client_data(me, num_clients, config.seed)
        data = Data(inputs.to(device), targets.to(device))
        trainer = Trainer(task, flat, data, config.training, config.seed, me, slowdown[me % len(slowdown)])
    return Job(config, task, rule, state, num_clients, flat, trainer, evaluator, run_dir)


def _device(wanted: str, here: World) -> torch.device:
    """The device of this rank: a host's GPUs are dealt to its ranks in turn."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not count):
        return torch.device("cpu")
    index = int(wanted.partition(":")[2] or here.local_rank % max(count, 1))
    if index >= count:
        raise ValueError(
            f"device = {wanted!r}: this host has {count} GPUs that torch can use; set device=cpu or device=auto"
        )
    return torch.device("cuda", index)


def _run_dir(config: Config) -> Path:
    """The run's folder, which can be made and holds no run; it is made when all ranks have agreed."""
    name = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{config.task['name']}-{config.rule['name']}"
    run_dir = Path(config.run_dir or Path("runs") / name)
    if (run_dir / "record.h5").exists():
        raise ValueError(f"run_dir = {str(run_dir)!r} holds a run already; choose another folder, or move that one away")
    parent = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not parent.is_dir():
        raise ValueError(f"run_dir = {str(run_dir)!r} cannot be made: {parent} is a file; choose another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"run_dir = {str(run_dir)!r} cannot be made: {parent} is not writable; choose another folder")
    return run_dir


def _work(here: World, job: Job) -> None:
    """A client, to its end. Client ranks."""
    assert job.trainer is not None
    buffer = job.flat.buffer
    host = torch.empty(buffer.shape, pin_memory=True) if buffer.is_cuda else buffer
    work(ClientWire(here.comm, here.rank - 1, host, here.backoff(job.config.wait)), job.trainer, job.flat, host)


def _serve(here: World, job: Job, hosts: list[str]) -> None:
    """The server, from the first model sent to the result printed. Rank 0."""
    assert job.evaluator is not None
    config, layout, run_dir = _resolved(job), job.flat.layout, job.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    book = record.Record(run_dir / "record.h5", config.to_toml(), hosts)
    model = GlobalModel(job.flat.buffer.cpu(), layout, job.num_clients)
    pipe = ServerWire(here.comm, job.num_clients, layout.size, here.backoff(config.wait))
    server_bytes = model.num_bytes + pipe.buffer_bytes + job.evaluator.num_bytes
    with Progress(run_dir / "log.txt") as progress:
        progress.say(
            f"{config.task['name']}, {config.rule['name']}: 1 server, {job.num_clients} clients on {len(set(hosts))} "
            f"host(s), {here.threads} thread(s) each, {launcher.vendor()}; results in {run_dir}"
        )
        progress.say(
            f"server holds {server_bytes // (4 * layout.size)} models of {layout.num_params} parameters: "
            f"{server_bytes / 1e6:.1f} MB; kernel: {kernel.describe()}"
        )
        server = Server(
            wire=pipe,
            rule=job.rule,
            state=job.state,
            model=model,
            evaluator=job.evaluator,
            record=book,
            limits=config.limits,
            epochs=config.training.epochs,
            evaluation=config.evaluation,
            tick=progress.tick,
        )
        outcome = server.run()
        book.close()
        progress.say(f"stopped: {outcome.reason}; {outcome.discarded} updates under way were discarded")
    save_model(run_dir / "model.h5", model.x, layout, model.version)
    result = _result(server, outcome, run_dir, server_bytes)
    (run_dir / "result.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    _show(result, run_dir)


def _resolved(job: Job) -> Config:
    """The config with every default filled in, those of task and rule too."""
    sections = {"task": job.task, "rule": job.rule}
    filled = {name: section.model_dump(mode="json", by_alias=True) for name, section in sections.items()}  # type: ignore[attr-defined]
    return job.config.model_copy(update=filled | {"clients": job.num_clients, "run_dir": str(job.run_dir)})


def _result(server: Server, outcome: Outcome, run_dir: Path, server_bytes: int) -> dict[str, object]:
    """The figures of a finished run, from its record where it has them."""
    gamma = record.read(run_dir).updates["gamma"]
    gamma = gamma[np.isfinite(gamma)]
    return {
        "run_dir": str(run_dir),
        "updates": server.updates,
        "seconds": round(outcome.seconds, 3),
        "updates_per_s": round(server.updates / outcome.seconds, 3),
        "accuracy": round(outcome.score.accuracy, 6),
        "loss": round(outcome.score.loss, 6),
        "gamma_median": round(float(np.median(gamma)), 6) if len(gamma) else None,
        "server_busy": round(server.busy_s / outcome.seconds, 6),
        "server_evaluating": round(server.evaluating_s / outcome.seconds, 6),
        "server_bytes": server_bytes,
        "refused": server.refused,
        "discarded": outcome.discarded,
        "stopped": outcome.reason,
        "model_sha256": hashlib.sha256(server.model.x.numpy().tobytes()).hexdigest(),
    }


def _show(result: dict[str, object], run_dir: Path) -> None:
    """The result for people, and as one line of JSON, the last of standard output."""
    console = Console(highlight=False, soft_wrap=True)
    updates = record.read(run_dir).updates
    by_client = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("client", "updates", "share", "K", "gamma", "eta", "compute s", "wait s"):
        by_client.add_column(column, justify="right")
    for who in np.unique(updates["client"]):
        rows = updates[updates["client"] == who]
        medians = [f"{np.median(rows[field]):.3g}" for field in ("gamma", "eta", "compute_s", "wait_s")]
        by_client.add_row(
            str(who), str(len(rows)), f"{len(rows) / len(updates):.1%}", f"{np.median(rows['epochs']):g}", *medians
        )
    console.print(by_client)
    console.print("(K, gamma, eta and seconds: medians over the client's updates)\n")
    figures = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    figures.add_column()
    figures.add_column(overflow="fold")
    for key, value in result.items():
        figures.add_row(key, str(value))
    console.print(figures)
    print(json.dumps(result), flush=True)  # noqa: T201


def _end_job(here: World | None, error: BaseException) -> None:
    """An error that nobody caught: say where, and end all ranks."""
    if isinstance(error, KeyboardInterrupt):
        if here is None or here.rank == 0:
            _complain("asyncfeded: interrupted")
    else:
        role = "not joined yet" if here is None else "server" if here.rank == 0 else f"client {here.rank - 1}"
        place = f"rank {here.rank} ({role}) on {here.host}" if here else f"a rank ({role})"
        _complain(f"asyncfeded: {place}: uncaught error, ending the job\n{traceback.format_exc()}")
    world.abort(1)


def _complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
