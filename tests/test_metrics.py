"""Every metric against an oracle, on tasks of every kind; laws that all of them keep; gradients; what is refused."""

import warnings

import metric_oracles as oracles
import numpy as np
import pytest

from tta_jax.metrics.registry import REGISTRY
from tta_jax.task import Samples

CASES = range(54)
ROWS, SOURCE_ROWS = 48, 32
NAMES = list(REGISTRY)

ORACLES = {
    "leep": oracles.leep, "nce": oracles.nce, "logme": oracles.logme, "h_score": oracles.h_score,
    "shrinkage_h_score": oracles.shrinkage_h_score, "transrate": oracles.transrate, "parc": oracles.parc, "gbc": oracles.gbc,
    "log_gbc": oracles.log_gbc, "sfda": oracles.sfda, "etran_energy": oracles.etran_energy, "etran_lda": oracles.etran_lda,
    "ncti_seli": lambda c: oracles.ncti(c)[0], "ncti_ncc": lambda c: oracles.ncti(c)[1],
    "ncti_collapse": lambda c: oracles.ncti(c)[2],
    "pactran": oracles.pactran, "otce": lambda c: oracles.otce(c)[0], "otce_wasserstein": lambda c: oracles.otce(c)[1],
    "jc_nce": oracles.jc_nce, "otdd": oracles.otdd, "knn": oracles.knn,
}  # fmt: skip


def padded(values, rows, fill):
    """With rows of rubbish at the end, which a mask has to hide."""
    return np.concatenate([values, np.full((rows - len(values), *values.shape[1:]), fill, values.dtype)])


def source_of(name, c):
    if REGISTRY[name].needs == "probabilities":
        return padded(c.theta, ROWS, np.nan)
    if REGISTRY[name].needs == "task":
        return Samples(padded(c.u, SOURCE_ROWS, np.nan), padded(c.v, SOURCE_ROWS, 7), np.arange(SOURCE_ROWS) < len(c.v))
    return None


def options_of(name):
    """Static sizes, the same for all cases, so that few programs are compiled."""
    found = {"num_classes": oracles.MOST_CLASSES}
    if REGISTRY[name].needs == "task":
        found["num_source_classes"] = 4
    if name in ("transrate", "ncti_collapse", "jc_nce", "otdd"):
        found["class_size"] = ROWS
    return found


def evaluate(name, c, **options):
    mask = np.arange(ROWS) < len(c.y)
    x, y = padded(c.x, ROWS, np.inf), padded(c.y, ROWS, -9)
    return float(REGISTRY[name].function(x, y, source_of(name, c), mask=mask, **options_of(name), **options))


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.usefixtures("x64")
def test_metrics_equal_their_definitions(name):
    """54 tasks: n < d and n > d, two to five unbalanced classes, copies; padding and classes without items in all of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [ORACLES[name](oracles.case(seed)) for seed in CASES]
    found = [evaluate(name, oracles.case(seed)) for seed in CASES]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_every_metric_has_an_oracle():
    assert set(ORACLES) | {"nleep", "linear_probe"} == set(REGISTRY)
