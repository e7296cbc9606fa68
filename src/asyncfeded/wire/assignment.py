"""On which worker a client is trained, and where it moves when that worker is given up."""


class Assignment:
    """Client i lives on worker i modulo the number of workers, so that its data lies on one rank, unless it has to move.

    Args:
        num_workers: number of workers.
        num_clients: number of clients.
        moving: whether the clients of a worker that is lost move to the others.

    Attributes:
        lost: workers that are given up.
        silent: those of them who may come back.
    """

    def __init__(self, num_workers: int, num_clients: int, moving: bool) -> None:
        self._num_workers, self._num_clients, self.moving = num_workers, num_clients, moving
        self._moved: dict[int, int] = {}
        self.lost: set[int] = set()
        self.silent: set[int] = set()

    def of(self, client: int) -> int:
        """The worker of a client; one that is lost only where nobody else can train it."""
        worker = self._moved.get(client, client % self._num_workers)
        if worker in self.lost and self.can_move:
            workers = [self._moved.get(other, other % self._num_workers) for other in range(self._num_clients)]
            worker = min(sorted(set(range(self._num_workers)) - self.lost), key=workers.count)
            self._moved[client] = worker
        return worker

    @property
    def can_move(self) -> bool:
        """Whether clients of a lost worker find another."""
        return self.moving and len(self.lost) < self._num_workers

    def stranded(self, worker: int) -> tuple[int, ...]:
        """The clients of a lost worker whom nobody trains now: with the last worker, all that are left."""
        if self.can_move:
            return ()
        return tuple(client for client in range(self._num_clients) if self.of(client) == worker or self.moving)
