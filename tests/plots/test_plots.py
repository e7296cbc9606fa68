"""Figures from records, also from odd ones. What they look like is for the eye; that they come is for here."""

import math
import os
import sys

import numpy as np
import pytest

from asyncfeded.metric import Metric, Metrics
from asyncfeded.store.record import UPDATE, Record
from asyncfeded.training.heterogeneity import PROFILE
from conftest import METRICS, num_calls, places, run_asyncfeded

pytest.importorskip("matplotlib", reason="plots need matplotlib")

from asyncfeded.plots import plot_run
from asyncfeded.plots.study import read_authors

PNG = b"\x89PNG\r\n\x1a\n"


def row(number, client, gamma=1.0, accepted=True):
    fields = {
        "time_s": float(number),
        "client": client,
        "version": number,
        "gamma": gamma,
        "epochs": 2,
        "accepted": accepted,
    }
    return tuple(fields.get(name, 0) for name in UPDATE.names)


@pytest.fixture
def run_dir(tmp_path):
    """Writes the record of a run; gives its folder."""

    def write(updates, evaluations=((0.0, 0, 0.1, 2.3), (9.0, 9, 0.9, 0.3)), clients=3, metrics=METRICS, tests=()):
        book = Record(tmp_path / "record.h5", "", places("one"), np.zeros(clients, PROFILE), metrics)
        for update in updates:
            book.updates.append(update)
        for evaluation in evaluations:
            book.evaluations.append(evaluation)
        for test in tests:
            book.client_evaluations.append(test)
        book.close()
        return tmp_path

    return write


def drawn(run_dir):
    path = plot_run(run_dir, run_dir / "run.png")
    assert path == run_dir / "run.png"
    return path.read_bytes().startswith(PNG)


