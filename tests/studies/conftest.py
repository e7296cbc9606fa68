"""The grid of grids.py as a file."""

import pytest

from studies.grids import GRID


@pytest.fixture
def path(tmp_path):
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path / "grid.toml"
