"""A sentence encoder: BERT [Devlin et al. 2019] of 6 layers distilled as MiniLM [Wang
et al. 2020], mean pooling, unit length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from tta_jax._internal.typing import Array
from tta_jax.data.encoders.layers import linear
from tta_jax.data.encoders.tokens import SLOTS, Packed
from tta_jax.data.encoders.weights import read_safetensors, taker

Take = Callable[..., np.ndarray]

_LAYERS, _HEADS, _WIDTH, _INNER = 6, 12, 384, 1536
_WORDS, _POSITIONS = 30522, 512


class Norm(nnx.Module):
    """Layer normalisation."""

    def __init__(self, take: Take, name: str):
        self.scale, self.bias = (
            nnx.Param(jnp.asarray(take(f"{name}.{p}", _WIDTH)))
            for p in ("weight", "bias")
        )

    def __call__(self, x: Array) -> Array:
        x = x - x.mean(axis=-1, keepdims=True)
        deviation = lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + 1e-12)
        return x * deviation * self.scale[...][None, None] + self.bias[...][None, None]


class Layer(nnx.Module):
    """Self-attention within documents and a dense network, each added to its input and
    normalised.
    """

    def __init__(self, take: Take, name: str):
        def dense(
            part: str, inputs: int, outputs: int
        ) -> tuple[np.ndarray, np.ndarray]:
            return take(f"{name}.{part}.weight", outputs, inputs).T, take(
                f"{name}.{part}.bias", outputs
            )

        query, key, value = (
            dense(f"attention.self.{part}", _WIDTH, _WIDTH)
            for part in ("query", "key", "value")
        )
        # One product for all three, with the scale of the scores inside.
        scale = np.float32(1 / math.sqrt(_WIDTH // _HEADS))
        query = (query[0] * scale, query[1] * scale)
        self.into_heads = linear(
            *(
                np.concatenate(parts, axis=-1)
                for parts in zip(query, key, value, strict=True)
            )
        )
        self.out_of_heads = linear(*dense("attention.output.dense", _WIDTH, _WIDTH))
        self.norm1 = Norm(take, f"{name}.attention.output.LayerNorm")
        self.widen = linear(*dense("intermediate.dense", _WIDTH, _INNER))
        self.narrow = linear(*dense("output.dense", _INNER, _WIDTH))
        self.norm2 = Norm(take, f"{name}.output.LayerNorm")

    def __call__(self, x: Array, together: Array) -> Array:
        query, key, value = jnp.moveaxis(
            self.into_heads(x).reshape(*x.shape[:2], 3, _HEADS, -1), 2, 0
        )
        scores = jnp.where(together, jnp.einsum("nqhd,nkhd->nhqk", query, key), -1e9)
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        # A column of ones sums the weights in the same product, which is quicker than
        # dividing them all.
        value = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)
        mixed = jnp.einsum("nhqk,nkhd->nhqd", weights, value)
        mixed = (
            (mixed[..., :-1] / mixed[..., -1:]).transpose(0, 2, 1, 3).reshape(x.shape)
        )
        x = self.norm1(x + self.out_of_heads(mixed))
        wide = self.widen(x)
        wide = wide * (0.5 + 0.5 * lax.erf(wide * math.sqrt(0.5)))
        return self.norm2(x + self.narrow(wide))


class SentenceEncoder(nnx.Module):
    """Packed documents (`texts.Packed`, n rows) to features `(n, SLOTS, 384)` of unit
    length, zero where there is no document.

    Documents of a row do not see each other. `take(name, *shape)` gives the arrays of
    the published model.
    """

    def __init__(self, take: Take):
        self.words = nnx.Param(
            jnp.asarray(take("embeddings.word_embeddings.weight", _WORDS, _WIDTH))
        )
        positions = take("embeddings.position_embeddings.weight", _POSITIONS, _WIDTH)
        kinds = take(
            "embeddings.token_type_embeddings.weight", 2, _WIDTH
        )  # a single text is of the first kind
        self.positions = nnx.Param(jnp.asarray(positions + kinds[0]))
        self.norm = Norm(take, "embeddings.LayerNorm")
        self.layers = nnx.List(
            [Layer(take, f"encoder.layer.{number}") for number in range(_LAYERS)]
        )

    def features(self, batch: Any) -> Array:
        tokens, positions, documents = (jnp.asarray(part) for part in Packed(*batch))
        x = self.norm(self.words[...][tokens] + self.positions[...][positions])
        together = documents[:, None, :, None] == documents[:, None, None, :]
        for layer in self.layers:
            x = layer(x, together)
        slots = jnp.arange(1, SLOTS + 1, dtype=documents.dtype)
        sums = jnp.einsum(
            "nsl,nld->nsd",
            (documents[:, None] == slots[None, :, None]).astype(x.dtype),
            x,
        )
        # Unit length makes the mean of a document's tokens out of their sum. The square
        # root has no slope at 0.
        square = (sums * sums).sum(axis=-1, keepdims=True)
        return jnp.where(
            square > 0, sums * lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0
        )


def minilm(path: Path) -> SentenceEncoder:
    """The encoder with the weights of a safetensors file.

    Raises:
      ValueError: the file is not that; names `weights`.
    """
    return SentenceEncoder(taker(read_safetensors(path), path))
