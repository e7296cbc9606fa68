"""Task femnist reads a directory in LEAF's layout, and refuses faulty files."""

import gzip
import json

import numpy as np
import pytest
import torch

from tasks.data import LEAF, leaf_file, numbers, refused, row
from tasks.data import changed as other


def test_files_of_a_leaf_directory_are_merged_by_user(femnist):
    """By name of user; the samples of w0 in the order of the files' names, a before b."""
    task = femnist()
    assert [numbers(task.client_data(client, 3, 0)) for client in range(3)] == [[2.0, 3.0, 5.0, 6.0], [4.0], [1.0]]
    assert task.client_data(0, 3, 0).targets.tolist() == [3, 4, 0, 9]
    assert numbers(task.test_data()) == [7.0]


def test_users_of_a_leaf_directory_are_dealt_in_turn(femnist):
    assert sorted(numbers(femnist().client_data(0, 2, 0))) == [1.0, 2.0, 3.0, 5.0, 6.0]
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


TWICE = b'{"users": ["w9"], "num_samples": [1], "user_data": {"w9": {"x": [0], "y": [0]}, "w9": {"x": [1], "y": [1]}}}'
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
    "more x": (changed(x=[row(9), row(8)]), "user w9: x has 2 entries, y has 1 and num_samples says 1, expected one number"),
    "more num_samples": (changed() | {"num_samples": [1, 2]}, "user w9: x has 1 entries, y has 1 and num_samples says 2"),
    "short row": (changed(x=[row(9)[:-1]]), "writer w9: x has a row of 783 numbers, expected 784: 28 x 28 pixels"),
    "no row": (changed(x=["ab"]), "writer w9: x has a row of 'ab', expected 784"),
    "text in a row": (changed(x=[["0.5", *row(9)[1:]]]), "writer w9: x holds '0.5', expected numbers"),
    "nested row": (changed(x=[[[1.0], *row(9)[1:]]]), "writer w9: x holds [1.0], expected numbers"),
    "NaN": (changed(x=[row(np.nan)]), "writer w9: x holds a value that is not finite"),
    "infinite": (changed(x=[row(np.inf)]), "writer w9: x holds a value that is not finite"),
    "too large": (changed(x=[row(2**20 * 1e300)]), "writer w9: x goes from 0.5 to 1e+300, expected 0 to 1"),
    "huge integer": (
        changed(x=[[10**400, *row(9)[1:]]]),
        "writer w9: x holds 1000000000000000000000000000000000000000, exp",
    ),
    "null": (changed(x=[[None, *row(9)[1:]]]), "writer w9: x holds None, expected numbers"),
    "bytes": (
        changed(x=[[255, *row(9)[1:]]]),
        "writer w9: x goes from 0.5 to 255, expected 0 to 1 (float64, task.scale = auto)",
    ),
    "label of text": (changed(y=["a"]), "writer w9: y holds 'a', expected numbers"),
    "label of truth": (changed(y=[True]), "writer w9: y holds True, expected numbers"),
    "label in a list": (changed(y=[[1]]), "writer w9: y holds [[1]], expected numbers"),
    "broken label": (changed(y=[1.5]), "writer w9: y holds 1.5, expected integers"),
    "huge label": (changed(y=[10**30]), "writer w9: y holds 1000000000000000000000000000000, expected numbers"),
    "data twice": (TWICE, "is not JSON: an object has the key 'w9' twice"),
    "negative label": (changed(y=[-1]), "writer w9: y goes from -1 to -1, expected integers from 0 to 61 (task.classes)"),
    "label too large": (changed(y=[62]), "writer w9: y goes from 62 to 62, expected integers from 0 to 61 (task.classes)"),
}


@pytest.mark.parametrize("fault", LEAF_FAULTS)
@pytest.mark.parametrize("place", ["train", "test"])
def test_a_fault_in_a_leaf_file_is_told_with_file_user_and_field(femnist, tmp_path, fault, place):
    content, words = LEAF_FAULTS[fault]
    refused(femnist(LEAF | {f"{place}/c.json": content}), f"{tmp_path / place / 'c.json'}: {words}")


