"""Pictures and texts under the models of transformers (`AutoModel`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tta_jax.data.encoders.base import Batch, Encoder, in_order, longest_first, text_of
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

_POOLS = ("mean", "cls", "last", "max")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")
_CLASS_TOKENS = ("cls_token", "class_embedding")  # what models call its parameter
_LONGEST = 8192  # tokens, where neither model nor tokenizer knows a limit


class _Model(NamedTuple):
    """A model in its place, what prepares its inputs, and whether its pooling layer
    came with weights.
    """

    model: Any
    prepare: Any
    pooler: bool


def load(
    reference: Reference, options: ModelOptions, packages: Sequence[str]
) -> Encoder:
    """Load a model of transformers.

    Features of pictures are the model's pooled output, where it has one whose weights
    are in the file; else the class token, where it has one; else the mean over
    positions. Features of texts are means over tokens (of models that read from left
    to right, the last token), or what a `1_Pooling` folder beside the model says.
    Models of pictures and texts give their projected features.

    Args:
      reference: a folder as `save_pretrained` writes it, or a repository.
      options: how it is run.
      packages: distributions whose versions count.

    Raises:
      ValueError: as `load_library_encoder`.
    """
    pool = reference.choice("pool", _POOLS)
    layers = reference.choice("layers", ("mean",))
    layer = _layer(reference)
    if layers is not None and layer is not None:
        raise ValueError(
            f"encoder: {reference.text!r} sets layer and layers; leave one out"
        )
    folder = model_folder(reference, reference.model)
    modality = _modality(reference, folder)
    config = read_settings(folder / "config.json")
    if modality == "text":
        pool = pool or _text_pool(reference, folder, config)
    made = once(lambda: _load(reference, options, folder, modality))
    took = "all layers" if layers else "the last layer" if layer is None else layer

    def forward(inputs: dict[str, Any]) -> Any:
        return _features(made(), inputs, modality, pool, layer, layers is not None)

    common: dict[str, Any] = {
        "name": reference.name,
        "modality": modality,
        "load": made,
        **identified(reference, options, packages, [content_hash(folder)]),
        "jit": False,
    }
    if modality == "image":
        return Encoder(
            prepare=lambda picture: made().prepare(picture),
            build=lambda: (
                _torch.picture_function(
                    made().model, lambda pixels: forward({"pixel_values": pixels})
                ),
                (),
            ),
            batches=in_order,
            batch_size=16,
            preprocessing=f"transformers' image processor {_processor(folder)}; "
            f"{took}, pooling {pool or 'of the model'}",
            **common,
        )
    return Encoder(
        prepare=text_of,
        build=lambda: (_text_function(made().model, forward), ()),
        batches=lambda texts, size: _tokens(made().prepare, texts, size),
        batch_size=32,
        chunk=512,
        preprocessing=f"transformers' tokenizer; {took}, pooling "
        f"{pool or 'of the model'}",
        **common,
    )


# -- what a folder says ----------------------------------------------------------------


def _layer(reference: Reference) -> int | None:
    said = reference.settings.get("layer")
    if said is None:
        return None
    try:
        return int(said)
    except ValueError:
        raise ValueError(
            f"encoder: {reference.text!r} has layer={said}; give a whole number, "
            "such as -2"
        ) from None


def _processor(folder: Path) -> dict[str, Any]:
    """The settings of the image processor, without what only names classes."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found = read_settings(folder / name)
            return found.get("image_processor", found)
    return {}


def _modality(reference: Reference, folder: Path) -> str:
    """Whether a model takes pictures or texts."""
    processor = _processor(folder)
    can = [
        kind
        for kind, there in (
            ("image", "image_processor_type" in processor or "image_mean" in processor),
            ("text", any((folder / name).is_file() for name in _TOKENIZERS)),
        )
        if there
    ]
    wanted = reference.choice("modality", ("image", "text"))
    if not can or (wanted is not None and wanted not in can):
        kind = {"image": "pictures", "text": "texts", None: "pictures or texts"}[wanted]
        raise ValueError(
            f"encoder: {reference.text!r} has nothing that prepares {kind} "
            "(preprocessor_config.json of an image processor, or tokenizer.json)"
        )
    return wanted or can[0]


