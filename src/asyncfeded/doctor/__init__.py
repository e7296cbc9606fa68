"""`asyncfeded doctor` finds what can stop a run, under the launcher that will start the run.

It prints each finding at once, so that the findings before a crash or a hang are on the screen. `problem.py` judges them.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from asyncfeded.doctor import folder, links, problem
from asyncfeded.doctor.problem import Link, Problem
from asyncfeded.mpi import devices, launcher, limits, origin, placement
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.placement import columns, numbers
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.mpi.world import RefusedError, World, gather_places, join_job, leave_job, share_cores
from asyncfeded.store import record

SHOWN = 32
"""Number of links that the table shows; if there are more, it shows the slowest."""
SOFTWARE = ("python", "asyncfeded", "torch", "numpy", "mpi4py", "mpi")
FACTS = np.dtype([*((name, "S40") for name in SOFTWARE), ("memory", np.int64), ("gpu_buffers", "S200")])
"""What a rank reports about itself; `memory` is the number of bytes that it could still take."""
LEVELS = {MPI.THREAD_SINGLE: "SINGLE", MPI.THREAD_FUNNELED: "FUNNELED", MPI.THREAD_SERIALIZED: "SERIALIZED"}
TRY_GPU = """
import sys, torch
from asyncfeded import accelerator
from asyncfeded.mpi.launcher import MPI
MPI.Init()
sent = torch.arange(1 << 20, dtype=torch.float32, device=accelerator.kind())
back = torch.zeros_like(sent)
accelerator.synchronize(sent.device)
MPI.COMM_SELF.Sendrecv(sent, 0, recvbuf=back, source=0)
accelerator.synchronize(sent.device)
sys.exit(0 if torch.equal(sent, back) else 3)
"""
"""A separate process runs this, since an MPI that cannot read a GPU's memory ends the process with a segmentation fault."""


def examine(run_dir: Path) -> int:
    """Examine everything that a run needs, and print it, with one line of JSON at the end. Collective; one rank is enough.

    Args:
        run_dir: folder of a planned run.

    Returns:
        The exit status: 0, or 1 if something stops a run.
    """
    try:
        world = join_job(least=1)
    except RefusedError as error:  # each rank believes that it is alone
        launched = origin.launched_by()
        if launched and launched.rank:
            return 0  # as in run.train: no status of another rank may end rank 0 before rank 0 has printed why
        return _conclude({"mpi": launcher.vendor()}, [Problem(str(error), stops=True)])
    device = devices.device("cpu" if world.rank == 0 else "auto", world.turn(world.seats))
    devices.take(device)
    world = share_cores(world)
    role = "worker" if world.rank else "server"
    places = gather_places(world, role, devices.describe_device(device), world.threads)
    facts = _facts(world, _gpu_buffers() if world.rank == _first_gpu(places) else "")
    status = _report(world, places, facts, run_dir) if world.rank == 0 else links.answer(world)
    leave_job()
    return status


def _report(world: World, places: np.ndarray, facts: np.ndarray, run_dir: Path) -> int:
    """Ask the clients, judge and print. Rank 0. Returns the exit status, after sending it to the clients."""
    problems, figures = _about_mpi(world, facts)
    _say(*placement.table(places))
    problems += problem.of_places(places)
    figures["placement"] = [dict(zip(placement.COLUMNS, _decoded(place), strict=True)) for place in places.tolist()]
    found = folder.look(run_dir)
    rows = [("run folder", found.path), ("file system", found.kind or "unknown")]
    if not found.writing:
        rows += [("free", f"{found.free_bytes / 1e9:.1f} GB"), ("fsync", f"{found.fsync_s * 1e3:.2f} ms")]
        rows += [("renames at once", found.renaming or "yes")]
        rows += [("takes HDF5", found.saving or "yes")]
    _say(*columns(rows))
    problems += folder.problems(found)
    figures["folder"] = found._asdict()
    try:
        link_problems, link_figures = _about_links(world, facts)
        problems, figures = problems + link_problems, figures | link_figures
        status = _conclude(figures, problems)
    except links.SilentError as error:
        rank = error.args[0]
        what = f"rank {rank} on {world.hosts[rank]} does not answer within {links.DEADLINE_S:.0f} s"
        remedy = "look at the network between the hosts (firewall, interfaces that MPI chose)"
        _conclude(figures, [*problems, Problem(f"{what}; {remedy}", stops=True)])
        time.sleep(0.5)  # as in launcher.guard, so that mpiexec reads all of the output
        MPI.COMM_WORLD.Abort(1)
        os._exit(1)  # Abort may return before the process has ended
    for rank in range(1, world.size):
        links.ask(world, rank, links.LEAVE, status)
    return status


