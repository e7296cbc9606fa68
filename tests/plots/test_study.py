"""Figures of a study, as matplotlib has them before they are written."""

import pytest

pytest.importorskip("matplotlib", reason="plots need matplotlib")

from asyncfeded.metric import Metric, Metrics
from asyncfeded.plots import study as plots
from asyncfeded.studies import study
from studies.grids import GRID, told


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws the figures of a study of so many rules, the later the better; gives them by name."""

    def draw(rules, metrics=None):
        names = [f"rule{i}" for i in range(rules)]
        grid = GRID[: GRID.index("[rules.asyncfeded]")] + "".join(
            f'[rules.{name}]\nrun.rule = {{name = "fedasync", alpha = {0.1 + 0.01 * i}}}\n' for i, name in enumerate(names)
        )
        (tmp_path / "many.toml").write_text(grid)
        curves = {(name, seed): [0.1, 0.4 + 0.01 * i] for i, name in enumerate(names) for seed in (1, 2)}
        made = study.load_study_grid(tmp_path / "many.toml")
        figures = {}
        monkeypatch.setattr(
            plots, "save", lambda figure, path, title: figures.setdefault(path.name, (figure, title)) and path
        )
        plots.plot_study(made, told(made, tmp_path / str(rules), curves, metrics, (0.0, 0.5)), tmp_path)
        return {name: figure for name, (figure, _) in figures.items()}

    return draw


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_of_many_rules_the_first_and_the_best_have_colours(drawn):
    figures = drawn(10)
    for name in ("digits-accuracy.png", "digits-errors.png"):
        assert legend(figures[name]) == ["rule0", *(f"rule{i}" for i in range(3, 10)), "2 others"]
    colours = [line.get_color() for line in figures["digits-accuracy.png"].axes[0].lines if len(line.get_xdata())]
    assert [colour == plots.GREY["color"] for colour in colours] == [*[False] * 8, True, True]


def test_of_few_rules_all_have_colours(drawn):
    assert legend(drawn(8)["digits-accuracy.png"]) == [f"rule{i}" for i in range(8)]


def test_a_target_that_no_rule_reaches_has_no_panel(drawn):
    """0.5 is reached by the eleventh of twelve; 0.9 by none."""
    assert len(drawn(10)["digits-errors.png"].axes) == 1
    assert [axis.get_title() for axis in drawn(12)["digits-errors.png"].axes] == ["best accuracy", "seconds to 0.5"]


def test_curves_of_which_less_is_better_have_a_log_axis(drawn):
    """A perplexity that runs away hides no other."""
    figures = drawn(2, Metrics({"perplexity": Metric("min"), "accuracy": Metric("max")}, "perplexity"))
    assert figures["digits-perplexity.png"].axes[0].get_yscale() == "log"
    assert drawn(3)["digits-accuracy.png"].axes[0].get_yscale() == "linear"
