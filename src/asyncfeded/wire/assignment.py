"""Which worker trains a client, and which worker takes the client over when the first one is given up."""


class Assignment:
    """Client i is trained on worker i modulo the number of workers, so that its data lies on one rank. It may have to move.

    Args:
        num_workers: number of workers.
        num_clients: number of clients.
        moving: whether the clients of a lost worker move to the other workers.

    Attributes:
        lost: workers that are given up, or are not there.
        absent: the lost workers that have not come yet, or have left.
        silent: the lost workers that may come back.
    """

    def __init__(self, num_workers: int, num_clients: int, moving: bool) -> None:
        self._num_workers, self._num_clients, self.moving = num_workers, num_clients, moving
        self._moved: dict[int, int] = {}
        self._num_of = [len(range(worker, num_clients, num_workers)) for worker in range(num_workers)]  # clients of each
        self.lost: set[int] = set()
        self.absent: set[int] = set()
        self.silent: set[int] = set()

    def of(self, client: int) -> int:
        """The worker of a client. It is a lost worker only where no other worker can train the client."""
        worker = self._moved.get(client, client % self._num_workers)
        if worker in self.lost and self.can_move:
            self._num_of[worker] -= 1
            worker = min(sorted(set(range(self._num_workers)) - self.lost), key=self._num_of.__getitem__)
            self._num_of[worker] += 1
            self._moved[client] = worker
        return worker

    def clients_of(self, worker: int) -> int:
        """How many clients live on a worker."""
        return self._num_of[worker]

    @property
    def can_move(self) -> bool:
        """Whether the clients of a lost worker can move to another worker."""
        return self.moving and len(self.lost) < self._num_workers

    def stranded(self, worker: int) -> tuple[int, ...]:
        """The clients that no worker trains after this worker was lost. If it was the last worker, these are all clients."""
        if self.can_move:
            return ()
        return tuple(client for client in range(self._num_clients) if self.of(client) == worker or self.moving)