def _text_pool(
    reference: Reference, folder: Path, config: dict[str, Any]
) -> str | None:
    """How features of tokens become one, as the model's own files say; None for models
    of pictures and texts, which project them.
    """
    if "text_config" in config and "vision_config" in config:
        return None
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file():
        return _said_pool(reference, read_settings(pooling))
    names = config.get("architectures") or [""]
    causal = str(names[0]).endswith(("ForCausalLM", "LMHeadModel"))
    return "last" if causal and not config.get("is_encoder_decoder") else "mean"


def _said_pool(reference: Reference, said: dict[str, Any]) -> str:
    """What a file of sentence-transformers' module `Pooling` says.

    Raises:
      ValueError: it is not done here.
    """
    start = "pooling_mode_"  # of the older form, with a truth value for each mode
    modes = [
        key[len(start) :] for key, on in said.items() if key.startswith(start) and on
    ]
    modes = [str(said["pooling_mode"])] if "pooling_mode" in said else modes
    names = {"lasttoken": "last", "mean": "mean", "cls": "cls", "max": "max"}
    known = names | {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
    if len(modes) != 1 or modes[0] not in known:
        raise ValueError(
            f"encoder: 1_Pooling of {reference.text!r} says "
            f"{', '.join(modes) or 'nothing'}; name one of {', '.join(_POOLS)} "
            "(#pool=mean), or write st: for hf:"
        )
    return known[modes[0]]


# -- the model -------------------------------------------------------------------------


def _load(
    reference: Reference, options: ModelOptions, folder: Path, modality: str
) -> _Model:
    with loading(reference, options.code_hint):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        own: dict[str, Any] = {
            "trust_remote_code": options.trust_remote_code,
            "local_files_only": True,
        }
        config = transformers.AutoConfig.from_pretrained(folder, **own)
        if getattr(config, "mask_ratio", 0):
            config.mask_ratio = 0.0  # of masked autoencoders, which hide patches
        model, facts = transformers.AutoModel.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, **own
        )
        made = {*facts["missing_keys"], *facts["mismatched_keys"]}
        made = {name if isinstance(name, str) else name[0] for name in made}
        if used := sorted(name for name in made if "pooler" not in name):
            raise ValueError(
                f"encoder: {reference.text!r} lacks weights of {len(used)} arrays, "
                f"e.g. {used[0]!r}, which would be random; its files belong to "
                "another architecture"
            )
        if modality == "text" and getattr(config, "is_encoder_decoder", False):
            model = model.get_encoder()
        if modality == "text" and model.main_input_name != "input_ids":
            raise ValueError(
                f"encoder: {reference.text!r} takes {model.main_input_name}; a model "
                "of pictures or texts is needed"
            )
        if modality == "image":
            processor = transformers.AutoImageProcessor.from_pretrained(folder, **own)
            prepare = _torch.on_one_thread(partial(_pixels, processor))
        else:
            prepare = _tokenizer(transformers, folder, config, own, model)
        return _Model(_torch.place(model, options), prepare, not made)


