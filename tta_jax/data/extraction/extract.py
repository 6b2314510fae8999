"""Extract features with a cache, resumably."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax._internal.files import check_writable
from tta_jax._internal.numbers import whole_number
from tta_jax.data.cache import cache_home
from tta_jax.data.examples import Examples, as_examples, with_classes
from tta_jax.data.extraction.adapters import as_encoder, check_modality
from tta_jax.data.extraction.cache import MOST_KEPT, Store
from tta_jax.data.extraction.pipeline import ExtractionRun, FeatureRows
from tta_jax.data.installed import require_package
from tta_jax.data.io.features import FORMATS, Features, load_features, save_features
from tta_jax.data.loading import open_data
from tta_jax.tasks.splits import joined_groups


def extract_features(
    encoder: Any,
    data: Any,
    *,
    labels: Any = None,
    class_names: Sequence[Any] | None = None,
    name: str | None = None,
    prepare: Callable[[Any], Any] | None = None,
    method: str | None = None,
    jit: bool = True,
    identity: str | None = None,
    batch_size: int | None = None,
    on_error: str = "raise",
    cache: bool | str | os.PathLike = True,
    out: str | os.PathLike | None = None,
    devices: Sequence[Any] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Features:
    """Features `(n, d)` of `data` under `encoder`, with labels, class names and
    provenance; exact copies share a group, beside those of `Examples.groups`.

    They are float32, or float64 where the encoder gives that; class names are text.

    Work is kept in chunks under keys made of all that could change a bit of them (the
    encoder's weights and program, what the items hold, batch size, devices, version of
    jax), so a second call reads them back and an interrupted one goes on where it was.
    Raw data are held two chunks at a time, one that is computed and one that is read
    meanwhile: of eight batches each, or as many items as the encoder wants together
    (`Encoder.chunk`).

    Args:
      encoder: the name of a ready-made encoder; a Flax NNX module (taken in evaluation
        mode); a pure JAX function of a batch; with `jit=False` any Python function of a
        NumPy batch (or of a list of texts), e.g. around Torch or ONNX; or an `Encoder`.
      data: what `open_data` takes, by name or path, or what `as_examples` takes: an
        array, a list of texts or pictures, `Examples`.
      labels, class_names, name: where `data` does not say them.
      prepare: for your own encoders: one item (an RGB `PIL.Image`, a text, an array) to
        an array; all of one shape.
      method: of a module; "features" where it has one, else the call.
      jit: whether your function is traced and compiled by JAX; anew in every call,
        since it may see other arrays by then.
      identity: for your own encoders: text that you change whenever their features
        change, be it through `prepare`. Modules and
        JAX functions do without: their compiled program, arrays and prepared items are
        hashed. Python functions, and programs that call back into Python, are not kept
        without it.
      batch_size: items (for packed texts: rows) a call; rounded up to a multiple of the
        devices.
      on_error: "raise" at the first item that cannot be read or encoded, or whose
        features are not finite; or "skip" it and record it in the provenance.
      cache: True for `~/.cache/tta_jax/features`, a folder, or False to keep nothing.
      out: also write them there (`save_features`), in blocks; the result is then
        memory-mapped where the format allows.
      devices: JAX devices that share each batch; all local ones when left out.
      progress: called with what is being done and the share done.

    Raises:
      ValueError: names the argument or the item, what was found and what to do.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: found {on_error!r}; give 'raise' or 'skip'")
    size = None if batch_size is None else whole_number(batch_size) or 0
    if size is not None and size < 1:
        raise ValueError(
            f"batch_size: found {batch_size!r}; give a whole number of at least 1"
        )
    if not isinstance(cache, (bool, str, os.PathLike)):
        raise ValueError(f"cache: found {cache!r}; give True, False or a folder")
    if identity is not None and not isinstance(identity, str):
        raise ValueError(f"identity: found {identity!r}; give text")
    if out is not None:
        check_writable(out, "out", FORMATS)
        if Path(out).suffix == ".parquet":
            require_package("pyarrow", "out", "Parquet files need")
    examples = as_examples(
        open_data(data) if isinstance(data, (str, os.PathLike)) else data,
        labels,
        class_names,
        name,
    )
    examples, dropped = _classes_with_items(examples, on_error)
    made = as_encoder(
        encoder,
        examples.modality,
        prepare=prepare,
        method=method,
        jit=jit,
        identity=identity,
    )
    check_modality(made, examples)
    began = time.time() - 2  # some file systems keep whole seconds
    with contextlib.ExitStack() as stack:
        scratch = Store(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        store = (
            scratch
            if cache is False
            else Store(cache_home() / "features" if cache is True else Path(cache))
        )
        run = ExtractionRun(
            made, examples, size or made.batch_size, devices, store, scratch, on_error
        )
        parts, kept, skipped, hashes = [], [], [], []
        for start, part, chunk, read in stack.enter_context(
            contextlib.closing(run.chunks())
        ):
            parts.append(part)
            kept.append(start + chunk.kept)
            hashes += [read[i] for i in chunk.kept]
            skipped += [
                (start + place, why) for place, why in sorted(chunk.skipped.items())
            ]
            if progress is not None:
                done = min(start + run.items_at_once, len(examples))
                progress(f"{done} of {len(examples)} items", done / len(examples))
        index = np.concatenate(kept)
        if not index.size:
            item, why = skipped[0]
            raise ValueError(
                f"data: none of the {len(examples)} items of {examples.name!r} could "
                f"be encoded; {examples.describe(item)} {why}"
            )
        left, gone = _classes_with_items(
            with_classes(examples.take(index)), on_error, " left"
        )
        provenance = run.provenance(skipped)
        if dropped or gone:
            provenance["classes_without_sample"] = dropped + gone
        rows, first = FeatureRows(parts), copies(hashes)
        provenance["copies"] = int((first != np.arange(len(first))).sum())
        found = Features(
            rows,
            left.labels,
            left.class_names,
            groups_with_copies(left.groups, first),
            left.labelled,
            name=examples.name,
            provenance=provenance,
        )
        if run.wrote:
            store.prune(MOST_KEPT, began)
        if out is None:
            return dataclasses.replace(found, features=rows[:])
        return dataclasses.replace(
            load_features(save_features(out, found), "out"), name=examples.name
        )


def _classes_with_items(
    examples: Examples, on_error: str, why: str = ""
) -> tuple[Examples, list[str]]:
    """Examples whose every class has an item; with "skip", classes without one are left
    out, and named.
    """
    if examples.class_names is None or examples.labels is None:
        return examples, []
    labels, names = examples.labels, examples.class_names
    known = slice(None) if examples.labelled is None else examples.labelled
    counts = np.bincount(labels[known], minlength=len(names))
    empty = [names[k] for k in np.flatnonzero(counts == 0)]
    if empty and on_error == "raise":
        raise ValueError(
            f"data: class {empty[0]!r} of {examples.name!r} has no sample{why} "
            f"({len(empty)} of {len(names)} classes have none); "
            "take more items, or leave such classes out with on_error='skip' "
            "(--on-error skip)"
        )
    place = np.maximum(np.cumsum(counts > 0) - 1, 0)  # 0 where there is no label
    names = tuple(name for name, count in zip(names, counts, strict=True) if count)
    return dataclasses.replace(examples, labels=place[labels], class_names=names), empty


def copies(hashes: list[bytes]) -> np.ndarray:
    """For each item the first one that is the same byte for byte, `(n,)`.

    Features of copies may differ in a last bit, so they would not be found again later.
    """
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(item, i) for i, item in enumerate(hashes)])


def groups_with_copies(groups: Any, first: np.ndarray) -> np.ndarray | None:
    """Groups that hold copies together, too; None where nothing is held together.

    Args:
      groups: `(n,)` or None.
      first: `(n,)`, as of `copies`.
    """
    if groups is not None:
        return joined_groups(groups, first)
    return first if (first != np.arange(len(first))).any() else None
