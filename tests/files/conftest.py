"""A limit of time and of memory for whatever reads a broken file."""

import signal
import tracemalloc
from contextlib import contextmanager

import pytest

MOST_BYTES = 64 << 20


def _too_long(number, frame):
    raise AssertionError("it hangs")


@pytest.fixture
def one_sentence():
    """What a block says, which must be one sentence that names the file, soon, and without much memory."""

    @contextmanager
    def expect(path, words):
        before = signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(60)
        tracemalloc.start()
        try:
            with pytest.raises(ValueError) as caught:  # noqa: PT011, the words are compared
                yield
            assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
        finally:
            tracemalloc.stop()
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        said = str(caught.value)
        assert str(path) in said
        assert words in said
        assert "\n" not in said

    return expect
