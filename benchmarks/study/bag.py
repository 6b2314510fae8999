"""A small text encoder to be trained on a source from nothing: the mean of token
vectors, a dense layer, a linear head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tta_jax.data import Examples
from tta_jax.data.encoders import load_encoder
from tta_jax.data.encoders.base import Encoder, of_module
from tta_jax.data.encoders.small_cnn import train_classifier
from tta_jax.data.encoders.tokens import Bags, bags

_VOCABULARY, _VECTOR, _WIDTH = 32000, 64, 128
# distinct tokens of a document while training, drawn at random from longer ones
_TOKENS = 256


class BagEncoder(nnx.Module):
    """Bags of tokens (n documents) to `(n, 128)` features after the last ReLU."""

    def __init__(self, num_classes: int, *, rngs: nnx.Rngs):
        self.vectors = nnx.Param(
            jax.random.normal(rngs.params(), (_VOCABULARY, _VECTOR))
        )
        self.dense = nnx.Linear(_VECTOR, _WIDTH, rngs=rngs)
        self.head = nnx.Linear(_WIDTH, num_classes, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def features(self, batch: Any) -> jax.Array:
        tokens, shares = Bags(*batch)
        mean = jnp.einsum("nt,ntd->nd", shares, self.vectors[...][tokens])
        # Means of many vectors are short; of unit mean square, the dense layer starts
        # where it was made for.
        scale = jnp.sqrt(jnp.sum(shares**2, axis=1, keepdims=True))
        return nnx.relu(self.dense(mean / jnp.maximum(scale, 1e-6)))

    def __call__(self, batch: Any) -> jax.Array:
        return self.head(self.drop(self.features(batch)))


def _tokenizer() -> Encoder:
    return load_encoder("word-vectors")


def train_bag(
    examples: Examples,
    *,
    epochs: int,
    seed: int,
    batch_size: int = 64,
    on_epoch: Callable[[int, float], None] | None = None,
) -> BagEncoder:
    """Train on the labelled texts of a source with Adam. Returns the model in
    evaluation mode.
    """
    prepare, labels = _tokenizer().prepare, np.asarray(examples.labels)
    rng = np.random.default_rng(seed)
    arrays = Bags(
        np.zeros((len(labels), _TOKENS), np.int32),
        np.zeros((len(labels), _TOKENS), np.float32),
    )
    for i in range(len(labels)):
        document = prepare(examples.items[i])
        keep = rng.permutation(len(document.tokens))[:_TOKENS]
        for array, values in zip(arrays, document, strict=True):
            array[i, : len(keep)] = values[keep]
    arrays.shares[:] /= arrays.shares.sum(1, keepdims=True)
    model = BagEncoder(int(labels.max()) + 1, rngs=nnx.Rngs(seed))
    train_classifier(
        model,
        arrays,
        labels,
        epochs=epochs,
        rng=rng,
        batch_size=batch_size,
        learning_rate=3e-3,
        on_epoch=on_epoch,
    )
    return model


def bag_encoder(model: BagEncoder) -> Encoder:
    """`extract_features(bag_encoder(model), texts)`."""
    return dataclasses.replace(
        _tokenizer(),
        name="bag",
        build=lambda: of_module(model),
        batches=bags,
        identity=None,
        head=None,
        preprocessing="sub-words, all of them; shares in the text",
    )
