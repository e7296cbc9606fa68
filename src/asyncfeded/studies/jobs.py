"""The runs of a grid: their configs are made in layers, and jobs do them, those left out that are done.

A run is done when its result.json exists and its `<name>.toml`, which is there while it is tried, does not. One that gave up
a worker, dead or silent for too long on a busy machine, is not done: its figures are not those of its config. A job does one
run, or some of them one after the other, since its start takes 2 s of each core. A crash loses only the run that crashed. Of
several processes one does a run: that of `<name>.owner`. This module does not know what the runs are for.
"""

import hashlib
import math
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import AfterValidator

from asyncfeded import rules, tasks
from asyncfeded.config import Config, section
from asyncfeded.files.digest import digest_files
from asyncfeded.mpi import launcher
from asyncfeded.override import Word
from asyncfeded.run import folder as run_folder
from asyncfeded.run.plan import digest_origin, fill_in
from asyncfeded.store.ownership import NAME, OwnedError, Ownership
from asyncfeded.store.record import read_record
from asyncfeded.studies.children import Children, end_by_signals
from asyncfeded.tasks.contract import CheckedTask

AGAIN = "remove the folder of that run, and it is done again"
"""What to do about a run that is done, but whose files are damaged."""

ENDED_ITSELF = "failed with status 1"
"""How it is told that a run has ended itself, as one that diverges; another try would end the same."""

T = TypeVar("T")
LABEL = re.compile(r"[^\W_][\w.+=,@ -]*(?<! )")
LABEL_MAX = 80
"""Bytes of a label: a name with two of them is a name of a file."""


def check_labels(labelled: dict[str, T]) -> dict[str, T]:
    """Whether labels can name files, lines of figures and rows of a table.

    Raises:
        ValueError: one cannot, two differ only in case, or there is none.
    """
    seen: dict[str, str] = {}
    for label in labelled:
        if not LABEL.fullmatch(unicodedata.normalize("NFC", label)) or len(label.encode()) > LABEL_MAX:
            raise ValueError(
                f"the label {label!r} cannot name a file; expected a letter or a digit, and then letters, digits, "
                f"spaces and . + = , @ _ -, in all at most {LABEL_MAX} bytes"
            )
        twin = seen.setdefault(unicodedata.normalize("NFKC", label).casefold(), label)
        if twin != label:
            raise ValueError(f"the labels {twin!r} and {label!r} are one name on some file systems; change one")
    if not labelled:
        raise ValueError("expected at least one, by label")
    return labelled


Labelled = Annotated[dict[str, T], AfterValidator(check_labels)]
"""Parts of a grid, by label."""


class GridJob(NamedTuple):
    """A run of a grid, as a job."""

    name: str
    """Name of its folder; ends with the hash of its config."""
    config: Config
    ranks: int
    """MPI ranks."""


def compose(layers: Iterable[dict[str, Any]], where: str) -> Config:
    """Make a config from layers; each overrides those before it. The defaults of task and rule are filled in.

    Args:
        layers: parts of a run's table.
        where: name of the run for messages.

    Raises:
        ValueError: a key or a value is wrong.
    """
    table: dict[str, Any] = {"limits": {}}
    for layer in layers:
        table = overlay(table, layer)
    if "run_dir" in table:
        raise ValueError(
            f"{where}: run_dir = {table['run_dir']!r}: a study names the folders of its runs; leave run_dir out"
        )
    config = section(Config, table, where)
    try:
        return fill_in(config, tasks.load_task(config.task), rules.load_rule(config.rule))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def digest(config: Config) -> str:
    """SHA-256, in hexadecimal, of the config of a run, with what its files hold in the place of their paths.

    So a run is the same wherever its data and the user's own code lie, and another one when they change.
    """
    plain = config.digest()
    if plain not in DIGESTS:
        DIGESTS[plain] = _digest(config)
    return DIGESTS[plain]


DIGESTS: dict[bytes, str] = {}
"""By the digest of the config alone: every run of a grid has its name from them, many times."""


