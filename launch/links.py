"""Runs an asyncfeded command on hosts of its own, whose links to one switch are held to a rate. For root, under MPICH.

    .venv/bin/python launch/links.py 1000 1,1,1,1,2,2,2,2 bench servers --params 25000000 --servers 4 --wait yield

The rate is in Mbit/s, for each direction; the list says how many ranks each host has. Ranks are dealt in its order: the
first ones are the server. The hosts are network namespaces of this machine (tests/cluster/hosts.py): messages between them
pass through TCP and a queue of the kernel, and cores and memory are those of this machine. Each host believes that all cores
are its own: `--wait yield` keeps ranks from spinning on the same ones.
"""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from cluster.hosts import Hosts


def main(mbit: str, ranks: str, *command: str) -> int:
    """Make the hosts, run the command on them, and end them. Returns its exit status."""
    counts = [int(count) for count in ranks.split(",")]
    names = [f"host{number}" for number, _ in enumerate(counts, 1)]
    slots = ",".join(f"{name}:{count}" for name, count in zip(names, counts, strict=True))
    binaries = Path(sys.executable).parent
    with Hosts(names) as hosts:
        for name in names:
            # What passes in 10 ms may pass at once; more delays answers.
            hosts.thin(name, f"{mbit}mbit", burst=f"{1250 * int(mbit)}", latency="20ms")
        mpiexec = [binaries / "mpiexec", "-launcher", "ssh", "-launcher-exec", hosts.remote, "-hosts", slots]
        # MPICH would find the memory that these hosts share.
        line = [*mpiexec, "-n", sum(counts), "-genv", "UCX_TLS", "tcp,self", binaries / "asyncfeded", *command]
        return subprocess.run([hosts.remote, names[0], f"cd {Path.cwd()} && {shlex.join(map(str, line))}"]).returncode


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the hosts end too
    sys.exit(main(*sys.argv[1:]))