def _about_mpi(world: World, facts: np.ndarray) -> tuple[list[Problem], dict[str, object]]:
    """Print the library, the launcher and the hosts. Rank 0. Returns the problems and the figures."""
    launched = origin.launched_by() or (origin.claimed_by(world.size) if world.size > 1 else None)
    name = launched.name if launched else ""
    level = MPI.Query_thread()
    hosts = {host: [rank for rank in range(world.size) if world.hosts[rank] == host] for host in world.hosts}
    per_host = "; ".join(f"{host}: {numbers(ranks)}" for host, ranks in list(hosts.items())[:8])
    figures: dict[str, object] = {
        "ranks": world.size,
        "hosts": len(hosts),
        "mpi": launcher.vendor(),
        "mpi_version": ".".join(map(str, MPI.Get_version())),
        "library": launcher.library(),
        "thread_level": LEVELS.get(level, "MULTIPLE"),
        "launcher": name,
        "failures": problem.failures(launcher.detects_deaths(world.comm), launcher.vendor(), name, os.environ),
        "gpu_buffers": "".join(text.decode() for text in facts["gpu_buffers"].tolist()) or "not tried: no client has a GPU",
    }
    _say(
        *columns(
            [
                ("MPI", f"{figures['mpi']} (MPI {figures['mpi_version']})"),
                ("library", str(figures["library"]) or "path unknown"),
                ("thread level", str(figures["thread_level"])),
                ("launcher", f"{name}, {launched.size} ranks" if launched else "none that is known"),
                ("ranks", f"{world.size} on {len(hosts)} host(s): {per_host}{'; ...' if len(hosts) > 8 else ''}"),
                ("failures (ULFM)", str(figures["failures"])),
                ("GPU buffers", str(figures["gpu_buffers"])),
            ]
        )
    )
    noticed = problem.of_thread_level(level, MPI.THREAD_FUNNELED)
    noticed += problem.of_versions({name: [v.decode() for v in facts[name].tolist()] for name in SOFTWARE}, world.hosts)
    if world.size == 1:
        what = "one rank cannot train, it takes a server and a client; type asyncfeded doctor --ranks 5, or start it with"
        noticed.append(Problem(f"{what} mpiexec or srun", stops=True))
    return noticed, figures


def _about_links(world: World, facts: np.ndarray) -> tuple[list[Problem], dict[str, object]]:
    """Measure latency, bandwidth, clocks, and a large message. Rank 0. Returns the problems and the figures."""
    if world.size == 1:
        return [], {"links": [], "large_message": "not tried: no other rank"}
    measured = [links.measure(world, rank) for rank in range(1, world.size)]
    _say(*_links_table(measured, world.hosts))
    noticed = problem.of_links(measured, world.hosts)
    far = next((rank for rank in range(1, world.size) if world.hosts[rank] != world.hosts[0]), 1)
    needed = 3 * links.LARGE  # both ends may be on one host, and a library may copy
    if facts["memory"][[0, far]].min() < needed:
        large = f"not tried: it takes {needed / 1e9:.1f} GB of memory"
    else:
        _say(f"sending {links.LARGE} bytes in one message to rank {far} ...")
        large = links.send_large(world, far) or "arrives"
    _say(f"large messages: {large}")
    if large != "arrives" and not large.startswith("not tried"):
        what = f"a message of more than 2^31 bytes fails ({large})"
        noticed.append(Problem(f"{what}; training sends models of any size in pieces of 1 MiB and is not concerned"))
    return noticed, {"links": [link._asdict() for link in measured], "large_message": large}


