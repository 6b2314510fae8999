"""SqueezeNet 1.1 [Iandola et al. 2016] for inference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tta_jax._internal.typing import Array
from tta_jax.data.encoders.layers import Convolution, linear
from tta_jax.data.encoders.weights import read_array_pickle, taker

# Channels of every fire module, from fire2 to fire9: after squeezing, and of each half
# after expanding.
_FIRES = (
    (16, 64),
    (16, 64),
    (32, 128),
    (32, 128),
    (48, 192),
    (48, 192),
    (64, 256),
    (64, 256),
)
_POOLED = (0, 2, 4)  # of these the input is halved before
_MEAN = (123.0, 117.0, 104.0)  # of red, green, blue
_CLASSES = 1000


class Fire(nnx.Module):
    """Squeeze the channels, expand them by a 1x1 and a 3x3 convolution."""

    def __init__(
        self, squeeze: Convolution, expand1: Convolution, expand3: Convolution
    ):
        self.squeeze, self.expand1, self.expand3 = squeeze, expand1, expand3

    def __call__(self, x: Array) -> Array:
        x = nnx.relu(self.squeeze(x))
        return nnx.relu(jnp.concatenate([self.expand1(x), self.expand3(x)], axis=-1))


class SqueezeNet(nnx.Module):
    """Pictures `(n, size, size, 3)`, RGB in 0..255 (uint8 or float), to features
    `(n, 512)` and ImageNet logits `(n, 1000)`.

    Made for size 227. The published network classifies every place and averages the
    logits; a linear head on the averaged features gives the same. `take(name, *shape)`
    gives kernels and biases.
    """

    def __init__(self, take: Callable[..., np.ndarray]):
        def weights(
            name: str, k: int, inputs: int, outputs: int
        ) -> tuple[np.ndarray, np.ndarray]:
            return take(f"{name}.kernel", k, k, inputs, outputs), take(
                f"{name}.bias", outputs
            )

        kernel, bias = weights("conv1", 3, 3, 64)
        self.conv1 = Convolution(
            kernel[:, :, ::-1], bias, stride=2
        )  # trained on blue, green, red
        fires, inputs = [], 64
        for number, (inner, half) in enumerate(_FIRES, start=2):
            squeeze = weights(f"fire{number}/squeeze1x1", 1, inputs, inner)
            expand1 = weights(f"fire{number}/expand1x1", 1, inner, half)
            expand3 = weights(f"fire{number}/expand3x3", 3, inner, half)
            fires.append(
                Fire(
                    Convolution(*squeeze), Convolution(*expand1), Convolution(*expand3)
                )
            )
            inputs = 2 * half
        self.fires = nnx.List(fires)
        kernel, bias = weights("conv10", 1, inputs, _CLASSES)
        self.head = linear(kernel[0, 0], bias)

    def features(self, batch: Any) -> Array:
        x = (
            jnp.asarray(batch).astype(jnp.float32)
            - jnp.array(_MEAN, jnp.float32)[None, None, None]
        )
        x = nnx.relu(self.conv1(x))
        for place, fire in enumerate(self.fires):
            if place in _POOLED:
                x = nnx.max_pool(x, (3, 3), strides=(2, 2))
            x = fire(x)
        return x.mean(axis=(1, 2))

    def __call__(self, batch: Any) -> Array:
        return self.head(self.features(batch))


def squeezenet(path: Path) -> SqueezeNet:
    """The network with the weights of a pickle of `{layer: [kernel, bias]}`.

    Raises:
      ValueError: the file is not that; names `weights`.
    """
    arrays = {}
    for layer, pair in read_array_pickle(path).items():
        arrays.update(
            {
                f"{layer}.{part}": array
                for part, array in zip(("kernel", "bias"), pair, strict=False)
            }
        )
    return SqueezeNet(taker(arrays, path))
