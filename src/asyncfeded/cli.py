"""The command line: argv to one command. Imports torch only where a command trains."""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Asynchronous federated learning over MPI (AsyncFedED).",
)

bench = typer.Typer(no_args_is_help=True, help="Measure the server's parts against their limits; the last line is JSON.")
app.add_typer(bench, name="bench")

RunDir = Annotated[Path, typer.Argument(help="Folder of a run.")]


@app.command()
def train(
    file: Annotated[Path, typer.Argument(help="TOML file of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, as often as needed.")] = None,
    ranks: Annotated[int, typer.Option(help="Start mpiexec with so many ranks: 1 server and the rest clients.")] = 0,
) -> None:
    """Train. Under mpiexec or srun, rank 0 is the server and every other rank a client; --ranks starts mpiexec itself.

    Exit status 75: SIGINT or SIGTERM has ended the run, and `asyncfeded resume` goes on with it.
    """
    if ranks:
        _start(ranks, ["train", str(file), *(overrides or [])], lasting=True)
    with _launcher().guard():
        from asyncfeded.run import run

        status = run.train(file, overrides or [])
    raise typer.Exit(status)


@app.command()
def resume(
    run_dir: RunDir,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, such as limits.updates=500.")] = None,
    ranks: Annotated[int, typer.Option(help="Start mpiexec with so many ranks; default: as in the run.")] = 0,
) -> None:
    """Go on with a run from its newest good checkpoint, in its folder. Under mpiexec or srun as `train`."""
    launched = _launcher().launched_by()
    if ranks or not launched or launched[1] == 1:
        _start(ranks or len(_record(run_dir)[2]["placement"]), ["resume", str(run_dir), *(overrides or [])], lasting=True)
    with _launcher().guard():
        from asyncfeded.run import run

        status = run.train(run_dir / "config.toml", [f"run_dir={run_dir}", *(overrides or [])], run_dir)
    raise typer.Exit(status)


@app.command()
def replay(
    run_dir: RunDir,
    ranks: Annotated[int, typer.Option(help="MPI ranks, 1 server and the rest workers; default: as in the run.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder for the replay; default: replay in the run's folder.")] = None,
) -> None:
    """Repeat a run with its updates in the order in which they arrived: it ends in the same model, bit for bit."""
    updates, _, about = _record(run_dir)
    accepted = int(updates["accepted"].sum())
    if not accepted:
        _fail(f"{run_dir}: no update was merged, there is nothing to replay")
    overrides = [
        "server=0",
        "clock=replay",
        f"replay={run_dir}",
        f"threads={about['threads']}",
        f"run_dir={output or run_dir / 'replay'}",
    ]
    overrides += [f"limits.updates={accepted}", "limits.seconds=0", "limits.accuracy=0", "evaluation.every_s=1e9"]
    overrides += ["checkpoint.every_updates=0", "checkpoint.every_s=0"]
    arguments = ["train", str(run_dir / "config.toml"), *overrides]
    _start(ranks or len(about["placement"]), arguments, lasting=True)


@app.command()
def study(
    grid: Annotated[Path, typer.Argument(help="TOML file of the grid.")],
    output: Annotated[Path, typer.Option(help="Folder of the study: runs, table.csv, table.md and figures.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, such as a task's files.")] = None,
    ranks: Annotated[int, typer.Option(help="MPI ranks of each run.")] = 2,
    jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 1,
    tune: Annotated[bool, typer.Option(help="Try the values that the rules' `tune` lists, and print the best.")] = False,
    authors: Annotated[Path | None, typer.Option(help="CSV of published figures, drawn beside ours.")] = None,
) -> None:
    """Compare rules: run a grid of tasks x rules x error probabilities x seeds, skipping what is done, into one table."""
    _launcher()
    from asyncfeded import plots
    from asyncfeded.studies import study as room

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        plan = room.load_study_grid(grid, overrides or [])
        runs = list(room.expand_tuning(plan) if tune else room.expand(plan))
        failed = room.execute(runs, output, ranks, jobs, console.print)
        rows = room.collect(plan, runs, output)
        output.mkdir(parents=True, exist_ok=True)
        room.write_csv(plan, rows, output / ("tuning.csv" if tune else "table.csv"))
        if tune:
            print(room.chosen(plan, rows))  # noqa: T201
        else:
            table = room.to_markdown(plan, rows)
            (output / "table.md").write_text(table, encoding="utf-8")
            print(table)  # noqa: T201
            for picture in plots.plot_study(plan, rows, output, authors):
                print(picture)  # noqa: T201
    except ValueError as error:
        _fail(str(error))
    if failed:
        names = ", ".join(run.name for run in failed)
        _fail(f"{len(failed)} of {len(runs)} runs failed: {names}; see their logs in {output}/runs")


