"""Classes and functions that make networks, as the `module:name` of a configuration.

One that workers can import goes by its own name. Of one in a notebook's cell or in a script the source is
gathered, with what it uses of its surroundings, into a module that stands alone; see `own_code`.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import inspect
import linecache
import math
import symtable
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from ensemble_kd.api.problems import ConfigValueError
from ensemble_kd.own_code import FOLDER, Known, OwnCode, file_of, hold
from ensemble_kd.redact import secret_name

MAIN = (None, "__main__", "__mp_main__", "builtins")
"""Modules that another process does not find a user's class in."""
HEAD = (
    '"""A network that was written in a notebook\'s cell or in a script, kept by ensemble_kd as it was."""\n'
)
FUTURE = "from __future__ import annotations\n"
IN_A_FILE = (
    "write it into a file (in a notebook: %%writefile my_net.py above the cell) and give its name: "
    "'my_net:Net'"
)


def is_maker(value: Any) -> bool:
    """Whether this is a class or a function, and so may make networks."""
    return isinstance(value, type | FunctionType)


def callable_name(made_by: Any, where: str) -> str:
    """`module:name` for a configuration; what no module has is known by it in this process from now on.

    Raises ConfigValueError, starting with `where`, for what has no name, or whose source cannot be kept.
    """
    name = getattr(made_by, "__name__", "")
    if not name.isidentifier():
        kind = "a lambda" if name == "<lambda>" else f"a {type(made_by).__name__} without a name"
        raise ConfigValueError(f"{where}: {kind}; give a class, or a function that is made with def")
    if _importable(made_by):
        return f"{made_by.__module__}:{name}"
    module = _Module(made_by)
    if module.problems:
        raise ConfigValueError([f"{where}: {problem}" for problem in module.problems])
    source = module.text()
    known = f"main_{hashlib.sha256(source.encode()).hexdigest()[:8]}:{name}"
    hold({known: OwnCode(made_by, source)})
    return known


def check_sendable(known: Known) -> None:
    """Raises ConfigValueError for what Ray cannot send to the processes that train it."""
    if not known:
        return
    from ray import cloudpickle

    problems = []
    for name, own in known.items():
        try:
            cloudpickle.dumps(own.made_by)
        except Exception as error:  # whatever an attribute's own pickling raises
            problems.append(
                f"{name.partition(':')[2]}: cannot be sent to the processes that train it: {error}; "
                "make locks, open files and connections in __init__ or where they are used, or train in this "
                "process: compute__executor='local'"
            )
    if problems:
        raise ConfigValueError(problems)


