"""Figures, drawn from the records of runs and from nothing else."""

from pathlib import Path
from typing import Any

import numpy as np

from asyncfeded import record

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#000000")
"""Okabe and Ito's palette, told apart by the colour-blind too; repeated with other dashes when clients are more."""


def plot_run(run_dir: Path, output: Path) -> Path:
    """Accuracy and loss over time, and of each client: updates, K and gamma over time.

    Args:
        run_dir: folder of a run, finished or not.
        output: the PNG.

    Returns:
        `output`.

    Raises:
        ValueError: there is no record, it holds nothing yet, or matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ValueError("plots need matplotlib: pip install 'asyncfeded[plots]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    updates, evaluations, _ = record.read(run_dir)
    if not len(updates) or not len(evaluations):
        raise ValueError(
            f"{run_dir}: the record holds {len(updates)} updates and {len(evaluations)} evaluations, nothing to plot"
        )
    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
        (score, counts), (local, stale) = axes
        score.plot(evaluations["time_s"], evaluations["accuracy"], color=COLORS[0], marker=".", label="accuracy")
        last = evaluations[-1]
        score.annotate(
            f"{last['accuracy']:.4f}",
            (last["time_s"], last["accuracy"]),
            xytext=(0, -14),
            textcoords="offset points",
            ha="right",
        )
        score.set(title="Test accuracy and loss of the global model", ylabel="accuracy", ylim=(0, 1.02))
        loss = score.twinx()
        loss.plot(evaluations["time_s"], evaluations["loss"], color=COLORS[5], linestyle=":", label="loss")
        loss.set(ylabel="loss (nats)", ylim=(0, None))
        loss.spines["right"].set_visible(True)
        loss.grid(visible=False)
        score.legend(handles=[*score.lines, *loss.lines], loc="center right", frameon=False)

        merged = updates[updates["accepted"]]
        clients = np.unique(merged["client"])
        many = len(clients) > 2 * len(COLORS)
        for i, client in enumerate(clients):
            rows = merged[merged["client"] == client]
            line = {
                "color": COLORS[i % len(COLORS)],
                "linestyle": ("-", "--", ":", "-.")[i // len(COLORS) % 4],
                "linewidth": 0.8 if many else 1.3,
                "label": f"client {client}",
            }
            counts.plot(rows["time_s"], np.arange(1, len(rows) + 1), **line)
            local.step(rows["time_s"], rows["epochs"], where="post", **line)
            shown = rows["gamma"] > 0  # a fresh update has none to show on a logarithmic axis
            dots = {"linestyle": "", "marker": ".", "markersize": 3, "alpha": 0.35}
            stale.plot(rows["time_s"][shown], rows["gamma"][shown], **(line | dots | {"label": ""}))
            stale.plot(rows["time_s"][shown], _smooth(rows["gamma"][shown]), **line)
        counts.set(title="Updates of each client", ylabel="updates")
        local.set(title="Local epochs of each client", ylabel="K", xlabel="time (s)")
        local.yaxis.get_major_locator().set_params(integer=True)
        stale.set(title="Staleness of each client's updates (line: median of 9)", ylabel="gamma", xlabel="time (s)")
        if np.any(merged["gamma"] > 0):
            stale.set_yscale("log")
        if len(clients) and not many:
            counts.legend(frameon=False, fontsize=8)
        figure.suptitle(f"{run_dir.name}: {len(merged)} updates in {updates['time_s'][-1]:.1f} s", fontsize=11)
        try:
            figure.savefig(output, dpi=130)
        except OSError as error:
            raise ValueError(f"cannot write {output}: {error.strerror}") from None
        finally:
            plt.close(figure)
    return output


def _smooth(values: np.ndarray, width: int = 9) -> np.ndarray:
    """Running median, shorter at the ends."""
    half = width // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
