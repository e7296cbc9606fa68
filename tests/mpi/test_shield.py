"""A rank behind its shield: how both end."""

import sys

import pytest

from asyncfeded.mpi import shield
from conftest import run

KILL = "import os, signal; from asyncfeded.mpi import shield; {note}os.kill(os.getpid(), signal.SIGKILL)"


def shielded(code, tmp_path, env=None):
    return run([sys.executable, "-m", "asyncfeded.mpi.shield", sys.executable, "-c", code], tmp_path, env)


@pytest.mark.parametrize("status", [0, 3])
def test_a_status_and_what_was_said_come_through(tmp_path, status):
    done = shielded(f"print('said'); raise SystemExit({status})", tmp_path)
    assert (done.status, done.stdout) == (status, "said\n")


def test_a_client_that_is_killed_while_it_trains_ends_quietly(tmp_path):
    done = shielded(KILL.format(note="shield.note(''); "), tmp_path)
    assert (done.status, done.stderr) == (0, "asyncfeded: rank ? was ended by signal 9\n")


def test_a_rank_that_is_killed_before_training_is_an_error(tmp_path):
    done = shielded(KILL.format(note=""), tmp_path)
    assert (done.status, done.stderr) == (137, "asyncfeded: rank ? was ended by signal 9: before training began\n")


def test_a_server_that_is_killed_is_an_error_with_its_last_word(tmp_path):
    done = shielded(KILL.format(note="shield.note('go on with: asyncfeded resume r'); "), tmp_path)
    assert (done.status, done.stderr) == (137, "asyncfeded: rank ? was ended by signal 9: go on with: asyncfeded resume r\n")


def test_signals_do_not_end_the_shield_and_are_not_ignored_by_the_rank(tmp_path):
    """hydra sends them to both."""
    code = (
        "import os, signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True); "
        "[os.kill(os.getppid(), n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]; print('here')"
    )
    done = shielded(code, tmp_path)
    assert (done.status, done.stdout) == (0, "True\nhere\n")


def test_without_a_shield_a_note_goes_nowhere(monkeypatch):
    monkeypatch.delenv(shield.WORD, raising=False)
    shield.note("anything")


@pytest.mark.parametrize(("victim", "status"), [(1, 0), (0, 137)])
def test_mpiexec_stays_when_a_client_dies_and_ends_with_the_server(own_mpi, tmp_path, victim, status):
    """The others go on for 3 s and leave files, or for longer than the job ever takes to end."""
    if own_mpi.vendor.startswith("Open MPI"):
        pytest.skip("a shield is for hydra, the mpiexec of MPICH")
    code = (
        "import os, signal, time, sys; from mpi4py import MPI; from pathlib import Path; from asyncfeded.mpi import shield; "
        "rank = MPI.COMM_WORLD.rank; shield.note('' if rank else 'go on with: this'); MPI.COMM_WORLD.Barrier(); "
        f"rank == {victim} and os.kill(os.getpid(), signal.SIGKILL); "
        f"time.sleep({3 if victim else 90}); Path(str(rank)).touch(); os._exit(0)"
    )
    python = [sys.executable, "-m", "asyncfeded.mpi.shield", sys.executable, "-c", code]
    done = run([own_mpi.mpiexec[0], "-disable-auto-cleanup", *own_mpi.command((3, python))[1:]], tmp_path, own_mpi.env)
    assert done.status == status, str(done)
    assert f"rank {victim} was ended by signal 9" in done.stderr
    assert ("go on with: this" in done.stderr) == (victim == 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == (["0", "2"] if victim else [])
