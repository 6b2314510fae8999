"""Ground truth by probes: many tasks at once are the tasks one by one; figures and
classifiers against scikit-learn.
"""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier

import tta_jax as tta
from tta_jax.probes import CALIBRATION_BINS, judge
from tta_jax.tasks.standardizer import Standardizer


def task(seed, n, d, classes, spread=1.0, centres=0):
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(classes), rng.integers(0, classes, n - classes)]
    means = spread * np.random.default_rng(centres).normal(size=(classes, d))
    x = (rng.normal(size=(n, d)) + means[y]).astype(np.float32)
    return tta.Task.from_arrays(
        x, y, [f"c{k}" for k in range(classes)], name=f"task {seed}"
    )


SHAPES = [(70, 6, 3), (75, 6, 3), (40, 6, 3), (70, 9, 3), (70, 6, 4), (78, 6, 3)]
PAIRS = [
    (task(k, *shape, centres=k), task(100 + k, 50 + k, *shape[1:], centres=k))
    for k, shape in enumerate(SHAPES)
]


@pytest.mark.slow
@pytest.mark.parametrize("probe", [tta.linear_probe, tta.knn])
def test_tasks_side_by_side_are_the_tasks_one_by_one(probe):
    trains, tests = zip(*PAIRS, strict=True)
    together = probe(trains, tests)
    assert len(together) == len(PAIRS)
    for one, (train, test) in zip(together, PAIRS, strict=True):
        alone = probe(train, test)
        for name in ("accuracy", "items"):
            assert getattr(one, name) == getattr(alone, name)
        for name in (
            "loss",
            "calibration_error",
            "brier",
            "l2" if probe is tta.linear_probe else "k",
        ):
            assert getattr(one, name) == pytest.approx(getattr(alone, name), rel=2e-3)
        assert one.score == pytest.approx(1 - one.loss / one.prior_entropy)


def test_figures_are_their_definitions():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(4, 0.4), 500)
    labels = rng.integers(0, 4, 500)
    found = judge(np.log(p), labels)
    assert found.loss == pytest.approx(log_loss(labels, p, labels=range(4)), rel=1e-12)
    assert found.accuracy == (p.argmax(1) == labels).mean()
    assert found.brier == pytest.approx(((p - np.eye(4)[labels]) ** 2).sum(1).mean())
    error = 0.0
    for low in np.arange(CALIBRATION_BINS) / CALIBRATION_BINS:
        inside = (p.max(1) >= low) & (p.max(1) < low + 1 / CALIBRATION_BINS)
        if inside.any():
            error += inside.mean() * abs(
                (p.argmax(1) == labels)[inside].mean() - p.max(1)[inside].mean()
            )
    assert found.calibration_error == pytest.approx(error)
    shares = np.bincount(labels) / 500
    assert found.prior_entropy == pytest.approx(-(shares * np.log(shares)).sum())


def test_labels_drawn_from_the_probabilities_are_calibrated():
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.full(3, 1.0), 40_000)
    labels = (rng.random(40_000)[:, None] > p.cumsum(1)).sum(1)
    assert judge(np.log(p), labels).calibration_error < 0.01
    assert (
        judge(np.log(p**3 / (p**3).sum(1, keepdims=True)), labels).calibration_error
        > 0.1
    )  # too sure


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_the_linear_probe_is_penalised_logistic_regression(l2):
    train, test = PAIRS[0]
    scaler = Standardizer.fit(np.asarray(train.features), clip=5.0)
    x, u = (
        np.asarray(scaler(np.asarray(one.features)), np.float64)
        for one in (train, test)
    )
    model = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-10, max_iter=10_000).fit(
        x, np.asarray(train.labels)
    )
    found = tta.linear_probe(train, test, l2)
    assert found.loss == pytest.approx(
        log_loss(np.asarray(test.labels), model.predict_proba(u)), rel=1e-3
    )
    assert found.l2 == pytest.approx(l2)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_neighbours_vote_as_scikit_learns_do(distance):
    train, test = PAIRS[1]
    scaler = Standardizer.fit(np.asarray(train.features), clip=5.0)
    x, u = (
        np.asarray(scaler(np.asarray(one.features)), np.float64)
        for one in (train, test)
    )
    y, v = np.asarray(train.labels), np.asarray(test.labels)
    model = KNeighborsClassifier(7, metric=distance, algorithm="brute").fit(x, y)
    p = (7 * model.predict_proba(u) + np.bincount(y) / len(y)) / 8
    found = tta.knn(train, test, 7, distance=distance)
    assert found.loss == pytest.approx(log_loss(v, p), rel=1e-5)
    assert found.accuracy == (p.argmax(1) == v).mean()


@pytest.mark.slow
def test_the_decay_is_chosen_by_held_out_items():
    """Few items of many features want much decay, many items of few features little."""
    noisy = tta.linear_probe(task(7, 40, 60, 3, 0.2), task(8, 200, 60, 3, 0.2))
    plain = tta.linear_probe(task(9, 900, 3, 3, 1.0), task(10, 200, 3, 3, 1.0))
    assert noisy.l2 > plain.l2
    assert noisy.loss < 1.25 * noisy.prior_entropy
    assert (
        noisy.loss
        <= tta.linear_probe(
            task(7, 40, 60, 3, 0.2), task(8, 200, 60, 3, 0.2), 1e-6
        ).loss
    )


def test_lists_have_to_be_as_long():
    train, test = PAIRS[0]
    for call in (
        lambda: tta.knn([train], [test, test]),
        lambda: tta.linear_probe(train, [test]),
    ):
        with pytest.raises(ValueError, match=r"^test: "):
            call()
