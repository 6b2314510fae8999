"""What every metric needs, costs and comes from; one table for commands, tests and
documentation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tta_jax.metrics.cv_linear_probe import linear_probe
from tta_jax.metrics.etran import etran_energy, etran_lda
from tta_jax.metrics.gbc import gbc, log_gbc
from tta_jax.metrics.h_score import h_score
from tta_jax.metrics.jc_nce import jc_nce
from tta_jax.metrics.leep import leep
from tta_jax.metrics.logme import logme
from tta_jax.metrics.loo_knn import knn
from tta_jax.metrics.nce import nce
from tta_jax.metrics.ncti import ncti_collapse, ncti_ncc, ncti_seli
from tta_jax.metrics.nleep import COMPONENTS_PER_CLASS, nleep
from tta_jax.metrics.otce import otce, otce_wasserstein
from tta_jax.metrics.otdd import otdd
from tta_jax.metrics.pactran import pactran
from tta_jax.metrics.parc import parc
from tta_jax.metrics.sfda import sfda
from tta_jax.metrics.shrinkage_h_score import shrinkage_h_score
from tta_jax.metrics.transrate import transrate

MOST_PAIRS = 100_000_000  # pairs of items that PARC holds


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a refusal looks at: items with labels, features, classes with items."""

    items: int
    dim: int
    classes: int


@dataclasses.dataclass(frozen=True)
class Metric:
    """One baseline.

    Attributes:
      name: as in `tta_jax.metrics`.
      function: `(features, labels, source, *, mask, num_classes, ...) -> scalar`,
        larger means better transfer.
      needs: what `source` is: "nothing", "probabilities" (n, K_S) of the source head,
        or the source "task".
      cost: operations and memory beyond the features, for n items, m of the source, d
        features, K classes.
      reference: where it comes from.
      differentiable: whether `jax.grad` with respect to features (or probabilities)
        gives its gradient.
      sees_scale: whether multiplying all features by a number changes it; then compare
        within one encoder, or standardise.
      takes: what else `compute` passes on: "key", "groups", "fold",
        "num_source_classes".
      underflows: whether 0 means that nothing is left of it.
      refuse: why it cannot be computed on such a task, or None.
      undefined: what an infinite value, a NaN or an underflow to 0 means.
    """

    name: str
    function: Callable[..., Any]
    needs: str
    cost: str
    reference: str
    differentiable: bool = True
    sees_scale: bool = False
    takes: tuple[str, ...] = ()
    underflows: bool = False
    refuse: Callable[[Facts], str | None] = lambda facts: None
    undefined: str = "it is not a number; the features may be constant"


def _too_few_items(facts: Facts) -> str | None:
    if facts.items > facts.dim + 1:
        return None
    return (
        f"with {facts.items} items and {facts.dim} features it is "
        f"{facts.classes - 1} whatever the labels are"
    )


def _too_many_pairs(facts: Facts) -> str | None:
    pairs = facts.items * (facts.items - 1) // 2
    return (
        f"needs memory for {pairs:,} pairs of items; thin the task"
        if pairs > MOST_PAIRS
        else None
    )


def _too_few_for_mixture(facts: Facts) -> str | None:
    number = COMPONENTS_PER_CLASS * facts.classes
    return (
        f"a mixture of {number} Gaussians needs as many items; there are {facts.items}"
        if facts.items < number
        else None
    )


_EVIDENCE = (
    "the labels are an exact linear function of the features; the evidence has no bound"
)
_SPD = "n d^2 + d^3"
_GRAM = "n d r + r^3, r = min(n, d)"
_SOURCE = ("num_source_classes",)
_TRANSPORT = "n m (d + iterations); memory of one tile"

