"""Where points go. MLflow and Weights & Biases are played here: they are large, and want a server."""

import sys
from types import SimpleNamespace

import pytest

from asyncfeded.run.sinks import About, check_sinks, open_sink


@pytest.fixture
def about(tmp_path):
    return About(tmp_path / "mine", {"rule.name": "asyncfeded", "rule.lambda": 1.0, "threads": 0}, 0, 1e9)


def test_a_run_has_an_id_that_stays(about):
    assert len(about.id) == 16
    assert about._replace(after=7, config={}).id == about.id
    assert about._replace(began_s=2e9).id != about.id


def test_a_missing_package_is_told_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mlflow" else object())
    check_sinks(("tensorboard", "wandb"))
    with pytest.raises(ValueError, match=r"^record\.trackers: mlflow needs .*: pip install 'asyncfeded\[mlflow\]'$"):
        check_sinks(("wandb", "mlflow"))


def test_tensorboard_shows_points_and_hyperparameters_and_forgets_what_a_resumed_run_repeats(about):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install 'asyncfeded[tensorboard]'"
    )
    for after, values in ((0, {1: 0.5, 2: 0.6, 3: 0.7}), (2, {3: 0.75})):
        sink = open_sink("tensorboard", about._replace(after=after))
        for step, value in values.items():
            sink.log(step, 1e9 + step, {"test/accuracy": value})
        sink.close()
    shown = accumulator.EventAccumulator(str(about.run_dir / "tensorboard")).Reload()
    scalars = [(event.wall_time, event.step, event.value) for event in shown.Scalars("test/accuracy")]
    assert scalars == [(1e9 + 1, 1, 0.5), (1e9 + 2, 2, pytest.approx(0.6)), (1e9 + 3, 3, 0.75)]
    assert "_hparams_/session_start_info" in shown.PluginTagToContent("hparams")
    assert "tensorflow" not in sys.modules


def test_mlflow_goes_on_with_the_run_that_has_the_id(about, monkeypatch):
    """The calls, in order; `search_runs` finds a run the second time."""
    calls, found = [], []
    note = lambda name: lambda *given, **named: calls.append((name, given, named))  # noqa: E731
    names = ("set_tracking_uri", "set_experiment", "start_run", "log_params", "log_metrics", "end_run")
    client = SimpleNamespace(
        search_experiments=lambda: [SimpleNamespace(experiment_id="1")],
        search_runs=lambda experiments, asked: [r for r in found if asked == f"tags.`asyncfeded.run` = '{about.id}'"],
    )
    fake = SimpleNamespace(MlflowClient=lambda: client, **{name: note(name) for name in names})
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    sink = open_sink("mlflow", about)
    sink.log(3, 1e9, {"train/loss": 0.5})
    sink.close()
    assert calls == [
        ("set_tracking_uri", ((about.run_dir / "mlruns").as_uri(),), {}),
        ("set_experiment", ("asyncfeded",), {}),
        ("start_run", (), {"run_name": "mine", "tags": {"asyncfeded.run": about.id}}),
        ("log_params", ({"rule.name": "asyncfeded", "rule.lambda": "1.0", "threads": "0"},), {}),
        ("log_metrics", ({"train/loss": 0.5},), {"step": 3}),
        ("end_run", (), {}),
    ]
    found.append(SimpleNamespace(info=SimpleNamespace(run_id="that")))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    calls.clear()
    open_sink("mlflow", about)
    assert [name for name, *_ in calls] == ["set_experiment", "start_run"]
    assert calls[1] == ("start_run", (), {"run_id": "that"})


def test_wandb_gets_an_axis_of_versions_so_that_a_resumed_run_may_repeat_them(about, monkeypatch):
    calls = []
    run = SimpleNamespace(
        define_metric=lambda *given, **named: calls.append(("define", given, named)),
        log=lambda values: calls.append(("log", values)),
        finish=lambda: calls.append(("finish",)),
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **named: calls.append(("init", named)) or run))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    sink = open_sink("wandb", about)
    sink.log(3, 1e9, {"train/loss": 0.5})
    sink.close()
    about_run = {"project": "asyncfeded", "name": "mine", "id": about.id, "dir": str(about.run_dir)}
    assert calls == [
        ("init", about_run | {"resume": "allow", "config": dict(about.config)}),
        ("define", ("version",), {}),
        ("define", ("*",), {"step_metric": "version"}),
        ("log", {"train/loss": 0.5, "version": 3}),
        ("finish",),
    ]
