"""The page of a report: what it says of ordinary and of odd runs, and that a browser draws all of it."""

import html
import json
import os
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from asyncfeded.cli.app import app
from asyncfeded.report import page, write_report
from asyncfeded.store import ownership
from report.conftest import make

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def report(*runs, study=(), scaling=(), output):
    return write_report(runs, study, scaling, output).read_text(encoding="utf-8")


def said(text):
    """The words of a page, without its tables, style and script."""
    text = re.sub(r"(?s)<(script|style|table)\b.*?</\1>", " ", text)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text)))


def test_the_sentences_say_what_the_record_holds(made, tmp_path):
    """40 updates of which client 0 made 20, 2 of them refused; samples 10, 20, 30 and 40; accuracy from 0 to 0.9."""
    words = said(report(made("mine", refused=(0, 7)), output=tmp_path / "a.html"))
    assert "asyncfeded trained digits with 4 clients to accuracy 0.9000 in 60 s and 38 merged updates." in words
    assert "Test accuracy went from 0.0000 to 0.9000 in 10 evaluations; the last one is the best." in words
    assert "4 clients made 38 merged updates: client 0 the most (19)" in words
    assert "2 updates were refused." in words
    assert "Client 0 is furthest ahead of its data: it holds 10.0 % of the samples and made 50.0 % of the updates." in words
    assert "K ran from 1 to 4" in words
    assert "A worker waited 20 ms for a reply in the median and 20 ms at most: 16.7 % of the workers' time." in words
    assert (
        "The server spent 3 % of its time on updates and 12.0 % on tests of the model; the remaining 85.0 % it was free."
        in words
    )
    assert "It stopped since 60 s are over." in words


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"updates": 0, "evaluations": 0, "ended": False}, "The model was not evaluated yet."),
        ({"evaluations": 0}, "the model was not evaluated."),
        ({"updates": 12, "refused": [*range(12)]}, "No update was merged, so no client has a share."),
        ({"clients": 1}, "The only client made all updates."),
        ({"lost": {3}}, "1 value of it is not finite."),
        ({"gamma": np.inf}, "There is no distribution to show."),
        ({"gamma": np.nan}, "There is no distribution to show."),
        ({"ended": False}, "The run was cut off: it has no end."),
        ({"clients": 60, "updates": 700, "clock": "virtual"}, "60 clients made 700 merged updates"),
        ({"evaluations": 1}, "The only evaluation has accuracy 0.0000."),
    ],
)
def test_an_odd_run_has_a_page_of_sense(made, tmp_path, how, expected):
    text = report(made("odd", **how), output=tmp_path / "a.html")
    assert expected in said(text)
    for block in re.findall(r'(?s)<script type="application/json"[^>]*>(.*?)</script>', text):
        json.loads(block, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_a_run_that_goes_on_says_so(made, tmp_path):
    run = made("live", ended=False)
    (run / ownership.NAME).write_text("{}")
    assert "The run goes on" in said(report(run, output=tmp_path / "a.html"))
    os.utime(run / ownership.NAME, (1, time.time() - 1000))
    assert "The run was cut off" in said(report(run, output=tmp_path / "a.html"))


def test_what_happened_is_told_from_the_events_of_the_record(made, tmp_path):
    events = [(0.0, 0.0, b"began", -1, 0, 0.0, b""), (1.0, 30.0, b"began", -1, 0, 0.0, b"checkpoint-0000000001.h5")]
    events += [(2.0, 40.0, b"checkpoint", -1, 0, 0.5, b"1 MB")] * 100
    events += [(3.0, 50.0, b"refused", 2, 0, 0.0, b"<b>odd</b>"), (4.0, 51.0, b"lost", 3, 0, 0.0, b"silent")]
    text = report(made("told", events=events), output=tmp_path / "a.html")
    assert (
        "2 jobs, 1 of them from a checkpoint; 1 message refused; 1 client lost, 0 back; "
        "100 checkpoints written, 0.5 s each, and 0 kept." in said(text)
    )
    assert "the first and the last 30 are shown; 40 are not" in said(text)
    assert "<td>2</td><td></td><td>&lt;b&gt;odd&lt;/b&gt;</td>" in text
    assert ("[3,51.0,1]" in text, '"lines":[30.0]' in text) == (True, True)  # marks of the timeline


def test_who_joins_late_does_nothing_before(made, tmp_path):
    """Of 8 updates client 2 makes the one at 30 s; it was absent until 20 s."""
    events = [(0.0, 0.0, b"absent", 2, 0, 0.0, b""), (1.0, 20.0, b"joined", 2, 0, 0.0, b"client 2 has joined")]
    text = report(made("late", updates=8, events=events), output=tmp_path / "a.html")
    assert "; 1 client absent at the start of a job; 1 client joined." in said(text)
    assert "<td>30.00</td><td>30.00</td><td>10.00</td>" in text
    assert "3: 1 server and 2 workers" in text


def test_several_runs_stand_side_by_side_with_the_difference_of_their_configs(made, tmp_path):
    runs = [made("one/run"), made("two/run", rule="fedavg", gain=0.95)]
    text = report(*runs, output=tmp_path / "a.html")
    assert "Their configs differ in 1 key: rule.name." in said(text)
    assert "<tr><td>rule.name</td><td>asyncfeded</td><td>fedavg</td></tr>" in text
    assert "two/run has the best accuracy, 0.9500" in said(text)
    with pytest.raises(ValueError, match="the same run is named twice"):
        report(runs[0], runs[0], output=tmp_path / "a.html")


def test_what_a_user_has_named_is_text(made, tmp_path):
    name = "<img src=x onerror=alert(1)> & '\"<!-- <script>"
    text = report(made(name, rule=name.replace('"', "")), made("b"), output=tmp_path / "a.html")
    assert "<img" not in text
    assert text.count("<script>") == 3
    assert "<!--" not in text.split("<style>")[0] + text.split("</style>")[-1].split("<script>")[0]


def test_a_page_of_100_000_updates_and_1_000_clients_is_under_5_mb_and_loads_nothing(made, tmp_path):
    text = report(made("big", updates=100_000, clients=1000, evaluations=3000), output=tmp_path / "a.html")
    assert len(text.encode()) < 5e6
    assert page.POLICY in text
    assert "Copyright (c) 2022 Leon Sorokin" in text  # the licence of uPlot
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", text)
    assert "so that no peak is lost" in said(text)


def test_the_command_writes_beside_the_run_and_replaces_only_reports(made, tmp_path):
    run = made("mine")
    done = CliRunner().invoke(app, ["report", str(run)])
    assert (done.exit_code, done.stdout) == (0, f"{run / 'report.html'}\n")
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    (tmp_path / "letter.html").write_text("<p>mine")
    for arguments, message in (
        ([str(run), "--output", str(tmp_path / "letter.html")], "asyncfeded did not make it; choose another --output"),
        ([str(run), "--output", str(tmp_path)], "is a folder; name a file"),
        ([str(run), "--output", str(tmp_path / "none" / "a.html")], "No such file or directory; choose another --output"),
        ([str(tmp_path)], "no such file; give the folder of a run"),
        (["--study", str(tmp_path)], "no such file; asyncfeded study writes it"),
        (["--scaling", str(tmp_path)], "no such file; asyncfeded scale writes it"),
        ([], "nothing to report: name the folder of a run"),
    ):
        done = CliRunner().invoke(app, ["report", *arguments])
        assert (done.exit_code, message in done.stderr) == (2, True), done.stderr


PROBE = """
<script>
const trouble = [];
addEventListener("error", (event) => trouble.push(event.message));
addEventListener("securitypolicyviolation", (event) => trouble.push(event.violatedDirective));
console.error = console.warn = (...words) => trouble.push(words.join(" "));
addEventListener("load", async () => {
  dispatchEvent(new Event("beforeprint"));
  await new Promise((done) => setTimeout(done));
  const blank = [], all = [...document.querySelectorAll(".chart")];
  for (const chart of all) {
    const canvas = chart.querySelector("canvas");
    const dots = canvas?.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data ?? [];
    const colors = new Set();
    for (let i = 0; i < dots.length; i += 28) if (dots[i + 3] > 60) colors.add(`${dots[i]} ${dots[i + 1]} ${dots[i + 2]}`);
    if (colors.size < 8) blank.push(chart.dataset.from);
  }
  const paper = document.documentElement.className;
  dispatchEvent(new Event("afterprint"));
  await new Promise((done) => setTimeout(done));
  const heard = [...new Set(all.map((chart) => chart.dataset.drawn))].map((kind) => {
    const chart = all.find((one) => one.dataset.drawn === kind && one.clientWidth);
    for (const key of ["ArrowRight", "ArrowDown"]) chart?.dispatchEvent(new KeyboardEvent("keydown", { key }));
    return [kind, document.querySelector("[aria-live]").textContent];
  });
  const wide = document.documentElement.scrollWidth;
  document.title = JSON.stringify({ all: all.length, blank, trouble, paper, heard, wide });
});
</script>
"""


def test_a_browser_draws_every_figure_and_has_nothing_to_complain_of(tmp_path, study, scaling):
    """Charts of all kinds: each is drawn as for paper, and then read with the keyboard, on a page as narrow as a phone."""
    if not BROWSER:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    runs = [make(tmp_path / "few"), make(tmp_path / "many", clients=60, updates=500)]
    text = write_report(runs, [study], [scaling], tmp_path / "a.html").read_text(encoding="utf-8")
    text = text.replace("<details><summary><span", "<details open><summary><span")
    (tmp_path / "probe.html").write_text(
        text.replace('<meta charset="utf-8">', f'<meta charset="utf-8">{PROBE}', 1), encoding="utf-8"
    )
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--window-size=500,900", "--virtual-time-budget=4000", "--dump-dom", (tmp_path / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    found = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert found, done.stderr[-2000:]
    told = json.loads(html.unescape(found[1]))
    assert (told["trouble"], told["blank"], told["paper"]) == ([], [], "printing")
    assert told["all"] == text.count('class="chart"') > 30
    assert told["wide"] <= 500
    heard = dict(told["heard"])
    assert heard.keys() == {"chart", "spans", "raster", "dumbbells"}
    assert all(heard.values()), heard
