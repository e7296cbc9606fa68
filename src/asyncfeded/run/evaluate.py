"""Makes what tests the global model, and tries it before the first message: on the server, or on a rank that only tests."""

from dataclasses import dataclass

from asyncfeded.model.flat import FlatModel
from asyncfeded.mpi.waiting import Wait
from asyncfeded.mpi.world import World
from asyncfeded.run.plan import Plan
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks.contract import TaskError
from asyncfeded.training.elsewhere import Elsewhere, serve_tests
from asyncfeded.training.evaluation import Evaluator
from asyncfeded.wire.deadlines import Deadlines
from asyncfeded.wire.snapshots import FromServer, ToTester
from asyncfeded.wire.transfer import Peer


@dataclass(frozen=True)
class TesterParts:
    """What a rank that only tests has prepared before the first message."""

    evaluator: Evaluator
    size: int
    """Elements of a snapshot."""
    values: int
    """Number of metrics."""
    wait: Wait
    """The config's `wait`."""


def prepare(plan: Plan, flat: FlatModel) -> TesterParts:
    """Make what tests snapshots, and try it. The evaluator's rank.

    Raises:
        ValueError, OSError: something is wrong that the user can correct.
    """
    return TesterParts(make_evaluator(plan, flat)[0], flat.layout.size, len(plan.task.metrics), plan.config.wait)


def serve_snapshots(world: World, parts: TesterParts) -> bool:
    """Test until the server says stop. The evaluator's rank. Returns whether ranks are lost."""
    wire = FromServer(Peer(world.comm, 0, "the server"), parts.size, parts.values, world.backoff(parts.wait))
    return serve_tests(wire, parts.evaluator)


def evaluate_elsewhere(world: World, plan: Plan, size: int) -> Elsewhere:
    """Make the server's side of the tests that another rank makes. Rank 0.

    Args:
        world: all ranks.
        plan: the run.
        size: elements of a snapshot.
    """
    config, seat = plan.config, world.seats.evaluator
    tester = Peer(world.comm, seat, f"rank {world.seats.order[seat]}")
    deadlines = Deadlines(config.faults.patience, config.faults.patience_s)
    wire = ToTester(tester, size, len(plan.task.metrics), world.backoff(config.wait), deadlines)
    return Elsewhere(wire, plan.task.metrics)


def make_evaluator(plan: Plan, flat: FlatModel) -> tuple[Evaluator, tuple[str, ...]]:
    """Make what tests the global model, and try it; also whether the model can be saved.

    Returns:
        It, and what the task has to say about its data.

    Raises:
        ValueError, OSError: something is wrong that the user can correct.
    """
    config = plan.config
    seed_globals(config.seed, Stream.DATA)
    batch_size, workers = config.evaluation.batch_size, config.training.loader_workers
    evaluator, remarks = Evaluator(plan.task, flat, batch_size, config.seed, workers), tuple(plan.task.remarks())
    try:
        flat.state_dict(flat.buffer)  # what cannot be saved is found now
    except ValueError as error:
        raise TaskError(f"task {plan.task.name}, model: {error}") from None
    evaluator.try_out(config.faults.bad_loss == "refuse")
    return evaluator, remarks
