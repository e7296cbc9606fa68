"""Trains while killing and stopping the whole job at random instants, and compares the end with the undisturbed run's.

The run is launch/punish.toml. When it has reached its end a next one begins, until the time is over; the last one then goes
on to its end undisturbed. A life is one start of the program, with a number of ranks drawn for it; the instant at which it
ends is drawn too, also before the folder of the run is made, before its first update and after its last. Every process of a
job gets SIGKILL, in any order, the mpiexec too; or the mpiexec or every process is asked to stop or to write a checkpoint.
None of another job is. The next life resumes, or trains in the same folder where the run had not begun.
"""

import argparse
import ctypes
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from asyncfeded.run import RESUMABLE
from asyncfeded.store import checkpoint, record

PR_SET_CHILD_SUBREAPER = 36
RANKS = (2, 3)
STOPS = (signal.SIGTERM, signal.SIGINT)
PATIENCE_S = 900.0
"""For a job that is not to be killed; one that takes longer hangs."""
PROGRAM = [str(Path(sys.executable).with_name("asyncfeded"))]
TOML = Path(__file__).with_name("punish.toml")


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def shared_memory(pids: list[int]) -> set[Path]:
    """What processes have mapped of /dev/shm: ranks that are killed leave it behind."""
    found: set[Path] = set()
    for pid in pids:
        with suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text()
            found |= {Path(name) for name in re.findall(r"/dev/shm/(?:mpich_shm_|sm_segment\.)\S+", maps)}
    return found


