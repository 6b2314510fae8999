"""Features of raw data under an encoder: in batches, kept as they come, so that nothing
is computed twice or lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tta_jax.archive import check_writable, one_line
from tta_jax.data.cache import MOST_KEPT, Chunk, Store, cache_home, key_of, processor
from tta_jax.data.encoder import Batch, Encoder, in_order, of_module
from tta_jax.data.examples import Examples, as_examples, digest, picture
from tta_jax.data.features import FORMATS, Features, load_features, save_features
from tta_jax.data.packages import need
from tta_jax.data.sources import open_data
from tta_jax.task import whole_number

_FORMAT = b"1"  # of chunks and keys
_BATCHES = 8  # of items held and kept together: what an interruption can cost
_READERS = min(8, os.cpu_count() or 1)
_PICTURES = (
    threading.Lock()
)  # several threads may meet the same picture, which Pillow reads when it is first used


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
    provenance; exact copies share a group.

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
            need("pyarrow", "out", "Parquet files need")
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
        run = _Run(
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
                f"data: none of the {len(examples)} items of {examples.name!r} "
                "could "
                f"be encoded; {examples.describe(item)} {why}"
            )
        labels = None if examples.labels is None else np.asarray(examples.labels)[index]
        left, gone = _classes_with_items(
            dataclasses.replace(examples, labels=labels), on_error, " left"
        )
        provenance = run.provenance(skipped)
        if dropped or gone:
            provenance["classes_without_sample"] = dropped + gone
        rows, groups = _Rows(parts), copies(hashes)
        provenance["copies"] = (
            0 if groups is None else len(groups) - len(np.unique(groups))
        )
        found = Features(
            rows,
            left.labels,
            left.class_names,
            groups,
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
    counts = np.bincount(labels, minlength=len(names))
    empty = [names[k] for k in np.flatnonzero(counts == 0)]
    if empty and on_error == "raise":
        raise ValueError(
            f"data: class {empty[0]!r} of {examples.name!r} has no sample{why} "
            f"({len(empty)} of {len(names)} classes have none); "
            "take more items, or leave such classes out with on_error='skip' "
            "(--on-error skip)"
        )
    place = np.cumsum(counts > 0) - 1
    names = tuple(name for name, count in zip(names, counts, strict=True) if count)
    return dataclasses.replace(examples, labels=place[labels], class_names=names), empty


def copies(hashes: list[bytes]) -> np.ndarray | None:
    """For each item the first one that is the same byte for byte; None where there are
    no copies.

    Features of copies may differ in a last bit, so they would not be found again later.
    """
    first: dict[bytes, int] = {}
    groups = np.array([first.setdefault(item, i) for i, item in enumerate(hashes)])
    return None if len(first) == len(hashes) else groups


class _Part(NamedTuple):
    """Where a chunk lies."""

    store: Store
    key: str
    rows: int


class _Rows:
    """The rows of chunks, read when they are asked for, with shape, dtype and slices
    like an array.
    """

    def __init__(self, parts: list[_Part]):
        self._parts = [part for part in parts if part.rows]
        self._ends = np.cumsum([part.rows for part in self._parts])
        first = self._read(0)
        self.shape, self.dtype = (int(self._ends[-1]), first.shape[1]), first.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def _read(self, number: int) -> np.ndarray:
        chunk = self._parts[number].store.read(self._parts[number].key)
        if chunk is None:
            raise ValueError(
                "cache: features vanished while they were read; run the extraction "
                "again"
            )
        return chunk.features

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        out = np.empty((stop - start, self.shape[1]), self.dtype)
        for number in range(
            int(np.searchsorted(self._ends, start, "right")), len(self._parts)
        ):
            end = int(self._ends[number])
            begin = end - self._parts[number].rows
            if begin >= stop:
                break
            a, b = max(start, begin), min(stop, end)
            out[a - start : b - start] = self._read(number)[a - begin : b - begin]
        return out


# -- one run ---------------------------------------------------------------------------


class _Item(NamedTuple):
    """An item, read or prepared, or why it could not be; and a hash of what it
    holds.
    """

    value: Any
    why: str | None
    hash: bytes


@dataclasses.dataclass(frozen=True)
class _Ahead:
    """Items of a chunk that are read and, where they are not kept, prepared."""

    start: int
    key: str | None
    kept: Chunk | None
    items: list[_Item]
    hashes: list[bytes]


class _Run:
    """What one extraction needs while it goes."""

    def __init__(
        self,
        encoder: Encoder,
        examples: Examples,
        size: int,
        devices: Sequence[Any] | None,
        store: Store,
        scratch: Store,
        on_error: str,
    ):
        self._encoder, self._examples, self._on_error = encoder, examples, on_error
        self._store, self._scratch, self.wrote = store, scratch, False
        self._identity = encoder.identity
        self._shape: tuple[int, ...] | None = None
        self._built: tuple[Callable, Any] | None = None
        self._function: Callable[[Any], Any] | None = None
        self._width: int | None = None
        given = jax.local_devices() if devices is None else devices
        if (
            not isinstance(given, Sequence)
            or not given
            or not all(isinstance(d, jax.Device) for d in given)
        ):
            raise ValueError(
                f"devices: found {devices!r}; give a list such as jax.devices(), "
                "or "
                "leave it out"
            )
        self._devices = list(given)
        each = len(self._devices) if encoder.jit else 1
        self._size = -(-size // each) * each
        self.items_at_once = encoder.chunk or _BATCHES * self._size
        # What can change a bit beside the program and the items. Read here: other
        # threads do not see the caller's contexts.
        self._place: list[Any] = [
            self._size,
            processor(),
            *map(_version, ("pillow", "tokenizers")),
        ]
        if encoder.jit:
            flags = (
                getattr(jax.config, f"jax_{n}")
                for n in ("enable_x64", "default_matmul_precision")
            )
            self._place += [
                self._devices[0].device_kind,
                len(self._devices),
                os.environ.get("XLA_FLAGS"),
                *flags,
            ]
            self._place += [jax.__version__, _version("jaxlib")]

    def provenance(self, skipped: list[tuple[int, str]]) -> dict[str, Any]:
        """Where the features come from; no dates, so that the same work gives the same
        file.
        """
        encoder, examples = self._encoder, self._examples
        return {
            "encoder": encoder.name,
            "encoder_identity": None
            if self._identity is None
            else hashlib.sha256(self._identity.encode()).hexdigest(),
            "preprocessing": encoder.preprocessing,
            "batch_size": self._size,
            "data": examples.name,
            "split": examples.split,
            "items": len(examples),
            "source": examples.provenance,
            "skipped": [
                {"item": i, "what": examples.describe(i), "reason": why}
                for i, why in skipped
            ],
            "versions": {name: _version(name) for name in ("tta-jax", "jax", "numpy")},
        }

    def chunks(self) -> Generator[tuple[int, _Part, Chunk, list[bytes]], None, None]:
        """Chunks in order: first item, where it lies, what it holds, hashes of the
        items. The next one is read meanwhile.
        """
        total, step = len(self._examples), self.items_at_once
        with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self._read_ahead, 0, readers)
            for start in range(0, total, step):
                now = coming.result()
                if start + step < total:
                    coming = ahead.submit(self._read_ahead, start + step, readers)
                yield start, *self._chunk(now), now.hashes

    def _read_ahead(self, start: int, readers: ThreadPoolExecutor) -> _Ahead:
        places = range(start, min(start + self.items_at_once, len(self._examples)))
        raw = list(readers.map(self._read, places, self._at_once(places)))
        key = kept = None
        if self._encoder.identity is not None:
            key = self._key(raw)
            kept = self._store.read(key)
        items = list(readers.map(self._prepare, raw)) if kept is None else []
        return _Ahead(start, key, kept, items, [item.hash for item in raw])

    def _at_once(self, places: range) -> list:
        """Items that are quicker to read together than one by one; None for those that
        are read alone.
        """
        together = getattr(self._examples.items, "__getitems__", None)
        if together is not None:
            with contextlib.suppress(
                OSError, ValueError
            ):  # reading them alone will tell which
                return together(places)
        return [None] * len(places)

    def _read(self, i: int, item: Any) -> _Item:
        try:
            item = self._examples.items[i] if item is None else item
            if isinstance(item, os.PathLike):
                item = Path(item).read_bytes()  # what is hashed is what is encoded
            elif hasattr(item, "convert"):
                with _PICTURES:
                    item.load()
        except (OSError, ValueError) as error:
            return _Item(
                None, f"cannot be read ({one_line(error)})", one_line(error).encode()
            )
        try:
            return _Item(item, None, digest(item))
        except ValueError as error:
            return _Item(None, one_line(error), one_line(error).encode())

    def _prepare(self, read: _Item) -> _Item:
        if read.why is not None:
            return read
        try:
            ready = ready_item(self._encoder, read.value)
            # Of encoders that cannot say what they do, the prepared items are what
            # counts.
            return _Item(
                ready,
                None,
                read.hash if self._encoder.identity is not None else digest(ready),
            )
        except ValueError as error:
            return _Item(None, one_line(error), read.hash)

    def _chunk(self, now: _Ahead) -> tuple[_Part, Chunk]:
        key, chunk = now.key, now.kept
        if chunk is None:
            good = [i for i, item in enumerate(now.items) if item.why is None]
            skipped = {
                i: item.why for i, item in enumerate(now.items) if item.why is not None
            }
            self._refuse(now.start, skipped)
            items = [now.items[i].value for i in good]
            self._check_shapes(items, [now.start + i for i in good])
            if self._identity is None and self._encoder.jit and items:
                self._identity = self._of_program(items)
            if key is None and self._identity is not None:
                key = self._key(now.items)
                chunk = self._store.read(key)
            if chunk is None:
                features = self._encode(items)
                finite = np.isfinite(features).all(axis=1)
                skipped |= {
                    good[
                        k
                    ]: f"gets NaN or infinite features from {self._encoder.name!r}"
                    for k in np.flatnonzero(~finite)
                }
                self._refuse(now.start, skipped)
                chunk = Chunk(
                    features[finite], np.array(good, np.int64)[finite], skipped
                )
                store = self._scratch if key is None else self._store
                key = key or f"{now.start:064d}"
                store.write(key, chunk)
                self.wrote |= store is not self._scratch
                return self._part(store, key, chunk), chunk
        self._refuse(now.start, chunk.skipped)
        assert key is not None
        return self._part(self._store, key, chunk), chunk

    def _part(self, store: Store, key: str, chunk: Chunk) -> _Part:
        if len(chunk.features):
            self._check_width(chunk.features.shape[1])
        return _Part(store, key, len(chunk.features))

    def _check_width(self, width: int) -> None:
        self._width = self._width or width
        if width != self._width:
            raise ValueError(
                f"encoder: {self._encoder.name!r} gave {width} features, and "
                f"{self._width} before; all items need as many"
            )

    def _refuse(self, start: int, skipped: dict[int, str]) -> None:
        if skipped and self._on_error == "raise":
            place, why = min(skipped.items())
            raise ValueError(
                f"data: {self._examples.describe(start + place)} of "
                f"{self._examples.name!r} {why}; "
                "repair or remove it, or skip such items with on_error='skip' "
                "(--on-error skip)"
            )

    def _check_shapes(self, items: list, places: list[int]) -> None:
        if self._encoder.batches not in (in_order, _listed):
            return
        for item, place in zip(items, places, strict=True):
            shape = np.shape(item)
            self._shape = self._shape or shape
            if shape != self._shape:
                raise ValueError(
                    f"prepare: {self._examples.describe(place)} has shape {shape}, "
                    f"others {self._shape}; "
                    "bring all items to one shape with prepare="
                )

    def _key(self, items: list[_Item]) -> str:
        assert self._identity is not None
        return key_of(
            [
                _FORMAT,
                self._identity.encode(),
                repr(self._place).encode(),
                *(item.hash for item in items),
            ]
        )

    # -- on the devices ----------------------------------------------------------------

    def _build(self) -> tuple[Callable, Any]:
        if self._built is None:
            self._built = self._encoder.build()
        return self._built

    def _of_program(self, items: list) -> str | None:
        """A hash of the program and arrays of a module or function; None if it calls
        back into Python, which hides what it does.
        """
        apply, params = self._build()
        batch = next(iter(self._encoder.batches(items, self._size)))
        with self._named(
            "cannot be compiled by JAX",
            "for a Python function of NumPy arrays, e.g. Torch, pass jit=False",
        ):
            text = (
                jax.jit(apply, keep_unused=True).lower(params, batch.arrays).as_text()
            )
        inputs = text.partition("@main(")[2].partition(") -> ")[0].count("%arg")
        # More inputs than given are arrays that the function closes over, whose values
        # the text does not show.
        if "callback" in text or inputs != len(jax.tree.leaves((params, batch.arrays))):
            return None

        def plain(leaf):
            return (
                jax.random.key_data(leaf)
                if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
                else leaf
            )

        return key_of(
            [
                text.encode(),
                *(digest(np.asarray(plain(leaf))) for leaf in jax.tree.leaves(params)),
            ]
        )

    def _compiled(self) -> Callable[[Any], Any]:
        if self._function is None:
            apply, params = self._build()
            if self._encoder.jit:
                mesh = Mesh(np.array(self._devices), ("items",))
                shared, whole = (
                    NamedSharding(mesh, PartitionSpec("items")),
                    NamedSharding(mesh, PartitionSpec()),
                )
                params, compiled = jax.device_put(params, whole), _jitted(apply)
                self._function = lambda arrays: compiled(
                    params, jax.device_put(arrays, shared)
                )
            else:
                self._function = lambda arrays: apply(params, arrays)
        return self._function

    @contextlib.contextmanager
    def _named(self, what: str, hint: str) -> Iterator[None]:
        """Errors of an encoder in one line; the full story is their cause."""
        try:
            yield
        except Exception as error:
            says = one_line(error)
            says = says if len(says) < 300 else says[:297] + "..."
            raise ValueError(
                f"encoder: {self._encoder.name!r} {what} ({type(error).__name__}: "
                f"{says}); {hint}"
            ) from error

    def _encode(self, items: list) -> np.ndarray:
        """Features of items, `(m, d)`; one batch is under way while the next one is put
        together.
        """
        if not items:
            return np.empty((0, 0), np.float32)
        function, pending, out = self._compiled(), None, None
        for batch in itertools.chain(self._encoder.batches(items, self._size), (None,)):
            with self._named("failed", "check what it expects, and see prepare="):
                coming = None if batch is None else (batch, function(batch.arrays))
                result = None if pending is None else np.asarray(pending[1])
            if pending is not None and result is not None:
                rows = as_rows(result, pending[0], self._encoder)
                self._check_width(rows.shape[1])
                out = (
                    np.empty((len(items), rows.shape[1]), rows.dtype)
                    if out is None
                    else out
                )
                out[pending[0].items] = rows[pending[0].rows]
            pending = coming
        assert out is not None
        return out


def ready_item(encoder: Encoder, item: Any) -> Any:
    """What `encoder.batches` takes of a raw item.

    Raises:
      ValueError: if it cannot be encoded.
    """
    shown = {"image": picture, "text": _text, "array": lambda item: item}[
        encoder.modality
    ]
    return encoder.prepare(shown(item))


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
        need("PIL", "data", "pictures need")


def _jitted(apply: Callable) -> Any:
    return apply if hasattr(apply, "lower") else jax.jit(apply)


def as_rows(rows: np.ndarray, batch: Batch, encoder: Encoder) -> np.ndarray:
    """Features of a batch, `(rows, d)`.

    Raises:
      ValueError: names the encoder, for an output that is not that.
    """
    if rows.dtype.name == "bfloat16":
        rows = rows.astype(np.float32)
    if encoder.batches in (in_order, _listed):
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


def _text(item: Any) -> str:
    if not isinstance(item, str):
        raise ValueError(f"is {type(item).__name__}, not a text")
    try:
        item.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a character (a lone surrogate)") from None
    return item


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


# -- encoders of the user's ------------------------------------------------------------


def _listed(prepared: Sequence[Any], size: int) -> Iterator[Batch]:
    """Batches for Python functions: not padded; texts stay a list."""
    for start in range(0, len(prepared), size):
        part = list(prepared[start : start + size])
        arrays = (
            part
            if isinstance(part[0], str)
            else np.stack([np.asarray(item) for item in part])
        )
        yield Batch(arrays, np.arange(start, start + len(part)), np.arange(len(part)))


def _plain_text(text: str) -> str:
    if not text.strip():
        raise ValueError("has no text")
    return text


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

    build: Callable[[], tuple[Callable, Any]]
    if isinstance(encoder, nnx.Module):
        if not jit:
            raise ValueError(
                "jit: Flax modules are compiled; wrap the call in a function for "
                "jit=False"
            )
        chosen = _method_of(encoder, method)
        name, build = type(encoder).__name__, lambda: of_module(encoder, chosen)
    elif callable(encoder):
        if method is not None:
            raise ValueError(
                f"method: belongs to Flax modules; found a {type(encoder).__name__}"
            )
        name = getattr(encoder, "__name__", type(encoder).__name__)
        build = lambda: ((lambda _, batch: encoder(batch)), ())
    else:
        raise ValueError(
            f"encoder: found {type(encoder).__name__}; give a name, a Flax NNX "
            "module "
            "or a function of a batch"
        )
    if modality == "text" and jit and prepare is None:
        raise ValueError(
            "prepare: JAX programs take no texts; give a tokenizer of one length, "
            "or "
            "jit=False for a function of texts"
        )
    ready = prepare or (_plain_text if modality == "text" else _plain_array)
    return Encoder(
        name=name,
        modality=modality,
        prepare=ready,
        build=build,
        batches=in_order if jit else _listed,
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
