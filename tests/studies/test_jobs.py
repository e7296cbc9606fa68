"""Configs in layers. That runs are done, skipped and lost one by one is tested with the studies that they make."""

import pytest

from asyncfeded.studies.jobs import compose, nest, overlay


def test_a_layer_replaces_values_and_merges_sections():
    below = {"clients": 3, "rule": {"name": "fedasync", "alpha": 0.5}}
    assert overlay(below, {"clients": 2, "rule": {"alpha": 0.1}, "seed": 7}) == {
        "clients": 2, "rule": {"name": "fedasync", "alpha": 0.1}, "seed": 7,
    }  # fmt: skip
    assert below == {"clients": 3, "rule": {"name": "fedasync", "alpha": 0.5}}


def test_keys_with_points_are_sections():
    assert nest({"rule.alpha": 0.1, "rule.name": "fedasync", "seed": 1}) == {
        "rule": {"alpha": 0.1, "name": "fedasync"}, "seed": 1,
    }  # fmt: skip


def test_a_config_of_layers_has_the_defaults_of_its_task_and_rule():
    config = compose([{"limits": {"updates": 5}}, {"rule": {"name": "fedasync"}}, {"limits": {"seconds": 2}}], "here")
    assert (config.limits.updates, config.limits.seconds) == (5, 2)
    assert config.rule["alpha"] > 0
    assert config.task["split"] == "dirichlet"


def test_a_wrong_layer_is_refused_by_name():
    with pytest.raises(ValueError, match=r"weak with 3: unknown key limits\.update; did you mean updates"):
        compose([{"limits": {"update": 5}}], "weak with 3")
