"""Pictures under the classifiers of torchvision, with their own transform."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax.data.cache import remembered
from tta_jax.data.encoders.base import Encoder, in_order
from tta_jax.data.encoders.libraries import _torch
from tta_jax.data.encoders.libraries.reference import (
    ModelOptions,
    Reference,
    identified,
    loading,
    once,
)
from tta_jax.data.installed import file_hash, package_version


def load(
    reference: Reference, options: ModelOptions, packages: Sequence[str]
) -> Encoder:
    """Load a classifier of torchvision: what enters its last linear layer.

    Args:
      reference: the name of a model, as `torchvision.models.list_models()` has it.
      options: how it is run; `weights` is a file with its state dictionary.
      packages: distributions whose versions count.

    Raises:
      ValueError: as `load_library_encoder`.
    """
    if options.weights is not None and not Path(options.weights).is_file():
        raise ValueError(f"weights: there is no file {options.weights!r}")
    given = "" if options.weights is None else str(Path(options.weights).resolve())
    key = [reference.model, reference.settings.get("tag", ""), given]
    facts = remembered(
        ["torchvision", *key, *map(package_version, packages)],
        lambda: _facts(reference, options),
        lambda kept: file_hash(Path(kept["file"])) == kept["sha256"],
    )

    def make() -> tuple[Any, Any, Any, Any]:
        with loading(reference):
            import torch
            import torchvision

            tag = _weights(reference)
            state = torch.load(facts["file"], map_location="cpu", weights_only=True)
            model = torchvision.models.get_model(
                reference.model, weights=None, **_arguments(reference.model, tag)
            )
            model.load_state_dict(state)
            module, before = _tapped(reference, model)
            transform = _torch.on_one_thread(tag.transforms())
            return _torch.place(model, options), transform, module, before

    made = once(make)

    def forward(pictures: Any) -> Any:
        model, _, module, before = made()
        seen: list[Any] = []
        if before:
            hook = module.register_forward_pre_hook(lambda _, given: seen.append(given))
        else:
            hook = module.register_forward_hook(lambda _, __, out: seen.append([out]))
        try:
            model(pictures)
        finally:
            hook.remove()
        found = seen[-1][0]
        if found.ndim == 4:  # maps
            return found.mean((2, 3))
        return found.mean(1) if found.ndim == 3 else found

    def head() -> tuple[np.ndarray, np.ndarray]:
        return _torch.head_of(made()[2])

    return Encoder(
        name=reference.name,
        modality="image",
        prepare=lambda picture: made()[1](picture).numpy(),
        load=made,
        build=lambda: (_torch.picture_function(made()[0], forward), ()),
        batches=in_order,
        batch_size=16,
        **identified(reference, options, packages, [reference.model, facts["sha256"]]),
        preprocessing=facts["preprocessing"],
        jit=False,
        head=None if "layer" in reference.settings else head,
    )


def _weights(reference: Reference) -> Any:
    """The member of torchvision's enumeration of weights."""
    import torchvision

    name, tag = reference.model, reference.settings.get("tag", "DEFAULT")
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(
            f"encoder: torchvision has no classifier {name!r}; see "
            "torchvision.models.list_models()"
        )
    known = torchvision.models.get_model_weights(name)
    if tag not in known.__members__:
        raise ValueError(
            f"encoder: {name!r} of torchvision has no weights {tag!r}; it has "
            f"{', '.join(known.__members__)}"
        )
    return known[tag]


def _arguments(name: str, tag: Any) -> dict[str, Any]:
    """Arguments of a model that its weights decide, as torchvision's own constructors
    do.
    """
    found: dict[str, Any] = {"num_classes": len(tag.meta["categories"])}
    if name.startswith("vit_"):
        found["image_size"] = tag.meta["min_size"][0]
    if name in ("googlenet", "inception_v3"):
        found |= {"transform_input": True, "init_weights": False}
    return found


def _facts(reference: Reference, options: ModelOptions) -> dict[str, str]:
    """Where the weights lie, which are downloaded unless they are there, and how
    pictures are prepared.
    """
    with loading(reference, "; give the file of its weights (--weights)"):
        import torch

        tag = _weights(reference)
        file = Path(options.weights or "")
        if options.weights is None:
            file = Path(torch.hub.get_dir()) / "checkpoints" / Path(tag.url).name
            if not file.exists():
                tag.get_state_dict(progress=False, check_hash=True)
        said = " ".join(repr(tag.transforms()).split())
        return {
            "file": str(file.resolve()),
            "sha256": file_hash(file),
            "preprocessing": f"torchvision's transform of {tag}: {said}",
        }


def _tapped(reference: Reference, model: Any) -> tuple[Any, bool]:
    """The module whose input (the classifier) or output (a layer) is taken, and
    whether it is the input.
    """
    layer = reference.settings.get("layer")
    if layer is not None:
        modules = dict(model.named_modules())
        if layer not in modules:
            raise ValueError(
                f"encoder: {reference.text!r} has no module {layer!r}; it has "
                f"{', '.join(name for name in modules if name.count('.') < 2)[:300]}"
            )
        return modules[layer], False
    linear = _torch.last_linear(model)
    if linear is None:
        raise ValueError(
            f"encoder: {reference.text!r} has no linear classifier; name a module "
            f"whose output is taken: {reference.text}#layer=NAME"
        )
    return linear[1], True
