"""Sdist and wheel: with the compiled kernel where there is a C++ compiler, and installable without; and their version."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def in_isolation(*command: str | Path, **env: str) -> None:
    """A module of Python that fetches what a build requires; skips where there is no package index."""
    done = subprocess.run(
        [sys.executable, "-m", *command], env=os.environ | env, capture_output=True, text=True, timeout=280
    )
    said = done.stdout + done.stderr
    if "No matching distribution" in said or "Could not find a version" in said:
        pytest.skip("no package index to fetch the build requirements from")
    assert done.returncode == 0, said


def run_wheel(folder: Path, code: str) -> str:
    """What a line of Python prints, with asyncfeded from the one wheel in a folder, which also says what is in it."""
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    # -S keeps an editable install of the source tree out of the way; the dependencies are added after the wheel.
    paths = f"import sys; sys.path[:0] = [{str(folder / 'site')!r}]; sys.path += {sys.path!r}; "
    done = subprocess.run([sys.executable, "-S", "-c", paths + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what a build reads, so that the build leaves nothing in the tree."""
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "CITATION.cff"):
        (tmp_path / "source" / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    shutil.copytree(ROOT / "src", tmp_path / "source" / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "source"


SUMS = (
    "import torch; from asyncfeded.model import kernel; x, w, b = torch.ones(3), torch.full((3,), 3.0), torch.zeros(3); "
    "print(kernel.__file__, kernel.COMPILED, *kernel.sums(x, w, b), kernel.describe_kernel())"
)


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_sdist_and_wheel_are_built_in_isolation_and_the_wheel_has_the_compiled_kernel(source: Path, tmp_path: Path) -> None:
    """The wheel is built from the sdist. Whoever installs it needs no compiler."""
    wheel = tmp_path / "wheel"
    in_isolation("build", "--outdir", wheel, source)
    (sdist,) = wheel.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"src/kernel/kernel.cpp", "src/asyncfeded/py.typed", "CMakeLists.txt", "CITATION.cff", "LICENSE"} <= names
    assert run_wheel(wheel, SUMS).startswith(f"{wheel}/site/asyncfeded/model/kernel.py True (3.0, 27.0) compiled (C++)")
    assert (wheel / "site" / "asyncfeded" / "py.typed").exists()
    assert list((wheel / "site").glob("asyncfeded-0.*.dist-info/licenses/LICENSE"))


def test_without_a_compiler_the_package_installs_and_names_its_twin(source: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "wheel"
    in_isolation("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheel, source, CXX="/nonexistent/c++")
    said = run_wheel(wheel, SUMS)
    assert said.startswith(
        f"{wheel}/site/asyncfeded/model/kernel.py False (3.0, 27.0) torch twin: the compiled kernel was not built"
    )
    assert not list((wheel / "site").rglob("*.so"))


def test_the_citation_and_the_changelog_are_those_of_this_version() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    citation = (ROOT / "CITATION.cff").read_text()
    date = re.search(r'^date-released: "(.*)"$', citation, re.MULTILINE)[1]
    assert f"\nversion: {version}\n" in citation
    assert f"\n## {version} ({date})\n" in (ROOT / "CHANGELOG.md").read_text()
