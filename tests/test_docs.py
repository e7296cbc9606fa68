"""What README and docs/ say is true: each command and each block of code is run, or read as the program reads it."""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import metadata
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from typer.testing import CliRunner

import asyncfeded
from asyncfeded import cli
from asyncfeded.config import Config, load_config, section
from asyncfeded.files.plain import read_toml
from asyncfeded.rules import load_rule
from asyncfeded.studies.scaling.grid import load_scaling_grid
from asyncfeded.studies.study import load_study_grid
from asyncfeded.tasks import load_task
from conftest import run

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HOW = {
    "": "bash reads its lines; those of the program go through its own parser, with the config that they name",
    "toml": "it is checked as a run, a grid or a section of a run is",
    "python": "it is run, after those above it on its page, beside a run that has ended",
    "text": "nothing: it is what a program prints, a formula, or a picture",
}
"""How a block is checked, by the word behind its fence. A block with a title is also the file of that name for its page."""
FENCE = re.compile(r'^```(\w*)(?: +title="([^"]+)")?[^\n]*\n(.*?)^```$', re.M | re.S)

TELLING = {"check", "export", "info", "keys", "plot", "report", "trace", "cite", "watch"}
"""Commands that start no job: they are typed as they stand there."""


class Block(NamedTuple):
    """A block of code in a document."""

    page: Path
    line: int
    language: str
    title: str
    text: str

    @property
    def where(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page):
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 2, *map(str, found.groups(""))) for found in FENCE.finditer(text)
    ]


BLOCKS = [block for page in DOCUMENTS for block in blocks_of(page)]


def words_of(text):
    """The words of lines of a shell, and its punctuation, line by line."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        lexer = shlex.shlex(re.sub(r"\$PWD/|\$\w+/", "", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        yield [re.sub(r"\$\w+", "5", word) for word in lexer]


def commands_in(text):
    """The program's own command lines in lines of a shell, behind whatever launches them: lists of words."""
    for words in words_of(text):
        for at, word in enumerate(words[:-1]):
            if word in ("asyncfeded", "asyncfeded.sif") and re.fullmatch("[a-z][a-z-]*", words[at + 1]):
                yield list(takewhile(lambda word: not set(word) <= set("();<>|&"), words[at + 1 :]))
            elif "asyncfeded " in word:
                yield from commands_in(word)
        if words and "asyncfeded " in words[-1]:
            yield from commands_in(words[-1])


def parsed(words):
    """The name and the context of a command line, as the program's own parser reads it. Raises what that raises."""
    cli._check_dashes(words)
    command, name = typer.main.get_command(cli.app), "asyncfeded"
    words = ["5" if word == "N" else word for word in words]
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(command.context_class(command), words)
    return name, command.make_context(name, list(words))


def checked(path, overrides=()):
    """A run's config, with its task and its rule."""
    config = load_config(Path(path), list(overrides))
    load_task(config.task), load_rule(config.rule)
    return config


@cache
def type_in(*words):
    """A command line of the program: its words, its files and its keys are right; it runs if it starts no job."""
    if words[:1] == ["--help"]:
        return
    name, context = parsed(list(words))
    given, overrides = context.params, context.params.get("overrides") or []
    if name == "train":
        checked(given["file"], overrides)
    elif name == "resume":
        checked(given["run_dir"] / "config.toml", overrides)
    elif name == "study":
        load_study_grid(given["grid"], overrides)
    elif name == "scale":
        load_scaling_grid(given["grid"], overrides)
    elif name in TELLING:
        if given.get("to"):
            Path(given["to"]).unlink(missing_ok=True)
        said = CliRunner().invoke(cli.app, [*words])
        assert said.exit_code == 0, f"{words}\n{said.output}"


def check_lines(text):
    """Lines of a shell: bash can read them, the files of this repository exist, and so do the extras of an installation."""
    read = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert read.returncode == 0, read.stderr
    for command in commands_in(text):
        type_in(*command)
    for word in (word for words in words_of(text) for word in words):
        if re.match(r"(launch|slurm|docs)/", word):
            assert (ROOT / word).exists(), f"no file {word}"
        if extras := re.match(r"\.\[(.*)\]", word):
            known = metadata("asyncfeded").get_all("Provides-Extra")
            assert set(extras[1].replace("...", "mpich").split(",")) <= set(known)


def check_toml(text):
    """A run, a grid, or some sections of a run."""
    path = Path("block.toml")
    path.write_text(text)
    table = read_toml(path, "")
    if "tasks" in table or "models" in table:
        (load_study_grid if "tasks" in table else load_scaling_grid)(path)
        return
    config = section(Config, {"limits": {"updates": 1}} | table, "a block")
    for kind, load in ("task", load_task), ("rule", load_rule):
        if kind in table and ".py:" not in getattr(config, kind)["name"]:
            load(getattr(config, kind))


NAMES = """
import math
from typing import ClassVar
import numpy as np
import torch
from pydantic import Field
from torch import nn
import asyncfeded
from asyncfeded import *
from asyncfeded.testing import RuleTests, TaskTests
"""
"""What a block of Python may use without importing it."""


def write_files(blocks):
    """The blocks that have a title, as files."""
    for block in blocks:
        if block.title:
            Path(block.title).write_text(block.text)


