"""Pictures under the models of timm, with its evaluation transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tta_jax.data.cache import remembered
from tta_jax.data.encoders.base import Encoder, in_order
from tta_jax.data.encoders.libraries import _torch
from tta_jax.data.encoders.libraries.reference import (
    ModelOptions,
    Reference,
    content_hash,
    identified,
    loading,
    model_folder,
    once,
    read_settings,
)
from tta_jax.data.installed import package_version

_SAID = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


def load(
    reference: Reference, options: ModelOptions, packages: Sequence[str]
) -> Encoder:
    """Load a model of timm: features before its classifier.

    Args:
      reference: a folder as timm saves models for the Hugging Face hub (`config.json`
        and weights), a repository, or a name of timm.
      options: how it is run.
      packages: distributions whose versions count.

    Raises:
      ValueError: as `load_library_encoder`.
    """
    folder = model_folder(reference, _repository(reference, packages))
    config = read_settings(folder / "config.json")
    if "architecture" not in config:
        raise ValueError(
            f"encoder: {reference.text!r}: its config.json names no architecture of "
            "timm; for a model of transformers write hf: in place of timm:"
        )
    data = config.get("pretrained_cfg") or config
    said = {name: data[name] for name in _SAID if name in data}

    def make() -> tuple[Any, Any, Any]:
        with loading(reference):
            import timm
            from timm.data.config import resolve_data_config
            from timm.data.transforms_factory import create_transform

            model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
            linear = model.get_classifier()
            model.reset_classifier(0)
            data = resolve_data_config({}, model=model)
            if data["input_size"][0] != 3:
                raise ValueError(
                    f"encoder: {reference.text!r} takes pictures of "
                    f"{data['input_size'][0]} channels, but they are RGB here; name a "
                    "model with 3"
                )
            transform: Any = create_transform(**data, is_training=False)
            transform = _torch.on_one_thread(transform)
            return _torch.place(model, options), transform, linear

    made = once(make)

    def head() -> tuple[np.ndarray, np.ndarray]:
        linear = made()[2]
        if getattr(getattr(linear, "weight", None), "ndim", 0) != 2:
            raise ValueError(
                f"head: the classifier of {reference.text!r} is no linear layer; leave "
                "--head out"
            )
        return _torch.head_of(linear)

    return Encoder(
        name=reference.name,
        modality="image",
        prepare=lambda picture: made()[1](picture).numpy(),
        load=made,
        build=lambda: (_torch.picture_function(made()[0], made()[0]), ()),
        batches=in_order,
        batch_size=8,
        **identified(reference, options, packages, [content_hash(folder)]),
        preprocessing=f"timm's evaluation transform, {said}",
        jit=False,
        head=head if config.get("num_classes", data.get("num_classes")) else None,
    )


def _repository(reference: Reference, packages: Sequence[str]) -> str:
    """The repository of a name of timm; without a tag, that of its first one."""
    name = reference.model
    if "/" in name or reference.path() is not None:
        return name
    if "." in name:
        return f"timm/{name}"

    def ask() -> str:
        with loading(reference, "; see timm.list_pretrained()"):
            import timm

            found = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
            if found is None or not found.tag:
                raise ValueError(
                    f"encoder: timm has no weights for {name!r}; see "
                    "timm.list_pretrained()"
                )
            return f"timm/{name}.{found.tag}"

    return remembered(["timm", name, *map(package_version, packages)], ask)
