"""Pictures under Keras models on the JAX backend: `.keras` files and presets of
KerasHub.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tta_jax.data.encoders.base import Encoder, in_order
from tta_jax.data.encoders.libraries.pictures import (
    NAMED,
    Preprocessing,
    preprocessing_of,
)
from tta_jax.data.encoders.libraries.reference import (
    ModelOptions,
    Reference,
    content_hash,
    identified,
    loading,
    once,
)
from tta_jax.data.installed import file_hash, package_version

_SUFFIX = ".keras"
# Layers after the classifier that only turn logits into probabilities.
_ACTIVATIONS = ("Activation", "Softmax")


def load(
    reference: Reference, options: ModelOptions, packages: Sequence[str]
) -> Encoder:
    """Load a Keras model: what enters the dense layer that it ends in, with a softmax
    after it or without; else its output.

    Args:
      reference: a `.keras` file, or a preset of KerasHub by name or folder.
      options: how it is run.
      packages: distributions whose versions count.

    Raises:
      ValueError: as `load_library_encoder`.
    """
    path = reference.path()
    if path is None or path.is_dir():
        if path is None and reference.model.endswith(_SUFFIX):
            raise ValueError(f"encoder: there is no file {reference.model!r}")
        return _preset(reference, options, packages, path)
    if path.suffix != _SUFFIX:
        # Some versions of Keras run code of layers in .h5 files.
        raise ValueError(
            f"encoder: {reference.text!r} is no {_SUFFIX} file; save the model as one "
            "with model.save"
        )
    made = once(lambda: _of_file(reference, path))
    # How pictures are prepared depends on the model's input, and reading it is quick.
    prepare = once(lambda: _prepare(reference, path, made()[0]))
    said = reference.settings.get("preprocess", "of the model")
    return Encoder(
        name=reference.name,
        modality="image",
        prepare=lambda picture: prepare()(picture),
        load=prepare,
        build=once(lambda: _function(made()[1])),
        batches=in_order,
        batch_size=16,
        **identified(
            reference, options, packages, [file_hash(path), *_said(reference, path)]
        ),
        preprocessing=f"preprocess {said}, size "
        f"{reference.settings.get('size', 'of the model')}",
        head=None if "layer" in reference.settings else lambda: _head(made()[2]),
    )


def backend() -> Any:
    """Keras on the JAX backend.

    Raises:
      ValueError: it is there already, on another one.
    """
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "jax"
    import keras

    if keras.backend.backend() != "jax":
        raise ValueError(
            f"encoder: Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=jax "
            "before it is imported"
        )
    return keras


def _said(reference: Reference, path: Path) -> list[str]:
    """The hash of the file that says how pictures are prepared, where there is one."""
    said = reference.settings.get("preprocess", "")
    files = (Path(said), path.with_name("preprocessor_config.json"))
    return [file_hash(file) for file in files if file.is_file()][:1]


def _of_file(reference: Reference, path: Path) -> tuple[Any, Any, Any]:
    """The model, the model of its features, and its last dense layer or None."""
    with loading(reference):
        keras = backend()
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        name = reference.settings.get("layer")
        if name is not None:
            known = [layer.name for layer in model.layers]
            if name not in known:
                raise ValueError(
                    f"encoder: {reference.text!r} has no layer {name!r}; it has "
                    f"{', '.join(known)[:300]}"
                )
            return model, keras.Model(model.inputs, model.get_layer(name).output), None
        if len(model.outputs) != 1:
            raise ValueError(
                f"encoder: {reference.text!r} has {len(model.outputs)} outputs; name a "
                f"layer whose output is taken: {reference.text}#layer=NAME"
            )
        last, end = model.layers[-1], model.outputs[0]
        if type(last).__name__ in _ACTIVATIONS:
            end = last.input
            last = next(layer for layer in model.layers if layer.output is end)
        if isinstance(last, keras.layers.Dense) and last.output is end:
            return model, keras.Model(model.inputs, last.input), last
        return model, model, None


def _prepare(reference: Reference, path: Path, model: Any) -> Preprocessing:
    """How pictures are prepared.

    Raises:
      ValueError: the input is no picture, or nothing says how.
    """
    with loading(reference):
        shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] != 3:
        raise ValueError(
            f"encoder: {reference.text!r} takes inputs of shape {shape}; pictures (n, "
            "h, w, 3) are needed"
        )
    settings = reference.settings
    if "preprocess" not in settings and not _said(reference, path):
        scales = {"Rescaling", "Normalization"}
        if scales & {type(layer).__name__ for layer in model.layers[:3]}:
            # The model itself scales what it gets.
            reference = Reference(
                reference.text,
                reference.prefix,
                reference.model,
                {**settings, "preprocess": "bytes"},
            )
    return preprocessing_of(reference, shape[1:3], path.parent)


def _function(model: Any) -> tuple[Callable, Any]:
    """A compiled function of `(variables, pictures)`, and the variables."""
    variables = (
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
    )

    def apply(given: Any, pictures: Any) -> Any:
        found, _ = model.stateless_call(*given, pictures, training=False)
        if found.ndim == 4:
            return found.mean((1, 2))
        return found.mean(1) if found.ndim == 3 else found

    return jax.jit(apply), variables


def _head(dense: Any) -> tuple[np.ndarray, np.ndarray]:
    if dense is None:
        raise ValueError(
            "head: the model does not end in a dense layer; leave --head out"
        )
    weight = np.asarray(dense.kernel.value).T
    bias = np.zeros(len(weight)) if dense.bias is None else np.asarray(dense.bias.value)
    return weight, bias


def _preset(
    reference: Reference,
    options: ModelOptions,
    packages: Sequence[str],
    path: Path | None,
) -> Encoder:
    """A backbone of KerasHub, with the image converter that belongs to it."""
    if unknown := sorted(set(reference.settings)):
        raise ValueError(
            f"encoder: {reference.text!r} is a preset, which knows its own "
            f"{unknown[0]}; leave it out. Named are {', '.join(NAMED)} for files"
        )
    where = reference.model if path is None else str(path)

    def make() -> tuple[Any, Any]:
        with loading(
            reference,
            "; presets need pip install keras-hub, and one that was saved with "
            "save_to_preset is named by its folder",
        ):
            backend()
            import keras_hub

            backbone = keras_hub.models.Backbone.from_preset(where)
            converter = keras_hub.layers.ImageConverter.from_preset(where)
            return backbone, converter

    made = once(make)
    versions = [*packages, "keras-hub"]
    # A preset by name is what its version of KerasHub says.
    hashes = [content_hash(path)] if path is not None else [reference.model]
    return Encoder(
        name=reference.name,
        modality="image",
        prepare=lambda picture: np.asarray(
            made()[1](np.asarray(picture, np.float32)), np.float32
        ),
        load=made,
        build=once(lambda: _function(made()[0])),
        batches=in_order,
        batch_size=16,
        **identified(reference, options, versions, hashes),
        preprocessing=f"KerasHub's image converter of the preset, KerasHub "
        f"{package_version('keras-hub')}",
    )
