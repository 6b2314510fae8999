"""Ground truth for an encoder that may change: full fine-tuning with early stopping."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax._internal.numbers import real_number, whole_number
from tta_jax._internal.text import one_line
from tta_jax._internal.typing import Array
from tta_jax._internal.warning import warn_of_data
from tta_jax.core.heads import SoftmaxHead
from tta_jax.data.encoders.base import Batch, Encoder, in_order
from tta_jax.data.examples import Examples, as_examples, digest
from tta_jax.data.extraction.adapters import as_encoder, as_rows, check_modality
from tta_jax.data.extraction.extract import copies, groups_with_copies
from tta_jax.data.extraction.pipeline import ready_item
from tta_jax.data.loading import open_data
from tta_jax.fitting.logistic_regression import fit_head
from tta_jax.probes import Judged, judge
from tta_jax.tasks.splits import Seed, fold_in_seed, seed_from_key
from tta_jax.tasks.standardizer import Standardizer
from tta_jax.tasks.task import Task

_READERS = 8
_CLIP_NORM = 1.0  # of gradients
# steps: Adam's first ones know no scale, and would undo what the encoder has learned
_WARM_UP = 10


@dataclasses.dataclass(frozen=True, eq=False)
class FineTuneResult(Judged):
    """Test figures of a fine-tuned encoder.

    Attributes:
      learning_rate: that was chosen, by validation loss.
      epoch: whose weights were kept; 0 where no step was better than the linear probe
        it starts from.
      validation_loss: of those weights, nats.
      history: for each learning rate its validation losses, from epoch 0 on, nats.
      seconds: wall time of it all.
      params: the encoder's weights, as its `build` gives them.
      head: the classifier on the encoder's raw features.
    """

    learning_rate: float
    epoch: int
    validation_loss: float
    history: dict[float, list[float]]
    seconds: float
    params: Any = dataclasses.field(repr=False)
    head: SoftmaxHead = dataclasses.field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The figures, without weights."""
        names = (
            f.name for f in dataclasses.fields(self) if f.name not in ("params", "head")
        )
        return {name: getattr(self, name) for name in names} | {"score": self.score}


