"""The second stage: what `analyze` does with its default objective, for several sources
of a target at once.

Learning runs on the device in float32: heads refitted on the reweighted source, closed
form and refinement, with everything that depends on the target alone (ridge path,
inverses of the refinement) shared by its sources. The chain of bounds on the held-out
part is then evaluated in float64 on the host's CPU, the target classes of a pair side
by side.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from tta_jax._internal.typing import Array
from tta_jax.bounds.chain import (
    Chain,
    ChainSettings,
    Transforms,
    evaluate_chain,
)
from tta_jax.core import coupling
from tta_jax.core.feature_maps import LogitAffine, affine_completion, completion_gain
from tta_jax.core.heads import SoftmaxHead
from tta_jax.fitting.assignment import SourceFit
from tta_jax.fitting.fit_pair import PairFit, PairSource, fit_pairs, fit_source
from tta_jax.fitting.prepare import HeldSource, HeldTarget, moments
from tta_jax.scans.profiles import (
    SourceInput,
    TargetInput,
    probe_figures,
)
from tta_jax.tasks.task import Samples


class RefinedPairs(NamedTuple):
    """Fits of several sources to one target and the target's source-free probe."""

    fit: PairFit
    probe_loss: Array
    probe_accuracy: Array


def fit_refined_source(x: SourceInput) -> SourceFit:
    """Fit a source; what only screening reads is left out."""
    return fit_source(x.arrays)


def refine_pairs(
    sources: PairSource, target: TargetInput, *, refine: bool
) -> RefinedPairs:
    """Fit one target with several sources (leading axis)."""
    fits, probe = fit_pairs(sources, target.arrays, refine=refine)
    loss, accuracy = probe_figures(probe, target.held)
    number = fits.head.bias.shape[:1]
    return RefinedPairs(
        fits, jnp.broadcast_to(loss, number), jnp.broadcast_to(accuracy, number)
    )


# -- the certificate -------------------------------------------------------------------


class CertificateInput(NamedTuple):
    """A pair and one split as the certificate takes it, float64 on the host. C
    candidate source classes, at most c held-out items of each.

    Attributes:
      head, mapped: `(W, c)` and `(M, m)`, `(C, d)`.
      floor: share of the target prior mixed into the classifier.
      source_mask, source_of: as in `ClassAssignment`.
      log_prior: `log p_T` `(K_T,)` of the learning part.
      source, source_counts: held-out items by class, `(C, c, d)` and `(C,)`.
      target: held-out items, `(m, d)`.
      mean_source, mean_target, gain: for the completion.
    """

    head: SoftmaxHead
    mapped: SoftmaxHead
    floor: Float[Array, ""]
    source_mask: Bool[Array, " C"]
    source_of: Int[Array, " K_T"]
    log_prior: Float[Array, " K_T"]
    source: Float[Array, "C c d"]
    source_counts: Int[Array, " C"]
    target: Samples
    mean_source: Float[Array, " d"]
    mean_target: Float[Array, " d"]
    gain: Float[Array, ""]


@partial(jax.jit, static_argnames=("capacity", "rungs", "max_iterations"))
def certify_pairs(
    pairs: CertificateInput,
    epsilon: Array,
    *,
    capacity: int,
    rungs: str,
    max_iterations: int,
) -> Chain:
    """Evaluate the chains of several pairs (leading axis).

    Args:
      pairs: stacked.
      epsilon: entropic regularisation, relative to the mean cost.
      capacity: most target items of a class.
      rungs, max_iterations: as for `certify`.
    """
    settings = ChainSettings(
        rungs=rungs,
        max_iterations=max_iterations,
        source_capacity=pairs.source.shape[2],
        target_capacity=capacity,
    )
    # One after the other: the classes of one pair fill the vectors, and CPUs gain
    # nothing from more.
    return jax.lax.map(lambda x: _evaluate_pair(x, epsilon, settings), pairs)


def _evaluate_pair(x: CertificateInput, epsilon: Array, settings: ChainSettings):
    classes, per_class, dim = x.source.shape
    log_joint = coupling.log_coupling(
        coupling.assignment_logits(x.source_of, classes), x.log_prior
    )
    completion = None
    if settings.rungs == "all":
        completion, _ = affine_completion(
            x.head, x.mapped, x.source_mask, x.mean_source, x.mean_target, x.gain
        )
    phi = LogitAffine(x.mapped.weight, x.mapped.bias, completion, reason="")
    position = jnp.arange(per_class, dtype=jnp.int32)
    source = Samples(
        x.source.reshape(-1, dim),
        jnp.repeat(jnp.arange(classes, dtype=jnp.int32), per_class),
        (position[None] < x.source_counts[:, None]).ravel(),
    )
    return evaluate_chain(
        Transforms(log_joint, phi, x.floor),
        source,
        x.head,
        x.target,
        epsilon,
        settings,
        together=len(x.log_prior),
    )


class HostSamples(NamedTuple):
    """One split of a task as the host keeps it for certificates.

    Attributes:
      held: its held-out items.
      mean, spread: mean `(d,)` and sum of variances of the features that learn.
    """

    held: HeldSource | HeldTarget
    mean: np.ndarray
    spread: float

    @classmethod
    def of(cls, x: SourceInput | TargetInput) -> HostSamples:
        return cls(x.held, *moments(x.arrays))


def held_groups(
    source_class: np.ndarray, source: HostSamples, target: HostSamples
) -> tuple[np.ndarray, np.ndarray]:
    """Groups of the items of a `CertificateInput`: those of the assigned source classes
    `(C,)`, class by class, and those of the target.
    """
    assert isinstance(source.held, HeldSource)
    assert isinstance(target.held, HeldTarget)
    by_class = np.asarray(source.held.groups)[source_class]
    return by_class.ravel(), np.asarray(target.held.groups)


def certificate_input(
    fit: PairFit,
    log_prior: np.ndarray,
    source: HostSamples,
    target: HostSamples,
    keep: np.ndarray,
) -> CertificateInput:
    """Gather one pair for the certificate from its fit and the host's samples.

    Args:
      fit: of the pair, on the host.
      log_prior: `(K_T,)` float64, `log p_T` of the learning part.
      source, target: of the split.
      keep: `(m,)` bool, False for held-out target items that the source learned from.
    """

    def wide(tree) -> Any:
        return jax.tree.map(lambda v: np.asarray(v, np.float64), tree)

    assert isinstance(source.held, HeldSource)
    assert isinstance(target.held, HeldTarget)
    assert fit.closed_form is not None
    classes = fit.classes
    counts: Any = np.where(
        classes.source_mask, source.held.counts[classes.source_class], 0
    )
    return CertificateInput(
        head=wide(fit.head),
        mapped=wide(SoftmaxHead(fit.closed_form.weight, fit.closed_form.bias)),
        floor=wide(fit.closed_form.floor),
        source_mask=classes.source_mask,
        source_of=classes.source_of,
        log_prior=wide(log_prior),
        source=wide(source.held.features[classes.source_class]),
        source_counts=counts.astype(np.int32),
        target=Samples(
            wide(target.held.features),
            np.asarray(target.held.labels),
            np.asarray(target.held.mask) & keep,
        ),
        mean_source=wide(source.mean),
        mean_target=wide(target.mean),
        gain=wide(completion_gain(source.spread, target.spread)),
    )