@pytest.fixture(scope="session")
def staged(own_mpi, tmp_path_factory):
    """A folder as a reader has it: the repository's files, a run that has ended, and what the pages call it."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("launch", "slurm", "docs", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    overrides = ["limits.seconds=4", "checkpoint.every_updates=20", "run_dir=runs/mine"]
    command = [sys.executable, "-m", "asyncfeded", "train", "launch/synthetic.toml", *overrides]
    done = run(own_mpi.command((3, command)), folder, own_mpi.env)
    assert done.status == 0, str(done)
    for name in ("runs/long", "RUN_DIR"):
        (folder / name).symlink_to(folder / "runs" / "mine")
    (folder / "CHECKPOINT").symlink_to(sorted((folder / "runs/mine/checkpoints").iterdir())[-1])
    (folder / "RUN.toml").symlink_to(ROOT / "launch" / "synthetic.toml")
    return folder


@pytest.fixture
def reader(staged, monkeypatch):
    """Whoever sits in that folder. A run that Python starts is checked, and has ended at once."""
    monkeypatch.chdir(staged)
    write_files(BLOCKS)
    monkeypatch.syspath_prepend(str(staged))

    def train(file, *, ranks=None, overrides=(), task=None, rule=None):
        checked(file, overrides)
        return asyncfeded.open("runs/mine")

    monkeypatch.setattr(asyncfeded, "train", train, raising=False)
    return staged


def pages_with_blocks():
    return [page for page in DOCUMENTS if any(block.page == page for block in BLOCKS)]


@pytest.mark.parametrize("page", pages_with_blocks(), ids=lambda page: str(page.relative_to(ROOT)))
def test_each_block_of_a_page_is_true(page, reader):
    names = {"__name__": "page"}
    exec(NAMES, names)
    names["module"] = load_task(load_config(Path("launch/synthetic.toml"), []).task).model()
    blocks = [block for block in BLOCKS if block.page == page]
    write_files(blocks)
    for block in blocks:
        assert block.language in HOW, f"{block.where}: {block.language!r} is none of {', '.join(map(repr, HOW))}"
        try:
            if block.language == "":
                check_lines(block.text)
            elif block.language == "toml":
                check_toml(block.text)
            elif block.language == "python":
                exec(compile("\n" * block.line + block.text, block.page, "exec", dont_inherit=True), names)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{block.where}: {type(error).__name__}: {error}") from error


# --- the help


def every_command(command=None, name="asyncfeded"):
    command = command or typer.main.get_command(cli.app)
    yield name, command
    for part, below in getattr(command, "commands", {}).items():
        yield from every_command(below, f"{name} {part}")


def test_the_help_of_each_command_ends_with_examples_of_it(reader):
    for name, command in every_command():
        head, *examples = (command.epilog or "").split("\n\n")
        assert head in ("Example:", "Examples:"), name
        assert examples, name
        for example in examples:
            assert name in example, (name, example)
            (words,) = commands_in(example)
            parsed(words)


# --- links


@cache
def site():
    """The hooks that build the site."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "launch" / "docs.py")
    module = importlib.util.module_from_spec(spec)
    pytest.importorskip("mkdocs", reason="the site needs the extra docs: pip install '.[docs]'")
    spec.loader.exec_module(module)
    return module


def test_each_link_between_the_repositorys_documents_leads_to_a_file():
    """Those between the pages of the site, and to headings, are checked by mkdocs too."""
    made = {f"docs/{name}" for name in site().MADE}
    for page in [*DOCUMENTS, ROOT / "LOG.md", ROOT / "CHANGELOG.md"]:
        path = str(page.relative_to(ROOT))
        for *_, target in site().linked(page.read_text(encoding="utf-8"), path):
            assert (ROOT / target).exists() or (target in made and path != "README.md"), f"{path} links to {target}"


def test_a_newcomer_finds_the_way_from_the_readme():
    """How to train an own model, to run on a cluster, to choose a rule, and what went wrong: two clicks."""
    targets = {target for *_, target in site().linked((ROOT / "README.md").read_text(), "README.md")}
    wanted = {"docs/tutorials/own_task.md", "docs/cluster.md", "docs/rules.md", "docs/reference/messages.md"}
    assert wanted <= targets


def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs the extra docs: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = run(command, ROOT, os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert done.status == 0, str(done)
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*?(?:src|href)="(https?:[^"]*)"', page.read_text())
        assert fetched == [], page
    keys = (tmp_path / "site" / "reference" / "config.html").read_text()
    assert "evaluation.client_rounds" in keys
    assert "gamma_bar" in keys


# --- messages


@cache
def told():
    """Every text that the program may say, values left out, as one text."""
    found = []
    for path in sorted((ROOT / "src" / "asyncfeded").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_the_messages_that_are_explained_are_those_of_the_program():
    """In the first column of the tables; `…` stands for a value."""
    text = (ROOT / "docs" / "reference" / "messages.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", text, re.M)
    assert len(quoted) > 20
    for message in quoted:
        for part in message.split("…"):
            assert part.strip() in told(), f"no message of the program has {part.strip()!r}: {message}"


def test_no_module_of_the_documentation_is_left_out():
    """The page of the API has every name that the package exports."""
    text = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    assert {name for name in asyncfeded.__all__ if not re.search(rf"\b{name}\b", text)} == set()
