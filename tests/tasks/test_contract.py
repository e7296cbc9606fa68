"""Whatever a task raises or gives back wrong is told with task, method and client, and the task's own traceback."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from asyncfeded.config import Settings
from asyncfeded.metric import Metric
from asyncfeded.tasks import check_task
from asyncfeded.tasks.classification import Data
from asyncfeded.tasks.contract import CheckedTask, TaskError, fault


class Good:
    """Two clients of three samples."""

    def model(self):
        return nn.Linear(2, 2)

    def sizes(self, num_clients, seed):
        return np.full(num_clients, 3)

    def client_data(self, client, num_clients, seed):
        return Data(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))

    def test_data(self):
        return self.client_data(0, 1, 0)

    def loss(self, model, batch):
        return model(batch[0]).mean()

    def score(self, model, batch):
        return {"accuracy": (2, 3), "loss": (torch.tensor(1.5), np.int64(3))}


def but(**answers):
    """A good task that answers otherwise."""
    return CheckedTask(type("Bad", (Good,), {name: lambda self, *asked, a=a: a for name, a in answers.items()})(), "good")


def ask(task, method):
    arguments = {"sizes": (2, 0), "client_data": (1, 2, 0), "score": (None, None)}.get(method, ())
    task.sizes(2, 0)
    return getattr(task, method)(*arguments)


def test_a_good_task_passes_through():
    task = CheckedTask(Good(), "good")
    assert isinstance(ask(task, "model"), nn.Linear)
    assert (task.sizes(2, 0).tolist(), task.sizes(2, 0).dtype) == ([3, 3], np.int64)
    assert len(ask(task, "client_data").targets) == len(ask(task, "test_data").targets) == 3
    assert ask(task, "score") == {"accuracy": (2.0, 3.0), "loss": (1.5, 3.0)}


SUMS = {"accuracy": (1, 1), "loss": (1, 1)}
X, Y = torch.ones(3, 2), torch.zeros(3)
PAIR = (
    "expected a pair of torch.Tensor (inputs, targets) with one row per sample, a data set with __len__ and __getitem__, or"
)


class Stream:
    """Samples that can only be iterated over, and tell how many they are."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(range(self.samples))

    def __len__(self):
        return self.samples


@pytest.mark.parametrize(
    ("method", "answer", "sentence"),
    [
        ("model", None, "model: gave back None, expected a torch.nn.Module"),
        ("model", nn.Linear, "model: gave back type, expected a torch.nn.Module"),
        ("sizes", None, "sizes: gave back None, expected int64 (2,), the number of training samples of each client"),
        ("sizes", np.ones(2), "sizes: gave back ndarray of float64 (2,), expected int64 (2,)"),
        ("sizes", [3, 3, 3], "sizes: gave back list (int, int, int), expected int64 (2,)"),
        ("sizes", [[1], [1, 2]], "sizes: gave back list (list, list), expected int64 (2,)"),
        ("sizes", (i for i in (3, 3)), "sizes: gave back generator, expected int64 (2,)"),
        ("sizes", [3, 0], "sizes: client 1 has 0 training samples, expected at least 1; lower clients"),
        ("sizes", np.array([3, 2**63 + 5], np.uint64), "sizes: client 1 has -9223372036854775803 training samples"),
        ("sizes", [-1, 3], "sizes: client 0 has -1 training samples"),
        ("client_data", None, f"client_data of client 1: gave back None, {PAIR}"),
        ("client_data", X, f"client_data of client 1: gave back Tensor of torch.float32 (3, 2), {PAIR}"),
        ("client_data", (X, Y, Y), f"client_data of client 1: gave back tuple (Tensor, Tensor, Tensor), {PAIR}"),
        (
            "client_data",
            (i for i in (X, Y)),
            "client_data of client 1: gave back generator, expected what can be read again",
        ),
        (
            "client_data",
            DataLoader([1, 2]),
            "client_data of client 1: gave back DataLoader, expected its data set; training",
        ),
        ("client_data", Dataset(), f"client_data of client 1: gave back Dataset, {PAIR}"),
        ("client_data", {"x": X, "y": Y}, f"client_data of client 1: gave back dict, {PAIR}"),
        ("client_data", [1, 2], "client_data of client 1: gave back 2 samples, but sizes says 3"),
        ("client_data", Stream(2), "client_data of client 1: gave back 2 samples, but sizes says 3"),
        ("client_data", (X.numpy(), Y), f"client_data of client 1, inputs: gave back ndarray of float32 (3, 2), {PAIR}"),
        ("client_data", (X, [0, 1, 0]), f"client_data of client 1, targets: gave back list (int, int, int), {PAIR}"),
        (
            "client_data",
            (X, torch.tensor(1)),
            f"client_data of client 1, targets: gave back Tensor of torch.int64 (), {PAIR}",
        ),
        ("client_data", (X[:2], Y), "client_data of client 1: gave back 2 inputs and 3 targets, expected as many"),
        ("client_data", (X[:2], Y[:2]), "client_data of client 1: gave back 2 samples, but sizes says 3"),
        ("test_data", (X[:0], Y[:0]), "test_data: gave back no sample; the model cannot be tested without one"),
        ("test_data", [], "test_data: gave back no sample"),
        ("score", 0.5, "score: gave back float, expected for each metric its sum and its count, such as"),
        ("score", (0.5, 1), "score: gave back tuple (float, int), expected for each metric"),
        ("score", {"accuracy": 0.5, "loss": 1}, "score, accuracy: gave back float, expected two numbers: sum and count"),
        ("score", SUMS | {"loss": (1, 2, 3)}, "score, loss: gave back tuple (int, int, int), expected two numbers"),
        ("score", SUMS | {"loss": (X, 3)}, "score, loss: gave back tuple (Tensor, int), expected two numbers"),
        ("score", SUMS | {"loss": (0.5, -1)}, "score: loss has the count -1, expected a number of at least 0"),
        ("score", {}, "score: gave back nothing, but the metrics of the task are accuracy, loss"),
        (
            "score",
            SUMS | {"dice": (1, 1)},
            "score: gave back accuracy, loss, dice, but the metrics of the task are accuracy, loss",
        ),
        ("score", SUMS | {"loss": (0.5, np.inf)}, "score: loss has the count inf, expected a number"),
    ],
)
def test_a_wrong_answer_is_told(method, answer, sentence):
    with pytest.raises(TaskError) as told:
        ask(but(**{method: answer}), method)
    assert str(told.value).startswith(f"task good, {sentence}")


