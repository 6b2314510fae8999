"""Compiling in a second thread what will be needed later."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future


def once(function: Callable[..., None]) -> Callable[..., None]:
    """`function` run at most once for each set of arguments; whoever calls while it runs waits until it is done."""
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


def in_background(*calls: Callable[[], None]) -> Future:
    """Run the calls one after the other in another thread."""
    future: Future = Future()

    def run():
        for call in calls:
            with contextlib.suppress(Exception):  # what fails ahead is done, and fails, where it is needed
                call()
        future.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    return future
