"""Which mpiexec is ours, how it is called, and who has started us: from files and the environment, without MPI."""

import io
import os
import sys
from types import SimpleNamespace

import pytest

from asyncfeded.mpi import launcher

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
    for _, size, rank in launcher.LAUNCHERS:
        monkeypatch.delenv(size, raising=False)
        monkeypatch.delenv(rank, raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
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
    line, _ = launcher.command(5, ["train", "a.toml", "seed=1"])
    assert line == [mpiexec, "-n", "5", sys.executable, "-m", "asyncfeded", "train", "a.toml", "seed=1"]


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


def test_open_mpi_in_an_allocation_never_oversubscribes(openmpi, monkeypatch):
    """It would put all ranks on the first node."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "--oversubscribe" not in launcher.command(5, [])[0]


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


# --- launched_by


def test_started_by_hand():
    assert launcher.launched_by() is None


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}, "Open MPI's mpiexec"),
        ({"PMI_SIZE": "4", "PMI_RANK": "2"}, "the mpiexec of MPICH or Intel MPI"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}, "srun"),
    ],
)
def test_a_launcher_is_known_by_what_it_leaves_in_the_environment(monkeypatch, environment, name):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert launcher.launched_by() == (name, 4, 2)


def test_mpiexec_within_a_step_of_srun_is_mpiexec(monkeypatch):
    for key, value in {"PMI_SIZE": "4", "PMI_RANK": "2", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(key, value)
    assert launcher.launched_by() == ("the mpiexec of MPICH or Intel MPI", 4, 2)


def test_a_size_that_is_no_number_is_no_launcher(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "")
    assert launcher.launched_by() is None


# --- the library


def test_the_vendor_is_name_and_version():
    assert launcher.vendor() == "MPICH 5.0.2"


def test_mpi_is_loaded_but_not_initialised_by_an_import():
    """In a process of its own: `asyncfeded info` and --ranks must not start MPI."""
    import subprocess

    code = "from asyncfeded.mpi.launcher import MPI, library; print(MPI.Is_initialized(), library() != '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False True\n"
