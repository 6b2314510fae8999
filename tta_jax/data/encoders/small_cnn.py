"""The paper's small encoder [P, small scale], in Flax NNX, with the loop that trains
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from tta_jax._internal.typing import Array
from tta_jax.data.encoders.base import Encoder, of_module
from tta_jax.data.examples import Examples, picture
from tta_jax.data.installed import require_package


class SmallCNN(nnx.Module):
    """Two 5x5 convolutions (20 and 50 channels), a dense layer of 200 units, a linear
    head.

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
    """Train `SmallCNN` on images `(n, 28, 28, 1)` and labels `(n,)` in `0..K-1` with
    Adam.

    `on_epoch(epoch, mean_loss)` is called after every pass. Returns the model in
    evaluation mode.
    """
    model = SmallCNN(int(labels.max()) + 1, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    train_classifier(
        model,
        images,
        labels,
        epochs=epochs,
        rng=rng,
        batch_size=batch_size,
        learning_rate=learning_rate,
        on_epoch=on_epoch,
    )
    return model


def train_classifier(
    model: nnx.Module,
    arrays: Any,
    labels: np.ndarray,
    *,
    epochs: int,
    rng: np.random.Generator,
    batch_size: int,
    learning_rate: float,
    on_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """Train a module that maps batches of `arrays` (a pytree, leading axis n) to
    logits, with Adam; it ends in evaluation mode.

    `rng` deals the batches.
    """
    model.train()
    batch_size = min(batch_size, len(labels))
    steps = len(labels) // batch_size
    schedule = optax.cosine_decay_schedule(learning_rate, epochs * steps)
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)

    # One jitted step per batch: inside a `lax.scan` XLA's CPU convolutions run on one
    # thread.
    @nnx.jit
    def step(model, optimizer, batch, labels):
        def loss_fn(model):
            return optax.softmax_cross_entropy_with_integer_labels(
                model(batch), labels
            ).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    for epoch in range(epochs):
        order = rng.permutation(len(labels))[: steps * batch_size].reshape(
            steps, batch_size
        )
        losses = [
            step(
                model,
                optimizer,
                jax.tree.map(lambda a: a[index], arrays),
                labels[index],
            )
            for index in order
        ]
        if on_epoch is not None:
            on_epoch(epoch, float(np.mean(jax.device_get(losses))))
    model.eval()


def small_pictures(examples: Examples) -> np.ndarray:
    """Any pictures as the network takes them: grey, 28x28, `(n, 28, 28, 1)` float32 in
    [0, 1].

    Raises:
      ValueError: for an item that is not a picture; names it.
    """
    require_package("PIL", "data", "pictures need")
    images = np.empty((len(examples), 28, 28, 1), np.float32)
    for i in range(len(examples)):
        try:
            images[i] = _small(picture(examples.items[i]))
        except ValueError as error:
            raise ValueError(
                f"data: {examples.describe(i)} of {examples.name!r} {error}; repair or "
                "remove it"
            ) from None
    return images


def _small(image: Any) -> np.ndarray:
    from PIL import Image

    grey = np.asarray(
        image.convert("L").resize((28, 28), Image.Resampling.BILINEAR), np.float32
    )
    return grey[..., None] / 255


def cnn_encoder(model: SmallCNN) -> Encoder:
    """`extract_features(cnn_encoder(model), pictures)`: 200 features of any
    pictures.
    """
    return Encoder(
        name=type(model).__name__,
        modality="image",
        prepare=_small,
        build=lambda: of_module(model, "features"),
        batch_size=500,
        preprocessing="grey, the whole picture resized to 28x28, [0, 1]",
    )