METRICS = (
    Metric(
        "leep", leep, "probabilities", "n K_S K", "Nguyen et al. 2020, arXiv 2002.12462"
    ),
    Metric(
        "nce",
        nce,
        "probabilities",
        "n K_S K",
        "Tran et al. 2019, arXiv 1908.08142",
        differentiable=False,
    ),
    Metric(
        "nleep",
        nleep,
        "nothing",
        f"{_GRAM}; K n p^2 an EM step",
        "Li et al. 2021, arXiv 2011.11200",
        differentiable=False,
        refuse=_too_few_for_mixture,
        takes=("key",),
    ),
    Metric(
        "logme",
        logme,
        "nothing",
        _GRAM,
        "You et al. 2021, arXiv 2102.11005",
        undefined=_EVIDENCE,
    ),
    Metric(
        "h_score",
        h_score,
        "nothing",
        _GRAM,
        "Bao et al. 2019, ICIP",
        refuse=_too_few_items,
    ),
    Metric(
        "shrinkage_h_score",
        shrinkage_h_score,
        "nothing",
        _SPD,
        "Ibrahim et al. 2022, arXiv 2110.06893",
    ),
    Metric(
        "transrate", transrate, "nothing", _GRAM, "Huang et al. 2022, arXiv 2106.09362"
    ),
    Metric(
        "parc",
        parc,
        "nothing",
        "n^2 (d + ln n); memory n^2",
        "Bolya et al. 2021, arXiv 2111.06977",
        differentiable=False,
        refuse=_too_many_pairs,
        undefined=(
            "an item's features are all alike, so it has no correlation with others"
        ),
    ),
    Metric(
        "gbc",
        gbc,
        "nothing",
        f"{_GRAM}; K^2 64",
        "Pandy et al. 2022, arXiv 2111.12780",
        sees_scale=True,
        underflows=True,
        undefined="it underflows to 0; log_gbc gives the same order",
    ),
    Metric(
        "log_gbc",
        log_gbc,
        "nothing",
        f"{_GRAM}; K^2 64",
        "Pandy et al. 2022, arXiv 2111.12780",
        sees_scale=True,
    ),
    Metric(
        "sfda",
        sfda,
        "nothing",
        f"{_SPD}; {_GRAM}",
        "Shao et al. 2022, arXiv 2207.03036",
        sees_scale=True,
    ),
    Metric(
        "ncti_seli",
        ncti_seli,
        "nothing",
        _GRAM,
        "Wang et al. 2023, ICCV",
        sees_scale=True,
    ),
    Metric(
        "ncti_ncc",
        ncti_ncc,
        "nothing",
        _GRAM,
        "Wang et al. 2023, ICCV",
        sees_scale=True,
    ),
    Metric(
        "ncti_collapse",
        ncti_collapse,
        "nothing",
        f"{_GRAM}; n K^2",
        "Wang et al. 2023, ICCV",
        sees_scale=True,
    ),
    Metric(
        "etran_energy",
        etran_energy,
        "nothing",
        "n d",
        "Gholami et al. 2023, arXiv 2308.02027",
        sees_scale=True,
    ),
    Metric(
        "etran_lda",
        etran_lda,
        "nothing",
        f"{_SPD}; {_GRAM}",
        "Gholami et al. 2023, arXiv 2308.02027",
        sees_scale=True,
    ),
    Metric(
        "pactran",
        pactran,
        "nothing",
        "n d K a step",
        "Ding et al. 2022, arXiv 2203.05126",
        differentiable=False,
        sees_scale=True,
    ),
    Metric(
        "otce",
        otce,
        "task",
        _TRANSPORT,
        "Tan et al. 2021, arXiv 2103.13843",
        differentiable=False,
        takes=_SOURCE,
    ),
    Metric(
        "otce_wasserstein",
        otce_wasserstein,
        "task",
        _TRANSPORT,
        "Tan et al. 2021, arXiv 2103.13843",
        differentiable=False,
        sees_scale=True,
        takes=_SOURCE,
    ),
    Metric(
        "jc_nce",
        jc_nce,
        "task",
        f"{_TRANSPORT}; the same for every pair of classes",
        "Tan et al. 2021, arXiv 2106.10479",
        differentiable=False,
        takes=_SOURCE,
    ),
    Metric(
        "otdd",
        otdd,
        "task",
        f"{_TRANSPORT}; K_S K s^2 (d + s), s the largest class",
        "Alvarez-Melis, Fusi 2020, arXiv 2002.02923",
        sees_scale=True,
        takes=_SOURCE,
    ),
    Metric(
        "knn",
        knn,
        "nothing",
        "n^2 d; memory of one tile",
        "leave-one-out; see arXiv 2503.18528",
        differentiable=False,
        takes=("groups",),
    ),
    Metric(
        "linear_probe",
        linear_probe,
        "nothing",
        "folds decays d^3 + n d K a step",
        "cross-validated",
        differentiable=False,
        takes=("fold",),
    ),
)

REGISTRY = {metric.name: metric for metric in METRICS}
