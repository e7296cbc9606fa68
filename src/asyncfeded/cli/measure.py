"""Commands that measure: `bench client`, `bench group`, and so on."""

from pathlib import Path
from typing import Annotated

import typer

from asyncfeded.cli.app import Ranks, at_least, bench, example, fail, load_launcher, start
from asyncfeded.mpi import origin


@bench.command(
    "client", epilog=example("asyncfeded bench client --seconds 0.5", "asyncfeded bench client launch/examples/gpt.toml")
)
def bench_client(
    file: Annotated[Path | None, typer.Argument(help="TOML file of a run; default: every built-in task.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, as many as needed.")] = None,
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement; a task has 12.")] = 0.5,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    device: Annotated[
        str, typer.Option(help="Device of the model: cpu, or a GPU as torch names it: cuda, xpu, cuda:1.")
    ] = "cpu",
) -> None:
    """Measure the steps of a client against a plain loop of torch, for every built-in task, or for that of a run's file."""
    from asyncfeded.bench import client

    try:
        client.measure(file, overrides or [], seconds, threads, device)
    except ValueError as error:
        fail(str(error))


@bench.command("group", epilog=example("asyncfeded bench group --params 1000000 --ranks 2"))
def bench_group(
    params: Annotated[int, typer.Option(help="Elements of the gradient.")],
    ranks: Ranks = None,
    batch: Annotated[int, typer.Option(help="Samples of a step, on all ranks.")] = 64,
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement.")] = 0.5,
    wait: Annotated[str, typer.Option(help="auto, spin or yield, as the key `wait` of a run.")] = "auto",
) -> None:
    """Measure how the ranks of a client add up their gradients, against a raw Allreduce, and the steps that they take."""
    if ranks is not None or not origin.launched_by():
        arguments = ["--params", str(params), "--batch", str(batch), "--seconds", str(seconds), "--wait", wait]
        start(at_least(2, "--ranks", ranks), ["bench", "group", *arguments])
    with load_launcher().guard():
        from asyncfeded.bench import group as room

        status = room.measure(params, batch, seconds, wait)
    raise typer.Exit(status)


@bench.command("kernel", epilog=example("asyncfeded bench kernel --params 25000000 --threads 2"))
def bench_kernel(
    params: Annotated[int, typer.Option(help="Elements of a model.")],
    threads: Annotated[int, typer.Option(help="Threads; default: one per core.")] = 0,
) -> None:
    """Measure the two passes over an update: their GB/s against the memory triad, and their time against torch."""
    from asyncfeded.bench import kernel

    try:
        kernel.measure(params, threads)
    except ValueError as error:
        fail(str(error))


@bench.command("server", epilog=example("asyncfeded bench server --params 1000000 --clients 1"))
def bench_server(
    params: Annotated[int, typer.Option(help="Elements of the model.")],
    clients: Annotated[int | None, typer.Option(help="Start mpiexec with so many clients and 1 server.")] = None,
    seconds: Annotated[float, typer.Option(help="Seconds that the server works in each of the 6 rounds.")] = 2.0,
    wait: Annotated[str, typer.Option(help="auto, spin or yield, as the key `wait` of a run.")] = "auto",
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Measure also while checkpoints are written.")] = False,
    device: Annotated[
        str, typer.Option(help="Device of the server's models: cpu, or a GPU as torch names it: cuda, xpu, cuda:1.")
    ] = "cpu",
) -> None:
    """Measure how long a client waits for its reply, against a raw MPI echo, and what an update costs the server."""
    if clients is not None or not origin.launched_by():
        arguments = ["--params", str(params), "--seconds", str(seconds), "--wait", wait, "--device", device]
        arguments += ["--checkpoints"] if checkpoints else []
        start(1 + at_least(1, "--clients", clients), ["bench", "server", *arguments])
    with load_launcher().guard():
        from asyncfeded.bench import server as room

        status = room.measure(params, seconds, wait, checkpoints, device)
    raise typer.Exit(status)


@bench.command("servers", epilog=example("asyncfeded bench servers --params 1000000 --servers 2 --clients 2"))
def bench_servers(
    params: Annotated[int, typer.Option(help="Elements of the model.")],
    servers: Annotated[int, typer.Option(help="The most ranks of the server.")],
    clients: Annotated[int | None, typer.Option(help="Start mpiexec with so many clients and the server ranks.")] = None,
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement: two for each number of ranks.")] = 10.0,
    round_s: Annotated[float, typer.Option(help="Seconds that a client sleeps in each round, as if it trained.")] = 0.0,
    wait: Annotated[str, typer.Option(help="auto, spin or yield, as the key `wait` of a run.")] = "auto",
) -> None:
    """Measure the updates per second of 1, 2, 4, ... server ranks, against models that only travel, and their memory."""
    if clients is not None or not origin.launched_by():
        arguments = ["--params", str(params), "--servers", str(servers), "--seconds", str(seconds)]
        arguments += ["--round-s", str(round_s), "--wait", wait]
        start(at_least(1, "--servers", servers) + at_least(1, "--clients", clients), ["bench", "servers", *arguments])
    with load_launcher().guard():
        from asyncfeded.bench import servers as room

        status = room.measure(params, servers, seconds, round_s, wait)
    raise typer.Exit(status)


@bench.command("simulation", epilog=example("asyncfeded bench simulation --ranks 3"))
def bench_simulation(
    ranks: Ranks = None,
    clients: Annotated[
        list[int] | None,
        typer.Option(min=1, help="How many clients; may be given several times; default: 10, 100 and 1000."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds of each run; there are 6 for each number of workers.")] = 2.0,
    device: Annotated[
        str, typer.Option(help="Device of the workers: cpu, or a GPU as torch names it: cuda, xpu, cuda:1.")
    ] = "cpu",
) -> None:
    """Measure virtual runs with 1, 2, 4, ... workers against the time of their training alone."""
    if ranks is not None or not origin.launched_by():
        several = [part for count in clients or [] for part in ("--clients", str(count))]
        options = [*several, "--seconds", str(seconds), "--device", device]
        start(at_least(2, "--ranks", ranks), ["bench", "simulation", *options])
    with load_launcher().guard():
        from asyncfeded.bench import simulation as room

        status = room.measure(clients or [10, 100, 1000], seconds, device)
    raise typer.Exit(status)


@bench.command("wait", epilog=example("asyncfeded bench wait --ranks 3"))
def bench_wait(
    ranks: Ranks = None,
    wait: Annotated[str, typer.Option(help="auto, spin or yield, as the key `wait` of a run.")] = "auto",
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement; there are 21, or 24.")] = 1.0,
    beside: Annotated[int, typer.Option(min=0, help="How many processes compute beside the last ones.")] = 0,
) -> None:
    """Measure how much of a core idle ranks use, how they slow other training, and how soon the server notices an update."""
    if ranks is not None or not origin.launched_by():
        start(
            at_least(2, "--ranks", ranks),
            ["bench", "wait", "--wait", wait, "--seconds", str(seconds), "--beside", str(beside)],
        )
    with load_launcher().guard():
        from asyncfeded.bench import wait as room

        status = room.measure(wait, seconds, beside)
    raise typer.Exit(status)
