"""Where points of a run go besides its record: TensorBoard, MLflow, Weights & Biases.

A point is a step, which is the version of the global model, a time, and values by name. Names are the same everywhere, and
the config of the run is its hyperparameters. A run that goes on from a checkpoint goes on there too.
"""

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

NEEDS = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""By tracker, the module that it needs; the extra of the package has the name of the tracker."""
Config = Mapping[str, int | float | str | bool]
"""Hyperparameters by `section.key`."""


class About(NamedTuple):
    """What a sink is told about a run before the first point."""

    run_dir: Path
    config: Config
    after: int
    """Step behind which points come: those up to it are there already."""
    began_s: float
    """Unix time at which the run began first."""

    @property
    def id(self) -> str:
        """16 letters that no other run has, and that stay when the run goes on."""
        return hashlib.sha256(f"{self.run_dir.absolute()} {self.began_s}".encode()).hexdigest()[:16]


class Sink(Protocol):
    """Takes points."""

    def log(self, step: int, at_s: float, values: Mapping[str, float]) -> None:
        """Take a point; `at_s`: Unix time."""

    def close(self) -> None:
        """Give away all points, and end."""


def check_sinks(names: tuple[str, ...], key: str = "record.trackers") -> None:
    """Raise ValueError if the package of a tracker is not installed; `key` names the wish in the message."""
    for name in names:
        if importlib.util.find_spec(NEEDS[name]) is None:
            raise ValueError(f"{key}: {name} needs a package that is not installed: pip install 'asyncfeded[{name}]'")


def open_sink(name: str, about: About, folder: Path | None = None) -> Sink:
    """Open a sink. Raises whatever its package raises.

    Args:
        name: of the tracker.
        about: the run.
        folder: where TensorBoard's files go; None: `tensorboard` in the run's folder.
    """
    if name == "tensorboard":
        return TensorBoard(about, folder or about.run_dir / name)
    return Mlflow(about) if name == "mlflow" else Wandb(about)


class TensorBoard:
    """Files for TensorBoard, which needs no TensorFlow for them."""

    def __init__(self, about: About, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter, summary

        made: Any = summary
        purge = about.after + 1 if about.after else None
        self._writer = SummaryWriter(str(folder), purge_step=purge, flush_secs=10)
        writer: Any = self._writer.file_writer  # hparams of the writer itself would begin another run
        for part in made.hparams(dict(about.config), {}):
            writer.add_summary(part)

    def log(self, step: int, at_s: float, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step, at_s)

    def close(self) -> None:
        """See `Sink`."""
        self._writer.close()


class Mlflow:
    """A run of MLflow, in the experiment MLFLOW_EXPERIMENT_NAME or `asyncfeded`, on the server MLFLOW_TRACKING_URI.

    Without a server it lies in `mlruns` in the run's folder.
    """

    def __init__(self, about: About) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3.17 refuses a folder without it
        import mlflow

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri((about.run_dir.absolute() / "mlruns").as_uri())
        if not os.environ.get("MLFLOW_EXPERIMENT_NAME") and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
            mlflow.set_experiment("asyncfeded")
        self._mlflow: Any = mlflow
        client, tag = mlflow.MlflowClient(), "asyncfeded.run"
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        before = client.search_runs(experiments, f"tags.`{tag}` = '{about.id}'")
        if before:
            mlflow.start_run(run_id=before[0].info.run_id)
        else:
            mlflow.start_run(run_name=about.run_dir.name, tags={tag: about.id})
            names = list(about.config)
            for start in range(0, len(names), 100):  # a server takes no more at once
                mlflow.log_params({name: str(about.config[name])[:500] for name in names[start : start + 100]})

    def log(self, step: int, at_s: float, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """See `Sink`."""
        self._mlflow.end_run()


class Wandb:
    """A run of Weights & Biases, in the project WANDB_PROJECT or `asyncfeded`; WANDB_MODE=offline keeps it in the folder."""

    def __init__(self, about: About) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", "asyncfeded")
        place: dict[str, Any] = {"project": project, "name": about.run_dir.name, "id": about.id, "dir": str(about.run_dir)}
        self._run: Any = wandb.init(**place, resume="allow", config=dict(about.config))
        self._run.define_metric("version")
        self._run.define_metric("*", step_metric="version")  # so that a run that goes on may repeat versions

    def log(self, step: int, at_s: float, values: Mapping[str, float]) -> None:
        """See `Sink`."""
        self._run.log({**values, "version": step})

    def close(self) -> None:
        """See `Sink`."""
        self._run.finish()
