"""Finds the class of a task or a rule by its name: a built-in one, or one in a file or a module of the user's.

`FILE.py:CLASS` is imported as Python imports a script: its folder comes first in the search for modules, and the file is a
module named after it. So it may import what lies beside it, and what it makes can be sent to other processes.
"""

import ast
import importlib
import inspect
import linecache
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType, TracebackType

from asyncfeded.config import Settings, section
from asyncfeded.files.plain import check_file

INSTALLED = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
"""Folders of installed packages."""
LONGEST = 2500
"""Characters of a traceback that are told, its end."""


class PassedOnError(RuntimeError):
    """An error of the program, such as a lost rank, that a user's code has only passed on: it called the program."""


class CodeError(ValueError):
    """What is wrong with a task or a rule, in sentences for its author; behind them the author's own traceback, if any."""


def load(kinds: Mapping[str, type[Settings]], table: Mapping[str, object], where: str, taken: Sequence[str]) -> Settings:
    """Check a section of the config against the class that its `name` chooses.

    Args:
        kinds: the built-in classes by name.
        table: keys and values.
        where: the section, such as `rule`.
        taken: keys of the section that are none of the class, unless it requires them.

    Raises:
        ValueError: there is no such class, an unknown key or a value out of range.
        CodeError: the class, or its file, raises something.
    """
    kind = find(kinds, table.get("name"), where)
    fields = kind.model_fields
    keys = {key: table[key] for key in table if key not in taken or (key in fields and fields[key].is_required())}
    try:
        return section(kind, keys, where)
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        raise CodeError(raised(f"{where} {table['name']}, made from its keys", error)) from None


def find(kinds: Mapping[str, type[Settings]], name: object, where: str) -> type[Settings]:
    """The class of a name. Arguments and errors: see `load`."""
    if isinstance(name, str) and name in kinds:
        return kinds[name]
    subject = f"{where}.name = {name!r}"
    place, colon, kind = _parts(name) if isinstance(name, str) else ("", "", "")
    if not place:
        raise ValueError(
            f"{subject}: unknown {where}, expected one of: {', '.join(kinds)}; or a class of your own, as FILE.py:CLASS "
            f"(the file lies beside the TOML) or PACKAGE.MODULE:CLASS"
        )
    module = _import(place, subject, where)
    found = getattr(module, kind, None) if colon else None
    if not isinstance(found, type):
        raise ValueError(f"{subject}: {f'has no class {kind}' if kind else 'names no class'}; {_offers(module)}")
    if not issubclass(found, Settings):
        raise ValueError(
            f"{subject}: {kind} is no asyncfeded.Settings; write `class {kind}(Settings):`, so that its fields are the keys "
            f"of [{where}]"
        )
    return found


def name_of(kind: type, kinds: Mapping[str, type[Settings]]) -> str:
    """The name by which `find` finds a class: that of a built-in one, FILE.py:CLASS, or PACKAGE.MODULE:CLASS."""
    module, file = kind.__module__, vars(sys.modules[kind.__module__]).get("__file__") or ""
    in_a_file = file and "." not in module and Path(file).name != "__init__.py"
    own = f"{Path(file).absolute() if in_a_file else module}:{kind.__qualname__}"
    return next((name for name, known in kinds.items() if known is kind), own)


def short(name: str) -> str:
    """The name of a task or a rule as a part of the name of a folder: the class of one of the user's."""
    return name.rpartition(":")[2]


def sources(names: Iterable[str]) -> list[Path]:
    """The files that tasks and rules of the user's were made from; none for built-in ones.

    They are the file of each, and what it imports beside it (of a module: in its package), as far as that has been imported
    by now. Imports inside of functions do not count.

    Args:
        names: of tasks and rules, whose classes have been loaded.
    """
    modules, found = dict(_modules()), set[Path]()
    for place, _, _ in map(_parts, names):
        top = place.partition(".")[0]
        if top in ("", "asyncfeded"):
            continue
        own_file = place.endswith(".py")
        waiting = [(place, Path(place) if own_file else modules[place])]
        while waiting:
            name, file = waiting.pop()
            if file in found:
                continue
            found.add(file)
            for other in _imports(file, "" if name.endswith(".py") else name):
                beside = _lies_beside(modules[other], Path(place).parent) if own_file and other in modules else False
                if beside or (other in modules and not own_file and other.partition(".")[0] == top):
                    waiting.append((other, modules[other]))
    return sorted(found)


def _imports(file: Path, name: str) -> Iterator[str]:
    """The modules that a file imports when it is imported itself, and the packages that they and it are in.

    Args:
        file: of a module.
        name: of the module; empty: it is in no package.
    """
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found, waiting = [name], list[ast.AST]([ast.parse(file.read_bytes())])
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))
    for each in found:
        parts = each.split(".")
        yield from (".".join(parts[:stop]) for stop in range(1, len(parts) + 1))