@app.command()
def scale(
    grid: Annotated[Path, typer.Argument(help="TOML file of the grid.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, such as clients=[1,2].")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the study; default: studies/ and the grid's name.")] = None,
    predict: Annotated[bool, typer.Option(help="Predict more clients than were measured, and test the prediction.")] = False,
    gather: Annotated[bool, typer.Option(help="Run nothing: tables and figures of the runs that are done.")] = False,
    slurm: Annotated[str | None, typer.Option(help="Submit arrays of the runs with these options for sbatch.")] = None,
    only: Annotated[int | None, typer.Option(help="Do the run of this index alone: a task of such an array.")] = None,
) -> None:
    """Strong and weak scaling over clients, nodes, models and rules: runs what is not done, then tables and figures."""
    _launcher()
    from asyncfeded.plots.scaling import plot_scaling
    from asyncfeded.studies import scaling

    out = output or Path("studies") / grid.stem
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        study = scaling.Study(grid, overrides or [], out, console.print)
        if slurm is not None:
            study.submit(slurm)
            return
        failed = [] if gather else study.execute(only)
        if only is None:
            for picture in plot_scaling(study.grid, *study.report(predict), out):
                print(picture)  # noqa: T201
    except ValueError as error:
        _fail(str(error))
    if failed:
        _fail(f"{len(failed)} of the runs failed: {', '.join(failed)}; see their logs in {out}/runs")


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


@bench.command("kernel")
def bench_kernel(
    params: Annotated[int, typer.Option(help="Elements of a model.")],
    threads: Annotated[int, typer.Option(help="Threads; default: one per core.")] = 0,
) -> None:
    """The two passes over an update: GB/s against the memory triad, and time against torch."""
    from asyncfeded.bench import kernel

    try:
        kernel.measure(params, threads)
    except ValueError as error:
        _fail(str(error))


@bench.command("server")
def bench_server(
    params: Annotated[int, typer.Option(help="Elements of the model.")],
    clients: Annotated[int, typer.Option(help="Start mpiexec with so many clients and a server.")] = 0,
    seconds: Annotated[float, typer.Option(help="Of the server's work in each of the 6 rounds.")] = 2.0,
    wait: Annotated[str, typer.Option(help="auto, spin or yield, as the key `wait` of a run.")] = "auto",
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Measure while checkpoints are written, too.")] = False,
    device: Annotated[str, typer.Option(help="Where its models are: cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """The server at work: how long a client waits for its reply, against a raw MPI echo, and what an update takes."""
    if clients or not _launcher().launched_by():
        arguments = ["--params", str(params), "--seconds", str(seconds), "--wait", wait, "--device", device]
        arguments += ["--checkpoints"] if checkpoints else []
        _start(clients + 1, ["bench", "server", *arguments])
    with _launcher().guard():
        from asyncfeded.bench import server as room

        status = room.measure(params, seconds, wait, checkpoints, device)
    raise typer.Exit(status)


@bench.command("wait")
def bench_wait(
    ranks: Annotated[int, typer.Option(help="Start mpiexec with so many ranks: 1 server and the rest clients.")] = 0,
    wait: Annotated[str, typer.Option(help="auto, spin or yield, as the key `wait` of a run.")] = "auto",
    seconds: Annotated[float, typer.Option(help="Of each of the 18 measurements.")] = 1.0,
) -> None:
    """Waiting: what idle ranks take of a core and of the training beside them, and how soon the server notices an update."""
    if ranks or not _launcher().launched_by():
        _start(ranks, ["bench", "wait", "--wait", wait, "--seconds", str(seconds)])
    with _launcher().guard():
        from asyncfeded.bench import wait as room

        status = room.measure(wait, seconds)
    raise typer.Exit(status)


@app.command()
def info(
    path: Annotated[Path | None, typer.Argument(help="Tell about this run's folder, or this checkpoint, instead.")] = None,
) -> None:
    """Print versions, the MPI library and its mpiexec, kernel or twin, and devices; or about a run or a checkpoint."""
    if path and path.is_dir():
        from asyncfeded.mpi import placement

        updates, evaluations, about = _record(path)
        places = about.pop("placement")
        about["config"] = path / "config.toml"
        _print({"updates": str(len(updates)), "evaluations": str(len(evaluations))} | {k: str(about[k]) for k in about})
        print("", *placement.table(places), sep="\n")  # noqa: T201
        return
    if path:
        from asyncfeded.store.checkpoint import describe_checkpoint

        try:
            _print(describe_checkpoint(path))
        except ValueError as error:
            _fail(str(error))
        return
    import torch

    from asyncfeded.model import kernel
    from asyncfeded.store import record

    try:
        launcher = _launcher()
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
        "GPUs": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
    }
    _print(rows)


@app.command()
def doctor(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run to be.")] = Path("runs"),
    ranks: Annotated[int, typer.Option(help="Start mpiexec with so many ranks.")] = 0,
) -> None:
    """Tell what stands in a run's way: MPI, launcher, network, clocks, GPUs, file system. Start it as you would the run."""
    if ranks:
        _start(ranks, ["doctor", str(run_dir)])
    with _launcher().guard():
        from asyncfeded import doctor as room

        status = room.examine(run_dir)
    raise typer.Exit(status)


@app.command()
def keys() -> None:
    """Print every key of a run's TOML file with its default and its meaning."""
    from asyncfeded import config, rules, tasks

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("key", no_wrap=True)
    table.add_column("default")
    table.add_column("meaning")
    for row in config.describe_keys(config.Config):
        table.add_row(*row)
    for section, kinds in (("rule", rules.RULES), ("task", tasks.TASKS)):
        for name, kind in kinds.items():
            table.add_row(f"\n{section}.name", f'\n"{name}"', "\n" + (kind.__doc__ or "").split("\n")[0])
            for row in config.describe_keys(kind, f"{section}."):
                table.add_row(*row)
    Console().print(table)


def main() -> None:
    """The program `asyncfeded`."""
    app()


def _start(ranks: int, arguments: list[str], lasting: bool = False) -> None:
    """Become mpiexec; returns only if that is refused. `lasting`: see `launcher.command`."""
    launcher = _launcher()
    launched = launcher.launched_by()
    if launched and launched[1] > 1:
        if launched[2]:  # rank 0 tells; a status of our own could end it before it has
            raise typer.Exit(0)
        _fail(f"{launched[0]} has started this already; leave out --ranks, or mpiexec")
    if ranks < 2:
        _fail(f"--ranks {ranks}: at least 2 are needed, 1 server and 1 client, for example --ranks 5")
    try:
        command, env = launcher.command(ranks, arguments, lasting)
    except ValueError as error:
        _fail(str(error))
    sys.stdout.flush()
    os.execvpe(command[0], command, env)


def _record(run_dir: Path) -> Any:  # noqa: ANN401, record.Tables, which is imported only here
    """The record in a run's folder."""
    from asyncfeded.store import record

    try:
        return record.read_record(run_dir)
    except ValueError as error:
        _fail(str(error))


def _launcher() -> ModuleType:
    """The room that loads MPI, where there is one to load."""
    try:
        from asyncfeded.mpi import launcher
    except (ImportError, RuntimeError) as error:
        _fail(
            f"no MPI library can be loaded ({str(error).splitlines()[0]}); install one (pip install 'asyncfeded[mpich]'), "
            f"load your site's module, or name its library in MPI4PY_LIBMPI"
        )
    return launcher


def _print(rows: dict[str, str]) -> None:
    """Two columns, without the rows that have no value. A table of rich would cut a long path."""
    width = max(map(len, rows))
    for key, value in rows.items():
        if value:
            print(f"{key:<{width}}  {value}")  # noqa: T201


def _fail(text: str) -> NoReturn:
    print(f"asyncfeded: {text}", file=sys.stderr)  # noqa: T201
    raise typer.Exit(2)
