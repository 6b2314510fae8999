"""Standardise features with a floor under their scale."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from tta_jax._internal.typing import ArrayLike
from tta_jax.tasks.validation import ROWS_AT_ONCE

_FLOOR = 0.1  # least scale, in median ones


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Standardizer:
    """`x -> clip((x - mean) / scale)`, fitted on a learning part and applied to
    everything.

    `scale` is the standard deviation with a floor relative to the median one: nearly
    dead features would otherwise give z-scores in the thousands on unseen items.
    Constant features become zeros. Where values are cut, rows that alone make up much
    of the variance do not count in mean and scale: one saturated row would make all
    others equal.

    Attributes:
      mean, scale: `(d,)`.
      clip: scalar; z-scores beyond it are cut, `inf` for none.
    """

    mean: ArrayLike
    scale: ArrayLike
    clip: ArrayLike

    @classmethod
    def fit(
        cls, features: np.ndarray, clip: float = np.inf, floor: float = _FLOOR
    ) -> Standardizer:
        """Fit to the rows of `features (n, d)`.

        Args:
          features: of the learning part.
          clip: z-scores beyond it are cut; inf for none.
          floor: least scale, in median ones.
        """
        mean, scale = _mean_and_scale(features, floor)
        if np.isfinite(clip) and len(rows := _dominating(features, mean, scale)):
            mean, scale = _mean_and_scale(np.delete(features, rows, axis=0), floor)
        dtype = features.dtype if features.dtype.kind == "f" else np.float32
        return cls(mean.astype(dtype), scale.astype(dtype), np.asarray(clip, dtype))

    @classmethod
    def identity(cls, dim: int, dtype: Any = np.float32) -> Standardizer:
        return cls(np.zeros(dim, dtype), np.ones(dim, dtype), np.asarray(np.inf, dtype))

    @property
    def dim(self) -> int:
        """Number of features."""
        return np.shape(self.mean)[0]

    @property
    def dtype(self) -> np.dtype:
        """Type of the features."""
        return np.asarray(self.mean).dtype

    def __call__(self, features: ArrayLike) -> ArrayLike:
        return ((features - self.mean[None]) / self.scale[None]).clip(
            -self.clip, self.clip
        )

    def fold_into(
        self, weight: ArrayLike, bias: ArrayLike
    ) -> tuple[ArrayLike, ArrayLike]:
        """Weight and bias on raw features that give the logits of `weight, bias` on
        unclipped standardised ones.
        """
        raw = weight / self.scale[None]
        return raw, bias - raw @ self.mean


# Fewer rows than this say nothing about a share of the variance; and that share.
_ENOUGH_ROWS, _LARGE_SHARE = 20, 0.25


def dominating_rows(features: np.ndarray) -> np.ndarray:
    """Indices of the rows that make up more than a quarter of the variance each, over
    all standardised features `(n, d)`; none where there are fewer than 20.
    """
    return _dominating(features, *_mean_and_scale(features, _FLOOR))


def _dominating(
    features: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """`dominating_rows`, given mean and scale of all rows."""
    if len(features) < _ENOUGH_ROWS:
        return np.zeros(0, int)
    square = np.zeros(len(features))
    for start in range(0, len(features), ROWS_AT_ONCE):
        part = (features[start : start + ROWS_AT_ONCE] - mean) / scale
        square[start : start + ROWS_AT_ONCE] = np.einsum("nd,nd->n", part, part)
    return np.flatnonzero(square > _LARGE_SHARE * max(square.sum(), 1e-300))


def _mean_and_scale(
    features: np.ndarray, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    mean = np.asarray(np.mean(features, axis=0, dtype=np.float64))
    var = np.zeros_like(mean)
    for start in range(0, len(features), ROWS_AT_ONCE):
        part = features[start : start + ROWS_AT_ONCE] - mean
        var += np.einsum("nd,nd->d", part, part)
    scale = np.sqrt(var / len(features))
    positive = scale[scale > 1e-12 * np.maximum(np.abs(mean), 1e-300)]
    lowest = floor * np.median(positive) if positive.size else 1.0
    return mean, np.maximum(scale, lowest)