def _padding_places(model: Any) -> int:
    """How many of a model's first positions mean padding, as RoBERTa's two."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings"):
            padding = getattr(module, "padding_idx", None)
            return 0 if padding is None else padding + 1
    return 0


def _tokenizer(
    transformers: Any, folder: Path, config: Any, own: dict, model: Any
) -> Any:
    """The tokenizer, which pads on the right and knows its longest text."""
    found = transformers.AutoTokenizer.from_pretrained(folder, **own)
    config = getattr(config, "text_config", config)
    places = getattr(config, "max_position_embeddings", None) or _LONGEST
    if places < 1:  # of relative positions
        places = _LONGEST
    places -= _padding_places(model)
    found.model_max_length = min(found.model_max_length, places)
    found.padding_side = "right"
    if found.pad_token is None:
        found.pad_token = found.eos_token or found.unk_token
    return found


def _pixels(processor: Any, picture: Any) -> np.ndarray:
    found = processor(images=picture, return_tensors="np")
    pixels = np.asarray(found["pixel_values"])
    if pixels.ndim != 4 or len(pixels) != 1:
        raise ValueError(
            f"becomes an array of shape {pixels.shape}; one picture (1, c, h, w) is "
            "needed"
        )
    return pixels[0].astype(np.float32, copy=False)


def _tokens(tokenizer: Any, texts: Sequence[str], size: int) -> Iterator[Batch]:
    """Batches of token numbers, texts of similar lengths together, padded."""
    # All at once: the tokenizer has threads of its own.
    found = tokenizer(list(texts), truncation=True, return_attention_mask=False)
    numbers = [np.asarray(ids, np.int64) for ids in found["input_ids"]]
    for items in longest_first(numbers, size):
        longest = max(1, *(len(numbers[i]) for i in items))
        ids = np.full((len(items), longest), tokenizer.pad_token_id or 0, np.int64)
        mask = np.zeros_like(ids)
        for row, i in enumerate(items):
            ids[row, : len(numbers[i])] = numbers[i]
            mask[row, : len(numbers[i])] = 1
        arrays = {"input_ids": ids, "attention_mask": mask}
        yield Batch(arrays, items, np.arange(len(items)))


def _text_function(model: Any, forward: Callable[[dict], Any]) -> Callable:
    import torch

    device = next(model.parameters()).device

    def apply(_: Any, arrays: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            inputs = {k: torch.from_numpy(v).to(device) for k, v in arrays.items()}
            return _torch.as_array(forward(inputs))

    return apply


def _features(
    made: _Model,
    inputs: dict[str, Any],
    modality: str,
    pool: str | None,
    layer: int | None,
    all_layers: bool,
) -> Any:
    """Features `(n, d)` of a batch, a tensor."""
    model, mask = made.model, inputs.get("attention_mask")
    project = getattr(
        model,
        "get_image_features" if modality == "image" else "get_text_features",
        None,
    )
    hidden = layer is not None or all_layers
    if project is not None and pool is None and not hidden:
        found = project(**inputs)
        return getattr(found, "pooler_output", found)
    if project is not None:  # one of its two networks
        model = model.vision_model if modality == "image" else model.text_model
    out = model(**inputs, output_hidden_states=hidden)
    if hidden:
        states = out.hidden_states
        if layer is not None and not -len(states) <= layer < len(states):
            raise ValueError(
                f"encoder: found layer={layer}; the model has {len(states)} states, "
                f"0 to {len(states) - 1} or {-len(states)} to -1"
            )
        chosen = states if all_layers else [states[layer]]
        rows = [_pooled(made, state, mask, pool) for state in chosen]
        if len({tuple(row.shape) for row in rows}) > 1:
            raise ValueError(
                "encoder: the layers of the model have different numbers of features; "
                "name one (#layer=-2)"
            )
        return sum(rows[1:], rows[0]) / len(rows)
    pooled = getattr(out, "pooler_output", None)
    if modality == "image" and pool is None and made.pooler and pooled is not None:
        return pooled.flatten(1)
    return _pooled(made, out.last_hidden_state, mask, pool)


def _pooled(made: _Model, state: Any, mask: Any, pool: str | None) -> Any:
    """One row for each item, of its positions."""
    if state.ndim == 4:  # maps
        if pool not in (None, "mean"):
            raise ValueError(
                f"encoder: found pool={pool}; the model gives maps, of which only the "
                "mean is taken; leave pool out"
            )
        return state.mean((2, 3))
    if pool is None:
        names = [name for name, _ in made.model.named_parameters()]
        known = any(sign in name for name in names for sign in _CLASS_TOKENS)
        pool = "cls" if mask is None and known else "mean"
    if pool == "cls":
        return state[:, 0]
    if mask is None:
        return {"mean": state.mean(1), "last": state[:, -1], "max": state.amax(1)}[pool]
    if pool == "last":
        return state[range(len(state)), mask.sum(1) - 1]
    shown = mask[..., None].to(state.dtype)
    if pool == "max":
        return state.masked_fill(shown == 0, -float("inf")).amax(1)
    return (state * shown).sum(1) / shown.sum(1).clamp(min=1)
