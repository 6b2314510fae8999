"""Fit a pair of tasks for one analysis, on the host.

What is fitted stands in `fit_pair`; here are the objectives that descend from its start
and the result in the tasks' own classes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tta_jax._internal.typing import Array
from tta_jax.bounds.chain import Transforms
from tta_jax.bounds.star import StarEncoder
from tta_jax.config import Config
from tta_jax.core import coupling, feature_maps
from tta_jax.core.heads import SoftmaxHead
from tta_jax.core.losses import mixed_loss
from tta_jax.fitting.assignment import ClassAssignment, log_joint64
from tta_jax.fitting.closed_form import PROXIMAL_WEIGHTS, ClosedFormFit
from tta_jax.fitting.fit_pair import (
    PairFit,
    PairSource,
    candidate_samples,
    fit_pairs,
    fit_source,
)
from tta_jax.fitting.floor import FLOORS, choose_floor
from tta_jax.fitting.gradient_descent import VALIDATION_INTERVAL, Params, minimise
from tta_jax.fitting.prepare import (
    INNER_FOLDS,
    SourceArrays,
    TargetArrays,
    TaskSplit,
    moments,
    prepare_source,
    prepare_target,
    source_scaler,
    target_scaler,
)
from tta_jax.fitting.relatedness import StarFit
from tta_jax.fitting.star_classifier import star_classifier, star_encoders
from tta_jax.tasks.splits import Seed, device_key, fold_in_seed
from tta_jax.tasks.standardizer import Standardizer
from tta_jax.tasks.task import Samples, Task


class Learned(NamedTuple):
    """What one learning part gave.

    Attributes:
      transforms: of all source classes, on standardised features.
      head: the source head on them, `(K_S, d)`.
      source_scaler, target_scaler: of the features.
      probe: the source-free ridge probe, `(K_T, d)`.
      source_head: the source head as fitted to the source alone, `(K_S, d)`.
      star: the star.
      encoders: of source and target, where the star is the classifier; else None.
      log_prior: `(K_T,)`, log p_T.
      info: what was recorded.
      stopped: why it stopped.
      warnings: what the user should know.
    """

    transforms: Transforms
    head: SoftmaxHead
    source_scaler: Standardizer
    target_scaler: Standardizer
    probe: SoftmaxHead
    source_head: SoftmaxHead
    star: StarFit
    log_prior: np.ndarray
    info: dict[str, Any]
    stopped: str
    warnings: tuple[str, ...] = ()
    encoders: tuple[StarEncoder, StarEncoder] | None = None

    @property
    def source_encoder(self) -> Standardizer | StarEncoder:
        """What `transforms` and `head` expect of the source's raw features."""
        return self.source_scaler if self.encoders is None else self.encoders[0]

    @property
    def target_encoder(self) -> Standardizer | StarEncoder:
        """What `transforms` and `head` expect of the target's raw features."""
        return self.target_scaler if self.encoders is None else self.encoders[1]


class FitSeeds(NamedTuple):
    """Seeds of a split: of the source's and the target's choices, and of descents."""

    source: Seed
    target: Seed
    pair: Seed


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


class _Prepared(NamedTuple):
    """A prepared pair and what was fitted to it."""

    source: SourceArrays
    target: TargetArrays
    pair_source: PairSource
    fit: PairFit


