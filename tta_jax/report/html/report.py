"""A page for whatever the commands leave behind: an analysis, several of them, a scan,
an evaluation, a choice.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from tta_jax._internal.serialization import load as load_result
from tta_jax.analysis.result import Analysis
from tta_jax.evaluation.evaluate import Evaluation
from tta_jax.report.html.analysis import analyses_page, analysis_page
from tta_jax.report.html.choice import choice_page
from tta_jax.report.html.page import Page
from tta_jax.report.html.tables import evaluation_page, scan_page
from tta_jax.scans.result import ScanResult
from tta_jax.selection.choice import Choice
from tta_jax.tasks.task import Task

_SAID = {
    "analysis": "an analysis",
    "analyses": "several analyses",
    "scan": "a scan",
    "evaluation": "an evaluation",
    "choice": "a choice",
}
_KINDS = {Analysis: "analysis", Evaluation: "evaluation", Choice: "choice"}


class Found(NamedTuple):
    """What lies at a place.

    Attributes:
      kind: "analysis", "analyses", "scan", "evaluation" or "choice".
      content: an `Analysis`, `{name: Analysis}`, a `ScanResult`, an `Evaluation` or a
        `Choice`.
      left_out: file -> why it could not be read; for analyses.
    """

    kind: str
    content: Any
    left_out: dict[str, str]


def find(path: str | os.PathLike) -> Found:
    """Open a saved analysis or evaluation, a folder of them, or a scan's folder or URI.

    Raises:
      ValueError: names the path, what was found there and what to do.
    """
    where, place = os.fspath(path), Path(path)
    if "://" in where or (place / "manifest.json").is_file():
        return Found("scan", ScanResult.load(where), {})
    if place.is_file():
        if place.suffix != ".tta":
            raise ValueError(f"path: {where!r} is {_described(place)}")
        result = load_result(place)
        for cls, kind in _KINDS.items():
            if isinstance(result, cls):
                return Found(kind, result, {})
        raise ValueError(
            f"path: {where!r} holds {type(result).__name__}, of which there is no page"
        )
    if not place.is_dir():
        raise ValueError(
            f"path: there is no file or folder {where!r}; name a .tta file, or a "
            "folder that tta-jax wrote"
        )
    if (place / "evaluation.tta").is_file():
        return Found("evaluation", Evaluation.load(place / "evaluation.tta"), {})
    if (place / "choice.tta").is_file():
        return Found("choice", Choice.load(place / "choice.tta"), {})
    return _analyses(place)


def _analyses(folder: Path) -> Found:
    files = sorted([*folder.glob("*.tta"), *folder.glob("*/*.tta")])
    if not files:
        names = sorted(p.name for p in folder.iterdir())
        held = (
            ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            if names
            else "nothing"
        )
        raise ValueError(
            f"path: {str(folder)!r} holds no analysis, scan, evaluation or choice (it "
            f"holds {held}); name what tta-jax analyze, scan, evaluate or choose wrote "
            "with --out"
        )
    good, left_out = {}, {}
    for file in files:
        name = file.relative_to(folder).as_posix()
        try:
            good[name] = Analysis.load(file)
        except ValueError as error:
            left_out[name] = str(error).removeprefix("path: ")
    if not good:
        raise ValueError(
            f"path: of {len(files)} files in {str(folder)!r} none can be read: "
            f"{next(iter(left_out.values()))}"
        )
    if len(good) == 1 and not left_out:
        return Found("analysis", next(iter(good.values())), {})
    return Found("analyses", good, left_out)


def _described(file: Path) -> str:
    """What a file of another kind is, and what to do with it."""
    if file.suffix in (".npz", ".npy", ".safetensors"):
        return (
            "a file of features; analyse it first (tta-jax analyze --out DIR), then "
            "report DIR"
        )
    if file.suffix in (".csv", ".parquet"):
        return (
            "a table; compare it with a truth first (tta-jax evaluate FILE --truth "
            "TRUTH --out DIR), then report DIR"
        )
    return "no .tta file; name what tta-jax analyze, scan, evaluate or choose wrote"


def report(
    path: str | os.PathLike | Found,
    *,
    source: Task | None = None,
    target: Task | None = None,
    title: str | None = None,
    top: int = 20,
) -> Page:
    """The page of a saved result; write it with `.write("page.html")`.

    Args:
      path: a .tta file, a folder of such files, of a scan or of an evaluation, or what
        `find` made of one.
      source, target: the tasks of a single analysis, whose file does not hold features:
        for figures of both.
      title: in place of one that names the tasks.
      top: pairs, sources or rows that a long table or figure shows.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    found = path if isinstance(path, Found) else find(path)
    if top < 1:
        raise ValueError(f"top: found {top}; give at least 1")
    if (source is None) != (target is None):
        raise ValueError(
            f"{'target' if target is None else 'source'}: give both tasks, or neither"
        )
    if source is not None and found.kind != "analysis":
        raise ValueError(
            f"source: features belong to a single analysis; this is {_SAID[found.kind]}"
        )
    if found.kind == "analysis":
        return analysis_page(found.content, source, target, title)
    if found.kind == "analyses":
        return analyses_page(found.content, found.left_out, title, top)
    if found.kind == "scan":
        return scan_page(found.content, title, top)
    if found.kind == "choice":
        return choice_page(found.content, title)
    return evaluation_page(found.content, title)
