"""Folders of pictures, one sub-folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tta_jax._internal.files import files_below
from tta_jax._internal.warning import warn_of_data
from tta_jax.data.examples import Examples
from tta_jax.data.registry import TASKS

PICTURES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".gif",
    ".avif",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)


def _inside(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _leads_nowhere(path: Path) -> bool:
    """Whether it is a link to what is not there (not fetched yet, for example)."""
    return path.is_symlink() and not path.exists()


class _Files(Sequence):
    """The bytes of files."""

    def __init__(self, paths: list[Path]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i):
        return self._paths[i].read_bytes()


def open_pictures(root: Path, split: str | None) -> Examples:
    folder = root
    if split is not None:
        folder = root / split
        if not folder.is_dir() or split not in {p.name for p in _inside(root)}:
            names = ", ".join(p.name for p in _inside(root) if p.is_dir()) or "none"
            raise ValueError(
                f"split: folder {str(root)!r} has no sub-folder {split!r}; it has "
                f"{names}"
            )
    classes = [p for p in _inside(folder) if p.is_dir()]
    loose = [
        p
        for p in _inside(folder)
        if (p.is_file() or _leads_nowhere(p)) and p.suffix.lower() in PICTURES
    ]
    if not classes:
        if not loose:
            hint = (
                "; for the task of that name, call from another folder"
                if str(root) in TASKS
                else ""
            )
            raise ValueError(
                f"data: folder {str(folder)!r} holds no pictures "
                f"({', '.join(PICTURES)}); one sub-folder a class is needed{hint}"
            )
        return _of_files(loose, None, None, root, split, 0)
    if loose:
        raise ValueError(
            f"data: folder {str(folder)!r} holds pictures beside its class folders, "
            f"e.g. {loose[0].name!r}; move them into a class"
        )
    if split is None and all(
        _inside(p) and all(q.is_dir() for q in _inside(p)) for p in classes
    ):
        names = ", ".join(p.name for p in classes)
        raise ValueError(
            f"split: the sub-folders of {str(root)!r} hold folders, not pictures; name "
            f"the split: {names}"
        )
    shown = [files_below(p) for p in classes]
    files = [[p for p in found if p.suffix.lower() in PICTURES] for found in shown]
    if broken := [p for found in files for p in found if _leads_nowhere(p)]:
        warn_of_data(
            f"data: {len(broken)} pictures of {str(folder)!r} are links that lead "
            f"nowhere, e.g. {str(broken[0].relative_to(root))!r}; fetch them, or they "
            "cannot be read"
        )
    ignored = sum(map(len, shown)) - sum(map(len, files))
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in files])
    return _of_files(
        [p for found in files for p in found],
        labels,
        tuple(p.name for p in classes),
        root,
        split,
        ignored,
    )


def _of_files(
    files: list[Path],
    labels: np.ndarray | None,
    names: tuple[str, ...] | None,
    root: Path,
    split: str | None,
    ignored: int,
) -> Examples:
    def describe(i):
        return str(files[i].relative_to(root))

    provenance = {"kind": "folder of pictures", "files_that_are_no_pictures": ignored}
    return Examples(
        _Files(files),
        "image",
        labels,
        names,
        root.resolve().name,
        split,
        describe,
        provenance,
    )
