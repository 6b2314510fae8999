"""What is read, and how it is written: one `Kind` for each format."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax._internal.tables import write_csv


@dataclasses.dataclass(frozen=True)
class Kind:
    """A format.

    Attributes:
      write: writes a valid example into an empty folder.
      read: reads it from there; gives arrays, texts and numbers, nested.
      names: of the files that are changed; all of the folder where it is empty.
      checked: which changes a checksum tells, so that no other value may be read:
        "all", "none", or "pages" (of Parquet, but not their headers and the footer).
    """

    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    names: tuple[str, ...] = ()
    checked: str = "none"


def plain(value: Any) -> Any:
    """Nested values that can be compared bit for bit."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype == object:
            return ["objects", *map(repr, array.tolist())]
        return [array.dtype.str, array.shape, array.tobytes()]
    return repr(value)


def _features():
    from tta_jax.data import Features

    rng = np.random.default_rng(7)
    labels = np.array(["ant", "bee", "cow"])[np.arange(24) % 3]
    return Features(
        rng.normal(size=(24, 6)).astype(np.float32),
        labels,
        ("ant", "bee", "cow"),
        groups=np.arange(24) // 2,
        labelled=np.arange(24) > 2,
        provenance={"encoder": "small", "skipped": [{"item": 3, "reason": "odd"}]},
    )


def _saved(name: str) -> Callable[[Path], None]:
    def write(folder):
        from tta_jax.data import save_features

        save_features(folder / name, _features())

    return write


def _loaded(name: str) -> Callable[[Path], Any]:
    def read(folder):
        from tta_jax.data.io.features import features_to_task, load_features

        where = ",".join(str(folder / part) for part in name.split(","))
        found = load_features(where, "file")
        task = features_to_task(found, where, "file")
        said = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
        return plain([said, task.features, task.labels, task.class_names])

    return read


