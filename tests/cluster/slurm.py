"""A real Slurm on this machine: a controller and four nodes, as ordinary processes in a folder of their own.

No systemd, no cgroups, no munge, no root: Slurm's own daemons, asked to believe that this machine is four. Node n1 has no
GPU, n2 to n4 have two each, which are /dev/null and /dev/zero: Slurm deals them out, and torch finds none.
"""

import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

NODES = 4
CPUS = 4
"""Of each node, whatever the machine has."""

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
# A job that is requeued waits for so long (120 s by default).
AuthInfo=cred_expire=5
# The memory that the ranks of a job share is named after the job: another Slurm of this machine must have other numbers.
FirstJobId={first_job}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
# PMIx keeps its sockets here, which must not be another node's.
TmpFS={folder}/%n.tmp
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
# More processors than there are.
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
GresTypes=gpu
NodeName=DEFAULT CPUs={cpus} CoresPerSocket={cpus} RealMemory=4000
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={cpu_node}
NodeName=n[2-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{gpu_nodes}] Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES State=UP
PartitionName=cpu Nodes=n1 State=UP
PartitionName=gpu Nodes=n[2-{nodes}] State=UP
"""

OVER = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")
"""States of a job that is over; others are passed through, such as SIGNALING for a moment."""


class Ended(NamedTuple):
    """A job that is over."""

    state: str
    """Such as COMPLETED or TIMEOUT."""
    status: int
    """Exit status of its script."""
    restarts: int
    said: str
    """What its script and its steps wrote."""

    def __str__(self):
        return f"{self.state}, status {self.status}, {self.restarts} restarts\n{self.said}"


class Slurm:
    """Started on entry, ended on exit with all that its jobs have started.

    Attributes:
        env: for sbatch, srun and the others.
    """

    def __init__(self):
        self._daemons = []

    def __enter__(self):
        # A short path: the daemons make sockets in it, whose names may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.env = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._lock, port = free_ports(NODES + 2)
        self._configure(port)
        try:
            self._start("slurmctld")
            for node in range(1, NODES + 1):
                (self.folder / f"n{node}.tmp").mkdir()
                self._start("slurmd", "-N", f"n{node}")
            self._wait(self._idle)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        with suppress(AssertionError, subprocess.TimeoutExpired):
            self.cancel()
        for daemon in reversed(self._daemons):
            end(daemon)
        for pid in self.left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command, cwd=None, env=None):
        """What a command of Slurm says; it must succeed."""
        done = subprocess.run(
            list(map(str, command)), env=self.env | (env or {}), cwd=cwd, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}"
        return done.stdout

    def submit(self, cwd, *arguments, env=None):
        """`sbatch ARGUMENTS` in a folder; returns the job's number."""
        return int(self.run("sbatch", "--parsable", *arguments, cwd=cwd, env=env).split(";")[0])

    def job(self, number):
        """All that Slurm knows of a job, as {name: value}; of a heterogeneous one, of its first component."""
        words = self.run("scontrol", "show", "-o", "job", number).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def until(self, number, what, seconds=120):
        """Wait until something is so, while a job runs or waits."""

        def so():
            over = self.job(number)["JobState"] in OVER
            if what():
                return True
            assert not over, self.ended(number)
            return False

        self._wait(so, seconds, lambda: self.said(number))

    def ended(self, number, seconds=180):
        """Wait for the end of a job."""
        self._wait(lambda: self.job(number)["JobState"] in OVER, seconds, lambda: self.said(number))
        job = self.job(number)
        return Ended(job["JobState"], int(job["ExitCode"].split(":")[0]), int(job["Restarts"]), self.said(number))

    def cancel(self):
        """End all jobs that there are."""
        if self.run("squeue", "-h"):
            self.run("scancel", "--signal=KILL", "--full", "--user", getpass.getuser())
            self.run("scancel", "--user", getpass.getuser())
            self._wait(lambda: not self.run("squeue", "-h"))

    def until_free(self):
        """Wait until no job has a process left: one that is cancelled has KillWait to end."""
        self._wait(self._idle)

    def said(self, number):
        """What a job has written."""
        path = Path(self.job(number)["StdOut"])
        return path.read_text() if path.exists() else ""

    def left(self):
        """Processes that carry the name of this Slurm in their environment."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if int(path.parent.name) != os.getpid() and mark in path.read_bytes().split(b"\0"):
                    yield int(path.parent.name)

    def _configure(self, port):
        nodes = f"{port + 3}-{port + NODES + 1}"
        config = CONFIG.format(
            first_job=random.randrange(1, 2**24),
            host=socket.gethostname().split(".")[0], port=port + 1, user=getpass.getuser(), folder=self.folder,
            nodes=NODES, cpus=CPUS, cpu_node=port + 2, gpu_nodes=nodes,
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(config)
        gpus = [f"NodeName=n[2-{NODES}] Name=gpu File={path}\n" for path in ("/dev/null", "/dev/zero")]
        (self.folder / "gres.conf").write_text("".join(gpus))
        # Named, it is not looked for: where no cgroups are mounted, slurmd would not start.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "state").mkdir()

    def _start(self, name, *arguments):
        path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
        with (self.folder / f"{name}{''.join(arguments)}.log").open("w") as log:
            # Its parent's end, in whatever way, is its own.
            command = ["setpriv", "--pdeathsig", "TERM", path, "-D", *arguments]
            self._daemons.append(subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def _wait(self, what, seconds=100, said=lambda: ""):
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"not within {seconds} s\n{said()}\n{self._logs()}"
            time.sleep(0.1)

    def _idle(self):
        """Whether all nodes are there and free."""
        said = subprocess.run(["sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D"], env=self.env, capture_output=True)
        return said.stdout.strip() == str(NODES).encode()

    def _logs(self):
        return "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))


def free_ports(count):
    """The first of so many ports that nobody else asks for: a socket to hold, and the port that it is bound to.

    The port held stands for those after it. Below 32768 no outgoing connection takes one.
    """
    for port in range(17000, 32000, 2 * count):
        held = socket.socket()
        try:
            held.bind(("127.0.0.1", port))
        except OSError:
            held.close()
        else:
            return held, port
    raise AssertionError("no free ports from 17000 to 32000")


def end(process):
    """By SIGTERM, and by SIGKILL where that does not do."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
