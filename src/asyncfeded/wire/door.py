"""How a client that comes late finds a run, and what it says before MPI connects it: a socket that the run's folder names.

MPI can connect two jobs, but blocks the server while it does, and crashes it if the other side has died meanwhile. So all
that may take long or fail goes over the socket first, to a thread of the server: who comes, what both must agree on, which
client it is to be. It loads its data and tries everything, and is connected when nothing is left to do but to train. From
then on the open socket says that its process lives: the system closes it with the process, also after SIGKILL, on any host.

A message is a line of JSON. This file knows no MPI; open_wire.py connects.
"""

import json
import os
import queue
import secrets
import select
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

NAME = ".asyncfeded-door"
"""Name of the file in the run's folder that says where the server listens. Only its owner can read it: it has a password."""
GREETING_S = 10.0
"""Seconds within which somebody who has connected must say who it is."""
LONGEST = 1 << 20
"""Bytes of a line that the server reads."""
Words = dict[str, Any]


class Line:
    """One end of a conversation.

    Args:
        connected: the socket.
        longest: bytes of the longest line that is read.
    """

    def __init__(self, connected: socket.socket, longest: int = -1) -> None:
        self._socket, self._longest = connected, longest
        self._file = connected.makefile("rb")

    def say(self, **words: object) -> None:
        """Send a message, if there is still somebody to hear it."""
        with suppress(OSError):
            self._socket.sendall(json.dumps(words).encode() + b"\n")

    def hear(self, seconds: float | None = None) -> Words | None:
        """The next message; None if the other end is gone, says no such thing, or says nothing for so long."""
        try:
            self._socket.settimeout(seconds)
            words = json.loads(self._file.readline(self._longest))
        except (OSError, ValueError):
            return None
        return words if isinstance(words, dict) else None

    @property
    def is_open(self) -> bool:
        """Whether the other end has not gone."""
        try:
            readable, _, _ = select.select([self._socket], [], [], 0)
            return not readable or bool(self._socket.recv(1, socket.MSG_PEEK))
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        """End the conversation; whoever waits in `hear` gets None. Any thread may call this."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self._file.close()
        self._socket.close()


class Guest:
    """A client that comes, or has joined, as the server sees it.

    Attributes:
        client: which client it is.
        line: the conversation.
        where: where it runs, in words; known once it is ready.
    """

    def __init__(self, client: int, line: Line) -> None:
        self.client, self.line, self.where = client, line, ""


class News(NamedTuple):
    """What a guest did."""

    guest: Guest
    what: str
    """ready: it waits for its turn; connecting: it calls MPI now; gone: its process has ended, or the line is cut."""


class Door:
    """The server's side. `news` is for the thread that speaks MPI; the conversations have threads of their own.

    Args:
        path: the file that says where the door is.
        mpi: the MPI library in use.
        free: gives the clients that nobody trains, the first choice first. Any thread may call it.
        welcome: takes what somebody has said who wants to be a client, and gives what to tell it; raises ValueError if it
            cannot be one.
    """

    def __init__(self, path: Path, mpi: str, free: Callable[[], Iterable[int]], welcome: Callable[[Words], Words]) -> None:
        self._path, self._free, self._welcome = path, free, welcome
        self._password = secrets.token_hex(16)
        self._guests: dict[int, Guest] = {}  # by client: those who come, and those who are here
        self._lock = threading.Lock()
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._socket = socket.create_server(("", 0), backlog=100)
        about = {"host": socket.gethostname(), "port": self._socket.getsockname()[1], "password": self._password, "mpi": mpi}
        part = path.with_name(path.name + ".part")
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123, it sets the mode
            json.dump(about, file)
        part.replace(path)
        threading.Thread(target=self._open, name="door", daemon=True).start()

    def news(self) -> list[News]:
        """What has happened since the last call. Never waits."""
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(self._news.get_nowait())
        return found

    def close(self) -> None:
        """Let nobody in any more. Those who are here stay."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _open(self) -> None:
        while True:
            try:
                connected, _ = self._socket.accept()
            except OSError:  # the door is closed
                return
            threading.Thread(target=self._talk, args=(Line(connected, LONGEST),), name="guest", daemon=True).start()

    def _talk(self, line: Line) -> None:
        with line:
            asked = line.hear(GREETING_S)
            if not asked or not secrets.compare_digest(str(asked.get("password")), self._password):
                return
            if asked.get("ask") == "leave":
                line.say(**self._send_away(asked))
            else:
                self._receive(line, asked)

    def _send_away(self, asked: Words) -> Words:
        """Ask a client that has joined to leave after its round."""
        guests, client = dict(self._guests), asked.get("client", -1)
        if client < 0 and len(guests) == 1:
            client = next(iter(guests))
        if client in guests:
            guests[client].line.say(leave=True)
            return {"client": client}
        here = f"those that have are {sorted(guests)}" if guests else "nobody has joined"
        return {"refused": f"client {client} has not joined this run: {here}" if client >= 0 else f"name a client: {here}"}

    def _receive(self, line: Line, asked: Words) -> None:
        """Talk with somebody who wants to be a client, from the first word to the end of its process."""
        try:
            told = self._welcome(asked)
            guest = self._reserve(asked, line)
        except ValueError as error:
            line.say(refused=str(error))
            return
        try:
            line.say(client=guest.client, **told)
            if ready := line.hear():  # it has loaded its data, however long that takes
                guest.where = str(ready["where"])
                self._news.put(News(guest, "ready"))
                if line.hear():
                    self._news.put(News(guest, "connecting"))
                    while line.hear():
                        pass
        finally:
            with self._lock:
                del self._guests[guest.client]
            self._news.put(News(guest, "gone"))

    def _reserve(self, asked: Words, line: Line) -> Guest:
        """Choose the client that somebody is to be. Raises ValueError if there is none."""
        with self._lock:
            free = [client for client in self._free() if client not in self._guests]
            client = asked.get("client", -1)
            if client in free or (client < 0 and free):
                client = client if client >= 0 else free[0]
                guest = self._guests[client] = Guest(client, line)
                return guest
        others = f"nobody trains {free}" if free else "somebody trains each client of this run, or is about to"
        raise ValueError(
            f"client {client} is not free: {others}" if client >= 0 else f"{others}; `late` says how many may join"
        )