def fine_tune(
    encoder: Any,
    train: Any,
    test: Any,
    *,
    train_labels: Any = None,
    test_labels: Any = None,
    prepare: Callable[[Any], Any] | None = None,
    method: str | None = None,
    learning_rates: Sequence[float] = (1e-5, 1e-4, 1e-3),
    epochs: int = 20,
    patience: int = 3,
    batch_size: int = 32,
    weight_decay: float = 1e-4,
    holdout: float = 0.2,
    key: jax.Array | Seed | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> FineTuneResult:
    """Train all weights of an encoder and a linear head on a task, and judge them on
    test items.

    The head begins as a linear probe of the frozen features, so training starts from
    there. AdamW, ten steps of warm-up, then a constant rate; after `patience` epochs
    without a better validation loss a run stops, and the best weights of all runs are
    kept.
    The encoder runs in evaluation mode: dropout is off and batch norms keep their
    statistics. All items are held in memory as the encoder takes them; copies of an
    item are on one side of the hold-out.

    Args:
      encoder: the name of a ready-made encoder, a Flax NNX module, or an `Encoder`
        whose `build` gives its weights.
      train, test: labelled items, as `extract_features` takes them; those without a
        label are left out, with a warning.
      train_labels, test_labels: where they do not say them.
      prepare, method: for your own modules, as in `extract_features`.
      learning_rates: those to try.
      epochs: passes over the training items at most.
      patience: epochs to wait for a better validation loss.
      batch_size: items (for packed texts: rows) a step.
      weight_decay: AdamW's, on weights of the encoder and the head.
      holdout: share of `train` that decides when to stop.
      key: decides the hold-out and the order of the items; `jax.random.key(0)` when
        None.
      progress: called with what is being done and the share done.

    Raises:
      ValueError: names the argument or the item, what was found and what to do.
    """
    begin = time.perf_counter()
    rates = _checked(learning_rates, epochs, patience, batch_size, weight_decay)
    data = [
        _labelled(
            as_examples(
                open_data(items) if isinstance(items, (str, os.PathLike)) else items,
                labels,
            )
        )
        for items, labels in ((train, train_labels), (test, test_labels))
    ]
    made = as_encoder(encoder, data[0].modality, prepare=prepare, method=method)
    if not made.jit:
        raise ValueError(
            f"encoder: {made.name!r} is a Python function, which has no gradient; give "
            "a Flax module"
        )
    labels, class_names = _same_classes(data)
    for examples in data:
        check_modality(made, examples)
    tell = progress or (lambda what, share: None)
    tell("reading", 0.0)
    ready = [
        _prepared(made, examples, argument)
        for argument, examples in zip(("train", "test"), data, strict=True)
    ]
    shapes = [np.shape(items[0]) for items in ready]
    if made.batches is in_order and shapes[0] != shapes[1]:
        raise ValueError(
            f"test: its items have shape {shapes[1]}, those of train {shapes[0]}; "
            "bring both to one shape"
        )
    seed = seed_from_key(jax.random.key(0) if key is None else key)
    tuner = _Tuner(made, batch_size, weight_decay)

    tell("linear probe", 0.0)
    frozen = tuner.features(ready[0])
    # Features of copies may differ in a last bit: the items themselves tell.
    groups = groups_with_copies(
        data[0].groups, copies([digest(item) for item in ready[0]])
    )
    task = Task.from_arrays(frozen, labels[0], class_names, data[0].name, groups=groups)
    learn, validate = task.split(holdout, fold_in_seed(seed, 0))
    tuner.scaler = Standardizer.fit(frozen[learn])
    start = _Weights(
        tuner.start,
        fit_head(dataclasses.replace(task, features=tuner.scaler(frozen)).take(learn)),
    )
    best, history = _Best(math.inf, 0, rates[0], start), {}
    for number, rate in enumerate(rates):

        def report(epoch, loss):
            return tell(
                f"rate {rate:g}, epoch {epoch}, validation loss {loss:.3f}",
                (number + epoch / epochs) / len(rates),
            )

        sides = _Sides(
            [ready[0][i] for i in learn],
            labels[0][learn],
            [ready[0][i] for i in validate],
            labels[0][validate],
        )
        found, losses = tuner.run(
            start, rate, sides, epochs, patience, fold_in_seed(seed, 1), report
        )
        history[rate] = losses
        best = found if found.loss < best.loss else best
    tell("test", 1.0)
    weights = best.weights
    judged = judge(tuner.log_probabilities(weights, ready[1]), labels[1])
    weight, bias = tuner.scaler.fold_into(
        np.asarray(weights.head.weight), np.asarray(weights.head.bias)
    )
    return FineTuneResult(
        **dataclasses.asdict(judged),
        learning_rate=best.rate,
        epoch=best.epoch,
        validation_loss=best.loss,
        history=history,
        seconds=time.perf_counter() - begin,
        params=tuner.join(weights.moving),
        head=SoftmaxHead(weight, bias),
    )


class _Weights(NamedTuple):
    """What is trained: the encoder's own weights, and a head on standardised
    features.
    """

    moving: list[Array]
    head: SoftmaxHead


class _Best(NamedTuple):
    loss: float
    epoch: int
    rate: float
    weights: _Weights


class _Sides(NamedTuple):
    """Items to learn from and to decide by, as the encoder takes them, with labels."""

    learn: list
    labels: np.ndarray
    validate: list
    validation_labels: np.ndarray


class _Tuner:
    """One encoder's programs, compiled once for all learning rates.

    Attributes:
      start: its weights as they are given.
      scaler: of the frozen features; it stays while they move. Set before a head is
        used.
    """

    def __init__(self, encoder: Encoder, size: int, decay: float):
        import optax

        apply, params = encoder.build()
        leaves, tree = jax.tree.flatten(params)
        moves = _trainable(params)
        if not any(moves):
            raise ValueError(
                f"encoder: {encoder.name!r} has no weights to train; give a Flax "
                "module, or an Encoder whose build gives them"
            )
        self._encoder, self._size = encoder, size
        self.start = [
            jnp.asarray(leaf) for leaf, here in zip(leaves, moves, strict=True) if here
        ]
        self.scaler: Standardizer = Standardizer.identity(1)
        self._rows: dict[Any, int] = {}

        def join(moving: list[Array]) -> Any:
            rest = iter(moving)
            return tree.unflatten(
                [
                    next(rest) if here else leaf
                    for leaf, here in zip(leaves, moves, strict=True)
                ]
            )

        def encode(moving: list[Array], arrays: Any) -> Array:
            return apply(join(moving), arrays).astype(jnp.float32)

        def logits(weights: _Weights, scaler: Standardizer, arrays: Any) -> Array:
            rows = encode(weights.moving, arrays)
            return (
                scaler(rows.reshape(-1, rows.shape[-1])) @ weights.head.weight.T
                + weights.head.bias[None]
            )

        def loss(
            weights: _Weights,
            scaler: Standardizer,
            arrays: Any,
            labels: Array,
            counts: Array,
        ) -> Array:
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits(weights, scaler, arrays), labels
            )
            return jnp.sum(losses * counts) / jnp.sum(counts)

        optimiser: Any = optax.chain(
            optax.clip_by_global_norm(_CLIP_NORM),
            optax.scale_by_adam(),
            optax.add_decayed_weights(decay),
        )

        def step(
            weights: _Weights,
            state: Any,
            rate: Array,
            scaler: Standardizer,
            arrays: Any,
            labels: Array,
            counts: Array,
        ):
            gradient = jax.grad(loss)(weights, scaler, arrays, labels, counts)
            with jax.numpy_dtype_promotion("standard"):
                moved, state = optimiser.update(gradient, state, weights)
            return jax.tree.map(
                lambda v, move: v - (rate * move).astype(v.dtype), weights, moved
            ), state

        self.join, self.encode, self._begin, self._step = (
            join,
            jax.jit(encode),
            optimiser.init,
            jax.jit(step),
        )
        self._log_p = jax.jit(
            lambda weights, scaler, arrays: jax.nn.log_softmax(
                logits(weights, scaler, arrays)
            )
        )

    def gather(self, items: list, call: Callable[[Any], Array]) -> np.ndarray:
        """`(m, ...)` rows of a call on batches, in the order of the items.

        Raises:
          ValueError: if one is not finite.
        """
        out: np.ndarray | None = None
        for batch in self._encoder.batches(items, self._size):
            rows = as_rows(np.asarray(call(batch.arrays)), batch, self._encoder)
            out = (
                np.empty((len(items), rows.shape[1]), np.float32)
                if out is None
                else out
            )
            if rows.shape[1] != out.shape[1]:
                raise ValueError(
                    f"encoder: {self._encoder.name!r} gives features of two widths; "
                    "all items need as many"
                )
            out[batch.items] = rows[batch.rows]
        if out is None or not np.isfinite(out).all():
            raise ValueError(
                f"encoder: {self._encoder.name!r} gives NaN or infinite values; check "
                "what it expects"
            )
        return out

    def features(self, items: list) -> np.ndarray:
        """`(m, d)` under the frozen encoder.

        Raises:
          ValueError: whatever goes wrong in its program, in one line.
        """
        try:
            return self.gather(items, lambda arrays: self.encode(self.start, arrays))
        except ValueError as error:
            if str(error).startswith("encoder: "):
                raise
            problem: Exception = error
        except Exception as error:
            problem = error
        says = one_line(problem)[:300]
        raise ValueError(
            f"encoder: {self._encoder.name!r} failed ({type(problem).__name__}: "
            f"{says}); check what it expects, and see prepare="
        ) from problem

    def log_probabilities(self, weights: _Weights, items: list) -> np.ndarray:
        """`(m, K)`."""
        return self.gather(
            items, lambda arrays: self._log_p(weights, self.scaler, arrays)
        )

    def run(
        self,
        start: _Weights,
        rate: float,
        sides: _Sides,
        epochs: int,
        patience: int,
        seed: Seed,
        report: Callable[[int, float], None],
    ) -> tuple[_Best, list[float]]:
        """One learning rate: the best epoch, and the validation losses from epoch 0 on;
        infinite where training diverged.
        """
        rng = np.random.default_rng(seed)
        weights, state, places = (
            start,
            self._begin(start),
            np.arange(len(sides.validate)),
        )

        def validation() -> float:
            try:
                log_p = self.log_probabilities(weights, sides.validate)
            except ValueError:
                return math.inf
            return float(-log_p[places, sides.validation_labels].mean(dtype=np.float64))

        losses, done = [validation()], 0
        best = _Best(losses[0], 0, rate, start)
        for epoch in range(1, epochs + 1):
            order = rng.permutation(len(sides.learn))
            for batch in self._encoder.batches(
                [sides.learn[i] for i in order], self._size
            ):
                labels, counts = self._row_labels(batch, sides.labels[order])
                done += 1
                now = np.float32(rate * min(1.0, done / _WARM_UP))
                weights, state = self._step(
                    weights, state, now, self.scaler, batch.arrays, labels, counts
                )
            losses.append(validation())
            report(epoch, losses[-1])
            if losses[-1] < best.loss:
                best = _Best(losses[-1], epoch, rate, weights)
            if epoch - best.epoch >= patience or not math.isfinite(losses[-1]):
                break
        return best, losses

    def _row_labels(
        self, batch: Batch, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels and counts for every row of the encoder's output: of one shape,
        whatever items are in it.
        """
        kind = tuple((v.shape, v.dtype.name) for v in jax.tree.leaves(batch.arrays))
        if kind not in self._rows:
            self._rows[kind] = math.prod(
                jax.eval_shape(self.encode, self.start, batch.arrays).shape[:-1]
            )
        rows, counts = (
            np.zeros(self._rows[kind], np.int32),
            np.zeros(self._rows[kind], np.float32),
        )
        rows[batch.rows], counts[batch.rows] = labels[batch.items], 1.0
        return rows, counts


def _trainable(params: Any) -> list[bool]:
    """Which leaves of an encoder's arrays are weights: floats, and of a Flax module its
    `Param`s alone.
    """
    from flax import nnx

    found: list[bool] = []
    for part in jax.tree.leaves(params, is_leaf=lambda v: isinstance(v, nnx.Variable)):
        weight = isinstance(part, nnx.Param) or not isinstance(part, nnx.Variable)
        found += [
            weight and jnp.issubdtype(leaf.dtype, jnp.floating)
            for leaf in jax.tree.leaves(part)
        ]
    return found


def _prepared(encoder: Encoder, examples: Examples, argument: str) -> list:
    """All items as the encoder's batches take them.

    Raises:
      ValueError: for an item that cannot be read or encoded; names it.
    """

    def one(place: int) -> Any:
        try:
            return ready_item(encoder, examples.items[place])
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{argument}: {examples.describe(place)} of {examples.name!r} "
                f"{one_line(error)}; repair or remove it"
            ) from None

    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(one, range(len(examples))))


def _labelled(examples: Examples) -> Examples:
    """The items with a label; a warning tells how many have none."""
    if examples.labelled is None:
        return examples
    warn_of_data(
        f"labels: {int((~examples.labelled).sum())} of {len(examples)} items of "
        f"{examples.name!r} have no label, so they are left out"
    )
    return dataclasses.replace(examples.take(examples.labelled), labelled=None)


def _same_classes(data: Sequence[Examples]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Labels of train and test in the classes of train.

    Raises:
      ValueError: for missing labels or a class that train does not have.
    """
    for argument, examples in zip(("train", "test"), data, strict=True):
        if examples.labels is None:
            raise ValueError(
                f"{argument}: {examples.name!r} has no labels; give {argument}_labels"
            )
    names = tuple(data[0].class_names or ())
    if len(names) < 2:
        raise ValueError(
            f"train: {data[0].name!r} has one class; there is nothing to tell apart"
        )
    place = {name: k for k, name in enumerate(names)}
    unknown = [name for name in data[1].class_names or () if name not in place]
    found = np.array([place.get(name, -1) for name in data[1].class_names or ()])[
        np.asarray(data[1].labels)
    ]
    if (found < 0).any():
        raise ValueError(
            f"test: class {unknown[0]!r} is none of those to learn: "
            f"{', '.join(names[:12])}"
        )
    return [np.asarray(data[0].labels), found], names


def _checked(
    rates: Any, epochs: int, patience: int, size: int, decay: float
) -> list[float]:
    rates = [rates] if np.ndim(rates) == 0 else list(rates)
    if not rates or not all(0 < real_number(rate) < math.inf for rate in rates):
        raise ValueError(f"learning_rates: found {rates!r}; give positive numbers")
    for name, value in (
        ("epochs", epochs),
        ("patience", patience),
        ("batch_size", size),
    ):
        if (whole_number(value) or 0) < 1:
            raise ValueError(
                f"{name}: found {value!r}; give a whole number of at least 1"
            )
    if not 0 <= real_number(decay) < math.inf:
        raise ValueError(f"weight_decay: found {decay!r}; give a number of at least 0")
    return [float(rate) for rate in rates]
