"""A data set trains as the same samples do as tensors, and is tried like them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from asyncfeded.config import Config, Training
from asyncfeded.model.flat import FlatModel
from asyncfeded.tasks.classification import Data
from asyncfeded.tasks.contract import TaskError
from asyncfeded.training.batches import ClientData, in_order, read
from asyncfeded.training.client import Trainer
from asyncfeded.training.loader import Loader
from asyncfeded.training.trial import Trial, find_statistics, new_module
from asyncfeded.wire.messages import Order

CPU = torch.device("cpu")


def samples(n=11):
    generator = torch.Generator().manual_seed(0)
    return Data(torch.randn(n, 4, generator=generator), torch.arange(n) % 3)


class Stream:
    """The samples of a list, one after the other."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


class Mine:
    """Batch norm, dropout and three classes."""

    name = "mine"
    collate = optimizer = factor = step = None

    def model(self):
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3))

    def loss(self, model, batch):
        inputs, targets = batch
        return F.cross_entropy(model(inputs), targets)


def stored(data, kind=list, size=-1):
    return Loader(Mine(), CPU, 0, 0).add(kind(list(zip(*data, strict=True))), size)


def trained(data, last_batch="keep"):
    """The model after a round of two epochs in batches of 4."""
    task = Mine()
    flat = FlatModel(new_module(task, 0)[0], CPU, ["1.running_mean", "1.running_var"])
    trainer = Trainer(task, flat, Training(momentum=0.9, last_batch=last_batch), 0.0, 0)
    assert trainer.round(Order(3, 1, 0, 2), ClientData(data, 4), lambda: False)
    return flat.buffer, trainer.samples, trainer.steps, trainer.loss


@pytest.mark.parametrize("last_batch", ["keep", "drop", "join"])
def test_a_data_set_trains_as_tensors_do_to_the_bit(last_batch):
    one, two = trained(samples(), last_batch), trained(stored(samples()), last_batch)
    assert torch.equal(one[0], two[0])
    assert one[1:] == two[1:]


def test_a_stream_is_trained_in_its_order():
    """As tensors of one batch, whose order only changes how sums are rounded."""
    whole = Data(*(part[:4] for part in samples()))
    one, two = trained(whole), trained(stored(samples(), Stream, 4))
    assert torch.allclose(one[0], two[0], atol=0.5)  # dropout meets other samples
    assert one[1:3] == two[1:3] == (8, 2)


@pytest.mark.parametrize("data", [samples(), stored(samples()), stored(samples(), Stream)], ids=["tensors", "set", "stream"])
def test_a_test_reads_all_samples_in_order(data):
    batches = list(read(data, in_order(data, 4), (0,), ""))
    assert [got for _, got in batches] == [4, 4, 3]
    assert torch.equal(torch.cat([inputs for (inputs, _), _ in batches]), samples().inputs)


class Counted(list):
    """Samples that note which are read."""

    read = ()

    def __getitem__(self, row):
        self.read = (*self.read, row)
        return super().__getitem__(row)


def attempt(data, batch_size=4, **keys):
    """What a worker does before the first message."""
    config = Config.model_validate({"clock": "virtual", "clients": 1, "limits": {"updates": 1}} | keys)
    task = Mine()
    client = ClientData(Loader(task, CPU, 0, 0).add(data, 100), batch_size)
    flat = FlatModel(new_module(task, 0)[0], "cpu", find_statistics(task, 0, CPU, client))
    Trial(task, flat, Trainer(task, flat, config.training, 0.0, 0), config).run([0], lambda _: client)


@pytest.mark.parametrize("kind", [Counted, Stream])
def test_a_data_set_is_tried_on_a_few_batches(kind):
    data = kind(list(zip(*samples(100), strict=True)))
    attempt(data)
    if kind is Counted:
        assert set(data.read) == set(range(8))


def test_a_batch_that_the_model_cannot_take_is_told():
    with pytest.raises(TaskError, match=r"a batch of 1 in training \(client 0 has 9 samples, in batches of 4\)"):
        attempt(list(zip(*samples(9), strict=True)))


def test_a_loss_that_is_not_finite_is_told():
    with pytest.raises(TaskError, match=r"client 0 has 8 samples.*its loss is nan with the weights that the model begins"):
        attempt([(torch.full((4,), torch.nan), 0)] * 8)


def test_a_data_set_that_draws_from_no_seed_is_refused():
    class Augmented(list):
        def __getitem__(self, row):
            inputs, target = super().__getitem__(row)
            return inputs + torch.rand(4, generator=generator), target

    generator = torch.Generator().manual_seed(0)
    with pytest.raises(
        TaskError, match=r"the same round of client 0, trained twice.*draws random numbers that follow from no"
    ):
        attempt(Augmented(zip(*samples(8), strict=True)))
