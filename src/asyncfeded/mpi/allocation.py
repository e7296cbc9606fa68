"""Where mpiexec may start ranks: in the job of Slurm, or on the hosts that PBS, LSF or Grid Engine name.

A variable may be left over from a job that has ended, or stand in a container from which no other host is reached. mpiexec
would then wait for ever, so what it is given is tried here.
"""

import os
import re
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Allocation(NamedTuple):
    """What mpiexec is told of the hosts."""

    env: dict[str, str]
    """Its environment."""
    slots: int = 0
    """Ranks that the job has room for; 0: nobody says."""
    hosts: str = ""
    """Hosts and slots as `a:4,b:4`; empty: this host alone, or those of the Slurm job."""
    num_hosts: int = 1
    notes: tuple[str, ...] = ()
    """Sentences for the user: what is not used, and why."""


HOST_FILES = ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE", "PE_HOSTFILE", "OAR_NODEFILE", "COBALT_NODEFILE")
"""Variables that name a file with the hosts of a job."""
HOST_LISTS = ("LSB_MCPU_HOSTS", "LSB_HOSTS")
"""Variables with the hosts themselves."""
AGENTS = {"LSB": ("blaunch", "lsf"), "PE": ("qrsh -inherit -nostdin -V", "sge")}
"""By the beginning of a variable: the command that starts a process on a host of the job, and hydra's name for it."""


def find_allocation(env: Mapping[str, str] = os.environ) -> Allocation:
    """The hosts that mpiexec may use.

    Raises:
        ValueError: the variables name several hosts that cannot be reached; the message says what to unset.
    """
    if env.get("SLURM_JOB_ID") or env.get("SLURM_JOBID"):
        found = _in_slurm(env)
        return found if found.slots else _on_hosts(found)
    return _on_hosts(Allocation(_without_slurm(env)))


def _in_slurm(env: Mapping[str, str]) -> Allocation:
    """The job of Slurm that the variables name; without slots if there is no such job."""
    job = env.get("SLURM_JOB_ID") or env["SLURM_JOBID"]
    nodes = _number(env.get("SLURM_JOB_NUM_NODES") or env.get("SLURM_NNODES"))
    if trouble := _trouble(job, env):
        if nodes > 1:
            raise ValueError(
                f"SLURM_JOB_ID={job} names a job on {nodes} nodes, but {trouble}; to start all ranks on this host, type "
                f"unset SLURM_JOB_ID SLURM_JOBID"
            )
        return Allocation(_without_slurm(env), notes=(f"SLURM_JOB_ID={job}, but {trouble}: all ranks start on this host",))
    given = dict(env) | {"SLURM_OVERLAP": "1"}  # a step that waits for the cores of the step in which it was typed hangs
    tasks = env.get("SLURM_TASKS_PER_NODE", "1")
    if "SLURM_STEP_ID" in env and "SLURM_JOB_CPUS_PER_NODE" in env:  # of the step; the ranks may have the whole job
        cpus, tasks = _number(env.get("SLURM_CPUS_PER_TASK")), env["SLURM_JOB_CPUS_PER_NODE"]
        tasks = re.sub(r"(\d+)(\(x\d+\))?", lambda node: f"{max(1, int(node[1]) // cpus)}{node[2] or ''}", tasks)
        given = {name: value for name, value in given.items() if not re.match(r"SLURM_(STEP|NTASKS|NPROCS)", name)}
        given |= {"SLURM_TASKS_PER_NODE": tasks, "SLURM_NNODES": str(nodes)}
        given["SLURM_NODELIST"] = env.get("SLURM_JOB_NODELIST", env.get("SLURM_NODELIST", ""))
    slots = sum(int(number) * int(times or 1) for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks))
    return Allocation(given, slots, num_hosts=nodes)


def _number(value: str | None) -> int:
    return int(value) if value and value.isdigit() and int(value) else 1


def _trouble(job: str, env: Mapping[str, str]) -> str:
    """Why no process can be started in a job of Slurm; empty if one can."""
    if not shutil.which("srun", path=env.get("PATH", "")):
        return "srun is not in PATH"
    ask = ["squeue", "--noheader", "--jobs", job, "--format", "%T %U"]
    try:
        asked = subprocess.run(ask, env=dict(env), capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Slurm does not answer ({error})"
    if asked.returncode:
        return f"squeue says: {(asked.stderr.strip().splitlines() or ['nothing'])[-1]}"
    running = [line.split() for line in asked.stdout.splitlines()]
    if ["RUNNING", str(os.getuid())] not in running:
        return "it is no running job of yours"
    return ""


def _without_slurm(env: Mapping[str, str]) -> dict[str, str]:
    """The environment in which mpiexec takes no job of Slurm for its own."""
    return {name: value for name, value in env.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}


def _on_hosts(found: Allocation) -> Allocation:
    """The hosts that another batch system names, if one does."""
    env = found.env
    variable = next((name for name in HOST_FILES + HOST_LISTS if env.get(name)), "")
    if not variable:
        return found
    bare = {name: value for name, value in env.items() if name not in HOST_FILES + HOST_LISTS}
    try:
        hosts = _hosts(variable, env[variable])
    except (OSError, ValueError, IndexError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no list of hosts"
        note = f"{variable}={env[variable]} is not used ({why}): all ranks start on this host"
        return found._replace(env=bare, notes=(*found.notes, note))
    if all(map(_is_here, hosts)):
        return found._replace(env=bare, slots=sum(hosts.values()))
    agent, launcher = AGENTS.get(variable.partition("_")[0], ("ssh", "ssh"))
    if not shutil.which(agent.split()[0], path=env.get("PATH", "")):
        agent, launcher = "ssh", "ssh"
    agent = env.get("HYDRA_LAUNCHER_EXEC") or env.get("PRTE_MCA_plm_ssh_agent") or agent
    if not shutil.which(agent.split()[0], path=env.get("PATH", "")):
        raise ValueError(
            f"{variable} names the hosts {', '.join(list(hosts)[:4])}{', ...' if len(hosts) > 4 else ''}, but {agent}, "
            f"which would start ranks there, is not in PATH; to start all ranks on this host, type unset {variable}"
        )
    env = {"HYDRA_LAUNCHER": launcher, "PRTE_MCA_plm_ssh_agent": agent} | env
    listed = ",".join(f"{host}:{slots}" for host, slots in hosts.items())
    return found._replace(env=env, slots=sum(hosts.values()), hosts=listed, num_hosts=len(hosts))


def _hosts(variable: str, value: str) -> Counter[str]:
    """Slots by host, in the order of the list.

    Raises:
        OSError, ValueError, IndexError: there is no such file, or it is no list of hosts.
    """
    hosts: Counter[str] = Counter()
    if variable == "LSB_MCPU_HOSTS":  # a 4 b 4
        words = value.split()
        rows = list(zip(words[::2], words[1::2], strict=True))
    elif variable == "LSB_HOSTS":  # a a b b
        rows = [(host, "1") for host in value.split()]
    else:
        lines = [line.split() for line in Path(value).read_text().splitlines() if line.strip()]
        rows = [(line[0], line[1] if variable == "PE_HOSTFILE" else "1") for line in lines]
    for host, slots in rows:
        hosts[host] += int(slots)
    if not hosts:
        raise ValueError(f"{variable} names no host")
    return hosts


def _is_here(host: str) -> bool:
    return host.split(".")[0] in ("localhost", "127", socket.gethostname().split(".")[0])
