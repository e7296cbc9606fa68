"""These fixtures make servers to test."""

import pytest

from training.servers import HAND_WORKED, Bench


@pytest.fixture
def bench(tmp_path):
    """`bench(script, ...)`: a Bench that has not run."""
    made = []
    yield lambda *args, **kwargs: made.append(Bench(tmp_path, *args, **kwargs)) or made[-1]
    for one in made:
        one.record.close()


@pytest.fixture
def hand_worked(bench):
    return bench(HAND_WORKED, updates=3).run()
