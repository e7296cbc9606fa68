"""Classes of the user's: found in a file or a module, and what is wrong with them told with file, class and method."""

import sys
from pathlib import Path

import pytest

from asyncfeded import rules, tasks
from asyncfeded.config import Config, load_config
from asyncfeded.own import CodeError, sources
from asyncfeded.run.plan import digest_origin, fill_in

TASK = """
from typing import ClassVar, Literal
import numpy as np, torch
from torch import nn
from asyncfeded import Classification, Data
from models import Net

class Mine(Classification):
    \"\"\"A task.\"\"\"

    name: Literal["old"] = "old"
    width: int = 3
    \"\"\"Width of the model.\"\"\"

    def model(self):
        return Net(4, self.width)

    def sizes(self, num_clients, seed):
        return np.full(num_clients, 8)

    def client_data(self, client, num_clients, seed):
        return Data(torch.randn(8, 4), torch.arange(8) % 3)

    def test_data(self):
        return self.client_data(0, 1, 0)

class Wrong(Mine):
    sizes: ClassVar = None

    def loss(self, outputs):
        return outputs

    def remarks(self, language):
        return []

class Odd(Mine):
    name: str
    remarks: str = "none"

class Plain:
    pass

def function():
    pass
"""
RULE = """
from typing import ClassVar
from asyncfeded import Decision, Reply, Settings

class Mine(Settings):
    eta: float = 0.5
    proximal: ClassVar[float] = 0.0

    def init(self, model, epochs):
        return {"K": epochs.copy()}

    def on_arrival(self, update, model, state):
        model.merge(update.client, update.weights, self.eta)
        return Decision(update.gamma, self.eta, (Reply(update.client, int(state["K"][update.client])),))

class Wrong(Settings):
    def on_arrival(self, update):
        pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a task, a rule, and a module beside them; what it brings into Python is taken back."""
    (tmp_path / "my_task.py").write_text(TASK)
    (tmp_path / "my_rule.py").write_text(RULE)
    (tmp_path / "models.py").write_text("from torch import nn\nNet = nn.Linear\n")
    (tmp_path / "run.toml").write_text('limits.updates = 1\ntask.name = "my_task.py:Mine"\nrule.name = "my_rule.py:Mine"\n')
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def resolved(config):
    """The config as the folder of the run has it."""
    return fill_in(config, tasks.load_task(config.task), rules.load_rule(config.rule))


def test_a_task_and_a_rule_lie_beside_the_toml(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    config = resolved(load_config(folder / "run.toml", ["task.width=5", "rule.eta=0.25"]))
    assert config.task == {"name": f"{folder}/my_task.py:Mine", "width": 5}
    assert config.rule == {"name": f"{folder}/my_rule.py:Mine", "eta": 0.25}
    Path("config.toml").write_text(config.to_toml())
    assert resolved(load_config(Path("config.toml"), [])) == config
    assert tasks.load_task(config.task).model().out_features == 5


def test_an_override_begins_where_it_is_typed(folder, monkeypatch):
    monkeypatch.chdir(folder)
    toml = folder / "below" / "run.toml"
    toml.parent.mkdir()
    toml.write_text('limits.updates = 1\ntask = {name = "../my_task.py:Mine", width = 7}\n')
    assert load_config(toml, ["task.name=my_task.py:Mine"]).task == {"name": f"{folder}/my_task.py:Mine", "width": 7}
    assert load_config(toml, ["rule.name='my rule.py:Mine'"]).rule == {"name": f"{folder}/my rule.py:Mine"}


def test_a_module_has_its_class(folder, monkeypatch):
    package = folder / "here" / "pack"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text(RULE)
    monkeypatch.syspath_prepend(package.parent)
    assert rules.load_rule({"name": "pack.part:Mine", "eta": 0.1}).eta == 0.1
    assert sources(["pack.part:Mine", "digits", "asyncfeded.tasks.digits:Digits"]) == [
        package / "__init__.py",
        package / "part.py",
    ]


def test_what_others_import_in_the_same_folder_is_no_code_of_a_class(folder):
    """As of a study with two tasks in one folder, or of a script that trains one of them."""
    (folder / "late.py").write_text("WIDTH = 3\n")
    (folder / "other.py").write_text((folder / "my_rule.py").read_text() + "\ndef later():\n    import late\n")
    names = [f"{folder}/my_task.py:Mine", f"{folder}/other.py:Mine"]
    tasks.load_task({"name": names[0]})
    rules.load_rule({"name": names[1]})
    sys.modules["other"].later()
    assert [path.name for path in sources(names[:1])] == ["models.py", "my_task.py"]
    assert [path.name for path in sources(names[1:])] == ["other.py"]


def test_what_a_class_is_made_from_is_its_file_and_what_it_imports_beside_it(folder):
    assert digest_origin(Config.model_validate({"limits": {"updates": 1}})) == ""
    lines = digest_origin(resolved(load_config(folder / "run.toml", []))).splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [f"{folder}/{name}.py" for name in ("models", "my_rule", "my_task")]


def load(folder, name, section="task"):
    return {"task": tasks.load_task, "rule": rules.load_rule}[section]({"name": name.replace("HERE", str(folder))})


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "mytask",
            "task.name = 'mytask': unknown task, expected one of: digits, .*; or a class of your own, as FILE.py:CLASS",
        ),
        ("HERE/absent.py:Mine", "HERE/absent.py: no such file; mend task.name"),
        ("HERE/my_task.py", "names no class; HERE/my_task.py has Mine, Wrong, Odd$"),
        ("HERE/my_task.py:Other", "has no class Other; HERE/my_task.py has Mine, Wrong, Odd$"),
        ("HERE/my_task.py:function", "has no class function; "),
        ("HERE/my_task.py:Plain", r"Plain is no asyncfeded.Settings; write `class Plain\(Settings\):`, so that"),
        ("HERE/models.py:Net", "Net is no asyncfeded.Settings"),
        ("no.such.module:Mine", "there is no module no; install it, name its folder in PYTHONPATH, or give the file"),
        (
            "HERE/random.py:Mine",
            "HERE/random.py: a module of Python, or an installed one, has the name random; rename",
        ),
        ("HERE/pytest.py:Mine", "has the name pytest; rename the file"),
        ("HERE/my.task.py:Mine", "rename the file"),
        ("HERE/conftest.py:Mine", "HERE/conftest.py: the module conftest is .*conftest.py already; rename the file"),
    ],
)
def test_a_class_that_is_not_found_is_told(folder, name, problem):
    for other in ("random", "pytest", "my.task", "conftest"):
        (folder / f"{other}.py").write_text(RULE)
    with pytest.raises(ValueError, match=problem.replace("HERE", str(folder))) as told:
        load(folder, name)
    assert not isinstance(told.value, CodeError)
    assert "\n" not in str(told.value)


