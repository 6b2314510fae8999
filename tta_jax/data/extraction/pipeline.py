"""Read, encode and store items chunk by chunk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tta_jax._internal.text import one_line
from tta_jax.data.encoders.base import Encoder, in_order
from tta_jax.data.examples import Examples, digest, picture
from tta_jax.data.extraction.adapters import as_rows, checked_text, is_listed
from tta_jax.data.extraction.cache import Chunk, Store, key_of, processor
from tta_jax.data.installed import package_version

_FORMAT = b"1"  # of chunks and keys
_BATCHES = 8  # of items held and kept together: what an interruption can cost
_READERS = min(8, os.cpu_count() or 1)
# Several threads may meet the same picture, which Pillow reads when it is first used.
_PICTURES = threading.Lock()


class _Chunk(NamedTuple):
    """Where a chunk lies."""

    store: Store
    key: str
    rows: int


class FeatureRows:
    """The rows of chunks, read when they are asked for, with shape, dtype and slices
    like an array.
    """

    def __init__(self, parts: list[_Chunk]):
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


class _Item(NamedTuple):
    """An item, read or prepared, or why it could not be; and a hash of what it
    holds.
    """

    value: Any
    why: str | None
    hash: bytes


@dataclasses.dataclass(frozen=True)
class _Prefetch:
    """A chunk that is read and, where it is not kept and the encoder does not need the
    cores, prepared.
    """

    start: int
    key: str | None
    kept: Chunk | None
    read: list[_Item]
    prepared: list[_Item] | None = None


class ExtractionRun:
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
                f"devices: found {devices!r}; give a list such as jax.devices(), or "
                "leave it out"
            )
        self._devices = list(given)
        self._on_cpu = (
            self._devices[0].platform == "cpu" if encoder.jit else encoder.on_cpu
        )
        each = len(self._devices) if encoder.jit else 1
        self._size = -(-size // each) * each
        self.items_at_once = encoder.chunk or _BATCHES * self._size
        # What can change a bit beside the program and the items. Read here: other
        # threads do not see the caller's contexts.
        self._place: list[Any] = [
            self._size,
            processor(),
            *map(package_version, ("pillow", "tokenizers")),
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
            self._place += [jax.__version__, package_version("jaxlib")]

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
            **({"model": dict(encoder.details)} if encoder.details else {}),
            "batch_size": self._size,
            "data": examples.name,
            "split": examples.split,
            "items": len(examples),
            "source": examples.provenance,
            "skipped": [
                {"item": i, "what": examples.describe(i), "reason": why}
                for i, why in skipped
            ],
            "versions": {
                name: package_version(name) for name in ("tta-jax", "jax", "numpy")
            },
        }

    def chunks(self) -> Generator[tuple[int, _Chunk, Chunk, list[bytes]], None, None]:
        """Chunks in order: first item, where it lies, what it holds, hashes of the
        items.

        The next one is read meanwhile. It is prepared meanwhile, too, where another
        device encodes; on a CPU the threads of both would get in each other's way.
        """
        total, step = len(self._examples), self.items_at_once
        with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(1) as ahead:

            def submit(start: int) -> Future[_Prefetch]:
                return ahead.submit(self._read_ahead, start, readers)

            coming = submit(0)
            for start in range(0, total, step):
                now = coming.result()
                if self._on_cpu:
                    now = self._prepared(now, readers)
                if start + step < total:
                    coming = submit(start + step)
                yield start, *self._chunk(now), [item.hash for item in now.read]

    def _read_ahead(self, start: int, readers: ThreadPoolExecutor) -> _Prefetch:
        places = range(start, min(start + self.items_at_once, len(self._examples)))
        read = list(readers.map(self._read, places, self._at_once(places)))
        key = kept = None
        if self._encoder.identity is not None:
            key = self._key(read)
            kept = self._store.read(key)
        now = _Prefetch(start, key, kept, read)
        return now if self._on_cpu else self._prepared(now, readers)

    def _prepared(self, now: _Prefetch, readers: ThreadPoolExecutor) -> _Prefetch:
        if now.kept is not None:
            return now
        if self._encoder.load is not None:
            self._encoder.load()  # its errors are not those of an item
        items = list(readers.map(self._prepare, now.read))
        return dataclasses.replace(now, prepared=items)

    def _at_once(self, places: range) -> list:
        """Items that are quicker to read together than one by one; None for those that
        are read alone.
        """
        together = getattr(self._examples.items, "__getitems__", None)
        if together is not None:
            with contextlib.suppress(Exception):  # reading them alone will tell which
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
        except Exception as error:  # readers raise anything on damaged bytes
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

    def _chunk(self, now: _Prefetch) -> tuple[_Chunk, Chunk]:
        key, chunk = now.key, now.kept
        if chunk is None:
            prepared = now.prepared
            assert prepared is not None
            good = [i for i, item in enumerate(prepared) if item.why is None]
            skipped = {
                i: item.why for i, item in enumerate(prepared) if item.why is not None
            }
            self._refuse(now.start, skipped)
            items = [prepared[i].value for i in good]
            self._check_shapes(items, [now.start + i for i in good])
            if self._identity is None and self._encoder.jit and items:
                self._identity = self._of_program(items)
            if key is None and self._identity is not None:
                key = self._key(prepared)
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

    def _part(self, store: Store, key: str, chunk: Chunk) -> _Chunk:
        if len(chunk.features):
            self._check_width(chunk.features.shape[1])
        return _Chunk(store, key, len(chunk.features))

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
        if self._encoder.batches not in (in_order, is_listed):
            return
        for item, place in zip(items, places, strict=True):
            shape = np.shape(item)
            self._shape = self._shape or shape
            if shape != self._shape:
                raise ValueError(
                    f"prepare: {self._examples.describe(place)} has shape {shape}, "
                    f"others {self._shape}; bring all items to one shape with prepare="
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
            if isinstance(error, ValueError) and says.startswith("encoder: "):
                raise
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
    shown = {"image": picture, "text": checked_text, "array": lambda item: item}[
        encoder.modality
    ]
    return encoder.prepare(shown(item))


def _jitted(apply: Callable) -> Any:
    return apply if hasattr(apply, "lower") else jax.jit(apply)
