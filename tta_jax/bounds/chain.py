"""From terms to the chain of bounds:
`target_loss <= tight <= oscillation <= lipschitz <= theorem`.

Why it holds, class by class (docs/theory.md, section 3.7). Source items carry masses
`q`, target items masses `r` of equal total; `F`, `G` are the distributions of their
losses `l(B softmax(s), t)`, and `s` are logits, `W z + c` or `M x + m`.

* A change `v` of the logits moves the loss by at most `osc(v) = max v - min v`: the
  numerator of `(B h)_t = sum_k B_tk e^s_k / sum_k e^s_k` changes by a factor between
  `e^min v` and `e^max v`, and so does the denominator.
* `target_loss <= tight`: the mean target loss is `int G^-1`, and `tight` integrates
  `max(F^-1, G^-1)`.
* `tight <= oscillation`: `max(F^-1, G^-1) = F^-1 + (G^-1 - F^-1)_+`; the first part is
  the transformed source loss, and since `x -> x_+` is convex, no coupling makes the
  mean of `(target loss - source loss)_+` smaller than the comonotone one does. Under
  any plan it is at most the plan's mean of `osc(s_i - s_j)`. So every feasible plan
  gives a bound, converged or not.
* `oscillation <= lipschitz`:
  `osc(M (x - x')) = max_jk (M_j - M_k) (x - x') <= tau ||x - x'||`. Both costs are
  evaluated at the plan that was found for the distance, and the oscillation rung takes
  the cheaper of its two plans.
* `lipschitz <= theorem`: of the sum `(B h)_t >= B_tk h_k` one term is left, so
  `-log (B h)_t <= -log h_k - log B_tk`; averaged over J this is the source loss plus
  the label mismatch.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Bool, Float, Int

from tta_jax._internal.typing import Array
from tta_jax.core import coupling
from tta_jax.core.feature_maps import FeatureMap
from tta_jax.core.heads import SoftmaxHead, lipschitz_constant
from tta_jax.core.losses import (
    class_mean,
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

RUNGS = ("tight", "oscillation", "lipschitz", "theorem")

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
    """

    log_joint: Any
    feature_map: FeatureMap

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
        where it does not matter).
        """
        return coupling.label_mixing(jnp.asarray(self.log_joint))

    def predict_log_proba(self, head: SoftmaxHead, features: Any) -> Array:
        """`log h'''(x)` of `h'''(x) = B h(phi^-1(x))`, `(n, K_T)`."""
        log_joint = jnp.asarray(self.log_joint)
        active = coupling.log_source_prior(log_joint) > -jnp.inf
        log_h = log_head(
            self.feature_map.target_logits(head, jnp.asarray(features)), active
        )
        return transformed_log_proba(log_h, log_joint)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bound:
    """The chain of bounds on the target loss of `h'''` and their parts, scalars in nats
    (`wasserstein` in feature units).

    Attributes:
      tight: loss-quantile bound; computed from the target losses, a diagnosis rather
        than a prediction.
      oscillation: `transformed_source_loss + oscillation_wasserstein`.
      lipschitz: `transformed_source_loss + lipschitz_constant * wasserstein`; inf for
        maps without an affine A.
      theorem: `reweighted_source_loss + label_mismatch` and
        `lipschitz_constant * wasserstein`; likewise.
      reweighted_source_loss: `L_rw(D)`.
      label_mismatch: `H(Y''|Y')`.
      transformed_source_loss: `E'''`, the exact loss of `h''` on the transformed
        source, at most the sum of those two.
      wasserstein: upper value of `W_1` between transformed source and target, class by
        class.
      oscillation_wasserstein: upper value of the transport with cost `osc`.
      lipschitz_constant: the certified `tau`.
      prior_entropy: `H(p_T)`, what guessing the prior costs.
      target_loss, target_accuracy: of `h'''` on the target sample, classes weighted by
        `p_T`.
    """

    tight: Any
    oscillation: Any
    lipschitz: Any
    theorem: Any
    reweighted_source_loss: Any
    label_mismatch: Any
    transformed_source_loss: Any
    wasserstein: Any
    oscillation_wasserstein: Any
    lipschitz_constant: Any
    prior_entropy: Any
    target_loss: Any
    target_accuracy: Any

    @property
    def informative(self) -> Any:
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

    source_loss: Any
    target_loss: Any
    target_hits: Any
    tight: Any
    oscillation_upper: Any
    oscillation_lower: Any
    distance_upper: Any
    distance_lower: Any
    residual: Any
    worst_residual: Any
    iterations: Any
    error: Any


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
    """Losses of the items of one class problem, and whether `h'''` names the class for
    the target items.
    """

    source: Any
    target: Any
    hit: Any


@partial(jax.jit, static_argnames=("rungs", "max_iterations", "fixed", "tile"))
def class_terms(
    logits: Float[Array, "n K_S"],
    mapped: Float[Array, "n d"] | None,
    mapped_logits: Float[Array, "n K_S"] | None,
    q: Float[Array, " n"],
    target_logits: Float[Array, "m K_S"],
    target: Float[Array, "m d"] | None,
    r: Float[Array, " m"],
    log_b: Float[Array, "K_T K_S"],
    row: Int[Array, ""],
    active: Bool[Array, " K_S"],
    epsilon: Float[Array, ""],
    *,
    rungs: str = "all",
    max_iterations: int = 1000,
    fixed: bool = False,
    tile: int | None = None,
) -> tuple[ClassTerms, ItemLosses]:
    """All integrals of one target class t, and the losses they integrate.

    Args:
      logits, mapped, mapped_logits, q: source rows: `W z + c (n, K_S)`, `phi(z) (n, d)`
        and the logits there (None without an affine map), masses `(n,)`.
      target_logits, target, r: rows of target class t: `(m, K_S)`, `(m, d)` or None,
        masses `(m,)`.
      log_b: `(K_T, K_S)`, `log B`.
      row: the class t.
      active: `(K_S,)` bool.
      epsilon: relative to the mean cost.
      rungs: "all", or "tight" for no transport at all.
    """
    n = logits.shape[0]
    log_h = log_head(jnp.concatenate([logits, target_logits]), active)
    losses = loss_of_class(log_h, log_b[row])
    log_h_target, source_losses, target_losses = log_h[n:], losses[:n], losses[n:]
    named = jnp.argmax(
        lax.map(
            lambda b: coupling.safe_logsumexp(log_h_target + b[None], axis=1), log_b
        ),
        axis=0,
    )
    hit = named.astype(jnp.int32) == row.astype(jnp.int32)
    items = ItemLosses(source_losses, target_losses, hit)
    inf, zero = jnp.asarray(jnp.inf, logits.dtype), jnp.zeros((), logits.dtype)
    out = ClassTerms(
        source_loss=expected_loss(source_losses, q),
        target_loss=expected_loss(target_losses, r),
        target_hits=jnp.sum(jnp.where(hit, r, 0.0)),
        tight=quantile_coupling(source_losses, q, target_losses, r),
        oscillation_upper=inf,
        oscillation_lower=zero,
        distance_upper=inf,
        distance_lower=zero,
        residual=zero,
        worst_residual=zero,
        iterations=jnp.zeros(2, jnp.int32),
        error=jnp.zeros(2, jnp.float32),
    )
    if rungs == "tight":
        return out, items

    def oscillation(rows):
        return oscillation_cost(rows[0], target_logits, active)

    def distance(rows):
        return euclidean_cost(rows[1], target)

    rows = (logits, mapped)
    costs = [oscillation] if mapped is None else [oscillation, distance]
    moved = solve(
        costs,
        rows,
        q,
        r,
        epsilon,
        max_iterations=max_iterations,
        fixed=fixed,
        tile=tile,
    )
    out = out._replace(
        # Any plan is feasible for any cost, so the cheapest counts, and the chain holds
        # whatever the solver did.
        oscillation_upper=jnp.minimum(moved[0].upper, moved[-1].other),
        oscillation_lower=moved[0].lower,
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
        distance_upper=moved[1].upper,
        distance_lower=moved[1].lower,
        residual=expected_loss(residual, q),
        worst_residual=jnp.max(jnp.where(q > 0, residual, 0.0)) / size,
    )
    return out, items


def sum_class_terms(
    parts: ClassTerms,
    log_joint: Float[Array, "K_T K_S"],
    log_b: Float[Array, "K_T K_S"],
    class_losses: Float[Array, " K_S"],
    tau: Float[Array, ""],
    affine: bool,
    rungs: str,
) -> Bound:
    """The chain from the target classes' terms (leading axis), masses `log_joint`, the
    classifier's `log_b` and constant, and the mean loss of each source class
    `(K_S,)`.
    """
    reweighted = reweighted_source_loss(log_joint, class_losses)
    total = jax.tree.map(lambda v: jnp.sum(v, axis=0), parts)
    inf = jnp.asarray(jnp.inf, total.tight.dtype)
    oscillation = total.source_loss + total.oscillation_upper if rungs == "all" else inf
    # A map whose logits are off by more than rounding has no certified Lipschitz rungs.
    exact = affine and rungs == "all"
    certified = jnp.max(parts.worst_residual) < _RESIDUAL
    slope = tau * total.distance_upper + total.residual if exact else inf
    slope = jnp.where(certified, slope, inf)
    mismatch = coupling.label_mismatch(log_joint, log_b)
    return Bound(
        tight=total.tight,
        oscillation=oscillation,
        lipschitz=total.source_loss + slope,
        theorem=reweighted + mismatch + slope,
        reweighted_source_loss=reweighted,
        label_mismatch=mismatch,
        transformed_source_loss=total.source_loss,
        wasserstein=total.distance_upper if exact else inf,
        oscillation_wasserstein=total.oscillation_upper if rungs == "all" else inf,
        lipschitz_constant=tau,
        prior_entropy=coupling.entropy(coupling.log_target_prior(log_joint)),
        target_loss=total.target_loss,
        target_accuracy=total.target_hits,
    )


def lipschitz_of_map(
    feature_map: FeatureMap, head: SoftmaxHead, active: Bool[Array, " K_S"]
) -> Float[Array, ""]:
    """The certified Lipschitz constant of the transformed classifier; inf for maps that
    are not affine.
    """
    if not feature_map.affine:
        return jnp.asarray(jnp.inf, jnp.asarray(head.weight).dtype)
    return lipschitz_constant(feature_map.pull(head).weight, active)


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
    """The whole chain as a pure function: works under `jit`, `vmap`, `grad` and forward
    mode.

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
      capacity: room for target items of one class, static. None takes the largest class
        when labels are concrete and all of `n_T` under a transformation. A class with
        more items than room gives NaN, as do a class whose source classes have no
        samples and a target without items.
      tile: rows of the cost held at once; None holds `(n_S, capacity)`.

    Returns:
      The bounds of the class-weighted loss `sum_t p_T(t) mean_t`, which is the mean
      loss when the row sums of J are the sample's class shares.
    """
    source, target = masked_samples(source), masked_samples(target)
    head = SoftmaxHead(jnp.asarray(head.weight), jnp.asarray(head.bias))
    num_targets, num_sources = transforms.log_joint.shape
    source_counts = jax.ops.segment_sum(
        source.mask.astype(jnp.int32), source.labels, num_sources
    )
    order, first, target_counts = sort_by_class(target.labels, target.mask, num_targets)
    if capacity is None:
        concrete = not isinstance(target_counts, Tracer)
        capacity = (
            max(int(np.max(target_counts)), 1)
            if concrete
            else int(target.features.shape[0])
        )

    learned = jnp.asarray(transforms.log_joint)
    log_joint = reweight_to_sample(learned, source_counts, target_counts)
    logits = head.logits(source.features)
    log_b, active = (
        coupling.log_mixing(learned),
        coupling.log_source_prior(learned) > -jnp.inf,
    )
    own = own_class_losses(logits, source.labels, active)
    class_losses, _ = class_mean(own, source.labels, source.mask, num_sources)
    phi = transforms.feature_map
    target_logits = phi.target_logits(head, target.features)
    mapped = mapped_logits = None
    if phi.affine and rungs == "all":
        mapped = phi(source.features)
        mapped_logits = phi.pull(head).logits(mapped)
    log_p = coupling.log_target_prior(log_joint)

    # Rows of each target class, gathered into (K_T, capacity).
    slots = jnp.arange(capacity, dtype=jnp.int32)
    index = order[jnp.minimum(first[:, None] + slots[None], order.shape[0] - 1)]
    inside = slots[None] < target_counts[:, None]
    share = jnp.exp(log_p) / jnp.maximum(target_counts, 1).astype(log_p.dtype)
    # Items without room, classes without a source to draw on, no items at all: a number
    # would be wrong, so NaN.
    stranded = (target_counts > 0) & (log_p == -jnp.inf)
    lost = (
        (target_counts > jnp.asarray(capacity))
        | stranded
        | (jnp.sum(target_counts) == 0)
    )
    poison = jnp.where(lost, jnp.nan, 0.0).astype(logits.dtype)

    def one(t):
        q = source_mass(log_joint[t], source.labels, source.mask, source_counts)
        rows = index[t]
        r = jnp.where(inside[t], share[t], 0.0).astype(logits.dtype)
        parts, _ = class_terms(
            logits,
            mapped,
            mapped_logits,
            q.astype(logits.dtype),
            target_logits[rows],
            None if mapped is None else target.features[rows],
            r,
            log_b,
            t,
            active,
            jnp.asarray(epsilon),
            rungs=rungs,
            max_iterations=max_iterations,
            tile=tile,
        )

        def spoil(v):
            return (
                v + poison[t].astype(v.dtype)
                if jnp.issubdtype(v.dtype, jnp.floating)
                else v
            )

        return jax.tree.map(spoil, parts)

    parts = lax.map(one, jnp.arange(num_targets))
    return sum_class_terms(
        parts,
        log_joint,
        log_b,
        class_losses,
        lipschitz_of_map(phi, head, active),
        phi.affine,
        rungs,
    )
