"""Encoders of other libraries by name: `PREFIX:MODEL#SETTINGS`.

One file a library; none of them is imported before an encoder of it is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from tta_jax.data.encoders.base import Encoder
from tta_jax.data.encoders.libraries.reference import ModelOptions, Reference, loading


@dataclasses.dataclass(frozen=True)
class Library:
    """A library whose models are encoders.

    Attributes:
      load: makes the encoder of a reference; imports the file of this package.
      requires: the Python modules that it needs.
      packages: their distributions; the versions are part of an encoder's identity.
      model: what stands between the prefix and "#".
      settings: what may follow "#", with one line each.
      description: one line.
      refuses: fields of `ModelOptions` that mean nothing here, and why.
    """

    load: Callable[[Reference, ModelOptions, Sequence[str]], Encoder]
    requires: tuple[str, ...]
    packages: tuple[str, ...]
    model: str
    settings: dict[str, str]
    description: str
    refuses: dict[str, str] = dataclasses.field(default_factory=dict)

    def missing(self) -> list[str]:
        """List the modules that are not installed."""
        return [name for name in self.requires if find_spec(name) is None]


def _timm_models(*given: Any) -> Encoder:
    from tta_jax.data.encoders.libraries import timm_models

    return timm_models.load(*given)


def _transformers_models(*given: Any) -> Encoder:
    from tta_jax.data.encoders.libraries import transformers_models

    return transformers_models.load(*given)


def _sentence_transformers_models(*given: Any) -> Encoder:
    from tta_jax.data.encoders.libraries import sentence_transformers_models

    return sentence_transformers_models.load(*given)


def _torchvision_models(*given: Any) -> Encoder:
    from tta_jax.data.encoders.libraries import torchvision_models

    return torchvision_models.load(*given)


def _onnx_graph(*given: Any) -> Encoder:
    from tta_jax.data.encoders.libraries import onnx_graph

    return onnx_graph.load(*given)


def _keras_models(*given: Any) -> Encoder:
    from tta_jax.data.encoders.libraries import keras_models

    return keras_models.load(*given)


def _nnx_module(*given: Any) -> Encoder:
    from tta_jax.data.encoders.libraries import nnx_module

    return nnx_module.load(*given)


_PICTURES = {
    "preprocess": "imagenet, symmetric, unit, caffe or bytes, or a file like Hugging "
    "Face's preprocessor_config.json (default: the one beside the model)",
    "size": "of pictures in pixels, where the model leaves it open",
}

_IN_FOLDER = {"weights": "whose weights lie in its folder; name another folder"}
_NO_CODE = {"trust_remote_code": "which runs no code of its files; leave it out"}


def _refuses(why: str, *fields: str) -> dict[str, str]:
    return dict.fromkeys(fields, why)


LIBRARIES: dict[str, Library] = {
    "timm": Library(
        _timm_models,
        ("timm", "torch", "huggingface_hub"),
        ("timm", "torch", "torchvision"),
        "NAME.TAG, OWNER/REPO or FOLDER",
        {},
        "pictures; timm's models, with its preprocessing and their classifiers",
        {**_NO_CODE, **_IN_FOLDER},
    ),
    "hf": Library(
        _transformers_models,
        ("transformers", "torch", "huggingface_hub"),
        ("transformers", "torch", "tokenizers"),
        "OWNER/REPO or FOLDER",
        {
            "layer": "features of one hidden layer, such as -2",
            "layers": "mean, for the mean over all hidden layers",
            "pool": "over positions: mean, cls, last or max (default: the model's own)",
            "modality": "image or text, for models of both (default: image)",
        },
        "pictures or texts; models of transformers (AutoModel)",
        _IN_FOLDER,
    ),
    "st": Library(
        _sentence_transformers_models,
        ("sentence_transformers", "torch", "huggingface_hub"),
        ("sentence-transformers", "transformers", "torch", "tokenizers"),
        "OWNER/REPO or FOLDER",
        {},
        "texts; models of sentence-transformers",
        _IN_FOLDER,
    ),
    "torchvision": Library(
        _torchvision_models,
        ("torchvision", "torch"),
        ("torchvision", "torch"),
        "NAME, such as resnet50",
        {
            "tag": "of the weights, such as IMAGENET1K_V1 (default: the newest)",
            "layer": "a module whose output, averaged over positions, is taken "
            "(default: what enters the classifier)",
        },
        "pictures; classifiers of torchvision, with their preprocessing",
        _NO_CODE,
    ),
    "onnx": Library(
        _onnx_graph,
        ("onnxruntime", "onnx"),
        ("onnxruntime", "onnx"),
        "FILE.onnx",
        {
            "output": "a tensor of the graph (default: its only output)",
            "pool": "over positions, where it has any: mean or cls",
            **_PICTURES,
        },
        "pictures, or texts with tokenizer.json beside the file; ONNX Runtime",
        _refuses(
            "which an ONNX file does not need; leave it out",
            *("weights", "precision", "trust_remote_code"),
        ),
    ),
    "keras": Library(
        _keras_models,
        ("keras",),
        ("keras", "jax"),
        "FILE.keras, or a preset of KerasHub (name or folder)",
        {
            "layer": "whose output is taken (default: what enters the classifier)",
            **_PICTURES,
        },
        "pictures; Keras on the JAX backend",
        _refuses(
            "which JAX places and Keras' file decides; leave it out",
            *("weights", "device", "precision", "trust_remote_code"),
        ),
    ),
    "module": Library(
        _nnx_module,
        ("flax",),
        ("flax", "jax"),
        "FILE.py:FUNCTION, which returns an nnx.Module or an Encoder",
        {
            "method": "that gives features (default: features, or the call)",
            **_PICTURES,
        },
        "a Flax NNX module; --weights is its checkpoint (Orbax or safetensors)",
        _refuses(
            "which JAX places, and which runs your own code; leave it out",
            *("device", "precision", "trust_remote_code"),
        ),
    ),
}


def load_library_encoder(name: str, options: ModelOptions) -> Encoder:
    """Load an encoder of another library.

    Args:
      name: `PREFIX:MODEL#SETTINGS`, with a prefix of `LIBRARIES`.
      options: the device, precision and weights that were asked for.

    Raises:
      ValueError: names `encoder`, what was found and what to do: packages that are
        missing, a model that is not there or cannot be fetched, an unknown setting.
    """
    reference = Reference.parse(name)
    library = LIBRARIES[reference.prefix]
    if missing := library.missing():
        raise ValueError(
            f"encoder: {name!r} needs {', '.join(missing)}, which is not installed; "
            "install it with: pip install 'tta-jax[hub]'"
        )
    unknown = sorted(set(reference.settings) - set(library.settings))
    if unknown:
        known = ", ".join(library.settings) or "none"
        raise ValueError(
            f"encoder: {name!r} has a setting {unknown[0]!r}; those of "
            f"{reference.prefix}: are {known}"
        )
    for field, why in library.refuses.items():
        options.refuse(name, why, field)
    with loading(reference):
        return library.load(reference, options, library.packages)
