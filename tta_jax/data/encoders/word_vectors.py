"""Static word vectors: a text is the mean of its tokens' vectors, in any order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from tta_jax._internal.typing import Array
from tta_jax.data.encoders.tokens import BAG, Bags
from tta_jax.data.encoders.weights import read_safetensors, taker

_VOCABULARY, _WIDTH = 32000, 256


class WordVectors(nnx.Module):
    """Bags of tokens (`texts.Bags`, n documents) to the means of their vectors,
    `(n, 256)`.
    """

    def __init__(self, take: Callable[..., np.ndarray]):
        self.vectors = nnx.Param(
            jnp.asarray(take("embedding.weight", _VOCABULARY, _WIDTH))
        )

    def features(self, batch: Any) -> Array:
        vectors = self.vectors[...]
        # Part by part, so that long documents need no more memory than short ones.
        parts = [
            jnp.asarray(a).reshape(len(a), -1, BAG).swapaxes(0, 1) for a in Bags(*batch)
        ]

        def add(total, part):
            return (
                total + jnp.einsum("nt,ntd->nd", part[1], vectors[part[0]]),
                None,
            )

        start = jnp.zeros((len(batch[0]), _WIDTH), vectors.dtype)
        return lax.scan(add, start, parts)[0]


def word_vectors(path: Path) -> WordVectors:
    """The vectors of a safetensors file.

    Raises:
      ValueError: the file is not that; names `weights`.
    """
    return WordVectors(taker(read_safetensors(path), path))