def knock(run_dir: Path, mpi: str = "") -> tuple[Line, str]:
    """Speak to the server of a run that goes on.

    Args:
        run_dir: folder of the run.
        mpi: the MPI library of a client that wants to join; empty: nobody wants to.

    Returns:
        The conversation, and the password that its first message must have.

    Raises:
        ValueError: there is no such server, it is another user's, or its MPI is another.
    """
    try:
        about = json.loads((run_dir / NAME).read_text())
        host, port, password, of_run = (about[name] for name in ("host", "port", "password", "mpi"))
        if mpi in ("", of_run):
            connected = socket.create_connection(("localhost" if host == socket.gethostname() else host, port), GREETING_S)
            return Line(connected), password
    except FileNotFoundError:
        raise ValueError(
            f"{run_dir}: no run goes on here that clients may join; one with late = 1 or more in its config may be joined"
        ) from None
    except PermissionError:
        raise ValueError(f"{run_dir}: this run is another user's; only who started it can let clients in or out") from None
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{run_dir}: the server of its run cannot be reached ({error}); the run has ended, or its host lets nobody in"
        ) from None
    raise ValueError(f"{run_dir}: its run uses {of_run}, and this is {mpi}; join with the same")


def send_away(run_dir: Path, client: int) -> int:
    """Ask a client that has joined a run to leave after its round.

    Args:
        run_dir: folder of the run.
        client: which one; -1: the only one that has joined.

    Returns:
        The client.

    Raises:
        ValueError: no run goes on there, or no such client has joined it.
    """
    line, password = knock(run_dir)
    with line:
        line.say(password=password, ask="leave", client=client)
        told = line.hear() or {"refused": "the server has not answered"}
    if "refused" in told:
        raise ValueError(f"{run_dir}: {told['refused']}")
    return int(told["client"])
