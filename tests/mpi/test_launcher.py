"""Which mpiexec is ours, and how it is called: from files and the environment, without MPI."""

import io
import os
import sys
from types import SimpleNamespace

import pytest

from asyncfeded.mpi import launcher
from asyncfeded.mpi.allocation import Allocation
from asyncfeded.mpi.limits import Room

SAYS = {
    "mpich": "HYDRA build details:\n    Version: 5.0.2",
    "intel": "Intel(R) MPI Library for Linux* OS, Version 2021.18",
    "openmpi": "mpirun (Open MPI) 4.1.4",
    "prrte": "mpiexec (PRRTE) 3.0",
    "other": "some other program",
}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No launcher has started us, PATH is empty, and the MPI library is MPICH at a path of its own."""
    monkeypatch.setattr(launcher, "find_allocation", lambda: Allocation(dict(os.environ)))
    monkeypatch.setattr(launcher, "leftovers", lambda: "")
    monkeypatch.setattr(launcher, "shared_memory", lambda: Room(1e9, 1e9))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    library(monkeypatch, "MPICH", tmp_path / "env" / "lib" / "libmpi.so.12")
    launcher.find_mpiexec.cache_clear()
    yield
    launcher.find_mpiexec.cache_clear()


def library(monkeypatch, vendor, path=""):
    monkeypatch.setattr(launcher, "MPI", SimpleNamespace(get_vendor=lambda: (vendor, (5, 0, 2))))
    monkeypatch.setattr(launcher, "library", lambda: str(path))


def script(path, says):
    """An executable that says something of itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{SAYS[says]}'\n")
    path.chmod(0o755)
    return str(path)


# --- find_mpiexec


def test_the_mpiexec_beside_the_library_comes_first(tmp_path):
    script(tmp_path / "path" / "mpiexec", "mpich")
    beside = script(tmp_path / "env" / "bin" / "mpiexec", "mpich")
    assert launcher.find_mpiexec() == beside


def test_without_one_beside_it_path_is_searched(tmp_path):
    ours = script(tmp_path / "path" / "mpiexec", "mpich")
    assert launcher.find_mpiexec() == ours


def test_an_mpiexec_of_another_mpi_is_passed_over(tmp_path):
    script(tmp_path / "env" / "bin" / "mpiexec", "openmpi")
    script(tmp_path / "path" / "mpiexec", "openmpi")
    ours = script(tmp_path / "path" / "mpiexec.hydra", "intel")
    assert launcher.find_mpiexec() == ours


@pytest.mark.parametrize("says", ["openmpi", "prrte"])
def test_open_mpi_takes_its_own(tmp_path, monkeypatch, says):
    library(monkeypatch, "Open MPI")
    script(tmp_path / "path" / "mpiexec", "mpich")
    ours = script(tmp_path / "path" / "mpirun", says)
    assert launcher.find_mpiexec() == ours


@pytest.mark.parametrize("vendor", ["MPICH", "Intel MPI"])
@pytest.mark.parametrize("says", ["mpich", "intel"])
def test_mpich_and_intel_mpi_take_either_s(tmp_path, monkeypatch, vendor, says):
    library(monkeypatch, vendor)
    ours = script(tmp_path / "path" / "mpiexec", says)
    assert launcher.find_mpiexec() == ours


def test_none_found_names_what_was_looked_at(tmp_path):
    foreign = script(tmp_path / "path" / "mpiexec", "other")
    with pytest.raises(ValueError, match=r"belongs to MPICH 5\.0\.2 \(.*libmpi\.so\.12\).*pip install") as caught:
        launcher.find_mpiexec()
    assert foreign in str(caught.value)


def test_none_at_all_says_that_path_was_looked_at(monkeypatch):
    library(monkeypatch, "MPICH")
    with pytest.raises(ValueError, match=r"\(path unknown\); looked at PATH\."):
        launcher.find_mpiexec()


def test_a_file_that_does_not_run_is_passed_over(tmp_path):
    broken = tmp_path / "env" / "bin" / "mpiexec"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"\x7fELF of another machine")
    broken.chmod(0o755)
    ours = script(tmp_path / "path" / "mpiexec", "mpich")
    assert launcher.find_mpiexec() == ours


def test_a_program_that_says_no_text_is_passed_over(tmp_path):
    broken = tmp_path / "env" / "bin" / "mpiexec"
    script(broken, "other")
    broken.write_text("#!/bin/sh\nprintf '\\377\\376'\n")
    ours = script(tmp_path / "path" / "mpiexec", "mpich")
    assert launcher.find_mpiexec() == ours


# --- command


def test_mpich_needs_no_options(tmp_path):
    mpiexec = script(tmp_path / "path" / "mpiexec", "mpich")
    assert launcher.command(5, ["train", "a.toml", "seed=1"]).command == [
        mpiexec,
        "-n",
        "5",
        sys.executable,
        "-m",
        "asyncfeded",
        "train",
        "a.toml",
        "seed=1",
    ]


