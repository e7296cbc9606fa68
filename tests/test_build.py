"""The wheel: with the compiled kernel where there is a C++ compiler, and installable without."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build_wheel(source: Path, target: Path, **env: str) -> list[str]:
    """Names of the files in the wheel that pip builds from `source`, in isolation."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), str(source)]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=280)
    if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
        pytest.skip("no package index to fetch the build requirements from")
    assert done.returncode == 0, done.stderr
    (wheel,) = target.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what a build reads, so that the build leaves nothing in the tree."""
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        (tmp_path / "source" / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    shutil.copytree(ROOT / "src", tmp_path / "source" / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "source"


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_a_compiler_gives_the_compiled_kernel(source: Path, tmp_path: Path) -> None:
    names = build_wheel(source, tmp_path / "wheel")
    assert any(name.startswith("asyncfeded/_kernel.") and name.endswith(".so") for name in names)


def test_without_a_compiler_the_package_installs_and_names_its_twin(source: Path, tmp_path: Path) -> None:
    names = build_wheel(source, tmp_path / "wheel", CXX="/nonexistent/c++")
    assert "asyncfeded/model/kernel.py" in names
    assert not any(name.endswith(".so") for name in names)
    site = tmp_path / "site"
    zipfile.ZipFile(next((tmp_path / "wheel").glob("*.whl"))).extractall(site)
    # -S keeps an editable install of the source tree out of the way; the dependencies are added after the wheel.
    code = f"import sys; sys.path[:0] = [{str(site)!r}]; sys.path += {sys.path!r}; " + (
        "import torch; from asyncfeded.model import kernel; x, w, b = torch.ones(3), torch.full((3,), 3.0), torch.zeros(3); "
        "print(kernel.__file__, kernel.COMPILED, kernel.sums(x, w, b), kernel.describe_kernel())"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        f"{site}/asyncfeded/model/kernel.py False (3.0, 27.0) torch twin: the compiled kernel was not built"
    )
