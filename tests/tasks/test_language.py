"""Task language cuts text into blocks of tokens, each predicted once, and refuses what is too short or no text."""

import math
import re

import h5py
import pytest
import torch
from torch import nn

from asyncfeded import tasks
from asyncfeded.tasks.gpt import GPT
from tasks.data import SHARED, changed, real, refused, split

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def blocks(data):
    """As text again: what the model sees, and what follows."""
    return [(bytes(x.tolist()).decode(), bytes(y.tolist()).decode()) for x, y in zip(*data, strict=True)]


def test_each_token_is_predicted_once_and_the_end_is_held_back(text):
    """26 letters: 24 to train on, of which 5 blocks of 4 with the letter behind them; 2 held back, too few for a block.

    20 digits: 18 to train on, 4 blocks; 2 held back.
    """
    task = text(split="file")
    assert blocks(task.client_data(0, 2, 0)) == [
        ("abcd", "bcde"), ("efgh", "fghi"), ("ijkl", "jklm"), ("mnop", "nopq"), ("qrst", "rstu"),
    ]  # fmt: skip
    assert blocks(task.client_data(1, 2, 0)) == [
        ("0123", "1234"), ("4567", "5678"), ("8901", "9012"), ("2345", "3456"),
    ]  # fmt: skip
    assert task.sizes(2, 0).tolist() == [5, 4]
    refused(task, "no source has a block of 4 tokens (task.context) to test on; raise task.test_share, take a smaller")


def test_half_of_each_file_is_tested_on(text):
    """13 letters are held back, 3 blocks; 10 digits, 2 blocks. A client holds out what is of its own files."""
    task = text(split="file", test_share=0.5)
    letters, digits = [("nopq", "opqr"), ("rstu", "stuv"), ("vwxy", "wxyz")], [("0123", "1234"), ("4567", "5678")]
    assert blocks(task.test_data()) == letters + digits
    assert [blocks(task.held_out(client, 2, 0)) for client in (0, 1)] == [letters, digits]
    assert task.sizes(2, 0).tolist() == [3, 2]


def test_blocks_are_dealt_in_equal_runs_that_follow_each_other(text):
    """Five blocks of letters and four of digits; and what is held back in the same way: three and two."""
    task = text(test_share=0.5)
    assert [[x for x, _ in blocks(data)] for data in split(task, 2)] == [["abcd", "efgh"], ["ijkl", "0123", "4567"]]
    assert [[x for x, _ in blocks(task.held_out(i, 2, 0))] for i in (0, 1)] == [["nopq", "rstu"], ["vwxy", "0123", "4567"]]
    task = text()
    for clients in (1, 2, 3, 4, 9):
        parts = split(task, clients)
        assert [len(data.targets) for data in parts] == task.sizes(clients, 0).tolist()
        assert max(task.sizes(clients, 0)) - min(task.sizes(clients, 0)) <= 1
        assert sum(map(blocks, parts), []) == blocks(task.client_data(0, 1, 0))  # noqa: RUF017, short


def test_a_single_file_is_text_too(text, tmp_path):
    task = changed(text(), data=str(tmp_path / "text" / "a.txt"))
    assert [x for x, _ in blocks(task.client_data(1, 2, 0))] == ["ijkl", "mnop", "qrst"]


def test_other_text_may_be_tested_on(text, tmp_path):
    """Then nothing is held back: 26 letters are 6 blocks, and of 20 digits 4."""
    (tmp_path / "test.txt").write_text("To be, or not")
    task = text(split="file", test=str(tmp_path / "test.txt"))
    assert task.sizes(2, 0).tolist() == [6, 4]
    assert [x for x, _ in blocks(task.test_data())] == ["To b", "e, o", "r no"]
    with pytest.raises(ValueError, match=r"task\.test is for the server; leave it out"):
        task.held_out(0, 2, 0)


def test_files_are_chosen_by_pattern_and_by_name(text):
    task = text({"a.txt": LETTERS, "b.py": LETTERS, "c/d.py": LETTERS, "c/.e.py": LETTERS}, split="file", pattern="*.py")
    assert task.sizes(2, 0).tolist() == [5, 5]
    assert changed(task, names=["c/d.py"]).sizes(1, 0).tolist() == [5]
    refused(changed(task, names=["c/e.py"]), "text: no file 'c/e.py' (task.names); did you mean c/d.py?")
    refused(changed(task, pattern="*.md"), "text: no file *.md in this directory (task.pattern)")
    assert task.remarks()[0].endswith("text: only *.py is read (task.pattern), and not a.txt")


