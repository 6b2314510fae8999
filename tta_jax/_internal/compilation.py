"""Precision in other threads, and forgetting what was compiled before a process is full
of it.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def evict_compiled_programs(most: int = 15_000) -> bool:
    """Drop all compiled programs if the process has more than so many memory maps;
    whether it had.

    Every compiled program maps memory, and Linux allows a process 65,530 maps: one that
    computes with very many shapes dies of them. For long loops of your own; what is
    needed again is compiled again, or read from jax's compilation cache.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") <= most:
        return False
    jax.clear_caches()
    gc.collect()
    return True


def inherit_jax_config(function: Callable[..., T]) -> Callable[..., T]:
    """`function` for another thread, with this one's precision and device: contexts of
    jax belong to a thread.
    """
    wide, device = jax.config.read("jax_enable_x64"), jax.config.jax_default_device  # pyright: ignore

    @functools.wraps(function)
    def run(*args: Any) -> T:
        with jax.enable_x64(wide), jax.default_device(device):
            return function(*args)

    return run
