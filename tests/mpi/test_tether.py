"""What is tied to a process ends with it."""

import signal
import subprocess
import sys
import time

import pytest

from asyncfeded.mpi.tether import tethered
from conftest import is_dead

PARENT = """
import subprocess, sys
from asyncfeded.mpi.tether import tethered
child = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
subprocess.run(tethered([sys.executable, "-c", child], {number}))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_ends_when_the_process_that_started_it_is_killed(number):
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(number=int(number))], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert not is_dead(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while not is_dead(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_command_does_not_start_when_that_process_is_dead_already():
    command = tethered(["echo", "started"], signal.SIGTERM)
    assert subprocess.run(command, capture_output=True, text=True).stdout == "started\n"
    command[command.index("asyncfeded.mpi.tether") + 1] = "1"
    assert subprocess.run(command, capture_output=True, text=True).stdout == ""
