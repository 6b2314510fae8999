"""Features of every task of the study under every encoder: made once, kept as files."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.study.settings import Pair, Settings
from benchmarks.study.store import Unit
from benchmarks.study.tasks import open_task
from tta_jax._internal.files import write_atomically
from tta_jax.data import extract_features, load_features
from tta_jax.data.prepare import prepare_task
from tta_jax.tasks.task import Task

_VERSION = 2  # raised whenever items or halves of a target change


def thinned(task: Task, most: int, seed: int) -> Task:
    """At most so many items, in their order."""
    return task.take(_some(len(task), most, seed))


def _some(number: int, most: int, seed: int) -> np.ndarray:
    if number <= most:
        return np.arange(number)
    return np.sort(np.random.default_rng(seed).permutation(number)[:most])


class Grid:
    """`folder/ENCODER/TASK.PART.npz`."""

    def __init__(self, folder: Path, settings: Settings):
        self.folder, self.settings = folder, settings
        self._last: tuple[str, Any] = ("", None)

    def path(self, encoder: str, task: str, part: str) -> Path:
        return self.folder / encoder / f"{task}.{part}.npz"

    def task(self, encoder: str, task: str, part: str) -> Task:
        """Features as a `Task` named after the task."""
        return load_features(self.path(encoder, task, part)).task(task)

    def source(self, pair: Pair) -> Task:
        return self.task(pair.encoder, pair.source, "source")

    def target(self, pair: Pair) -> Task:
        """At most `pair_items`."""
        return thinned(
            self.task(pair.encoder, pair.target, "target"),
            self.settings.pair_items,
            self.settings.seed,
        )

    def halves(self, pair: Pair, key: Any) -> tuple[Task, Task]:
        """Target items that are seen with their labels, and those that figures are
        judged on; the key decides.
        """
        whole = self.task(pair.encoder, pair.target, "target")
        seen, judged = self._split(whole, key)
        return whole.take(seen), whole.take(judged)

    def places(self, pair: Pair, key: Any) -> tuple[np.ndarray, np.ndarray]:
        """Where the two halves stand among all items of the target's file."""
        return self._split(self.task(pair.encoder, pair.target, "target"), key)

    def key(self, repeat: int = 0) -> Any:
        """Of a split of the targets; the first one is that of all parts but `pairs`,
        which has more.
        """
        return jax.random.fold_in(jax.random.key(self.settings.seed), repeat)

    def unit(
        self,
        part: str,
        pair: Pair,
        run: Callable[[], list[dict[str, Any]]],
        *,
        of: str = "target",
        depends: dict[str, Any] | None = None,
        **about: Any,
    ) -> Unit:
        """Work on a pair; `of` is the part of the target that it reads, `depends` what
        its rows depend on beside the halves.
        """
        settings = self.settings
        reads = (
            self.path(pair.encoder, pair.source, "source"),
            self.path(pair.encoder, pair.target, of),
        )
        kept = {
            "seed": settings.seed,
            "holdout": settings.holdout,
            "items": settings.pair_items,
            "halves": _VERSION,
        } | (depends or {})
        return Unit(part, dataclasses.asdict(pair) | about, reads, kept, run)

    def _split(self, whole: Task, key: Any) -> tuple[np.ndarray, np.ndarray]:
        """Items and their labels decide, not what an encoder makes of them: halves are
        the same under all of them.
        """
        some = _some(len(whole), self.settings.pair_items, self.settings.seed)
        items = Task.from_arrays(
            np.arange(len(whole), dtype=np.float32)[:, None],
            whole.labels,
            groups=whole.groups,
        )
        seen, judged = items.take(some).split(self.settings.holdout, key)
        return some[seen], some[judged]

    def missing(self) -> list[tuple[str, str, str]]:
        return [key for key in self.settings.needed() if not self.path(*key).exists()]

    def prepare(self, wanted: Sequence[tuple[str, str, str]]) -> None:
        """Data of features that are to be made here; features that another
        configuration made are refused.
        """
        self._check_made()
        for data in sorted({self.settings.recipe(task).data for _, task, _ in wanted}):
            prepare_task(data)

    def make(self, wanted: Sequence[tuple[str, str, str]], tell=print) -> None:
        """Make features of the (encoder, task, part) that are wanted, encoder by
        encoder.
        """
        self.prepare(wanted)
        todo: dict[str, list[tuple[str, str]]] = {}
        for encoder, task, part in wanted:
            todo.setdefault(encoder, []).append((task, part))
        begin = time.perf_counter()
        for encoder, parts in todo.items():
            made = self.encoder(encoder)
            for task, part in parts:
                path = self.path(encoder, task, part)
                path.parent.mkdir(parents=True, exist_ok=True)
                # Trained encoders are cheap, and their identity is the training's.
                kept = isinstance(made, str)
                found = extract_features(
                    made,
                    self.examples(task, part, trained=not kept),
                    cache=kept,
                    name=task,
                    on_error="skip",
                    out=path,
                )
                tell(
                    f"{time.perf_counter() - begin:6.0f} s  {encoder}  {task} "
                    f"({part}): {found.features.shape}"
                )

    def _check_made(self) -> None:
        """Features are kept under names: those that another configuration made are
        refused.
        """
        settings, path = self.settings, self.folder / "made-of.json"
        names = sorted({task for _, task, _ in settings.needed()})
        now = {
            name: getattr(settings, name)
            for name in ("seed", "source_items", "target_items")
        }
        now |= {
            f"task {name}": dataclasses.asdict(settings.recipe(name)) for name in names
        }
        now |= {
            f"epochs of {group.encoder}": group.epochs for group in settings.trained
        }
        before = json.loads(path.read_text()) if path.exists() else {}
        if other := [
            name for name in now if name in before and before[name] != now[name]
        ]:
            raise SystemExit(
                f"{self.folder}: features of another configuration "
                f"({', '.join(other)}); give another --out"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(
            path,
            lambda stream: stream.write(json.dumps(before | now, indent=1).encode()),
        )

    def examples(self, task: str, part: str, *, trained: bool):
        """What an encoder is trained on is larger than what frozen ones look at; "more"
        is a larger target part.
        """
        settings = self.settings
        items = (
            settings.source_items
            if part == "more" or (trained and part == "source")
            else settings.target_items
        )
        return open_task(task, settings.recipe(task), part, items, settings.seed)

    def encoder(self, name: str):
        """The last one is kept: units of one encoder follow one another, and training
        one takes a minute.
        """
        if self._last[0] != name:
            self._last = (name, self._made(name))
        return self._last[1]

    def _made(self, name: str):
        for group in self.settings.trained:
            for source in group.sources:
                if group.encoder_of(source) == name:
                    data, seed = (
                        self.examples(source, "source", trained=True),
                        self.settings.seed,
                    )
                    if group.encoder == "bag":
                        from benchmarks.study.bag import bag_encoder, train_bag

                        made = bag_encoder(
                            train_bag(data, epochs=group.epochs, seed=seed)
                        )
                    else:
                        from tta_jax.data.encoders.small_cnn import (
                            cnn_encoder,
                            small_pictures,
                            train_cnn,
                        )

                        labels = np.asarray(data.labels)
                        made = cnn_encoder(
                            train_cnn(
                                small_pictures(data),
                                labels,
                                epochs=group.epochs,
                                seed=seed,
                            )
                        )
                    # Its name tells it from the same network trained on another source:
                    # their features are not one space.
                    return dataclasses.replace(made, name=name)
        return name
