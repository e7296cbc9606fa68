"""Commands of many runs, and the picture and the report of runs: study, scale, plot, report."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import tomli_w
import typer
from rich.console import Console

from asyncfeded.cli.app import RunDir, app, at_least, example, fail, load_launcher, tell


@app.command(epilog=example("asyncfeded study launch/protocol_small.toml --output studies/small --jobs 2"))
def study(
    grid: Annotated[Path, typer.Argument(help="TOML file of the grid.")],
    output: Annotated[Path, typer.Option(help="Folder of the study: runs, rows.csv, table.csv, table.md and figures.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, such as a task's files.")] = None,
    ranks: Annotated[int, typer.Option(help="MPI ranks of each run.")] = 2,
    jobs: Annotated[int, typer.Option(help="Number of runs at the same time.")] = 1,
    hours: Annotated[float, typer.Option(help="Begin no run after so many hours; the same command goes on.")] = math.inf,
    authors: Annotated[Path | None, typer.Option(help="CSV of published figures, drawn beside ours.")] = None,
) -> None:
    """Compare rules: search their values, run a grid of tasks x rules x error probabilities x seeds, make tables.

    Runs that have a line in rows.csv are skipped. Exit status 75: some are left; the same command goes on with them.
    """
    at_least(2, "--ranks", ranks)
    at_least(1, "--jobs", jobs)
    load_launcher()
    from asyncfeded.plots import study as plots
    from asyncfeded.studies import jobs as jobs_room
    from asyncfeded.studies import statistics, tables
    from asyncfeded.studies.perform import Performance
    from asyncfeded.studies.search import as_toml_table
    from asyncfeded.studies.study import load_study_grid

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        plan = load_study_grid(grid, overrides or [])
        statistics.scipy_stats()  # what is missing or wrong is told before the runs, not after them
        if authors:
            plots.read_authors(authors)
        with jobs_room.own(output, console.print) as owned:
            done = Performance(plan, output, ranks, jobs, hours, console.print).perform()
            owned.check()
            tables.write_csv(plan, done, output / "table.csv")
            if done.searches:
                (output / "chosen.toml").write_text(tomli_w.dumps(as_toml_table(done.searches)), encoding="utf-8")
            table = tables.to_markdown(plan, done)
            (output / "table.md").write_text(table, encoding="utf-8")
            print(table)  # noqa: T201
            for picture in plots.plot_study(plan, done, output, authors):
                print(picture)  # noqa: T201
    except (ValueError, OSError) as error:
        fail(str(error))
    if failed := [name for name, row in done.rows.items() if row.outcome != "done"]:
        tell(
            f"{len(failed)} runs failed, and count as the worst; remove their lines from {output}/rows.csv to try them again"
        )
    if done.refused:
        fail(f"{len(done.refused)} runs could not be done: {', '.join(done.refused)}; see their logs in {output}/runs")
    if done.missing:
        tell(f"{done.missing} of the runs that are known so far are left; the same command goes on with them")
        raise typer.Exit(75)


@app.command(
    epilog=example(
        "asyncfeded scale launch/scaling.toml --predict",
        "asyncfeded scale launch/scaling.toml --gather",
    )
)
def scale(
    grid: Annotated[Path, typer.Argument(help="TOML file of the grid.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, such as clients=[1,2].")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the study; default: studies/ and the grid's name.")] = None,
    predict: Annotated[bool, typer.Option(help="Predict runs of more clients, and test the prediction.")] = False,
    gather: Annotated[bool, typer.Option(help="Run nothing; make tables and figures of the finished runs.")] = False,
    slurm: Annotated[str | None, typer.Option(help="Submit the runs as Slurm arrays with these sbatch options.")] = None,
    only: Annotated[int | None, typer.Option(help="Do only the run of this index, as a task of such an array does.")] = None,
) -> None:
    """Strong and weak scaling over clients, nodes, models and rules: skips finished runs, makes tables and figures."""
    load_launcher()
    from asyncfeded.plots.scaling import plot_scaling
    from asyncfeded.studies import jobs, scaling

    out = output or Path("studies") / grid.stem
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        study = scaling.Study(grid, overrides or [], out, console.print)
        if gather and not (out / "runs").exists():
            raise ValueError(f"{out} holds no runs of a study; name the folder that they are in (--output)")
        # Tasks of an array work side by side in the folder; each owns its run.
        with nullcontext() if only is not None else jobs.own(out, console.print) as owned:
            if slurm is not None:
                study.submit(slurm)
                return
            failed = [] if gather else study.execute(only)
            if owned:
                owned.check()
                for picture in plot_scaling(study.grid, *study.report(predict), out):
                    print(picture)  # noqa: T201
    except (ValueError, OSError) as error:
        fail(str(error))
    if failed:
        fail(f"{len(failed)} of the runs failed: {', '.join(failed)}; see their logs in {out}/runs")


@app.command(epilog=example("asyncfeded plot runs/mine --output accuracy.png"))
def plot(
    run_dir: RunDir,
    output: Annotated[Path | None, typer.Option(help="Path of the PNG; default: run.png in the folder.")] = None,
) -> None:
    """Draw the metrics of a run over time, and the updates, K and gamma of each client. Prints the path of the picture."""
    try:
        from asyncfeded import plots

        print(plots.plot_run(run_dir, output or run_dir / "run.png"))  # noqa: T201
    except ValueError as error:
        fail(str(error))


@app.command(
    epilog=example(
        "asyncfeded report runs/mine",
        "asyncfeded report runs/one runs/two --output comparison.html",
        "asyncfeded report --study studies/small --scaling studies/scaling --output studies.html",
    )
)
def report(
    run_dirs: Annotated[list[Path] | None, typer.Argument(help="Folders of runs, finished or not.")] = None,
    study: Annotated[list[Path] | None, typer.Option(help="Folder that `asyncfeded study` has written.")] = None,
    scaling: Annotated[list[Path] | None, typer.Option(help="Folder that `asyncfeded scale` has written.")] = None,
    output: Annotated[Path | None, typer.Option(help="The page; default: report.html in the first folder.")] = None,
) -> None:
    """Make one HTML page of runs and studies, with every figure's numbers; it needs no network. Prints its path."""
    folders = [*(run_dirs or []), *(study or []), *(scaling or [])]
    if not folders:
        fail("nothing to report: name the folder of a run, or a study with --study or --scaling")
    try:
        from asyncfeded.report import write_report

        print(write_report(run_dirs or [], study or [], scaling or [], output or folders[0] / "report.html"))  # noqa: T201
    except ValueError as error:
        fail(str(error))
