"""Which items are looked at, in which order and when, and what that may cost."""

from __future__ import annotations

import itertools
import math
import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from tta_jax.tasks.splits import Seed

# Items of the first round, but no more than a share of all, and so many a class at
# least on average.
FIRST, _SHARE, _A_CLASS = 200, 0.25, 5
# Shares of the first round after which classifiers are fitted for the first time.
_EARLY = (0.125, 0.25, 0.5)
_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}


class Budget(NamedTuple):
    """What a race may cost; inf where there is no limit.

    Attributes:
      seconds: of the whole race.
      items: that are encoded, over all encoders.
    """

    seconds: float = math.inf
    items: float = math.inf

    @classmethod
    def parse(cls, text: str | None) -> Budget:
        """Read a budget such as "90s", "10min", "2h" or "5000items".

        Args:
          text: to be read; None is no limit.

        Raises:
          ValueError: names `budget`.
        """
        if text is None:
            return cls()
        found = re.fullmatch(
            r"\s*(\d+(?:\.\d+)?)\s*(s|sec|min|h|items?)\s*", str(text).lower()
        )
        if found is None or not 0 < float(found[1]) < math.inf:
            raise ValueError(
                f"budget: found {text!r}; give a time such as 90s, 10min or 2h, or a "
                "number of encoded items such as 5000items"
            )
        if found[2].startswith("item"):
            return cls(items=float(found[1]))
        return cls(seconds=float(found[1]) * _UNITS[found[2]])


class Order(NamedTuple):
    """The order in which items are looked at.

    Attributes:
      items: `(n,)`, places of the items.
      ends: positions in that order at which a group ends; sorted.
    """

    items: Int[np.ndarray, " n"]
    ends: Int[np.ndarray, " groups"]

    def cut(self, number: float) -> int:
        """The first end of a group at or after a number of items."""
        place = int(np.searchsorted(self.ends, number))
        return int(self.ends[min(place, len(self.ends) - 1)])

    @classmethod
    def stratified(
        cls,
        labels: Int[np.ndarray, " n"],
        groups: Int[np.ndarray, " n"] | None,
        seed: Seed,
    ) -> Order:
        """Order items at random such that every beginning has nearly the class shares
        of the whole; groups stay together.

        Args:
          labels: classes of the items.
          groups: of the items, or None. A group counts to the class that most of its
            items have.
          seed: decides the order.
        """
        rng = np.random.default_rng(seed)
        n = len(labels)
        unit = np.arange(n) if groups is None else np.unique(groups, True, True)[2]
        number = int(unit.max()) + 1
        table = np.zeros((number, int(labels.max()) + 1))
        np.add.at(table, (unit, labels), 1)
        kind, sizes = table.argmax(1), table.sum(1)
        position = np.zeros(number)
        for label in range(table.shape[1]):
            mine = rng.permutation(np.flatnonzero(kind == label))
            if len(mine):
                begins = np.cumsum(np.r_[0.0, sizes[mine][:-1]])
                start = rng.random() * sizes[mine[0]]
                position[mine] = (begins + start) / sizes[mine].sum()
        ranks = np.argsort(position, kind="stable")
        place = np.empty(number, int)
        place[ranks] = np.arange(number)
        items = np.argsort(place[unit], kind="stable")
        return cls(items, np.cumsum(sizes[ranks]).astype(int))


def first_round(total: int, classes: int) -> int:
    """How many items the first round looks at.

    Args:
      total: that there are.
      classes: K.
    """
    few = min(FIRST, math.ceil(_SHARE * total))
    return min(total, max(few, _A_CLASS * classes))


def learning_sizes(order: Order, seen: int, now: int) -> list[tuple[int, int]]:
    """Numbers of items that a classifier learns from, and up to which item it is then
    judged.

    Args:
      order: of the items.
      seen: items that were looked at before this round.
      now: and after it.
    """
    if seen:
        return [(seen, now)]
    sizes = sorted({order.cut(share * now) for share in _EARLY} | {now})
    return list(itertools.pairwise(sizes))
