"""Turn models and functions into encoders, and their inputs into items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tta_jax.data.encoders.base import Batch, Encoder, in_order, of_module, text_of
from tta_jax.data.examples import Examples
from tta_jax.data.installed import require_package


def check_modality(encoder: Encoder, examples: Examples) -> None:
    """Whether an encoder takes such items.

    Raises:
      ValueError: if it does not, or if what reads them is not installed.
    """
    if encoder.modality != examples.modality and not (
        encoder.modality == "image" and examples.modality == "array"
    ):
        raise ValueError(
            f"encoder: {encoder.name!r} takes {encoder.modality} items, but "
            f"{examples.name!r} holds {examples.modality} items"
        )
    if encoder.modality == "image":
        require_package("PIL", "data", "pictures need")


def as_rows(rows: np.ndarray, batch: Batch, encoder: Encoder) -> np.ndarray:
    """Features of a batch, `(rows, d)`.

    Raises:
      ValueError: names the encoder, for an output that is not that.
    """
    if rows.dtype.name == "bfloat16":
        rows = rows.astype(np.float32)
    if encoder.batches in (in_order, is_listed):
        right = rows.ndim == 2 and len(rows) == len(batch.arrays)
    else:  # packed: several items in a row of the output
        rows = rows.reshape(-1, rows.shape[-1])
        right = len(rows) > batch.rows.max()
    if not right or rows.shape[1] < 1 or rows.dtype.kind not in "fiu":
        raise ValueError(
            f"encoder: {encoder.name!r} gave dtype {rows.dtype} and shape {rows.shape} "
            f"for a batch of {len(batch.arrays)}; "
            "real numbers (items, features) are needed, e.g. means over positions"
        )
    return rows if rows.dtype == np.float64 else rows.astype(np.float32)


def checked_text(item: Any) -> str:
    if not isinstance(item, str):
        raise ValueError(f"is {type(item).__name__}, not a text")
    try:
        item.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a character (a lone surrogate)") from None
    return item


def is_listed(prepared: Sequence[Any], size: int) -> Iterator[Batch]:
    """Batches for Python functions: not padded; texts stay a list."""
    for start in range(0, len(prepared), size):
        part = list(prepared[start : start + size])
        arrays = (
            part
            if isinstance(part[0], str)
            else np.stack([np.asarray(item) for item in part])
        )
        yield Batch(arrays, np.arange(start, start + len(part)), np.arange(len(part)))


def _plain_array(item: Any) -> np.ndarray:
    array = np.asarray(item)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise ValueError(f"has dtype {array.dtype}; real numbers are needed")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("holds NaN or infinite values")
    return array


def as_encoder(
    encoder: Any,
    modality: str,
    *,
    prepare: Callable[[Any], Any] | None = None,
    method: str | None = None,
    jit: bool = True,
    identity: str | None = None,
) -> Encoder:
    """An `Encoder` of a name, a Flax NNX module or a function; see `extract_features`.

    Raises:
      ValueError: for anything else, or options that do not belong to it; names the
        argument.
    """
    if isinstance(encoder, (str, Encoder)):
        given = [
            n
            for n, v in (
                ("prepare", prepare),
                ("method", method),
                ("identity", identity),
            )
            if v is not None
        ]
        if given or not jit:
            raise ValueError(
                f"{given[0] if given else 'jit'}: belongs to your own encoders; "
                f"{encoder!r} brings its own"
            )
        if isinstance(encoder, Encoder):
            return encoder
        from tta_jax.data.encoders import load_encoder

        return load_encoder(encoder)
    from flax import nnx

    if isinstance(encoder, nnx.Module):
        if not jit:
            raise ValueError(
                "jit: Flax modules are compiled; wrap the call in a function for "
                "jit=False"
            )
        chosen = _method_of(encoder, method)
        name = type(encoder).__name__

        def build() -> tuple[Callable, Any]:
            return of_module(encoder, chosen)

    elif callable(encoder):
        if method is not None:
            raise ValueError(
                f"method: belongs to Flax modules; found a {type(encoder).__name__}"
            )
        name = getattr(encoder, "__name__", type(encoder).__name__)

        def build() -> tuple[Callable, Any]:
            return (lambda _, batch: encoder(batch)), ()

    else:
        raise ValueError(
            f"encoder: found {type(encoder).__name__}; give a name, a Flax NNX module "
            "or a function of a batch"
        )
    if modality == "text" and jit and prepare is None:
        raise ValueError(
            "prepare: JAX programs take no texts; give a tokenizer of one length, or "
            "jit=False for a function of texts"
        )
    ready = prepare or (text_of if modality == "text" else _plain_array)
    return Encoder(
        name=name,
        modality=modality,
        prepare=ready,
        build=build,
        batches=in_order if jit else is_listed,
        identity=identity,
        preprocessing="none"
        if prepare is None
        else f"prepare={getattr(prepare, '__name__', type(prepare).__name__)}",
        jit=jit,
    )


def _method_of(module: Any, method: str | None) -> str:
    chosen = method or (
        "features" if callable(getattr(module, "features", None)) else "__call__"
    )
    if not callable(getattr(module, chosen, None)):
        raise ValueError(f"method: {type(module).__name__} has no method {chosen!r}")
    return chosen
