"""The public names and their signatures against a committed list.

    python -m tests.test_public_api --write

writes the list anew.
"""

import ast
import difflib
import functools
import importlib
import inspect
import re
import subprocess
import sys
import types
import typing
from pathlib import Path

LIST = Path(__file__).with_name("public_api.txt")
QUOTE = "'"
COMMAND = "python -m tests.test_public_api --write"


def names_of(module):
    """`__all__`; without it, what the module defines or exports under its own name."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    found = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            found += [a.name for a in node.names if a.asname == a.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [t.id for t in targets if isinstance(t, ast.Name)]
    return [name for name in found if not name.startswith("_")]


def plain(text):
    """Without addresses, which change from run to run, and references that are not
    resolved, which change with Python.
    """
    text = re.sub(r"ForwardRef\(('[^']*')[^()]*\)", r"\1", text)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def signature_of(thing):
    try:
        return plain(str(inspect.signature(thing)))
    except ValueError:
        return "(...)"


def lines_of_class(path, cls):
    """Its constructor, fields, and public methods; those of other libraries' bases left
    out.
    """
    yield path + signature_of(cls)
    for base in cls.__mro__:
        if not base.__module__.startswith("tta_jax"):
            continue
        fields = inspect.get_annotations(base)
        for name, annotation in fields.items():
            if not name.startswith("_"):
                yield f"{path}.{name}: {plain(str(annotation)).strip(QUOTE)}"
        for name, value in vars(base).items():
            if name in fields or (name.startswith("_") and name != "__call__"):
                continue
            if isinstance(value, property | functools.cached_property):
                yield f"{path}.{name}: property"
            elif callable(value) or isinstance(value, classmethod | staticmethod):
                yield f"{path}.{name}{signature_of(getattr(cls, name))}"


def lines_of(path, value):
    if isinstance(value, types.ModuleType):
        for name in names_of(value):
            yield from lines_of(f"{path}.{name}", getattr(value, name))
    elif typing.get_origin(value) is not None:
        yield f"{path}: type alias"
    elif inspect.isclass(value):
        yield from lines_of_class(path, value)
    elif callable(value):
        yield path + signature_of(value)
    else:
        yield f"{path}: {type(value).__name__}"


def public_api():
    """The list: a line for every name, sorted."""
    found = lines_of("tta_jax", importlib.import_module("tta_jax"))
    return "".join(f"{line}\n" for line in sorted(set(found)))


def test_the_public_api_is_the_committed_one():
    """In a process of its own: the suite wraps functions whose shapes it checks."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.test_public_api"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    difference = difflib.unified_diff(
        LIST.read_text().splitlines(),
        found.splitlines(),
        "committed",
        "found",
        lineterm="",
        n=0,
    )
    text = "\n".join(difference)
    assert not text, f"the public API has changed; if it should, run {COMMAND}\n{text}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        LIST.write_text(public_api())
    else:
        print(public_api(), end="")
