"""Makes what tests the global model, and tries it before the first message."""

from asyncfeded.model.flat import FlatModel
from asyncfeded.run.plan import Plan
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks.contract import TaskError
from asyncfeded.training.evaluation import Evaluator


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