def test_methods_that_are_missing_or_take_other_arguments_are_told(folder):
    with pytest.raises(CodeError) as told:
        load(folder, "HERE/my_task.py:Wrong")
    assert str(told.value) == (
        f"task {folder}/my_task.py:Wrong: has no method sizes(num_clients, seed); "
        f"loss takes (outputs), expected (model, batch); remarks takes (language), expected ()"
    )
    with pytest.raises(CodeError) as told:  # a field that the class requires gets the name
        load(folder, "HERE/my_task.py:Odd")
    assert str(told.value) == (
        f"task {folder}/my_task.py:Odd: remarks is 'none', expected a method remarks(); rename a key of that name"
    )
    with pytest.raises(CodeError) as told:
        load(folder, "HERE/my_rule.py:Wrong", "rule")
    assert str(told.value) == (
        f"rule {folder}/my_rule.py:Wrong: has no method init(model, epochs); on_arrival takes (update), "
        f"expected (update, model, state); has no number proximal; write `proximal: ClassVar[float] = 0.0`"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def f(:\n", r"raised SyntaxError: .*\n  File \"HERE/bad.py\", line 1\n"),
        ("import nowhere_at_all\n", r"raised ModuleNotFoundError: No module named 'nowhere_at_all'\nTraceback"),
        ("x = {}['key']\n", "raised KeyError: 'key'\nTraceback"),
        ("import sys\nsys.exit(3)\n", "raised SystemExit: 3\nTraceback"),
        ("raise ValueError('set DATA first')\n", "imported: set DATA first$"),
    ],
)
def test_what_a_file_raises_is_told_with_its_own_traceback(folder, text, problem):
    (folder / "bad.py").write_text(text)
    with pytest.raises(CodeError, match=problem.replace("HERE", str(folder))) as told:
        load(folder, "HERE/bad.py:Mine")
    assert "importlib" not in str(told.value)
    assert "own.py" not in str(told.value)


def test_what_a_class_raises_when_it_is_made_is_told(folder):
    (folder / "bad.py").write_text(RULE + "\n    def model_post_init(self, context):\n        {}['key']\n")
    with pytest.raises(CodeError, match=rf"^rule {folder}/bad.py:Wrong, made from its keys: raised KeyError: 'key'\n"):
        load(folder, "HERE/bad.py:Wrong", "rule")


def test_keys_are_checked_as_those_of_any_section(folder):
    with pytest.raises(ValueError, match="task: unknown key widht; did you mean width"):
        tasks.load_task({"name": f"{folder}/my_task.py:Mine", "widht": 3})