@pytest.fixture
def openmpi(tmp_path, monkeypatch):
    """Open MPI on a machine of 4 cores, as an ordinary user."""
    library(monkeypatch, "Open MPI")
    monkeypatch.setattr(launcher.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(launcher.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "no")
    return script(tmp_path / "path" / "mpiexec", "openmpi")


def test_open_mpi_binds_no_rank_to_a_core(openmpi):
    assert launcher.command(4, [])[0][:3] == [openmpi, "--bind-to", "none"]


def test_open_mpi_may_start_more_ranks_than_it_counts_slots(openmpi):
    """Slots are cores, of which a machine with two threads on each shows twice as many."""
    assert launcher.command(5, [])[0][3:6] == ["--oversubscribe", "-n", "5"]


@pytest.mark.parametrize(("ranks", "options"), [(6, []), (7, ["--map-by", "node:OVERSUBSCRIBE"])])
def test_open_mpi_on_several_hosts_fills_none_before_the_others(openmpi, monkeypatch, ranks, options):
    """--oversubscribe would put all ranks on the first."""
    found = Allocation({}, slots=6, hosts="a:2,b:4", num_hosts=2)
    monkeypatch.setattr(launcher, "find_allocation", lambda: found)
    assert launcher.command(ranks, [])[0][3:] == [
        "--host",
        "a:2,b:4",
        *options,
        "-n",
        str(ranks),
        sys.executable,
        "-m",
        "asyncfeded",
    ]


def test_mpich_is_given_the_hosts_that_were_found(tmp_path, monkeypatch):
    mpiexec = script(tmp_path / "path" / "mpiexec", "mpich")
    monkeypatch.setattr(launcher, "find_allocation", lambda: Allocation({}, 3, "a:2,b:1", 2))
    assert launcher.command(2, [])[0][:4] == [mpiexec, "-rmk", "user", "-hosts"]


def test_notes_about_the_surroundings_come_with_the_command(tmp_path, monkeypatch):
    script(tmp_path / "path" / "mpiexec", "mpich")
    monkeypatch.setattr(launcher, "find_allocation", lambda: Allocation({"PMI_RANK": "1"}, notes=("no job",)))
    monkeypatch.setattr(launcher, "leftovers", lambda: "PMI_RANK is left over")
    started = launcher.command(2, [])
    assert started.notes == ("no job", "PMI_RANK is left over")
    assert "PMI_RANK" not in started.env


@pytest.mark.parametrize(("user", "allowed"), [(0, "1"), (1000, "no")])
def test_open_mpi_is_allowed_to_run_as_root_if_that_is_who_we_are(openmpi, monkeypatch, user, allowed):
    monkeypatch.setattr(launcher.os, "geteuid", lambda: user)
    assert launcher.command(2, [])[1]["OMPI_ALLOW_RUN_AS_ROOT"] == allowed


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_the_ranks_are_told_of_it(tmp_path, monkeypatch):
    script(tmp_path / "path" / "mpiexec", "mpich")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "123")
    env = launcher.command(2, [])[1]
    assert (env["TTY_COMPATIBLE"], env["TTY_INTERACTIVE"], env["COLUMNS"]) == ("1", "1", "123")


def test_elsewhere_the_environment_is_passed_on_as_it_is(tmp_path, monkeypatch):
    script(tmp_path / "path" / "mpiexec", "mpich")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert launcher.command(2, [])[1] == os.environ | {"PYTHONSAFEPATH": "1"}


# --- room for memory that ranks share


@pytest.mark.parametrize(
    ("vendor", "version", "ranks", "room", "words"),
    [
        ("MPICH", (5, 0, 2), 12, 64e6, "64.8 MB there for 12 ranks on this host; give the container more (--shm-size=1g)"),
        ("MPICH", (5, 0, 2), 11, 64e6, ""),
        ("Open MPI", (5, 0, 11), 40, 1e6, ""),
        ("Intel MPI", (2021, 18), 40, 1e6, ""),
    ],
)
def test_room_that_mpich_needs_is_asked_for_before_it_starts(monkeypatch, vendor, version, ranks, room, words):
    monkeypatch.setattr(launcher, "MPI", SimpleNamespace(get_vendor=lambda: (vendor, version)))
    monkeypatch.delenv("MPIR_CVAR_NOLOCAL", raising=False)
    if not words:
        launcher.check_shared_memory(ranks, room)
        return
    with pytest.raises(ValueError, match=r"^/dev/shm has room for") as caught:
        launcher.check_shared_memory(ranks, room)
    assert words in str(caught.value)
    monkeypatch.setenv("MPIR_CVAR_NOLOCAL", "1")
    launcher.check_shared_memory(ranks, room)


# --- the library


def test_the_vendor_is_name_and_version():
    assert launcher.vendor() == "MPICH 5.0.2"


def test_mpi_is_loaded_but_not_initialised_by_an_import():
    """In a process of its own: `asyncfeded info` and --ranks must not start MPI."""
    import subprocess

    code = "from asyncfeded.mpi.launcher import MPI, library; print(MPI.Is_initialized(), library() != '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False True\n"
