"""Text becomes bytes, or the tokens of a tokenizer's file; what is no such file is told in one sentence."""

import io
import sys

import pytest

from asyncfeded.files import tokens
from asyncfeded.files.tokens import read_tokenizer
from files.broken import EVERYWHERE, content

MISSING = "no tokenizer's library: pip install 'asyncfeded[language]'"


def write_json(path):
    pytest.importorskip("tokenizers", reason=MISSING)
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0, "to": 1, "be": 2, "\n": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "removed")
    tokenizer.enable_truncation(1)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(path))


def test_without_a_file_tokens_are_bytes():
    size, encode = read_tokenizer(None)
    assert (size, encode("aé").tolist(), encode("").tolist()) == (256, [97, 0xC3, 0xA9], [])


def test_the_tokens_of_a_json_are_those_of_the_whole_text(tmp_path, monkeypatch):
    """Whatever the file says about the length of a text; and whatever is encoded at once."""
    write_json(tmp_path / "words.json")
    size, encode = read_tokenizer(tmp_path / "words.json")
    text = "to be or be \n to to \n be"
    assert (size, encode(text).tolist()) == (4, [1, 2, 0, 2, 3, 1, 1, 3, 2])
    monkeypatch.setattr(tokens, "PIECE", 2)
    assert (encode(text).tolist(), encode("").tolist()) == ([1, 2, 0, 2, 3, 1, 1, 3, 2], [])


def test_a_vocabulary_may_leave_numbers_out(tmp_path):
    """The largest number is that of the model's last row."""
    write_json(tmp_path / "words.json")
    text = (tmp_path / "words.json").read_text()
    (tmp_path / "words.json").write_text(text.replace('"be": 2', '"be": 7'))
    assert read_tokenizer(tmp_path / "words.json").size == 8


def test_a_model_of_sentencepiece_is_read(tmp_path):
    pieces = pytest.importorskip("sentencepiece", reason=MISSING)
    model = io.BytesIO()
    lines = iter(["to be or not to be", "be or to"] * 20)
    pieces.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=16, model_type="bpe", minloglevel=2
    )
    (tmp_path / "a.model").write_bytes(model.getvalue())
    size, encode = read_tokenizer(tmp_path / "a.model")
    assert size == 16
    assert 0 < len(encode("to be\n")) < 7
    assert encode("to be").max() < 16


@pytest.mark.parametrize("name", ["words.json", "a.model"])
@pytest.mark.parametrize("way", [*EVERYWHERE, "other json"])
def test_what_is_no_tokenizer_is_told_in_one_sentence(tmp_path, one_sentence, name, way):
    pytest.importorskip("tokenizers" if name == "words.json" else "sentencepiece", reason=MISSING)
    write, words = (EVERYWHERE | {"other json": (content(b'{"a": 1}'), "")})[way]
    write(tmp_path / name)
    known = words if way in ("absent", "dangling link", "link to itself", "FIFO", "socket", "device") else ""
    with one_sentence(tmp_path / name, known):
        read_tokenizer(tmp_path / name)


@pytest.mark.parametrize(("name", "library"), [("words.json", "tokenizers"), ("a.model", "sentencepiece")])
def test_a_missing_library_is_named(tmp_path, one_sentence, monkeypatch, name, library):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / name).write_text("{}")
    with one_sentence(tmp_path, f"{name}: a tokenizer's file needs {library}: pip install 'asyncfeded[language]'"):
        read_tokenizer(tmp_path / name)
