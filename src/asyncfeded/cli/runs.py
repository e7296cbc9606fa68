"""Commands of one run: train, resume, replay, export."""

from pathlib import Path
from typing import Annotated

import typer

from asyncfeded.cli.app import (
    Ranks,
    RunDir,
    app,
    at_least,
    example,
    fail,
    load_launcher,
    print_rows,
    read_record,
    start,
    tell,
)
from asyncfeded.mpi import origin
from asyncfeded.override import setting


@app.command(
    epilog=example(
        "asyncfeded train launch/digits.toml --ranks 5 limits.seconds=20 run_dir=runs/mine",
        "mpiexec -n 5 asyncfeded train launch/digits.toml",
    )
)
def train(
    file: Annotated[Path, typer.Argument(help="TOML file of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, as many as needed.")] = None,
    ranks: Ranks = None,
) -> None:
    """Train. Under mpiexec or srun, rank 0 is the server and every other rank is a client; --ranks starts mpiexec itself.

    Exit status 75: SIGINT or SIGTERM ended the run; `asyncfeded resume` continues it.
    """
    if ranks is not None:
        start(ranks, ["train", str(file), *(overrides or [])], lasting=True)
    with load_launcher().guard():
        from asyncfeded.run import run

        status = run.train(file, overrides or []).status
    raise typer.Exit(status)


@app.command(hidden=True, epilog=example("mpiexec -n 2 asyncfeded batch one.toml two.toml"))
def batch(files: Annotated[list[Path], typer.Argument(help="TOML files of runs.")]) -> None:
    """Train one run after the other, as a study asks on all ranks of a job; remove the file of each, until one fails."""
    with load_launcher().guard():
        from asyncfeded.mpi.origin import launched_by
        from asyncfeded.run import run
        from asyncfeded.tasks.kept import Kept

        launched, kept = launched_by(), Kept()
        for file in files:
            if status := run.train(file, [], kept=kept).of_job:
                break
            if not launched or launched.rank == 0:
                file.unlink()
    raise typer.Exit(status)


@app.command(epilog=example("asyncfeded check launch/digits.toml --ranks 5"))
def check(
    file: Annotated[Path, typer.Argument(help="TOML file of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, as many as needed.")] = None,
    ranks: Annotated[int | None, typer.Option(help="Ranks that the run will have; nothing is started.")] = None,
) -> None:
    """Find what would stop a run, in one process: build all, try the data, train and test; print sizes and times."""
    load_launcher()
    from asyncfeded.run.check import check as examine

    try:
        found = examine(file, overrides or [], None if ranks is None else at_least(2, "--ranks", ranks))
    except ValueError as error:
        fail(str(error))
    print_rows(found.figures)
    for sentence in found.sentences:
        tell(sentence)


@app.command(epilog=example("asyncfeded resume runs/mine limits.seconds=120"))
def resume(
    run_dir: RunDir,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, such as limits.updates=500.")] = None,
    ranks: Annotated[int | None, typer.Option(help="Start mpiexec with so many ranks; default: as in the run.")] = None,
) -> None:
    """Continue a run in its folder, from its newest good checkpoint. Start it under mpiexec or srun as `train`."""
    launched = origin.launched_by()
    if ranks is not None or not launched or launched.size == 1:
        as_before = len(read_record(run_dir).attributes["placement"]) if ranks is None else ranks
        start(as_before, ["resume", str(run_dir), *(overrides or [])], lasting=True)
    with load_launcher().guard():
        from asyncfeded.run import run

        status = run.train(run_dir / "config.toml", [setting("run_dir", str(run_dir)), *(overrides or [])], run_dir).status
    raise typer.Exit(status)


@app.command(
    epilog=example(
        "asyncfeded export runs/mine --to model.pt",
        "asyncfeded export runs/mine --to csv",
        "asyncfeded export runs/mine --to parquet --output tables",
    )
)
def export(
    run_dir: RunDir,
    to: Annotated[
        str, typer.Option(help="The model: NAME.pt or NAME.safetensors. The record: csv, parquet or tensorboard.")
    ],
    output: Annotated[Path | None, typer.Option(help="Folder for a record; default: csv, ... in the run's folder.")] = None,
) -> None:
    """Give the newest model of a run, or its record, to other programs; also of a run that goes on. No file is replaced.

    The model is a state dict, which `load_state_dict` takes strictly. The record becomes a file for each table (csv,
    parquet), or points as a tracker writes them (tensorboard).
    """
    from asyncfeded.run import tables

    try:
        if to in tables.KINDS:
            print(tables.export_tables(run_dir, to, output or run_dir / to))  # noqa: T201
        elif output:
            fail(f"--output is the folder of a record; leave it out with --to {to}, or take --to {', '.join(tables.KINDS)}")
        else:
            load_launcher()
            from asyncfeded.run import export as room

            print(room.export(run_dir, Path(to)))  # noqa: T201
    except ValueError as error:
        fail(str(error))


@app.command(epilog=example("asyncfeded replay runs/mine --output runs/again"))
def replay(
    run_dir: RunDir,
    ranks: Annotated[int | None, typer.Option(help="Start mpiexec with so many ranks; default: as in the run.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the replay; default: replay in the run's folder.")] = None,
) -> None:
    """Repeat a run with its updates in the order in which they arrived. It ends with the same model, bit for bit."""
    tables = read_record(run_dir)
    updates, about = tables.updates, tables.attributes
    accepted = int(updates["accepted"].sum())
    if not accepted:
        fail(f"{run_dir}: no update was merged, there is nothing to replay")
    overrides = [
        "server=0",
        "servers=1",
        "evaluator=-1",
        "clock=replay",
        setting("replay", str(run_dir)),
        f"threads={about['threads']}",
        setting("run_dir", str(output or run_dir / "replay")),
    ]
    overrides += [f"limits.updates={accepted}", "limits.seconds=0", "limits.target=0", "evaluation.every_s=1e9"]
    overrides += ["checkpoint.every_updates=0", "checkpoint.every_s=0", "record.trackers=[]"]
    arguments = ["train", str(run_dir / "config.toml"), *overrides]
    start(len(about["placement"]) if ranks is None else ranks, arguments, lasting=True)
