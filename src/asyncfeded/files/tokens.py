"""Turns text into tokens: its bytes, or the tokens of a tokenizer that a user's file describes.

A file *.json is one of Hugging Face's `tokenizers`, a file *.model one of `sentencepiece`; both libraries are optional, and
neither runs code from its file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asyncfeded.files.plain import FileFaultError, read_bytes

PIECE = 1 << 20
"""Characters that are turned into tokens at once, up to the end of a line: a tokenizer takes some 200 bytes for a token."""


class Tokenizer(NamedTuple):
    """What turns text into tokens."""

    size: int
    """Number of tokens that there are."""
    encode: Callable[[str], np.ndarray]
    """The tokens of a text: uint8 (n,) if they are its bytes, int32 (n,) otherwise."""


def read_tokenizer(path: Path | None) -> Tokenizer:
    """The tokenizer in a file; None: the 256 bytes of UTF-8.

    Raises:
        FileFaultError: there is no such file, it is none of a tokenizer, or the library that reads it is missing.
    """
    if path is None:
        return Tokenizer(256, lambda text: np.frombuffer(text.encode(), np.uint8))
    content = read_bytes(path, "give the path of a tokenizer as task.tokenizer=..., or leave it out")
    try:
        if not content:  # an empty model is taken by its library
            raise ValueError("it is empty")
        if path.suffix == ".model":
            from sentencepiece import SentencePieceProcessor

            pieces = SentencePieceProcessor(model_proto=content)
            return Tokenizer(pieces.get_piece_size(), lambda text: _in_pieces(text, pieces.encode))
        from tokenizers import Tokenizer as FromJson

        words = FromJson.from_buffer(content)
        words.no_truncation()
        words.no_padding()
        size = 1 + max(words.get_vocab().values())  # numbers may be left out
        return Tokenizer(
            size, lambda text: _in_pieces(text, lambda piece: words.encode(piece, add_special_tokens=False).ids)
        )
    except ImportError:
        name = "sentencepiece" if path.suffix == ".model" else "tokenizers"
        raise FileFaultError(f"{path}: a tokenizer's file needs {name}: pip install 'asyncfeded[language]'") from None
    except Exception as error:  # of the libraries' own kinds, which are plain Exception and RuntimeError
        kind = "a model of sentencepiece" if path.suffix == ".model" else "a tokenizer.json of Hugging Face's tokenizers"
        said = " ".join(str(error).split())[:200]
        raise FileFaultError(f"{path}: is not {kind} ({said or type(error).__name__})") from None


def _in_pieces(text: str, encode: Callable[[str], list[int]]) -> np.ndarray:
    """The tokens of a text, piece by piece."""
    tokens, start = [np.zeros(0, np.int32)], 0
    while start < len(text):
        end = text.find("\n", start + PIECE) + 1 or len(text)
        tokens.append(np.array(encode(text[start:end]), np.int32))
        start = end
    return np.concatenate(tokens)
