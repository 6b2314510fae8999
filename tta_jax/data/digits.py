"""The demo's real data: scikit-learn's 1,797 handwritten digits, brought to 28x28, and
tasks made of them.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images `(1797, 28, 28, 1)` float32 in [0, 1] and labels `(1797,)`.

    Raises:
      ValueError: scikit-learn, which bundles them, is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled
    except ImportError:
        raise ValueError(
            "demo: the digits come with scikit-learn; install it with: pip install "
            "'tta-jax[demo]'"
        ) from None
    data: Any = bundled()
    small = np.asarray(data.images, np.float32)[..., None] / 16
    images = np.asarray(jax.image.resize(small, (len(small), 28, 28, 1), "linear"))
    return images, np.asarray(data.target, np.int32)


def rotated(images: np.ndarray) -> np.ndarray:
    """A quarter turn."""
    return np.ascontiguousarray(np.rot90(images, axes=(1, 2)))


def inverted(images: np.ndarray) -> np.ndarray:
    """Dark on light."""
    return 1 - images


def noisy(images: np.ndarray, seed: int) -> np.ndarray:
    """With Gaussian noise of deviation 0.8, cut to [0, 1]."""
    noise = np.random.default_rng(seed).normal(0, 0.8, images.shape)
    return np.clip(images + noise, 0, 1).astype(np.float32)
