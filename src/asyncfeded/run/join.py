"""A client that joins a run that goes on, from a job of its own: `asyncfeded join`.

It reads the run's config, agrees with the server at its door (wire/door.py), loads the data of the client that it is to be,
tries it, and then lets MPI connect it. From then on it is a worker as any other. Each rank of its job is a client by itself.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from asyncfeded.config import load_config
from asyncfeded.mpi import devices, launcher, shield
from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.world import REFUSED, RefusedError, World, imagine_job, join_job, leave_job, make_statement
from asyncfeded.override import setting
from asyncfeded.own import CodeError
from asyncfeded.run import terms, work
from asyncfeded.run.memory import agree_on_memory
from asyncfeded.run.plan import Plan, agree_on, read_plan
from asyncfeded.run.run import flatten, make_module, needed_memory
from asyncfeded.run.stopping import asked, listen
from asyncfeded.run.work import ClientParts
from asyncfeded.wire.door import Line, knock

T = TypeVar("T")
CONNECT_S = 120
"""Whole seconds after which MPI gives up a server that does not answer: it may be busy with an evaluation."""
END_S = 5.0
"""Seconds that a client takes to end in order, once the server has gone."""


def join(run_dir: Path, overrides: list[str], client: int) -> int:
    """Be a client of a run that goes on, until it ends or this client leaves. It ends this process.

    Args:
        run_dir: folder of the run.
        overrides: `key=value`, of keys that a client may choose: device.
        client: which client to be; -1: one that nobody trains.
    """
    status = 0
    launcher.outlive()
    with launcher.guard("client", told=(CodeError,)):
        try:
            world = join_job(least=1)
            listen()
            alone = replace(
                world,
                comm=MPI.COMM_SELF,
                local=MPI.COMM_SELF,
                rank=0,
                size=1,
                hosts=[world.hosts[world.rank]],
                neighbours=[0],
            )
            plan = _agree(alone, lambda: _read(world, run_dir, overrides))
            line, parts = _prepare(alone, plan, run_dir, client)
            shield.note("")
            _train(alone, line, parts)
        except RefusedError as error:
            status = error.status
            _say(str(error))
    return leave_job(status, ranks_lost=True)  # the server need not wait for MPI_Finalize, nor the other ranks


def _agree(alone: World, prepare: Callable[[], T]) -> T:
    """What `prepare` makes. Raises RefusedError if something is wrong that a user can correct, or if asked to stop."""
    return agree_on(alone, prepare, lambda _: make_statement())


def _read(world: World, run_dir: Path, overrides: list[str]) -> Plan:
    """Read the plan as a worker of the run would. The ranks of this job on a host get its GPUs in turn."""
    path, of_run = run_dir / "config.toml", [setting("run_dir", str(run_dir)), *overrides]
    config = load_config(path, of_run)
    seat = int(config.server == 0)  # any but the server's
    before = range(-world.local.rank, 0)  # they get a GPU before this one does
    return read_plan(replace(imagine_job(1 + config.present, seat), neighbours=[*before, seat]), path, of_run, None)


def _prepare(alone: World, plan: Plan, run_dir: Path, client: int) -> tuple[Line, ClientParts]:
    """Agree with the server, load the data of a client, and try it.

    Raises:
        RefusedError: something is wrong that the user can correct.
    """
    config = plan.config
    devices.take(plan.device)
    profiles, module, state = _agree(alone, lambda: make_module(plan))
    agree_on_memory(alone, *needed_memory(replace(alone, rank=1), plan, state))
    offered = terms.offer(plan, state, profiles, plan.origin)

    def come_in() -> tuple[Line, dict[str, Any]]:
        line, password = knock(run_dir, launcher.vendor())
        line.say(password=password, ask="join", client=client, **offered.words())
        told = line.hear()
        if told is None or "refused" in told:
            raise ValueError(f"{run_dir}: {told['refused'] if told else 'the server has ended the conversation'}")
        return line, told

    line, told = _agree(alone, come_in)
    statistics, own = _agree(alone, lambda: terms.accept(told, state))
    torch.set_num_threads(told["threads"])
    # Of a job with a rank for every client it would be the rank whose home is this client.
    seated = imagine_job(config.clients + 1, told["client"] + 1)
    plan = plan._replace(config=config.model_copy(update={"late": 0}))
    client_data = _agree(alone, lambda: work.load(seated, plan, profiles))
    flat = _agree(alone, lambda: flatten(plan, module, statistics, own))
    parts = _agree(alone, lambda: work.prepare(seated, plan, flat, profiles, client_data))
    device = devices.describe_device(plan.device)
    line.say(where=f"{socket.gethostname()}, {device}, {alone.cores:.3g} cores, {torch.get_num_threads()} threads")
    return line, parts


def _train(alone: World, line: Line, parts: ClientParts) -> None:
    """Let MPI connect this client, and train until the server says stop, or this client is asked to leave."""
    turn = line.hear()
    while turn is not None and "port" not in turn:
        turn = line.hear()  # asked to leave before it has begun
    if turn is None:
        raise RefusedError("the server has ended the conversation before this client could begin", REFUSED)
    threading.Thread(target=_listen, args=(line,), name="line", daemon=True).start()
    line.say(connecting=True)
    try:
        comm = MPI.COMM_SELF.Connect(turn["port"], MPI.Info.Create({"timeout": str(CONNECT_S)}))
    except MPI.Exception as error:
        raise RefusedError(f"MPI has not connected this client: {error.Get_error_string().splitlines()[0]}") from None
    comm.Set_errhandler(MPI.ERRORS_RETURN)
    _say("this client has joined the run; SIGTERM, or asyncfeded leave, lets it go after its round")
    work.train_for_server(replace(alone, comm=cast(MPI.Intracomm, comm), crowded=True), parts, lambda: asked.stop)
    _say("this client has left the run" if asked.stop else "the run has ended")


def _listen(line: Line) -> None:
    """Do what the server says on the line; end this process when the server has gone."""
    while (told := line.hear()) is not None:
        if told.get("leave"):
            asked.stop = True
    time.sleep(END_S)
    _say("the server has ended, or has given this client up")
    sys.stdout.flush()
    os._exit(1)


def _say(sentence: str) -> None:
    print(f"asyncfeded: {sentence}", file=sys.stderr, flush=True)  # noqa: T201
