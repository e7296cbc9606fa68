"""Task shakespeare cuts roles into windows of characters, and refuses faulty files."""

import re

import h5py
import numpy as np
import pytest
import torch

from asyncfeded import tasks
from asyncfeded.tasks import shakespeare as shakespeare_room
from asyncfeded.tasks.shakespeare import VOCABULARY
from tasks.data import PLAYS, SHARED, TEXTS, changed, leaf_file, real, refused, windows


def index(text):
    return [VOCABULARY.index(symbol) for symbol in text]


def test_the_vocabulary_is_leafs():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 80
    assert index("\n !Az}") == [0, 1, 2, 25, 78, 79]


def test_every_character_has_an_index_and_an_unknown_one_that_of_the_brace():
    assert shakespeare_room.encode(VOCABULARY).tolist() == list(range(80))
    assert shakespeare_room.encode("a\tb\x7f\u00e9\U0001f600\ud800{").tolist() == [53, 79, 54, 79, 79, 79, 79, 79]


def test_windows_of_a_role_are_cut_at_every_character(shakespeare):
    """`To be, or not`: 13 characters, windows of 4 and the character after: 9."""
    data = shakespeare().client_data(0, 3, 0)
    assert data.inputs.shape == (9, 4)
    assert (data.inputs.dtype, data.targets.dtype) == (torch.uint8, torch.int64)
    assert data.inputs[0].tolist() == index("To b")
    assert windows(data) == [
        ("To b", "e"), ("o be", ","), (" be,", " "), ("be, ", "o"), ("e, o", "r"),
        (", or", " "), (" or ", "n"), ("or n", "o"), ("r no", "t"),
    ]  # fmt: skip


def test_stride_and_the_largest_number_of_windows(shakespeare):
    """Starts 0, 3, 6 of 0 .. 8; test text `or to b`: starts 0, 1, 2."""
    assert windows(shakespeare(stride=3).client_data(0, 3, 0)) == [("To b", "e"), ("be, ", "o"), (" or ", "n")]
    task = shakespeare(stride=3, windows_max=2)
    assert windows(task.client_data(0, 3, 0)) == [("To b", "e"), ("be, ", "o")]
    assert task.sizes(3, 0).tolist() == [2, 1, 2]
    assert windows(shakespeare(test_windows_max=2).test_data()) == [("or t", "o"), ("r to", " ")]


def test_roles_are_dealt_in_turn_and_no_window_spans_two(shakespeare):
    data = shakespeare().client_data(0, 2, 0)
    assert windows(data)[8:10] == [("r no", "t"), ("slee", "p")]
    assert shakespeare().sizes(2, 0).tolist() == [18, 1]


def test_only_roles_trained_on_are_tested_on(shakespeare):
    assert len(shakespeare().test_data().targets) == 3
    refused(shakespeare(role_names=["B"]), "test.h5: none of the roles chosen from")


def test_roles_are_chosen_by_number_or_by_name(shakespeare):
    assert shakespeare(roles=2).sizes(2, 0).tolist() == [9, 1]
    task = shakespeare(role_names=["C", "A"])
    assert windows(task.client_data(0, 2, 0))[0] == ("slee", "p")
    assert len(task.test_data().targets) == 3


