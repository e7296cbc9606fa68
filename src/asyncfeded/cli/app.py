"""What all commands share: the program, its start under mpiexec, errors, and tables."""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NoReturn

import typer

from asyncfeded.mpi import origin


def example(*commands: str) -> str:
    """The end of a command's help: lines to type, which tests/test_docs.py reads as the program does."""
    return "\n\n".join(("Example:" if len(commands) == 1 else "Examples:", *commands))


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Asynchronous federated learning over MPI (AsyncFedED).",
    epilog=example("asyncfeded train launch/digits.toml --ranks 5 run_dir=runs/mine", "asyncfeded plot runs/mine"),
)

bench = typer.Typer(
    no_args_is_help=True,
    help="Measure parts of the server against their limits; the last line is JSON.",
    epilog=example("asyncfeded bench server --params 1000000 --clients 1"),
)
app.add_typer(bench, name="bench")

RunDir = Annotated[Path, typer.Argument(help="Folder of a run.")]

Ranks = Annotated[int | None, typer.Option(help="Start mpiexec with so many ranks: 1 server and the rest clients.")]


def start(ranks: int, arguments: list[str], lasting: bool = False, least: int = 2) -> None:
    """Replace this process by mpiexec; never returns. `lasting`: see `launcher.command`; `least`: ranks that are needed."""
    launcher = load_launcher()
    launched = origin.launched_by()
    if launched and launched.size > 1:
        if launched.rank:  # rank 0 prints the message; a failing status of this rank could end rank 0 before that
            raise typer.Exit(0)
        fail(f"{launched.name} has started this already; leave out --ranks, or the launcher")
    if ranks < least:
        what = "2 are needed, 1 server and 1 client" if least == 2 else f"{least} is needed"
        fail(f"--ranks {ranks}: at least {what}, for example --ranks 5")
    try:
        command, env, notes = launcher.command(ranks, arguments, lasting)
    except ValueError as error:
        fail(str(error))
    for note in notes:
        tell(note)
    sys.stdout.flush()
    os.execvpe(command[0], command, env)


def at_least(least: int, option: str, value: int | None) -> int:
    """The value of an option that counts something; ends the program if it is missing or too small."""
    if value is None:
        fail(f"{option} is missing: give a number of at least {least}")
    if value < least:
        fail(f"{option} {value}: expected at least {least}")
    return value


def read_record(run_dir: Path) -> Any:  # noqa: ANN401, record.Tables, which is imported only here
    """The record in a run's folder."""
    from asyncfeded.store import record

    try:
        return record.read_record(run_dir)
    except ValueError as error:
        fail(str(error))


def load_launcher() -> ModuleType:
    """The module that loads MPI; ends the program if no MPI can be loaded."""
    try:
        from asyncfeded.mpi import launcher
    except (ImportError, RuntimeError) as error:
        fail(
            f"no MPI library can be loaded ({str(error).splitlines()[0]}); install one (pip install 'asyncfeded[mpich]'), "
            f"load your site's module, or name its library in MPI4PY_LIBMPI"
        )
    return launcher


def print_rows(rows: dict[str, str]) -> None:
    """Print two columns, without the rows that have no value. A table of rich would cut a long path."""
    width = max(map(len, rows))
    for key, value in rows.items():
        if value:
            print(f"{key:<{width}}  {value}")  # noqa: T201


def tell(text: str) -> None:
    """Print a sentence for the user on standard error."""
    print(f"asyncfeded: {text}", file=sys.stderr, flush=True)  # noqa: T201


def fail(text: str) -> NoReturn:
    """Tell what is wrong, and end with status 2."""
    tell(text)
    raise typer.Exit(2)
