"""Tasks of the study: data of installed packages, divided so that what a source learns
from is never a target's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tta_jax.data import open_data
from tta_jax.data.examples import Examples, digest, picture


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a task is made of data.

    Attributes:
      data: a name of `tta-jax data list`.
      turn: what happens to every picture: "rotated", "inverted", "blurred", or "" for
        nothing.
      labels: "given", or "shuffled": dealt anew among the items.
      classes: new class -> classes of the data that it gathers; empty for all as they
        are.
    """

    data: str
    turn: str = ""
    labels: str = "given"
    classes: dict[str, list[str]] = dataclasses.field(default_factory=dict)


class _Turned(Sequence):
    def __init__(self, items: Sequence, turn: Callable[[Any], Any]):
        self._items, self._turn = items, turn

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> Any:
        return self._turn(picture(self._items[i]))


def _rotated(image: Any) -> Any:
    from PIL import Image

    return image.transpose(Image.Transpose.ROTATE_90)


def _inverted(image: Any) -> Any:
    from PIL import ImageOps

    return ImageOps.invert(image)


def _blurred(image: Any) -> Any:
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(1.5 * image.width / 28))


TURNS = {"rotated": _rotated, "inverted": _inverted, "blurred": _blurred}


def open_task(name: str, recipe: Recipe, part: str, items: int, seed: int) -> Examples:
    """One part of a task: the "source" part is what encoders and heads learn from, any
    other what is transferred to.

    Official splits are kept ("train" for sources, "test" for targets); other data are
    halved, class by class, the same way whatever becomes of the pictures and labels. At
    most `items`, drawn at random; of a target those that the source part of its data
    has, too (official splits do share some), are left out.
    """
    data = _part(recipe.data, part, seed)
    if recipe.classes:
        data = _gathered(data, recipe.classes)
    data = data.limit(items, seed)
    if part != "source":
        learned = _learned(recipe.data, seed)
        data = data.take(np.array([digest(item) not in learned for item in data.items]))
    labels = np.asarray(data.labels)
    if recipe.labels == "shuffled":
        labels = np.random.default_rng([seed, 1]).permutation(labels)
    made = data.items if not recipe.turn else _Turned(data.items, TURNS[recipe.turn])
    provenance = {**data.provenance, "study": dataclasses.asdict(recipe), "part": part}
    return dataclasses.replace(
        data, items=made, labels=labels, name=name, provenance=provenance
    )


def _part(data: str, part: str, seed: int) -> Examples:
    from tta_jax.data.registry import TASKS

    splits = TASKS[data].splits
    if "test" in splits:
        return open_data(data, "train" if part == "source" else "test")
    whole = open_data(data, next(iter(splits)))
    return whole.take(_half(np.asarray(whole.labels), part, seed))


@functools.cache
def _learned(data: str, seed: int) -> frozenset[bytes]:
    """What a source made of these data may learn from."""
    return frozenset(map(digest, _part(data, "source", seed).items))


def _half(labels: np.ndarray, part: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mine = np.zeros(len(labels), bool)
    for k in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == k))
        mine[order[: len(order) // 2]] = True
    return np.flatnonzero(mine if part == "source" else ~mine)


def _gathered(data: Examples, classes: dict[str, list[str]]) -> Examples:
    names = list(data.class_names or ())
    new = np.full(len(names), -1)
    for k, members in enumerate(classes.values()):
        for member in members:
            new[names.index(member)] = k
    labels = new[np.asarray(data.labels)]
    return dataclasses.replace(
        data.take(labels >= 0), labels=labels[labels >= 0], class_names=tuple(classes)
    )
