"""docs/analysis.ipynb runs as it stands, in a kernel as its readers have one, and its outputs are stored."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from conftest import run

NOTEBOOK = Path(__file__).parents[2] / "docs" / "analysis.ipynb"
NEEDED = ("ipykernel", "matplotlib", "nbclient", "pandas", "sklearn")


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs(tmp_path):
    if missing := [name for name in NEEDED if not importlib.util.find_spec(name)]:
        pytest.skip(f"needs {', '.join(missing)}: pip install '.[digits,plots,dev]'")
    done = run(
        [Path(sys.executable).with_name("jupyter-execute"), NOTEBOOK, "--output", tmp_path / "done"],
        tmp_path,
        os.environ | {"IPYTHONDIR": str(tmp_path), "MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        timeout=280,
    )
    assert done.status == 0, str(done)
    assert [kinds(cell) for cell in code_cells(tmp_path / "done.ipynb")] == [kinds(cell) for cell in code_cells(NOTEBOOK)]


def kinds(cell):
    """What a cell has put out: the kinds of its outputs."""
    return sorted({(output["output_type"], *output.get("data", ())) for output in cell["outputs"]})
