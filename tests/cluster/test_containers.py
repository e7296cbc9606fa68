"""Ranks in containers, one for each, started by the mpiexec of the host; and the recipes of images.

The image is made of this host's own folders, so that nothing must be fetched. launch/Containerfile is only read here: to
build it takes a registry, or minutes.
"""

import getpass
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.conftest import TOML, is_whole, needs
from conftest import run

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
MADE = ("dev", "etc", "home", "proc", "sys", "tmp", "usr")
"""Folders of an image that ch-run mounts something on."""


@pytest.fixture
def in_container(tmp_path, mpi):
    """Words before a command that run it in a container of its own, and the environment: the host's programs, read-only."""
    needs("ch-run")
    image, env = tmp_path / "image", mpi.env | {"USER": getpass.getuser(), "HOME": str(Path.home())}
    places = [Path("/usr"), *map(Path, (sys.prefix, sys.base_prefix)), ROOT, Path(mpi.library).parents[1]]
    for folder in (*MADE, *(str(place)[1:] for place in places)):
        (image / folder).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (image / name).symlink_to(f"usr/{name}")
    for name in ("passwd", "group", "hosts", "resolv.conf"):
        (image / "etc" / name).touch()
    words = ["ch-run", *(f"--bind={place}" for place in dict.fromkeys(places)), image, "--"]
    tried = subprocess.run([*words, sys.executable, "--version"], env=env, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this system lets nobody make a container: {tried.stderr}")
    return words, env


def test_mpiexec_of_the_host_trains_with_a_container_for_each_rank(mpi, in_container, tmp_path):
    """A message is larger than what MPICH would take from the memory of another rank, which no container lets it read."""
    words, env = in_container
    (tmp_path / "run.toml").write_text(TOML)
    model = ("task.model=mlp", "task.hidden=2000", "task.samples_max=100", "limits.updates=4")
    train = [sys.executable, "-m", "asyncfeded", "train", tmp_path / "run.toml", f"run_dir={tmp_path / 'run'}", *model]
    done = run(mpi.command((3, [*words, *train])), tmp_path, env)
    assert done.status == 0, str(done)
    assert is_whole(tmp_path / "run", 4, 2)
    assert f"2 clients on 2 ranks of 1 host(s), {mpi.vendor}" in done.stderr


def test_the_recipes_of_images_install_the_same_and_copy_what_there_is():
    recipe, definition = (LAUNCH / "Containerfile").read_text(), (LAUNCH / "asyncfeded.def").read_text()
    packages = [{*re.findall(r"\b(g\+\+|libgomp1|python3[\w-]*)", text)} for text in (recipe, definition)]
    assert packages[0] == packages[1] == {"g++", "libgomp1", "python3", "python3-dev", "python3-venv"}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", recipe, re.MULTILINE)
    listed = re.search(r"%files\n((?:    .*\n)+)", definition)[1]
    assert [line.strip().rpartition(" ")[0] for line in listed.splitlines()] == copied
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name
    extras = re.search(r"ARG EXTRAS=(\S+)", recipe)[1]
    assert f"[{extras}]" in definition
    script = re.search(r"%post\n((?:    .*\n)+)", definition)[1]
    assert subprocess.run(["sh", "-n", "-c", script]).returncode == 0
