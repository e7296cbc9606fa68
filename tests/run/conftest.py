"""Folders to start the program in."""

import pytest

from asyncfeded.store import record
from run.commands import write_toml


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with run.toml, for runs that several tests look at."""
    return write_toml(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def folder(tmp_path):
    """A folder with run.toml."""
    return write_toml(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """Records without asking git for the commit."""
    monkeypatch.setattr(record, "provenance", lambda: {"asyncfeded": "0", "commit": ""})
