"""A scaling study on a cluster: its runs as Slurm arrays, one for each number of nodes."""

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from asyncfeded.studies.jobs import is_done
from asyncfeded.studies.scaling.grid import ScalingRun

SCRIPT = Path("slurm/scaling.sbatch")
SUBMITTED = "submitted.json"
"""File in the folder of the study: for each run that was submitted its task, as <job>_<index>."""


def submit(runs: Sequence[ScalingRun], file: Path, out: Path, overrides: Sequence[str], options: str) -> list[str]:
    """Submit the missing runs that are not in the queue yet: an array for each number of nodes and of ranks on a node.

    Args:
        runs: all runs of the study; the task id in an array is the index of a run in this list.
        file: file of the grid.
        out: folder of the study.
        overrides: the overrides of the grid.
        options: for sbatch, such as `--partition=cpu --time=10`.

    Returns:
        For each array a sentence with the id of its job; one more if runs are queued or running already.

    Raises:
        ValueError: the script is not in the current folder, or Slurm refuses.
    """
    if not SCRIPT.exists():
        raise ValueError(f"{SCRIPT}: no such file in {Path.cwd()}; submit from the folder of the source tree")
    missing: dict[str, tuple[int, ScalingRun]] = {}
    for index, run in enumerate(runs):
        if not is_done(out / "runs", run.name):
            missing.setdefault(run.name, (index, run))
    submitted = {name: task for name, task in _submitted(out).items() if name in missing}
    queue = _slurm(["squeue", "--noheader", "--array", "--format=%F_%K"]).split() if submitted else []
    queued = {name: task for name, task in submitted.items() if task in queue}
    arrays: dict[tuple[int, int], dict[str, int]] = {}
    for name, (index, run) in missing.items():
        if name not in queued:
            arrays.setdefault((run.nodes, run.ranks_per_node or run.ranks), {})[name] = index
    sentences = []
    if queued:
        jobs = ", ".join(sorted({task.partition("_")[0] for task in queued.values()}))
        sentences.append(f"{len(queued)} runs are queued or running already: job {jobs}")
    for (nodes, ranks), indices in sorted(arrays.items()):
        size = [f"--nodes={nodes}", f"--ntasks-per-node={ranks}", f"--array={','.join(map(str, indices.values()))}"]
        command = ["sbatch", "--parsable", *shlex.split(options), *size, str(SCRIPT), str(file), str(out), *overrides]
        job = _slurm(command).strip().partition(";")[0]
        queued |= {name: f"{job}_{index}" for name, index in indices.items()}
        part = out / f"{SUBMITTED}.part"
        part.write_text(json.dumps(queued), encoding="utf-8")
        part.replace(out / SUBMITTED)
        sentences.append(f"job {job}: {len(indices)} runs on {nodes} node(s) with {ranks} ranks each")
    return sentences


def _submitted(out: Path) -> dict[str, str]:
    """The task of each run that was submitted from this folder, whatever became of it."""
    try:
        submitted: dict[str, str] = json.loads((out / SUBMITTED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{out / SUBMITTED}: cannot be read ({error}); remove it when no run is in the queue") from None
    return submitted


def _slurm(command: list[str]) -> str:
    """What a command of Slurm says. Raises ValueError if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ValueError(f"cannot run {command[0]}: {error.strerror}; --slurm is for a machine with Slurm") from None
    if done.returncode:
        raise ValueError(f"{shlex.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def nodes_here() -> int:
    """Number of nodes of the allocation of this process; 1 outside an allocation."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
