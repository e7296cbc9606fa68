"""The built-in tasks with data of no meaning, in files of their layouts, trained as the examples of `launch/` train them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asyncfeded.config import Training

SAMPLES = 128
"""Samples of the client, where a file is made."""
SGD = Training(learning_rate=1e-3)
LEAF_SIZE, LEAF_WINDOW, SYMBOLS = 28 * 28, 80, "abcdefghijklmnopqrstuvwxyz ."


def built_in(folder: Path) -> dict[str, tuple[dict[str, Any], Training]]:
    """The section `task` of each built-in task, and how it is trained.

    Args:
        folder: takes the files, about 2 MB.
    """
    rng = np.random.default_rng(0)
    momentum = Training(learning_rate=1e-3, momentum=0.9)
    adamw = Training(batch_size=16, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01, clip_norm=1.0)
    pixels = rng.integers(0, 256, (SAMPLES, LEAF_SIZE)) / 256
    writer = {"x": pixels.tolist(), "y": rng.integers(0, 62, SAMPLES).tolist()}
    text = "".join(rng.choice(list(SYMBOLS), SAMPLES + LEAF_WINDOW))
    role = {"x": [text[i : i + LEAF_WINDOW] for i in range(SAMPLES)], "y": list(text[LEAF_WINDOW:])}
    images, image_classes = rng.integers(0, 256, (SAMPLES, 3, 32, 32), np.uint8), rng.integers(0, 10, SAMPLES)
    np.savez(folder / "images.npz", images=images, labels=image_classes)
    np.savetxt(folder / "table.csv", rng.normal(size=(1000, 11)), delimiter=",", header="y,a,b,c,d,e,f,g,h,i,j", comments="")
    (folder / "text.txt").write_text("".join(rng.choice(list(SYMBOLS), 70 * SAMPLES)), encoding="utf-8")
    return {
        "synthetic": ({"name": "synthetic", "sizes_given": [1000]}, SGD),
        "digits": ({"name": "digits"}, SGD),
        "femnist": ({"name": "femnist", **_leaf(folder / "femnist", writer)}, SGD),
        "shakespeare": ({"name": "shakespeare", **_leaf(folder / "shakespeare", role)}, SGD),
        "images": ({"name": "images", "data": folder / "images.npz", "model": "resnet", "norm": "group"}, momentum),
        "language": ({"name": "language", "data": folder / "text.txt", "layers": 2, "width": 64}, adamw),
        "tabular": ({"name": "tabular", "data": folder / "table.csv", "target": "y"}, momentum),
    }


def _leaf(folder: Path, samples: Mapping[str, list[Any]]) -> dict[str, Path]:
    """The keys `train` and `test` of a task whose one client has these samples, in LEAF's layout."""
    folder.mkdir()
    user = {"users": ["a"], "num_samples": [len(samples["y"])], "user_data": {"a": samples}}
    (folder / "all.json").write_text(json.dumps(user), encoding="utf-8")
    return {"train": folder, "test": folder}
