"""A scaling study on a cluster: its runs as Slurm arrays, one for each number of nodes."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from asyncfeded.studies.jobs import is_done
from asyncfeded.studies.scaling.grid import ScalingRun

SCRIPT = Path("slurm/scaling.sbatch")


def submit(runs: Sequence[ScalingRun], file: Path, out: Path, overrides: Sequence[str], options: str) -> list[str]:
    """Submit the missing runs: an array for each number of nodes and of ranks on a node.

    Args:
        runs: all runs of the study; the task id in an array is the index of a run in this list.
        file: file of the grid.
        out: folder of the study.
        overrides: the overrides of the grid.
        options: for sbatch, such as `--partition=cpu --time=10`.

    Returns:
        For each array a sentence with the id of its job.

    Raises:
        ValueError: the script is not in the current folder, or sbatch refuses.
    """
    if not SCRIPT.exists():
        raise ValueError(f"{SCRIPT}: no such file in {Path.cwd()}; submit from the folder of the source tree")
    names: set[str] = set()
    arrays: dict[tuple[int, int], list[int]] = {}
    for index, run in enumerate(runs):
        if run.name not in names and not is_done(out / "runs", run.name):
            names.add(run.name)
            arrays.setdefault((run.nodes, run.ranks_per_node or run.ranks), []).append(index)
    sentences = []
    for (nodes, ranks), indices in sorted(arrays.items()):
        size = [f"--nodes={nodes}", f"--ntasks-per-node={ranks}", f"--array={','.join(map(str, indices))}"]
        command = ["sbatch", "--parsable", *shlex.split(options), *size, str(SCRIPT), str(file), str(out), *overrides]
        try:
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise ValueError(f"cannot run sbatch: {error.strerror}; --slurm is for a machine with Slurm") from None
        if done.returncode:
            raise ValueError(f"{shlex.join(command)} failed: {done.stderr.strip()}")
        job = done.stdout.strip().partition(";")[0]
        sentences.append(f"job {job}: {len(indices)} runs on {nodes} node(s) with {ranks} ranks each")
    return sentences


def nodes_here() -> int:
    """Number of nodes of the allocation of this process; 1 outside an allocation."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