def test_a_run_is_drawn(run_dir):
    assert drawn(run_dir([row(i, i % 3, gamma=i / 2) for i in range(12)]))


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], ["a", "b", "c", "d"]])
@pytest.mark.parametrize("clients", [2, 40])
def test_metrics_of_any_number_and_the_tests_of_clients_are_drawn(run_dir, names, clients):
    metrics = Metrics({name: Metric("max", "fraction" * (name == "b")) for name in names}, names[-1])
    values = (math.nan, *range(1, len(names)))
    tests = [(i, 0, i % clients, i // clients, *values) for i in range(50)]
    assert drawn(run_dir([row(1, 0)], [(0, 0, *values), (1, 1, *values)], clients, metrics, tests))


@pytest.mark.parametrize("backend", ["nonsense", "module://matplotlib_inline.backend_inline"])
def test_a_backend_that_was_meant_for_another_program_is_not_used(run_dir, tmp_path, backend):
    """In a process of its own: matplotlib reads it while it loads."""
    done = run_asyncfeded("plot", run_dir([row(1, 0)]), cwd=tmp_path, env=os.environ | {"MPLBACKEND": backend})
    assert done.status == 0, str(done)


@pytest.mark.parametrize("gamma", [0.0, 2.0, float("inf")])
@pytest.mark.parametrize("updates", [1, 40, 400])
def test_more_clients_than_a_legend_holds_are_drawn(run_dir, updates, gamma):
    assert drawn(run_dir([row(i, i % 40, gamma) for i in range(updates)], clients=40))


def test_a_run_of_many_clients_whose_updates_were_all_refused_is_drawn(run_dir):
    assert drawn(run_dir([row(i, i, accepted=False) for i in range(3)], clients=40))


def test_a_run_is_drawn_in_a_time_that_is_linear_in_clients_and_updates(run_dir):
    """As many points for any number of clients: the drawing takes about the same calls."""

    def draw(clients, each):
        folder = run_dir([row(i, i % clients) for i in range(clients * each)], clients=clients)
        calls = num_calls(lambda: drawn(folder))
        (folder / "record.h5").unlink()
        return calls

    draw(20, 1)
    assert draw(1000, 15) < 2 * draw(100, 30)


def test_a_client_that_was_never_stale_is_drawn(run_dir):
    assert drawn(run_dir([row(i, 0, gamma=0.0) for i in range(5)]))


def test_infinite_staleness_is_drawn(run_dir):
    assert drawn(run_dir([row(0, 0), row(1, 1, gamma=float("inf")), row(2, 0)]))


def test_refused_updates_among_others_are_drawn(run_dir):
    assert drawn(run_dir([row(0, 0), row(1, 1, gamma=float("nan"), accepted=False)]))


def test_a_run_whose_updates_were_all_refused_is_drawn(run_dir):
    assert drawn(run_dir([row(i, i, gamma=float("nan"), accepted=False) for i in range(3)]))


def test_one_update_and_one_evaluation_are_enough(run_dir):
    assert drawn(run_dir([row(0, 0)], [(0.0, 0, 0.1, 2.3)]))


def test_no_figure_stays_open(run_dir):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    drawn(run_dir([row(0, 0)]))
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize(("updates", "evaluations"), [([], [(0.0, 0, 0.1, 2.3)]), ([row(0, 0)], []), ([], [])])
def test_an_empty_record_is_refused_with_what_it_holds(run_dir, updates, evaluations):
    words = f"holds {len(updates)} updates and {len(evaluations)} evaluations, nothing to plot"
    with pytest.raises(ValueError, match=words):
        drawn(run_dir(updates, evaluations))


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"record\.h5: no such file"):
        plot_run(tmp_path, tmp_path / "run.png")


def test_a_picture_of_a_user_is_not_replaced(run_dir, tmp_path):
    folder = run_dir([row(1, 0)])
    for name in ("run.png", "run.pdf", "run.svg"):
        assert plot_run(folder, plot_run(folder, tmp_path / name)) == tmp_path / name  # one of its own is
    (tmp_path / "mine.png").write_bytes(PNG + b"of a user")
    with pytest.raises(ValueError, match=r"mine.png exists, and asyncfeded did not draw it; choose another --output"):
        plot_run(folder, tmp_path / "mine.png")
    assert (tmp_path / "mine.png").read_bytes() == PNG + b"of a user"


def test_a_picture_that_cannot_be_written_is_told(run_dir, tmp_path):
    folder = run_dir([row(0, 0)])
    with pytest.raises(ValueError, match=r"cannot write .*none/run\.png: No such file or directory"):
        plot_run(folder, tmp_path / "none" / "run.png")


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'asyncfeded\[plots\]'"):
        plot_run(tmp_path, tmp_path / "run.png")


def test_a_title_is_no_formula(run_dir, tmp_path):
    """A run's folder may be called so."""
    folder = run_dir([row(0, 0)]).rename(tmp_path.with_name("$\\frac$"))
    assert drawn(folder)


def test_a_picture_without_a_suffix_is_written_where_it_is_said(run_dir, tmp_path):
    folder = run_dir([row(0, 0)])
    assert plot_run(folder, tmp_path / "picture").read_bytes().startswith(PNG)


def test_a_picture_goes_where_a_shell_would_put_it_and_is_named_on_any_terminal(run_dir, tmp_path):
    """bash leaves the ~ of --output=~/ alone; the terminal knows no letter of the name."""
    home = tmp_path / "ünï"
    home.mkdir()
    env = os.environ | {"HOME": str(home), "PYTHONIOENCODING": "ascii"}
    done = run_asyncfeded("plot", run_dir([row(0, 0)]), "--output=~/run.png", cwd=tmp_path, env=env)
    assert done.status == 0, str(done)
    assert done.stdout.endswith("\\xfcn\\xef/run.png\n")
    assert (home / "run.png").exists()


AUTHORS = "task,method,error_probability,max_test_accuracy_mean,target_1,median_s_to_target_1\n"


def test_published_figures_are_read(tmp_path):
    (tmp_path / "a.csv").write_text(AUTHORS + "t,r,0.1,90,80,never\nt,r,0.2,90,,\n", encoding="utf-8-sig")
    assert [row["error_probability"] for row in read_authors(tmp_path / "a.csv")] == ["0.1", "0.2"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('t,r,"0,1",90,80,never', "line 2: error_probability is '0,1', expected a number such as 0.5"),
        ("t,r,0.1,nan,80,never", "line 2: max_test_accuracy_mean is 'nan', expected a number"),
        ("t,r,0.1,90,80,", "line 2: median_s_to_target_1 is '', expected a number"),
        ("t,r,0.1", "line 2: 3 cells, expected 6"),
    ],
)
def test_a_cell_of_published_figures_that_is_no_number_is_told_with_its_line(tmp_path, row, said):
    (tmp_path / "a.csv").write_text(AUTHORS + row + "\n")
    with pytest.raises(ValueError, match=rf"a\.csv: {said}"):
        read_authors(tmp_path / "a.csv")
