"""The folder of a run: its name, and its one owner, before anything in it is read, written or removed. Rank 0."""

import shlex
import sys
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import numpy as np

from asyncfeded.config import Config
from asyncfeded.metric import Metrics
from asyncfeded.own import short
from asyncfeded.store import checkpoint, ownership, record
from asyncfeded.store.ownership import Ownership

FILES = ("config.toml", "model.h5", "result.json", "log.txt")
"""What a run writes into its folder besides its record and its checkpoints, and only once its record is there."""


def take(config: Config, resumed: Path | None, cleanup: ExitStack) -> tuple[Config, Ownership]:
    """Make the folder of a new run, or find that of a run to continue, and own it.

    Args:
        config: the config; a run without a `run_dir` gets a name that no other run has.
        resumed: folder of the run to continue; None: a new run.
        cleanup: gets callbacks that give up what was made and taken here.

    Returns:
        The config with the name of the folder, and its ownership.

    Raises:
        ValueError: another job owns the folder, it holds a run already, or it cannot be made or written.
    """
    run_dir = Path(config.run_dir)
    try:
        if not config.run_dir:
            run_dir = _new(config, cleanup)
        elif not resumed:
            _make(run_dir, cleanup)
        owned = Ownership(run_dir / ownership.NAME, str(run_dir), _say)
    except OSError as error:
        why = error.strerror or str(error)
        if resumed:
            raise ValueError(
                f"{resumed}: cannot be written: {why}; copy it to a disk with room, and resume it there"
            ) from None
        raise ValueError(f"run_dir = {str(run_dir)!r} cannot be written: {why}; choose another folder") from None
    cleanup.callback(owned.release)
    if not resumed and not is_unbegun(run_dir):
        check_free(run_dir)
    return config.model_copy(update={"run_dir": str(run_dir)}), owned


def is_unbegun(run_dir: Path) -> bool:
    """Whether the folder holds a run that was ended before it had an update or a checkpoint: it begins again."""
    if (run_dir / "result.json").exists() or checkpoint.checkpoints(run_dir / checkpoint.FOLDER):
        return False
    try:
        return not len(record.read_record(run_dir).updates)
    except ValueError:  # there is none, or not of a run
        return False


def write_config(config: Config) -> None:
    """Write the config into the folder of its run, whole or not at all. Raises OSError."""
    path = Path(config.run_dir) / "config.toml"
    part = path.with_name("config.toml.part")
    part.write_text(config.to_toml(), encoding="utf-8")
    part.replace(path)


def clear(run_dir: Path) -> None:
    """Remove what a run has written into its folder, and no other file. Raises OSError."""
    names = ("record.h5", *FILES)
    written = (*(run_dir / name for name in names), *record.row_files(run_dir))
    for path in (*written, *checkpoint.checkpoints(run_dir / checkpoint.FOLDER)):
        path.unlink(missing_ok=True)


def open_run(
    config: Config,
    metrics: Metrics,
    places: np.ndarray,
    clients: np.ndarray,
    owned: Ownership,
    cleanup: ExitStack,
    data: str,
) -> record.Record:
    """Write the config and an empty record into the folder of a new run. Rank 0.

    Args:
        config: the resolved config.
        metrics: those of the task.
        places: placement.PLACE (ranks,).
        clients: heterogeneity.PROFILE (clients,).
        owned: that of the run's folder.
        cleanup: gets callbacks that remove everything made here, if the run does not start.
        data: see `Record`.

    Raises:
        ValueError: the folder cannot be written.
    """
    run_dir = Path(config.run_dir)
    try:
        # The record is the first to come and the last to go: config.toml without it is not ours.
        for path in (run_dir / "record.h5", *record.row_files(run_dir), run_dir / "config.toml"):
            if not path.exists():
                cleanup.callback(path.unlink, missing_ok=True)
        book = record.Record(run_dir / "record.h5", config.to_toml(), places, clients, metrics, check=owned.check, data=data)
        cleanup.callback(book.close)
        write_config(config)
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"run_dir = {config.run_dir!r} cannot be written: {why}; choose another folder") from None
    return book


def check_free(run_dir: Path) -> None:
    """Raise ValueError if a new run would replace a file. Empty rows are left by a start that was killed."""
    if (run_dir / "record.h5").exists():
        raise ValueError(
            f"run_dir = {str(run_dir)!r} holds a run already; choose another folder, or move that one away; to go on with "
            f"it type asyncfeded resume {shlex.quote(str(run_dir))}"
        )
    held = [path for path in (run_dir / name for name in FILES) if path.exists()]
    held += [path for path in record.row_files(run_dir) if path.is_dir() or (path.exists() and path.stat().st_size)]
    held += checkpoint.checkpoints(run_dir / checkpoint.FOLDER)
    if held:
        raise ValueError(
            f"run_dir = {str(run_dir)!r} holds {', '.join(str(path.relative_to(run_dir)) for path in held)}, which the run "
            f"would replace, and no record of a run that has written it; choose another folder, or move it away"
        )


def _new(config: Config, cleanup: ExitStack) -> Path:
    """Make a folder with a name of its own: of two jobs that start in the same second, on any hosts, one finds it taken."""
    runs, began = Path("runs"), time.strftime("%Y-%m-%d-%H%M%S")
    name = f"{began}-{short(config.task['name'])}-{short(config.rule['name'])}"
    _make(runs, cleanup)
    for number in count(1):
        run_dir = runs / (name if number == 1 else f"{name}-{number}")
        try:
            run_dir.mkdir()
        except FileExistsError:
            continue
        cleanup.callback(run_dir.rmdir)
        return run_dir
    raise AssertionError


def _make(folder: Path, cleanup: ExitStack) -> None:
    """Make a folder and its parents, where they do not exist."""
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            try:
                each.mkdir()
            except FileExistsError:
                if not each.is_dir():  # and not made by another job meanwhile
                    raise
            else:
                cleanup.callback(each.rmdir)


def _say(sentence: str) -> None:
    print(f"asyncfeded: {sentence}", file=sys.stderr, flush=True)  # noqa: T201
