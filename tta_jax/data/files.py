"""Features and heads from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tta_jax.archive import DAMAGE, one_line, read_arrays
from tta_jax.task import Task


def _arrays(path: Path, argument: str, suffixes: tuple[str, ...] = (".npz", ".npy")) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name, the one of an .npy as `features`."""
    if not path.is_file():
        raise ValueError(f"{argument}: there is no file {str(path)!r}")
    if path.suffix not in suffixes:
        raise ValueError(f"{argument}: {str(path)!r} is not {' or '.join(suffixes)}")
    try:
        if path.suffix == ".npz":
            return read_arrays(path)
        with np.errstate(over="ignore"):  # of a damaged shape
            return {"features": np.lib.format.open_memmap(path, mode="r")}
    except DAMAGE as error:
        says = one_line(error)
        hint = "; save numbers or strings, not objects" if "Object arrays" in says or "Python objects" in says else ""
        raise ValueError(f"{argument}: {str(path)!r} is damaged or not a NumPy file ({says}){hint}") from None


def load_task(where: str, argument: str = "path") -> Task:
    """A task from `FILE.npz` or from a pair `FEATURES.npy,LABELS.npy`.

    Keys of an .npz: `features`, `labels`, optional `class_names`, `groups`, `labelled`. Without labels every item is unlabelled.

    Raises:
      ValueError: names the argument and the file, what was found and what to do.
    """
    first, _, second = where.partition(",")
    path = Path(first)
    if second:
        features, labels = (_arrays(Path(p), argument, (".npy",))["features"] for p in (first, second))
        arrays = {"features": features, "labels": labels}
    else:
        arrays = _arrays(path, argument)
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
    try:
        return Task.from_arrays(**{"labels": None, **arrays}, name=path.stem)
    except ValueError as error:
        raise ValueError(f"{argument}: {first}: {error}") from None


def load_head(where: str) -> tuple[np.ndarray, np.ndarray]:
    """`(weight, bias)` from `FILE.npz` with keys `weight (K, d)` and optional `bias (K,)`, zeros when left out.

    Raises:
      ValueError: for a file or arrays that cannot be a head.
    """
    arrays = _arrays(Path(where), "head", (".npz",))
    if "weight" not in arrays:
        raise ValueError(f"head: {where!r} has no array 'weight'; it holds {', '.join(sorted(arrays)) or 'nothing'}")
    weight = arrays["weight"]
    bias = arrays.get("bias", np.zeros(weight.shape[:1]))
    for name, array, ndim in (("weight", weight, 2), ("bias", bias, 1)):
        if array.dtype.kind not in "fiu" or array.ndim != ndim:
            raise ValueError(
                f"head: {where!r} holds {name} of dtype {array.dtype} and shape {array.shape}; "
                "real numbers weight (K, d) and bias (K,) are needed"
            )
    return weight, bias
