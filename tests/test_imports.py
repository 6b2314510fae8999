"""Imports: heavy libraries where they are used, the package itself lazily.

Layers and cycles are contracts of import-linter (`pyproject.toml`).
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tta_jax

ROOT = Path(tta_jax.__file__).parent
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")
HEAVY = {
    "flax",
    "matplotlib",
    "ot",
    "ott",
    "pandas",
    "rich",
    "scipy",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
}
# Modules of these packages may be about a heavy library; no other package imports them.
OUTER = {"data", "report", "cli"}


def imports(path):
    """(dotted name, "module" or "function") of every absolute import of a file."""

    def walk(node, where):
        if isinstance(node, ast.Import):
            yield from ((alias.name, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", where) for alias in node.names)
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, "function" if function else where)

    return list(walk(ast.parse(path.read_text()), "module"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_heavy_libraries_are_imported_where_they_are_used(path):
    package = path.relative_to(ROOT).parts[0]
    for name, where in imports(path):
        if name.split(".")[0] in HEAVY and package not in OUTER:
            assert where == "function", f"{name} is imported with the module"


def test_no_import_hides_from_the_contracts():
    """Only the lazy package and the command line choose a module by name."""
    for path in FILES:
        text = path.read_text()
        by_name = path.relative_to(ROOT).as_posix() == "cli/main.py"
        assert by_name or "import_module" not in text, path
        assert "__import__" not in text, path


def test_the_package_is_lazy_and_complete():
    code = (
        "import sys, tta_jax; a = set(sys.modules); [getattr(tta_jax, n) for n in "
        "tta_jax.__all__];"
        "print(*sorted({m.split('.')[0] for m in a})); print(*sorted({m.split('.')[0] "
        "for m in sys.modules}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    first, everything = (set(line.split()) for line in out.splitlines())
    assert not {"jax", "numpy", "optax", *HEAVY} & first
    assert not HEAVY - {"scipy"} & everything  # jax itself imports parts of SciPy
    with pytest.raises(AttributeError, match="nothing"):
        tta_jax.nothing  # noqa: B018
    assert set(tta_jax.__all__) <= set(dir(tta_jax))
