"""A Slurm and several hosts on this machine, for the tests of this folder."""

import shutil

import pytest

from cluster.slurm import Slurm


@pytest.fixture(scope="session")
def slurm():
    """Four nodes (cluster/slurm.py)."""
    for name in ("slurmctld", "slurmd", "srun", "setpriv"):
        if not shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin"):
            pytest.skip(f"no {name}; on Debian: apt-get install slurm-wlm libpmix-dev")
    with Slurm() as slurm:
        yield slurm
