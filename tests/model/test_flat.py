"""A model as one buffer: what lies in it, where, and that the module really lives there."""

import pytest
import torch
from torch import nn

from asyncfeded.model.flat import FlatModel, named_views, own_views


def small():
    """Linear 2 -> 3, batch norm of 3: 6 + 3 + 3 + 3 parameters, 3 + 3 statistics, and one integer buffer."""
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def names(flat):
    return [entry.name for entry in flat.layout.entries]


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(x))


class Keeper(nn.Module):
    """A module with one parameter and one buffer."""

    def __init__(self, buffer):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("kept", buffer)


def test_parameters_come_first_then_float_buffers():
    flat = FlatModel(small())
    assert names(flat) == ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert [entry.offset for entry in flat.layout.entries] == [0, 6, 9, 12, 15, 18]
    assert (flat.layout.num_params, flat.layout.size) == (15, 21)


def test_what_is_a_clients_own_lies_behind_the_model_and_is_no_part_of_it():
    flat, without = (FlatModel(nn.Linear(2, 1), own=own) for own in ([("m", (1, 2)), ("step", ())], []))
    assert [(entry.name, entry.offset) for entry in flat.layout.own] == [("m", 3), ("step", 5)]
    assert (flat.layout.size, flat.layout.sent, len(flat.buffer)) == (3, 6, 6)
    assert flat.buffer[3:].tolist() == [0.0, 0.0, 0.0]
    own_views(flat.buffer, flat.layout)["m"].fill_(7.0)
    assert flat.buffer[3:].tolist() == [7.0, 7.0, 0.0]
    assert flat.state_dict(torch.arange(3.0))["bias"].tolist() == [2.0]
    assert flat.layout.own_names == ("m (1, 2)", "step ()")
    assert flat.layout.digest() != without.layout.digest() == flat.layout.with_own([]).digest()


def test_integer_buffers_stay_out():
    module = small()
    assert module[1].num_batches_tracked.dtype == torch.int64
    assert "1.num_batches_tracked" not in names(FlatModel(module))


def test_the_buffer_takes_the_values_of_the_module():
    module = small()
    weight = module[0].weight.detach().clone()
    flat = FlatModel(module)
    assert flat.buffer[:6].tolist() == weight.flatten().tolist()
    assert flat.buffer[18:].tolist() == [1.0, 1.0, 1.0]  # variances start at 1


def test_writing_the_buffer_changes_what_the_module_computes():
    """All weights 2, all biases 0: 1 * 2 + 3 * 2 = 8."""
    flat = FlatModel(nn.Linear(2, 1))
    flat.buffer.copy_(torch.tensor([2.0, 2.0, 0.0]))
    assert flat.module(torch.tensor([1.0, 3.0])).item() == 8.0


def test_training_the_module_changes_the_buffer():
    """The gradient of 2 a + 3 b + c is (2, 3, 1), the step is 1."""
    flat = FlatModel(nn.Linear(2, 1))
    flat.buffer.zero_()
    flat.module(torch.tensor([2.0, 3.0])).sum().backward()
    torch.optim.SGD(flat.module.parameters(), lr=1.0).step()
    assert flat.buffer.tolist() == [-2.0, -3.0, -1.0]


def test_statistics_of_batch_norm_are_updated_inside_the_buffer():
    """Momentum 0.1: the mean moves from 0 to 0.1 * 4, the variance (of 2 and 6: 8) from 1 to 0.9 + 0.1 * 8."""
    flat = FlatModel(nn.BatchNorm1d(1))
    flat.module.train()
    flat.module(torch.tensor([[2.0], [6.0]]))
    assert flat.buffer[2:].tolist() == pytest.approx([0.4, 1.7])
    flat.check_views()


def test_statistics_written_in_the_buffer_are_those_that_evaluation_uses():
    """(5 - 3) / sqrt(4 + 1e-5), with weight 1 and bias 0."""
    flat = FlatModel(nn.BatchNorm1d(1))
    flat.buffer.copy_(torch.tensor([1.0, 0.0, 3.0, 4.0]))
    flat.module.eval()
    assert flat.module(torch.tensor([[5.0]])).item() == pytest.approx(1.0, rel=1e-5)


def test_a_tied_weight_counts_once_and_stays_tied():
    flat = FlatModel(Tied())
    assert names(flat) == ["one.weight"]
    flat.buffer.copy_(torch.tensor([2.0, 0.0, 0.0, 2.0]))
    assert flat.module(torch.tensor([1.0, 1.0])).tolist() == [4.0, 4.0]


def test_a_buffer_that_two_modules_share_stays_shared():
    shared = torch.zeros(2)
    module = nn.ModuleList([Keeper(shared), Keeper(shared)])
    flat = FlatModel(module)
    flat.buffer.fill_(7.0)
    assert module[0].kept.tolist() == [7.0, 7.0]
    assert module[1].kept.tolist() == [7.0, 7.0]


