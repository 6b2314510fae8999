"""Labelled feature matrices with input validation and splitting."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from tta_jax._internal.numbers import real_number, whole_number
from tta_jax._internal.typing import ArrayLike
from tta_jax.tasks.splits import Seed, assign_folds
from tta_jax.tasks.validation import (
    check_features,
    check_mask,
    check_names,
    drop_empty_classes,
    encode_groups,
    encode_labels,
    refuse_empty_classes,
)


class Samples(NamedTuple):
    """What pure functions see of a task: a pytree of arrays, stackable for `vmap`.

    Attributes:
      features: `(n, d)` float.
      labels: `(n,)` int32, class indices; any value where `mask` is False.
      mask: `(n,)` bool, False for padding and for items without a known label.
    """

    features: ArrayLike
    labels: ArrayLike
    mask: ArrayLike


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Features with class labels. Build it with `Task.from_arrays`, which checks
    everything.

    A task is a pytree (names are static), so it can be passed through `jax.jit`; to
    stack several tasks for `jax.vmap` use `task.samples`, which carries no names.

    Attributes:
      features: `(n, d)` float array.
      labels: `(n,)` int32 class indices; 0 where `labelled` is False.
      labelled: `(n,)` bool, whether the label is known.
      class_names: the `K` class names, in the order of the indices.
      name: a name for messages and tables.
      groups: `(n,)` int64 group indices or None; items of one group never sit on both
        sides of a split, labelled or not.
      encoder: whose features these are; "" where it is not known. Tasks of different
        encoders are never compared.
    """

    features: ArrayLike
    labels: ArrayLike
    labelled: ArrayLike
    class_names: tuple[Hashable, ...]
    name: str = "task"
    groups: ArrayLike | None = None
    encoder: str = ""

    @classmethod
    def from_arrays(
        cls,
        features: ArrayLike,
        labels: ArrayLike | None,
        class_names: Sequence[Hashable] | None = None,
        name: str = "task",
        *,
        groups: ArrayLike | None = None,
        labelled: ArrayLike | None = None,
        encoder: str = "",
        drop_empty: bool = False,
    ) -> Task:
        """Check arrays and make a task of them.

        Args:
          features: `(n, d)` real numbers, finite, n >= 2.
          labels: `(n,)` labels, any hashable (tuples in an object array; bytes become
            text); or None when no label is known. None, NaN and masked entries are
            items without a label, and so are -1 and -100 where labels are indices.
          class_names: the classes in the order wanted, or a mapping of names to indices
            or of indices to names. Labels must be members of it,
            but whole numbers are indices into it unless the names are whole numbers too
            and hold every label. Without it the classes are the distinct labels, sorted
            where they can be.
          name: for messages and tables.
          groups: `(n,)` any hashable; items of one group stay together in every split.
          labelled: `(n,)` bool; labels where it is False are ignored.
          encoder: whose features these are, where there are several.
          drop_empty: leave out classes without an item, with a warning, in place of
            refusing them.

        Raises:
          ValueError: names the argument, what was found and what to do.
        """
        features = check_features(features, name)
        n = features.shape[0]
        known = None if labelled is None else check_mask(labelled, n, name)
        if labels is None:
            names = () if class_names is None else check_names(class_names, name)
            if known is not None and known.any():
                raise ValueError(
                    f"labelled: task {name!r} marks items as labelled but labels is "
                    "None; pass the labels"
                )
            known, codes = np.zeros(n, bool), np.zeros(n, np.int32)
        else:
            codes, known, names = encode_labels(labels, known, class_names, name, n)
            if drop_empty:
                codes, names = drop_empty_classes(codes, known, names, name)
            refuse_empty_classes(codes[known], names, name)
        return cls(
            features,
            codes,
            known,
            names,
            str(name),
            encode_groups(groups, n, name),
            str(encoder),
        )

    # -- views -------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def dim(self) -> int:
        """Number of features d."""
        return self.features.shape[1]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def samples(self) -> Samples:
        """The arrays alone; `mask` is True where the label is known."""
        return Samples(self.features, self.labels, self.labelled)

    @property
    def counts(self) -> np.ndarray:
        """Labelled items of each class, `(K,)`."""
        return np.bincount(
            np.asarray(self.labels)[np.asarray(self.labelled)],
            minlength=self.num_classes,
        )

    @property
    def prior(self) -> np.ndarray:
        """Share of each class among the labelled items, `(K,)` float64."""
        counts = self.counts
        return counts / max(counts.sum(), 1)

    def take(self, index: np.ndarray) -> Task:
        """The items of `index`, in that order; class names stay, so a class may become
        empty.
        """
        groups = None if self.groups is None else self.groups[index]
        return dataclasses.replace(
            self,
            features=self.features[index],
            labels=self.labels[index],
            labelled=self.labelled[index],
            groups=groups,
        )

    def split(
        self, holdout: float, key: jax.Array | Seed
    ) -> tuple[np.ndarray, np.ndarray]:
        """Stratified, group-aware indices (learning, evaluation); the same key gives
        the same split.

        Every class keeps at least one item for learning. Items that are exact copies of
        each other stay together, as groups do, so that nothing evaluated was seen while
        learning. Unlabelled items learn, except those whose group or
        copy is evaluated: they are in neither part.

        Raises:
          ValueError: if `holdout` is not in (0, 1) or nothing can be held out.
        """
        share = real_number(holdout)
        if not 0 < share < 1:
            raise ValueError(
                f"holdout: found {holdout!r}; give a share between 0 and 1, or 0 for "
                "no hold-out"
            )
        fold = assign_folds(self, np.array([1 - share, share]), key, holdout=True)
        return self._parts(fold, 1)

    def folds(
        self, number: int, key: jax.Array | Seed
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`number` pairs of indices (learning, evaluation) whose evaluation parts share
        no item.

        Each pair is as strict as a `split`: an unlabelled item is left out where its
        group or copy is evaluated.
        """
        count = whole_number(number)
        if count is None or count < 2:
            raise ValueError(
                f"folds: found {number!r}; cross-fitting needs a whole number of at "
                "least 2"
            )
        fold = assign_folds(self, np.full(count, 1 / count), key, holdout=False)
        return (self._parts(fold, k) for k in range(count))

    def _parts(self, fold: np.ndarray, evaluated: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices that learn and that are evaluated; unlabelled items of the evaluated
        fold do neither.
        """
        inside = fold == evaluated
        return np.flatnonzero(~inside), np.flatnonzero(
            inside & np.asarray(self.labelled)
        )


def _task_flatten(task: Task):
    return (task.features, task.labels, task.labelled, task.groups), (
        task.class_names,
        task.name,
        task.encoder,
    )


def _task_unflatten(aux, leaves) -> Task:
    features, labels, labelled, groups = leaves
    class_names, name, encoder = aux
    return Task(features, labels, labelled, class_names, name, groups, encoder)


jax.tree_util.register_pytree_node(Task, _task_flatten, _task_unflatten)
