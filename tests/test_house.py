"""The rules of the house that a machine can check: who imports whom, what is not there, and how long a room may be."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import asyncfeded
from asyncfeded import testing

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "asyncfeded"

FLOORS = (
    ("__init__", "__main__"),
    ("cli",),
    ("bench", "plots", "report", "testing", "watch"),
    ("doctor", "script", "studies"),
    ("run",),
    ("training",),
    ("rules", "store", "tasks", "wire"),
    ("model", "mpi", "own"),
    ("config", "metric", "seeds"),
    ("accelerator", "files", "override", "wording"),
)
"""The parts of the package, from the top floor down: a part imports from the floors below its own, and from nowhere else."""
ONLY_IN = {
    "mpi4py": {"mpi.launcher"},
    "h5py": {"files", "store"},
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


def part(name):
    """The part that a module belongs to, or the module itself where it stands on the ground."""
    return name.split(".")[0]


LEVELS = {name: level for level, floor in enumerate(reversed(FLOORS)) for name in floor}


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


TESTS = [path.relative_to(ROOT / "tests") for path in sorted((ROOT / "tests").rglob("test_*.py"))]
MIRRORED = {"files", "model", "mpi", "run", "script", "store", "studies", "training", "wire"}
"""Parts whose every room has a test file of its own."""
WHOLE = {"run.evaluate", "run.serve", "run.work", "training.server_state"}
"""Rooms that whole runs test (tests/run/test_run_*.py), and servers that are saved and restored."""
ELSEWHERE = {"cluster", "faults", "test_build.py", "test_docs.py", "test_examples.py", "test_house.py", "test_site.py"}
"""Tests of no room: of the whole program, and of how it is built."""


def mirrors(path, name):
    """Whether a test file tests a module: `wire/test_transfer.py`, or `mpi/test_transfer_chunks.py` on several ranks."""
    room = name.split(".")[1] if "." in name else name
    folder = path.parts[0] if len(path.parts) > 1 else ""
    return folder in (part(name), "mpi", "") and f"{path.stem}_".startswith(f"test_{room}_")


def matches(pattern):
    """Places in the repository's text that match."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="ignore").splitlines(), 1)
        if re.search(pattern, line)
    ]


# --- levels


def test_every_part_has_a_floor():
    """A new part is entered in FLOORS: who may import it is decided, not found."""
    assert sorted({part(name) for name in MODULES}) == sorted(name for floor in FLOORS for name in floor)


@every_module
def test_imports_point_downward(name):
    above = part(name)
    for below in {part(found) for found in own_imports(name)} - {above}:
        assert LEVELS[below] < LEVELS[above], f"{name} imports {below}, which is not on a lower floor (FLOORS)"


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


# --- what strangers import


def test_the_public_surface_is_what_the_package_exports():
    """A name that is added or removed here is a promise made or broken: say so in CHANGELOG.md."""
    assert asyncfeded.__all__ == [
        "At", "Batch", "Classification", "Data", "Decision", "GlobalModel", "Layout", "Measures", "Metric", "Optimizes",
        "Reply", "Rule", "Run", "RunFailed", "Samples", "Schedules", "Settings", "State", "Steps", "Sums", "Task", "Update",
        "Waits", "open", "train",
    ]  # fmt: skip
    for name in asyncfeded.__all__:
        assert getattr(asyncfeded, name) is getattr(asyncfeded, name)
    with pytest.raises(AttributeError, match="no attribute 'Job'"):
        asyncfeded.Job  # noqa: B018


def test_what_strangers_test_with_is_what_testing_exports():
    assert testing.__all__ == ["FakeWire", "RuleTests", "Sent", "TaskTests"]


def test_the_package_alone_loads_neither_torch_nor_mpi():
    """Every rank begins with a shield, a process that must start at once."""
    code = "import sys, asyncfeded.mpi.shield; print(sorted({'torch', 'mpi4py', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# --- who may import what


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_package_is_imported_only_where_it_belongs(package):
    users = {name for name in MODULES if any(found.split(".")[0] == package for found in imported(name))}
    assert users
    assert {name for name in users if not {name, part(name)} & ONLY_IN[package]} == set()


@every_module
def test_no_room_asks_for_a_kind_of_gpu(name):
    """accelerator.py does; whoever else asked `is_cuda` would forget XPU, and whatever comes next."""
    if name != "accelerator":
        assert (
            re.findall(
                r"is_cuda|torch\.cuda|torch\.xpu|torch\.mps|[\"']cuda[\"']", MODULES[name].read_text(encoding="utf-8")
            )
            == []
        )


@every_module
def test_nothing_is_pickled_to_disk(name):
    assert not {found.split(".")[0] for found in imported(name)} & NEVER
    text = MODULES[name].read_text(encoding="utf-8")
    loads = re.findall(r"torch\.load\b.*|torch\.save\b|\b(?:np|numpy)\.load\b", text)
    if name == "files.weights":  # the one door, which unpickles tensors and nothing else
        loads = [call for call in loads if call != "torch.save" and "weights_only=True" not in call]
    assert loads == []


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


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_a_test_file_stays_under_500_lines(path):
    assert len((ROOT / "tests" / path).read_text(encoding="utf-8").splitlines()) <= 500


def test_every_test_file_mirrors_a_room():
    """`tests/wire/test_transfer.py` tests `wire.transfer`; of several files for a room each begins with its name."""
    for path in TESTS:
        if path.parts[0] not in ELSEWHERE:
            assert any(mirrors(path, name) for name in MODULES), path


def test_every_room_with_something_to_test_has_a_test_file():
    for name in MODULES:
        if part(name) in MIRRORED and "." in name and name not in WHOLE:
            assert any(mirrors(path, name) for path in TESTS), name


@every_module
def test_the_help_of_a_command_ends_with_an_example(name):
    """`epilog=example(...)`; tests/test_docs.py types the examples."""
    for node in ast.walk(TREES[name]):
        if part(name) == "cli" and isinstance(node, ast.FunctionDef):
            for made in (call for call in node.decorator_list if ast.unparse(call).split("(")[0].endswith(".command")):
                assert "epilog=example(" in ast.unparse(made), f"{name}: {node.name}"


# --- the repository


def test_no_file_names_a_place_of_one_machine():
    """Written in pieces, so that this file does not."""
    assert matches(r"(?<![\w.$}])/" + "(work|root|home)" + "/") == []


def test_no_file_names_the_host_of_a_package_registry():
    hosts = ["pypi" + r"\.org", "python" + "hosted", "docker" + r"\.io", "gh" + r"cr\.io", "quay" + r"\.io"]
    assert matches("|".join(hosts)) == []