def learn_labelled(
    source: Task,
    split: TaskSplit,
    head: SoftmaxHead | None,
    target: Task,
    config: Config,
    seeds: FitSeeds,
    clock: Clock,
    judged: np.ndarray | None = None,
) -> Learned:
    """Fit a source to a labelled learning part of a target.

    Args:
      source: the task.
      split: which of its items learn.
      head: on raw source features, used as it is; None fits one.
      target: the learning part, every item labelled.
      config: of the analysis.
      seeds: see `FitSeeds`.
      clock: told how long each phase takes.
      judged: `(n_T,)` bool, the items whose labels are true; None for all.
    """
    everything = np.arange(len(target))
    whole = TaskSplit.of_indices(
        target, everything, everything[:0], everything, everything
    )
    scaler_s = source_scaler(source, split, config, head)
    scaler_t = target_scaler(target, whole, config, head)
    arrays_s = prepare_source(source, split, scaler_s, config, head, seeds.source)
    arrays_t, warnings = prepare_target(
        target, whole, scaler_t, config, seeds.target, judged=judged
    )
    clock.lap("prepare")
    fitted = jax.device_get(fit_source(arrays_s))
    pair_source = PairSource.of(arrays_s, fitted)
    clock.lap("head")
    clock.tell("source head", 0.25)
    fits, probe = fit_pairs(
        jax.tree.map(lambda v: np.asarray(v)[None], pair_source),
        arrays_t,
        *_pair_options(source, head, target, config, seeds.pair),
        closed=fits_closed_form(config),
        refine=refines_start(config),
    )
    fits, probe = jax.device_get((fits, probe))
    fit = jax.tree.map(lambda v: v[0], fits)
    clock.lap("optimise")
    prepared = _Prepared(arrays_s, arrays_t, pair_source, fit)
    encoders = None
    source_head = SoftmaxHead(fitted.weight, fitted.bias)
    if config.family == "star":
        encoders = star_encoders(
            fit.star, source_head, probe, (scaler_s, scaler_t), config
        )
        transforms, final, info, stopped = star_classifier(
            fit.star, source.num_classes, target, np.asarray(arrays_t.log_prior), config
        )
    elif config.objective == "published":
        transforms, final, info, stopped = _published(
            source.take(split.source_learn),
            target,
            head,
            source_head,
            prepared,
            config,
            seeds,
        )
    else:
        transforms, final, info, stopped = _fit_map(
            source, target, head, prepared, config, seeds
        )
        info["assignment"] = fit.classes.source_class[fit.classes.source_of]
    clock.tell("transformations", 0.25)
    transforms = _completed(transforms, final, prepared, config)
    clock.lap("map")
    return Learned(
        transforms=transforms,
        head=final,
        source_scaler=scaler_s,
        target_scaler=scaler_t,
        probe=probe,
        source_head=source_head,
        star=fit.star,
        log_prior=np.asarray(arrays_t.log_prior),
        info=info,
        stopped=stopped,
        warnings=warnings,
        encoders=encoders,
    )


def fits_closed_form(config: Config) -> bool:
    """Whether the map, or its start, is fitted in closed form."""
    return (
        config.family == "logit_affine"
        and config.learn != "none"
        and config.objective != "published"
    )


def refines_start(config: Config) -> bool:
    """Whether the closed form is refined."""
    return config.objective in ("score", "tight") and config.step_count > 0


