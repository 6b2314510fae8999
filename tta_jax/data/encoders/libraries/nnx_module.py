"""A Flax NNX module of the user's, with a checkpoint."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tta_jax.data.encoders.base import Encoder, in_order, of_module
from tta_jax.data.encoders.libraries.pictures import preprocessing_of
from tta_jax.data.encoders.libraries.reference import (
    ModelOptions,
    Reference,
    loading,
)


def load(
    reference: Reference, options: ModelOptions, packages: Sequence[str]
) -> Encoder:
    """Load a module from a Python file, which is run, and its weights.

    Args:
      reference: `FILE.py:FUNCTION`; the function takes nothing and returns an
        `nnx.Module`, or an `Encoder`, which is taken as it is. A module takes pictures
        where `preprocess` is set (then `size`, too), else arrays.
      options: `weights` is a checkpoint: a folder of Orbax, or a .safetensors file.
      packages: not needed; the module's program and arrays are hashed.

    Raises:
      ValueError: as `load_library_encoder`.
    """
    module = _made(reference)
    if isinstance(module, Encoder):
        if options.weights is not None or reference.settings:
            raise ValueError(
                f"encoder: {reference.text!r} makes an Encoder, which has its weights "
                "and settings; leave --weights and #... out"
            )
        return module
    if options.weights is not None:
        _restore(reference, module, Path(options.weights).expanduser())
    method = reference.settings.get("method")
    if method is None:
        method = "features" if hasattr(module, "features") else "__call__"
    if not callable(getattr(module, method, None)):
        raise ValueError(
            f"encoder: {type(module).__name__} of {reference.text!r} has no method "
            f"{method!r}"
        )
    pictures = "preprocess" in reference.settings
    prepare: Any = np.asarray
    if pictures:
        prepare = preprocessing_of(reference, (None, None), Path())
    return Encoder(
        name=type(module).__name__,
        modality="image" if pictures else "array",
        prepare=prepare,
        build=lambda: of_module(module, method),
        batches=in_order,
        batch_size=16,
        preprocessing=str(prepare) if pictures else "none",
    )


def _made(reference: Reference) -> Any:
    """What the function of the file returns."""
    from flax import nnx

    file, _, function = reference.model.rpartition(":")
    path = Path(file).expanduser()
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(
            f"encoder: {reference.text!r} names no Python file; write "
            "module:FILE.py:FUNCTION"
        )
    name = f"_tta_jax_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"encoder: {file!r} cannot be imported")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    with loading(reference):
        spec.loader.exec_module(loaded)
        if not callable(getattr(loaded, function, None)):
            raise ValueError(f"encoder: {file!r} has no function {function!r}")
        made = getattr(loaded, function)()
    if not isinstance(made, (nnx.Module, Encoder)):
        raise ValueError(
            f"encoder: {reference.text!r} returned {type(made).__name__}; an "
            "nnx.Module or an Encoder is needed"
        )
    return made


def _restore(reference: Reference, module: Any, weights: Path) -> None:
    """Put the arrays of a checkpoint into a module.

    Raises:
      ValueError: names `weights`, and an array that is missing, left over, or has
        another shape.
    """
    from flax import nnx

    _, keys, state = nnx.split(module, nnx.RngState, ...)
    flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    given = _checkpoint(reference, weights)
    # A checkpoint of all variables has the keys of random numbers, too.
    keyed = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(keys)}
    missing, extra = (
        sorted(set(flat) - set(given)),
        sorted(set(given) - set(flat) - keyed),
    )
    if missing or extra:
        name, what = (missing[0], "lacks") if missing else (extra[0], "has also")
        raise ValueError(
            f"weights: {str(weights)!r} {what} the array {name!r} of "
            f"{reference.text!r} ({len(missing)} missing, {len(extra)} left over); "
            "names are the module's attributes, joined by dots"
        )
    for name, leaf in flat.items():
        found, wanted = np.asarray(given[name]), leaf[...]
        if found.shape != wanted.shape:
            raise ValueError(
                f"weights: {str(weights)!r} has {name!r} of shape {found.shape}, the "
                f"module {wanted.shape}"
            )
        leaf[...] = jnp.asarray(found, wanted.dtype)
    nnx.update(module, nnx.merge_state(keys, state))


def _checkpoint(reference: Reference, weights: Path) -> dict[str, Any]:
    """The arrays of a checkpoint, by their names joined with dots."""
    if weights.suffix == ".safetensors" and weights.is_file():
        from tta_jax.data.encoders.weights import read_safetensors

        return dict(read_safetensors(weights))
    if not weights.is_dir():
        raise ValueError(
            f"weights: {str(weights)!r} is no folder of Orbax and no .safetensors file"
        )
    with loading(reference, "; the checkpoint has to be a tree of arrays"):
        import orbax.checkpoint as ocp

        with ocp.StandardCheckpointer() as reader:
            tree = reader.restore(weights.resolve())
        return dict(_flat(tree, ()))


def _flat(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries and lists, with their paths."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            # nnx.State as a plain tree keeps each array below "value".
            if key == "value" and not isinstance(value, dict):
                yield ".".join(path), value
            else:
                yield from _flat(value, (*path, str(key)))
    elif isinstance(tree, (list, tuple)):
        for key, value in enumerate(tree):
            yield from _flat(value, (*path, str(key)))
    else:
        yield ".".join(path), tree
