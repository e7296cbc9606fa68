"""Batch norm over the batch of a client of several ranks. On every rank (see ranks.py)."""

from functools import partial

import pytest
import torch
from torch import nn

from asyncfeded.config import Training
from mpi.ranks import together
from mpi.test_gradients_wire_ranks import STEPS, new_module, same_on_all_ranks, trained

NORMS = [partial(nn.BatchNorm1d, 8), partial(nn.BatchNorm1d, 8, momentum=None), partial(nn.BatchNorm1d, 8, affine=False)]


@pytest.mark.parametrize("norm", NORMS, ids=str)
@together
def test_synchronized_it_is_that_of_one_rank(world, comm, group, norm):
    """Parameters and statistics, after 20 steps."""
    training = Training(unit="steps", steps=STEPS, batch_size=10, last_batch="drop", momentum=0.9, sync_batch_norm=True)
    _, _, one = trained(training, module=new_module(norm))
    _, _, several = trained(training, group, new_module(norm))
    torch.testing.assert_close(several.buffer, one.buffer, rtol=0, atol=1e-6)
    assert same_on_all_ranks(comm, several.buffer)


@together
def test_otherwise_each_rank_normalises_its_own_part(world, comm, group):
    """The parameters stay equal on all ranks; the statistics are of the parts, and the leader sends its own."""
    training = Training(unit="steps", steps=STEPS, batch_size=10, last_batch="drop")
    _, _, several = trained(training, group, new_module(NORMS[0]))
    params = several.layout.num_params
    assert same_on_all_ranks(comm, several.buffer[:params])
    assert not same_on_all_ranks(comm, several.buffer[params:])
