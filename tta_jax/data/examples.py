"""Raw data: pictures, texts or arrays in random access, with labels where there are
any.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tta_jax._internal.limits import limit
from tta_jax._internal.numbers import whole_number
from tta_jax._internal.text import one_line
from tta_jax._internal.warning import warn_of_data
from tta_jax.tasks.validation import check_mask, encode_labels

MODALITIES = ("image", "text", "array")


class Taken(Sequence):
    """Some items of a sequence, read when they are asked for."""

    def __init__(self, items: Sequence[Any], index: np.ndarray):
        self._items, self._index = items, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i):
        return self._items[int(self._index[i])]


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Items that an encoder can take, read one by one when they are needed.

    Attributes:
      items: a sequence; `items[i]` is an encoded picture (bytes of a PNG, JPEG, ...), a
        text (str) or an array; random access, and several threads may read at once.
      modality: "image", "text" or "array".
      labels: `(n,)` class indices or names, as `Task.from_arrays` takes them, or None.
      class_names: the classes in the order of the indices, or None.
      labelled: `(n,)` bool, where the label counts; None where the labels tell.
      groups: `(n,)` whole numbers, or None; items of one group stay together in splits.
      name, split: for messages and provenance.
      describe: what to call item i in a message, e.g. its file.
      provenance: what else is known of the data: licence, version, source; plain JSON
        values.
    """

    items: Any
    modality: str
    labels: Any = None
    class_names: tuple[str, ...] | None = None
    name: str = "data"
    split: str | None = None
    describe: Callable[[int], str] = lambda i: f"item {i}"
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    labelled: Any = None
    groups: Any = None

    def __post_init__(self):
        if self.modality not in MODALITIES:
            raise ValueError(
                f"modality: found {self.modality!r}; it is one of "
                f"{', '.join(MODALITIES)}"
            )

    def __len__(self) -> int:
        return len(self.items)

    def take(self, index: np.ndarray) -> Examples:
        """The items of `index` (places, or a mask of all items), in that order."""
        index = (
            np.flatnonzero(index)
            if np.asarray(index).dtype == bool
            else np.asarray(index)
        )
        rows = {
            name: None if values is None else np.asarray(values)[index]
            for name in ("labels", "labelled", "groups")
            for values in (getattr(self, name),)
        }

        def describe(i):
            return self.describe(int(index[i]))

        return dataclasses.replace(
            self, items=Taken(self.items, index), describe=describe, **rows
        )

    def limit(self, most: int, seed: int = 0) -> Examples:
        """At most `most` items, drawn at random, in their order."""
        if (whole_number(most) or 0) < 1:
            raise ValueError(
                f"limit: found {most!r}; give a whole number of at least 1"
            )
        if most >= len(self):
            return self
        index = np.sort(
            np.random.default_rng(seed).choice(len(self), most, replace=False)
        )
        return dataclasses.replace(
            self.take(index),
            provenance={**self.provenance, "limit": most, "limit_seed": seed},
        )


def as_examples(
    data: Any,
    labels: Any = None,
    class_names: Sequence[Any] | None = None,
    name: str | None = None,
) -> Examples:
    """Examples of what a caller has at hand; labels become class indices and class
    names text.

    Args:
      data: `Examples`; an array whose rows are items; a list of texts, of pictures
        (`PIL.Image`, bytes, `pathlib.Path`, arrays); or a sequence of dictionaries with
        "image" or "text" and perhaps "label", such as a TFDS data source.
      labels, class_names, name: what `data` does not say itself.

    Raises:
      ValueError: for data of another kind, or labels of another length; names the
        argument.
    """
    found = data if isinstance(data, Examples) else _examples(data)
    given = {"labels": labels, "class_names": class_names, "name": name}
    if labels is not None:
        found = dataclasses.replace(found, labelled=None)  # of other labels
    found = dataclasses.replace(
        found, **{k: v for k, v in given.items() if v is not None}
    )
    if len(found) == 0:
        raise ValueError(f"data: {found.name!r} holds no item; give at least one")
    return with_classes(found)


