"""What really started a process, from its environment, its connection and a /proc of the test's own."""

import os
import socket

import pytest

from asyncfeded.mpi import origin
from asyncfeded.mpi.origin import Origin, connected, launched_by, leftovers

OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}
MPICH = {"PMI_SIZE": "3", "PMI_RANK": "1"}
SRUN = {"SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "3"}
PALS = {"PALS_RANKID": "9", "PALS_LOCAL_SIZE": "12", "PALS_LOCAL_RANKID": "9", "PALS_NODEID": "0", "PALS_DEPTH": "8"}
CRAY_PMI = {"PMI_SIZE": "24", "PMI_RANK": "9", "PMI_LOCAL_SIZE": "12", "PMI_JOBID": "a", "PMI_CONTROL_PORT": "29468"}
CRAY_SRUN = CRAY_PMI | {"PALS_RANKID": "9", "PALS_APID": "7.0", "SLURM_STEP_NUM_TASKS": "24", "SLURM_PROCID": "9"}
FLUX = {"FLUX_JOB_SIZE": "8", "FLUX_TASK_RANK": "7", "FLUX_TASK_LOCAL_ID": "3", "PMI_SIZE": "8", "PMI_RANK": "7"}
JSM = {"JSM_NAMESPACE_SIZE": "6", "JSM_NAMESPACE_RANK": "5", "JSM_NAMESPACE_LOCAL_SIZE": "3", "PMIX_RANK": "5"}
MVAPICH = {"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_LOCAL_SIZE": "2"}
EVERY = [OPEN_MPI, MPICH, SRUN, PALS, PALS | CRAY_PMI, CRAY_SRUN, FLUX, JSM, MVAPICH, OPEN_MPI | MPICH | SRUN]
BATCH = ("slurmstepd", "slurmstepd: [7.batch]")
TASK = ("slurmstepd", "slurmstepd: [7.0]")


@pytest.fixture
def above(tmp_path):
    """Makes a /proc in which this process has the given parents, nearest first, as names or (name, command line)."""

    def make(*parents):
        named = [("python", ""), *(parent if isinstance(parent, tuple) else (parent, parent) for parent in parents)]
        pids = [os.getpid(), *range(900_001, 900_001 + len(parents))]
        for place, ((name, title), pid) in enumerate(zip(named, pids, strict=True)):
            folder = tmp_path / "proc" / str(pid)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "stat").write_text(f"{pid} ({name}) S {[*pids[1:], 0][place]} 1 1\n")
            (folder / "comm").write_text(f"{name}\n")
            (folder / "cmdline").write_text(title)
        return tmp_path / "proc"

    return make


@pytest.mark.parametrize(
    ("env", "daemon", "found"),
    [
        (OPEN_MPI, "prterun", ("Open MPI's mpiexec", 4, 2)),
        (OPEN_MPI, "prted", ("Open MPI's mpiexec", 4, 2)),
        (OPEN_MPI, "orted", ("Open MPI's mpiexec", 4, 2)),
        (MPICH, "hydra_pmi_proxy", ("the mpiexec of MPICH or Intel MPI", 3, 1)),
        (MPICH, "hydra_bstrap_pr", ("the mpiexec of MPICH or Intel MPI", 3, 1)),
        (SRUN, TASK, ("srun", 5, 3)),
        (SRUN | MPICH, TASK, ("srun", 5, 3)),
        (PALS, "palsd", ("PALS", 12, 9)),  # with PMIx it says only how many ranks this host has
        (PALS | CRAY_PMI, "palsd", ("PALS", 24, 9)),
        (CRAY_SRUN, TASK, ("srun", 24, 9)),  # --mpi=cray_shasta sets PALS_RANKID
        (FLUX, "flux-shell", ("Flux", 8, 7)),
        (FLUX | PALS | CRAY_PMI, "flux-shell", ("Flux", 8, 7)),  # its plugin for Cray's MPI sets PALS_RANKID
        (JSM, "jsmd", ("jsrun", 6, 5)),
        (JSM | OPEN_MPI, "jsmd", ("jsrun", 6, 5)),
        (MVAPICH, "mpispawn", ("mpirun_rsh of MVAPICH", 2, 1)),
    ],
)
def test_a_launcher_is_known_by_its_process_above_and_what_it_says(above, env, daemon, found):
    assert launched_by(env, above("sh", daemon, "sh", "systemd")) == Origin(*found)


