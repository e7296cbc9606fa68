"""Optimizers by name: new in every round, with the options of the config, and told what is wrong with them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from asyncfeded.config import Training
from asyncfeded.tasks.at import At
from asyncfeded.training.optimizer import MadeAnew, PlainSgd, find_descent, state_after_step

AT = At(client=0, round=0, step=0, steps=3, steps_before=0, version=0, share=0.0)


def task(**methods):
    return SimpleNamespace(**{"name": "mine", "optimizer": None, "factor": None, "step": None} | methods)


def weights():
    return {"w": nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]])), "b": nn.Parameter(torch.tensor([0.5]))}


def take(descent, parameters, factors=(1.0, 0.5, 2.0)):
    """Steps with gradients that are the parameters themselves, and learning rates times these factors."""
    for factor in factors:
        for parameter in parameters.values():
            parameter.grad = parameter.detach().clone()
        descent.step(factor)


NAMES = ["ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"]


@pytest.mark.parametrize("name", NAMES)
def test_rounds_are_those_of_torch_s_optimizer_made_anew(name):
    one, two = weights(), weights()
    training = Training(optimizer=name, learning_rate=0.1, weight_decay=0.0 if name == "Rprop" else 0.01)
    descent = find_descent(one, task(), training)
    for _ in range(2):
        descent.begin(AT)
        take(descent, one)
        decay = {} if name == "Rprop" else {"weight_decay": 0.01}
        optimizer = getattr(torch.optim, name)(two.values(), lr=0.1, **decay)
        for factor in (1.0, 0.5, 2.0):
            optimizer.param_groups[0]["lr"] = 0.1 * factor
            for parameter in two.values():
                parameter.grad = parameter.detach().clone()
            optimizer.step()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_options_are_given_to_the_optimizer():
    training = Training(optimizer="AdamW", optimizer_options={"betas": [0.5, 0.75], "amsgrad": True}, weight_decay=0.25)
    descent = find_descent(weights(), task(), training)
    descent.begin(AT)
    group = descent.optimizer.param_groups[0]
    assert (type(descent.optimizer), group["betas"], group["amsgrad"]) == (torch.optim.AdamW, (0.5, 0.75), True)
    assert (group["lr"], group["weight_decay"]) == (0.05, 0.25)


def test_sgd_with_options_is_that_of_torch_and_without_the_function_behind_it():
    nesterov = find_descent(weights(), task(), Training(momentum=0.5, optimizer_options={"nesterov": True}))
    nesterov.begin(AT)
    assert nesterov.optimizer.param_groups[0]["nesterov"]
    assert nesterov.optimizer.param_groups[0]["momentum"] == 0.5
    assert isinstance(find_descent(weights(), task(), Training(momentum=0.5)), PlainSgd)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"optimizer": "adamv"}, "training.optimizer = adamv: torch.optim has no such optimizer; did you mean adamw?"),
        ({"optimizer": "xyz"}, "no such optimizer; it has adadelta, adafactor"),
        ({"optimizer": "adam", "optimizer_options": {"beta": 1}}, "Adam takes no beta; did you mean betas?"),
        ({"optimizer_options": {"rho": 1}}, "SGD takes no rho; it takes lr, momentum"),
        ({"optimizer": "rprop", "weight_decay": 0.1}, "training.weight_decay = 0.1, but Rprop has none; leave it out"),
        ({"optimizer": "adam", "optimizer_options": {"betas": [2, 0.9]}}, r"betas = \(2, 0.9\).*: Adam says: Invalid beta"),
        ({"optimizer_options": {"nesterov": True}}, "SGD says: Nesterov momentum requires a momentum"),
        ({"optimizer": "muon"}, "Muon says: .*2D"),
        (
            {"optimizer": "lbfgs"},
            r"lbfgs computes the loss several times in a step, .* method step\(model, batch, ",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_with_an_optimizer_is_told(keys, sentence):
    with pytest.raises(ValueError, match=sentence):
        find_descent(weights(), task(), Training(**keys))


def test_a_task_s_own_optimizer_is_made_in_every_round_and_its_rates_are_the_base_of_the_schedule():
    told = []

    def optimizer(parameters, at):
        told.append(at.round)
        return torch.optim.SGD([{"params": parameters[:1], "lr": 1.0}, {"params": parameters[1:], "lr": 0.1}])

    parameters = weights()
    descent = find_descent(parameters, task(optimizer=optimizer), Training())
    for number in range(2):
        descent.begin(AT._replace(round=number))
        take(descent, parameters, [0.5])
    assert told == [0, 1]
    assert parameters["w"].tolist() == [[0.25, -0.5], [0.125, 0.75]]
    assert parameters["b"].item() == pytest.approx(0.5 * 0.95**2)


@pytest.mark.parametrize("keys", [{"optimizer": "adam"}, {"momentum": 0.5}, {"weight_decay": 0.5}], ids=str)
def test_a_task_that_makes_its_optimizer_leaves_no_room_for_another(keys):
    made = task(optimizer=lambda parameters, at: torch.optim.SGD(parameters))
    with pytest.raises(ValueError, match=f"task mine makes its own optimizer; leave training.{next(iter(keys))} = .* out"):
        find_descent(weights(), made, Training(**keys))


@pytest.mark.parametrize("keys", [{"momentum": 0.9}, *({"optimizer": name} for name in NAMES)], ids=str)
def test_a_state_that_is_put_back_goes_on_to_the_same_weights(keys):
    """Two rounds with the state carried over are one round of twice as many steps."""
    one, two = weights(), weights()
    whole, parts = (find_descent(parameters, task(), Training(**keys)) for parameters in (one, two))
    whole.begin(AT)
    take(whole, one, 6 * [1.0])
    state = {}
    for _ in range(2):
        parts.begin(AT)
        parts.load({name: value.clone() for name, value in state.items()})
        take(parts, two, 3 * [1.0])
        state = parts.state()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert state.keys() == state_after_step(weights(), task(), Training(**keys)).keys()


def count(optimizer):
    optimizer.state[optimizer.param_groups[0]["params"][0]]["count"] = 1


def count_in_group(optimizer):
    optimizer.param_groups[0]["d"] = 2.0


def count_elsewhere(optimizer):
    optimizer.state["steps"] = {"n": 1}


def fail(optimizer):
    raise RuntimeError("no closure")


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (count, "kept: the optimizer's w.count is int, expected a tensor of torch.float32"),
        (count_in_group, "kept: the optimizer's d of group 0 changes, and belongs to no parameter"),
        (count_elsewhere, "kept: the optimizer's steps changes, and belongs to no parameter"),
        (fail, "kept tries: raised RuntimeError: no closure; set optimizer_state = fresh"),
    ],
)
def test_a_state_that_cannot_be_sent_is_told(step, sentence):
    made = task(optimizer=lambda parameters, at: type("Mine", (torch.optim.SGD,), {"step": step})(parameters))
    with pytest.raises(ValueError, match=sentence):
        state_after_step(weights(), made, Training(optimizer_state="kept"))
    assert isinstance(find_descent(weights(), made, Training()), MadeAnew)


def test_what_an_optimizer_has_not_is_not_kept():
    """SGD of torch without momentum says None."""
    plain = Training(optimizer_options={"dampening": 0.0})
    assert state_after_step(weights(), task(), plain) == {}