def with_classes(examples: Examples, where: str = "") -> Examples:
    """Examples whose labels are class indices, 0 where there is none, and whose class
    names are text.

    Labels that stand for "no label" do so as in `Task.from_arrays`. Where no item has
    one, labels and class names are None, with a warning.

    Args:
      examples: with labels of any kind that `Task.from_arrays` takes.
      where: the file or folder that they come from, for messages.

    Raises:
      ValueError: for labels of another length or kind; names the argument.
    """
    if where:
        try:
            return with_classes(examples)
        except ValueError as error:
            raise ValueError(f"data: {where}: {one_line(error)}") from None
    name, size = examples.name, len(examples)
    if examples.labels is None:
        return examples
    known = examples.labelled
    known = None if known is None else check_mask(known, size, name)
    codes, known, names = encode_labels(
        examples.labels, known, examples.class_names, name, size
    )
    if not known.any():
        warn_of_data(
            f"labels: none of the {size} items of {name!r} has a label, so they are "
            "unlabelled"
        )
        return dataclasses.replace(
            examples, labels=None, class_names=None, labelled=None
        )
    # As text: whole numbers as names could be taken for indices.
    texts = tuple(str(name) for name in names)
    if len(set(texts)) < len(texts):
        raise ValueError(
            "class_names: two classes look the same as text; give them different names"
        )
    return dataclasses.replace(
        examples,
        labels=codes,
        class_names=texts,
        labelled=None if known.all() else known,
    )


def _examples(data: Any) -> Examples:
    if hasattr(data, "columns"):
        raise ValueError(
            f"data: found a {type(data).__name__}; give one column as a list, and "
            "labels="
        )
    if hasattr(data, "dtype") and hasattr(data, "shape"):
        if len(data.shape) == 1 and np.asarray(data).dtype.kind in "OUT":
            return _examples(np.asarray(data).tolist())
        if len(data.shape) < 2:
            raise ValueError(
                f"data: found numbers of shape {data.shape}; (items, ...) is needed"
            )
        # What is read from disk piece by piece stays there.
        return Examples(
            np.asarray(data) if isinstance(data, jax.Array) else data, "array"
        )
    if (
        isinstance(data, (str, bytes, Mapping))
        or not hasattr(data, "__getitem__")
        or not hasattr(data, "__len__")
    ):
        raise ValueError(
            f"data: found {type(data).__name__}; give an array, a list or `Examples`"
        )
    if len(data) == 0:
        raise ValueError("data: holds no item; give at least one")
    first = data[0]
    if isinstance(first, Mapping):
        return _of_records(data, first)
    if isinstance(first, str):
        return Examples(data, "text")
    if isinstance(first, (bytes, os.PathLike)) or hasattr(first, "convert"):

        def describe(i):
            return (
                f"item {i} ({os.fspath(data[i])})"
                if isinstance(data[i], os.PathLike)
                else f"item {i}"
            )

        return Examples(data, "image", describe=describe)
    if hasattr(first, "shape"):
        return Examples(data, "array")
    raise ValueError(
        f"data: its items are {type(first).__name__}; give texts, pictures, arrays or "
        "dictionaries"
    )


def _of_records(data: Sequence[Mapping], first: Mapping) -> Examples:
    """A sequence of dictionaries, as TFDS data sources are."""
    modality = next((m for m in ("image", "text") if m in first), None)
    if modality is None:
        raise ValueError(
            f"data: its items hold {', '.join(map(str, first))}, but neither 'image' "
            "nor 'text'; rename one"
        )
    try:
        labels = [record["label"] for record in data] if "label" in first else None
    except KeyError:
        raise ValueError(
            "data: an item has no 'label', others have; add it, or leave it out of all"
        ) from None
    return Examples(_Field(data, modality), modality, labels)


