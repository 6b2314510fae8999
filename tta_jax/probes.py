"""Ground truth for a frozen encoder: how well classifiers fitted to the target itself
do, one task or many at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax._internal.numbers import real_number, whole_number
from tta_jax._internal.padding import pad_length, pad_rows
from tta_jax._internal.serialization import storable
from tta_jax._internal.typing import Array
from tta_jax.core.heads import SoftmaxHead, empty_head, own_losses
from tta_jax.fitting.logistic_regression import minimise_cross_entropy
from tta_jax.tasks.splits import Seed, row_hashes, seed_from_key, split_groups
from tta_jax.tasks.standardizer import Standardizer
from tta_jax.tasks.task import Task

CALIBRATION_BINS = 15
NEIGHBOURS = (1, 3, 5, 10, 20, 50)  # among which k-NN chooses
DISTANCES = ("euclidean", "cosine")
_CLIP = 5.0  # standardised features are cut there
FOLDS = 5
# Weight decays that a linear probe chooses from, in half decades; where the best is at
# an end, others are tried, too: weaker ones twice, stronger ones once, beyond which a
# head has no weights worth the name.
DECAYS = (3.0, 1.0, 0.3, 0.1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
_WIDENINGS, _FARTHER, _STRONGEST = 2, 1e3, 3e3
# A probe's head in cross-validation: at most so many steps from the one before.
_STEPS, _TOLERANCE = 200, 3e-4
TRUTH_FIGURES = ("accuracy", "loss", "calibration_error", "brier", "score", "items")
_CELLS = 1 << 24  # distances held at once


@dataclasses.dataclass(frozen=True)
class Judged:
    """Test figures of a classifier.

    Attributes:
      loss: mean log loss, nats.
      accuracy: share of items classified correctly.
      calibration_error: expected calibration error of the top class, 15 bins of equal
        width (Guo et al. 2017).
      brier: mean squared distance of the probabilities from the one-hot label, in [0,
        2].
      items: how many were judged.
      prior_entropy: what guessing by the test items' class shares costs, nats.
    """

    loss: float
    accuracy: float
    calibration_error: float
    brier: float
    items: int
    prior_entropy: float

    @property
    def score(self) -> float:
        """`1 - loss / prior_entropy`: 1 perfect, 0 guessing; NaN where one class is all
        there is.
        """
        return (
            1 - self.loss / self.prior_entropy
            if self.prior_entropy > 0
            else float("nan")
        )


@dataclasses.dataclass(frozen=True)
class ProbeResult(Judged):
    """A linear probe's.

    Attributes:
      l2: the weight decay that was chosen.
      widened: how often the decays were continued beyond an end that was best.
      at_end: whether the best is at an end all the same: it is no minimum.
    """

    l2: float
    widened: int = 0
    at_end: bool = False


@storable
@dataclasses.dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear probe that is fitted.

    Attributes:
      standardizer: of raw features; clips.
      head: `(K, d)`, on standardised features.
      l2: the weight decay that was chosen.
      widened, at_end: as of `ProbeResult`.
    """

    standardizer: Standardizer
    head: SoftmaxHead
    l2: float
    widened: int = 0
    at_end: bool = False

    def log_probabilities(self, features: np.ndarray) -> np.ndarray:
        """Log probabilities `(n, K)` of raw features `(n, d)`, in float64 on the host.

        Args:
          features: of items.
        """
        return log_probabilities(
            self.head, np.asarray(self.standardizer(np.asarray(features)))
        )


@dataclasses.dataclass(frozen=True)
class KnnResult(Judged):
    """k nearest neighbours'; `k` was chosen."""

    k: int


