"""Texts under the models of sentence-transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tta_jax.data.encoders.base import Batch, Encoder, longest_first, text_of
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


def load(
    reference: Reference, options: ModelOptions, packages: Sequence[str]
) -> Encoder:
    """Load a sentence encoder: what its `encode` gives.

    Args:
      reference: a folder as `SentenceTransformer.save` writes it, or a repository.
      options: how it is run.
      packages: distributions whose versions count.

    Raises:
      ValueError: as `load_library_encoder`.
    """
    name = reference.model
    folder = model_folder(
        reference,
        name if "/" in name else f"sentence-transformers/{name}",
        "modules.json",  # static vectors have no config.json beside it
    )
    if not (folder / "modules.json").is_file():
        raise ValueError(
            f"encoder: {reference.text!r} has no modules.json of "
            "sentence-transformers; for a model of transformers write hf: for st:"
        )
    more = folder / "config_sentence_transformers.json"
    said = read_settings(more) if more.is_file() else {}
    prompt = said.get("default_prompt_name")

    def make() -> Any:
        with loading(reference, options.code_hint):
            import torch
            from sentence_transformers import SentenceTransformer

            device = _torch.chosen_device(options)
            dtype = _torch.chosen_dtype(options, device)
            model = SentenceTransformer(
                str(folder),
                device=str(device),
                trust_remote_code=options.trust_remote_code,
                local_files_only=True,
                model_kwargs={"dtype": torch.float32},
            )
            return model.eval().to(dtype)

    made = once(make)

    def apply(_: Any, texts: list[str]) -> np.ndarray:
        found = made().encode(
            texts,
            batch_size=len(texts),
            show_progress_bar=False,
            convert_to_numpy=False,
            convert_to_tensor=True,
        )
        return _torch.as_array(found)

    return Encoder(
        name=reference.name,
        modality="text",
        prepare=text_of,
        load=made,
        build=lambda: (apply, ()),
        batches=by_length,
        batch_size=8,
        chunk=512,
        **identified(reference, options, packages, [content_hash(folder)]),
        preprocessing=f"sentence-transformers' own, default prompt {prompt}",
        jit=False,
    )


def by_length(texts: Sequence[str], size: int) -> Iterator[Batch]:
    """Batches of texts, the longest first, so that few places are padded."""
    for items in longest_first(texts, size):
        yield Batch([texts[i] for i in items], items, np.arange(len(items)))
