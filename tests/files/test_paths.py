"""What `~` and `$NAME` become, and which paths are refused."""

import os
import re
from pathlib import Path

import pytest

from asyncfeded.files.paths import absolute, expand


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


@pytest.mark.parametrize(("name", "meant"), [
    ("cifar.py:Cifar", "HERE/in/cifar.py:Cifar"),
    ("./sub/cifar.py:A", "HERE/in/sub/cifar.py:A"),
    ("../cifar.py:A", "HERE/cifar.py:A"),
    ("link/../cifar.py:A", "HERE/real/cifar.py:A"),
    ("cifar.py", "HERE/in/cifar.py"),
    ("/there/cifar.py:A", "/there/cifar.py:A"),
    ("~/cifar.py:A", "/homes/me/cifar.py:A"),
    ("a:b/cifar.py:A", "HERE/in/a:b/cifar.py:A"),
    ("digits", "digits"),
    ("package.module:A", "package.module:A"),
])  # fmt: skip
def test_the_name_of_a_class_in_a_file_becomes_absolute(here, name, meant):
    (here / "in").mkdir()
    (here / "real" / "below").mkdir(parents=True)
    (here / "in" / "link").symlink_to(here / "real" / "below")
    assert absolute(name, Path("in")) == meant.replace("HERE", str(here))