def test_a_parameter_without_dimensions_takes_one_place():
    module = nn.Module()
    module.scale = nn.Parameter(torch.tensor(3.0))
    assert FlatModel(module).buffer.tolist() == [3.0]


def test_a_float64_parameter_is_refused_by_name():
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double())
    with pytest.raises(ValueError, match=r"1\.weight is torch\.float64, expected torch\.float32.*\.float\(\)"):
        FlatModel(module)


def test_a_complex_parameter_is_refused_by_name():
    module = nn.Linear(1, 1)
    module.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"phase is torch\.complex64, expected torch\.float32: .* torch\.view_as_complex"):
        FlatModel(module)


def test_a_float64_buffer_is_refused_by_name():
    with pytest.raises(ValueError, match=r"kept is torch\.float64"):
        FlatModel(Keeper(torch.zeros(1, dtype=torch.float64)))


def test_a_module_without_parameters_is_refused():
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        FlatModel(nn.ReLU())


def test_equal_models_have_equal_digests():
    assert FlatModel(small()).layout.digest() == FlatModel(small()).layout.digest()


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)),
        nn.Sequential(nn.BatchNorm1d(3), nn.Linear(2, 3)),
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.BatchNorm1d(3)),
        nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False)),
    ],
    ids=["shapes", "order", "names", "statistics"],
)
def test_models_that_differ_have_different_digests(other):
    assert FlatModel(small()).layout.digest() != FlatModel(other).layout.digest()


def test_a_matrix_and_its_transpose_differ():
    """As many elements under the same name."""
    assert FlatModel(nn.Linear(2, 3, bias=False)).layout.digest() != FlatModel(nn.Linear(3, 2, bias=False)).layout.digest()


def test_a_buffer_and_a_parameter_of_the_same_name_differ():
    one, other = Keeper(torch.zeros(2)), Keeper(torch.zeros(2))
    del other.kept
    other.kept = nn.Parameter(torch.zeros(2))
    assert FlatModel(one).layout.digest() != FlatModel(other).layout.digest()


def test_a_buffer_replaced_instead_of_written_is_found():
    flat = FlatModel(small())
    flat.module[1].running_mean = torch.zeros(3)
    with pytest.raises(ValueError, match=r"replaced the memory of 1\.running_mean.*running_mean\.copy_"):
        flat.check_views()


def test_a_parameter_replaced_instead_of_written_is_found():
    flat = FlatModel(small())
    flat.module[0].weight.data = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"replaced the memory of 0\.weight"):
        flat.check_views()


def test_a_parameter_replaced_by_another_object_is_found():
    flat = FlatModel(small())
    flat.module[0].weight = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"replaced the memory of 0\.weight"):
        flat.check_views()


def test_a_shared_buffer_replaced_in_its_second_place_is_found():
    shared = torch.zeros(2)
    flat = FlatModel(nn.ModuleList([Keeper(shared), Keeper(shared)]))
    flat.module[1].kept = torch.zeros(2)
    with pytest.raises(ValueError, match=r"replaced the memory of"):
        flat.check_views()


def test_named_views_share_memory_with_the_buffer():
    flat = FlatModel(small())
    other = torch.zeros(flat.layout.size)
    views = named_views(other, flat.layout)
    other[6:9] = torch.tensor([1.0, 2.0, 3.0])
    assert views["0.bias"].tolist() == [1.0, 2.0, 3.0]
    assert views["0.weight"].shape == (3, 2)


def test_an_lstm_trains_inside_the_buffer():
    torch.manual_seed(0)
    flat = FlatModel(nn.LSTM(3, 4))
    before = flat.buffer.clone()
    output, _ = flat.module(torch.ones(2, 1, 3))
    output.sum().backward()
    torch.optim.SGD(flat.module.parameters(), lr=0.1).step()
    flat.check_views()
    assert flat.layout.size == 4 * 4 * (3 + 4 + 1 + 1)  # four gates of inputs, outputs and two biases
    assert (flat.buffer != before).all()


@pytest.mark.parametrize("share", [lambda w: w.data, lambda w: w.t()], ids=["buffer", "view in an attribute"])
def test_a_tensor_in_the_memory_of_a_parameter_is_refused(share):
    module = nn.Linear(3, 2)
    shared = share(module.weight)
    module.decoder = shared if shared.requires_grad else nn.Buffer(shared)
    with pytest.raises(ValueError, match=r"(weight and decoder|decoder and weight) share memory"):
        FlatModel(module)


def test_a_tensor_of_inference_mode_is_refused():
    module = nn.Linear(3, 2)
    with torch.inference_mode():
        module.register_buffer("scale", torch.ones(2))
    with pytest.raises(ValueError, match=r"scale was made under torch\.inference_mode"):
        FlatModel(module)


def test_a_tensor_whose_elements_share_memory_is_taken():
    module = nn.Linear(3, 2)
    module.register_buffer("scale", torch.ones(1).expand(2), persistent=False)
    module.shift = torch.zeros(1).expand(2)
    FlatModel(module).as_made.restore()
