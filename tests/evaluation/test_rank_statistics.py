"""Statistics of rankings against SciPy, brute force and published tables."""

import itertools

import numpy as np
import pytest
from scipy import stats

import tta_jax as tta
from tests.reference.published_tables import FILE, PRINTED, columns
from tests.typed import anything
from tta_jax.evaluation import evaluate, rank_statistics


def tables(seed, ties):
    rng = np.random.default_rng(seed)
    scores, truth = rng.normal(size=(2, 7, 9))
    return (np.round(scores), np.round(truth)) if ties else (scores, truth)


def tau_by_first(s, t):
    return stats.weightedtau(s, t, rank=anything(None))[0]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("pearson", lambda s, t: stats.pearsonr(s, t)[0]),
        ("spearman", lambda s, t: stats.spearmanr(s, t)[0]),
        ("kendall", lambda s, t: stats.kendalltau(s, t)[0]),
        ("weighted_tau", lambda s, t: stats.weightedtau(s, t)[0]),
        ("weighted_tau_by_score", tau_by_first),
        ("weighted_tau_by_truth", lambda s, t: tau_by_first(t, s)),
    ],
)
def test_correlations_are_scipys(name, oracle, ties):
    for seed in range(20):
        scores, truth = tables(seed, ties)
        expected = [oracle(s, t) for s, t in zip(scores, truth, strict=True)]
        np.testing.assert_allclose(
            rank_statistics.STATISTICS[name](scores, truth),
            expected,
            rtol=1e-12,
            atol=1e-12,
        )


def test_what_has_no_correlation_is_nan():
    flat, other = np.full((1, 5), 0.1), np.arange(5.0)[None]
    for name in (
        "pearson",
        "spearman",
        "kendall",
        "weighted_tau",
        "weighted_tau_by_score",
        "weighted_tau_by_truth",
    ):
        assert np.isnan(rank_statistics.STATISTICS[name](flat, other)).all()
        assert np.isnan(rank_statistics.STATISTICS[name](other, flat)).all()


def chosen(scores, truth, k):
    """Mean over all ways to break ties among the models of highest score."""
    best = sorted(scores, reverse=True)[k - 1]
    sure = [t for s, t in zip(scores, truth, strict=True) if s > best]
    tied = [t for s, t in zip(scores, truth, strict=True) if s == best]
    return np.mean(
        [max([*sure, *some]) for some in itertools.combinations(tied, k - len(sure))]
    )


@pytest.mark.parametrize("ties", [False, True])
def test_regret_is_that_of_every_choice_among_ties(ties):
    for seed in range(20):
        scores, truth = tables(seed, ties)
        truth = np.abs(truth) + 0.1
        for k in (1, 3):
            expected = [
                t.max() - chosen(s, t, k) for s, t in zip(scores, truth, strict=True)
            ]
            np.testing.assert_allclose(
                rank_statistics.regret(k)(scores, truth), expected, atol=1e-12
            )
        expected = [
            chosen(s, t, 1) / t.max() for s, t in zip(scores, truth, strict=True)
        ]
        np.testing.assert_allclose(
            rank_statistics.relative_accuracy(scores, truth), expected, atol=1e-12
        )


def test_regret_of_more_models_than_there_are_is_none():
    assert (
        rank_statistics.regret(3)(np.array([[1.0, 2.0]]), np.array([[0.3, 0.2]])) == 0
    )


def decimals(column):
    return max(len(repr(float(v)).split(".")[1]) for v in column)


@pytest.mark.parametrize("name", PRINTED)
def test_published_tables_are_reproduced_as_far_as_their_digits_go(name):
    """Some scores and accuracies that round to the printed ones give the printed
    correlation.
    """
    truth, *scores = columns(name)
    rng = np.random.default_rng(0)

    def unrounded(column):
        return column + rng.uniform(-0.5, 0.5, (4000, len(column))) * 10.0 ** -decimals(
            column
        )

    for statistic, values in PRINTED[name].items():
        for column, value in zip(scores, values, strict=True):
            found = rank_statistics.STATISTICS[statistic](
                unrounded(column), unrounded(truth)
            )
            assert found.min() - 0.0005 <= value <= found.max() + 0.0005, (
                statistic,
                value,
            )
            assert (
                np.ptp(found) < 0.15
            )  # which is a statement: the digits do not allow much else


def test_published_tables_are_evaluated_as_they_lie():
    """One wide file holds scores, truth and sizes; the truth is no score of itself."""
    result = tta.evaluate(FILE, FILE)
    assert set(result.scores) == {"h_score", "leep", "logme", "nce", *evaluate.ALWAYS}
    assert (len(result.targets), len(result.models), result.truth_name) == (
        5,
        10,
        "accuracy",
    )
    for row, target in enumerate(result.targets):
        truth, *scores = columns(target)
        for name, column in zip(
            ("h_score", "leep", "logme", "nce"), scores, strict=True
        ):
            expected = stats.weightedtau(column, truth)[0]
            assert result.estimates[name]["weighted_tau"].per_target[
                row
            ] == pytest.approx(expected)
    assert result.scores["parameter_count"][0, 4] == 60.19e6


