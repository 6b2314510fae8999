"""The paper's small encoder [P, small scale], in Flax NNX, with the loop that trains it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

Array = jax.Array


class SmallCNN(nnx.Module):
    """Two 5x5 convolutions (20 and 50 channels), a dense layer of 200 units, a linear head.

    Images are `(n, 28, 28, 1)` in [0, 1]; features are `(n, 200)` after the last ReLU.
    """

    def __init__(self, num_classes: int, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 20, (5, 5), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(20, 50, (5, 5), padding="VALID", rngs=rngs)
        self.dense = nnx.Linear(4 * 4 * 50, 200, rngs=rngs)
        self.head = nnx.Linear(200, num_classes, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def features(self, images: Array) -> Array:
        x = nnx.max_pool(nnx.relu(self.conv1(images)), (2, 2), strides=(2, 2))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), strides=(2, 2))
        x = self.drop(x.reshape(x.shape[0], -1))
        return nnx.relu(self.dense(x))

    def __call__(self, images: Array) -> Array:
        return self.head(self.drop(self.features(images)))


def train_cnn(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    seed: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    on_epoch: Callable[[int, float], None] | None = None,
) -> SmallCNN:
    """Train `SmallCNN` on images `(n, 28, 28, 1)` and labels `(n,)` in `0..K-1` with Adam.

    `on_epoch(epoch, mean_loss)` is called after every pass. Returns the model in evaluation mode.
    """
    model = SmallCNN(int(labels.max()) + 1, rngs=nnx.Rngs(seed))
    model.train()
    batch_size = min(batch_size, len(labels))
    steps = len(labels) // batch_size
    schedule = optax.cosine_decay_schedule(learning_rate, epochs * steps)
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)

    # One jitted step per batch: inside a `lax.scan` XLA's CPU convolutions run on one thread.
    @nnx.jit
    def step(model, optimizer, images, labels):
        def loss_fn(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        order = rng.permutation(len(labels))[: steps * batch_size].reshape(steps, batch_size)
        losses = [step(model, optimizer, images[index], labels[index]) for index in order]
        if on_epoch is not None:
            on_epoch(epoch, float(np.mean(jax.device_get(losses))))
    model.eval()
    return model


def encode(model: SmallCNN, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
    """Features `(n, 200)` float32 of images `(n, 28, 28, 1)`, one padded batch shape throughout."""
    graph, state = nnx.split(model)

    @jax.jit
    def apply(state, batch):
        return nnx.merge(graph, state).features(batch)

    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        padded = np.zeros((batch_size, *images.shape[1:]), np.float32)
        padded[: len(batch)] = batch
        parts.append(np.asarray(apply(state, jnp.asarray(padded)))[: len(batch)])
    return np.concatenate(parts)
