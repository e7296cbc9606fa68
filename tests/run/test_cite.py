"""What a run is made from, as BibTeX."""

import re
from pathlib import Path

import pytest

from asyncfeded.config import load_config
from asyncfeded.rules import RULES
from asyncfeded.run.cite import OWN_DATA, REFERENCES, USED, bibliography
from asyncfeded.tasks import TASKS
from conftest import run_asyncfeded

LAUNCH = Path(__file__).parents[2] / "launch"


def cited(*overrides):
    """Keys of the entries for a run of digits with these overrides, and the whole text."""
    text = bibliography(load_config(LAUNCH / "digits.toml", list(overrides)))
    return re.findall(r"^@\w+{(\w+),", text, re.MULTILINE), text


def test_rule_data_split_and_program_are_cited_once_each_with_the_reason():
    keys, text = cited("task.split=dirichlet", "rule.distance=l1")
    assert keys == ["asyncfeded", "wang2022asyncfeded", "wilhelm2026staleness", "alpaydin1998digits", "hsu2019dirichlet"]
    assert "% task.split = dirichlet\n@misc{hsu2019dirichlet,\n  title = {{Measuring the Effects" in text
    assert "cite those" not in text


def test_what_is_used_twice_is_cited_once():
    keys, text = cited("rule.name=fedprox", "task.name=synthetic")
    assert keys == ["asyncfeded", "li2020fedprox"]
    assert "% rule.name = fedprox, task.name = synthetic\n@misc{li2020fedprox," in text


def test_what_only_the_user_can_cite_is_said():
    keys, text = cited("rule.name=mine.py:Mine", "task.name=images", "task.data=a.npz", "task.model=resnet")
    assert keys == ["asyncfeded", "he2016resnet"]
    assert "mine.py:Mine: cite what you made it from\n\n% task.name = images: cite those who made its data" in text


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_cited_with_what_its_docstring_names(rule):
    known = {REFERENCES[key].arxiv for keys in (USED["rule.name"][rule], *USED["rule.distance"].values()) for key in keys}
    assert set(re.findall(r"arXiv (\d{4}\.\d{5})", RULES[rule].__doc__)) <= known


def test_every_task_every_distance_and_every_reference_has_its_place():
    assert set(TASKS) == {*USED["task.name"], *OWN_DATA}
    assert {"euclidean", *USED["rule.distance"]} == set(RULES["asyncfeded"].model_fields["distance"].annotation.__args__)
    assert {key for values in USED.values() for keys in values.values() for key in keys} == set(REFERENCES)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    done = run_asyncfeded("cite", tmp_path, cwd=tmp_path)
    assert (done.status, done.stdout) == (2, "")
    assert "config.toml" in done.stderr
