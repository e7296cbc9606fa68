"""Commands that look at one run: watch, trace."""

from pathlib import Path
from typing import Annotated

import typer

from asyncfeded.cli.app import RunDir, app, example, fail


@app.command(epilog=example("asyncfeded watch runs/mine", "asyncfeded watch runs/mine --json --every 10"))
def watch(
    run_dir: RunDir,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each look, for programs.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks; 0: 1 on a screen, 5 for lines.", min=0)] = 0,
) -> None:
    """Follow a run from another terminal until it ends: limits, metrics, server, a row per client. It only reads.

    Keys: s and S choose the column to sort by, r reverses, f filters, arrows and PgUp/PgDn scroll, q quits. `need` shows the
    clients first that are gone, slow, stale or refused. Where output is no terminal, it is a line every 5 s.
    """
    from asyncfeded.watch import watch as room

    try:
        room.watch(run_dir, every, json)
    except ValueError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@app.command(epilog=example("asyncfeded trace runs/mine"))
def trace(
    run_dir: RunDir,
    output: Annotated[Path | None, typer.Option(help="The file; default: trace.json.gz in the run's folder.")] = None,
) -> None:
    """Write a run as a trace for ui.perfetto.dev: what the server and each client did when, and arrows between them.

    A client has receive, train, send and wait; the server has its updates, tests and checkpoints. On the virtual clock the
    seconds are simulated, and the trace says so.
    """
    from asyncfeded.watch.trace import write_trace

    try:
        print(write_trace(run_dir, output or run_dir / "trace.json.gz"))  # noqa: T201
    except ValueError as error:
        fail(str(error))
