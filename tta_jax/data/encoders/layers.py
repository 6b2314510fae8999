"""Layers of frozen networks: made of given weights, `(n, height, width, channels)`
throughout.
"""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from tta_jax._internal.typing import Array


class Convolution(nnx.Module):
    """A convolution with a bias, padded as TensorFlow's "SAME".

    `kernel` is `(k, k, inputs, outputs)`; `(k, k, 1, channels)` treats every channel on
    its own.
    """

    def __init__(self, kernel: np.ndarray, bias: np.ndarray, stride: int = 1):
        self.kernel, self.bias, self.stride = (
            nnx.Param(jnp.asarray(kernel)),
            nnx.Param(jnp.asarray(bias)),
            stride,
        )

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...]
        y = x @ kernel[0, 0] if kernel.shape[:2] == (1, 1) else self.convolve(x, kernel)
        return y + self.bias[...][None, None, None]

    def convolve(self, x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1] // kernel.shape[2],
        )


class ThinConvolution(Convolution):
    """A convolution where few products belong to one output: of each channel on its
    own, or of a picture's three.

    XLA's own is 5 to 50 times slower on CPUs than a sum of shifted pictures, which
    fuses with what follows.
    """

    def convolve(self, x: Array, kernel: Array) -> Array:
        return lax.platform_dependent(
            x, kernel, cpu=self._shifted, default=super().convolve
        )

    def _shifted(self, x: Array, kernel: Array) -> Array:
        size, stride = kernel.shape[0], self.stride
        spans = [(-(-n // stride) - 1) * stride + 1 for n in x.shape[1:3]]
        missing = [
            max(span + size - 1 - n, 0)
            for span, n in zip(spans, x.shape[1:3], strict=True)
        ]
        x = jnp.pad(x, ((0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)))
        terms = []
        for i, j in itertools.product(range(size), repeat=2):
            part = x[:, i : i + spans[0] : stride, j : j + spans[1] : stride]
            parts = (
                [part]
                if kernel.shape[2] == 1
                else jnp.split(part, kernel.shape[2], axis=-1)
            )
            terms += [
                part * taps[None, None, None]
                for part, taps in zip(parts, kernel[i, j], strict=True)
            ]
        return sum(terms[1:], terms[0])


def linear(kernel: np.ndarray, bias: np.ndarray) -> nnx.Linear:
    """A dense layer with this `(inputs, outputs)` kernel."""

    def given(array):
        return lambda *_: jnp.asarray(array)

    return nnx.Linear(
        *kernel.shape,
        kernel_init=given(kernel),
        bias_init=given(bias),
        rngs=nnx.Rngs(0),
    )
