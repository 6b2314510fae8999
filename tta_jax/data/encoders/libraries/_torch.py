"""How models in Torch are run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tta_jax.data.encoders.libraries.reference import ModelOptions


def chosen_device(options: ModelOptions) -> Any:
    """The `torch.device` that was asked for, or the best that there is.

    Raises:
      ValueError: names `device`; it is not there.
    """
    import torch

    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there = [f"cuda:{i}" for i in range(torch.cuda.device_count())] + there
    name = options.device or there[0]
    if name not in there and not (name == "cuda" and "cuda:0" in there):
        raise ValueError(
            f"device: found {name!r}; this machine has {', '.join(there)} for Torch"
        )
    return torch.device(name)


def chosen_dtype(options: ModelOptions, device: Any) -> Any:
    """The `torch.dtype` of weights and activations.

    Raises:
      ValueError: names `precision`; the device has it not.
    """
    import torch

    if options.precision == "float16" and device.type == "cpu":
        raise ValueError(
            "precision: found 'float16', which Torch does not support for all layers "
            "on a CPU; take float32 or bfloat16"
        )
    return getattr(torch, options.precision)


def place(model: Any, options: ModelOptions) -> Any:
    """The model in evaluation mode, on its device, in its precision."""
    device = chosen_device(options)
    dtype = chosen_dtype(options, device)
    return model.eval().requires_grad_(False).to(device=device, dtype=dtype)


def on_one_thread(prepare: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function, run on one of Torch's threads.

    Every thread that prepares items would have a team of threads of its own for small
    tensors. With more of them than cores OpenMP no longer waits actively, and the
    model, too, becomes slower by a third.
    """
    import torch

    threads = torch.get_num_threads()

    def run(item: Any) -> Any:
        torch.set_num_threads(1)  # of this thread, and of those that come
        try:
            return prepare(item)
        finally:
            torch.set_num_threads(threads)

    return run


def picture_function(model: Any, forward: Callable[[Any], Any]) -> Callable:
    """A function `(parameters, pictures) -> features` of NumPy arrays.

    Args:
      model: where it lies and its precision are those of its parameters.
      forward: from a tensor of pictures to one of features `(n, d)`.
    """
    import torch

    first = next(model.parameters())
    device, dtype = first.device, first.dtype

    def apply(_: Any, pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            given = torch.from_numpy(np.ascontiguousarray(pictures)).to(device)
            return as_array(forward(given.to(dtype)))

    return apply


def as_array(features: Any) -> np.ndarray:
    """A tensor as a float32 array."""
    return features.float().cpu().numpy()


def last_linear(model: Any) -> tuple[str, Any] | None:
    """The name and the module of the last linear layer, in the order of the modules."""
    import torch

    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    return found[-1] if found else None


def head_of(linear: Any) -> tuple[np.ndarray, np.ndarray]:
    """`(weight (K, d), bias (K,))` of a linear layer."""
    weight = as_array(linear.weight.detach())
    if linear.bias is None:
        return weight, np.zeros(len(weight), np.float32)
    return weight, as_array(linear.bias.detach())
