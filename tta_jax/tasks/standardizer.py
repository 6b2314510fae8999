"""Standardise features with a floor under their scale."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from tta_jax._internal.typing import ArrayLike
from tta_jax.tasks.validation import ROWS_AT_ONCE


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Standardizer:
    """`x -> clip((x - mean) / scale)`, fitted on a learning part and applied to
    everything.

    `scale` is the standard deviation with a floor relative to the median one: nearly
    dead features would otherwise give z-scores in the thousands on unseen items.
    Constant features become zeros.

    Attributes:
      mean, scale: `(d,)`.
      clip: scalar; z-scores beyond it are cut, `inf` for none.
    """

    mean: ArrayLike
    scale: ArrayLike
    clip: ArrayLike

    @classmethod
    def fit(
        cls, features: np.ndarray, clip: float = np.inf, floor: float = 0.1
    ) -> Standardizer:
        mean = np.mean(features, axis=0, dtype=np.float64)
        var = np.zeros_like(mean)
        for start in range(0, len(features), ROWS_AT_ONCE):
            part = features[start : start + ROWS_AT_ONCE] - mean
            var += np.einsum("nd,nd->d", part, part)
        scale = np.sqrt(var / len(features))
        positive = scale[scale > 1e-12 * np.maximum(np.abs(mean), 1e-300)]
        lowest = floor * np.median(positive) if positive.size else 1.0
        dtype = features.dtype if features.dtype.kind == "f" else np.float32
        return cls(
            mean.astype(dtype),
            np.maximum(scale, lowest).astype(dtype),
            np.asarray(clip, dtype),
        )

    @classmethod
    def identity(cls, dim: int, dtype: Any = np.float32) -> Standardizer:
        return cls(np.zeros(dim, dtype), np.ones(dim, dtype), np.asarray(np.inf, dtype))

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