class _Field(Sequence):
    def __init__(self, records: Sequence[Mapping], field: str):
        self._records, self._field = records, field

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i):
        record = self._records[i]
        if self._field not in record:
            raise ValueError(f"it has no {self._field!r}")
        value = record[self._field]
        return (
            value.decode()
            if self._field == "text" and isinstance(value, bytes)
            else value
        )


# -- single items ----------------------------------------------------------------------


def digest(item: Any) -> bytes:
    """A hash of what an item holds."""
    if isinstance(item, bytes):
        parts = (b"bytes", item)
    elif isinstance(item, str):
        parts = (b"text", item.encode("utf-8", "surrogatepass"))
    elif hasattr(
        item, "convert"
    ):  # as encoders see it: palette, transparency and orientation count
        shown = picture(item)
        parts = (f"picture {shown.size}".encode(), shown.tobytes())
    else:
        array = np.asarray(item)
        if array.dtype == object:
            raise ValueError(
                f"is {type(item).__name__}, not a text, a picture or an array of "
                "numbers"
            )
        parts = (
            f"array {array.dtype} {array.shape}".encode(),
            np.ascontiguousarray(array).tobytes(),
        )
    made = hashlib.blake2b(parts[0], digest_size=20)
    made.update(parts[1])
    return made.digest()


def picture(item: Any) -> Any:
    """An RGB `PIL.Image` of an encoded picture, a file, a picture, or an array `(h, w)`
    or `(h, w, 1 | 3)`.

    Arrays, and pictures of floats, are uint8 or floats in [0, 1]. Pictures are turned
    as their EXIF data say, as cameras mean them; transparency is composited on white.

    Raises:
      ValueError: for what is not a picture, or is a damaged one.
    """
    from PIL import Image, ImageOps

    try:
        if isinstance(item, (bytes, os.PathLike)):
            most = limit("PIXELS")
            if os.environ.get("TTA_JAX_MOST_PIXELS"):
                Image.MAX_IMAGE_PIXELS = most  # else Pillow's own limit would hold
            item = Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)
            if item.width * item.height > most:
                raise ValueError(
                    f"{item.width} x {item.height} pixels are more than {most:,}; "
                    "if it is to be trusted, set TTA_JAX_MOST_PIXELS higher"
                )
        elif not hasattr(item, "convert"):
            item = Image.fromarray(_pixels(np.asarray(item)))
        item = ImageOps.exif_transpose(item)
        if item.mode.startswith("I;16"):  # the conversion to 8 bits would cut at 255
            item = Image.fromarray(
                (np.asarray(item, np.float64) / 257).round().astype(np.uint8)
            )
        elif item.mode in ("F", "I"):
            item = Image.fromarray(_pixels(np.asarray(item)))
        if "A" in item.getbands() or "transparency" in item.info:
            item = item.convert("RGBA")
            item = Image.alpha_composite(Image.new("RGBA", item.size, "white"), item)
        return item.convert("RGB")
    except Exception as error:  # decoders raise anything on damaged bytes
        if getattr(error, "errno", None) is not None:
            raise  # of the machine, not of the picture
        if type(error) is ValueError and str(error).startswith(("is ", "has ")):
            raise  # of an array
        says = one_line(error).partition(" <_io")[0]
        raise ValueError(f"is not a readable picture ({says})") from None


def _pixels(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if (
        (array.ndim != 2 and (array.ndim != 3 or array.shape[2] != 3))
        or array.dtype.kind not in "fu"
        or array.size == 0
    ):
        raise ValueError(
            f"is an array of dtype {array.dtype} and shape {array.shape}, not a "
            "picture (h, w) or (h, w, 1 or 3)"
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            f"has values of dtype {array.dtype} in [{array.min()}, {array.max()}]; "
            "give uint8, or floats in [0, 1]"
        )
    return (array * 255).round().astype(np.uint8)
