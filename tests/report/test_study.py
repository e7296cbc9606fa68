"""What a report says of studies and of scaling studies."""

import shutil
from pathlib import Path

import pytest

from asyncfeded.files.plain import read_csv
from asyncfeded.report import scaling as scaling_room
from asyncfeded.report import study as room


def test_a_study_is_told_with_tables_bands_and_significance(study):
    """Best values 0.9, 0.8 and 0.7, plus at most 0.002 over four seeds of which the last rule has three."""
    text = room.part(study, "s").body
    assert "3 rules on digits with 4 seeds: 22 of 24 runs done." in text
    assert "asyncfeded (0.9008 at 0 and 0.9008 at 0.5)." in text
    assert "fedavg is worse in 4 of 4; fedasync is worse in 4 of 4." in text
    assert "<td>fedasync</td><td>3 of 4</td><td>70.1 ± 0.1 %</td>" in text
    assert text.count('"low":') == 3 * 2 + 3  # a band for each rule, at each error probability and over them
    assert "<th>s to 0.5</th>" in text


def test_a_study_whose_runs_are_gone_has_its_tables(study, tmp_path):
    shutil.copy(study / "table.csv", tmp_path)
    text = room.part(tmp_path, "s").body
    assert "The records of its runs are not in the folder" in text
    assert "<td>90.08 ± " in text


def test_the_tables_of_the_documentation_are_whole():
    tables = list(Path(__file__).parents[2].glob("docs/*/*.csv"))
    assert len(tables) >= 4
    for path in tables:
        assert read_csv(path, [])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",0.9,", ",many,", r"table.csv: line 2: could not convert string to float: 'many'; asyncfeded study writes it"),
        ("task,rule", "job,rule", "line 1: no column task"),
    ],
)
def test_a_table_that_is_no_table_of_a_study_is_refused(study, tmp_path, old, new, message):
    (tmp_path / "table.csv").write_text((study / "table.csv").read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        room.part(tmp_path, "s")


def test_a_scaling_study_is_told_with_its_prediction(scaling):
    """Figures of docs/scaling/prediction.csv: N* = 44.87, and 24.4648 against 24.4487, 96.0653 against 93.3065 updates/s."""
    text = scaling_room.part(scaling, "s").body
    assert "The server is saturated from 45 clients on. On 2 numbers of clients that it had not seen" in text
    assert "off by 2.96\N{NO-BREAK SPACE}% at most (with 8 clients)" in text
    assert text.count('"mark":null') == 7
