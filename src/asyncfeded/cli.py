"""The command line: argv to one command. Imports torch only where a command trains."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Asynchronous federated learning over MPI (AsyncFedED).",
)

RunDir = Annotated[Path, typer.Argument(help="Folder of a run.")]


@app.command()
def train(
    file: Annotated[Path, typer.Argument(help="TOML file of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, as often as needed.")] = None,
    ranks: Annotated[int, typer.Option(help="Start mpiexec with so many ranks: 1 server and the rest clients.")] = 0,
) -> None:
    """Train. Under mpiexec or srun, rank 0 is the server and every other rank a client; --ranks starts mpiexec itself."""
    if ranks:
        _start(ranks, ["train", str(file), *(overrides or [])])
    from asyncfeded import run

    raise typer.Exit(run.train(file, overrides or []))


@app.command()
def plot(
    run_dir: RunDir,
    output: Annotated[Path | None, typer.Option(help="The PNG; default: run.png in the folder.")] = None,
) -> None:
    """Draw a run: accuracy over time, and each client's updates, K and gamma. Prints the path of the picture."""
    try:
        from asyncfeded import plots

        print(plots.plot_run(run_dir, output or run_dir / "run.png"))  # noqa: T201
    except ValueError as error:
        _fail(str(error))


@app.command()
def info() -> None:
    """Print versions, the MPI library and its mpiexec, kernel or twin, and devices."""
    import torch

    from asyncfeded import kernel, launcher, record

    try:
        mpiexec = launcher.find_mpiexec()
    except ValueError as error:
        mpiexec = str(error)
    rows = record.provenance() | {
        "MPI": f"{launcher.vendor()} ({launcher.library() or 'path unknown'})",
        "mpiexec": mpiexec,
        "kernel": kernel.describe(),
        "cores": str(len(os.sched_getaffinity(0))),
        "GPUs": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for key, value in rows.items():
        if value:
            table.add_row(key, value)
    Console(soft_wrap=True, highlight=False).print(table)


@app.command()
def keys() -> None:
    """Print every key of a run's TOML file with its default and its meaning."""
    from asyncfeded import config, rules, tasks

    table = Table("key", "default", "meaning", box=None, padding=(0, 2, 0, 0))
    for row in config.describe(config.Config):
        table.add_row(*row)
    for section, kinds in (("rule", rules.RULES), ("task", tasks.TASKS)):
        for name, kind in kinds.items():
            table.add_row(f"\n{section}.name", f'\n"{name}"', "\n" + (kind.__doc__ or "").split("\n")[0])
            for row in config.describe(kind, f"{section}."):
                table.add_row(*row)
    Console().print(table)


def main() -> None:
    """The program `asyncfeded`."""
    app()


def _start(ranks: int, arguments: list[str]) -> None:
    """Become mpiexec; returns only if that is refused."""
    from asyncfeded import launcher

    launched = launcher.launched_by()
    if launched and launched[1] > 1:
        if launched[2]:  # one of its ranks tells
            raise typer.Exit(2)
        _fail(f"{launched[0]} has started this already; leave out --ranks, or mpiexec")
    if ranks < 2:
        _fail(f"--ranks {ranks}: at least 2 are needed, 1 server and 1 client, for example --ranks 5")
    try:
        command, env = launcher.command(ranks, arguments)
    except ValueError as error:
        _fail(str(error))
    sys.stdout.flush()
    os.execvpe(command[0], command, env)


def _fail(text: str) -> None:
    print(f"asyncfeded: {text}", file=sys.stderr)  # noqa: T201
    raise typer.Exit(2)
