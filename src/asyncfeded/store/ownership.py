"""Who owns a folder: of all jobs on all hosts, one at most writes into it.

The owner stands in a small file. Only one process can make it (O_EXCL), on file systems without locks too, and nobody reads,
writes or removes anything else in the folder before. The owner touches the file every BEAT_S, and removes it at the end.

A job that died leaves the file behind. That its owner is dead is known

* at once, where the owner ran under the same kernel and in the same PID namespace: the system knows its processes, and when
  each was started, so that a number used again is no mistake;
* elsewhere (another host, another container, a host that was started anew) after SILENCE_S in which the file was watched and
  nobody touched it. The watcher's own clock counts: clocks of hosts differ.

The file of a dead owner is replaced by its successor. Who may do that is decided in the same way, by a file
`<file>.after-<its token>`: two jobs that find the same dead owner cannot both follow it.

An owner that was taken for dead (a host that slept), or whose folder was removed, renamed or copied back, finds another file
or none, and writes nothing more (`check`).
"""

import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

NAME = ".asyncfeded-owner"
"""Name of the file in the folder that is owned."""
FIELDS = {"host": str, "pid": int, "started": str, "kernel": str, "token": str, "inode": int, "since": str}
"""What the file says, as JSON."""
BEAT_S = 3.0
SILENCE_S = 45.0
"""A rank that loads data may hold the interpreter's lock for seconds, and a file server may be slow for as long."""
ENDING_S = 3.0
"""A process that was killed runs for a while yet: it is seen for so long before it counts as alive."""
POLL_S = 0.2


class OwnedError(ValueError):
    """Another process owns it."""


class LostError(OSError):
    """What was owned is not owned any more."""

    def __str__(self) -> str:
        return str(self.strerror)


class Ownership:
    """Owns what a file stands for, from here until `release`, or until this process is dead.

    Args:
        path: the file that names the owner; the folder must exist.
        what: what is owned, for messages.
        say: shows a sentence before a wait of SILENCE_S.

    Raises:
        OwnedError: another process owns it.
        OSError: the file cannot be made, for example in a folder that is read-only.
    """

    def __init__(self, path: Path, what: str, say: Callable[[str], None]) -> None:
        self._path, self._what = path, what
        self._token = _take(path, what, say)
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="ownership", daemon=True).start()

    def check(self) -> None:
        """Find out whether this is still owned. Any thread may call this; it costs two system calls on a small file.

        Raises:
            LostError: it is not: it was removed, renamed, or taken by another process.
            OSError: the file cannot be read now.
        """
        if owner := _owner(self._path):
            if owner.get("token") == self._token:
                return
            by = f"{_who(owner)} has taken it"
        else:
            by = "it was removed or renamed"
        raise LostError(errno.ESTALE, f"{self._what} is not this job's any more: {by}; nothing more is written there")

    def release(self) -> None:
        """Own it no longer."""
        self._ended.set()
        with suppress(OSError):
            self.check()
            self._path.unlink()

    def __enter__(self) -> "Ownership":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with suppress(OSError):  # a file server may be away for a while; whether the file is ours, `check` tells
                self.check()
                os.utime(self._path)


class Watched:
    """Whether the owner of a file is alive, for one who only looks. It writes nothing.

    Args:
        path: the file that names the owner.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._sign, self._since = path, _sign(path), time.monotonic()

    def is_alive(self) -> bool:
        """False: there is no owner, its process has ended, or it has been silent for SILENCE_S while this looked."""
        if (owner := _owner(self._path)) is None:
            return False
        if owner and owner["kernel"] == _kernel() and (started := _started(owner["pid"])) is not None:
            return bool(started == owner["started"])
        if (sign := _sign(self._path)) != self._sign:
            self._sign, self._since = sign, time.monotonic()
        return time.monotonic() - self._since < SILENCE_S


def _take(path: Path, what: str, say: Callable[[str], None]) -> str:
    """Become the owner. Returns the token that only this owner has."""
    token = uuid.uuid4().hex
    while True:
        with suppress(FileExistsError):
            _write(path, token)
            return token
        sign = _sign(path)  # before what it says, which its owner may just be writing
        if (held := _owner(path)) is None:
            continue  # released meanwhile
        if _is_alive(path, held, sign, what, say):
            raise OwnedError(f"{what} is in use by {_who(held)}; wait for its end, or stop it")
        right = path.with_name(f"{path.name}.after-{held.get('token', '')}")
        _take(right, what, say)
        try:
            if _owner(path) == held:
                successor = path.with_name(f"{path.name}.{token}")
                _write(successor, token)
                successor.replace(path)
                return token
        finally:
            right.unlink(missing_ok=True)


def _write(path: Path, token: str) -> None:
    """Make the file, which must not exist, with this process as the owner."""
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        process = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()) or "",
            "kernel": _kernel(),
        }
        origin = {"token": token, "inode": os.fstat(file).st_ino, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        text = (json.dumps(process | origin) + "\n").encode()
        if os.write(file, text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(file)


def _owner(path: Path) -> dict[str, Any] | None:
    """What the file says; nothing while it is being made, or if a disk has lost it. None: there is no file."""
    try:
        owner = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) and {name: type(value) for name, value in owner.items()} == FIELDS else {}


def _who(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} of {owner['host']} since {owner['since']}" if owner else "another process"


def _is_alive(path: Path, owner: dict[str, Any], first: tuple[int, ...], what: str, say: Callable[[str], None]) -> bool:
    """Whether the owner that a file names is alive; `first` is the sign of the file when it was read."""
    began, told = time.monotonic(), False
    here = bool(owner) and owner["kernel"] == _kernel()
    while (waited := time.monotonic() - began) < SILENCE_S:
        if here and (started := _started(owner["pid"])) is not None:
            if started != owner["started"]:
                return False
            if _sign(path)[:1] != (owner["inode"],):
                here = False  # the folder was copied, and this file with it, or the owner has given it up
            elif waited > ENDING_S:
                return True
        elif _sign(path) != first:
            return _owner(path) == owner  # it was touched; another owner is judged anew
        elif waited > 1 and not told:
            say(f"{what} may be in use by {_who(owner)}; waiting {SILENCE_S:.0f} s for a sign of life")
            told = True
        time.sleep(POLL_S)
    return False


def _sign(path: Path) -> tuple[int, ...]:
    """What changes when the owner touches its file. Opening it makes a network file system ask its server."""
    with suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
        now = os.fstat(file.fileno())
        return now.st_ino, now.st_mtime_ns, now.st_size
    return ()


def _kernel() -> str:
    """The kernel since its start, and the PID namespace of this process: where its number means something."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> str | None:
    """When a process was started, in ticks of its kernel; empty: it does not run; None: the system hides it."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            return None
        return ""  # it has just ended
    return "" if state in "ZX" else rest[18]
