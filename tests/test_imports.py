"""The rooms of the house: imports point up the list, heavy libraries are imported where
they are used.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tta_jax

ROOT = Path(tta_jax.__file__).parent
# A module imports only from rooms before its own; rooms that do not exist yet are
# listed so that they find their place.
ROOMS = (
    "ahead",
    "linalg",
    "task",
    "subdivision",
    "coupling",
    "terms",
    "head",
    "maps",
    "transport",
    "archive",
    "several",
    "config",
    "bound",
    "certificate",
    "intervals",
    "optimise",
    "published",
    "learn",
    "probe",
    "analysis",
    "metrics",
    "unlabelled",
    "ranking",
    "scans",
    "sheets",
    "evaluation",
    "data",
    "report",
    "cli",
)
# Imported inside a function of `analysis`, for `Analysis.summary`; types only the other
# way round.
EXCEPTIONS = {("analysis", "report"): "function", ("report", "analysis"): "any"}
HEAVY = {
    "ott",
    "flax",
    "matplotlib",
    "rich",
    "sklearn",
    "pandas",
    "tensorflow",
    "tensorflow_datasets",
    "ot",
    "scipy",
}
LAST = {"data", "report", "cli"}
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """(dotted name, "module" or "function") of every import statement of a file;
    relative ones resolved.
    """
    package = ["tta_jax", *path.relative_to(ROOT).parts[:-1]]

    def walk(node, where):
        if isinstance(node, ast.Import):
            yield from ((alias.name, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", where) for alias in node.names)
        inner = (
            "function"
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            else where
        )
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inner)

    return list(walk(ast.parse(path.read_text()), "module"))


def test_every_file_belongs_to_a_room():
    assert {room_of(p) for p in FILES} <= set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_up(path):
    room = room_of(path)
    for name, where in imports(path):
        parts = name.split(".")
        if parts[0] != "tta_jax" or parts[1] == room or parts[1] not in ROOMS:
            continue
        if ROOMS.index(parts[1]) < ROOMS.index(room):
            continue
        assert EXCEPTIONS.get((room, parts[1])) in (where, "any"), (
            f"{room} imports {name} ({where})"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_heavy_libraries_are_imported_where_they_are_used(path):
    for name, where in imports(path):
        library = name.split(".")[0]
        if library == "ott":
            assert room_of(path) == "transport"
        # Rooms at the end of the house hold modules that are about such a library;
        # nobody imports those on the way in.
        assert library not in HEAVY or where == "function" or room_of(path) in LAST, (
            f"{name} is imported with the module"
        )


def test_no_imports_in_disguise():
    """`importlib` and `__import__` would escape the tests above; only the lazy front
    door needs one.
    """
    for path in FILES:
        text = path.read_text()
        assert "import_module" not in text, path
        assert "__import__" not in text, path


def test_the_front_door_is_lazy_and_complete():
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
