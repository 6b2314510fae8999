"""The paper's small CNN: trained with optax on pictures of any kind, then an encoder
like the others.
"""

import jax
import numpy as np
import pytest
from PIL import Image

from tta_jax import SoftmaxHead
from tta_jax.data import Examples, extract_features
from tta_jax.data.encoders.small_cnn import cnn_encoder, small_pictures, train_cnn

RNG = np.random.default_rng(0)


def stripes(label, size):
    """Colour pictures of horizontal, vertical or no stripes, of any size."""
    pixels = RNG.integers(0, 120, (*size, 3))
    if label == 0:
        pixels[:: size[0] // 6 + 1] += 130
    if label == 1:
        pixels[:, :: size[1] // 6 + 1] += 130
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """Flax's layers and optax's schedules promote."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def trained(promotion):
    labels = np.arange(150) % 3
    sizes = [(20 + i % 30, 60 - i % 35) for i in range(150)]
    examples = Examples(
        [stripes(y, s) for y, s in zip(labels, sizes, strict=True)],
        "image",
        labels,
        ("h", "v", "no"),
    )
    losses = []
    model = train_cnn(
        small_pictures(examples.take(np.arange(100))),
        labels[:100],
        epochs=12,
        seed=0,
        batch_size=32,
        on_epoch=lambda _, loss: losses.append(loss),
    )
    return examples, model, losses


def test_training_lowers_the_loss_and_unseen_pictures_are_told_apart(trained):
    examples, model, losses = trained
    assert losses[-1] < losses[0] / 2
    unseen = examples.take(np.arange(100, 150))
    found = extract_features(cnn_encoder(model), unseen)
    assert found.features.shape == (50, 200)
    head = SoftmaxHead.from_linear(model.head)
    assert (
        np.asarray(head.logits(found.features)).argmax(1) == unseen.labels
    ).mean() > 0.8  # a third by chance


def test_the_encoder_is_the_model(trained):
    examples, model, _ = trained
    some = examples.take(np.arange(7))
    np.testing.assert_allclose(
        extract_features(cnn_encoder(model), some).features,
        model.features(small_pictures(some)),
        rtol=1e-5,
        atol=1e-6,
    )
    # The demo's way: pictures that are small already.
    np.testing.assert_allclose(
        extract_features(model, small_pictures(some)).features,
        model.features(small_pictures(some)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_same_seed_gives_the_same_model(trained):
    examples, _, _ = trained
    images, labels = small_pictures(examples.take(np.arange(40))), np.arange(40) % 3
    one, two, other = (
        train_cnn(images, labels, epochs=1, seed=seed).head.kernel[...]
        for seed in (0, 0, 1)
    )
    assert (one == two).all()
    assert not (one == other).all()


def test_what_is_no_picture_is_named():
    with pytest.raises(
        ValueError, match=r"^data: item 1 of 'data' is not a readable picture"
    ):
        small_pictures(Examples([stripes(0, (30, 30)), b"x"], "image"))
