"""A real Grid Engine on hosts of this machine (cluster/hosts.py): a master and an execution daemon on each host.

They are ordinary processes in a folder of their own; nothing of Debian's own cell is touched.
"""

import subprocess
import time
from pathlib import Path

BOOTSTRAP = """admin_user none
default_domain none
ignore_fqdn true
spooling_method classic
spooling_lib libspoolc
spooling_params {cell};{folder}/master
binary_path /usr/lib/gridengine
qmaster_spool_dir {folder}/master
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
"""
SETTINGS = {
    # of the cell: root may have jobs, and hosts report soon that they are there
    "execd_spool_dir": "{folder}/spool",
    "min_uid": "0",
    "min_gid": "0",
    "load_report_time": "00:00:01",
    # of the scheduler
    "schedule_interval": "0:0:1",
    # of the parallel environment: one slot after the other from all hosts, and processes on them by `qrsh -inherit`
    "allocation_rule": "$round_robin",
    "control_slaves": "TRUE",
    # of the queue
    "hostlist": "{hosts}",
    "pe_list": "mpi",
    "slots": "4",
    "load_thresholds": "NONE",
    "tmpdir": "{folder}/tmp,[{last}={folder}/tmp-{last}]",  # the hosts have one file system
}
"""By name; qconf asks an editor for them, which writes each where it stands."""
ENVIRONMENT = {
    "SGE_CELL": "default",
    "SGE_ARCH": "lx-amd64",
    "SGE_QMASTER_PORT": "6444",
    "SGE_EXECD_PORT": "6445",
    "SGE_ND": "1",
}
"""SGE_ND: daemons stay in the foreground. The ports are those of the hosts, which nobody else has."""


class GridEngine:
    """Started on entry. On exit it ends with the hosts, whoever ends them.

    Args:
        hosts: Hosts, on the first of which the master runs.
    """

    def __init__(self, hosts):
        self.hosts, self.folder = hosts, hosts.folder / "sge"
        env = ENVIRONMENT | {"SGE_ROOT": str(self.folder), "EDITOR": str(self.folder / "edit.sh")}
        exports = " ".join(f"{name}={value}" for name, value in env.items())
        self._daemons = []
        self._shell = f"export {exports} PATH=/usr/lib/gridengine:$PATH LD_LIBRARY_PATH=/usr/lib/gridengine; "

    def __enter__(self):
        cell, names = self.folder / "default" / "common", self.hosts.names
        for folder in (cell, "master/job_scripts", "spool", "tmp", f"tmp-{names[-1]}"):
            (self.folder / folder).mkdir(parents=True)
        for name in ("bin", "lib", "utilbin", "util"):
            (self.folder / name).symlink_to(f"/var/lib/gridengine/{name}")
        (cell / "bootstrap").write_text(BOOTSTRAP.format(cell=cell, folder=self.folder))
        (cell / "act_qmaster").write_text(names[0])
        editor = self.folder / "edit.sh"
        settings = {
            name: value.format(folder=self.folder, hosts=" ".join(names), last=names[-1]) for name, value in SETTINGS.items()
        }
        editor.write_text(
            "#!/bin/sh\nsed -i " + " ".join(f"-e 's|^{n} .*|{n} {v}|'" for n, v in settings.items()) + ' "$1"\n'
        )
        editor.chmod(0o755)
        resources, configuration = Path("/usr/share/gridengine/util/resources"), self.folder / "configuration"
        configuration.write_text(Path("/usr/share/gridengine/default-configuration").read_text())
        subprocess.run([editor, configuration], check=True)
        self.on(
            f"spoolinit classic libspoolc '{cell};{self.folder}/master' init && spooldefaults configuration {configuration}"
        )
        self.on(f"spooldefaults complexes {resources}/centry && spooldefaults usersets {resources}/usersets")
        self.on("spooldefaults managers root")
        try:
            self._run_daemons()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _run_daemons(self):
        names = self.hosts.names
        self._start(names[0], "sge_qmaster")
        self._until(lambda: self._asked("qconf -sh").returncode == 0)
        self.on(f"qconf -ah {','.join(names)} -as {names[0]} && qconf -msconf")
        for name in names:
            self._start(name, "sge_execd")
        self._until(lambda: len(self._asked("qconf -sel").stdout.split()) == len(names))
        self.on("qconf -ap mpi && qconf -aq main.q")

    def __exit__(self, *error):
        self.hosts.end()
        for daemon in self._daemons:
            daemon.wait()

    def on(self, line):
        """A line of shell on the first host; it must succeed."""
        return self.hosts.on(self.hosts.names[0], self._shell + line)

    def run(self, folder, slots, line, seconds=100):
        """What a job of so many slots says, which begins in a folder, once it is over."""
        (folder / "job.sh").write_text(f"#!/bin/sh\n{line}\necho status $?\n")
        job = self.on(f"cd {folder} && qsub -terse -V -cwd -pe mpi {slots} -j y -o said job.sh").strip()
        self._until(lambda: self._asked(f"qstat -j {job}").returncode != 0, seconds)
        return (folder / "said").read_text()

    def _asked(self, line):
        return subprocess.run([self.hosts.remote, self.hosts.names[0], self._shell + line], capture_output=True, timeout=60)

    def _start(self, name, daemon):
        with (self.folder / f"{daemon}-{name}.log").open("w") as log:
            line = f"{self._shell} exec setpriv --pdeathsig KILL {daemon}"  # its parent's end, in whatever way, is its own
            daemon = subprocess.Popen([self.hosts.remote, name, line], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._daemons.append(daemon)

    def _until(self, what, seconds=60):
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self._logs()
            time.sleep(0.1)

    def _logs(self):
        return "\n".join(
            f"--- {path}\n{path.read_text()[-2000:]}"
            for path in self.folder.rglob("*")
            if path.name in ("messages", "said") or path.suffix == ".log"
        )