@pytest.mark.parametrize(("keys", "words"), [
    ({"roles": 1, "role_names": ["A"]}, "both roles = 1 and role_names are given; leave one of them out"),
    ({"role_names": ["A", "A"]}, "role_names holds 'A' twice"),
    ({"window": 0}, "window = 0"),
])  # fmt: skip
def test_keys_of_shakespeare_that_do_not_fit_are_refused(shakespeare, keys, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        shakespeare(**keys)


def test_a_role_that_is_not_there_is_refused(shakespeare):
    refused(shakespeare(role_names=["A", "a"]), "train.h5: no role 'a' (task.role_names)")
    refused(shakespeare({"HAMLET": ["to be or"]}, role_names=["HAMLT"]), "did you mean HAMLET?")


def test_too_few_roles_are_refused(shakespeare):
    with pytest.raises(
        ValueError, match=r"train\.h5 has 2 roles \(task\.roles = 2\), too few for 3 clients; lower clients to 2"
    ):
        shakespeare(roles=2).sizes(3, 0)


@pytest.mark.parametrize("ask", ["sizes", "client_data"])
@pytest.mark.parametrize("text", [["abcd"], ["a", "b"], []])
def test_a_text_too_short_for_one_window_is_refused(shakespeare, ask, text):
    snippets = np.array(text, dtype=h5py.string_dtype())
    task = shakespeare({"A": ["abcde"], "S": snippets})
    words = f"train.h5: role S: snippets hold {len(' '.join(text))} characters, too few for one window of 4 (task.window)"
    with pytest.raises(ValueError, match=re.escape(words)):
        task.sizes(1, 0) if ask == "sizes" else task.client_data(0, 1, 0)


def test_a_text_too_short_can_be_skipped(shakespeare):
    task = shakespeare({"A": ["abcd"]} | {"B": ["abcde"], "C": ["abcdef"]}, {"B": ["abc"], "C": ["abcde"]}, too_short="skip")
    assert task.sizes(2, 0).tolist() == [1, 2]
    assert len(task.test_data().targets) == 1
    assert changed(task, roles=1).sizes(1, 0).tolist() == [1]
    with pytest.raises(ValueError, match="too few for one window"):
        changed(task, too_short="refuse").test_data()


def test_characters_outside_the_vocabulary_are_told_with_their_share(shakespeare):
    """`été }{` has 3 that are unknown of 6, and `abcd` none of 4; the test text `oui, où` has 1 of 7."""
    task = shakespeare({"A": ["été }{"], "B": ["abcd"]}, {"A": ["oui, où"]}, window=3)
    roles, train, test = task.remarks()
    words = "of the characters are none of the 80 symbols known and are read as '}': "
    assert roles.endswith("test.h5: tested on 1 roles, of 2 trained on and 1 in the file")
    assert train.endswith(f"train.h5: 30.00% {words}'é' (2), '{{' (1)")
    assert test.endswith(f"test.h5: 14.29% {words}'ù' (1)")


def test_roles_that_are_left_out_are_told(shakespeare):
    task = shakespeare(TEXTS | {"S": ["abc"]}, TEXTS, too_short="skip")
    (said,) = task.remarks()
    assert said.endswith("train.h5: 1 of 4 roles are too short and left out (task.too_short)")
    assert shakespeare(TEXTS, TEXTS).remarks() == []


def test_another_field_may_hold_the_text(shakespeare, tmp_path):
    task = shakespeare(snippets="speech")
    for place in ("train", "test"):
        with h5py.File(tmp_path / f"{place}.h5", "a") as file:
            for role in file["examples"].values():
                role.move("snippets", "speech")
    assert task.sizes(3, 0).tolist() == [9, 1, 9]


def test_a_refrain_in_two_files_is_refused_or_kept_as_the_config_says(plays):
    files = PLAYS | {"train/c.json": leaf_file({"A": (["To b"], ["e"])})}
    refused(plays(files), "c.json: role A: x of 1 of 2 samples in ", "task.repeated")
    assert plays(files, repeated="keep").sizes(2, 0).tolist() == [5, 1]


def test_roles_of_leaf_without_samples_are_skipped_where_the_config_says_so(plays):
    files = PLAYS | {"train/c.json": leaf_file({"C": ([], [])})}
    refused(plays(files), "role C: no samples; remove the role, or set task.too_short")
    task = plays(files, too_short="skip")
    assert task.sizes(2, 0).tolist() == [4, 1]
    assert "1 of 3 roles are too short and left out" in task.remarks()[0]


def test_characters_of_leaf_outside_the_vocabulary_are_told(plays):
    files = PLAYS | {"test/a.json": leaf_file({"A": (["or t", "r tö", " tö "], ["ö", " ", "b"])})}
    assert (
        plays(files)
        .remarks()[-1]
        .endswith("33.33% of the characters are none of the 80 symbols known and are read as '}': 'ö' (1)")
    )


SNIPPET_FAULTS = {
    "no snippets": ({"text": ["to be or not"]}, "no field 'snippets', it has text; name the right one with task.snippets"),
    "numbers": ({"snippets": [1, 2]}, "snippets is int64 (2,), expected strings of shape (n,)"),
    "one string": ({"snippets": "to be or not"}, "snippets is object (), expected strings of shape (n,)"),
    "not UTF-8": ({"snippets": np.array([b"to be \xff"])}, "snippets holds bytes that are not UTF-8"),
}


@pytest.mark.parametrize("fault", SNIPPET_FAULTS)
@pytest.mark.parametrize("place", ["train", "test"])
def test_a_fault_in_a_snippets_file_is_told_with_file_role_and_field(shakespeare, tmp_path, fault, place):
    fields, words = SNIPPET_FAULTS[fault]
    task = shakespeare({"A": ["abcde"], "bad": ["abcde"]}, {"A": ["abcde"], "bad": ["abcde"]})
    with h5py.File(tmp_path / f"{place}.h5", "a") as file:
        del file["examples/bad"]
        for field, values in fields.items():
            file[f"examples/bad/{field}"] = values
    refused(task, f"{tmp_path / place}.h5: role bad: {words}")


def test_strings_of_fixed_length_are_read_too(shakespeare):
    assert windows(shakespeare({"A": np.array([b"To be"])}).client_data(0, 1, 0)) == [("To b", "e")]


def test_a_missing_file_of_shakespeare_is_refused(shakespeare, tmp_path):
    task = shakespeare()
    (tmp_path / "train.h5").unlink()
    refused(task, "train.h5: no such file; give the path")


def test_windows_of_leaf_are_merged_by_role(plays):
    """A of both files; every third of its four windows, across the files."""
    assert windows(plays().client_data(0, 2, 0)) == [("To b", "e"), ("o be", ","), (" be,", " "), ("be, ", "o")]
    task = plays(stride=3)
    assert windows(task.client_data(0, 2, 0)) == [("To b", "e"), ("be, ", "o")]
    assert task.sizes(2, 0).tolist() == [2, 1]
    assert windows(task.test_data()) == [("or t", "o")]


PLAY_FAULTS = {
    "short x": ((["abc"], ["d"]), "x holds a string of 3, expected strings of 4 characters (task.window)"),
    "long y": ((["abcd"], ["ef"]), "y holds a string of 2, expected strings of 1 character"),
    "x of numbers": (([[1, 2, 3, 4]], ["e"]), "x holds [1, 2, 3, 4], expected strings of 4"),
    "y of numbers": ((["abcd"], [5]), "y holds 5, expected strings of 1"),
}


@pytest.mark.parametrize("fault", PLAY_FAULTS)
@pytest.mark.parametrize("place", ["train", "test"])
def test_a_fault_in_leafs_plays_is_told_with_file_role_and_field(plays, tmp_path, fault, place):
    fields, words = PLAY_FAULTS[fault]
    bad = {"train/a.json": leaf_file({"A": (["To b"], ["e"])}), f"{place}/c.json": leaf_file({"A": fields})}
    refused(plays(PLAYS | bad), f"{tmp_path / place / 'c.json'}: role A: {words}")


def test_the_model_of_shakespeare_is_leafs():
    """80 x 8 embedding; per LSTM layer 4 x 256 x (inputs + 256 + 2 biases), inputs 8 and 256; 257 x 80 at the end."""
    model = tasks.load_task({"name": "shakespeare", "train": "a", "test": "b"}).model()
    assert sum(p.numel() for p in model.parameters()) == 640 + 1024 * (8 + 258) + 1024 * (256 + 258) + 257 * 80
    assert model(torch.zeros(3, 80, dtype=torch.uint8)).shape == (3, 80)


@pytest.mark.parametrize(("embedding", "hidden", "layers"), [(3, 5, 1), (8, 16, 3)])
def test_the_sizes_of_the_model_of_shakespeare_can_be_chosen(shakespeare, embedding, hidden, layers):
    model = shakespeare(embedding=embedding, hidden=hidden, layers=layers).model()
    assert model.embedding.weight.shape == (80, embedding)
    assert (model.lstm.hidden_size, model.lstm.num_layers) == (hidden, layers)


def test_the_score_depends_on_every_character_of_the_window(shakespeare):
    model = shakespeare().model()
    one = torch.tensor([index("abcd")], dtype=torch.uint8)
    for place in range(4):
        two = one.clone()
        two[0, place] += 1
        assert not torch.equal(model(one), model(two))


@real
def test_the_real_shakespeare_is_read():
    """1124 roles to train on, 635 of them to test on (README.md beside the files): 80 windows fewer than characters each."""
    paths = {name: SHARED / f"shakespeare_by_role_{name}.h5" for name in ("train", "test")}
    task = tasks.load_task({"name": "shakespeare"} | {name: str(path) for name, path in paths.items()})
    lengths = {}
    for name, path in paths.items():
        with h5py.File(path, "r") as file:
            lengths[name] = {role: len(b" ".join(group["snippets"][:])) for role, group in file["examples"].items()}
    assert task.sizes(1124, 0).tolist() == [lengths["train"][role] - 80 for role in sorted(lengths["train"])]
    with pytest.raises(ValueError, match="has 1124 roles"):
        task.sizes(1125, 0)
    hamlet = changed(task, role_names=("HAMLET_HAMLET",))
    data = hamlet.client_data(0, 1, 0)
    assert data.inputs.shape == (lengths["train"]["HAMLET_HAMLET"] - 80, 80)
    first = "A little more than kin, and less than kind. Not so, my lord; I am too much i' the sun."
    assert windows(data)[0] == (first[:80], first[80])
    assert len(task.test_data().targets) == sum(lengths["test"].values()) - 80 * 635
