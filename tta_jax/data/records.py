"""What fields of records say of items: which is the input, the label, the group and
the name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tta_jax._internal.warning import warn_of_data
from tta_jax.tasks.validation import encode_groups


class Columns(NamedTuple):
    """Names of fields, or None where the caller names none.

    Attributes:
      column: of the texts or pictures.
      label_column: of the labels.
      id_column: of what to call an item in messages.
      group_column: of groups whose items stay together in splits.
    """

    column: str | None = None
    label_column: str | None = None
    id_column: str | None = None
    group_column: str | None = None

    def others(self, names: Sequence[str]) -> list[str]:
        """Fields that could hold labels: neither ids nor groups."""
        return [
            name for name in names if name not in (self.id_column, self.group_column)
        ]

    def refuse(self, why: str) -> None:
        """Refuse names of fields for data that have none.

        Args:
          why: which data and what they are instead.

        Raises:
          ValueError: names the first that is given.
        """
        for name, given in self._asdict().items():
            if given is not None:
                raise ValueError(f"{name}: found {given!r}, but {why}; leave it out")


def named_by(
    describe: Callable[[int], str], ids: Sequence[Any] | None, where: str
) -> Callable[[int], str]:
    """What to call items in messages, with their ids.

    Args:
      describe: gives the place of item i.
      ids: `(n,)`, None for those without one; or None. Ids that repeat are told in a
        warning.
      where: the data, for that warning.
    """
    if ids is None:
        return describe
    first: dict[str, int] = {}
    repeated = [
        i
        for i, name in enumerate(ids)
        if name is not None and first.setdefault(str(name), i) != i
    ]
    if repeated:
        i = repeated[0]
        warn_of_data(
            f"id_column: {where} has {len(repeated)} ids that were there before, e.g. "
            f"{str(ids[i])!r} in {describe(first[str(ids[i])])} and {describe(i)}; "
            "messages tell such items apart by their place"
        )
    return lambda i: describe(i) if ids[i] is None else f"{describe(i)} ({ids[i]})"


def encoded_groups(
    values: Sequence[Any], column: str, where: str, describe: Callable[[int], str]
) -> np.ndarray:
    """Groups as whole numbers, `(n,)`.

    Args:
      values: `(n,)` texts or numbers.
      column: their name.
      where: the data, for messages.
      describe: gives the place of item i.

    Raises:
      ValueError: an item has no group, or groups are no plain values.
    """
    empty = next(
        (i for i, v in enumerate(values) if v is None or v != v or v == ""), None
    )
    if empty is not None:
        raise ValueError(
            f"group_column: {where} has no value in {describe(empty)}, column "
            f"{column!r}; give every item a group, one of its own where it has none"
        )
    if any(isinstance(value, (dict, list)) for value in values):
        raise ValueError(
            f"group_column: {where} has lists or objects in column {column!r}; texts "
            "or numbers are needed"
        )
    groups = encode_groups(values, len(values), where)
    assert groups is not None
    return groups
