"""Records that no run has made, of any size and with any oddity."""

import json
from pathlib import Path

import numpy as np
import pytest

from asyncfeded.store.record import UPDATE, Record
from asyncfeded.training.heterogeneity import PROFILE
from conftest import METRICS, places, tables

CONFIG = """\
run_dir = {folder}
clock = "{clock}"
seed = 1
[task]
name = "digits"
[rule]
name = "{rule}"
gamma_bar = 3.0
"""


def rows(updates, clients, refused=(), gamma=None):
    """Updates of a run of 60 s: client 0 makes every second one, the others make the rest in turn."""
    number = np.arange(updates)
    made = np.zeros(updates, UPDATE)
    made["time_s"] = 60.0 * (number + 1) / max(updates, 1)
    made["client"] = np.where(number % 2, 1 + number // 2 % max(clients - 1, 1), 0) % clients
    made["version"], made["tau"], made["epochs"], made["queue"] = number + 1, number % 5, 1 + number % 4, number % 3
    made["gamma"] = 1.0 + number % 7 if gamma is None else gamma
    made["eta"], made["change_norm"] = 0.5, 1.0 + made["client"]
    made["compute_s"], made["wait_s"], made["service_s"] = 0.1, 0.02, 0.001
    made["accepted"] = ~np.isin(number, refused)
    return made


def make(folder, updates=40, clients=4, evaluations=10, rule="asyncfeded", clock="wall", gain=0.9, **odd):
    """Write the record of a run, and of one that has ended its result. Odd are also `ended`, `events`, and the indices of
    evaluations that are `lost`.
    """
    lost, ended, events = odd.pop("lost", ()), odd.pop("ended", True), odd.pop("events", ())
    folder.mkdir(parents=True)
    profiles = np.zeros(clients, PROFILE)
    profiles["samples"] = 10 * (1 + np.arange(clients))
    config = CONFIG.format(folder=json.dumps(str(folder)), clock=clock, rule=rule)
    values = [np.nan if i in lost else gain * i / max(evaluations - 1, 1) for i in range(evaluations)]
    tested = [(6.0 * i, 4 * i, value, 2.0 - 0.1 * i) for i, value in enumerate(values)]
    before = tables(evaluations=tested, events=events)._replace(updates=rows(updates, clients, **odd))
    book = Record(folder / "record.h5", config, places(*["node1"] * 3), profiles, METRICS, before)
    if not ended:
        book.release()
        return folder
    book.close()
    result = {"seconds": 60.0, "wall_s": 60.0, "server_busy": 0.03, "server_evaluating": 0.12, "stopped": "60 s are over"}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


@pytest.fixture
def made(tmp_path):
    """Makes runs in folders of this test."""

    def one(name, **how):
        return make(tmp_path / name, **how)

    return one


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """A study of three rules, four seeds and two error probabilities; only to be read."""
    folder, head = (
        tmp_path_factory.mktemp("studies") / "a study",
        "task,rule,error_probability,seed,config_sha256,outcome,metric,best,final,mean,updates",
    )
    lines = [head + ",target_1,seconds_to_target_1"]
    for i, rule in enumerate(("asyncfeded", "fedavg", "fedasync")):
        for p in (0, 0.5):
            for seed in range(4):
                sha = f"{i}{int(10 * p)}{seed}".ljust(64, "0")
                best = 0.9 - 0.1 * i + 0.001 * ((seed + i) % 3)
                if (i, seed) == (2, 3):
                    lines.append(f"digits,{rule},{p:g},{seed},{sha},not done,,,,,,,")
                    continue
                make(folder / "runs" / f"digits-{rule}-p{p:g}-s{seed}-{sha[:8]}", rule=rule, gain=best)
                lines.append(f"digits,{rule},{p:g},{seed},{sha},done,accuracy,{best},{best},{best / 2},40,0.5,{20 + i}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def scaling():
    """A scaling study with a prediction: the one of the documents."""
    return Path(__file__).parents[2] / "docs" / "scaling"