# -- blanks, draws, intervals, tests ---------------------------------------------------


@pytest.mark.parametrize("name", rank_statistics.STATISTICS)
def test_a_blank_score_is_a_model_that_cannot_be_chosen(name):
    rng = np.random.default_rng(0)
    scores, truth = np.round(rng.normal(size=(2, 12, 7)), 1)
    truth += 5
    blank_score, blank_truth = rng.random((2, 12, 7)) < 0.25
    found = rank_statistics.STATISTICS[name](
        np.where(blank_score, np.nan, scores), np.where(blank_truth, np.inf, truth)
    )
    for row in range(12):
        seen = ~(blank_score | blank_truth)[row]
        there = scores[row, seen], truth[row, seen]
        expected = rank_statistics.STATISTICS[name](*there)
        if name in (
            "regret_1",
            "regret_3",
            "relative_accuracy",
        ):  # the best of all is what was missed
            best = truth[row, ~blank_truth[row]].max()
            chosen = there[1].max() - rank_statistics.regret(
                int(name[-1]) if name[-1].isdigit() else 1
            )(*there)
            expected = chosen / best if name == "relative_accuracy" else best - chosen
        np.testing.assert_allclose(found[row], expected, atol=1e-12)


@pytest.mark.parametrize("name", rank_statistics.STATISTICS)
def test_a_model_drawn_twice_is_two_models_that_tie(name):
    rng = np.random.default_rng(1)
    scores, truth = np.round(rng.normal(size=(2, 3, 6)) * 2)
    truth += 20
    counts = rng.multinomial(6, np.full(6, 1 / 6), 40)
    found = rank_statistics.STATISTICS[name](scores, truth, counts)
    for draw, row in itertools.product(range(40), range(3)):
        models = np.repeat(np.arange(6), counts[draw])
        expected = rank_statistics.STATISTICS[name](
            scores[row, models], truth[row, models]
        )
        np.testing.assert_allclose(found[draw, row], expected, atol=1e-12)


def test_an_estimate_is_the_mean_over_targets_and_over_all_but_one():
    rng = np.random.default_rng(2)
    scores, truth = rng.normal(size=(2, 5, 8))
    scores[3] = 1.0  # no order at all
    one = rank_statistics.correlate(scores, truth, ["kendall"], replicates=0)["kendall"]
    expected = np.array(
        [stats.kendalltau(s, t)[0] for s, t in zip(scores, truth, strict=True)]
    )
    np.testing.assert_allclose(one.per_target, expected, atol=1e-12)
    assert one.value == pytest.approx(np.nanmean(expected))
    assert one.targets == 4
    assert np.isnan([one.low, one.high]).all()
    np.testing.assert_allclose(
        one.without, [np.nanmean(np.delete(expected, k)) for k in range(5)]
    )
    assert list(rank_statistics.correlate(scores[0], truth[0])) == list(
        rank_statistics.STATISTICS
    )


@pytest.mark.parametrize("over", rank_statistics.OVER)
def test_intervals_are_those_of_a_bootstrap_written_out(over):
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(6, 7))
    scores = truth + rng.normal(size=(6, 7))
    draws = rank_statistics.draw((6, 7), over, 300, np.random.SeedSequence(5))
    found = rank_statistics.estimate("spearman", scores, truth, draws, 0.8)
    means = []
    for models, targets in zip(
        draws.models.astype(int), draws.targets.astype(int), strict=True
    ):
        chosen = np.repeat(np.arange(7), models)
        taus = [
            stats.spearmanr(scores[t, chosen], truth[t, chosen])[0]
            for t in np.repeat(np.arange(6), targets)
        ]
        means.append(np.mean(np.array(taus)))
    np.testing.assert_allclose(
        [found.low, found.high], np.percentile(means, [10, 90]), atol=1e-12
    )
    assert (draws.targets == 1).all() == (over == "models")
    assert (draws.models == 1).all() == (over == "targets")
    assert (draws.models.sum(1) == 7).all()


def test_intervals_over_targets_cover_as_often_as_they_say():
    """Pearson's correlation of two models is a coin of known mean: its mean over
    targets has a known centre.
    """
    rng = np.random.default_rng(4)
    inside = 0
    for trial in range(300):
        heads = rng.random(30) < 0.7
        scores = np.tile([0.0, 1.0], (30, 1))
        truth = np.where(heads[:, None], scores, -scores)
        one = rank_statistics.correlate(
            scores,
            truth,
            ["pearson"],
            over="targets",
            key=np.random.SeedSequence(trial),
        )["pearson"]
        inside += one.low <= 0.4 <= one.high
    assert 0.9 <= inside / 300 <= 0.98


