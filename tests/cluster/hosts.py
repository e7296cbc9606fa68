"""Several hosts on this machine: each has a network, a name and an /etc/hosts of its own, and a wire to one switch.

A host is a process that holds the namespaces; nothing of them is left when it has ended. No names in /run/netns, no sshd:
`remote.sh HOST COMMAND` stands for ssh.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from cluster.slurm import end

REMOTE = """#!/bin/sh
# [options of ssh] HOST COMMAND...
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
exec nsenter --net --uts --mount --wd=/ --target "$(cat "FOLDER/$host.pid")" /bin/sh -c "$*"
"""


class Hosts:
    """Hosts of the names given, from entry to exit, with addresses 10.77.0.1, .2 and so on.

    Attributes:
        remote: path of the stand-in for ssh.
    """

    def __init__(self, names):
        self.names, self._holders = names, {}

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="hosts-"))
        self.remote = self.folder / "remote.sh"
        self.remote.write_text(REMOTE.replace("FOLDER", str(self.folder)))
        self.remote.chmod(0o755)
        lines = [f"10.77.0.{number} {name}\n" for number, name in enumerate(self.names, 1)]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        try:
            self._hold("switch")
            self._ip("switch", "link add switch type bridge")
            self._ip("switch", "link set switch up")
            for number, name in enumerate(self.names, 1):
                self._hold(name)
                # eth0 here is the port of the same number there.
                self._ip(name, f"link add eth0 type veth peer name port{number} netns {self._holders['switch'].pid}")
                self._ip("switch", f"link set port{number} master switch up")
                self._ip(name, f"addr add 10.77.0.{number}/24 dev eth0")
                self._ip(name, "link set eth0 up")
                self._ip(name, "link set lo up")
                self.on(name, f"hostname {name} && mount --bind {self.folder}/hosts /etc/hosts")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        self.end()
        for holder in self._holders.values():
            end(holder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def on(self, name, line):
        """A line of shell on a host; it must succeed."""
        done = subprocess.run([self.remote, name, line], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{name}: {line}: {done.stderr}"
        return done.stdout

    def thin(self, name, rate, burst="32kb", latency="200ms"):
        """Make the wire of a host thin in both directions; rate, burst and latency as tc reads them."""
        port = f"port{self.names.index(name) + 1}"
        for host, device in ((name, "eth0"), ("switch", port)):
            self.on(host, f"tc qdisc replace dev {device} root tbf rate {rate} burst {burst} latency {latency}")

    def cut(self, name):
        """Cut the wire of a host."""
        self._ip("switch", f"link set port{self.names.index(name) + 1} down")

    def end(self):
        """End all that runs on the hosts."""
        for pid in self._inside():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _inside(self):
        """Processes on the hosts, but for those that hold them."""
        holders = {holder.pid for holder in self._holders.values()}
        networks = {Path(f"/proc/{pid}/ns/net").readlink() for pid in holders}
        for path in Path("/proc").glob("[0-9]*/ns/net"):
            with suppress(OSError):
                if path.readlink() in networks and int(path.parts[2]) not in holders:
                    yield int(path.parts[2])

    def _hold(self, name):
        # Its parent's end, in whatever way, is its own; a signal to its parent's group is not.
        hold = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--uts", "--mount"]
        command = [*hold, "sh", "-c", "echo; exec sleep inf"]
        holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        self._holders[name] = holder
        (self.folder / f"{name}.pid").write_text(str(holder.pid))
        assert holder.stdout.read(1) == b"\n", f"{name}: no namespaces"
        holder.stdout.close()

    def _ip(self, name, words):
        self.on(name, f"ip {words}")
