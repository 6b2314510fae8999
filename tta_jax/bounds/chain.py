"""From terms to the chain of bounds:
`target_loss <= tight <= directed <= oscillation <= lipschitz <= theorem`.

Why it holds, class by class (docs/theory.md, section 3.7). Source items carry masses
`q`, target items masses `r` of equal total; `F`, `G` are the distributions of their
losses `l(B softmax(s), t)`, and `s` are logits, `W z + c` or `M x + m`.

* A change `v` of the logits moves the loss by at most `osc(v) = max v - min v`: the
  numerator of `(B h)_t = sum_k B_tk e^s_k / sum_k e^s_k` changes by a factor between
  `e^min v` and `e^max v`, and so does the denominator.
* `target_loss <= tight`: the mean target loss is `int G^-1`, and `tight` integrates
  `max(F^-1, G^-1)`.
* `tight <= directed`: `max(F^-1, G^-1) = F^-1 + (G^-1 - F^-1)_+`; the first part is
  the transformed source loss, and since `x -> x_+` is convex, no coupling makes the
  mean of `(target loss - source loss)_+` smaller than the comonotone one does. Under
  any plan it is at most the plan's mean of `delta_t(s_j - s_i)`, since the loss for t,
  `lse(s) - log sum_k B_tk e^s_k`, rises by at most `max v - min_{k: B_tk > 0} v`. So
  every feasible plan gives a bound, converged or not.
* `directed <= oscillation`: `delta_t(v) <= osc(v)`, and `osc(-v) = osc(v)`.
* `oscillation <= lipschitz`:
  `osc(M (x - x')) = max_jk (M_j - M_k) (x - x') <= tau ||x - x'||`.
* Values are costs of plans that the solver proposes. Every cost is evaluated at every
  plan, and each rung takes its cheapest plan: at the plan of the dearer of two rungs
  the other one is cheaper still, so the chain holds whatever the solver did.
* A floor, `h_f = (1 - f) h''' + f p_T`, is the same chain with `B_f` in place of B,
  but for the directed cost, which keeps the support of B: `l_f = -log((1 - f) e^-l +
  f p)` rises by less than l does, and falls where l falls (section 5.3).
* `lipschitz <= theorem`: of the sum `(B h)_t >= B_tk h_k` one term is left, so
  `-log (B h)_t <= -log h_k - log B_tk`; averaged over J this is the source loss plus
  the label mismatch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Bool, Float, Int

from tta_jax._internal.padding import pad_length
from tta_jax._internal.typing import Array, ArrayLike, Scalar
from tta_jax.core import coupling
from tta_jax.core.feature_maps import FeatureMap
from tta_jax.core.heads import SoftmaxHead, lipschitz_constant
from tta_jax.core.losses import (
    class_mean,
    directed_cost,
    euclidean_cost,
    expected_loss,
    log_head,
    logit_residual,
    loss_of_class,
    oscillation_cost,
    own_class_losses,
    quantile_coupling,
    reweighted_source_loss,
    source_mass,
    transformed_log_proba,
)
from tta_jax.tasks.task import Samples, Task
from tta_jax.transport.certified_cost import solve

RUNGS = ("tight", "directed", "oscillation", "lipschitz", "theorem")

# How much the source logits may differ from those of the mapped features before the map
# counts as not having them.
_RESIDUAL = 1e-4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transforms:
    """What turns the source task into the target task: label coupling and feature map.

    Attributes:
      log_joint: `(K_T, K_S)`, `log J`, the joint law of the transformed label and the
        source label.
      feature_map: `phi`.
      floor: f, the share of the target prior that is mixed into the classifier.
    """

    log_joint: ArrayLike
    feature_map: FeatureMap
    floor: ArrayLike = 0.0

    @property
    def coupling(self) -> Array:
        """`J (K_T, K_S)`; sums to 1."""
        return jnp.exp(self.log_joint)

    @property
    def prior(self) -> Array:
        """The source class prior `D (K_S,)`."""
        return jnp.exp(coupling.log_source_prior(jnp.asarray(self.log_joint)))

    @property
    def label_mixing(self) -> Array:
        """`B (K_T, K_S)`; columns on the simplex (the target prior where `D_k = 0`,
        where it does not matter), without the floor.
        """
        return coupling.label_mixing(jnp.asarray(self.log_joint))

    @property
    def largest_loss(self) -> float:
        """What an item can cost at most, `-log(f min p_T)`, nats; inf without a
        floor. Needs concrete values.
        """
        floor = float(np.asarray(self.floor))
        shares = np.exp(np.asarray(self.log_joint, np.float64)).sum(axis=1)
        least = floor * float(shares[shares > 0].min(initial=1.0))
        return -float(np.log(least)) if least > 0 else float("inf")

    def predict_log_proba(self, head: SoftmaxHead, features: ArrayLike) -> Array:
        """`log h'''(x)` of `h'''(x) = (1 - f) B h(phi^-1(x)) + f p_T`,
        `(n, K_T)`."""
        log_joint = jnp.asarray(self.log_joint)
        active = coupling.log_source_prior(log_joint) > -jnp.inf
        log_h = log_head(
            self.feature_map.target_logits(head, jnp.asarray(features)), active
        )
        log_b = coupling.log_floored_mixing(log_joint, jnp.asarray(self.floor))
        return transformed_log_proba(log_h, log_b)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bound:
    """The chain of bounds on the target loss of `h'''` and their parts, scalars in nats
    (`wasserstein` in feature units).

    Attributes:
      tight: loss-quantile bound; computed from the target losses, a diagnosis rather
        than a prediction.
      directed: `transformed_source_loss + directed_wasserstein`; charges only what
        makes a target item harder than its source item.
      oscillation: `transformed_source_loss + oscillation_wasserstein`.
      lipschitz: `transformed_source_loss + lipschitz_constant * wasserstein`; inf for
        maps without an affine A.
      theorem: `reweighted_source_loss + label_mismatch` and
        `lipschitz_constant * wasserstein`; likewise.
      reweighted_source_loss: `L_rw(D)`.
      label_mismatch: `H(Y''|Y')`; with a floor `-sum J log B_f`.
      transformed_source_loss: `E'''`, the exact loss of `h''` on the transformed
        source, at most the sum of those two.
      wasserstein: upper value of `W_1` between transformed source and target, class by
        class.
      directed_wasserstein, oscillation_wasserstein: upper values of the transports
        with costs `delta_t` and `osc`.
      lipschitz_constant: the certified `tau`.
      prior_entropy: `H(p_T)`, what guessing the prior costs.
      target_loss, target_accuracy: of `h'''` on the target sample, classes weighted by
        `p_T`.
    """

    tight: Scalar
    directed: Scalar
    oscillation: Scalar
    lipschitz: Scalar
    theorem: Scalar
    reweighted_source_loss: Scalar
    label_mismatch: Scalar
    transformed_source_loss: Scalar
    wasserstein: Scalar
    directed_wasserstein: Scalar
    oscillation_wasserstein: Scalar
    lipschitz_constant: Scalar
    prior_entropy: Scalar
    target_loss: Scalar
    target_accuracy: Scalar

    @property
    def informative(self) -> Scalar:
        """Whether `tight` says more than the target prior does; False when
        `H(p_T) = 0`.
        """
        return self.tight < self.prior_entropy

    @property
    def informative_rungs(self) -> tuple[str, ...]:
        """The rungs below `prior_entropy`; needs concrete values."""
        return tuple(
            name
            for name in RUNGS
            if float(getattr(self, name)) < float(self.prior_entropy)
        )


class ClassTerms(NamedTuple):
    """What one target class contributes; losses and transports are integrals over
    masses with total `p_T(t)`.
    """

    source_loss: Float[Array, "*K_T"]
    target_loss: Float[Array, "*K_T"]
    target_hits: Float[Array, "*K_T"]
    tight: Float[Array, "*K_T"]
    directed_upper: Float[Array, "*K_T"]
    directed_lower: Float[Array, "*K_T"]
    oscillation_upper: Float[Array, "*K_T"]
    oscillation_lower: Float[Array, "*K_T"]
    distance_upper: Float[Array, "*K_T"]
    distance_lower: Float[Array, "*K_T"]
    residual: Float[Array, "*K_T"]
    worst_residual: Float[Array, "*K_T"]
    iterations: Int[Array, "*K_T 3"]
    error: Float[Array, "*K_T 3"]


def masked_samples(task: Task | Samples) -> Samples:
    sample = task.samples if isinstance(task, Task) else task
    mask = jnp.asarray(sample.mask, bool)
    # Whatever stands in rows that do not count, NaN included, must not spread. int32
    # keeps indices the same under x64.
    features = jnp.where(mask[:, None], jnp.asarray(sample.features), 0)
    return Samples(
        features, jnp.where(mask, jnp.asarray(sample.labels, jnp.int32), 0), mask
    )


def sort_by_class(
    labels: Int[Array, " n"], mask: Bool[Array, " n"], num_classes: int
) -> tuple[Int[Array, " n"], Int[Array, " K"], Int[Array, " K"]]:
    """Item order by class `(n,)`, first position and number of items of each class
    `(K,)`.
    """
    counts = jax.ops.segment_sum(mask.astype(jnp.int32), labels, num_classes)
    order = jnp.argsort(jnp.where(mask, labels, num_classes), stable=True)
    return order, jnp.cumsum(counts) - counts, counts


def reweight_to_sample(
    log_joint: Float[Array, "K_T K_S"],
    source_counts: Int[Array, " K_S"],
    target_counts: Int[Array, " K_T"],
) -> Float[Array, "K_T K_S"]:
    """`log J` for the sample that is evaluated: which masses its items carry. The
    classifier's B stays as it was learned.

    Source classes without samples lose their mass. Where no source class is shared, the
    rows are rescaled to the sample's own prior; otherwise J keeps its prior, without
    the classes the sample lacks, and the loss that is bounded is the class-reweighted
    one (docs/theory.md, section 3.11). The chain holds class by class for any J
    whose support lies in B's, with `-sum J log B` in place of H in the theorem, since
    `-log (B h)_t <= -log B_tk - log h_k`.
    """
    seen = target_counts > 0
    shared = jnp.any(jnp.sum(log_joint > -jnp.inf, axis=0) > 1)
    counts = target_counts.astype(log_joint.dtype)
    own = jnp.log(jnp.where(seen, counts, 1.0)) - jnp.log(
        jnp.maximum(jnp.sum(counts), 1.0)
    )
    log_p = jnp.where(shared, coupling.log_target_prior(log_joint), own)
    log_p = jnp.where(seen, log_p, -jnp.inf)
    return coupling.log_coupling(
        log_joint, log_p - jax.nn.logsumexp(log_p), source_counts > 0
    )


class ItemLosses(NamedTuple):
    """Losses of the items of one class problem, nats.

    Attributes:
      source, target: for the class itself.
      hit: whether `h'''` names the class for the target items.
      by_class: of the target items, for every class.
    """

    source: Float[Array, "*K_T n"]
    target: Float[Array, "*K_T m"]
    hit: Bool[Array, "*K_T m"]
    by_class: Float[Array, "*K_T m K_T"]


def class_terms(
    logits: Float[Array, "n K_S"],
    mapped: Float[Array, "n d"] | None,
    mapped_logits: Float[Array, "n K_S"] | None,
    q: Float[Array, " n"],
    target_logits: Float[Array, "m K_S"],
    target: Float[Array, "m d"] | None,
    r: Float[Array, " m"],
    log_b: Float[Array, "K_T K_S"],
    drawn: Bool[Array, "K_T K_S"],
    row: Int[Array, ""],
    active: Bool[Array, " K_S"],
    epsilon: Float[Array, ""],
    *,
    rungs: str = "all",
    max_iterations: int = 1000,
    tile: int | None = None,
) -> tuple[ClassTerms, ItemLosses]:
    """All integrals of one target class t, and the losses they integrate.

    Args:
      logits, mapped, mapped_logits, q: source rows: `W z + c (n, K_S)`, `phi(z) (n, d)`
        and the logits there (None without an affine map), masses `(n,)`.
      target_logits, target, r: rows of target class t: `(m, K_S)`, `(m, d)` or None,
        masses `(m,)`.
      log_b: `(K_T, K_S)`, `log B_f`.
      drawn: `(K_T, K_S)` bool, where B has mass.
      row: the class t.
      active: `(K_S,)` bool.
      epsilon: relative to the mean cost.
      rungs: "all", or "tight" for no transport at all.
    """
    n = logits.shape[0]
    log_h = log_head(jnp.concatenate([logits, target_logits]), active)
    losses = loss_of_class(log_h, log_b[row])
    log_h_target, source_losses, target_losses = log_h[n:], losses[:n], losses[n:]
    log_p = lax.map(
        lambda b: coupling.safe_logsumexp(log_h_target + b[None], axis=1), log_b
    )
    named = jnp.argmax(log_p, axis=0)
    hit = named.astype(jnp.int32) == row.astype(jnp.int32)
    items = ItemLosses(source_losses, target_losses, hit, -log_p.T)
    inf, zero = jnp.asarray(jnp.inf, logits.dtype), jnp.zeros((), logits.dtype)
    out = ClassTerms(
        source_loss=expected_loss(source_losses, q),
        target_loss=expected_loss(target_losses, r),
        target_hits=jnp.sum(jnp.where(hit, r, 0.0)),
        tight=quantile_coupling(source_losses, q, target_losses, r),
        directed_upper=inf,
        directed_lower=zero,
        oscillation_upper=inf,
        oscillation_lower=zero,
        distance_upper=inf,
        distance_lower=zero,
        residual=zero,
        worst_residual=zero,
        iterations=jnp.zeros(3, jnp.int32),
        error=jnp.zeros(3, jnp.float32),
    )
    if rungs == "tight":
        return out, items

    def directed(rows):
        return directed_cost(rows[0], target_logits, drawn[row], active)

    def oscillation(rows):
        return oscillation_cost(rows[0], target_logits, active)

    def distance(rows):
        return euclidean_cost(rows[1], target)

    rows = (logits, mapped)
    costs = [directed, oscillation] + ([] if mapped is None else [distance])
    moved = solve(
        costs,
        rows,
        q,
        r,
        epsilon,
        max_iterations=max_iterations,
        tile=tile,
    )
    out = out._replace(
        directed_upper=moved[0].upper,
        directed_lower=moved[0].lower,
        oscillation_upper=moved[1].upper,
        oscillation_lower=moved[1].lower,
        iterations=out.iterations.at[: len(moved)].set(
            jnp.stack([m.iterations for m in moved]).astype(jnp.int32)
        ),
        error=out.error.at[: len(moved)].set(
            jnp.stack([m.error for m in moved]).astype(jnp.float32)
        ),
    )
    if mapped is None:
        return out, items
    assert mapped_logits is not None
    residual = logit_residual(logits, mapped_logits, active)
    size = 1.0 + jnp.max(jnp.where(active, jnp.abs(logits), 0.0))
    out = out._replace(
        distance_upper=moved[2].upper,
        distance_lower=moved[2].lower,
        residual=expected_loss(residual, q),
        worst_residual=jnp.max(jnp.where(q > 0, residual, 0.0)) / size,
    )
    return out, items


def lipschitz_of_map(
    feature_map: FeatureMap, head: SoftmaxHead, active: Bool[Array, " K_S"]
) -> Float[Array, ""]:
    """The certified Lipschitz constant of the transformed classifier; inf for maps that
    are not affine.
    """
    if not feature_map.affine:
        return jnp.asarray(jnp.inf, jnp.asarray(head.weight).dtype)
    return lipschitz_constant(feature_map.pull(head).weight, active)


class ChainInputs(NamedTuple):
    """What the target classes of a pair share; n source and m target items.

    Attributes:
      log_joint: log masses of the sample, `(K_T, K_S)`.
      log_b: `log B_f` of the classifier, `(K_T, K_S)`.
      drawn: where B has mass, `(K_T, K_S)` bool.
      active: `(K_S,)` bool, source classes that are used.
      class_losses: mean loss of each source class, nats.
      pulled: the head on mapped features; None without an affine map, or where only
        `tight` is asked for.
      tau: certified Lipschitz constant; inf without an affine map.
      source, logits: source items and `W z + c`.
      source_counts: items of each source class.
      mapped, mapped_logits: `phi(z)` and the logits there; None where each class maps
        its own rows, or without an affine map.
      target, target_logits: target items and `W phi^-1(x) + c`.
      order, first, target_counts: of `sort_by_class`.
    """

    log_joint: Float[Array, "K_T K_S"]
    log_b: Float[Array, "K_T K_S"]
    drawn: Bool[Array, "K_T K_S"]
    active: Bool[Array, " K_S"]
    class_losses: Float[Array, " K_S"]
    pulled: SoftmaxHead | None
    tau: Float[Array, ""]
    source: Samples
    logits: Float[Array, "n K_S"]
    source_counts: Int[Array, " K_S"]
    mapped: Float[Array, "n d"] | None
    mapped_logits: Float[Array, "n K_S"] | None
    target: Samples
    target_logits: Float[Array, "m K_S"]
    order: Int[Array, " m"]
    first: Int[Array, " K_T"]
    target_counts: Int[Array, " K_T"]


class ClassChain(NamedTuple):
    """Figures of one target class, or of all (leading axis).

    Attributes:
      terms: its share of the chain.
      losses: of its source and target items.
      source_mass, target_mass: of those items; 0 for padding.
      source_items, target_items: where they stand in the samples.
    """

    terms: ClassTerms
    losses: ItemLosses
    source_mass: Float[Array, "*K_T n"]
    target_mass: Float[Array, "*K_T m"]
    source_items: Int[Array, "*K_T n"]
    target_items: Int[Array, "*K_T m"]


@dataclasses.dataclass(frozen=True)
class ChainSettings:
    """Static settings of an evaluation.

    Attributes:
      rungs: "all", or "tight" for no transport; the upper rungs are inf then.
      max_iterations: of Sinkhorn, for each class and cost.
      source_capacity: source items that a target class can draw on; None for all.
      target_capacity: target items that a class can have.
      tile: rows of the cost held at once; None holds all.
    """

    rungs: str
    max_iterations: int
    source_capacity: int | None
    target_capacity: int
    tile: int | None = None


_ROWS_AT_ONCE = 8192  # rows that are converted to a wider type together


def _in_dtype(
    function: Callable[[Array], Array], features: Array, dtype: jnp.dtype
) -> Array:
    """`function` of the rows in `dtype`, converted a few at a time if they have another
    one.
    """
    if features.dtype == dtype:
        return function(features)

    def convert(rows):
        return function(rows.astype(dtype))

    if len(features) <= _ROWS_AT_ONCE:
        return convert(features)

    def one(row):
        return convert(row[None])[0]

    return lax.map(one, features, batch_size=_ROWS_AT_ONCE)


def prepare_chain(
    transforms: Transforms,
    source: Samples,
    head: SoftmaxHead,
    target: Samples,
    settings: ChainSettings,
) -> ChainInputs:
    """Compute what all target classes share, in the precision of the head.

    Args:
      transforms: label coupling and feature map.
      source, target: samples `(n, d)`, `(m, d)`; rows that the mask leaves out are
        finite.
      head: `(K_S, d)`.
      settings: of the evaluation.
    """
    num_targets, num_sources = transforms.log_joint.shape
    learned = jnp.asarray(transforms.log_joint)
    dtype = jnp.asarray(head.weight).dtype
    source_counts = jax.ops.segment_sum(
        source.mask.astype(jnp.int32), source.labels, num_sources
    )
    order, first, target_counts = sort_by_class(target.labels, target.mask, num_targets)
    active = coupling.log_source_prior(learned) > -jnp.inf
    logits = _in_dtype(head.logits, source.features, dtype)
    own = own_class_losses(logits, source.labels, active)
    class_losses, _ = class_mean(own, source.labels, source.mask, num_sources)
    phi = transforms.feature_map
    pulled = mapped = mapped_logits = None
    if phi.affine and settings.rungs == "all":
        pulled = phi.pull(head)
        if settings.source_capacity is None:
            mapped = phi(source.features.astype(dtype))
            mapped_logits = pulled.logits(mapped)
    return ChainInputs(
        log_joint=reweight_to_sample(learned, source_counts, target_counts),
        log_b=coupling.log_floored_mixing(learned, jnp.asarray(transforms.floor)),
        drawn=learned > -jnp.inf,
        active=active,
        class_losses=class_losses,
        pulled=pulled,
        tau=lipschitz_of_map(phi, head, active),
        source=source,
        logits=logits,
        source_counts=source_counts,
        mapped=mapped,
        mapped_logits=mapped_logits,
        target=target,
        target_logits=_in_dtype(
            lambda rows: phi.target_logits(head, rows), target.features, dtype
        ),
        order=order,
        first=first,
        target_counts=target_counts,
    )


def evaluate_class(
    inputs: ChainInputs,
    feature_map: FeatureMap,
    row: Int[Array, ""],
    epsilon: Float[Array, ""],
    settings: ChainSettings,
) -> ClassChain:
    """Evaluate target class `row`; NaN where it has more items than the settings allow
    for, or no source class to draw on.

    Args:
      inputs: of `prepare_chain`.
      feature_map: of the pair.
      row: the target class t.
      epsilon: entropic regularisation, relative to the mean cost.
      settings: of the evaluation.
    """
    x, capacity = inputs, settings.target_capacity
    dtype = x.logits.dtype
    q = source_mass(x.log_joint[row], x.source.labels, x.source.mask, x.source_counts)
    q, logits, rows = q.astype(dtype), x.logits, None
    lost = x.target_counts[row] > capacity
    if settings.source_capacity is not None:
        size = settings.source_capacity
        lost = lost | (jnp.sum(q > 0) > size)
        (rows,) = jnp.nonzero(q > 0, size=size, fill_value=q.shape[0])
        q = q.at[rows].get(mode="fill", fill_value=0)
        rows = jnp.minimum(rows, x.logits.shape[0] - 1)
        logits = x.logits[rows]
    # The target items of the class, by position in the sorted order.
    position = jnp.arange(capacity, dtype=x.first.dtype)
    columns = x.order[jnp.minimum(x.first[row] + position, x.order.shape[0] - 1)]
    count = x.target_counts[row]
    log_p = coupling.log_target_prior(x.log_joint[row][None])[0]
    share = jnp.exp(log_p) / jnp.maximum(count, 1).astype(log_p.dtype)
    r = jnp.where(position < count, share, 0.0).astype(dtype)
    mapped, mapped_logits, target = x.mapped, x.mapped_logits, None
    if x.pulled is not None:
        target = x.target.features[columns].astype(dtype)
        if rows is not None:
            mapped = feature_map(x.source.features[rows].astype(dtype))
            mapped_logits = x.pulled.logits(mapped)
    terms, losses = class_terms(
        logits,
        mapped,
        mapped_logits,
        q,
        x.target_logits[columns],
        target,
        r,
        x.log_b,
        x.drawn,
        row,
        x.active,
        epsilon,
        rungs=settings.rungs,
        max_iterations=settings.max_iterations,
        tile=settings.tile,
    )
    # A number would be wrong where items or masses are missing.
    stranded = (count > 0) & (log_p == -jnp.inf)
    lost = lost | stranded | (jnp.sum(x.target_counts) == 0)

    def spoil(v):
        floating = jnp.issubdtype(v.dtype, jnp.floating)
        return v + jnp.where(lost, jnp.nan, 0.0).astype(v.dtype) if floating else v

    if rows is None:
        rows = jnp.arange(q.shape[0], dtype=columns.dtype)
    return ClassChain(
        jax.tree.map(spoil, terms), losses, q, r, rows.astype(columns.dtype), columns
    )


def sum_classes(
    inputs: ChainInputs, terms: ClassTerms, affine: bool, rungs: str
) -> Bound:
    """Sum the chain over the target classes.

    Args:
      inputs: of `prepare_chain`.
      terms: of all target classes (leading axis).
      affine: whether the feature map is.
      rungs: of the settings.
    """
    reweighted = reweighted_source_loss(inputs.log_joint, inputs.class_losses)
    total = jax.tree.map(lambda v: jnp.sum(v, axis=0), terms)
    inf = jnp.asarray(jnp.inf, total.tight.dtype)
    transported = rungs == "all"
    directed = total.source_loss + total.directed_upper if transported else inf
    oscillation = total.source_loss + total.oscillation_upper if transported else inf
    # A map whose logits are off by more than rounding has no certified Lipschitz rungs.
    exact = affine and transported
    certified = jnp.max(terms.worst_residual) < _RESIDUAL
    slope = inputs.tau * total.distance_upper + total.residual if exact else inf
    slope = jnp.where(certified, slope, inf)
    mismatch = coupling.label_mismatch(inputs.log_joint, inputs.log_b)
    return Bound(
        tight=total.tight,
        directed=directed,
        oscillation=oscillation,
        lipschitz=total.source_loss + slope,
        theorem=reweighted + mismatch + slope,
        reweighted_source_loss=reweighted,
        label_mismatch=mismatch,
        transformed_source_loss=total.source_loss,
        wasserstein=total.distance_upper if exact else inf,
        directed_wasserstein=total.directed_upper if transported else inf,
        oscillation_wasserstein=total.oscillation_upper if transported else inf,
        lipschitz_constant=inputs.tau,
        prior_entropy=coupling.entropy(coupling.log_target_prior(inputs.log_joint)),
        target_loss=total.target_loss,
        target_accuracy=total.target_hits,
    )


class Chain(NamedTuple):
    """The chain of a pair.

    Attributes:
      bound: its rungs and terms.
      classes: of every target class (leading axis).
    """

    bound: Bound
    classes: ClassChain


@partial(jax.jit, static_argnames=("settings", "together"))
def evaluate_chain(
    transforms: Transforms,
    source: Samples,
    head: SoftmaxHead,
    target: Samples,
    epsilon: Float[Array, ""],
    settings: ChainSettings,
    *,
    together: int | None = None,
) -> Chain:
    """Evaluate the whole chain of a pair (docs/theory.md, section 3.7); pure.

    Args:
      transforms: label coupling and feature map.
      source, target: samples `(n, d)`, `(m, d)`; rows that the mask leaves out are
        finite.
      head: `(K_S, d)`; its precision is that of the evaluation.
      epsilon: entropic regularisation, relative to the mean cost.
      settings: of the evaluation.
      together: target classes that are evaluated side by side; None for one after the
        other.
    """
    phi = transforms.feature_map
    inputs = prepare_chain(transforms, source, head, target, settings)

    def one(row):
        return evaluate_class(inputs, phi, row, epsilon, settings)

    rows = jnp.arange(inputs.first.shape[0], dtype=jnp.int32)
    classes = lax.map(one, rows, batch_size=together)
    bound = sum_classes(inputs, classes.terms, phi.affine, settings.rungs)
    return Chain(bound, classes)


def _largest_class(samples: Samples) -> int:
    """Items of the largest class, padded so that few shapes are compiled; all, where
    labels are traced.
    """
    labels, mask = samples.labels, samples.mask
    if isinstance(labels, Tracer) or isinstance(mask, Tracer):
        return int(samples.features.shape[0])
    counts = np.bincount(np.asarray(labels)[np.asarray(mask)])
    return pad_length(max(int(counts.max(initial=0)), 1))


def bound_terms(
    transforms: Transforms,
    source: Task | Samples,
    head: SoftmaxHead,
    target: Task | Samples,
    *,
    rungs: str = "all",
    epsilon: float | Array = 0.02,
    max_iterations: int = 500,
    capacity: int | None = None,
    tile: int | None = None,
) -> Bound:
    """Evaluate the whole chain as a pure function: under `jit`, `vmap`, `grad` and
    forward mode.

    The transport values are linear costs of feasible plans; their gradients are those
    of the entropic cost at the plan and potentials found (Danskin;
    docs/theory.md, section 3.16). Everything is in the precision of the inputs.

    Args:
      transforms: label coupling and feature map.
      source, target: labelled samples with features `(n_S, d)`, `(n_T, d)`.
      head: `(K_S, d)`.
      rungs: "all", or "tight" to leave out the transport (the upper rungs are then
        inf).
      epsilon: entropic regularisation relative to the mean cost.
      max_iterations: of Sinkhorn, for each class and cost.
      capacity: most target items of one class, static. None takes the largest class
        when labels are concrete and all of `n_T` under a transformation. A class with
        more items gives NaN, as do a class whose source classes have no samples and a
        target without items.
      tile: rows of the cost held at once; None holds `(n_S, capacity)`.

    Returns:
      The bounds of the class-weighted loss `sum_t p_T(t) mean_t`, nats, which is the
      mean loss when the row sums of J are the sample's class shares.
    """
    source, target = masked_samples(source), masked_samples(target)
    head = SoftmaxHead(jnp.asarray(head.weight), jnp.asarray(head.bias))
    if capacity is None:
        capacity = _largest_class(target)
    settings = ChainSettings(
        rungs=rungs,
        max_iterations=max_iterations,
        source_capacity=None,
        target_capacity=capacity,
        tile=tile,
    )
    return _bound_alone(
        transforms, source, head, target, jnp.asarray(epsilon), settings
    )


@partial(jax.jit, static_argnames=("settings",))
def _bound_alone(transforms, source, head, target, epsilon, settings) -> Bound:
    """The bound of `evaluate_chain`, without what it computes of every item."""
    found = evaluate_chain(transforms, source, head, target, epsilon, settings)
    return found.bound
