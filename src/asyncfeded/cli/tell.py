"""Commands that tell something: info, doctor, keys, cite."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from asyncfeded.cli.app import Ranks, RunDir, app, example, fail, load_launcher, print_rows, read_record, start


@app.command(epilog=example("asyncfeded info", "asyncfeded info runs/mine"))
def info(
    path: Annotated[Path | None, typer.Argument(help="Folder of a run, or a checkpoint: print what is in it.")] = None,
) -> None:
    """Print versions, the MPI library and its mpiexec, kernel or twin, and devices; or describe a run or a checkpoint."""
    if path and path.is_dir():
        from asyncfeded.mpi import placement
        from asyncfeded.store import attendance

        tables = read_record(path)
        about, places = tables.attributes, tables.attributes.pop("placement")
        digests = str(about["data"] or "").splitlines()
        about |= {
            "clients": len(about["clients"]),
            "data": f"{len(digests)} files and frozen parameters",
            "config": path / "config.toml",
        }
        counts = {name: str(len(getattr(tables, name))) for name in ("updates", "evaluations")}
        print_rows(counts | {"metrics": tables.metrics.columns} | {k: str(about[k]) for k in about})
        print("", *placement.table(places), *attendance.lines(tables.events), sep="\n")  # noqa: T201
        return
    if path:
        from asyncfeded.store.checkpoint import describe_checkpoint

        try:
            print_rows(describe_checkpoint(path))
        except ValueError as error:
            fail(str(error))
        return
    from asyncfeded import accelerator
    from asyncfeded.model import kernel
    from asyncfeded.store import record

    try:
        launcher = load_launcher()
        mpi = f"{launcher.vendor()} ({launcher.library() or 'path unknown'})"
        mpiexec = launcher.find_mpiexec()
    except typer.Exit:
        mpi, mpiexec = "none", "none"
    except ValueError as error:
        mpiexec = str(error)
    rows = record.provenance() | {
        "MPI": mpi,
        "mpiexec": mpiexec,
        "kernel": kernel.describe_kernel(),
        "cores": str(len(os.sched_getaffinity(0))),
        "GPUs": ", ".join(accelerator.names()) or "none",
    }
    print_rows(rows)


@app.command(epilog=example("asyncfeded doctor runs/mine --ranks 5"))
def doctor(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a planned run.")] = Path("runs"),
    ranks: Ranks = None,
) -> None:
    """Find what can stop a run: MPI, launcher, network, clocks, GPUs, file system. Start it as you would start the run."""
    if ranks is not None:
        start(ranks, ["doctor", str(run_dir)])
    with load_launcher().guard():
        from asyncfeded import doctor as room

        status = room.examine(run_dir)
    raise typer.Exit(status)


@app.command(epilog=example("asyncfeded keys launch/digits.toml"))
def keys(
    file: Annotated[Path | None, typer.Argument(help="TOML file of a run: of all tasks and rules only its own.")] = None,
) -> None:
    """Print every key of a run's TOML file with its default and its meaning."""
    from asyncfeded import config, own, rules, tasks

    kinds = {"rule": rules.RULES, "task": tasks.TASKS}
    if file:
        try:
            run = config.load_config(file, [])
            names = {"rule": run.rule["name"], "task": run.task["name"]}
            kinds = {section: {name: own.find(kinds[section], name, section)} for section, name in names.items()}
        except ValueError as error:
            fail(str(error))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("key", no_wrap=True)
    table.add_column("default")
    table.add_column("meaning")
    for row in config.describe_keys(config.Config):
        table.add_row(*row)
    for row in config.describe_keys(tasks.Initial, "task."):
        table.add_row(*row)
    for section, named in kinds.items():
        for name, kind in named.items():
            table.add_row(f"\n{section}.name", f'\n"{Path(name).name}"', "\n" + (kind.__doc__ or "").split("\n")[0])
            for row in config.describe_keys(kind, f"{section}."):
                table.add_row(*row)
    Console().print(table)


@app.command(epilog=example("asyncfeded cite runs/mine"))
def cite(run_dir: RunDir) -> None:
    """Print the references of what a run used, as BibTeX: the program, its rule, its data, their split and the model."""
    from asyncfeded.run import cite as room

    try:
        print(room.cite(run_dir))  # noqa: T201
    except ValueError as error:
        fail(str(error))