@pytest.mark.parametrize(("label", "words"), [(0, "y is too"), (2, "y is not")])
def test_samples_that_are_in_two_leaf_files_are_refused_or_kept_as_the_config_says(femnist, tmp_path, label, words):
    """Of the two samples of w0 in b.json, the first is in c.json too, behind another."""
    twin = {"train/c.json": leaf_file({"w0": ([row(8), row(5)], [1, label])})}
    file, before = tmp_path / "train" / "c.json", tmp_path / "train" / "b.json"
    task = femnist(LEAF | twin)
    refused(task, f"{file}: writer w0: x of 1 of 2 samples in {before} is here too, {words}; each sample", "task.repeated")
    kept = other(task, repeated="keep")
    assert numbers(kept.client_data(0, 3, 0)) == [2.0, 3.0, 5.0, 6.0, 8.0, 5.0]


def test_leaf_files_are_read_packed_and_in_capitals_and_others_are_told(femnist, tmp_path):
    packed = gzip.compress(json.dumps(leaf_file({"w3": ([row(8)], [1])})).encode())
    capitals = leaf_file({"w4": ([row(9)], [1])})
    others = {
        "train/d.json.bz2": b"",
        "train/._a.json": b"",
        "train/more/a.json": b"",
        "train/README": b"",
        "train/e.jsonl": b"",
    }
    (tmp_path / "train" / "more").mkdir(parents=True)
    task = femnist(LEAF | {"train/c.json.gz": packed, "train/D.JSON": capitals} | others)
    assert task.sizes(5, 0).tolist() == [4, 1, 1, 1, 1]
    assert numbers(task.client_data(3, 5, 0)) == [8.0]
    names = "._a.json, README, d.json.bz2, e.jsonl, more"
    assert task.remarks() == [f"{tmp_path / 'train'}: only *.json and *.json.gz are read, and not {names}"]


@pytest.mark.parametrize("content", [b"users", gzip.compress(b"[1]", mtime=0)[:-6]])
def test_a_packed_leaf_file_that_is_broken_is_refused(femnist, tmp_path, content):
    refused(femnist(LEAF | {"train/c.json.gz": content}), f"{tmp_path / 'train' / 'c.json.gz'}: cannot be unpacked (")


def test_leaf_files_for_training_and_for_testing_in_one_directory_are_refused(femnist, tmp_path):
    content = leaf_file({"w3": ([row(8)], [1])})
    names = [f"all_data_0_niid_1_keep_0_{kind}_9.json" for kind in ("train", "test")]
    task = femnist({"train/contest.json": content, "test/a.json": content} | {f"train/{name}": content for name in names})
    refused(task, f"{tmp_path / 'train'}: holds {names[0]} and {names[1]}; give training and test data a directory each")


def test_users_without_samples_are_skipped_where_the_config_says_so(femnist, tmp_path):
    """w1 has none in c.json, but one in b.json."""
    task = femnist(LEAF | {"train/c.json": leaf_file({"w1": ([], []), "w3": ([], [])})})
    refused(task, f"{tmp_path / 'train'}: writer w3: no samples; remove the writer")
    skipping = other(task, empty="skip")
    assert skipping.sizes(3, 0).tolist() == [4, 1, 1]
    assert numbers(skipping.client_data(1, 3, 0)) == [4.0]
    assert skipping.remarks() == [f"{tmp_path / 'train'}: 1 of 4 writers have no samples and are left out (task.empty)"]


def test_whole_labels_may_be_floats(femnist):
    files = {"train/a.json": leaf_file({"w0": ([row(1), row(2)], [3.0, 4])}), "test/a.json": LEAF["test/a.json"]}
    assert femnist(files).client_data(0, 1, 0).targets.tolist() == [3, 4]


def test_pixels_of_leaf_up_to_255_are_read_where_the_config_says_so(femnist):
    files = {f"{place}/a.json": leaf_file({"w0": ([[255, 51] + [0] * 782], [3])}) for place in ("train", "test")}
    task = femnist(files, scale=255)
    assert task.client_data(0, 1, 0).inputs.flatten()[:3].tolist() == pytest.approx([1.0, 0.2, 0.0])


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
