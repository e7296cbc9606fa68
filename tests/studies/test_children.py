"""The mpiexecs of a study end with it, and their ranks too."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STUDY = """
import signal, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from asyncfeded.mpi import launcher
from asyncfeded.studies.children import Children, end_by_signals

signal.signal(signal.SIGINT, signal.default_int_handler)
children, (command, env, _) = Children(), launcher.command(2, [])
rank = "echo > rank-$$; trap '' TERM INT HUP; while :; do sleep 0.1; done"
command = [*command[: command.index(sys.executable)], "sh", "-c", rank]
with end_by_signals(print), ThreadPoolExecutor(1) as pool:
    running = pool.submit(children.run, command, env, Path("log"), lambda: None)
    try:
        running.result()
    except BaseException:
        children.end()
        raise
"""
"""A study of one run, whose two ranks heed no signal."""


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait(what):
    deadline = time.monotonic() + 100
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_study_that_a_signal_ends_takes_its_ranks_along(mpi, tmp_path, number):
    with (tmp_path / "said").open("w+") as said:
        study = subprocess.Popen([sys.executable, "-c", STUDY], cwd=tmp_path, env=mpi.env, stdout=said, stderr=said)
        wait(lambda: len(list(tmp_path.glob("rank-*"))) == 2 or study.poll() is not None)
        ranks = [int(path.name.partition("-")[2]) for path in tmp_path.glob("rank-*")]
        said.seek(0)
        assert all(map(runs, ranks)), said.read() + (tmp_path / "log").read_text()
        os.kill(study.pid, number)
        status = study.wait(100)
        said.seek(0)
        text = said.read()
    assert status == (-number if number == signal.SIGKILL else 128 + number), text
    if number != signal.SIGKILL:
        assert text == f"ended by {number.name}; the same command goes on with the runs that are not done\n"
    wait(lambda: not any(map(runs, ranks)))