@pytest.mark.parametrize("samples", [[1, 2, 3], range(3), Stream(3), Stream(100), Subset([1, 2, 3, 4], [0, 1, 2])])
def test_samples_of_other_kinds_pass_through(samples):
    assert ask(but(client_data=samples), "client_data") is samples


def test_a_length_that_fails_is_told_with_the_traceback():
    class Broken:
        def __len__(self):
            return {}["length"]

        def __getitem__(self, row):
            return row

    with pytest.raises(
        TaskError, match=r"(?s)client_data of client 1, its length: raised KeyError.*return \{\}\[.length.\]"
    ):
        ask(but(client_data=Broken()), "client_data")


def test_the_values_of_a_score_are_in_the_order_of_the_metrics_that_the_task_declares():
    task = type("Own", (Good,), {"metrics": {"loss": Metric("min"), "accuracy": Metric("max")}})()
    assert list(ask(CheckedTask(task, "good"), "score")) == ["loss", "accuracy"]


def test_metrics_that_are_none_or_a_key_of_the_section_are_refused():
    with pytest.raises(TaskError, match="task good, metrics: got list, expected a Metric by name, such as"):
        CheckedTask(type("Bad", (Good,), {"metrics": ["dice"]})(), "good")

    class Keyed(Settings, Good):
        metrics: dict = {"dice": Metric("max")}

    with pytest.raises(TaskError, match=r"task good, metrics: is a key of its section; write metrics: ClassVar = "):
        CheckedTask(Keyed(), "good")


def test_a_task_without_a_method_is_told_what_it_lacks():
    class Half(Good):
        score, loss = None, 3

    with pytest.raises(TaskError, match=r"task good: has no method .*score\(model, batch\)"):
        check_task(Half(), "good")


@pytest.mark.parametrize("error", [KeyError("k"), SystemExit(0), AssertionError(), MemoryError("no room"), StopIteration()])
@pytest.mark.parametrize("method", ["model", "sizes", "client_data", "test_data", "score"])
def test_what_a_task_raises_is_told_with_its_own_traceback(method, error):
    def broken(self, *asked):
        raise type(error)(*error.args)

    task = CheckedTask(type("Bad", (Good,), {method: broken})(), "good")
    with pytest.raises(TaskError) as told:
        ask(task, method)
    text = str(told.value)
    who = f"{method} of client 1" if method == "client_data" else method
    assert text.startswith(f"task good, {who}: raised {type(error).__name__}: {error}\nTraceback (most recent call last):\n")
    assert "raise type(error)(*error.args)" in text
    assert "_ask" not in text
    assert told.value.__cause__ is None


def test_arguments_that_do_not_fit_are_told():
    with pytest.raises(TaskError, match=r"task good, test_data: raised TypeError: .*takes 0 positional arguments"):
        CheckedTask(type("Bad", (Good,), {"test_data": lambda: None})(), "good").test_data()


def test_a_value_error_that_the_task_raises_is_a_sentence():
    def test_data(self):
        raise ValueError("the file has no digits")

    with pytest.raises(TaskError) as told:
        CheckedTask(type("Bad", (Good,), {"test_data": test_data})(), "good").test_data()
    assert str(told.value) == "task good, test_data: the file has no digits"


def test_a_value_error_of_a_library_is_told_with_the_traceback():
    def test_data(self):
        return np.stack([np.ones(2), np.ones(3)])

    with pytest.raises(TaskError, match=r"(?s)raised ValueError: all input arrays.*Traceback.*np\.stack"):
        CheckedTask(type("Bad", (Good,), {"test_data": test_data})(), "good").test_data()


def test_a_long_traceback_keeps_its_end():
    def deep(n):
        return deep(n - 1) if n else len({}[0])

    try:
        deep(900)
    except KeyError as error:
        text = str(fault("good", "model", error))
    assert len(text) < 3200
    assert "len({}[0])" in text
