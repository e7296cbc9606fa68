"""What was run, where, by whom and from what: config, versions, placement, data; and how the configs of runs differ."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from asyncfeded.mpi import placement
from asyncfeded.report import html
from asyncfeded.report.html import Html, tag
from asyncfeded.report.seen import Seen
from asyncfeded.report.words import count, listed, number

UNEQUAL = {"run_dir"}
"""Keys that differ between any two runs."""


def section(seen: Seen) -> Html:
    """What was run."""
    about, config = seen.about, seen.config
    packages = [f"{name} {about[name]}" for name in ("python", "torch", "numpy", "mpi4py", "h5py") if about.get(name)]
    samples = seen.clients["samples"]
    least = int(samples.min()) if len(samples) else 0
    rows = [
        ("Task", seen.named("task")),
        ("Rule", seen.named("rule")),
        (
            "Clients",
            f"{len(seen.clients):,}, with {samples.sum():,} samples, {least:,} to {samples.max(initial=0):,} each",
        ),
        ("Ranks", _ranks(seen.places)),
        ("Clock and seed", f"{seen.clock} clock, seed {config.get('seed', '?')}"),
        ("Limits", ", ".join(f"{key} {number(value)}" for key, value in (config.get("limits") or {}).items() if value)),
        ("Began", seen.began),
        ("Last sign", seen.last_sign),
        ("Made by", " on ".join(filter(None, (seen.maker, listed(seen.hosts))))),
        ("Program", f"asyncfeded {seen.origin}"),
        ("With", ", ".join(packages)),
        ("Platform", str(about.get("platform", ""))),
        ("Parameters", number(seen.result["params"]) if isinstance(seen.result.get("params"), int) else ""),
        ("Model, SHA-256", str(seen.result.get("model_sha256", ""))),
        ("Folder", str(seen.path.absolute())),
    ]
    digests = str(about.get("data") or "").splitlines()
    values = flat(config)
    return html.join(
        [
            html.facts(rows),
            html.folded(f"Config: {count(len(values), 'key')}", html.table(["key", "value"], values.items(), words=2)),
            html.folded(f"Placement: {count(len(seen.places), 'rank')}", _placement(seen.places)),
            html.folded(
                f"Data: digests of {count(len(digests), 'file or part', 'files and parts')}", tag("pre", "\n".join(digests))
            )
            if digests
            else "",
        ]
    )


def _ranks(places: np.ndarray) -> str:
    """How many ranks the run had, and what for."""
    roles = Counter(role.decode() for role in places["role"].tolist())
    groups = len(np.unique(places["group"][places["group"] >= 0]))
    parts = [f"{number} {role}{'s' * (number > 1)}" for role, number in roles.items()]
    return f"{len(places):,}: {listed(parts)}" + f", in {count(groups, 'group')} that train a client each" * bool(groups)


def _placement(places: np.ndarray) -> Html:
    head, *rows = placement.table(places)
    return tag("pre", "\n".join([head, *rows]))


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The keys of a config, with their sections, and their values as TOML has them."""
    found: dict[str, str] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: _written(value)}
    return found


def _written(value: Any) -> str:  # noqa: ANN401, whatever TOML can hold
    return str(value).lower() if isinstance(value, bool) else str(value)


def differences(configs: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """The keys whose values are not the same in all configs, with the value in each; empty where one has no such key."""
    tables = [flat(config) for config in configs]
    for key in dict.fromkeys(key for table in tables for key in table):
        values = [table.get(key, "") for table in tables]
        if len(set(values)) > 1 and key not in UNEQUAL:
            yield [key, *values]
