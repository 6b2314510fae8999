"""What an encoder is: how raw items become arrays, and what turns arrays into
features.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Batch(NamedTuple):
    """Arrays for one call of an encoder.

    Attributes:
      arrays: pytree of NumPy arrays with a common leading axis, the same shapes in
        every batch of a kind.
      items: `(m,)` indices, into the list that was batched, of the items in this batch.
      rows: `(m,)` which row of the output, flattened to `(rows, d)`, belongs to each of
        `items`.
    """

    arrays: Any
    items: np.ndarray
    rows: np.ndarray


def in_order(prepared: Sequence[Any], size: int) -> Iterator[Batch]:
    """Batches of `size` consecutive arrays of one shape; the last one is padded with
    copies of its last item.
    """
    for start in range(0, len(prepared), size):
        part = list(prepared[start : start + size])
        index = np.arange(start, start + len(part))
        arrays = np.stack(part + [part[-1]] * (size - len(part)))
        yield Batch(arrays, index, np.arange(len(part)))


def longest_first(prepared: Sequence[Any], size: int) -> Iterator[np.ndarray]:
    """Places of items in batches of `size`, the longest first: items of a batch are of
    similar lengths, so that little is padded.
    """
    order = np.argsort([-len(item) for item in prepared], kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def text_of(text: str) -> str:
    """The text itself.

    Raises:
      ValueError: it is empty.
    """
    if not text.strip():
        raise ValueError("has no text")
    return text


def of_module(
    module: Any, method: str = "features"
) -> tuple[Callable[[Any, Any], Any], Any]:
    """A method of an `nnx.Module` in evaluation mode as `(apply, state)`; the module
    stays as it is.

    `apply` is jitted, and the same function for every module of one structure: a second
    extraction compiles nothing.
    """
    from flax import nnx

    copy = nnx.merge(*nnx.split(module))
    copy.eval()
    graph, state = nnx.split(copy)
    return _applied(graph, method), state


@functools.lru_cache(maxsize=32)
def _applied(graph: Any, method: str) -> Callable[[Any, Any], Any]:
    from flax import nnx

    return jax.jit(
        lambda state, arrays: getattr(nnx.merge(graph, state), method)(arrays)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A frozen encoder. Ready-made ones come from `load_encoder(name)`;
    `extract_features` makes one of any module or function.

    Attributes:
      name: for messages and provenance.
      modality: "image", "text" or "array": what `prepare` takes.
      prepare: one raw item (an RGB `PIL.Image`, a `str`, an array) to what `batches`
        takes; on the host, in several threads; raises ValueError for an item that
        cannot be encoded.
      batches: prepared items and a batch size to `Batch`es.
      build: called when something has to be computed; returns `(apply, params)`, where
        `apply(params, arrays)` gives `(..., d)` features and `params` is a pytree of
        arrays. Pure when `jit` is True, and jitted then if it is not yet.
      load: called before items are prepared, where that needs the model; raises
        ValueError if it cannot be loaded. None where it does not.
      batch_size: default size of a batch.
      chunk: items that are batched, held and kept together; eight batches when None.
        Packing wants many.
      identity: text that changes whenever the features would; None when nobody can tell
        (then nothing is cached).
      preprocessing: one line for provenance.
      details: more for provenance: versions, device, precision, hashes; JSON values.
      jit: whether `apply` is traced by JAX; else it is a Python function of NumPy
        arrays.
      on_cpu: of a Python function, whether `apply` takes the cores that items are
        prepared on. Items are then not prepared while a batch is encoded.
      head: returns `(weight (K, d), bias (K,))` of the classifier that the encoder was
        trained with; None without one.
    """

    name: str
    modality: str
    prepare: Callable[[Any], Any]
    build: Callable[[], tuple[Callable[[Any, Any], Any], Any]]
    batches: Callable[[Sequence[Any], int], Iterator[Batch]] = in_order
    load: Callable[[], Any] | None = None
    batch_size: int = 32
    chunk: int | None = None
    identity: str | None = None
    preprocessing: str = "none"
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    jit: bool = True
    on_cpu: bool = False
    head: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
