"""Published baselines under one signature, one file each: larger means better transfer.

    metric(features (n, d), labels (n,), source=None, *, mask=None, num_classes=None,
    ...) -> scalar

`source` is what a metric needs to know of the source: nothing, its head's probabilities
`(n, K_S)` for the target's items, or the source task (`Task` or `Samples`). `mask (n,)`
is False for padding. `num_classes` is static; it is read off concrete labels when left
out, and has to be given under `jit` and `vmap`. All are pure and keep the dtype of the
features; under `vmap` every array gets a leading axis:

    jax.vmap(functools.partial(logme, num_classes=10))(features, labels)

Bad concrete input is refused with a ValueError; under `jit` a label that is no class
makes a metric NaN. `REGISTRY` tells what each needs, costs and comes from; `compute`
gives all of them for a `Task`, with reasons for those that cannot be had, `tabulate`
for many; `pooling` holds scores that exist over a pool of models only.
"""

from tta_jax.metrics import pooling
from tta_jax.metrics._inputs import LabelledFeatures
from tta_jax.metrics._registry import REGISTRY, Metric, load_registered, metric
from tta_jax.metrics.compute import Score, compute, tabulate

# isort: off
# A metric is registered when it is imported: this is the order of `REGISTRY`.
from tta_jax.metrics.leep import leep
from tta_jax.metrics.nce import nce
from tta_jax.metrics.nleep import nleep
from tta_jax.metrics.logme import logme, logme_regression
from tta_jax.metrics.h_score import h_score
from tta_jax.metrics.shrinkage_h_score import shrinkage_h_score
from tta_jax.metrics.transrate import transrate
from tta_jax.metrics.parc import parc
from tta_jax.metrics.gbc import gbc, log_gbc
from tta_jax.metrics.sfda import sfda
from tta_jax.metrics.ncti import ncti_seli, ncti_ncc, ncti_collapse
from tta_jax.metrics.etran import etran_energy, etran_lda
from tta_jax.metrics.pactran import pactran
from tta_jax.metrics.otce import otce, otce_wasserstein
from tta_jax.metrics.jc_nce import jc_nce
from tta_jax.metrics.otdd import otdd
from tta_jax.metrics.loo_knn import knn
from tta_jax.metrics.cv_linear_probe import linear_probe

# isort: on

__all__ = [
    "REGISTRY",
    "LabelledFeatures",
    "Metric",
    "Score",
    "compute",
    "etran_energy",
    "etran_lda",
    "gbc",
    "h_score",
    "jc_nce",
    "knn",
    "leep",
    "linear_probe",
    "load_registered",
    "log_gbc",
    "logme",
    "logme_regression",
    "metric",
    "nce",
    "ncti_collapse",
    "ncti_ncc",
    "ncti_seli",
    "nleep",
    "otce",
    "otce_wasserstein",
    "otdd",
    "pactran",
    "parc",
    "pooling",
    "sfda",
    "shrinkage_h_score",
    "tabulate",
    "transrate",
]