def _beside(suffix: str) -> Callable[[Path], None]:
    def write(folder):
        found = _features()
        np.save(folder / "x.npy", found.features)
        if suffix == ".npy":
            np.save(folder / "y.npy", found.labels)
            return
        with (folder / f"y{suffix}").open("w", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerows([("label", "note"), *((t, "a,b") for t in found.labels)])

    return write


def _shards(folder):
    from tta_jax.data import save_features

    save_features(folder / "a.parquet", _features())
    save_features(folder / "b.parquet", _features())


def _analysis(folder):
    import jax

    import tta_jax as tta

    rng = np.random.default_rng(3)
    labels = np.arange(60) % 3
    one, other = (
        tta.Task.from_arrays(
            (rng.normal(size=(60, 4)) + 2 * labels[:, None]).astype(np.float32), labels
        )
        for _ in range(2)
    )
    tta.analyze(one, None, other, tta.Config(steps=1), jax.random.key(0)).save(
        folder / "a.tta"
    )


def _read_analysis(folder):
    from tta_jax.analysis.result import Analysis

    found = Analysis.load(folder / "a.tta")
    return plain(
        [found.summary(), found.to_dict(), found.predict_proba(np.ones((2, 4)))]
    )


def _evaluation(folder):
    from tta_jax.evaluation.evaluate import evaluate

    rows = [
        {
            "encoder": e,
            "target": t,
            "accuracy": 0.5 + 0.1 * i - 0.01 * j,
            "score": i * j,
        }
        for i, e in enumerate("abcde")
        for j, t in enumerate("xyz")
    ]
    evaluate(rows, rows, truth_column="accuracy", replicates=20).save(folder / "e.tta")


def _read_evaluation(folder):
    from tta_jax.evaluation.evaluate import Evaluation

    found = Evaluation.load(folder / "e.tta")
    return plain([found.summary(), found.to_dict(), found.table()])


def _choice(folder):
    import tta_jax as tta

    rng = np.random.default_rng(3)
    labels = np.arange(60) % 3
    tasks = {
        name: tta.Task.from_arrays(
            (noise * rng.normal(size=(60, 4)) + 2 * labels[:, None]).astype(np.float32),
            labels,
        )
        for name, noise in (("a", 1.0), ("b", 3.0))
    }
    tta.choose(features=tasks).save(folder / "c.tta")


def _read_choice(folder):
    from tta_jax.report.html.report import report
    from tta_jax.selection.choice import Choice

    found = Choice.load(folder / "c.tta")
    report(folder / "c.tta")
    return plain(
        [
            found.summary(),
            found.to_dict(),
            found.table(),
            found.fit().to_dict(),
            found.fit()(np.ones((2, 4), np.float32)),
        ]
    )


def _scan(folder):
    from tta_jax.scans.parquet_store import NUMBERS, DictionaryColumn, Folder, Store

    tasks = [
        {
            "name": name,
            "encoder": "small",
            "items": 9,
            "dim": 4,
            "classes": 3,
            "content": "c",
            "problem": None,
            "class_names": ["a"],
            "head": "",
        }
        for name in ("one", "two", "three")
    ]
    manifest = {
        "config": {"steps": 3},
        "key": "0",
        "sources": tasks,
        "targets": tasks,
        "pairs": {"number": 9, "hash": "h"},
        "arrays": False,
        "versions": {"jax": "1"},
    }
    store, rng = Store(Folder(folder / "scan"), manifest), np.random.default_rng(2)
    for stage, pair in (("screen", np.arange(9)), ("refine", np.arange(3))):
        names = [tasks[k]["name"] for k in range(3)]
        columns: dict[str, Any] = {
            "pair": pair,
            "encoder": DictionaryColumn.of(["small"] * len(pair)),
            "source": DictionaryColumn.of([names[k % 3] for k in pair]),
            "target": DictionaryColumn.of([names[k // 3] for k in pair]),
            "status": DictionaryColumn.of(["ok"] * (len(pair) - 1) + ["failed"]),
            "reason": DictionaryColumn.of([None] * (len(pair) - 1) + ["too few"]),
            "informative": pair > 2,
            "holds": pair > -1,
            "items": pair.astype(np.int32),
            "shared_items": pair.astype(np.int32),
        }
        columns |= {name: rng.normal(size=len(pair)) for name in NUMBERS}
        store.write(stage, columns)


def _read_scan(folder):
    from tta_jax.report.html.tables import scan_page
    from tta_jax.scans.result import ScanResult

    found = ScanResult.load(folder / "scan")
    page = scan_page(found, None, 5).html()
    return plain(
        [
            found.summary(),
            found.table().to_pylist(),
            found.rank(top=None),
            found.failures(),
            found.facts()["reasons"],
            len(page) > 0,
        ]
    )


def _head(folder):
    with (folder / "h.npz").open("wb") as stream:
        np.savez(stream, weight=np.ones((3, 4)), bias=np.arange(3.0))


def _read_head(folder):
    from tta_jax.data.io.features import load_head

    return plain(load_head(str(folder / "h.npz")))


_ROWS = [
    {"encoder": e, "source": f"=s{j}", "target": t, "logme": i + j / 7}
    for i, e in enumerate(("one", "-two"))
    for j, t in enumerate("xyz")
]


def _scores(name: str) -> Callable[[Path], None]:
    def write(folder):
        if name.endswith(".csv"):
            (folder / name).write_text(write_csv(_ROWS))
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(
            pa.Table.from_pylist(_ROWS), folder / name, write_page_checksum=True
        )

    return write


def _read_scores(name: str) -> Callable[[Path], Any]:
    def read(folder):
        from tta_jax.evaluation.score_tables import read_score_table

        return plain(read_score_table(folder / name, "scores"))

    return read


def _read_pairs(folder):
    from tta_jax.cli.scan import _pairs

    return plain(_pairs(str(folder / "p.csv")))


def _picture(suffix: str) -> Callable[[Path], None]:
    def write(folder):
        from PIL import Image

        rng = np.random.default_rng(5)
        pixels = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        (folder / "cats").mkdir()
        Image.fromarray(pixels).save(folder / "cats" / f"p{suffix}")

    return write


def _read_items(name: str) -> Callable[[Path], Any]:
    """Pictures or texts; what cannot be read is skipped with a reason."""

    def read(folder):
        from tta_jax.data.examples import picture
        from tta_jax.data.loading import open_data

        found = open_data(folder / name if name else folder)
        values: list[Any] = [found.labels, found.class_names]
        for i in range(min(len(found), 3)):
            try:
                item = found.items[i]
                values.append(
                    np.asarray(picture(item)) if found.modality == "image" else item
                )
            except ValueError as error:
                what = f"data: {found.describe(i)} of {str(folder)!r} {error}"
                raise ValueError(what) from None
        return plain(values)

    return read


def _picture_table(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.data.test_tfds import png

    table = pa.table({"image": [png(i) for i in range(4)], "label": ["a", "b"] * 2})
    pq.write_table(table, folder / "t.parquet")


def _text_table(folder):
    (folder / "t.csv").write_text(write_csv(_text_rows()))


def _text_rows():
    return [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(5)]


def _json_lines(folder):
    lines = [json.dumps(row) for row in _text_rows()]
    (folder / "t.jsonl").write_text("\n".join(lines) + "\n")


def _arrow(stream: bool) -> Callable[[Path], None]:
    def write(folder):
        import pyarrow as pa

        table = pa.Table.from_pylist(_text_rows())
        kind = pa.ipc.new_stream if stream else pa.ipc.new_file
        with kind(folder / "t.arrow", table.schema) as sink:
            sink.write_table(table, max_chunksize=2)

    return write


def _tar(folder):
    import tarfile

    from tests.data.test_tfds import png

    with tarfile.open(folder / "t.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(4):
            members = {
                "png": png(i),
                "cls": str(i % 2).encode(),
                "json": json.dumps({"who": i}).encode(),
            }
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{i:03}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _saved_to_disk(folder):
    """As `datasets` writes it."""
    import pyarrow as pa

    table = pa.Table.from_pylist(
        [{"text": f"text {i}", "label": i % 2} for i in range(5)]
    )
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as sink:
        sink.write_table(table)
    label = {"names": ["a", "b"], "_type": "ClassLabel"}
    text = {"dtype": "string", "_type": "Value"}
    info = {"features": {"text": text, "label": label}}
    state = {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
        "_indices_data_files": None,
        "_split": "train",
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "state.json").write_text(json.dumps(state))


def _npy_parts(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = _features()
    labels = np.asarray(found.labels)
    (folder / "img_emb").mkdir()
    (folder / "metadata").mkdir()
    for k, rows in enumerate((slice(0, 10), slice(10, 24))):
        np.save(folder / "img_emb" / f"img_emb_{k}.npy", found.features[rows])
        pq.write_table(
            pa.table({"label": labels[rows]}),
            folder / "metadata" / f"metadata_{k}.parquet",
        )


def _model_settings(folder):
    config = {
        "architecture": "resnet18",
        "num_classes": 3,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5, 0.5, 0.5]},
    }
    (folder / "config.json").write_text(json.dumps(config))


def _read_model_settings(folder):
    from tta_jax.data.encoders.libraries.reference import read_settings

    return plain(read_settings(folder / "config.json"))


def _preprocessing(folder):
    size = {"height": 8, "width": 8}
    said = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


def _read_preprocessing(folder):
    from PIL import Image

    from tta_jax.data.encoders.libraries.pictures import preprocessing_of
    from tta_jax.data.encoders.libraries.reference import Reference

    reference = Reference("onnx:n.onnx", "onnx", "n.onnx", {})
    made = preprocessing_of(reference, (8, 8), folder)
    return plain(made(Image.new("RGB", (9, 10), (1, 2, 3))))


def _tfds(folder):
    import tensorflow_datasets as tfds

    from tests.data.test_tfds import TtaTinyPets

    tfds.display_progress_bar(enable=False)
    TtaTinyPets(data_dir=folder, file_format="array_record").download_and_prepare()


def _read_tfds(folder):
    from tta_jax.data.tfds import open_tfds

    found = open_tfds(folder / "tta_tiny_pets" / "1.2.0", "train")
    return plain([found.labels, found.class_names, found.items[0], found.describe(1)])


def _legacy(folder):
    from tests.data.test_weights import good, legacy

    (folder / "w.pth").write_bytes(legacy(*good()))


def _pickled(folder):
    import pickle

    arrays = {"a": [np.arange(6.0).reshape(2, 3)], "b": [np.ones(3, np.float32)] * 2}
    (folder / "w.pkl").write_bytes(pickle.dumps(arrays, 4))


def _tensors(folder):
    from safetensors.numpy import save_file

    save_file({"a": np.ones((2, 3), np.float32)}, folder / "w.safetensors")


def _weights(name: str, reader: str) -> Callable[[Path], Any]:
    def read(folder):
        from tta_jax.data.encoders import weights

        return plain(getattr(weights, reader)(folder / name))

    return read


KEY = "ab" * 32


def _chunk(folder):
    from tta_jax.data.extraction.cache import Chunk, Store

    rng = np.random.default_rng(1)
    features = rng.normal(size=(20, 5)).astype(np.float32)
    Store(folder).write(KEY, Chunk(features, np.arange(20), {20: "is odd"}))


def _read_chunk(folder):
    from tta_jax.data.extraction.cache import Store

    found = Store(folder).read(KEY)
    if found is None:
        raise ValueError(f"cache: {KEY}.npz is computed again")
    return plain([found.features, found.kept, found.skipped])


def _deb(folder):
    from tests.data.test_registry import deb

    deb(folder / "d.deb", {"./usr/x/a.txt": b"one", "./usr/x/b.txt": b"two" * 30})


def _read_deb(folder):
    from tta_jax.data.deb_archive import package_files

    return plain(list(package_files(folder / "d.deb", "usr/x", lambda name: True)))


KINDS = {
    "npz": Kind(_saved("x.npz"), _loaded("x.npz"), checked="all"),
    "npy": Kind(_saved("x.npy"), _loaded("x.npy"), checked="all"),
    "npy alone": Kind(_beside(".npy"), _loaded("x.npy,y.npy")),
    "labels csv": Kind(_beside(".csv"), _loaded("x.npy,y.csv"), ("y.csv",)),
    "labels tsv": Kind(_beside(".tsv"), _loaded("x.npy,y.tsv"), ("y.tsv",)),
    "safetensors": Kind(_saved("x.safetensors"), _loaded("x.safetensors")),
    "parquet": Kind(_saved("x.parquet"), _loaded("x.parquet"), checked="pages"),
    "parquet shards": Kind(_shards, _loaded(""), checked="pages"),
    "analysis": Kind(_analysis, _read_analysis, checked="all"),
    "evaluation": Kind(_evaluation, _read_evaluation, checked="all"),
    "choice": Kind(_choice, _read_choice, checked="all"),
    "scan": Kind(_scan, _read_scan, checked="pages"),
    "head": Kind(_head, _read_head, checked="all"),
    "scores csv": Kind(_scores("s.csv"), _read_scores("s.csv")),
    "scores parquet": Kind(_scores("s.parquet"), _read_scores("s.parquet")),
    "pairs": Kind(_scores("p.csv"), _read_pairs),
    **{
        f"picture {suffix[1:]}": Kind(_picture(suffix), _read_items(""))
        for suffix in (".png", ".jpg", ".webp", ".avif", ".gif", ".tif")
    },
    "pictures parquet": Kind(_picture_table, _read_items("t.parquet")),
    "texts csv": Kind(_text_table, _read_items("t.csv")),
    "texts json lines": Kind(_json_lines, _read_items("t.jsonl")),
    "texts arrow file": Kind(_arrow(False), _read_items("t.arrow")),
    "texts arrow stream": Kind(_arrow(True), _read_items("t.arrow")),
    "tar": Kind(_tar, _read_items("t.tar")),
    "saved to disk": Kind(_saved_to_disk, _read_items("")),
    "npy parts": Kind(_npy_parts, _loaded("")),
    "model settings": Kind(_model_settings, _read_model_settings),
    "preprocessing": Kind(_preprocessing, _read_preprocessing),
    "tfds": Kind(_tfds, _read_tfds),
    "legacy torch": Kind(_legacy, _weights("w.pth", "read_legacy_torch")),
    "array pickle": Kind(_pickled, _weights("w.pkl", "read_array_pickle")),
    "weights safetensors": Kind(
        _tensors, _weights("w.safetensors", "read_safetensors")
    ),
    "cache": Kind(_chunk, _read_chunk, checked="all"),
    "deb": Kind(_deb, _read_deb),
}


def in_pages(data: bytes, places: np.ndarray) -> bool:
    """Whether all places lie in pages of a Parquet file, behind their headers.

    Pages in the examples are compressed frames, which have a mark of their own.
    """
    import pyarrow.parquet as pq

    inside = np.zeros(len(data), bool)
    found = pq.ParquetFile(io.BytesIO(data)).metadata
    for g in range(found.num_row_groups):
        for c in range(found.num_columns):
            column = found.row_group(g).column(c)
            begin = column.dictionary_page_offset or column.data_page_offset
            end = begin + column.total_compressed_size
            last = data.rfind(b"\x28\xb5\x2f\xfd", begin, end)
            if last >= 0:
                inside[last:end] = True
    return bool(inside[places].all())


def files_of(kind: Kind, folder: Path) -> list[Path]:
    """The files that are changed."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return [p for p in files if not kind.names or p.name in kind.names]


def described(value: Any) -> str:
    """A few words of a value, for a report."""
    return json.dumps(value, default=str)[:300]