def keep_sources(known: Known, folder: Path) -> None:
    """Write the modules into `code/` of a run folder, where those who go on with the run find them."""
    for name, own in known.items():
        path = folder / FOLDER / file_of(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.tmp")
            partial.write_text(own.source, encoding="utf-8")
            partial.replace(path)


# ------------------------------------------------------------------------------------------------ source


class _Module:
    """A definition and what it uses, gathered into the text of a module."""

    def __init__(self, made_by: Any) -> None:
        self.problems: list[str] = []
        self._imports: set[str] = set()
        self._parts: list[str] = []
        self._known: dict[str, Any] = {}
        self._future = False
        self._of = made_by.__name__
        self._add(made_by.__name__, made_by)

    def text(self) -> str:
        imports = "".join(f"{line}\n" for line in sorted(self._imports))
        return "\n\n".join(
            part.strip("\n") + "\n"
            for part in [HEAD + "\n" + FUTURE * self._future + imports, *self._parts]
            if part.strip()
        )

    def _add(self, name: str, value: Any) -> None:
        """Make sure that the module has `value` by this name."""
        if name in self._known:
            if self._known[name] is not value:
                self.problems.append(f"{self._of} uses two things that are called {name}; rename one of them")
            return
        self._known[name] = value
        if inspect.ismodule(value):
            same = value.__name__ == name
            self._imports.add(f"import {value.__name__}" + ("" if same else f" as {name}"))
        elif _written_here(name, value):
            self._define(name, value)
        elif (written := _literal(value)) is not None:
            if secret_name(name) and isinstance(value, str):
                self.problems.append(
                    f"{self._of} reads {name}, which is named like a secret, and its source is kept; read it "
                    "from the environment inside the class"
                )
            self._parts.append(f"{name} = {written}")
        elif (found := _home(name, value)) is not None:
            self._imports.add(f"from {found[0]} import {found[1]}" + f" as {name}" * (found[1] != name))
        else:
            self.problems.append(
                f"{self._of} reads {name}, which is {_an(type(value).__name__)} outside it and no part of "
                "its source; make it inside the class, or give it as numbers or text"
            )

    def _define(self, name: str, value: Any) -> None:
        found = _source(value)
        if found is None:
            self.problems.append(
                f"the source of {name} is not found, and it is kept beside the model; {IN_A_FILE}"
            )
            return
        text, defined = found
        around = _surroundings(value)
        self._future |= any(f.__code__.co_flags & _ANNOTATIONS for f in _functions(value))
        for each in sorted(_names(text)):
            if each in around and each != defined:
                self._add(each, around[each])
        self._parts.append(text)
        if defined != name:
            self._parts.append(f"{name} = {defined}")


_ANNOTATIONS = __import__("__future__").annotations.compiler_flag


def _written_here(name: str, value: Any) -> bool:
    """Whether this is a class or function, decorated or not, that no module has."""
    if not is_maker(inspect.unwrap(value) if callable(value) else value) or _importable(value):
        return False
    return getattr(value, "__module__", None) in MAIN or _home(name, value) is None


def _an(word: str) -> str:
    return f"an {word}" if word[:1].lower() in "aeiou" else f"a {word}"


def _importable(value: Any) -> bool:
    """Whether another process that imports the value's module finds it there."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if module in MAIN or name != getattr(value, "__name__", None):
        return bool(name) and getattr(builtins, name, None) is value
    try:
        return find_spec(module) is not None and getattr(sys.modules.get(module), name, None) is value
    except (ImportError, ValueError):  # a module that was made by hand
        return False


def _home(name: str, value: Any) -> tuple[str, str] | None:
    """Module and name that `value` is imported from: its own, or the one with the shortest name."""
    own, called = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if isinstance(called, str) and _importable(value):
        return (own or "builtins"), called
    for at in (called, name):
        if isinstance(at, str) and at.isidentifier():
            homes = [
                module
                for module, found in list(sys.modules.items())
                if module not in MAIN and getattr(found, "__dict__", {}).get(at, sys) is value
            ]
            for module in sorted(homes, key=lambda module: (len(module), module)):
                if "." not in module or all(map(str.isidentifier, module.split("."))):
                    return module, at
    return None


def _literal(value: Any) -> str | None:
    """As Python writes it, the same in every process; None of what is more than numbers, texts and lists."""
    kind = type(value)
    if value is None or kind in (bool, int, str, bytes):
        return repr(value)
    if kind is float:
        return repr(value) if math.isfinite(value) else f"float({str(value)!r})"
    if kind is dict:
        parts = [(_literal(key), _literal(each)) for key, each in value.items()]
        if any(None in pair for pair in parts):
            return None
        return "{" + ", ".join(f"{key}: {each}" for key, each in parts) + "}"
    if kind not in (list, tuple, set, frozenset):
        return None
    each = [_literal(one) for one in value]
    if None in each:
        return None
    inside = ", ".join(map(str, each))
    if kind is list:
        return f"[{inside}]"
    if kind is tuple:
        return f"({inside},)" if each else "()"
    inside = f"[{', '.join(sorted(map(str, each)))}]"  # a set of texts has another order in each process
    return f"{kind.__name__}({inside})"


def _functions(value: Any) -> list[FunctionType]:
    """The functions that were written in a definition: a function itself, or a class's methods."""
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, FunctionType):
        return [value]
    found = []
    for each in vars(value).values():
        if isinstance(each, property):
            each = each.fget
        each = inspect.unwrap(getattr(each, "__func__", each)) if callable(each) else each
        if isinstance(each, staticmethod | classmethod):
            each = each.__func__
        if isinstance(each, FunctionType):
            found.append(each)
    return found


def _surroundings(value: Any) -> dict[str, Any]:
    """What names of a definition stand for outside it: its module's globals, and a function's locals."""
    functions = _functions(value)
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    found = dict(vars(module)) if module is not None else {}
    for function in functions:
        if linecache.getlines(function.__code__.co_filename):  # not one that a decorator made
            found.update(function.__globals__)
    for function in functions:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":
                try:
                    found[name] = cell.cell_contents
                except ValueError:  # not assigned yet
                    continue
    return found


def _names(text: str) -> set[str]:
    """Names that a definition takes from outside."""
    return set(_outside(symtable.symtable(text, "source", "exec")))


def _outside(table: symtable.SymbolTable) -> Iterator[str]:
    top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (not symbol.is_assigned() if top else symbol.is_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _outside(child)


def _source(value: Any) -> tuple[str, str] | None:
    """The definition's text and its name there; None where nobody kept it."""
    value = inspect.unwrap(value) if callable(value) else value
    name = value.__name__
    for function in _functions(value):
        code: CodeType = function.__code__
        lines = linecache.getlines(code.co_filename)  # of a cell, too: IPython puts it there
        if (text := _definition("".join(lines), name, code.co_firstlineno)) is not None:
            return text, name
    if isinstance(value, type) and not _functions(value):  # by its name, where it was defined last
        places = [getattr(sys.modules.get(value.__module__ or ""), "__file__", None)]
        if places == [None]:
            places = [file for file in reversed(linecache.cache) if "ipykernel" in file or "ipython" in file]
        for place in filter(None, places):
            if (text := _definition("".join(linecache.getlines(place)), name, None)) is not None:
                return text, name
    return None


def _definition(source: str, name: str, line: int | None) -> str | None:
    """The text of the innermost `class` or `def` of this name around a line, of the last without one."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
        if line is None or _first(node) <= line <= (node.end_lineno or node.lineno)
    ]
    if not found:
        return None
    node = max(found, key=lambda node: node.lineno)
    lines = source.splitlines(keepends=True)[_first(node) - 1 : node.end_lineno]
    text = textwrap.dedent("".join(lines))
    try:
        ast.parse(text)
    except SyntaxError:  # a text over several lines that begins further left
        text = ast.unparse(node)
    return text


def _first(node: ast.ClassDef | ast.FunctionDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
