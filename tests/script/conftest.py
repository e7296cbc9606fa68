"""A folder to start scripts in."""

import pytest

from run.commands import write_toml


@pytest.fixture
def folder(tmp_path):
    """A folder with run.toml."""
    return write_toml(tmp_path)
