"""Features and heads from files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from tta_jax.task import Task


def _arrays(path: Path, argument: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"{argument}: there is no file {str(path)!r}")
    try:
        if path.suffix == ".npy":
            return {"features": np.load(path, allow_pickle=False, mmap_mode="r")}
        if path.suffix == ".npz":
            # Opened here: NumPy leaves the file open when its archive turns out to be damaged.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        hint = "; save labels as strings or integers" if "pickle" in str(error) else ""
        raise ValueError(f"{argument}: {str(path)!r} is damaged or not a NumPy file ({error}){hint}") from None
    raise ValueError(f"{argument}: {str(path)!r} is neither .npz nor .npy")


def load_task(where: str, argument: str = "path") -> Task:
    """A task from `FILE.npz` or from a pair `FEATURES.npy,LABELS.npy`.

    Keys of an .npz: `features`, `labels`, optional `class_names`, `groups`, `labelled`. Without labels every item is unlabelled.

    Raises:
      ValueError: names the argument and the file, what was found and what to do.
    """
    first, _, second = where.partition(",")
    path = Path(first)
    arrays = _arrays(path, argument)
    if second:
        arrays["labels"] = _arrays(Path(second), argument)["features"]
    if "features" not in arrays:
        raise ValueError(
            f"{argument}: {first!r} has no array 'features'; it holds {', '.join(sorted(arrays)) or 'nothing'}"
        )
    unknown = set(arrays) - {"features", "labels", "class_names", "groups", "labelled"}
    if unknown:
        raise ValueError(
            f"{argument}: {first!r} holds an unknown array {sorted(unknown)[0]!r}; "
            "known are features, labels, class_names, groups, labelled"
        )
    names = arrays.get("class_names")
    try:
        return Task.from_arrays(
            arrays["features"], arrays.get("labels"), None if names is None else names.tolist(), path.stem,
            groups=arrays.get("groups"), labelled=arrays.get("labelled"),
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{argument}: {first}: {error}") from None


def load_head(where: str):
    """`(weight, bias)` from `FILE.npz` with keys `weight (K, d)` and optional `bias (K,)`."""
    arrays = _arrays(Path(where), "head")
    if "weight" not in arrays:
        raise ValueError(f"head: {where!r} has no array 'weight'; it holds {', '.join(sorted(arrays)) or 'nothing'}")
    return arrays["weight"], arrays.get("bias")
