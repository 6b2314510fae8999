"""What happens to a text before an encoder sees it: tokens, and batches of few shapes
without much padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tta_jax._internal.text import one_line
from tta_jax.data.encoders.base import Batch
from tta_jax.data.installed import require_package

ROW = 256  # tokens in a row of packed documents
SLOTS = 64  # documents in a row at most; the shortest have three tokens


def tokens_of(
    path: Path, *, special: bool, limit: int | None, ignored: Sequence[str]
) -> Callable[[str], np.ndarray]:
    """A function from a text to its tokens, int32.

    Args:
      path: a `tokenizer.json`.
      special: whether the tokens that the network was trained to see around a text are
        added.
      limit: tokens, with the special ones, to which a text is cut.
      ignored: tokens that say nothing; a text without any other one is refused.

    Raises:
      ValueError: the tokenizer cannot be read, names `encoder`; from the function, for
        a text without a known token.
    """
    require_package("tokenizers", "encoder", "texts need")
    from tokenizers import Tokenizer

    try:
        made = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no other class
        raise ValueError(
            f"encoder: cannot read {str(path)!r} as a tokenizer ({one_line(error)})"
        ) from None
    made.no_padding()
    if limit is None:
        made.no_truncation()
    else:
        made.enable_truncation(limit)
    dull = [
        number for token in ignored if (number := made.token_to_id(token)) is not None
    ]

    def tokens(text: str) -> np.ndarray:
        if not text.strip():
            raise ValueError("has no text")
        found = np.array(made.encode(text, add_special_tokens=special).ids, np.int32)
        if np.isin(found, dull).all():
            raise ValueError("has no known token")
        return found

    return tokens


class Packed(NamedTuple):
    """Rows of several documents, `(n, ROW)` int32 each: tokens, their places in their
    documents, and which of the row's documents 1, 2, ... they belong to, 0 for
    padding.
    """

    tokens: np.ndarray
    positions: np.ndarray
    documents: np.ndarray


def packed(prepared: Sequence[np.ndarray], size: int) -> Iterator[Batch]:
    """Documents of at most `ROW` tokens in batches of `size` rows, the longest first,
    each into the fullest row that takes it.

    An encoder returns `(size, SLOTS, d)`; the features of document k of row r are at
    `[r, k - 1]`.
    """
    rows: list[list[int]] = []
    with_space: list[list[int]] = [[] for _ in range(ROW + 1)]
    for item in sorted(range(len(prepared)), key=lambda i: -len(prepared[i])):
        length = len(prepared[item])
        space = next((s for s in range(length, ROW + 1) if with_space[s]), None)
        if space is None:
            rows.append([])
            row, space = len(rows) - 1, ROW
        else:
            row = with_space[space].pop()
        rows[row].append(item)
        if len(rows[row]) < SLOTS:
            with_space[space - length].append(row)
    for start in range(0, len(rows), size):
        arrays = Packed(*(np.zeros((size, ROW), np.int32) for _ in Packed._fields))
        items, places = [], []
        for r, row in enumerate(rows[start : start + size]):
            begin = 0
            for k, item in enumerate(row):
                end = begin + len(prepared[item])
                arrays.tokens[r, begin:end] = prepared[item]
                arrays.positions[r, begin:end] = np.arange(end - begin)
                arrays.documents[r, begin:end] = k + 1
                items.append(item)
                places.append(r * SLOTS + k)
                begin = end
        yield Batch(arrays, np.array(items), np.array(places))


class Bags(NamedTuple):
    """Documents as bags of tokens: `(n, length)` distinct tokens, int32, and the share
    of each in its document, float32.
    """

    tokens: np.ndarray
    shares: np.ndarray


BAG = 64  # distinct tokens of the smallest shape; the next ones have 8 times as many


def bag(tokens: np.ndarray) -> Bags:
    """One document's distinct tokens and shares, `(length,)` each. A vocabulary bounds
    their number, whatever the document's.
    """
    distinct, counts = np.unique(tokens, return_counts=True)
    return Bags(distinct.astype(np.int32), (counts / len(tokens)).astype(np.float32))


def bags(prepared: Sequence[Bags], size: int) -> Iterator[Batch]:
    """Documents of similar length in batches of `size`, of four shapes for any
    vocabulary below 32,769 tokens.
    """
    groups: dict[int, list[int]] = {}
    for item, document in enumerate(prepared):
        length = BAG
        while length < len(document.tokens):
            length *= 8
        groups.setdefault(length, []).append(item)
    for length, members in sorted(groups.items()):
        for start in range(0, len(members), size):
            items = members[start : start + size]
            arrays = Bags(
                np.zeros((size, length), np.int32), np.zeros((size, length), np.float32)
            )
            for row, item in enumerate(items):
                for array, values in zip(arrays, prepared[item], strict=True):
                    array[row, : len(values)] = values
            yield Batch(arrays, np.array(items), np.arange(len(items)))
