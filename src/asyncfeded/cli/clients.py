"""Commands of clients that come and go: join, leave."""

from typing import Annotated

import typer

from asyncfeded.cli.app import RunDir, app, example, fail, load_launcher, start, tell
from asyncfeded.mpi import origin
from asyncfeded.wire.door import send_away


@app.command(epilog=example("asyncfeded join runs/mine", "asyncfeded join runs/mine device=cuda:1 --client 4"))
def join(
    run_dir: RunDir,
    overrides: Annotated[list[str] | None, typer.Argument(help="device=NAME: where this client trains.")] = None,
    client: Annotated[int, typer.Option(help="Which client to be; -1: one that nobody trains.")] = -1,
    ranks: Annotated[int | None, typer.Option(help="Start mpiexec with so many ranks, each a client of its own.")] = None,
) -> None:
    """Be a client of a run that goes on and has `late` clients, until it ends; SIGTERM lets it go after its round.

    Under mpiexec or srun every rank is a client; without, it starts mpiexec itself. Needs MPICH.
    """
    if ranks is not None or not origin.launched_by():
        words = ["join", str(run_dir), *(overrides or []), "--client", str(client)]
        start(ranks or 1, words, lasting=(ranks or 1) > 1, least=1)
    load_launcher()
    from asyncfeded.run import join as room

    raise typer.Exit(room.join(run_dir, overrides or [], client))


@app.command(epilog=example("asyncfeded leave runs/mine", "asyncfeded leave runs/mine 4"))
def leave(
    run_dir: RunDir,
    client: Annotated[int, typer.Argument(help="Which client; may be left out if only one has joined.")] = -1,
) -> None:
    """Let a client that has joined a run leave after its round; another may then join in its place."""
    try:
        tell(f"client {send_away(run_dir, client)} leaves the run after its round")
    except ValueError as error:
        fail(str(error))
