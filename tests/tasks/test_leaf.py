"""Task femnist reads a directory in LEAF's layout, and refuses faulty files."""

import numpy as np
import pytest
import torch

from tasks.data import LEAF, leaf_file, refused, row


def test_files_of_a_leaf_directory_are_merged_by_user(femnist):
    """By name of user; the samples of w0 in the order of the files' names, a before b."""
    task = femnist()
    numbers = [task.client_data(client, 3, 0).inputs[:, 0, 0, 0].tolist() for client in range(3)]
    assert numbers == [[2.0, 3.0, 5.0, 6.0], [4.0], [1.0]]
    assert task.client_data(0, 3, 0).targets.tolist() == [3, 4, 0, 9]
    assert task.test_data().inputs[:, 0, 0, 0].tolist() == [7.0]


def test_users_of_a_leaf_directory_are_dealt_in_turn(femnist):
    assert sorted(femnist().client_data(0, 2, 0).inputs[:, 0, 0, 0].tolist()) == [1.0, 2.0, 3.0, 5.0, 6.0]
    assert femnist(writers=1).sizes(1, 0).tolist() == [4]
    with pytest.raises(ValueError, match=r"train has 3 writers \(task\.writers = 0\), too few for 4 clients"):
        femnist().sizes(4, 0)


def test_images_of_leaf_are_28_by_28_of_62_classes(femnist):
    task = femnist()
    inputs, targets = task.client_data(0, 1, 0)
    assert inputs.shape == (6, 1, 28, 28)
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert task.model()(inputs).shape == (6, 62)
    assert femnist(classes=10).model()(inputs).shape == (6, 10)


def test_other_files_of_a_leaf_directory_are_left_alone(femnist, tmp_path):
    task = femnist()
    (tmp_path / "train" / "stats.txt").write_text("no JSON")
    assert task.sizes(1, 0).tolist() == [6]


def test_a_changed_leaf_file_is_read_again(femnist):
    """Counts are kept from call to call, but not beyond a change."""
    assert femnist().sizes(3, 0).tolist() == [4, 1, 1]
    more = {"train/b.json": leaf_file({"w1": ([row(4), row(8)], [1, 1]), "w3": ([row(5), row(6)], [0, 9])})}
    assert femnist(LEAF | more).sizes(4, 0).tolist() == [2, 2, 1, 2]


def changed(user="w9", **fields):
    """A file with one user more, whose fields are these."""
    content = leaf_file({"w8": ([row(8)], [1]), user: ([row(9)], [1])})
    content["user_data"][user] |= fields
    return content


def without(key):
    return {name: value for name, value in changed().items() if name != key}


LEAF_FAULTS = {
    "not JSON": (b"users", "is not JSON: Expecting value"),
    "not UTF-8": (b'{"users": ["\xff"]}', "line 1: the byte 0xff is no UTF-8"),
    "a list": ([1], "users is not a list, expected LEAF's users, num_samples and user_data"),
    "no users": (without("users"), "users is not a list"),
    "no num_samples": (without("num_samples"), "num_samples is not a list"),
    "no user_data": (without("user_data"), "user_data is not an object"),
    "no user": (leaf_file({}), "users is empty or holds other things than names"),
    "numbered users": (changed() | {"users": [1, 2]}, "users is empty or holds other things than names"),
    "listed twice": (changed() | {"users": ["w8", "w8"]}, "users names w8 twice"),
    "not listed": (changed() | {"users": ["w8"], "num_samples": [1]}, "user_data holds w9, which users does not name"),
    "few num_samples": (changed() | {"num_samples": [1]}, "num_samples has 1 numbers, expected 2, one for each of users"),
    "no data": (changed() | {"user_data": {"w8": {"x": [row(8)], "y": [1]}}}, "user w9: not in user_data"),
    "no x": (changed(x=None), "user w9: x is not a list"),
    "no y": (changed(y={}), "user w9: y is not a list"),
    "empty": (changed(x=[], y=[]), "user w9: y is empty, expected samples; remove the user"),
    "more x": (changed(x=[row(9), row(8)]), "user w9: x has 2 entries, y has 1 and num_samples says 1, expected one number"),
    "more num_samples": (changed() | {"num_samples": [1, 2]}, "user w9: x has 1 entries, y has 1 and num_samples says 2"),
    "short row": (changed(x=[row(9)[:-1]]), "writer w9: x has a row of 783 numbers, expected 784: 28 x 28 pixels"),
    "no row": (changed(x=["ab"]), "writer w9: x has a row of 'ab', expected 784"),
    "text in a row": (changed(x=[["a", *row(9)[1:]]]), "writer w9: x holds something that is not a number"),
    "nested row": (changed(x=[[[1.0], *row(9)[1:]]]), "writer w9: x holds something that is not a number"),
    "NaN": (changed(x=[row(np.nan)]), "writer w9: x holds a value that is not finite"),
    "too large": (changed(x=[row(1e300)]), "writer w9: x holds a value that is not finite"),
    "null": (changed(x=[[None, *row(9)[1:]]]), "writer w9: x holds a value that is not finite"),
    "label of text": (changed(y=["a"]), "writer w9: y holds something that is not an integer"),
    "label with a point": (changed(y=[1.0]), "writer w9: y holds something that is not an integer"),
    "huge label": (changed(y=[10**30]), "writer w9: y holds something that is not an integer"),
    "negative label": (changed(y=[-1]), "writer w9: y goes from -1 to -1, expected integers from 0 to 61 (task.classes)"),
    "label too large": (changed(y=[62]), "writer w9: y goes from 62 to 62, expected integers from 0 to 61 (task.classes)"),
}


@pytest.mark.parametrize("fault", LEAF_FAULTS)
@pytest.mark.parametrize("place", ["train", "test"])
def test_a_fault_in_a_leaf_file_is_told_with_file_user_and_field(femnist, tmp_path, fault, place):
    content, words = LEAF_FAULTS[fault]
    refused(femnist(LEAF | {f"{place}/c.json": content}), f"{tmp_path / place / 'c.json'}: {words}")


@pytest.mark.parametrize(("label", "words"), [(1, "y is too"), (2, "y is not")])
def test_the_same_samples_in_two_leaf_files_are_refused(femnist, tmp_path, label, words):
    twin = {"train/c.json": leaf_file({"w1": ([row(4)], [label])})}
    file, other = tmp_path / "train" / "c.json", tmp_path / "train" / "b.json"
    refused(femnist(LEAF | twin), f"{file}: writer w1: x is the same as in {other}, {words}")


@pytest.mark.parametrize("place", ["train", "test"])
def test_a_leaf_directory_without_files_is_refused(femnist, tmp_path, place):
    task = femnist()
    for file in (tmp_path / place).iterdir():
        file.unlink()
    refused(task, f"{tmp_path / place}: no *.json file in this directory")


def test_a_missing_leaf_directory_is_refused(femnist, tmp_path):
    refused(femnist(train=str(tmp_path / "none")), f"{tmp_path / 'none'}: no such file; give the path of a data set")


def test_a_client_parses_only_the_files_that_its_users_are_in(femnist, tmp_path, monkeypatch):
    from asyncfeded.tasks import leaf

    task, parsed = femnist(), []
    task.sizes(3, 0)
    monkeypatch.setattr(leaf, "_parse", lambda file, parse=leaf._parse: (parsed.append(file.name), parse(file))[1])
    task.client_data(1, 3, 0)
    assert parsed == ["b.json"]
