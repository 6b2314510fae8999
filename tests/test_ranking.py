"""Statistics of rankings against SciPy, brute force and published tables."""

import itertools

import numpy as np
import pytest
from published_tables import SCORES, TABLES
from scipy import stats

from tta_jax import ranking


def tables(seed, ties):
    rng = np.random.default_rng(seed)
    scores, truth = rng.normal(size=(2, 7, 9))
    return (np.round(scores), np.round(truth)) if ties else (scores, truth)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("pearson", lambda s, t: stats.pearsonr(s, t)[0]),
        ("spearman", lambda s, t: stats.spearmanr(s, t)[0]),
        ("kendall", lambda s, t: stats.kendalltau(s, t)[0]),
        ("weighted_tau", lambda s, t: stats.weightedtau(s, t)[0]),
        ("weighted_tau_by_score", lambda s, t: stats.weightedtau(s, t, rank=None)[0]),
        ("weighted_tau_by_truth", lambda s, t: stats.weightedtau(t, s, rank=None)[0]),
    ],
)
def test_correlations_are_scipys(name, oracle, ties):
    for seed in range(20):
        scores, truth = tables(seed, ties)
        expected = [oracle(s, t) for s, t in zip(scores, truth, strict=True)]
        np.testing.assert_allclose(ranking.STATISTICS[name](scores, truth), expected, rtol=1e-12, atol=1e-12)


def test_what_has_no_correlation_is_nan():
    flat, other = np.full((1, 5), 0.1), np.arange(5.0)[None]
    for name in ("pearson", "spearman", "kendall", "weighted_tau", "weighted_tau_by_score", "weighted_tau_by_truth"):
        assert np.isnan(ranking.STATISTICS[name](flat, other)).all()
        assert np.isnan(ranking.STATISTICS[name](other, flat)).all()


def chosen(scores, truth, k):
    """Mean over all ways to break ties among the models of highest score."""
    best = sorted(scores, reverse=True)[k - 1]
    sure = [t for s, t in zip(scores, truth, strict=True) if s > best]
    tied = [t for s, t in zip(scores, truth, strict=True) if s == best]
    return np.mean([max([*sure, *some]) for some in itertools.combinations(tied, k - len(sure))])


@pytest.mark.parametrize("ties", [False, True])
def test_regret_is_that_of_every_choice_among_ties(ties):
    for seed in range(20):
        scores, truth = tables(seed, ties)
        truth = np.abs(truth) + 0.1
        for k in (1, 3):
            expected = [t.max() - chosen(s, t, k) for s, t in zip(scores, truth, strict=True)]
            np.testing.assert_allclose(ranking.regret(k)(scores, truth), expected, atol=1e-12)
        expected = [chosen(s, t, 1) / t.max() for s, t in zip(scores, truth, strict=True)]
        np.testing.assert_allclose(ranking.relative_accuracy(scores, truth), expected, atol=1e-12)


def test_regret_of_more_models_than_there_are_is_none():
    assert ranking.regret(3)(np.array([[1.0, 2.0]]), np.array([[0.3, 0.2]])) == 0


def decimals(column):
    return max(len(repr(float(v)).split(".")[1]) for v in column)


@pytest.mark.parametrize("name", TABLES)
def test_published_tables_are_reproduced_as_far_as_their_digits_go(name):
    """Some scores and accuracies that round to the printed ones give the printed correlation."""
    truth, *rest = (np.array(column) for column in TABLES[name])
    scores, printed = rest[: len(SCORES)], dict(zip(("pearson", "weighted_tau"), rest[len(SCORES) :], strict=True))
    rng = np.random.default_rng(0)
    unrounded = lambda column: column + rng.uniform(-0.5, 0.5, (4000, len(column))) * 10.0 ** -decimals(column)
    for statistic, values in printed.items():
        for column, value in zip(scores, values, strict=True):
            found = ranking.STATISTICS[statistic](unrounded(column), unrounded(truth))
            assert found.min() - 0.0005 <= value <= found.max() + 0.0005, (statistic, value)
            assert np.ptp(found) < 0.15  # which is a statement: the digits do not allow much else