def kill_all(rng: random.Random) -> None:
    """SIGKILL to every process that descends from this one, until there is none, and their shared memory removed."""
    segments: set[Path] = set()
    while pids := descendants(os.getpid()):
        segments |= shared_memory(pids)
        for pid in rng.sample(pids, len(pids)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        time.sleep(0.001)
    for path in segments:
        path.unlink(missing_ok=True)


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """`asyncfeded ARGUMENTS`, its output appended to a file."""
    with log.open("ab") as out:
        return subprocess.Popen([*PROGRAM, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=out)


def size(path: Path) -> int:
    """In bytes; of no file 0."""
    return path.stat().st_size if path.exists() else 0


class Blow(NamedTuple):
    """How and when a life ends."""

    number: signal.Signals
    """SIGKILL goes to every process; another signal to all or to the launcher alone."""
    after: str
    """Of `moments`; from then on it takes `seconds`."""
    seconds: float


def moments(run_dir: Path) -> dict[str, Callable[[], bool]]:
    """What a life that begins now comes to, by name."""
    log = run_dir / "log.txt"
    before = size(log)
    return {
        "start": lambda: True,
        "folder": run_dir.exists,
        "record": (run_dir / "record.h5").exists,
        "training": lambda: size(log) > before,
        "end": lambda: size(log) > before and b" stopped: " in log.read_bytes()[before:],
    }


def live(command: list[str], run_dir: Path, blow: Blow, rng: random.Random) -> tuple[int | None, str]:
    """One life.

    Returns:
        Its status, None if it was ended as it should be; and what it did last, by what it left.
    """
    began, comes = time.time(), moments(run_dir)
    process = start(command, run_dir.with_suffix(".out"))
    while process.poll() is None and not comes[blow.after]() and time.time() < began + PATIENCE_S:
        time.sleep(0.001)
    try:
        status = process.wait(blow.seconds)
    except subprocess.TimeoutExpired:
        status = None
        if blow.number != signal.SIGKILL:
            for pid in [process.pid] if rng.random() < 0.5 else descendants(os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(pid, blow.number)
        if blow.number in STOPS:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(PATIENCE_S)
            if status == RESUMABLE or not comes["training"]():  # before it listens, a signal ends it as it ends any program
                status = None
    kill_all(rng)
    if not comes["training"]():
        return status, "starting"
    if comes["end"]():
        return status, "ending"
    writing = any(part.stat().st_mtime >= began for part in run_dir.glob("checkpoints/*.part"))
    return status, "writing a checkpoint" if writing else "training"


def end(run_dir: Path) -> tuple[str, int, list[bytes]]:
    """What must be the same to the bit: hash of the model, updates, and all of the record, row by row."""
    result = json.loads((run_dir / "result.json").read_text())
    there = record.read_record(run_dir)
    columns = [there.updates[name].tobytes() for name in there.updates.dtype.names or () if name not in record.MEASURED]
    return result["model_sha256"], result["updates"], [*columns, there.evaluations.tobytes()]


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float, help="how long to kill")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the instants and the numbers of ranks")
    parser.add_argument("--folder", type=Path, default=Path("runs") / time.strftime("punish-%Y-%m-%d-%H%M%S"))
    parser.add_argument("overrides", nargs="*", help="section.key=value for launch/punish.toml")
    given = parser.parse_intermixed_args()
    rng, folder = random.Random(given.seed), given.folder
    # A process whose parent was killed becomes a child of this one, and so is found.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # What a shell starts in the background ignores SIGINT, and so would the jobs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder.mkdir(parents=True)
    print(f"seed {given.seed}, {folder}", flush=True)

    def train(run_dir: Path) -> list[str]:
        return ["train", str(TOML), *given.overrides, f"run_dir={run_dir}", "--ranks", str(rng.choice(RANKS))]

    began = time.monotonic()
    never = Blow(signal.SIGKILL, "start", PATIENCE_S)
    if live(train(folder / "whole"), folder / "whole", never, rng)[0] != 0:
        print(f"the undisturbed run failed; see {folder / 'whole.out'}", file=sys.stderr)
        return 1
    expected = end(folder / "whole")
    train_s = json.loads((folder / "whole" / "result.json").read_text())["wall_s"]
    start_s = time.monotonic() - began - train_s
    print(f"undisturbed: {expected[1]} updates in {train_s} s, sha256 {expected[0]}", flush=True)

    kills: Counter[str] = Counter()
    lives: Counter[str] = Counter()
    signals: Counter[str] = Counter()
    runs, equal, damaged = 0, 0, 0
    deadline = time.monotonic() + given.seconds
    while time.monotonic() < deadline:
        run_dir, status, undisturbed = folder / f"{runs}", None, False
        while status is None and not undisturbed:
            kept = any(run_dir.glob("checkpoints/checkpoint-*.h5"))
            if kept or ((run_dir / "config.toml").exists() and rng.random() < 0.5):
                lives["resumed"] += 1
                damaged += len(checkpoint.newest(run_dir).damaged) if kept else 0
                command = ["resume", str(run_dir), "--ranks", str(rng.choice(RANKS))]
            else:  # new, or it had not begun
                lives["begun"] += 1
                command = train(run_dir)
            undisturbed = time.monotonic() > deadline
            number = rng.choice([*STOPS, signal.SIGUSR1, *[signal.SIGKILL] * 5])
            after = rng.choice(["start", "folder", "record", *["training"] * 6, "end"]) if kills else "training"
            longest_s = {"training": 0.2 * train_s, "end": 0.1 * start_s}.get(after, start_s)
            blow = never if undisturbed else Blow(number, after, rng.uniform(0, longest_s))
            status, doing = live(command, run_dir, blow, rng)
            if status is None:
                kills[doing] += 1
                signals[number.name] += 1
        runs += 1
        if status == 0 and end(run_dir) == expected:
            equal += 1
            shutil.rmtree(run_dir)
            run_dir.with_suffix(".out").unlink()
        else:
            print(f"{run_dir}: not the end of the undisturbed run, status {status}; see {run_dir}.out", file=sys.stderr)
        print(f"{sum(kills.values())} kills, {lives['resumed']} resumes, {equal} of {runs} runs equal", flush=True)
    figures = {
        "seed": given.seed,
        "kills": sum(kills.values()),
        "kills_while": dict(sorted(kills.items())),
        "signals": dict(sorted(signals.items())),
        "begun": lives["begun"],
        "resumed": lives["resumed"],
        "checkpoints_damaged": damaged,
        "runs": runs,
        "runs_equal": equal,
        "updates_of_a_run": expected[1],
        "model_sha256": expected[0],
    }
    print(json.dumps(figures))
    return int(equal < runs or damaged > 0)


if __name__ == "__main__":
    sys.exit(main())