@pytest.mark.parametrize(
    "parents", [("bash", "sshd", "systemd"), ("slurm_script", BATCH), ("bash", "pbs_mom"), ("bash", "res")]
)
@pytest.mark.parametrize("env", EVERY)
def test_variables_alone_are_no_launcher(above, env, parents):
    """In a shell that somebody has logged in to, and in a script of Slurm, PBS or LSF that was submitted inside a step."""
    assert launched_by(env, above(*parents)) is None
    assert leftovers(env).endswith(" are left over and not used: this process was not started as a rank")


@pytest.mark.parametrize("env", EVERY)
def test_mpiexec_that_is_typed_among_what_is_left_over_is_mpiexec(above, env):
    """`--ranks` takes all of it away but what Slurm and Flux need."""
    proc = above("hydra_pmi_proxy", "mpiexec", "bash", "sshd")
    assert launched_by(origin.without_rank(env) | MPICH, proc) == Origin("the mpiexec of MPICH or Intel MPI", 3, 1)


def test_a_launcher_that_gives_no_rank_is_none(above):
    assert launched_by({}, above("hydra_pmi_proxy", TASK)) is None
    assert launched_by({"PMI_SIZE": "", "PMI_RANK": ""}, above("hydra_pmi_proxy")) is None


def test_mpiexec_within_a_step_of_srun_is_mpiexec(above):
    assert launched_by(MPICH | SRUN, above("hydra_pmi_proxy", "mpiexec", TASK)).name == "the mpiexec of MPICH or Intel MPI"


def test_srun_within_mpiexec_is_srun(above):
    assert launched_by(MPICH | SRUN, above("bash", TASK, "srun", "hydra_pmi_proxy")).name == "srun"


def test_variables_of_a_step_in_a_batch_script_are_left_over(above):
    """`sbatch` typed inside a step hands them on."""
    assert launched_by(SRUN, above("slurm_script", BATCH)) is None


@pytest.mark.parametrize(
    ("env", "daemon", "size", "rank"),
    [(SRUN, TASK, 5, 3), (CRAY_SRUN, TASK, 24, 9), (FLUX, "flux-shell", 8, 7), (JSM, "jsmd", 6, 5), (PALS, "palsd", 12, 9)],
)
def test_what_is_typed_in_the_shell_of_a_step_is_not_a_task(above, monkeypatch, env, daemon, size, rank):
    proc = above("bash", daemon)
    monkeypatch.setattr(origin.os, "isatty", lambda fd: fd == 0)
    monkeypatch.setattr(origin.os, "getpgid", lambda pid: {900_001: os.getpgrp() + 1}[pid])
    assert launched_by(env, proc) is None
    monkeypatch.setattr(origin.os, "getpgid", lambda pid: os.getpgrp())  # a script, without job control
    assert launched_by(env, proc)[1:] == (size, rank)


# --- where the parents are hidden


