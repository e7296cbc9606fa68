"""The rules of the house that a machine can check: who imports whom, what is not there, and how long a room may be."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "asyncfeded"

LEVELS = {
    "cli": 4, "__main__": 4,
    "run": 3, "plan": 3, "result": 3, "resume": 3, "progress": 3, "plots": 3, "study": 3, "scaling": 3, "bench": 3,
    "doctor": 3,
    "server": 2, "client": 2, "jobs": 2,
    "staging": 1,
    "clock": 1, "heterogeneity": 1, "evaluation": 1, "staleness": 1, "rules": 1, "tasks": 1, "record": 1, "checkpoint": 1,
    "kernel": 0, "flat": 0, "config": 0, "seeds": 0, "launcher": 0, "placement": 0, "world": 0, "wire": 0, "transfer": 0,
    "messages": 0, "worker": 0, "homes": 0, "patience": 0, "shield": 0,
}  # fmt: skip
SIDEWAYS = {
    ("__main__", "cli"),
    ("run", "progress"),
    ("run", "resume"),
    ("run", "plan"),
    ("resume", "progress"),
    ("record", "checkpoint"),
    ("bench", "resume"),
    ("bench", "progress"),
    ("bench", "plan"),
    ("plots", "study"),
    ("plots", "scaling"),
    ("scaling", "study"),
    ("evaluation", "tasks"),
    ("rules", "staleness"),
    ("staging", "staleness"),
    ("messages", "world"),
    ("messages", "transfer"),
    ("wire", "messages"),
    ("wire", "homes"),
    ("wire", "patience"),
    ("worker", "messages"),
    ("worker", "launcher"),
    ("worker", "transfer"),
    ("worker", "world"),
    ("run", "result"),
    ("wire", "world"),
    ("wire", "launcher"),
    ("wire", "transfer"),
    ("transfer", "kernel"),
    ("transfer", "launcher"),
    ("world", "launcher"),
    ("world", "placement"),
}
"""Imports within a level that have a reason."""
ONLY_IN = {
    "mpi4py": {"launcher", "bench"},
    "h5py": {"checkpoint", "record", "tasks"},
    "matplotlib": {"plots"},
}
NEVER = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLING = {
    "send", "recv", "isend", "irecv", "ssend", "issend", "bsend", "ibsend", "sendrecv", "mrecv",
    "bcast", "gather", "scatter", "allgather", "alltoall", "reduce", "allreduce", "scan", "exscan",
}  # fmt: skip
"""Methods of an mpi4py communicator that pickle; those that send buffers begin with a capital."""


def module_name(path):
    """`rules.decision` for rules/decision.py, `rules` for rules/__init__.py."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
every_module = pytest.mark.parametrize("name", MODULES)


def room(name):
    return name.split(".")[0]


def imported(name):
    """Full names of all modules that a module imports, at its top or inside a function."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively; write the full name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in OWN else node.module


OWN = {f"asyncfeded.{name}" for name in MODULES}


def own_imports(name):
    """Names of this project's modules that a module imports."""
    return {found.removeprefix("asyncfeded.") for found in imported(name) if found in OWN}


def tracked():
    """Files of the repository, those too that are new and not ignored."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    listing = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]


def rooms_tested():
    """The rooms that test files are named after."""
    return {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}


def matches(pattern):
    """Places in the repository's text that match."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="ignore").splitlines(), 1)
        if re.search(pattern, line)
    ]


# --- levels


def test_every_room_has_a_level():
    """A new room is entered in LEVELS: who may import it is decided, not found."""
    assert {room(name) for name in MODULES} - {"__init__"} == set(LEVELS)


@every_module
def test_imports_point_downward_or_sideways_with_a_reason(name):
    here = room(name)
    if here == "__init__":
        assert not own_imports(name)
        return
    for there in {room(found) for found in own_imports(name)} - {here, "__init__"}:
        assert LEVELS[there] < LEVELS[here] or (here, there) in SIDEWAYS, f"{name} imports {there}"


def test_every_sideways_import_allowed_is_used():
    used = {(room(name), room(found)) for name in MODULES for found in own_imports(name)}
    assert used >= SIDEWAYS


def test_no_module_imports_itself_by_way_of_others():
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for found in sorted(own_imports(name)):
                visit(found, [*path, name])
            done.add(name)

    for name in MODULES:
        visit(name, [])


# --- who may import what


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_package_is_imported_only_where_it_belongs(package):
    users = {room(name) for name in MODULES if any(found.split(".")[0] == package for found in imported(name))}
    assert users
    assert users <= ONLY_IN[package]


@every_module
def test_nothing_is_pickled_to_disk(name):
    assert not {found.split(".")[0] for found in imported(name)} & NEVER
    called = {ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)}
    assert not called & {"torch.load", "torch.save", "np.load", "numpy.load"}


@every_module
def test_nothing_is_pickled_into_a_message(name):
    """Rooms that have MPI from the launcher call no such method at all; the others none of a communicator."""
    knows_mpi = "launcher" in own_imports(name)
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PICKLING:
            owner = ast.unparse(node.func.value)
            assert not knows_mpi, f"{name}: {owner}.{node.func.attr}"
            assert not owner.lower().endswith(("comm", "comm_world")), f"{name}: {owner}.{node.func.attr}"


# --- rooms


@every_module
def test_a_room_says_what_it_is_for(name):
    assert ast.get_docstring(TREES[name])


@every_module
def test_a_room_stays_under_400_lines(name):
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) < 400


@every_module
def test_no_room_is_named_after_nothing(name):
    assert not set(name.split(".")) & {"utils", "util", "common", "base", "factory", "registry", "callbacks", "helpers"}


def test_every_test_file_mirrors_a_room():
    """But for the house itself, and for how it is built and installed."""
    assert rooms_tested() - {"house", "build"} <= {room(name) for name in MODULES}


def test_every_room_with_something_to_test_has_a_test_file():
    assert {room(name) for name in MODULES} - rooms_tested() <= {"__init__", "__main__", "cli"}


# --- the repository


def test_no_file_names_a_place_of_one_machine():
    """Written in pieces, so that this file does not."""
    assert matches(r"(?<![\w.$}])/" + "(work|root|home)" + "/") == []


def test_no_file_names_the_host_of_a_package_registry():
    hosts = ["pypi" + r"\.org", "python" + "hosted", "docker" + r"\.io", "gh" + r"cr\.io", "quay" + r"\.io"]
    assert matches("|".join(hosts)) == []