def test_the_paired_test_flips_every_sign():
    rng = np.random.default_rng(5)
    truth = rng.normal(size=(8, 9))
    good, bad = truth + 0.3 * rng.normal(size=(8, 9)), rng.normal(size=(8, 9))
    found = rank_statistics.compare(good, bad, truth, "kendall")
    gaps = rank_statistics.kendall(good, truth) - rank_statistics.kendall(bad, truth)
    oracle = stats.permutation_test(
        (gaps,), np.mean, permutation_type="samples", n_resamples=anything(np.inf)
    )
    assert found.p_value == pytest.approx(oracle.pvalue)
    assert found.difference == pytest.approx(gaps.mean())
    assert found.low < found.difference < found.high
    assert (found.first_better, found.second_better, found.ties) == (
        (gaps > 0).sum(),
        (gaps < 0).sum(),
        (gaps == 0).sum(),
    )
    less = rank_statistics.compare(good, bad, truth, "regret_1")
    assert less.difference < 0
    assert less.first_better > less.second_better
    swapped = rank_statistics.compare(bad, good, truth, "kendall")
    assert swapped.difference == -found.difference
    assert swapped.p_value == found.p_value
    assert rank_statistics.compare(good, good, truth).p_value == 1
    assert (
        rank_statistics.compare(good[0], bad[0], truth[0]).p_value == 1
    )  # one target tells nothing


def test_two_scores_are_compared_where_neither_is_blank():
    truth = np.arange(6.0)[None]
    first, second = truth.copy(), -truth
    first[0, 0], second[0, 5] = np.nan, np.nan
    assert rank_statistics.compare(first, second, truth, "kendall").difference == 2
    assert np.isnan(
        rank_statistics.compare(first * np.nan, second, truth, "kendall").p_value
    )


def test_p_values_are_those_of_chance_under_no_difference():
    rng = np.random.default_rng(6)
    few = [
        rank_statistics.sign_flip(rng.normal(size=8), np.random.SeedSequence(0))
        for _ in range(400)
    ]
    many = [
        rank_statistics.sign_flip(rng.normal(size=15), np.random.SeedSequence(k))
        for k in range(200)
    ]
    for values in (few, many):
        assert 0.02 <= np.mean(np.array(values) <= 0.05) <= 0.09
        assert 0.4 <= np.mean(np.array(values) <= 0.5) <= 0.6


def test_the_static_ranker_is_the_mean_on_the_other_targets():
    truth = np.random.default_rng(7).random((4, 3))
    truth[1, 2] = np.nan
    found = rank_statistics.mean_elsewhere(truth)
    for row, column in itertools.product(range(4), range(3)):
        assert found[row, column] == pytest.approx(
            np.nanmean(np.delete(truth[:, column], row))
        )
    assert np.isnan(rank_statistics.mean_elsewhere(truth[:1])).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: rank_statistics.correlate([1, 2], [1, 2, 3]),
            "^truth: found tables of shape",
        ),
        (
            lambda: rank_statistics.correlate(["a"], [1.0]),
            "^scores: found list; give numbers",
        ),
        (
            lambda: rank_statistics.correlate(np.ones((2, 2, 2)), np.ones((2, 2, 2))),
            "^scores: found shape",
        ),
        (lambda: rank_statistics.correlate([], []), "^scores: found shape"),
        (
            lambda: rank_statistics.correlate([1, 2], [1, 2], ["tau"]),
            "^statistics: there is no 'tau'",
        ),
        (lambda: rank_statistics.correlate([1, 2], [1, 2], over="all"), "^over: "),
        (
            lambda: rank_statistics.correlate([1, 2], [1, 2], replicates=-1),
            "^replicates: ",
        ),
        (
            lambda: rank_statistics.correlate([1, 2], [1, 2], replicates=10**9),
            "^replicates: ",
        ),
        (
            lambda: rank_statistics.correlate([1, 2], [1, 2], key=anything(3)),
            "^key: found int",
        ),
        (lambda: rank_statistics.regret(0), "^k: found 0"),
        (
            lambda: rank_statistics.correlate([1, 2], [1, 2], interval=1.0),
            "^interval: ",
        ),
        (
            lambda: rank_statistics.compare([1, 2], [1, 2, 3], [1, 2]),
            "^second: found tables",
        ),
    ],
)
def test_wrong_tables_are_refused_by_name(call, words):
    with pytest.raises(ValueError, match=words):
        call()
