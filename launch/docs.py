"""Hooks of mkdocs (mkdocs.yml): pages made from the program, and a page for each file outside docs/ that a page links to.

Pages link to files as they lie in the repository, so that the links also work where the Markdown is read as it is. A file
outside docs/ has its page under `source/`.
"""

import ast
import inspect
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.core import TyperCommand, TyperGroup

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "LOG.md": "log.md"}
"""Documents outside docs/ that are pages of the site."""
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "bash", ".sbatch": "bash", ".md": "markdown"}


# --- places


def place(path: str) -> str:
    """Where a file of the repository is in the site: both as text, relative to their roots."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path, f"source/{path}.md")


def origin(page: str) -> str:
    """The file of the repository that a page of the site is made from."""
    back = {target: path for path, target in PAGES.items()}
    return back.get(page, page.removeprefix("source/").removesuffix(".md") if page.startswith("source/") else f"docs/{page}")


def linked(text: str, path: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, file of the repository) for each relative link in a document, outside of its code."""
    code = [match.span() for match in FENCE.finditer(text)]
    for match in LINK.finditer(text):
        target = match[2]
        if "://" not in target and not target.startswith("mailto:") and not any(a <= match.start() < b for a, b in code):
            yield *match.span(2), posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


# --- pages made from the program


def cell(text: str) -> str:
    """A text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def key_rows(rows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """A table of keys: (key, default, meaning)."""
    yield from ("| key | default | meaning |", "|---|---|---|")
    yield from (
        f"| `{key}` | {f'`{default}`' if default != 'required' else default} | {cell(text)} |" for key, default, text in rows
    )
    yield ""


def config_page() -> Iterator[str]:
    """Every key, from the schema that checks them."""
    from asyncfeded import config, rules, tasks

    yield from (
        "# Keys of a run",
        "",
        "This page is made from the schema that checks a run's TOML file; `asyncfeded keys` prints the same. A key stands",
        "in its section of the file (`[limits]`, `updates = 500`), or on the command line as `limits.updates=500`. An",
        "unknown key, or a value out of range, is an error before anything starts.",
        "",
    )
    fields = config.Config.model_fields
    sections = {name: field.default for name, field in fields.items() if isinstance(field.default, config.Settings)}
    yield from ("## Keys outside of the sections", "")
    yield from key_rows(row for row in config.describe_keys(config.Config) if "." not in row[0])
    for name, section in sections.items():
        yield from (f"## [{name}]", "", inspect.cleandoc(type(section).__doc__), "")
        yield from key_rows(config.describe_keys(type(section), f"{name}."))
    yield from ("## [task]", "", "`task.name` says which task, and the other keys are that task's.", "")
    yield from key_rows([("task.name", '"digits"', "A task below, or `FILE.py:Class`, or `package.module:Class`."),
                         *config.describe_keys(tasks.Initial, "task.")])  # fmt: skip
    for name, kind in tasks.TASKS.items():
        yield from (f"### task.name = {name}", "", (kind.__doc__ or "").split("\n")[0], "")
        yield from key_rows(config.describe_keys(kind, "task."))
    yield from ("## [rule]", "", "`rule.name` says which rule; [How to choose](../rules.md).", "")
    for name, kind in rules.RULES.items():
        yield from (f"### rule.name = {name}", "", "```text", inspect.cleandoc(kind.__doc__), "```", "")
        yield from key_rows(config.describe_keys(kind, "rule."))


def commands_page() -> Iterator[str]:
    """Every command, from the parser that reads it."""
    from asyncfeded.cli import app

    yield from (
        "# Commands",
        "",
        "This page is made from the program's own parser; `asyncfeded COMMAND --help` prints the same. What the statuses",
        "mean is in [Exit statuses](statuses.md).",
        "",
    )
    yield from command_lines(typer.main.get_command(app), "asyncfeded")


def command_lines(command: TyperCommand | TyperGroup, name: str) -> Iterator[str]:
    """A command and those below it."""
    parts = getattr(command, "commands", {})
    if not parts:
        named = {
            kind: [given for given in command.params if given.param_type_name == kind] for kind in ("argument", "option")
        }
        arguments = [(given, str(given.name).upper()) for given in named["argument"]]
        options = [(given, ", ".join(given.opts)) for given in named["option"]]
        usage = " ".join([name, *(called for _, called in arguments), *["[OPTIONS]"] * bool(options)])
        yield from (f"## {name}", "", "```text", usage, "```", "", inspect.cleandoc(command.help or ""), "")
        yield from ("| argument or option | meaning | default |", "|---|---|---|")
        for given, called in arguments + options:
            default = "" if given.default in (None, False) or callable(given.default) else f"`{given.default}`"
            told = cell(getattr(given, "help", None) or "")
            yield f"| `{called}` | {told} | {'required' if given.required else default} |"
        yield from ("", "```", *(command.epilog or "").split("\n\n")[1:], "```", "")
    for part, below in parts.items():
        yield from command_lines(below, f"{name} {part}")


def columns_of(kind: type) -> Iterator[tuple[str, str, str]]:
    """(name, type, meaning) of each field of a NamedTuple, whose meaning is the string below it."""
    body = ast.parse(inspect.getsource(kind)).body[0].body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            told = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            yield node.target.id, ast.unparse(node.annotation), " ".join(told.split())


def columns_table() -> Iterator[str]:
    """The columns of a record's table of updates."""
    from asyncfeded.store.record import UpdateRow

    yield from ("| column | type | meaning |", "|---|---|---|")
    yield from (f"| `{name}` | {kind.lower()} | {cell(told)} |" for name, kind, told in columns_of(UpdateRow))


MADE = {"reference/config.md": config_page, "reference/commands.md": commands_page}
PARTS = {"<!-- columns of an update -->": columns_table}


# --- what mkdocs calls


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for name, lines in MADE.items():
        files.append(File.generated(config, name, content="\n".join(lines())))
    for path, name in PAGES.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=f"---\nsearch:\n  boost: 0.3\n---\n{text}"))
    found = set()
    for file in list(files.documentation_pages()):
        path = origin(file.src_uri)
        found |= {target for *_, target in linked(file.content_string, path)}
    for target in sorted(found):
        name = place(target)
        if name.startswith("source/") and (ROOT / target).exists():
            files.append(File.generated(config, name, content=source(ROOT / target, target)))
    named = set(re.findall(r"[\w/]+\.md", str(config.nav)))
    found = {file.src_uri for file in files.documentation_pages() if not file.src_uri.startswith("source/")}
    how_to = next(part["How to"] for part in config.nav or [] if "How to" in part)
    how_to += sorted(found - named)  # a page that the menu does not name is found at the end of this one
    return files


def source(path: Path, name: str) -> str:
    """The page of a file, or of a folder."""
    if path.is_dir():
        entries = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        return f"# {name}\n\n" + "".join(f"- `{entry}`\n" for entry in entries)
    return (
        f"# {path.name}\n\n`{name}`\n\n~~~~{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8')}\n~~~~\n"
    )


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the repository become links of the site."""
    for marker, lines in PARTS.items():
        if marker in markdown:
            markdown = markdown.replace(marker, "\n".join(lines()))
    here = page.file.src_uri
    if here in MADE or here.startswith("source/"):
        return markdown
    for start, end, target in reversed(list(linked(markdown, origin(here)))):
        markdown = markdown[:start] + posixpath.relpath(place(target), posixpath.dirname(here) or ".") + markdown[end:]
    return markdown
