"""What docs/site has for the people who run a machine: it reads the line of JSON that a command prints last."""

import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest

from conftest import run

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "site"
SETTINGS = """
site_configuration = {
    "systems": [{
        "name": "here", "hostnames": [".*"],
        "partitions": [{"name": "all", "scheduler": "local", "launcher": "mpiexec", "environs": ["any"]}],
    }],
    "environments": [{"name": "any"}],
}
"""


def test_reframe_trains_and_measures(own_mpi, tmp_path):
    """Started by ReFrame itself, which puts mpiexec before the command."""
    pytest.importorskip("reframe", reason="pip install 'ReFrame-HPC[no-analytics]'")
    (tmp_path / "settings.py").write_text(SETTINGS)
    path = f"{Path(own_mpi.mpiexec[0]).parent}:{Path(sys.executable).parent}:{own_mpi.env['PATH']}"
    sizes = [f"-S{name}={value}" for name, value in (("num_tasks", 2), ("updates", 6), ("seconds", 0.05))]
    reframe = [Path(sys.executable).with_name("reframe"), "--config-file=settings.py", "--report-file=report.json"]
    line = [*reframe, f"--prefix={tmp_path}", f"--checkpath={SITE / 'reframe_asyncfeded.py'}", *sizes, "--run"]
    done = run(line, tmp_path, own_mpi.env | {"PATH": path})
    assert done.status == 0, str(done)
    cases = json.loads((tmp_path / "report.json").read_text())["runs"][0]["testcases"]
    assert {case["name"]: case["result"] for case in cases} == {"AsyncFedEDTrains": "pass", "AsyncFedEDServes": "pass"}
    assert all(value > 0 for case in cases for value, *_ in case["perfvalues"].values())


def test_the_recipe_of_spack_names_what_pyproject_names(monkeypatch):
    said = {"depends_on": [], "version": []}
    spack = ModuleType("spack.package")
    for name in ("license", "version", "variant", "depends_on"):
        setattr(spack, name, lambda what, name=name, **more: said.setdefault(name, []).append(what))
    spack.PythonPackage, spack.default_args = object, lambda **more: nullcontext()
    monkeypatch.setitem(sys.modules, "spack", ModuleType("spack"))
    monkeypatch.setitem(sys.modules, "spack.package", spack)
    exec(compile((SITE / "spack_package.py").read_text(), "spack_package.py", "exec"), {})
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)[1]
    needed = {f"py-{name}@{least}:" for name, least in re.findall(r'^  "([\w-]+)>=([\d.]+)', listed, re.MULTILINE)}
    given = {re.sub(r"@(\d+):$", r"@\1.0:", what) for what in said["depends_on"]}
    assert {re.sub(r"@(\d+):$", r"@\1.0:", what) for what in needed} <= given
    assert said["version"] == re.findall(r'^version = "(.*)"$', project, re.MULTILINE)
