"""Compiling in a second thread what will be needed later, and forgetting what was
compiled before a process is full of it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def run_once_per_key(function: Callable[..., None]) -> Callable[..., None]:
    """`function` run at most once for each set of arguments; whoever calls while it
    runs waits until it is done.
    """
    started: dict[Hashable, Future] = {}
    lock = threading.Lock()

    @functools.wraps(function)
    def call(*args: Hashable) -> None:
        with lock:
            mine = args not in started
            future = started.setdefault(args, Future())
        if not mine:
            future.result()
            return
        try:
            function(*args)
        finally:
            future.set_result(None)

    return call


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


@contextlib.contextmanager
def precompile_in_thread(*calls: Callable[[], None]) -> Iterator[Callable[[], object]]:
    """Run the calls one after the other in another thread; yields a function that waits
    for all of them.

    What fails there is done, and fails, where it is needed. On the way out calls that
    have not begun are dropped.
    """
    pool = ThreadPoolExecutor(
        1
    )  # joined when the interpreter ends: a compiler must not be interrupted
    futures = [pool.submit(inherit_jax_config(call)) for call in calls]
    pool.shutdown(wait=False)
    try:
        yield lambda: wait(futures)
    finally:
        for future in futures:
            future.cancel()