def _links_table(measured: list[Link], hosts: list[str]) -> list[str]:
    """The lines of a table of all links, or of the slowest ones. It marks the highest latency and the lowest bandwidth."""
    shown = measured
    if len(measured) > SHOWN:
        shown = sorted(sorted(measured, key=lambda link: link.bytes_per_s)[:SHOWN])
    late = max(link.latency_s for link in measured)
    thin = min(link.bytes_per_s for link in measured)
    rows = [("server to rank", "host", "latency us", "GB/s", "clock ahead ms", "")]
    for link in shown:
        marks = ["slowest"] * (link.latency_s == late) + ["thinnest"] * (link.bytes_per_s == thin)
        clock = f"{link.skew_s * 1e3:+.3f} +- {link.skew_error_s * 1e3:.3f}"
        latency, speed = f"{link.latency_s * 1e6:.1f}", f"{link.bytes_per_s / 1e9:.2f}"
        rows.append((str(link.rank), hosts[link.rank], latency, speed, clock, ", ".join(marks) * (len(measured) > 1)))
    left = [f"({len(measured) - SHOWN} faster ones are not shown)"] if len(measured) > SHOWN else []
    return [*columns(rows), *left]


def _conclude(figures: dict[str, object], problems: list[Problem]) -> int:
    """Print the problems and the line of JSON. Rank 0. Returns the exit status."""
    stops = any(each.stops for each in problems)
    _say(*[f"{'STOPS A RUN' if each.stops else 'note'}: {each.text}" for each in problems] or ["no problems"])
    noticed = [each._asdict() for each in problems]
    print(json.dumps({"ok": not stops} | figures | {"problems": noticed}), flush=True)  # noqa: T201
    return int(stops)


def _facts(world: World, gpu_buffers: str) -> np.ndarray:
    """FACTS (ranks,) of all ranks. Collective; it waits without occupying a core."""
    versions = record.versions() | {"mpi": launcher.vendor()}
    own_facts, all_facts = np.zeros(1, FACTS), np.zeros(world.size, FACTS)
    for name in SOFTWARE:
        own_facts[name] = versions[name].encode()[:40]
    own_facts["memory"], own_facts["gpu_buffers"] = _memory(), gpu_buffers.encode()[:200]
    Backoff().wait(world.comm.Iallgather(own_facts.view(np.uint8), all_facts.view(np.uint8)))
    return all_facts


def _memory() -> int:
    """Bytes that this rank could still take."""
    return int(min(limits.host_memory(), limits.memory()[0], limits.process_memory()[1], 2**62))


def _first_gpu(places: np.ndarray) -> int:
    """The first rank with a GPU; -1 if there is none."""
    return next((rank for rank, device in enumerate(places["device"].tolist()) if device not in (b"cpu", b"")), -1)


def _gpu_buffers(code: str = TRY_GPU) -> str:
    """Whether MPI sends messages from the memory of a GPU. A separate process tests it by sending a message to itself."""
    env = {name: value for name, value in origin.without_rank(os.environ).items() if not name.startswith("SLURM_")}
    try:
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "no: the trial hung; training does not need them"
    if done.returncode == 0:
        return "yes (GPU-aware); training does not need them"
    why = f"signal {-done.returncode}" if done.returncode < 0 else (done.stderr.strip().splitlines() or ["wrong bytes"])[-1]
    return f"no: {why[:120]}; training does not need them"


def _decoded(place: tuple[object, ...]) -> list[object]:
    return [value.decode() if isinstance(value, bytes) else value for value in place]


def _say(*lines: str) -> None:
    """Print a paragraph, and flush it at once."""
    print(*lines, "", sep="\n", flush=True)  # noqa: T201
