"""Take values out of the containers that users hold them in, with what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def unpack(values: Any, where: str) -> tuple[Any, np.ndarray | None]:
    """Unpack arrays of other libraries.

    Args:
      values: of NumPy (masked ones, too), jax, Torch, pandas, polars, Arrow or SciPy
        (sparse); a sequence.
      where: for messages.

    Returns:
      What NumPy takes, and which entries are missing: bool of the shape of the values,
      or None where the container marks none.

    Raises:
      ValueError: for a mapping, whose values have no order.
    """
    if isinstance(values, Mapping):
        raise ValueError(
            f"{where} is {type(values).__name__}, whose values have no order; give an "
            "array or a list"
        )
    if isinstance(values, np.ma.MaskedArray):
        return np.asarray(values.data), np.ma.getmaskarray(values)
    library = type(values).__module__.partition(".")[0]
    if library == "torch" and hasattr(values, "detach"):
        return _of_torch(values), None
    if library == "pandas" and hasattr(values, "isna"):
        return _of_pandas(values)
    if library in ("pyarrow", "polars") and hasattr(values, "is_null"):
        return _of_columns(values)
    if library == "scipy" and hasattr(values, "toarray"):
        return values.toarray(), None
    if isinstance(values, (list, tuple)) and any(
        type(item).__module__.partition(".")[0] == "torch" for item in values[:1]
    ):
        return [_of_torch(item) for item in values], None
    return values, None


def _of_torch(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    if getattr(tensor, "layout", None) is not None and "strided" not in str(
        tensor.layout
    ):
        tensor = tensor.to_dense()
    tensor = tensor.cpu()
    if "bfloat16" in str(tensor.dtype):  # which NumPy does not have
        tensor = tensor.float()
    return tensor.numpy()


def _of_pandas(values: Any) -> tuple[np.ndarray, np.ndarray]:
    missing = np.asarray(values.isna(), bool)
    kinds = [*values.dtypes] if values.ndim == 2 else [values.dtype]
    numbers = all(getattr(kind, "kind", "O") in "iufb" for kind in kinds)
    if not numbers:
        return np.asarray(values.to_numpy(dtype=object)), missing
    if missing.any():
        return np.asarray(values.to_numpy(dtype=float, na_value=np.nan)), missing
    return np.asarray(values.to_numpy()), missing


def _of_columns(values: Any) -> tuple[Any, np.ndarray]:
    """A column of Arrow or polars."""
    missing = values.is_null()
    mark = missing.to_pylist() if hasattr(missing, "to_pylist") else missing.to_list()
    items = values.to_pylist() if hasattr(values, "to_pylist") else values.to_list()
    return items, np.asarray(mark, bool)


def plain_scalar(value: Any, where: str) -> Any:
    """What a scalar of another library holds, so that equal values are equal.

    Raises:
      ValueError: for an object that is told apart from equal ones by its identity.
    """
    if isinstance(value, (str, bytes, int, float, tuple, frozenset, type(None))):
        return value
    if isinstance(value, np.generic):
        return value
    item = getattr(value, "item", None)
    if callable(item) and not getattr(value, "shape", ()):
        return item()
    kind = type(value)
    by_identity = kind.__hash__ is object.__hash__ and kind.__eq__ is not object.__eq__
    if by_identity or kind.__module__.partition(".")[0] == "torch":
        raise ValueError(
            f"{where} holds {kind.__name__} objects, which are told apart by their "
            "identity; give strings or numbers"
        )
    return value
