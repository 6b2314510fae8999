"""EfficientNet-Lite for inference: EfficientNet [Tan and Le 2019] without
squeeze-and-excitation, with ReLU6 for swish.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tta_jax._internal.typing import Array
from tta_jax.data.encoders.layers import Convolution, ThinConvolution, linear
from tta_jax.data.encoders.weights import read_legacy_torch, taker

# Repeats, kernel size, stride, expansion and channels of every stage; width and depth
# of every variant.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2))
_STEM, _LAST, _CLASSES = 32, 1280, 1000
_EPSILON = 1e-3  # of the batch norms


class Block(nnx.Module):
    """Expand the channels, convolve each one, project them; add the input where the
    shapes allow.
    """

    def __init__(
        self,
        expand: Convolution | None,
        depthwise: Convolution,
        project: Convolution,
        residual: bool,
    ):
        self.expand, self.depthwise, self.project, self.residual = (
            expand,
            depthwise,
            project,
            residual,
        )

    def __call__(self, x: Array) -> Array:
        y = x if self.expand is None else _relu6(self.expand(x))
        y = self.project(_relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite(nnx.Module):
    """Pictures `(n, size, size, 3)`, RGB in 0..255 (uint8 or float), to features
    `(n, 1280)` and ImageNet logits `(n, 1000)`.

    Variant 0, 1 or 2 was trained with size 224, 240 or 260. Batch norms are folded into
    the convolutions before them. `take(name, *shape)` gives the arrays of the published
    state dictionary.
    """

    def __init__(self, variant: int, take: Callable[..., np.ndarray]):
        def fold(
            name: str, norm: str, k: int, inputs: int, outputs: int
        ) -> tuple[np.ndarray, np.ndarray]:
            kernel = take(f"{name}.weight", outputs, inputs, k, k).transpose(2, 3, 1, 0)
            parts = (
                f"{norm}.{part}"
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale, shift, mean, variance = (take(part, outputs) for part in parts)
            scale = scale / np.sqrt(variance + np.float32(_EPSILON))
            return kernel * scale, shift - mean * scale

        width, depth = _SCALES[variant]
        self.stem = ThinConvolution(*fold("_conv_stem", "_bn0", 3, 3, _STEM), stride=2)
        blocks, inputs = [], _STEM
        for stage, (repeats, k, stride, expansion, channels) in enumerate(_STAGES):
            outputs = _rounded(channels * width)
            deepened = 0 < stage < len(_STAGES) - 1
            for repeat in range(math.ceil(repeats * depth) if deepened else repeats):
                name, inner, step = (
                    f"_blocks.{len(blocks)}.",
                    inputs * expansion,
                    1 if repeat else stride,
                )
                expand = (
                    fold(name + "_expand_conv", name + "_bn0", 1, inputs, inner)
                    if expansion > 1
                    else None
                )
                depthwise = fold(name + "_depthwise_conv", name + "_bn1", k, 1, inner)
                project = fold(name + "_project_conv", name + "_bn2", 1, inner, outputs)
                blocks.append(
                    Block(
                        expand and Convolution(*expand),
                        ThinConvolution(*depthwise, stride=step),
                        Convolution(*project),
                        residual=step == 1 and inputs == outputs,
                    )
                )
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.last = Convolution(*fold("_conv_head", "_bn1", 1, inputs, _LAST))
        self.head = linear(
            take("_fc.weight", _CLASSES, _LAST).T, take("_fc.bias", _CLASSES)
        )

    def features(self, batch: Any) -> Array:
        x = (jnp.asarray(batch).astype(jnp.float32) - 127) / 128
        x = _relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return _relu6(self.last(x)).mean(axis=(1, 2))

    def __call__(self, batch: Any) -> Array:
        return self.head(self.features(batch))


def _relu6(x: Array) -> Array:
    return jnp.clip(x, 0, 6)


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, or the one above where that would lose more than a
    tenth.
    """
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def efficientnet_lite(variant: int, path: Path) -> EfficientNetLite:
    """Variant 0, 1 or 2 with the weights of a legacy torch file.

    Raises:
      ValueError: the file is not that; names `weights`.
    """
    return EfficientNetLite(variant, taker(read_legacy_torch(path), path))
