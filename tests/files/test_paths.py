"""What `~` and `$NAME` become, and which paths are refused."""

import os
import re

import pytest

from asyncfeded.files.paths import expand


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/homes/me")
    monkeypatch.setenv("SCRATCH", "/fast disk")
    return tmp_path


@pytest.mark.parametrize(("typed", "meant"), [
    ("", ""),
    ("~", "/homes/me"),
    ("~/runs/a", "/homes/me/runs/a"),
    ("$SCRATCH/a b", "/fast disk/a b"),
    ("${SCRATCH}s/a", "/fast disks/a"),
    ("runs/../a/", "runs/../a/"),
    ("a~b", "a~b"),
    ("5$", "5$"),
    ("8123_4", "8123_4"),
    ("ünï/日本", "ünï/日本"),
])  # fmt: skip
def test_a_path_is_what_a_shell_would_make_of_it(here, typed, meant):
    assert expand(typed) == meant


def test_what_exists_as_written_stays(here):
    """A shell has expanded what it could; the name that is left is the user's."""
    (here / "cost$here").mkdir()
    assert expand("cost$here") == "cost$here"


@pytest.mark.parametrize(("typed", "words"), [
    ("$NOPE/a", "the environment has no variable $NOPE; set it"),
    ("${NO PE}", "the environment has no variable ${NO PE}"),
    ("~nobody-here/a", "there is no such user, whose home that would be; write ./~nobody-here/a"),
    ("a\nb", "a control character"),
    ("a\0b", "a control character"),
    (" ", "nothing but spaces"),
    ("a/" + "x" * 256, "a name of more than 255 bytes"),
    ("a/" + "ü" * 128, "a name of more than 255 bytes"),
    (os.fsdecode(b"bad\xff"), "the locale has no such name; set LC_ALL=C.UTF-8"),
])  # fmt: skip
def test_a_path_that_cannot_be_meant_is_refused(here, typed, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        expand(typed)
