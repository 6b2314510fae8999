"""WebDataset shards: tar files whose members of one base name are an item. They are
read where they lie, through an index of offsets; nothing is unpacked.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tta_jax._internal.files import files_below
from tta_jax._internal.text import one_line, read_json
from tta_jax.data.examples import Examples, with_classes
from tta_jax.data.io.tables import default_label, whole_numbers
from tta_jax.data.picture_folders import PICTURES
from tta_jax.data.records import Columns, encoded_groups, named_by

SUFFIX = ".tar"
_CLASS, _FIELDS, _TEXT = "cls", "json", "txt"
# A base name ends at the first dot of the file's name, so `a.seg.png` belongs to `a`.
_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<kind>[^/]+)")
_BLOCK = 1 << 20  # bytes after the end of a tar that are looked at together


class _Place(NamedTuple):
    """Where the bytes of a member lie."""

    offset: int
    size: int


class _Item(NamedTuple):
    """An item: its shard, its base name, and its members by suffix."""

    shard: Path
    key: str
    members: dict[str, _Place]

    def __str__(self) -> str:
        return f"{self.key} of {self.shard.name}"

    def read(self, kind: str) -> bytes:
        """The bytes of a member.

        Raises:
          ValueError: there is no such member, or the shard has become shorter.
        """
        if kind not in self.members:
            raise ValueError(f"has no member .{kind}")
        offset, size = self.members[kind]
        with self.shard.open("rb") as stream:
            stream.seek(offset)
            found = stream.read(size)
        if len(found) < size:
            raise ValueError(f"its shard {str(self.shard)!r} ends too early")
        return found


class _Members(Sequence):
    """One member of each item; `kind_of` tells its suffix."""

    def __init__(
        self,
        items: list[_Item],
        kind_of: Callable[[_Item], str],
        turn: Callable[[bytes], Any],
    ):
        self._items, self._kind_of, self._turn = items, kind_of, turn

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i):
        item = self._items[i]
        return self._turn(item.read(self._kind_of(item)))


def open_folder(folder: Path, split: str | None, columns: Columns) -> Examples:
    """Items of all shards in a folder and its sub-folders; see `open_shards`."""
    shards = [p for p in files_below(folder) if p.suffix.lower() == SUFFIX]
    return open_shards(shards, str(folder), split, columns)


def open_shards(
    shards: Sequence[Path], where: str, split: str | None, columns: Columns
) -> Examples:
    """Items of WebDataset shards.

    Args:
      shards: in their order.
      where: what the user named, for messages.
      split: must be None; shards have none.
      columns: `column` is the suffix of the member that is the item; the only one of a
        picture, else of a text, when None. The others are fields of the member .json;
        labels come from the member .cls when `label_column` is None.

    Raises:
      ValueError: names the shard or the item, what was found and what to do.
    """
    if split is not None:
        raise ValueError(
            f"split: found {split!r}, but shards have no splits; name those of the "
            f"split in place of {where!r}"
        )
    items = [item for shard in shards for item in _index(shard)]
    shown = repr(where)
    modality, column, kind_of = _input(items, columns.column, shown)

    def place(i: int) -> str:
        return str(items[i])

    fields = _Fields(items, shown)
    label = columns.label_column
    if label is None and any(_CLASS in item.members for item in items):
        labels = [
            _text(item, _CLASS) if _CLASS in item.members else None for item in items
        ]
        label = _CLASS
    else:
        if label is None and fields.names:
            label = default_label(
                columns.others(fields.names), ("label",), column, shown
            )
        labels = None if label is None else fields.column(label, "label_column")
    ids = columns.id_column and fields.column(columns.id_column, "id_column")
    group = columns.group_column
    groups = None if group is None else fields.column(group, "group_column")
    found = Examples(
        _Members(items, kind_of, bytes if modality == "image" else _decoded),
        modality,
        None if labels is None else _labels(labels, label, items, shown),
        None,
        _SHARD_NUMBER.sub("", Path(where).stem) or Path(where).stem,
        None,
        named_by(place, ids or None, shown),
        {
            "kind": "WebDataset",
            "files": len(shards),
            **columns._replace(column=column, label_column=label)._asdict(),
        },
        groups=None
        if groups is None
        else encoded_groups(groups, str(group), shown, place),
    )
    return with_classes(found, shown)


_SHARD_NUMBER = re.compile(r"[-_.]?(\{[^{}]*\}|[0-9]+)$")


def _index(shard: Path) -> list[_Item]:
    """The items of a shard, in the order of their first members.

    Raises:
      ValueError: the shard is damaged, compressed or cut off, or a member is there
        twice or is a link.
    """
    items: dict[str, _Item] = {}
    try:
        with tarfile.open(shard, "r:") as stored:
            while (member := stored.next()) is not None:
                parsed = _MEMBER.fullmatch(member.name)
                # Else all of them would be kept, which is much larger than the index.
                stored.members = []  # pyright: ignore[reportAttributeAccessIssue]
                if member.isdir() or parsed is None:
                    continue
                if not member.isreg() or member.issparse():
                    raise ValueError(
                        f"data: {str(shard)!r} holds {member.name!r}, which is a link "
                        "or no plain file; write its bytes in its place"
                    )
                key, kind = parsed["key"], parsed["kind"].lower()
                item = items.setdefault(key, _Item(shard, key, {}))
                if kind in item.members:
                    raise ValueError(
                        f"data: {str(shard)!r} holds {member.name!r} twice; write each "
                        "item once"
                    )
                item.members[kind] = _Place(member.offset_data, member.size)
            end = stored.offset
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(
            f"data: {str(shard)!r} is damaged or no uncompressed tar "
            f"({one_line(error)}); fetch it again, or unpack it with gunzip"
        ) from None
    _check_end(shard, end)
    if not items:
        raise ValueError(
            f"data: {str(shard)!r} holds no items, which are members with a suffix; "
            "fetch it again, or leave it out"
        )
    return list(items.values())


def _check_end(shard: Path, end: int) -> None:
    """Whether a tar ends as it should, in zeros: the reader stops silently at a damaged
    header, and at the end of the first of several tars in one file.

    Raises:
      ValueError: it does not.
    """
    with shard.open("rb") as stream:
        stream.seek(end)
        block = stream.read(_BLOCK)
        if not block:
            raise ValueError(
                f"data: {str(shard)!r} has no end-of-archive mark, so it is cut off; "
                "fetch it again"
            )
        while block:
            if block.strip(b"\0"):
                raise ValueError(
                    f"data: {str(shard)!r} is damaged at byte {end}, or holds several "
                    "tars one after the other; fetch it again, or give each tar a file"
                )
            block = stream.read(_BLOCK)


def _input(
    items: list[_Item], column: str | None, where: str
) -> tuple[str, str, Callable[[_Item], str]]:
    """What items are: their modality, the suffix of their member, and what tells it.

    Raises:
      ValueError: no item has such a member, or one has two that could be meant.
    """
    kinds = dict.fromkeys(kind for item in items for kind in item.members)
    has = ", ".join(kinds)

    def modality(kind):
        known = "." + kind.rpartition(".")[2]
        if known in PICTURES:
            return "image"
        return "text" if known == f".{_TEXT}" else ""

    if column is not None:
        column = column.removeprefix(".").lower()
        if column not in kinds or not modality(column):
            raise ValueError(
                f"column: {where} has no members .{column} that are pictures or texts; "
                f"it has {has}"
            )
        chosen = column
        return modality(column), column, lambda item: chosen
    usable = [kind for kind in kinds if "." not in kind]
    for wanted in ("image", "text"):
        mine = [kind for kind in usable if modality(kind) == wanted]
        if not mine:
            continue
        for item in items:
            found = [kind for kind in mine if kind in item.members]
            if len(found) > 1:
                raise ValueError(
                    f"column: {item} has several members that could be meant, "
                    f"{', '.join(found)}; name one (--column)"
                )
        either = " or .".join(mine)
        return (
            wanted,
            ",".join(mine),
            lambda item: next((kind for kind in mine if kind in item.members), either),
        )
    raise ValueError(
        f"column: {where} has members {has}, of which none is a picture or a .{_TEXT}; "
        "name one (--column)"
    )


class _Fields:
    """Fields of the members .json, read once."""

    def __init__(self, items: list[_Item], where: str):
        self._items, self._where = items, where
        self._records: list[dict[str, Any] | None] | None = None
        first = next((item for item in items if _FIELDS in item.members), None)
        self.names = [] if first is None else list(_record(first) or ())

    def column(self, name: str, argument: str) -> list:
        """A field of all items; None where an item lacks it.

        Raises:
          ValueError: no item has it, or a .json is damaged.
        """
        if self._records is None:
            self._records = [_record(item) for item in self._items]
        if not any(name in record for record in self._records if record):
            has = ", ".join(self.names) or "none, as it has no members .json"
            raise ValueError(
                f"{argument}: {self._where} has no field {name!r} in members "
                f".{_FIELDS}; it has {has}"
            )
        return [record.get(name) if record else None for record in self._records]


def _record(item: _Item) -> dict[str, Any] | None:
    if _FIELDS not in item.members:
        return None
    try:
        found = read_json(item.read(_FIELDS))
        if not isinstance(found, dict):
            raise ValueError(f"found {type(found).__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"data: {item} has a .json that is no JSON object ({one_line(error)}); "
            "repair or remove it"
        ) from None
    return found


def _decoded(found: bytes) -> str:
    try:
        return found.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"holds a text that is not UTF-8 ({error.reason})") from None


def _text(item: _Item, kind: str) -> str:
    try:
        return _decoded(item.read(kind)).strip()
    except ValueError as error:
        raise ValueError(f"data: {item}: .{kind} {one_line(error)}") from None


def _labels(values: list, column: Any, items: list[_Item], where: str) -> list:
    """Labels of items: texts, whole numbers or truth values; None where there is none.

    Raises:
      ValueError: a label is something else, or they are of several kinds.
    """
    kinds: dict[type, int] = {}
    for i, value in enumerate(values):
        if isinstance(value, float) and value != value:
            values[i] = value = None
        if isinstance(value, float) and value.is_integer():
            values[i] = value = int(value)
        if isinstance(value, str) and not value.strip():
            values[i] = value = None
        if value is None:
            continue
        if not isinstance(value, (str, bool, int)):
            raise ValueError(
                f"label_column: {items[i]} has {str(value)[:40]!r} in {column!r}; "
                "texts or whole numbers are needed"
            )
        kinds.setdefault(type(value), i)
    if len(kinds) > 1:
        (one, i), (other, j) = list(kinds.items())[:2]
        raise ValueError(
            f"label_column: {where} has labels of several kinds in {column!r}: "
            f"{one.__name__} in {items[i]}, {other.__name__} in {items[j]}; write all "
            "of one kind"
        )
    return whole_numbers(values) if str in kinds else values