def test_a_source_that_is_too_short_is_refused_or_skipped(text):
    """4 tokens and the one behind them are needed, and a tenth is held back."""
    files = {"a.txt": LETTERS, "b.txt": "12345", "c.txt": "1234", "d.txt": ""}
    task = text(files, split="file")
    refused(task, "text: c.txt: 4 tokens to train on, too few for a block of 4 (task.context) and the token behind it")
    task = changed(task, too_short="skip", test_share=0.2)
    assert task.sizes(1, 0).tolist() == [5]
    assert [sentence.partition(": ")[2] for sentence in task.remarks()] == [
        "3 of 4 sources are too short and left out (task.too_short)",
        "the end of each source is held back for testing (task.test_share = 0.2)",
    ]
    assert changed(task, test_share=0.1).remarks()[2].endswith(": 2 of 2 sources are too short to be tested on")
    refused(changed(task, names=["c.txt"]), "text: no source has tokens enough for a block of 4 (task.context)")


@pytest.fixture
def roles(tmp_path):
    """A task of the roles of a play."""

    def write(keys=None, **texts):
        with h5py.File(tmp_path / "roles.h5", "w") as file:
            for role, snippets in (texts or {"A": ["To be,", "or not"], "B": ["abcdefghi"], "C": ["é" * 9]}).items():
                file[f"examples/{role}/snippets"] = snippets
        table = {"name": "language", "data": str(tmp_path / "roles.h5"), "split": "role", "context": 4, "width": 8}
        return tasks.load_task(table | (keys or {}))

    return write


def test_snippets_of_a_role_are_one_text(roles):
    """13 letters, a tenth held back; 9; 9 letters of 2 bytes each are 18."""
    task = roles()
    assert [x for x, _ in blocks(task.client_data(0, 3, 0))] == ["To b", "e, o"]
    assert task.sizes(3, 0).tolist() == [2, 2, 4]
    assert changed(task, names=["C", "A"]).sizes(2, 0).tolist() == [4, 2]
    with pytest.raises(ValueError, match=r"roles\.h5 has 3 roles \(task\.split = role\), too few for 4 clients"):
        task.client_data(0, 4, 0)


FAULTS = {
    "no directory": ({}, {"data": "gone"}, "gone: no such file; give the path of a text file, or of a directory"),
    "gzip": ({"a.txt": b"\x1f\x8b" + bytes(99)}, {}, "a.txt: is compressed (gzip); unpack it"),
    "UTF-16": ({"a.txt": LETTERS.encode("utf-16")}, {}, "a.txt: is no text in UTF-8 (but perhaps in UTF-16)"),
    "no tokenizer": ({}, {"tokenizer": "gone.json"}, "gone.json: no such file; give the path of a tokenizer as"),
    "text for roles": ({}, {"split": "role"}, "text: is a directory, expected a file; give the path of an HDF5 file of"),
    "roles for text": ({"a.txt": b"\x89HDF\r\n\x1a\n" + bytes(99)}, {}, "a.txt: is an HDF5 file; if it holds texts by"),
    "an absolute pattern": ({}, {"pattern": "/etc/*"}, "task.pattern = '/etc/*': Non-relative"),
    "one file": ({"a.txt": LETTERS}, {"split": "file"}, "text has 1 files (task.split = file), too few for 2 clients"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_text_is_told_with_its_file(text, fault):
    files, keys, words = FAULTS[fault]
    task = text(files, **keys)
    with pytest.raises(ValueError, match=re.escape(words)):
        task.model(), task.client_data(0, 2, 0)


@pytest.mark.parametrize(("keys", "words"), [
    ({"width": 6, "heads": 4}, "width = 6 cannot be divided by heads = 4"),
    ({"names": ["a", "a"]}, "names holds a name twice"),
])  # fmt: skip
def test_keys_of_text_that_do_not_fit_are_refused(keys, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        tasks.load_task({"name": "language", "data": "a"} | keys)


def test_tokens_may_be_those_of_a_tokenizer(text, tmp_path):
    """11 words, of which one is held back: 2 blocks of 4; numbers of words in order of their first place."""
    pytest.importorskip("tokenizers", reason="no tokenizer's library: pip install 'asyncfeded[language]'")
    from tokenizers import Tokenizer, models, pre_tokenizers

    said = "to be or not to be that is the question : whether"
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(said.split()))}, unk_token="to"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "words.json"))
    task = text({"a.txt": said}, tokenizer=str(tmp_path / "words.json"), test_share=0.08)
    data = task.client_data(0, 1, 0)
    assert (data.inputs.dtype, data.targets.dtype) == (torch.int32, torch.int32)
    assert data.inputs.tolist() == [[0, 1, 2, 3], [0, 1, 4, 5]]
    assert data.targets.tolist() == [[1, 2, 3, 0], [1, 4, 5, 6]]
    assert task.model()(data.inputs).shape == (2, 4, 10)
    assert task.sizes(1, 0).tolist() == [2]


