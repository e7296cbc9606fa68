"""Where mpiexec may start ranks, from the variables of batch systems. Slurm itself is asked in cluster/."""

import os
import socket

import pytest

from asyncfeded.mpi.allocation import find_allocation

HERE = socket.gethostname()


@pytest.fixture
def path(tmp_path):
    """Puts programs into a PATH of their own, which each say something and end with a status."""

    def make(says="", status=0, *names):
        for name in names:
            program = tmp_path / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f"#!/bin/sh\necho '{says}'\necho '{says}' >&2\nexit {status}\n")
            program.chmod(0o755)
        return {"PATH": f"{tmp_path / 'bin'}"}

    return make


JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_NODELIST": "n1", "SLURM_TASKS_PER_NODE": "4"}


# --- Slurm


def test_a_running_job_is_used_and_shared_with_the_step_that_asks(path):
    found = find_allocation(JOB | path(f"RUNNING {os.getuid()}", 0, "srun", "squeue"))
    assert (found.slots, found.num_hosts, found.hosts, found.notes) == (4, 1, "", ())
    assert found.env["SLURM_OVERLAP"] == "1"


@pytest.mark.parametrize(
    ("says", "status", "programs", "why"),
    [
        ("", 0, [], "srun is not in PATH"),
        (
            "slurm_load_jobs error: Invalid job id specified",
            1,
            ["srun", "squeue"],
            "squeue says: slurm_load_jobs error: Inv",
        ),
        ("", 0, ["srun", "squeue"], "it is no running job of yours"),
        ("PENDING 0", 0, ["srun", "squeue"], "it is no running job of yours"),
        (f"RUNNING {os.getuid() + 1}", 0, ["srun", "squeue"], "it is no running job of yours"),
        ("", 0, ["srun"], "Slurm does not answer ("),
    ],
)
def test_a_job_that_is_not_there_is_told_and_its_variables_go(path, says, status, programs, why):
    """On one node; of a job on several, the user decides."""
    env = JOB | path(says, status, *programs)
    found = find_allocation(env)
    assert found.env == path()
    (note,) = found.notes
    assert note.startswith(f"SLURM_JOB_ID=7, but {why}")
    assert note.endswith(": all ranks start on this host")
    with pytest.raises(
        ValueError, match=r"^SLURM_JOB_ID=7 names a job on 3 nodes, but .*type unset SLURM_JOB_ID SLURM_JOBID$"
    ):
        find_allocation(env | {"SLURM_JOB_NUM_NODES": "3"})


def test_without_a_job_other_variables_of_slurm_mean_nothing(path):
    env = path() | {"SLURM_NODELIST": "n[1-3]", "SLURM_CONF": "/a"}
    assert find_allocation(env).env == path() | {"SLURM_CONF": "/a"}


def test_from_a_step_the_whole_job_is_used(path):
    """A step of one task in a job of 3 nodes with 4, 4 and 2 cores, 2 for a task."""
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_TASKS_PER_NODE": "1"}
    job = {"SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_NUM_NODES": "3", "SLURM_NNODES": "1", "SLURM_NODELIST": "n1"}
    cores = {"SLURM_JOB_CPUS_PER_NODE": "4(x2),2", "SLURM_CPUS_PER_TASK": "2"}
    found = find_allocation(JOB | step | job | cores | path(f"RUNNING {os.getuid()}", 0, "srun", "squeue"))
    assert (found.slots, found.num_hosts) == (5, 3)
    assert found.env["SLURM_TASKS_PER_NODE"] == "2(x2),1"
    assert (found.env["SLURM_NODELIST"], found.env["SLURM_NNODES"]) == ("n[1-3]", "3")
    assert not {"SLURM_STEP_ID", "SLURM_NTASKS"} & set(found.env)


# --- PBS, LSF, Grid Engine


@pytest.fixture
def listed(tmp_path):
    def write(text):
        (tmp_path / "hosts").write_text(text)
        return str(tmp_path / "hosts")

    return write


