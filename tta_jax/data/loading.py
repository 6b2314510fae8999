"""Raw data by name or path: a task, a TFDS data set, a repository of the Hugging Face
hub, a folder of pictures, a table, WebDataset shards.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

from tta_jax._internal.files import files_below, naming_file
from tta_jax.data import hub, picture_folders, raw_tables, tar_shards
from tta_jax.data.examples import Examples
from tta_jax.data.io.tables import TABLES, TextFormat
from tta_jax.data.prepare import open_task
from tta_jax.data.records import Columns
from tta_jax.data.registry import TASKS


@naming_file("data", "data that can be read")
def open_data(
    where: str | os.PathLike,
    split: str | None = None,
    *,
    column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    group_column: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    data_dir: str | os.PathLike | None = None,
) -> Examples:
    """Raw data by name or path; items are read when they are needed.

    `where` is one of

    - a prepared task (`tta-jax data list`);
    - a TFDS data set by name or by the folder it was prepared in;
    - `hf:OWNER/NAME`, a repository of the Hugging Face hub, and `hf:OWNER/NAME#CONFIG`
      where it has several configurations. Its code is never run;
    - a folder with one sub-folder of pictures for each class;
    - a table: .csv, .tsv, .parquet, .arrow, .feather, .jsonl or .ndjson; or a folder of
      shards of one table; or a folder that `save_to_disk` of `datasets` wrote;
    - WebDataset shards: a .tar, or a folder of them.

    Several tables or shards may be named in braces: `shards-{000..012}.tar`,
    `{a,b}.jsonl`.

    Labels become class indices. Items whose label is missing (null, NaN, blank), or -1
    or -100 beside class indices, are unlabelled.

    Args:
      where: see above.
      split: of a task or TFDS data set, with TFDS' slices (`train[:500]`), as of the
        hub; of a folder, the sub-folder that holds the classes or shards, or what the
        names of shards begin with; of a table, a value of its column "split".
      column: of the texts or pictures; "text" or "image" when left out. Of WebDataset
        shards the suffix of a member, such as "jpg" or "txt"; that of pictures, else of
        texts, when left out.
      label_column: "label" when left out, and then it may be absent. Of WebDataset
        shards the field of the member .json; the member .cls when left out.
      id_column: what to call items in messages and in the provenance of skipped ones.
      group_column: of groups whose items stay together in splits.
      separator: of .csv and .tsv: one character or "tab".
      encoding: of .csv, .tsv and JSON Lines, such as "latin-1"; UTF-8 when left out.
      data_dir: where TFDS data sets are prepared.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    text = os.fspath(where)
    path = Path(text).expanduser()
    columns = Columns(column, label_column, id_column, group_column)
    texts = TextFormat(separator, encoding)
    if not text:
        raise ValueError(
            "data: found an empty name; give a task, a data set, a folder or a file"
        )
    if text.startswith(hub.PREFIX):
        texts.check((), repr(text))
        return hub.open_hub(text, split, columns)
    files = _expanded(path)
    kinds = {file.suffix.lower() for file in files}
    if text.startswith((".", "/", "~")) and len(files) == 1 and not path.exists():
        raise ValueError(f"data: there is no file or folder {text!r}")
    if not path.is_dir() and kinds <= {*TABLES, tar_shards.SUFFIX}:
        if gone := next((file for file in files if not file.is_file()), None):
            raise ValueError(f"data: there is no file {str(gone)!r}")
        if kinds == {tar_shards.SUFFIX}:
            texts.check(kinds, repr(text))
            return tar_shards.open_shards(files, text, split, columns)
        if len(kinds) > 1:
            raise ValueError(
                f"data: {text!r} names files of several formats, "
                f"{' and '.join(sorted(kinds))}; name files of one"
            )
        return raw_tables.open_files(files, text, path.stem, split, columns, texts)
    if path.is_dir() and raw_tables.is_saved(path):
        return raw_tables.open_saved(path, split, columns, texts)
    if path.is_dir() and not _is_tfds(path):
        return _folder(path, split, columns, texts)
    texts.check((), repr(text))
    if text in TASKS:
        columns.refuse(f"{text!r} is a task, whose columns are known")
        return open_task(text, split, data_dir)
    if path.is_file():
        raise ValueError(
            f"data: {text!r} is not {' or '.join(TABLES)} or {tar_shards.SUFFIX}, nor "
            "a folder of pictures; features in files need no encoder"
        )
    from tta_jax.data.tfds import open_tfds

    return open_tfds(text, split, data_dir, **columns._asdict())


def _is_tfds(folder: Path) -> bool:
    """Whether TFDS prepared a data set in a folder.

    Raises:
      ValueError: it looks like one of `datasets`, whose files nothing lists.
    """
    if (folder / "features.json").exists():
        return True
    if not (folder / "dataset_info.json").exists():
        return False
    if any(folder.glob("*.arrow")):
        raise ValueError(
            f"data: {str(folder)!r} holds Arrow files and dataset_info.json, but no "
            "state.json, which tells what belongs to which split; name one .arrow "
            "file, or write the data set with save_to_disk"
        )
    return True


def _folder(
    folder: Path, split: str | None, columns: Columns, texts: TextFormat
) -> Examples:
    """A folder of pictures, of tables or of WebDataset shards: the kind of which it
    holds files; pictures where there are any, beside which tables are notes.
    """
    suffixes = {p.suffix.lower() for p in files_below(folder)}
    if not suffixes & set(picture_folders.PICTURES):
        if suffixes & set(TABLES):
            return raw_tables.open_folder(folder, split, columns, texts)
        if tar_shards.SUFFIX in suffixes:
            texts.check((), repr(str(folder)))
            return tar_shards.open_folder(folder, split, columns)
    columns.refuse(f"{str(folder)!r} is a folder of pictures, which has no columns")
    texts.check((), repr(str(folder)))
    return picture_folders.open_pictures(folder, split)


def _expanded(path: Path) -> list[Path]:
    """The files that a name with braces stands for; itself where it has none.

    Raises:
      ValueError: for braces that are no list or range.
    """
    if path.exists() or not re.search(r"\{.*\}", path.name):
        return [path]
    parts: list[list[str]] = []
    for k, part in enumerate(re.split(r"\{([^{}]*)\}", path.name)):
        parts.append([part] if k % 2 == 0 else _choices(part, path.name))
    return [path.with_name("".join(names)) for names in itertools.product(*parts)]


def _choices(inside: str, name: str) -> list[str]:
    """What braces stand for: `000..012`, or `a,b`."""
    span = re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", inside)
    if span and int(span[1]) <= int(span[2]):
        wide = len(span[1]) if span[1] != str(int(span[1])) else 1
        return [str(k).zfill(wide) for k in range(int(span[1]), int(span[2]) + 1)]
    listed = inside.split(",")
    if span or ".." in inside or len(listed) < 2 or len(set(listed)) < len(listed):
        raise ValueError(
            f"data: found {{{inside}}} in {name!r}; give a range {{000..012}}, from "
            "the lower to the higher number, or a list {a,b} without repetition"
        )
    return listed