class Knows(nn.Module):
    """Gives the letter behind the one seen the probability p, and the other 255 bytes the rest."""

    def __init__(self, p):
        super().__init__()
        self.scores = torch.log(torch.tensor([(1 - p) / 255, p]))

    def forward(self, tokens):
        return self.scores[nn.functional.one_hot(tokens.long() + 1, 256)]


def test_perplexity_is_that_of_a_token(text):
    """It is 1 / p where the next letter has the probability p, whatever the number of tokens."""
    task = text({"a.txt": LETTERS})
    data = task.client_data(0, 1, 0)
    sums = task.score(Knows(0.2), data)
    assert {name: count for name, (_, count) in sums.items()} == dict.fromkeys(("perplexity", "loss", "accuracy"), 20)
    assert float(sums["loss"][0]) == pytest.approx(20 * math.log(5))
    assert type(task).metrics["perplexity"].value(float(sums["perplexity"][0]), 20) == pytest.approx(5)
    assert int(sums["accuracy"][0]) == 20
    assert float(task.loss(Knows(0.2), data)) == pytest.approx(math.log(5))


def test_the_gpt_sees_no_token_behind_the_one_it_predicts():
    torch.manual_seed(0)
    model, tokens = GPT(256, 8, 2, 2, 8), torch.arange(8)[None]
    before = model(tokens)
    tokens = tokens.clone()
    tokens[0, 5] = 99
    after = model(tokens)
    assert torch.equal(before[0, :5], after[0, :5])
    assert not torch.equal(before[0, 5], after[0, 5])
    assert model(tokens[:, :3]).shape == (1, 3, 256)


def test_the_gpt_embeds_and_scores_with_one_parameter():
    """Tables 256 x 8 and 4 x 8; a layer has 2 x 16 of norms, 24 x 8 + 8 x 8 of attention, 8 x 32 + 32 + 32 x 8 + 8; 16."""
    model = GPT(256, 4, 3, 2, 8)
    assert sum(p.numel() for p in model.parameters()) == 2048 + 32 + 3 * (32 + 192 + 64 + 256 + 32 + 256 + 8) + 16
    assert list(model.buffers()) == []
    assert len(dict(model.named_parameters(remove_duplicate=False))) == len(list(model.parameters()))


def test_the_gpt_begins_as_ignorant_as_it_is(text):
    """Its first loss is about that of 256 bytes that are all as likely."""
    torch.manual_seed(0)
    task = text()
    assert task.loss(task.model(), task.client_data(0, 1, 0)).item() == pytest.approx(math.log(256), abs=0.05)


@real
def test_the_real_roles_are_cut_and_held_back():
    """As Hamlet alone is long enough to show it."""
    keys = {"data": str(SHARED / "shakespeare_by_role_train.h5"), "split": "role", "names": ["HAMLET_HAMLET"]}
    task = tasks.load_task({"name": "language"} | keys)
    (sizes,) = task.sizes(1, 0)
    assert task.client_data(0, 1, 0).inputs.shape == (sizes, 64)
    assert len(task.held_out(0, 1, 0).targets) == len(task.test_data().targets) == pytest.approx(sizes / 9, rel=0.02)