@pytest.fixture
def end():
    """One end of a connection to a launcher that lives."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield str(ours.fileno())


@pytest.mark.parametrize(
    ("env", "name"),
    [(MPICH, "the mpiexec of MPICH or Intel MPI"), (MPICH | {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1"}, "srun")],
)
def test_in_a_container_the_open_connection_tells(above, end, env, name):
    assert launched_by(env | {"PMI_FD": end}, above()) == Origin(name, 3, 1)


def test_a_number_that_is_no_connection_any_more_tells_nothing(above, tmp_path):
    with (tmp_path / "file").open("w") as file:
        for number in ("987654", str(file.fileno())):
            assert connected(MPICH | {"PMI_FD": number}) is False
            assert launched_by(MPICH | {"PMI_FD": number}, above()) is None


def test_a_pmix_server_is_asked_whether_it_lives(above):
    with socket.create_server(("127.0.0.1", 0)) as server:
        env = OPEN_MPI | {"PMIX_SERVER_URI41": f"prterun-a-1@0.0;tcp4://127.0.0.1:{server.getsockname()[1]}"}
        assert connected(env) is True
        assert launched_by(env, above()) == Origin("Open MPI's mpiexec", 4, 2)
    assert connected(env) is False
    assert launched_by(env, above()) is None


# --- what is left over


def test_what_is_left_over_is_named(monkeypatch):
    monkeypatch.setattr(origin, "launched_by", lambda env: None)
    assert leftovers(MPICH | OPEN_MPI) == (
        "OMPI_COMM_WORLD_SIZE and OMPI_COMM_WORLD_RANK of Open MPI's mpiexec, PMI_SIZE and PMI_RANK of the mpiexec of MPICH "
        "or Intel MPI are left over and not used: this process was not started as a rank"
    )
    assert leftovers({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) == ""  # the usual shell of a step
    assert leftovers({}) == ""


def test_a_real_launcher_leaves_nothing_over(monkeypatch):
    monkeypatch.setattr(origin, "launched_by", lambda env: Origin("srun", 4, 2))
    assert leftovers(MPICH) == ""


@pytest.mark.parametrize(
    ("env", "ranks"),
    [
        ({}, 1),
        ({"MPI_LOCALNRANKS": "5"}, 5),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "3"}, 3),
        (PALS, 12),
        (CRAY_SRUN, 12),
        (JSM, 3),
        (MVAPICH, 2),
    ],
)
def test_the_launcher_says_how_many_ranks_this_host_has(env, ranks):
    assert origin.neighbours(env) == ranks


def test_settings_of_the_user_are_no_ranks():
    kept = {"PATH": "/bin", "PRTE_MCA_rmaps_default_mapping_policy": "x", "PMIX_MCA_gds": "hash", "HYDRA_LAUNCHER": "ssh"}
    gone = MPICH | OPEN_MPI | {"PMI_FD": "9", "PMIX_RANK": "1", "HYDI_CONTROL_FD": "7", "MPI_LOCALRANKID": "0"}
    assert origin.without_rank(kept | gone) == kept


def test_a_dead_connection_is_forgotten_and_a_live_one_kept(monkeypatch, end):
    monkeypatch.setattr(origin, "launched_by", lambda env=os.environ: None)
    monkeypatch.setenv("PMI_FD", "987654")
    origin.forget_launcher()
    assert "PMI_FD" not in os.environ
    monkeypatch.setenv("PMI_FD", end)  # of a launcher that nobody knows
    origin.forget_launcher()
    assert os.environ["PMI_FD"] == end


def test_a_command_line_above_that_is_not_utf_8_is_read(above, tmp_path):
    """The name of a run's folder may be in another encoding."""
    proc = above("bash", "hydra_pmi_proxy")
    for title in proc.glob("*/cmdline"):
        title.write_bytes(b"bad\xff")
    assert launched_by(MPICH, proc).size == 3


# --- containers


def in_namespaces(proc, *namespaces):
    """Give this process, and those above it in turn, a user namespace; None: of one that it may not look at."""
    (proc / "self").symlink_to(str(os.getpid()))
    for pid, namespace in zip([os.getpid(), *range(900_001, 900_010)], namespaces, strict=False):
        (proc / str(pid) / "ns").mkdir()
        if namespace:
            (proc / str(pid) / "ns" / "user").symlink_to(namespace)
    return proc


@pytest.mark.parametrize(
    ("parents", "namespaces", "apart"),
    [
        (("hydra_pmi_proxy",), (origin.INITIAL, origin.INITIAL), False),  # no container
        ((TASK,), (origin.INITIAL, None), False),  # slurmstepd is root's
        (("hydra_pmi_proxy",), ("user:[7]", None), True),  # a container for each rank
        (("python", "hydra_pmi_proxy"), ("user:[7]", "user:[7]", "user:[8]"), True),  # the same, with a shield in it
        (("hydra_pmi_proxy", "mpiexec"), ("user:[7]", "user:[7]", "user:[7]"), False),  # mpiexec in the container
        ((), ("user:[7]",), True),  # nobody can be seen
        (("hydra_pmi_proxy",), (None, None), False),  # the system has no such namespaces
    ],
)
def test_a_rank_in_a_container_of_its_own_is_apart(above, parents, namespaces, apart):
    assert origin.is_apart(in_namespaces(above(*parents), *namespaces)) is apart