def wrong_methods(part: object, required: type, optional: Sequence[type] = ()) -> list[str]:
    """What is wrong with the methods of a task or a rule, as phrases.

    Args:
        part: the task or the rule.
        required: the protocol that it must have.
        optional: protocols that it may have.
    """
    missing, faults = [], []
    for protocol in (required, *optional):
        for name, method in vars(protocol).items():
            if name.startswith("_") or not inspect.isfunction(method):
                continue
            own, expected = getattr(part, name, None), list(inspect.signature(method).parameters)[1:]
            told = f"{name}({', '.join(expected)})"
            if own is None:
                missing += [told] if protocol is required else []
            elif not callable(own):
                faults.append(f"{name} is {own!r:.40}, expected a method {told}; rename a key of that name")
            elif (got := _other_signature(own, expected)) is not None:
                faults.append(f"{name} takes ({got}), expected ({', '.join(expected)})")
    return ([f"has no method {', '.join(missing)}"] if missing else []) + faults


def raised(doing: str, error: BaseException, advice: str = "") -> str:
    """What code of the user's has raised, as sentences and the traceback of that code.

    A ValueError that the code raises itself is a sentence already and gets no traceback (tasks so say what is wrong with
    their data); anything else gets the traceback, without the frames of the program that called the code.

    Args:
        doing: which code: of a task or a rule, the method, and for which client.
        error: what it has raised.
        advice: what to change, if that is known.

    Raises:
        PassedOnError: it is one.
    """
    if isinstance(error, PassedOnError):
        raise error
    trace = error.__traceback__
    while trace and _is_ours(trace.tb_frame.f_globals.get("__name__", "")):
        trace = trace.tb_next
    if isinstance(error, ValueError) and not isinstance(error, SyntaxError) and _raised_by(trace) and not advice:
        return f"{doing}: {error}"
    said = (str(error).splitlines() or [""])[0]
    told = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
    if len(told) > LONGEST:
        told = f"{told[:200]}\n  ...\n{told[-LONGEST:].partition(chr(10))[2]}"
    return f"{doing}: raised {type(error).__name__}: {said[:500]}{advice and f'; {advice}'}\n{told}"


def _parts(name: str) -> tuple[str, str, str]:
    """File or module, colon, and class of a name; nothing before the colon if it can be none of the user's."""
    if name.endswith(".py"):
        return name, "", ""
    place, colon, kind = name.rpartition(":")
    return place, colon, kind


def _import(place: str, subject: str, where: str) -> ModuleType:
    """The module in a file, or of a name."""
    path = Path(place) if place.endswith(".py") else None
    name = path.stem if path else place
    if path:
        check_file(path, f"mend {where}.name")
        installed = PathFinder.find_spec(name, INSTALLED)
        if "." in name or name in sys.stdlib_module_names or (installed and installed.origin != place):
            raise ValueError(f"{path}: a module of Python, or an installed one, has the name {name}; rename the file")
        if sys.path[:1] != [str(path.parent)]:
            sys.path.insert(0, str(path.parent))
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"{subject}: there is no module {error.name}; install it, name its folder in PYTHONPATH, or give the file "
                f"beside the TOML, as FILE.py:CLASS"
            ) from None
        raise CodeError(raised(f"{subject}, when it was imported", error)) from None
    if path and not path.samefile(file := vars(module).get("__file__") or "."):
        raise ValueError(f"{path}: the module {name} is {file} already; rename the file")
    return module


def _offers(module: ModuleType) -> str:
    """The classes that a module has, as a sentence."""
    own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    names = [kind.__name__ for kind in own if issubclass(kind, Settings)] or [kind.__name__ for kind in own]
    return f"{vars(module).get('__file__')} has {', '.join(names) or 'no class'}"


def _modules() -> Iterator[tuple[str, Path]]:
    """Names and files of the modules that have been imported."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and isinstance(file := vars(module).get("__file__"), str):
            yield name, Path(file)


def _lies_beside(file: Path, folder: Path) -> bool:
    """Whether a file is in a folder, and not in an installation of Python or of this program that lies there too."""
    if not file.is_relative_to(folder) or {"site-packages", "dist-packages"} & set(file.parts):
        return False
    roots = [Path(root) for root in (sys.prefix, sys.base_prefix, Path(__file__).parent)]
    return not any(file.is_relative_to(root) for root in roots if root.is_relative_to(folder))


def _other_signature(method: Callable[..., object], expected: Sequence[str]) -> str | None:
    """The parameters of a method that cannot be called with so many values; None if it can."""
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # not written in Python
        return None
    try:
        signature.bind(*expected)
    except TypeError:
        return ", ".join(signature.parameters)
    return None


def _is_ours(module: str) -> bool:
    """Whether a module is of the program or of Python's import, and neither a task nor a rule."""
    package, _, room = module.partition(".")
    inside = not room.startswith(("tasks.", "rules.")) or room.endswith(".contract")
    return package == "importlib" or (package == "asyncfeded" and inside)


def _raised_by(trace: TracebackType | None) -> bool:
    """Whether an error was raised by a `raise` of the first module or of the program, and not by what these call."""
    if trace is None:
        return False
    *_, (last, line) = traceback.walk_tb(trace)
    name = last.f_globals.get("__name__", "")
    found = linecache.getline(last.f_code.co_filename, line, last.f_globals).lstrip().startswith("raise ")
    return found and (name.startswith("asyncfeded.") or name == trace.tb_frame.f_globals.get("__name__"))