def _digest(config: Config) -> str:
    code = config.task["name"], config.rule["name"]
    places = CheckedTask(tasks.load_task(config.task), code[0]).paths()
    files = (*code, config.task.get("initial", ""), *places.items())
    if files not in FILES:
        own = [line.split(" ", 2) for line in digest_origin(config).splitlines()]
        FILES[files] = digest_files(places) + "".join(f"{sha} {size} {Path(name).name}\n" for sha, size, name in own)
    if not FILES[files]:
        return config.digest().hex()
    named = {"initial", *(key.partition("[")[0] for key in places)}
    task = {key: value for key, value in config.task.items() if key not in named} | {"name": Path(code[0]).name}
    elsewhere = config.model_copy(update={"task": task, "rule": config.rule | {"name": Path(code[1]).name}})
    return hashlib.sha256(elsewhere.digest() + FILES[files].encode()).hexdigest()


FILES: dict[tuple[object, ...], str] = {}
"""Digests of the files that a run names and is made from, which may be large and are read once."""


def overlay(table: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    """Merge `layer` into `table`, section by section; `layer` overrides."""
    merged = dict(table)
    for key, value in layer.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, Word):
            value = value.toml
        merged[key] = overlay(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def nest(values: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    table: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        inner = table
        for name in path:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return table


def is_done(folder: Path, name: str) -> bool:
    """Whether the run of this name has ended well; one that was interrupted, or that lost its clients, has a result too."""
    return (folder / name / "result.json").exists() and not (folder / f"{name}.toml").exists()


WRITTEN = ("rows.csv", "table.csv", "table.md", "chosen.toml", "prediction.csv", "*.png")
"""What a study writes into its folder besides its runs."""


def own(out: Path, say: Callable[[str], None]) -> Ownership:
    """Make the folder of a study, and own it: of several commands one does the runs and writes the tables.

    Raises:
        ValueError: another process owns it, it cannot be written, or it holds files that no study wrote.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        foreign = [] if (out / "runs").exists() else sorted(path.name for kind in WRITTEN for path in out.glob(kind))
        if foreign and "rows.csv" not in foreign:  # the rows of a study whose runs are elsewhere, or were not kept
            raise ValueError(f"{out} holds {', '.join(foreign)}, and no runs of a study; choose another folder (--output)")
        return Ownership(out / NAME, str(out), say)
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error.strerror}; choose another folder (--output)") from None


def outcome(folder: Path, name: str) -> str:
    """What became of a run: `done`, or why it has no figures."""
    if is_done(folder, name):
        return "done"
    return f"not done, see runs/{name}.log" if (folder / f"{name}.log").exists() else "not done"


def execute(
    planned: Sequence[GridJob],
    folder: Path,
    side_by_side: int,
    say: Callable[[str], None],
    together: int = 1,
    until_s: float = math.inf,
    tell: Callable[[GridJob, str], None] = lambda job, trouble: None,
) -> list[GridJob]:
    """Do the runs that are not done yet.

    Args:
        planned: all runs; runs of the same name are one run.
        folder: contains the folders of the runs.
        side_by_side: number of runs at the same time.
        say: shows a line about progress.
        together: how many runs a job may do one after the other.
        until_s: no run begins after this time (time.monotonic).
        tell: is called with each run when it is done or has failed, and with what went wrong, in this thread.

    Returns:
        The runs that failed; the log of each lies beside its folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    distinct = {job.name: job for job in planned}
    pending = [job for job in distinct.values() if not is_done(folder, job.name)]
    sizes = sorted({job.ranks for job in planned})
    with_ranks = f"{sizes[0]} ranks each" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} ranks"
    done_already = len(distinct) - len(pending)
    say(f"{len(distinct)} runs, {done_already} of them done already; {side_by_side} at a time with {with_ranks}")
    failed, began, ended = [], time.monotonic(), 0
    children, heard = Children(), SimpleQueue[tuple[GridJob, str] | Future[None]]()

    def hear(job: GridJob, trouble: str) -> None:
        heard.put((job, trouble))

    with end_by_signals(say), ThreadPoolExecutor(side_by_side) as pool:
        parts = 2 * side_by_side if side_by_side > 1 else 1  # of several, one may end much earlier than the others
        batches = _batches(pending, max(1, min(together, len(pending) // parts)))
        running = [pool.submit(_execute, batch, folder, children, say, until_s, hear) for batch in batches]
        for future in running:
            future.add_done_callback(heard.put)
        try:
            while running:
                one = heard.get()
                if isinstance(one, Future):
                    running.remove(one)
                    one.result()  # raises what was raised there
                    continue
                ended += 1
                job, trouble = one
                if trouble:
                    failed.append(job)
                tell(job, trouble)
                left = (time.monotonic() - began) / ended * (len(pending) - ended) / 60
                say(f"[{ended}/{len(pending)}] {job.name} {trouble or 'done'}; {left:.0f} min left")
        except BaseException:
            children.end()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _batches(pending: Sequence[GridJob], size: int) -> list[list[GridJob]]:
    """At most so many runs each, of as many ranks; those of one task and seed, which read the same data, one by one."""
    seen: dict[tuple[object, ...], int] = {}

    def turn(job: GridJob) -> list[int]:
        like = job.ranks, repr(job.config.task), job.config.seed
        return [seen.setdefault(like[:some], len(seen)) for some in (1, 2, 3)]

    by_ranks = [list(same) for _, same in groupby(sorted(pending, key=turn), key=lambda job: job.ranks)]
    return [jobs[i : i + size] for jobs in by_ranks for i in range(0, len(jobs), size)]


def _execute(
    batch: Sequence[GridJob],
    folder: Path,
    children: Children,
    say: Callable[[str], None],
    until_s: float,
    tell: Callable[[GridJob, str], None],
) -> None:
    """Do some runs, those that no other process does, until it is too late. `tell` as in `_do`."""
    waiting = list(batch)
    while waiting and time.monotonic() < until_s:
        with ExitStack() as owned:
            mine = []
            for job in waiting:
                try:
                    owned.enter_context(Ownership(folder / f"{job.name}.owner", job.name, say))
                    if is_done(folder, job.name):
                        tell(job, "")
                        continue
                    _clear(folder / job.name, say)
                    mine.append(job)
                except OwnedError as error:
                    tell(job, str(error))
                except OSError as error:
                    tell(job, f"cannot be written in {folder}: {error.strerror}")
            waiting = _do(mine, folder, children, tell) if mine else []


def _clear(run_dir: Path, say: Callable[[str], None]) -> None:
    """Remove what a run that was killed has left, and nothing else. Raises OwnedError if it goes on."""
    if run_dir.exists():
        with Ownership(run_dir / NAME, str(run_dir), say):
            run_folder.clear(run_dir)


def _do(batch: Sequence[GridJob], folder: Path, children: Children, tell: Callable[[GridJob, str], None]) -> list[GridJob]:
    """Do some runs in one job, from their start, until one fails. Returns those that were not begun.

    `tell` is called with each that has ended, when it has, and with what went wrong; empty if nothing did.
    """
    files = []
    for job in batch:
        files.append(folder / f"{job.name}.toml")
        config = job.config.model_copy(update={"run_dir": str(folder / job.name)})
        files[-1].write_text(config.to_toml(), encoding="utf-8")
    log = folder / f"{batch[0].name}.log"
    command, env, _ = launcher.command(batch[0].ranks, ["batch", *map(str, files)])
    env |= {"TTY_COMPATIBLE": "0", "TTY_INTERACTIVE": "0"}
    ended = 0

    def tell_done() -> None:
        nonlocal ended
        while ended < len(batch) and not files[ended].exists():  # a run removes its file when it is done
            job = batch[ended]
            if trouble := _without_a_worker(folder / job.name):
                files[ended].touch()  # it is not done
            ended += 1
            tell(job, trouble)

    status = children.run(command, env, log, tell_done)
    tell_done()
    if ended == len(batch):
        log.unlink()
        return []
    job = batch[ended]
    log = log.rename(folder / f"{job.name}.log")
    for file in files[ended + 1 :]:
        file.unlink()
    tell(job, _without_a_worker(folder / job.name) or f"failed with status {status}, see {log}")
    return list(batch[ended + 1 :])


def _without_a_worker(run_dir: Path) -> str:
    """What a run says of the first worker that it gave up; empty if there was none, or if nothing can be read."""
    try:
        events = read_record(run_dir).events
    except ValueError:
        return ""
    given_up = events["text"][events["kind"] == b"rank"]
    return given_up[0].decode(errors="replace") if len(given_up) else ""
