"""Everything that is fitted to a pair of learning parts: standardisers, head, labels,
map, probe.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax._internal.padding import pad_length, pad_rows
from tta_jax._internal.typing import Array
from tta_jax.bounds.chain import Transforms
from tta_jax.config import Config
from tta_jax.core import coupling, feature_maps
from tta_jax.core.heads import SoftmaxHead
from tta_jax.fitting.assignment import assignment, separation_order
from tta_jax.fitting.closed_form import (
    PROXIMAL_WEIGHTS,
    ClosedFormFit,
    RidgePath,
    class_mean_logits,
    closed_form,
    compile_closed_form,
    ridge_path,
    ridge_probe,
)
from tta_jax.fitting.gradient_descent import VALIDATION_INTERVAL, Params, minimise
from tta_jax.fitting.logistic_regression import (
    decay_path,
    minimise_cross_entropy,
    warm_start_head,
)
from tta_jax.tasks.splits import Seed, device_key, fold_in_seed
from tta_jax.tasks.standardizer import Standardizer
from tta_jax.tasks.task import Samples, Task

INNER_FOLDS = 4
_LIMITED_HEAD_STEPS = 30
_PSEUDO_ROUNDS = 4


class Learned(NamedTuple):
    """What one learning part gave."""

    transforms: Transforms
    head: SoftmaxHead
    source_scaler: Standardizer
    target_scaler: Standardizer
    probe: SoftmaxHead
    info: dict[str, Any]
    stopped: str
    warnings: tuple[str, ...] = ()


class Clock:
    """Seconds by phase, and the progress line."""

    def __init__(self, progress: Callable[[str, float], None] | None, parts: int):
        self.seconds: dict[str, float] = {}
        self._last = self._begin = time.perf_counter()
        self._progress, self._parts, self._done = progress, parts, 0.0

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def tell(self, what: str, share: float) -> None:
        self._done += share
        if self._progress is not None:
            self._progress(what, min(self._done / self._parts, 1.0))

    def finish(self) -> dict[str, float]:
        return {**self.seconds, "total": time.perf_counter() - self._begin}


class _Parts(NamedTuple):
    """The learning parts on the device, standardised and padded, and what every step
    needs to know of them.
    """

    source: Samples
    target: Samples
    source_scaler: Standardizer
    target_scaler: Standardizer
    present: Array  # (K_S,) bool, source classes with items
    log_prior: Array  # (K_T,) log p_T
    fold: Array  # inner fold of every target item, -1 for those that always learn
    judged: Array  # target items by which choices are made
    rng: np.random.Generator


def learn(
    source: Task,
    head: SoftmaxHead | None,
    target: Task,
    config: Config,
    seed: Seed,
    clock: Clock,
) -> Learned:
    """Learn from the learning parts alone; a head that is kept is used as it is, None
    fits one.

    Args:
      source: labelled items; classes without any take no part.
      head: on raw source features, or None.
      target: all, some or no items labelled.
      seed: decides inner folds, starts and batches.
    """
    if config.refit_head:
        head = None
    if np.asarray(target.labelled).all():
        return _learn_labelled(source, head, target, config, seed, clock)
    return _learn_pseudo(source, head, target, config, seed, clock)


def _learn_labelled(
    source: Task,
    head: SoftmaxHead | None,
    target: Task,
    config: Config,
    seed: Seed,
    clock: Clock,
    judged: np.ndarray | None = None,
) -> Learned:
    """Learn from a labelled target; `judged (n_T,)` marks the items whose labels are
    true, where not all are.
    """
    parts, warnings = _prepare(source, head, target, config, seed, judged)
    clock.lap("prepare")
    current, l2 = _first_head(parts, head, source.num_classes, config)
    clock.lap("head")
    if config.objective == "published":
        transforms, final, info, stopped = _published(
            source, head, target, current, parts, config, seed
        )
        clock.lap("optimise")
        ridges = _ridges(parts, target.num_classes)
    else:
        source_of, cost, log_joint, prior, active = _labels(
            parts, current, source, target, config
        )
        clock.lap("labels")
        if head is None:
            # The head that minimises the source loss under the new prior.
            current = _fit_source(parts.source, prior, active, l2, config, current)
        clock.lap("head")
        clock.tell("source head", 0.25)
        ridges = _ridges(parts, target.num_classes)
        labels = (source_of, cost, log_joint, active)
        transforms, final, info, stopped = _learn_map(
            source, target, parts, ridges, current, labels, head is None, config, seed
        )
        info["assignment"] = np.asarray(source_of)
        clock.lap("optimise")
    clock.tell("transformations", 0.25)
    probe = jax.device_get(ridge_probe(ridges, parts.log_prior))
    final = jax.device_get(final)
    transforms = _completed(transforms, final, parts, config)
    clock.lap("map")
    return Learned(
        transforms,
        final,
        parts.source_scaler,
        parts.target_scaler,
        probe,
        info,
        stopped,
        warnings,
    )


# -- preparation -----------------------------------------------------------------------


def _prepare(
    source, head, target, config, seed, judged
) -> tuple[_Parts, tuple[str, ...]]:
    source_scaler, target_scaler = _scalers(source, target, head, config)
    samples_s, samples_t = (
        _padded(source, source_scaler),
        _padded(target, target_scaler),
    )
    size = samples_t.features.shape[0]
    fold, warnings = inner_folds(target, fold_in_seed(seed, 0))
    judged = np.ones(len(target), bool) if judged is None else judged
    with np.errstate(divide="ignore"):
        log_prior = np.log(target.prior).astype(samples_t.features.dtype)
    parts = _Parts(
        samples_s,
        samples_t,
        source_scaler,
        target_scaler,
        jnp.asarray(source.counts > 0),
        jnp.asarray(log_prior),
        jnp.asarray(pad_rows(fold, size)),
        jnp.asarray(pad_rows(judged & (fold >= 0), size)),
        np.random.default_rng(seed),
    )
    return parts, warnings


def _padded(task: Task, scaler: Standardizer) -> Samples:
    """Standardised samples on the device, padded to a bucket."""
    size = pad_length(len(task))
    arrays = (scaler(task.features), task.labels, task.labelled)
    return Samples(*(jnp.asarray(pad_rows(np.asarray(v), size)) for v in arrays))


def _scalers(
    source: Task, target: Task, head: SoftmaxHead | None, config: Config
) -> tuple[Standardizer, Standardizer]:
    """A head of the user's fixes the source's coordinates; maps that compare features
    then need the target's raw, too.
    """
    same = Standardizer.identity(source.dim, np.asarray(source.features).dtype)
    fit_source = config.standardize and head is None
    fit_target = config.standardize and (
        head is None or config.family == "logit_affine"
    )
    return (
        Standardizer.fit(np.asarray(source.features)) if fit_source else same,
        Standardizer.fit(np.asarray(target.features), clip=config.clip)
        if fit_target
        else same,
    )


def inner_folds(target: Task, seed: Seed) -> tuple[np.ndarray, tuple[str, ...]]:
    """`(n_T,)` int32 folds for choices inside the learning part, as strict as those
    outside it where the groups allow.
    """
    fold = np.full(len(target), -1, np.int32)
    for number in range(INNER_FOLDS, 1, -1):
        try:
            for k, (_, held) in enumerate(target.folds(number, seed)):
                fold[held] = k
        except ValueError:  # too few groups, or a class that sits in one of them
            continue
        return fold, ()
    rng = np.random.default_rng(seed)
    labels = np.asarray(target.labels)
    for k in range(target.num_classes):
        mine = rng.permutation(np.flatnonzero(labels == k))
        fold[mine] = (np.arange(len(mine)) + rng.integers(INNER_FOLDS)) % INNER_FOLDS
    return fold, (
        (
            "too few groups or items: ridge, scale and refinement were chosen on items "
            "that are not independent"
        ),
    )


def _ridges(parts: _Parts, num_targets: int) -> RidgePath:
    return ridge_path(
        parts.target,
        parts.judged,
        parts.fold,
        inner_folds=INNER_FOLDS,
        num_targets=num_targets,
    )


# -- head and labels -------------------------------------------------------------------


def _first_head(
    parts: _Parts, head: SoftmaxHead | None, num_sources: int, config: Config
) -> tuple[SoftmaxHead, float]:
    """The head by which classes are assigned, and the weight decay of the final one."""
    if head is not None:
        return jax.tree.map(jnp.asarray, head), 0.0  # never fitted again
    path = decay_path(*parts.source, num_sources, int(parts.rng.integers(2**31)))
    l2 = path.l2 if config.l2 is None else config.l2
    return path.head(l2), l2


def _labels(
    parts: _Parts, head: SoftmaxHead, source: Task, target: Task, config: Config
):
    """Which source classes, assigned how, with which prior."""
    chosen = parts.present
    if source.num_classes > target.num_classes:
        number = min(target.num_classes, int((source.counts > 0).sum()))
        order = separation_order(*parts.source, num_classes=source.num_classes)
        chosen = chosen & jnp.zeros_like(chosen).at[order[:number]].set(True)
    source_of, cost = assignment(
        head, parts.target, chosen, num_targets=target.num_classes
    )
    if config.assignment == "random":
        any_of = parts.rng.permutation(np.flatnonzero(chosen))
        source_of = jnp.asarray(
            any_of[np.arange(target.num_classes) % len(any_of)], source_of.dtype
        )
    return (
        source_of,
        cost,
        *_assigned(source_of, parts.log_prior, num_sources=source.num_classes),
    )


@partial(jax.jit, static_argnames=("num_sources",))
def _assigned(
    source_of: Array, log_prior: Array, *, num_sources: int
) -> tuple[Array, Array, Array]:
    """`log J` of an assignment, the class prior D and which source classes are used."""
    log_joint = coupling.log_coupling(
        coupling.assignment_logits(source_of, num_sources), log_prior
    )
    log_d = coupling.log_source_prior(log_joint)
    return log_joint, jnp.exp(log_d), log_d > -jnp.inf


def _fit_source(
    samples: Samples,
    prior: Array,
    active: Array,
    l2: float,
    config: Config,
    start: SoftmaxHead,
) -> SoftmaxHead:
    """Fit the head on the active classes, items weighted so that the class shares are
    `prior`.
    """
    features, labels, mask = samples
    weights = item_weights(labels, mask, active, prior)
    decay = jnp.asarray(l2, features.dtype)
    if config.lipschitz is None:
        return warm_start_head(start, features, labels, weights, active, decay)
    lipschitz = jnp.asarray(config.lipschitz, features.dtype)
    return minimise_cross_entropy(
        start,
        features,
        labels,
        weights,
        active,
        decay,
        lipschitz,
        steps=_LIMITED_HEAD_STEPS,
    )


@jax.jit
def item_weights(labels: Array, mask: Array, active: Array, prior: Array) -> Array:
    """Weights that give every class its share of `prior`."""
    counts = jax.ops.segment_sum(mask.astype(prior.dtype), labels, prior.shape[0])
    return jnp.where(
        mask & active[labels], (prior / jnp.maximum(counts, 1))[labels], 0.0
    )


# -- the map ---------------------------------------------------------------------------


def _learn_map(source, target, parts, ridges, head, labels, head_is_ours, config, seed):
    """Transformations, head, record and why it stopped."""
    source_of, cost, log_joint, active = labels
    assigned = np.asarray(source_of)[:, None] == np.arange(source.num_classes)
    exact = _log_joint64(np.where(assigned, 0.0, -np.inf), target)
    if config.learn == "none":
        return (
            Transforms(exact, feature_maps.Identity()),
            head,
            {},
            "nothing was learned: identity map, assigned labels",
        )
    start_map: feature_maps.FeatureMap
    info: dict[str, Any] = {}
    if config.family == "logit_affine":
        words = class_mean_logits(
            head, parts.source, active, num_classes=source.num_classes
        )
        compile_closed_form(
            *closed_form_sizes(
                len(target), source, target, config, ridges.weights.dtype
            )
        )
        fit = jax.device_get(
            closed_form(
                ridges, log_joint, source_of, words, refine=refines_start(config)
            )
        )
        info, stopped = _record_of(fit, refines_start(config))
        start_map = feature_maps.LogitAffine(fit.weight, fit.bias)
        if config.objective == "score":
            return Transforms(exact, start_map), head, info, stopped
    else:
        start_map = feature_maps.FAMILIES[config.family](source.dim, device_key(seed))
    if config.step_count == 0:
        return (
            Transforms(exact, jax.device_get(start_map)),
            head,
            info,
            "closed-form start (steps=0)",
        )
    params, stopped, recorded = _descend(
        source,
        target,
        parts,
        head,
        head_is_ours,
        start_map,
        source_of,
        cost,
        config,
        device_key(fold_in_seed(seed, 1)),
    )
    log_joint = _log_joint64(np.asarray(params.theta), target)
    return (
        Transforms(log_joint, jax.device_get(params.feature_map)),
        params.head,
        info | recorded,
        stopped,
    )


def refines_start(config: Config) -> bool:
    return config.objective in ("score", "tight") and config.step_count > 0


def closed_form_sizes(
    items: int, source: Task, target: Task, config: Config, dtype: Any
) -> tuple:
    """Arguments of `optimise.compile_closed_form` for a learning part of so many target
    items.
    """
    sizes = (pad_length(items), source.dim, target.num_classes, source.num_classes)
    return *sizes, INNER_FOLDS, refines_start(config), np.dtype(dtype)


def _record_of(fit: ClosedFormFit, refine: bool) -> tuple[dict[str, Any], str]:
    info = {
        "start_loss": float(fit.start_loss),
        "inner_loss": float(fit.best_loss),
        "pulls": np.asarray(PROXIMAL_WEIGHTS),
        "pull_losses": np.asarray(fit.path),
        "ridge": float(fit.ridge),
        "scale": float(fit.scale),
        "offset": float(fit.offset),
        "words": ("mean source logits", "equidistant")[int(fit.words)],
    }
    if not refine:
        return info, "closed-form start (steps=0)"
    if int(fit.pull) < 0:
        return (
            info,
            (
                "kept the closed-form start: no refinement improved the inner folds by "
                "more than a standard error"
            ),
        )
    losses = f"{fit.start_loss:.3f} -> {fit.best_loss:.3f}"
    return (
        info,
        (
            "refined the closed-form start: loss over inner folds and one item more "
            f"{losses}"
        ),
    )


def _descend(
    source, target, parts, head, head_is_ours, start_map, source_of, cost, config, key
):
    """Adam from the start, restarts side by side, the best on an inner validation
    part.
    """
    num_sources = source.num_classes
    learn_all = config.learn == "all" and config.objective != "score"
    learn_head = head_is_ours and config.objective != "score"
    theta = coupling.assignment_logits(
        source_of, num_sources, sharpness=8.0 if learn_all else None
    )
    # The assigned class first, then the cheapest others.
    number = min(num_sources, 4) if learn_all else 1
    ranked = jnp.argsort(
        jnp.where(source_of[:, None] == jnp.arange(num_sources)[None], -jnp.inf, cost),
        axis=1,
    )[:, :number]
    if learn_all:
        allowed = (
            jnp.zeros_like(theta, bool)
            .at[jnp.arange(theta.shape[0])[:, None], ranked]
            .set(True)
        )
        theta = jnp.where(allowed, theta, -jnp.inf)
    start = Params(theta, jax.tree.map(jnp.asarray, start_map), head)
    if not (learn_all or learn_head or jax.tree.leaves(start.feature_map)):
        return (
            start,
            "nothing to learn: the map has no parameters and labels stay assigned",
            {},
        )
    inner = np.asarray(parts.fold) == 0
    inner_s = parts.rng.random(parts.source.features.shape[0]) < 0.2
    # With too few items per class a validation part would miss classes: then the
    # learning part serves as one.
    enough = (
        int(target.counts[target.counts > 0].min()) >= INNER_FOLDS
        and inner[: len(target)].any()
    )

    def split(s, out):
        return (
            (s._replace(mask=s.mask & ~out), s._replace(mask=s.mask & out))
            if enough
            else (s, s)
        )

    (train_s, val_s), (train_t, val_t) = (
        split(parts.source, inner_s),
        split(parts.target, inner),
    )
    dtype = parts.log_prior.dtype
    lipschitz = (
        None
        if config.lipschitz is None or not head_is_ours
        else jnp.asarray(config.lipschitz, dtype)
    )

    def run(start, key):
        return minimise(
            start,
            train_s,
            train_t,
            (val_s, val_t),
            ranked,
            parts.log_prior,
            jnp.asarray(max(config.epsilon, 0.05), dtype),
            jnp.asarray(config.learning_rate, dtype),
            key,
            lipschitz,
            objective=config.objective,
            learn=config.learn,
            learn_head=learn_head,
            batch_size=config.batch_size,
            checks=-(-config.step_count // VALIDATION_INTERVAL),
        )

    keys = jax.random.split(jax.random.fold_in(key, 1), config.restarts)
    params, values, steps, info = jax.vmap(run)(
        _perturbed(start, config.restarts, key), keys
    )
    best = int(jnp.nanargmin(values))
    step, value = int(steps[best]), float(values[best])
    recorded = {f"info_{name}": np.asarray(v) for name, v in info._asdict().items()}
    recorded |= {"validation": np.asarray(values), "best_steps": np.asarray(steps)}
    stopped = (
        (
            f"kept the start: no step lowered the validation {config.objective} of "
            f"{value:.3f} nats"
        )
        if step == 0
        else (
            f"best validation {config.objective} {value:.3f} nats at step {step} of "
            f"{info.objective.shape[1] * VALIDATION_INTERVAL}"
        )
    )
    if config.restarts > 1:
        stopped += f" (start {best + 1} of {config.restarts})"
    return jax.tree.map(lambda v: v[best], params), stopped, recorded


def _perturbed(start: Params, restarts: int, key: Array) -> Params:
    """The start, stacked with perturbed copies of its label logits and map."""

    def stack(index, leaf):
        noise = (
            jax.random.normal(
                jax.random.fold_in(key, index), (restarts, *leaf.shape), leaf.dtype
            )
            .at[0]
            .set(0.0)
        )
        finite = jnp.isfinite(leaf)
        scale = 0.1 * jnp.std(jnp.where(finite, leaf, 0.0)) + 1e-3 if leaf.ndim else 0.0
        return jnp.where(finite, leaf[None] + scale * noise, leaf)

    leaves, structure = jax.tree.flatten(start)
    moved = jax.tree.unflatten(
        structure, [stack(i, leaf) for i, leaf in enumerate(leaves)]
    )
    same = jax.tree.map(lambda v: jnp.broadcast_to(v, (restarts, *v.shape)), start.head)
    return dataclasses.replace(moved, head=same)


def _published(source, head, target, current, parts, config, seed):
    from tta_jax.fitting.published import learn_published

    return learn_published(
        parts.source,
        parts.target,
        current,
        source.prior,
        target.prior,
        refit=head is None,
        steps=config.step_count,
        learn=config.learn,
        key=device_key(seed),
    )


def _log_joint64(theta: np.ndarray, target: Task) -> np.ndarray:
    """`log J` in float64, so that its row sums are the sample's class shares to the
    last bit that matters.
    """
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        return np.asarray(
            _log_coupling(np.asarray(theta, np.float64), np.log(target.prior))
        )


_log_coupling = jax.jit(coupling.log_coupling)


def _completed(
    transforms: Transforms, head: SoftmaxHead, parts: _Parts, config: Config
) -> Transforms:
    """Give a logit-affine map its affine `(A, b)` where one exists and the upper rungs
    are wanted.
    """
    phi = transforms.feature_map
    if not isinstance(phi, feature_maps.LogitAffine) or config.rungs != "all":
        return transforms
    active = np.any(np.asarray(transforms.log_joint) > -np.inf, axis=0)
    completed = phi.complete(
        head, active, _moments(parts.source), _moments(parts.target)
    )
    return dataclasses.replace(transforms, feature_map=completed)


def _moments(samples: Samples) -> tuple[np.ndarray, float]:
    """Mean `(d,)` of the features and the sum of their variances."""
    features = np.asarray(samples.features)[np.asarray(samples.mask)]
    return features.mean(axis=0), float(features.var(axis=0).sum())


# -- targets without labels ------------------------------------------------------------


def _learn_pseudo(source, head, target, config, seed, clock) -> Learned:
    """Alternate between labelling the unlabelled items by `h'''` and learning from all
    of them.
    """
    known = np.asarray(target.labelled)
    if known.any():
        learned = _learn_labelled(
            source, head, target.take(np.flatnonzero(known)), config, seed, clock
        )
    else:
        labels = _source_labels(source, head, target, config, fold_in_seed(seed, 3))
        learned = _learn_labelled(
            source, head, relabelled(target, labels), config, seed, clock
        )
    labels, settled = (
        None,
        f"pseudo-labels had not settled after {_PSEUDO_ROUNDS} rounds",
    )
    for number in range(_PSEUDO_ROUNDS):
        new = np.where(
            known, np.asarray(target.labels), predict(learned, target).argmax(1)
        )
        if labels is not None and (new == labels).mean() > 0.999:
            settled = f"pseudo-labels settled after {number} rounds"
            break
        labels = new
        learned = _learn_labelled(
            source,
            head,
            relabelled(target, labels),
            config,
            fold_in_seed(seed, 2, number),
            clock,
            known if known.any() else None,
        )
    return learned._replace(stopped=f"{learned.stopped}; {settled}")


def _source_labels(
    source: Task, head: SoftmaxHead | None, target: Task, config: Config, seed: Seed
) -> np.ndarray:
    """Without any label the source classifier itself names the classes to start
    with.
    """
    if head is not None:
        return np.asarray(head.logits(np.asarray(target.features))).argmax(1)
    scaler_s, scaler_t = _scalers(source, target, head, config)
    path = decay_path(
        *_padded(source, scaler_s), source.num_classes, int(seed.generate_state(1)[0])
    )
    return np.asarray(
        path.head(config.l2 or path.l2).logits(scaler_t(target.features))
    ).argmax(1)


def relabelled(target: Task, labels: np.ndarray) -> Task:
    """The task with all labels known."""
    return dataclasses.replace(
        target, labels=labels.astype(np.int32), labelled=np.ones(len(target), bool)
    )


def predict(learned: Learned, target: Task) -> np.ndarray:
    """`h'''` on the target's items, `(n, K_T)`."""
    x = learned.target_scaler(np.asarray(target.features))
    return np.exp(np.asarray(_log_proba(learned.transforms, learned.head, x)))


_log_proba = jax.jit(lambda transforms, head, x: transforms.predict_log_proba(head, x))