def _pair_options(
    source: Task, head: SoftmaxHead | None, target: Task, config: Config, seed: Seed
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The bound on a fitted head's constant and the ranks of a random assignment."""
    dtype = np.asarray(source.features[:1]).dtype
    lipschitz = ranks = None
    if config.lipschitz is not None and head is None:
        lipschitz = np.asarray(config.lipschitz, dtype)
    if config.assignment == "random":
        ranks = np.random.default_rng(seed).random(source.num_classes).astype(dtype)
    return lipschitz, ranks


# -- all source classes ----------------------------------------------------------------


def _expand_classes(
    values: np.ndarray, classes: ClassAssignment, number: int, fill: float
):
    """Place values of the candidates `(..., C)` among all classes, `(..., K_S)`."""
    out = np.full((*values.shape[:-1], number), fill, values.dtype)
    used = np.flatnonzero(classes.source_mask)
    out[..., classes.source_class[used]] = values[..., used]
    return out


def _expand_head(
    head: SoftmaxHead, classes: ClassAssignment, number: int
) -> SoftmaxHead:
    """A head of the candidates among all source classes, zeros for the others."""
    weight = _expand_classes(np.asarray(head.weight).T, classes, number, 0.0).T
    return SoftmaxHead(
        weight, _expand_classes(np.asarray(head.bias), classes, number, 0.0)
    )


# -- the map ---------------------------------------------------------------------------


def _fit_map(
    source: Task,
    target: Task,
    given: SoftmaxHead | None,
    prepared: _Prepared,
    config: Config,
    seeds: FitSeeds,
) -> tuple[Transforms, SoftmaxHead, dict[str, Any], str]:
    """Transformations, head, record and why it stopped."""
    fit, number = prepared.fit, source.num_classes
    classes = fit.classes
    assigned = classes.source_class[classes.source_of][:, None] == np.arange(number)
    exact = log_joint64(np.where(assigned, 0.0, -np.inf), target)
    final = _expand_head(fit.head, classes, number) if given is None else given
    if config.learn == "none":
        identity = feature_maps.Identity()
        stopped = "nothing was learned: identity map, assigned labels"
        return Transforms(exact, identity, config.floor or 0.0), final, {}, stopped
    least = FLOORS[0] if config.floor is None else config.floor
    info: dict[str, Any] = {}
    start_map: feature_maps.FeatureMap
    if fit.closed_form is not None:
        found = fit.closed_form
        info, stopped = _record_of(found, refines_start(config))
        mapped = SoftmaxHead(found.weight, found.bias)
        if config.objective == "score" or config.step_count == 0:
            full = _expand_head(mapped, classes, number)
            phi = feature_maps.LogitAffine(full.weight, full.bias)
            return Transforms(exact, phi, info["floor"]), final, info, stopped
        start_map = feature_maps.LogitAffine(mapped.weight, mapped.bias)
    else:
        start_map = feature_maps.FAMILIES[config.family](
            source.dim, device_key(seeds.pair)
        )
    if config.step_count == 0:
        stopped = "closed-form start (steps=0)"
        start_map = jax.device_get(start_map)
        return Transforms(exact, start_map, least), final, info, stopped
    params, stopped, recorded = _descend(
        prepared, target, given is None, start_map, config, seeds.pair, least
    )
    theta = _expand_classes(np.asarray(params.theta), classes, number, -np.inf)
    phi = jax.device_get(params.feature_map)
    if isinstance(phi, feature_maps.LogitAffine):
        full = _expand_head(SoftmaxHead(phi.weight, phi.bias), classes, number)
        phi = dataclasses.replace(phi, weight=full.weight, bias=full.bias)
    if given is None:
        final = _expand_head(jax.device_get(params.head), classes, number)
    info |= recorded
    transforms = Transforms(log_joint64(theta, target), phi, info["floor"])
    return transforms, final, info, stopped


def _record_of(fit: ClosedFormFit, refine: bool) -> tuple[dict[str, Any], str]:
    info = {
        "start_loss": float(fit.start_loss),
        "inner_loss": float(fit.best_loss),
        "pulls": np.asarray(PROXIMAL_WEIGHTS),
        "pull_losses": np.asarray(fit.path),
        "ridge": float(fit.ridge),
        "scale": float(fit.scale),
        "offset": float(fit.offset),
        "floor": float(fit.floor),
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
            "refined the closed-form start: inner-fold loss with a pseudo-observation "
            f"{losses}"
        ),
    )


