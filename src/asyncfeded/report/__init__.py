"""A report of runs and studies: one HTML file that needs no network, made from their records and tables and nothing else.

`seen` reads a run; `training`, `clients`, `server`, `events`, `origin` and `compare` say what is in it; `study` and
`scaling` read the tables of studies; `figure` and `page` make HTML of that. The charts are drawn by uPlot (assets/), which
is small enough to lie in every page.
"""

from collections.abc import Sequence
from pathlib import Path

from asyncfeded.report import compare, page, scaling, study
from asyncfeded.report.html import Html, tag
from asyncfeded.report.page import Part
from asyncfeded.report.seen import Seen


def write_report(runs: Sequence[Path], studies: Sequence[Path], scalings: Sequence[Path], output: Path) -> Path:
    """Write the report of runs, studies and scaling studies.

    Args:
        runs: folders of runs, finished or not; there must be one of them, or a study.
        studies: folders that `asyncfeded study` has written.
        scalings: folders that `asyncfeded scale` has written.
        output: the HTML file; replaced only if it is a report.

    Returns:
        `output`.

    Raises:
        ValueError: a folder holds no run or no study, or the file cannot be written.
    """
    _check_free(output)
    names = _names(runs)
    seen = [Seen(folder, name, f"run{i + 1}") for i, (folder, name) in enumerate(zip(runs, names, strict=True))]
    parts: list[Part] = []
    if len(seen) > 1:
        parts.append(
            Part("compare", "Side by side", tag("section", tag("h2", "Side by side"), compare.section(seen), id="compare"))
        )
    parts += [part for one in seen for part in page.run_part(one, alone=len(seen) == 1)]
    parts += [study.part(folder, f"study{i + 1}") for i, folder in enumerate(studies)]
    parts += [scaling.part(folder, f"scaling{i + 1}") for i, folder in enumerate(scalings)]
    text = page.page(_title(names, studies, scalings), page.head_of(seen) if seen else Html(), parts)
    part = output.with_name(output.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(output)
    except OSError as error:
        raise ValueError(f"cannot write {output}: {error.strerror}; choose another --output") from None
    return output


def _names(runs: Sequence[Path]) -> list[str]:
    """The shortest names, from the end of each path, that tell the runs apart."""
    whole = [path.absolute().parts for path in runs]
    for length in range(1, max(map(len, whole), default=1) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"{runs[0]}: the same run is named twice; name each once")


def _title(names: Sequence[str], studies: Sequence[Path], scalings: Sequence[Path]) -> str:
    if len(names) == 1:
        return names[0]
    if names:
        return f"{len(names)} runs side by side"
    return ", ".join(path.absolute().name for path in (*studies, *scalings))


def _check_free(path: Path) -> None:
    """Raise ValueError if there is a file that is no report."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file, such as --output {path / 'report.html'}")
    if path.exists() and page.MAKER.encode() not in path.read_bytes():
        raise ValueError(f"{path} exists, and asyncfeded did not make it; choose another --output, or move it away")