FILES = [
    ("PBS_NODEFILE", "a\na\nb.site\n", "a:2,b.site:1"),
    ("LSB_DJOB_HOSTFILE", "a\nb\na\n\n", "a:2,b:1"),
    ("PE_HOSTFILE", "a 3 main.q@a UNDEFINED\nb 2 main.q@b 0,0:0,1\n", "a:3,b:2"),
]


@pytest.mark.parametrize(("variable", "text", "hosts"), FILES)
def test_a_file_of_hosts_is_used(path, listed, variable, text, hosts):
    found = find_allocation({variable: listed(text)} | path("", 0, "ssh"))
    assert (found.hosts, found.num_hosts, found.notes) == (hosts, 2, ())
    assert (found.env["HYDRA_LAUNCHER"], found.env["PRTE_MCA_plm_ssh_agent"]) == ("ssh", "ssh")


@pytest.mark.parametrize(("variable", "value"), [("LSB_MCPU_HOSTS", "a 2 b 1"), ("LSB_HOSTS", "a b a")])
def test_a_list_of_hosts_is_used_with_the_agent_of_its_system(path, variable, value):
    found = find_allocation({variable: value} | path("", 0, "blaunch", "ssh"))
    assert (found.hosts, found.slots) == ("a:2,b:1", 3)
    assert (found.env["HYDRA_LAUNCHER"], found.env["PRTE_MCA_plm_ssh_agent"]) == ("lsf", "blaunch")


def test_grid_engine_starts_ranks_by_qrsh_as_a_part_of_the_job(path, listed):
    """hydra knows its options; Open MPI must be told them: without, it takes the first word after qrsh for the command."""
    found = find_allocation({"PE_HOSTFILE": listed("a 1 q UNDEFINED\nb 1 q UNDEFINED\n")} | path("", 0, "qrsh", "ssh"))
    assert (found.env["HYDRA_LAUNCHER"], found.env["PRTE_MCA_plm_ssh_agent"]) == ("sge", "qrsh -inherit -nostdin -V")


def test_the_agent_that_the_user_names_stays(path, listed):
    own = {"PRTE_MCA_plm_ssh_agent": "rsh -x", "HYDRA_LAUNCHER": "rsh"}
    found = find_allocation({"PBS_NODEFILE": listed("a\nb\n")} | own | path("", 0, "rsh"))
    assert (found.env["HYDRA_LAUNCHER"], found.env["PRTE_MCA_plm_ssh_agent"]) == ("rsh", "rsh -x")


@pytest.mark.parametrize("name", [HERE, f"{HERE.split('.')[0]}.site", "localhost"])
def test_a_file_that_names_this_host_alone_changes_nothing(path, listed, name):
    found = find_allocation({"PBS_NODEFILE": listed(f"{name}\n{name}\n")} | path())
    assert (found.env, found.hosts, found.num_hosts, found.notes) == (path(), "", 1, ())


def test_hosts_that_nothing_reaches_are_refused(path, listed):
    with pytest.raises(ValueError, match=r"^PBS_NODEFILE names the hosts a, b, but ssh, .* type unset PBS_NODEFILE$"):
        find_allocation({"PBS_NODEFILE": listed("a\nb\n")} | path())


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("PBS_NODEFILE", "/nowhere/1.server", "No such file or directory"),
        ("PE_HOSTFILE", "a\nb\n", "it is no list of hosts"),
        ("PE_HOSTFILE", "a two\n", "it is no list of hosts"),
        ("PBS_NODEFILE", "\n\n", "it is no list of hosts"),
        ("LSB_MCPU_HOSTS", "a 2 b", "it is no list of hosts"),
    ],
)
def test_what_is_no_list_of_hosts_is_told_and_not_used(path, listed, variable, value, why):
    value = listed(value) if "\n" in value else value
    found = find_allocation({variable: value} | path())
    (note,) = found.notes
    assert note.startswith(f"{variable}={value} is not used ({why}")
    assert note.endswith("): all ranks start on this host")
    assert (found.env, found.hosts) == (path(), "")