def _descend(
    prepared: _Prepared,
    target: Task,
    head_is_ours: bool,
    start_map: feature_maps.FeatureMap,
    config: Config,
    seed: Seed,
    least: float,
) -> tuple[Params, str, dict[str, Any]]:
    """Descend by Adam from the start, restarts side by side; keep the best.

    The best is that of least objective on an inner validation part.
    """
    arrays, fit, classes = prepared.target, prepared.fit, prepared.fit.classes
    key = device_key(fold_in_seed(seed, 1))
    learn_all = config.learn == "all" and config.objective != "score"
    learn_head = head_is_ours and config.objective != "score"
    source_of = jnp.asarray(classes.source_of)
    size = classes.source_class.shape[0]
    theta = coupling.assignment_logits(
        source_of, size, sharpness=8.0 if learn_all else None
    )
    # The assigned class first, then the cheapest others.
    number = min(size, 4) if learn_all else 1
    mine = source_of[:, None] == jnp.arange(size, dtype=source_of.dtype)[None]
    ranked = jnp.argsort(jnp.where(mine, -jnp.inf, classes.cost), axis=1)[:, :number]
    if learn_all:
        rows = jnp.arange(theta.shape[0])[:, None]
        allowed = jnp.zeros_like(theta, bool).at[rows, ranked].set(True)
        theta = jnp.where(allowed & classes.source_mask[None], theta, -jnp.inf)
    start = Params(
        theta.astype(arrays.log_prior.dtype),
        jax.tree.map(jnp.asarray, start_map),
        jax.tree.map(jnp.asarray, fit.head),
    )
    if not (learn_all or learn_head or jax.tree.leaves(start.feature_map)):
        why = "nothing to learn: the map has no parameters and labels stay assigned"
        return start, why, {"floor": least}
    rng = np.random.default_rng(seed)
    labelled = candidate_samples(prepared.pair_source, classes)
    samples_s = Samples(prepared.source.features, labelled.labels, labelled.mask)
    samples_t = Samples(arrays.features, arrays.labels, arrays.mask)
    inner_t = np.asarray(arrays.fold) == 0
    inner_s = rng.random(len(prepared.source.features)) < 0.2
    # With too few items per class a validation part would miss classes: then the
    # learning part serves as one.
    smallest = int(target.counts[target.counts > 0].min())
    enough = smallest >= INNER_FOLDS and inner_t[: len(target)].any()

    def divide(samples, out):
        if not enough:
            return samples, samples
        return tuple(samples._replace(mask=samples.mask & m) for m in (~out, out))

    train_s, val_s = divide(samples_s, inner_s)
    train_t, val_t = divide(samples_t, inner_t)
    dtype = arrays.log_prior.dtype
    lipschitz = None
    if config.lipschitz is not None and head_is_ours:
        lipschitz = jnp.asarray(config.lipschitz, dtype)

    def run(start, key):
        return minimise(
            start,
            train_s,
            train_t,
            (val_s, val_t),
            ranked,
            jnp.asarray(arrays.log_prior),
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
    found = jax.tree.map(lambda v: v[best], params)
    floor = _validated_floor(
        found, val_t, jnp.asarray(arrays.log_prior), jnp.asarray(arrays.floor)
    )
    step, value = int(steps[best]), float(values[best])
    recorded: dict[str, Any] = {
        f"info_{name}": np.asarray(v) for name, v in info._asdict().items()
    }
    recorded |= {"validation": np.asarray(values), "best_steps": np.asarray(steps)}
    recorded["floor"] = float(floor)
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
    return found, stopped, recorded


@jax.jit
def _validated_floor(
    params: Params, target: Samples, log_prior: Array, wanted: Array
) -> Array:
    """The floor of least loss on the validation part."""
    log_joint = coupling.log_coupling(params.theta, log_prior)
    active = coupling.log_source_prior(log_joint) > -jnp.inf
    logits = params.feature_map.target_logits(params.head, jnp.asarray(target.features))
    labels, mask = jnp.asarray(target.labels), jnp.asarray(target.mask)
    losses = mixed_loss(logits, coupling.log_mixing(log_joint)[labels], active)
    weights = mask.astype(losses.dtype)
    return choose_floor(losses, log_prior[labels], weights, wanted)


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


def _published(
    source: Task,
    target: Task,
    given: SoftmaxHead | None,
    current: SoftmaxHead,
    prepared: _Prepared,
    config: Config,
    seeds: FitSeeds,
) -> tuple[Transforms, SoftmaxHead, dict[str, Any], str]:
    """Run the published algorithm; `source` is the learning part."""
    from tta_jax.fitting.published import learn_published

    arrays_s, arrays_t = prepared.source, prepared.target
    return learn_published(
        Samples(arrays_s.features, arrays_s.labels, arrays_s.mask),
        Samples(arrays_t.features, arrays_t.labels, arrays_t.mask),
        current,
        source.prior,
        target.prior,
        refit=given is None,
        steps=config.step_count,
        learn=config.learn,
        key=device_key(seeds.pair),
    )


def _completed(
    transforms: Transforms, head: SoftmaxHead, prepared: _Prepared, config: Config
) -> Transforms:
    """Give a logit-affine map its affine `(A, b)` where one exists and is wanted."""
    phi = transforms.feature_map
    if not isinstance(phi, feature_maps.LogitAffine) or config.rungs != "all":
        return transforms
    active = np.any(np.asarray(transforms.log_joint) > -np.inf, axis=0)
    completed = phi.complete(
        head, active, moments(prepared.source), moments(prepared.target)
    )
    return dataclasses.replace(transforms, feature_map=completed)