def judge(log_p: np.ndarray, labels: np.ndarray) -> Judged:
    """Figures of log probabilities `(n, K)` of items with labels `(n,)`, in float64 on
    the host.
    """
    log_p, labels = np.asarray(log_p, np.float64), np.asarray(labels)
    items = np.arange(len(labels))
    p = np.exp(log_p)
    right = log_p.argmax(1) == labels
    confidence = p.max(1)
    place = np.minimum(
        (confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1
    )
    gaps = np.bincount(place, confidence - right, CALIBRATION_BINS)
    squares = (p**2).sum(1) - 2 * p[items, labels] + 1
    shares = np.bincount(labels) / len(labels)
    entropy = float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    return Judged(
        float(-log_p[items, labels].mean()),
        float(right.mean()),
        float(np.abs(gaps).sum() / len(labels)),
        float(squares.mean()),
        len(labels),
        entropy,
    )


def loss_and_accuracy(
    head: SoftmaxHead, features: np.ndarray, labels: np.ndarray
) -> tuple[float, float]:
    """Mean loss (nats) and accuracy of a head on `(n, d)` features in its coordinates,
    on the host.
    """
    found = judge(log_probabilities(head, features), labels)
    return found.loss, found.accuracy


def log_probabilities(head: SoftmaxHead, features: np.ndarray) -> np.ndarray:
    """`(n, K)` in float64 from the logits: probabilities of float32 vanish beyond 103
    nats.
    """

    def wide(v):
        return np.asarray(v, np.float64)

    logits = wide(features) @ wide(head.weight).T + wide(head.bias)[None]
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


# -- linear probe ----------------------------------------------------------------------


def linear_probe(
    train: Task | Sequence[Task],
    test: Task | Sequence[Task],
    l2: float | None = None,
    *,
    folds: int = FOLDS,
    key: Array | Seed | None = None,
) -> Any:
    """Multinomial logistic regression on standardised features, weight decay by
    cross-validation of converged heads unless given.

    The decays are 3e-5 to 3 in half decades. Where the best one is at an end, they are
    continued beyond it.

    Args:
      train, test: a task each; or as many of both, which are then fitted side by side,
        in batches of one shape.
      l2: weight decay on standardised features.
      folds: of the cross-validation; groups and exact copies stay together. Fewer where
        classes are too small, the middle decay where none can be made.
      key: decides the folds; `jax.random.key(0)` when None.

    Returns:
      A `ProbeResult`, or a list of them.

    Raises:
      ValueError: if the tasks have different classes or feature counts or no labels,
        `l2` is not positive or `folds` below 2.
    """
    if l2 is not None and not 0 < real_number(l2) < np.inf:
        raise ValueError(f"l2: found {l2!r}; give a positive number or None")
    if (whole_number(folds) or 0) < 2:
        raise ValueError(f"folds: found {folds!r}; give a whole number of at least 2")
    pairs, many = _pairs(train, test)
    fitted = fit_probes([learn for learn, _ in pairs], l2, folds=folds, key=key)
    results = []
    for probe, (_, held) in zip(fitted, pairs, strict=True):
        known = np.asarray(held.labelled)
        found = judge(
            probe.log_probabilities(np.asarray(held.features)[known]),
            np.asarray(held.labels)[known],
        )
        results.append(
            ProbeResult(
                **dataclasses.asdict(found),
                l2=probe.l2,
                widened=probe.widened,
                at_end=probe.at_end,
            )
        )
    return results if many else results[0]


def fit_probes(
    tasks: Sequence[Task],
    l2: float | None = None,
    *,
    folds: int = FOLDS,
    key: Array | Seed | None = None,
) -> list[LinearProbe]:
    """Fit a linear probe to each task, as `linear_probe` does; tasks of one padded
    shape are one batch.

    Args:
      tasks: with at least two classes that have an item.
      l2, folds, key: as for `linear_probe`.
    """
    seed = seed_from_key(jax.random.key(0) if key is None else key)
    ready = [_Ready.of(task, folds if l2 is None else 0, seed) for task in tasks]
    results: list[LinearProbe | None] = [None] * len(ready)
    for places in _alike(
        [(*one.features.shape, one.classes, one.features.dtype.name) for one in ready]
    ):
        stacked = [
            np.stack([getattr(ready[i], name) for i in places])
            for name in ("features", "labels", "weights", "fold")
        ]
        classes = ready[places[0]].classes
        if l2 is None:
            chosen = _choose_decays(stacked, classes, folds)
        else:
            chosen = [_Decay(l2, 0, False)] * len(places)
        decays = np.array([one.l2 for one in chosen], stacked[0].dtype)
        heads = jax.device_get(_heads(*stacked[:3], decays, classes=classes))
        for row, place in enumerate(places):
            one = ready[place]
            weight = heads.weight[row]
            if one.basis is not None:
                weight = weight @ one.basis.T
            head = SoftmaxHead(weight, heads.bias[row])
            results[place] = LinearProbe(
                one.standardizer, head, **chosen[row]._asdict()
            )
    return [probe for probe in results if probe is not None]


class _Decay(NamedTuple):
    """Fields of a `LinearProbe`."""

    l2: float
    widened: int
    at_end: bool


def _choose_decays(stacked: list[np.ndarray], classes: int, folds: int) -> list[_Decay]:
    """Choose a decay for each of several tasks of one shape; the middle one where
    nothing can be held out.
    """
    number = len(stacked[0])
    found: list[_Decay] = [_Decay(DECAYS[len(DECAYS) // 2], 0, False)] * number
    least = np.full(number, np.inf)
    grids = np.tile(DECAYS, (number, 1))
    left = np.arange(number)
    for widened in range(_WIDENINGS + 1):
        # All rows again, so that no other shape is compiled.
        losses = np.array(_losses(*stacked, grids, classes=classes, folds=folds))
        losses = np.where(np.isfinite(losses), losses, np.inf)
        again = []
        for row in left:
            best = int(losses[row].argmin())
            if not losses[row, best] < least[row]:  # the end was the minimum
                found[row] = found[row]._replace(widened=widened, at_end=False)
                continue
            least[row] = losses[row, best]
            ends = {0, len(DECAYS) - 1}
            if grids[row, 0] != DECAYS[0]:  # of a grid that was moved, the outer one
                ends -= {len(DECAYS) - 1 if grids[row, 0] > DECAYS[0] else 0}
            if grids[row, 0] >= _STRONGEST:
                ends = set()
            found[row] = _Decay(float(grids[row, best]), widened, best in ends)
            if best in ends:
                again.append(row)
                grids[row] *= _FARTHER if best == 0 else 1 / _FARTHER
        left = np.array(again, int)
        if not again:
            break
    return found


class _Ready(NamedTuple):
    """A task to learn from, standardised and padded.

    Attributes:
      features, labels, weights: of the items; weight 0 for padding.
      fold: `(n,)` fold in which an item is held out; -1 for never.
      classes: K.
      standardizer: of raw features.
      basis: `(d, p)` of the coordinates of `features` where there are fewer items than
        features, else None.
    """

    features: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    fold: np.ndarray
    classes: int
    standardizer: Standardizer
    basis: np.ndarray | None

    @classmethod
    def of(cls, task: Task, folds: int | None, seed: Seed) -> _Ready:
        """Prepare a task; with `folds` None for neighbours, else for a head."""
        standardizer = Standardizer.fit(np.asarray(task.features), clip=_CLIP)
        x = np.asarray(standardizer(np.asarray(task.features)))
        basis = None
        if folds is not None and len(x) < x.shape[1]:
            # A head that is fitted lies in the span of the items.
            basis = np.linalg.qr(x.T)[0]
            x = x @ basis
        size = pad_length(len(x))
        fold = deal_folds(task, folds, seed) if folds else np.full(len(x), -1)
        return cls(
            pad_rows(x, size),
            pad_rows(np.asarray(task.labels), size),
            pad_rows(np.asarray(task.labelled).astype(x.dtype), size),
            pad_rows(fold.astype(np.int32) + 1, size) - 1,
            task.num_classes,
            standardizer,
            basis,
        )


def deal_folds(task: Task, number: int, seed: Seed) -> np.ndarray:
    """Fold of each item, `(n,)`; as many as can be made, all -1 where none can."""
    for count in range(number, 1, -1):
        try:
            parts = list(task.folds(count, seed))
        except ValueError:
            continue
        fold = np.full(len(task), -1)
        for place, (_, held) in enumerate(parts):
            fold[held] = place
        return fold
    return np.full(len(task), -1)


@partial(jax.jit, static_argnames=("classes", "folds"))
def _losses(features, labels, weights, fold, decays, *, classes: int, folds: int):
    """Cross-validated losses of many tasks of one shape at their decays, `(tasks, p)`,
    one task after the other.
    """

    def one(row):
        x, y, w, part, grid = row
        return cross_validated(x, y, w, part, grid, classes, folds)

    decays = decays.astype(features.dtype)
    return jax.lax.map(one, (features, labels, weights, fold, decays))


@partial(jax.jit, static_argnames=("classes",))
def _heads(features, labels, weights, decays, *, classes: int):
    """Heads of many tasks of one shape, each at its decay, with a leading axis."""

    def one(row):
        x, y, w, decay = row
        active = jnp.zeros_like(w, shape=classes).at[y].add(w) > 0
        start = empty_head(classes, x.shape[1], x.dtype)
        return minimise_cross_entropy(start, x, y, w, active, decay, steps=300)

    return jax.lax.map(one, (features, labels, weights, decays))


def cross_validated(
    features: Array,
    labels: Array,
    weights: Array,
    fold: Array,
    decays: Array,
    classes: int,
    folds: int,
    *,
    steps: int = _STEPS,
    tolerance: float = _TOLERANCE,
) -> Array:
    """Mean held-out loss (nats) of converged heads at each decay, over the items that
    are held out in some fold; pure.

    Classes that a fold's training part does not know cost an infinite loss.

    Args:
      features, labels, weights: `(n, d)`, `(n,)`, `(n,)`; weight 0 for padding.
      fold: `(n,)` in which of the `folds` an item is held out; -1 for never.
      decays: `(p,)` falling; each head begins at the one before.
      classes, folds: numbers, static.
      steps, tolerance: as for `minimise_cross_entropy`.

    Returns:
      Losses `(p,)`; NaN where nothing is held out.
    """
    start = empty_head(classes, features.shape[1], features.dtype)
    one_hot = jax.nn.one_hot(labels, classes, dtype=features.dtype) * weights[:, None]

    def one(number):
        held = jnp.where(fold == number, weights, 0.0)
        learns = weights - held
        active = jnp.sum(one_hot * learns[:, None], axis=0) > 0

        def at(head, decay):
            head = minimise_cross_entropy(
                head,
                features,
                labels,
                learns,
                active,
                decay,
                steps=steps,
                tolerance=tolerance,
            )
            losses = own_losses(head, features, labels, active)
            return head, jnp.sum(jnp.where(held > 0, held * losses, 0.0))

        _, losses = jax.lax.scan(at, start, decays)
        size = jnp.sum(held)
        return jnp.where(size > 0, losses, 0.0), size

    losses, sizes = jax.lax.map(one, jnp.arange(folds, dtype=fold.dtype))
    return jnp.sum(losses, axis=0) / jnp.sum(sizes)


# -- nearest neighbours ----------------------------------------------------------------


def knn(
    train: Task | Sequence[Task],
    test: Task | Sequence[Task],
    k: int | None = None,
    *,
    distance: str = "euclidean",
) -> Any:
    """k nearest neighbours on standardised features; the k of least leave-one-out loss
    on the training items unless given.

    Class probabilities are `(votes + training share) / (k + 1)`, so no class costs an
    infinite loss. Exact copies and items of one group are no neighbours of each other
    while k is chosen.

    Args:
      train, test: a task each; or as many of both, which are then judged side by side,
        in batches of one shape.
      k: neighbours.
      distance: "euclidean" or "cosine".

    Returns:
      A `KnnResult`, or a list of them.

    Raises:
      ValueError: if the tasks have different classes or feature counts or no labels, or
        `k` or `distance` is none.
    """
    if k is not None and (whole_number(k) or 0) < 1:
        raise ValueError(f"k: found {k!r}; give a whole number of at least 1, or None")
    if distance not in DISTANCES:
        raise ValueError(
            f"distance: found {distance!r}; choose one of {', '.join(DISTANCES)}"
        )
    pairs, many = _pairs(train, test)
    ready = [
        _Ready.of(learn, None, seed_from_key(jax.random.key(0))) for learn, _ in pairs
    ]
    known = [np.asarray(held.labelled) for _, held in pairs]
    judged = [
        np.asarray(one.standardizer(np.asarray(held.features)[mask]))
        for one, mask, (_, held) in zip(ready, known, pairs, strict=True)
    ]
    results: list[KnnResult | None] = [None] * len(ready)
    kinds = [
        (
            *one.features.shape,
            pad_length(len(test)),
            one.classes,
            one.features.dtype.name,
        )
        for one, test in zip(ready, judged, strict=True)
    ]
    for places in _alike(kinds):
        size = pad_length(len(judged[places[0]]))
        rows = [
            (
                ready[i].features,
                ready[i].labels,
                ready[i].weights,
                pad_rows(judged[i], size),
                pad_rows(split_groups(pairs[i][0]), len(ready[i].features)),
            )
            for i in places
        ]
        stacked = [np.stack(column) for column in zip(*rows, strict=True)]
        options = np.asarray([k] if k else NEIGHBOURS, np.int32)
        found = _neighbours(
            *stacked,
            options,
            classes=ready[places[0]].classes,
            most=int(options.max()),
            cosine=distance == "cosine",
        )
        shares, chosen = jax.device_get(found)
        for row, place in enumerate(places):
            held, mask = pairs[place][1], known[place]
            log_p = np.log(np.asarray(shares[row][: len(judged[place])], np.float64))
            results[place] = KnnResult(
                **dataclasses.asdict(judge(log_p, np.asarray(held.labels)[mask])),
                k=int(options[chosen[row]]),
            )
    return results if many else results[0]


@partial(jax.jit, static_argnames=("classes", "most", "cosine"))
def _neighbours(
    features,
    labels,
    weights,
    test,
    groups,
    options,
    *,
    classes: int,
    most: int,
    cosine: bool,
):
    def one(x, y, w, z, group):
        if len(options) > 1:
            losses, _ = leave_one_out(
                x, y, w, group, options, classes, most=most, cosine=cosine
            )
            best = jnp.argmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf))
        else:
            best = jnp.zeros((), int)
        shares = vote_shares(
            x, y, w, z, None, options, classes, most=most, cosine=cosine
        )
        return shares[best], best

    return jax.lax.map(lambda row: one(*row), (features, labels, weights, test, groups))


def vote_shares(
    features: Array,
    labels: Array,
    weights: Array,
    queries: Array,
    groups: tuple[Array, Array] | None,
    options: Array,
    classes: int,
    *,
    most: int,
    cosine: bool = False,
) -> Array:
    """`(votes + share) / (k + 1)` of each class among the k nearest items, for each k
    of `options`: `(p, m, K)`; pure.

    Args:
      features, labels, weights: of the items that vote, `(n, d)`, `(n,)`, `(n,)`;
        weight 0 for padding.
      queries: `(m, d)`.
      groups: indices `(n,)` and `(m,)`; items do not vote on queries of their group.
        None: all vote.
      options: `(p,)` numbers of neighbours, at most `most`, static. Where fewer items
        can vote, all of them do.
      cosine: by the angle in place of the distance.
    """
    dtype = features.dtype

    def scaled(v):
        return v / jnp.sqrt(
            jnp.maximum(jnp.sum(v**2, axis=1, keepdims=True), jnp.finfo(dtype).tiny)
        )

    if cosine:
        features, queries = scaled(features), scaled(queries)
    one_hot = jax.nn.one_hot(labels, classes, dtype=dtype) * weights[:, None]
    prior = jnp.sum(one_hot, axis=0) / jnp.sum(weights)
    most = min(most, features.shape[0])
    square = jnp.sum(features**2, axis=1)
    tile = max(
        1, min(queries.shape[0], _CELLS // max(features.shape[0], most * classes))
    )

    def vote(rows):
        z, mine = rows
        near = square[None] - 2 * z @ features.T
        votes = weights[None] > 0
        if groups is not None:
            votes = votes & (groups[0][None] != mine[:, None])
        height, place = jax.lax.top_k(jnp.where(votes, -near, -jnp.inf), most)
        counted = jnp.cumsum(
            jnp.where(jnp.isfinite(height)[..., None], one_hot[place], 0.0), axis=1
        )
        chosen = counted[:, jnp.minimum(options, most) - 1]  # (tile, p, K)
        return (chosen + prior[None, None]) / (
            jnp.sum(chosen, axis=2, keepdims=True) + 1
        )

    owners = jnp.zeros(queries.shape[0], jnp.int32) if groups is None else groups[1]
    missing = -queries.shape[0] % tile
    padded = jnp.pad(queries, ((0, missing), (0, 0))), jnp.pad(owners, (0, missing))
    blocks = jax.tree.map(lambda v: v.reshape(-1, tile, *v.shape[1:]), padded)
    shares = jax.lax.map(vote, blocks).reshape(-1, len(options), classes)[
        : queries.shape[0]
    ]
    return jnp.swapaxes(shares, 0, 1)


def leave_one_out(
    features: Array,
    labels: Array,
    weights: Array,
    groups: Array | None,
    options: Array,
    classes: int,
    *,
    most: int,
    cosine: bool = False,
) -> tuple[Array, Array]:
    """Loss (nats) and accuracy of each item judged by all others outside its group,
    `(p,)` each; arguments as in `vote_shares`.
    """
    mine = jnp.arange(features.shape[0]) if groups is None else groups
    shares = vote_shares(
        features,
        labels,
        weights,
        features,
        (mine, mine),
        options,
        classes,
        most=most,
        cosine=cosine,
    )
    own = jnp.take_along_axis(shares, labels[None, :, None], axis=2)[..., 0]
    total = jnp.sum(weights)
    loss = -jnp.sum(jnp.where(weights[None] > 0, jnp.log(own), 0.0), axis=1) / total
    right = (jnp.argmax(shares, axis=2).astype(labels.dtype) == labels[None]).astype(
        features.dtype
    )
    return loss, jnp.sum(right * weights[None], axis=1) / total


# -- many tasks as rows ----------------------------------------------------------------


def ground_truth(
    tasks: Sequence[Task],
    test: Sequence[Task] | None = None,
    *,
    by: str = "linear_probe",
    holdout: float = 0.25,
    key: Array | Seed | None = None,
) -> tuple[list[dict[str, Any]], list[Task]]:
    """Test figures of a probe for every task, what a score should have said: rows for
    `evaluate`; and the parts that learned.

    Args:
      tasks: to learn from.
      test: to judge on, one for each; a share of each task is held out when None.
      by: "linear_probe" or "knn".
      holdout: that share; groups and exact copies stay together.
      key: decides splits and folds; `jax.random.key(0)` when None.

    Returns:
      Rows `encoder, target, accuracy, loss, calibration_error, brier, score, items,
      reason`; figures are None, with a reason, for a task that cannot be probed. And
      the parts of the tasks that learned: scores should see no more.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    if by not in ("linear_probe", "knn"):
        raise ValueError(f"by: found {by!r}; choose linear_probe or knn")
    for argument, given in (("tasks", tasks), ("test", test or ())):
        if isinstance(given, (Task, Mapping)) or not all(
            isinstance(one, Task) for one in given
        ):
            raise ValueError(f"{argument}: give a list of tasks")
    if test is None and not 0 < real_number(holdout) < 1:
        raise ValueError(f"holdout: found {holdout!r}; give a share between 0 and 1")
    if test is not None and len(test) != len(tasks):
        raise ValueError(
            f"test: found {len(test)} tasks for {len(tasks)} to learn from; give one "
            "for each"
        )
    seed = seed_from_key(jax.random.key(0) if key is None else key)
    pairs: list[tuple[Task, Task]] = []
    reasons: dict[int, str] = {}
    for place, task in enumerate(tasks):
        pair = (task, task if test is None else test[place])
        try:
            _check_pair(*pair)
            if (task.counts > 0).sum() < 2:
                raise ValueError(
                    f"task {task.name!r} has one class; there is nothing to tell apart"
                )
            if test is None:
                learn, held = task.split(holdout, seed)
                pair = (task.take(learn), task.take(held))
            else:
                seen = _shared(*pair)
                if seen:
                    raise ValueError(
                        f"test: {seen} items of task {task.name!r} are among those to "
                        "learn from; take them out"
                    )
        except ValueError as error:
            reasons[place] = str(error)
        pairs.append(pair)
    good = [pairs[place] for place in range(len(pairs)) if place not in reasons]
    learns, judged = [learn for learn, _ in good], [held for _, held in good]
    results = iter(
        linear_probe(learns, judged, key=seed)
        if by == "linear_probe"
        else knn(learns, judged)
    )
    rows = []
    for place, (learn, _) in enumerate(pairs):
        found = None if place in reasons else next(results)
        figures = {name: getattr(found, name, None) for name in TRUTH_FIGURES}
        rows.append(
            {
                "encoder": learn.encoder,
                "target": learn.name,
                **figures,
                "reason": reasons.get(place, ""),
            },
        )
    return rows, [learn for learn, _ in pairs]


def _shared(train: Task, test: Task) -> int:
    """How many test items are exact copies of training items."""
    known, judged = (
        row_hashes(np.ascontiguousarray(one.features)) for one in (train, test)
    )
    return int(np.isin(judged, known).sum())


# -- what both share -------------------------------------------------------------------


def _pairs(train: Any, test: Any) -> tuple[list[tuple[Task, Task]], bool]:
    many = not isinstance(train, Task)
    if many != (not isinstance(test, Task)):
        raise ValueError(
            "test: give one task for each of `train`: a task and a task, or two lists"
        )
    learns, held = (list(train), list(test)) if many else ([train], [test])
    if len(learns) != len(held):
        raise ValueError(
            f"test: found {len(held)} tasks for {len(learns)} to train on; give one "
            "for each"
        )
    for a, b in zip(learns, held, strict=True):
        _check_pair(a, b)
    return list(zip(learns, held, strict=True)), many


def _check_pair(train: Task, test: Task) -> None:
    for argument, task in (("train", train), ("test", test)):
        if not isinstance(task, Task):
            raise ValueError(f"{argument}: found {type(task).__name__}; give a Task")
        if not np.asarray(task.labelled).any():
            raise ValueError(
                f"{argument}: task {task.name!r} has no labels; a probe learns from "
                "labels and is judged on them"
            )
    if train.class_names != test.class_names or train.dim != test.dim:
        raise ValueError(
            f"test: task {test.name!r} has other classes or features than "
            f"{train.name!r}"
        )


def _alike(kinds: Sequence[Any]) -> list[list[int]]:
    """Places of equal kinds together, in the order of their first."""
    groups: dict[Any, list[int]] = {}
    for place, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(place)
    return list(groups.values())
