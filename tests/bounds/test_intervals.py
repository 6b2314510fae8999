"""Intervals: the betting bound against its definition and the binomial law;
what the bootstrap must get right.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks import coverage
from tta_jax.bounds import intervals
from tta_jax.bounds.intervals import ClassLosses

H = math.log(3)


def wealth(values, m):
    """Average over bets, in plain products."""
    return np.mean([np.prod(1 + c * (m - values) / (1 - m)) for c in intervals._BETS])


@given(
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12),
    st.floats(1e-3, 0.9),
)
def test_betting_bound_is_its_definition(values, delta):
    values = np.array(values)
    upper = intervals.betting_bound(values, delta)
    assert values.mean() <= upper <= 1
    if upper < 1 - 1e-6:
        assert wealth(values, upper * (1 - 1e-9)) <= (1 + 1e-4) / delta
        assert wealth(values, upper + 1e-6) >= (1 - 1e-4) / delta


@pytest.mark.parametrize("p", [0.01, 0.2, 0.7])
@pytest.mark.parametrize("n", [5, 40])
def test_betting_bound_covers_bernoulli_means_exactly_computed(p, n):
    """No simulation: the binomial law gives the probability of a miss."""
    for delta in (0.3, 0.05):
        missed = sum(
            stats.binom.pmf(k, n, p)
            for k in range(n + 1)
            if intervals.betting_bound(np.arange(n) < k, delta) < p
        )
        assert missed <= delta


def test_betting_bound_covers_items_drawn_class_by_class():
    """Classes of different means, each with a fixed number of items."""
    rng = np.random.default_rng(0)
    means = np.repeat([0.02, 0.1, 0.6], 20)
    missed = [
        intervals.betting_bound(rng.random(60) < means, 0.1) < means.mean()
        for _ in range(1000)
    ]
    assert np.mean(missed) <= 0.1


def test_betting_bound_narrows_with_items_and_level():
    values = np.random.default_rng(0).beta(0.5, 2.0, 1000)
    by_n = [intervals.betting_bound(values[:n], 0.05) for n in (10, 100, 1000)]
    by_level = [intervals.betting_bound(values[:50], d) for d in (0.5, 0.1, 0.01)]
    assert by_n == sorted(by_n, reverse=True)
    assert by_level == sorted(by_level)


def test_population_bound_covers_the_clipped_loss():
    rng = np.random.default_rng(0)
    clip = 2.0
    truth = 1 - np.exp(-2.0)  # E min(Exp(1), 2)
    bounds = [
        intervals.population_bound(rng.exponential(size=80), clip, 0.9)
        for _ in range(1000)
    ]
    assert np.mean(np.array(bounds) < truth) <= 0.1
    assert max(bounds) <= clip
    assert intervals.population_bound(np.full(50, np.inf), clip, 0.9) == clip
    assert 0 < intervals.population_bound(np.zeros(50), clip, 0.9) < 0.1 * clip


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        *(
            ("losses", (bad, 1.0, 0.9))
            for bad in ([], [[1.0]], 1.0, [np.nan, 1.0], [-0.1, 1.0], ["a"], [1j])
        ),
        *(
            ("clip", ([1.0], bad, 0.9))
            for bad in (0.0, -1.0, np.nan, np.inf, "1", None, True)
        ),
        *(
            ("confidence", ([1.0], 1.0, bad))
            for bad in (0.0, 1.0, 1.5, np.nan, "0.9", None)
        ),
    ],
)
def test_population_bound_refuses_by_name(argument, arguments):
    with pytest.raises(ValueError, match=rf"^{argument}: found [^\n]+$"):
        intervals.population_bound(*arguments)


def test_population_bound_forgives_rounding_around_zero():
    exact = intervals.population_bound(np.zeros(50), 1.0, 0.9)
    assert intervals.population_bound(np.full(50, -1e-6), 1.0, 0.9) == exact


def one_class(source, q, target, r, hits, label=0, start=0):
    """Losses of one class; those of other classes are the same."""
    by_class = np.repeat(np.asarray(target)[:, None], 2, axis=1)
    return ClassLosses(
        source,
        q,
        target,
        r,
        hits,
        by_class,
        np.arange(len(source)) + start,
        np.arange(len(target)) + start,
        label,
    )


def two_classes(rng, n=60, m=40):
    return [
        one_class(
            rng.exponential(size=n),
            np.full(n, share / n),
            1.5 * rng.exponential(size=m),
            np.full(m, share / m),
            rng.random(m) < 0.8,
            label,
            1000 * label,
        )
        for label, share in enumerate((0.3, 0.7))
    ]


def figures(classes):
    loss = sum(c.target_mass @ c.target for c in classes)
    accuracy = sum(c.target_mass @ c.hits for c in classes)
    return loss, accuracy


def test_bootstrap_surrounds_the_figures_and_narrows_with_the_level():
    rng = np.random.default_rng(0)
    classes = two_classes(rng)
    wide = intervals.bootstrap(classes, H, np.random.default_rng(1), 2000, 0.95).limits
    slim = intervals.bootstrap(classes, H, np.random.default_rng(1), 2000, 0.5).limits
    loss, accuracy = figures(classes)
    for name, value in (
        ("target_loss", loss),
        ("target_accuracy", accuracy),
        ("score", 1 - loss / H),
    ):
        assert wide[name][0] < slim[name][0] < value < slim[name][1] < wide[name][1]
    assert wide["score"] == pytest.approx(
        (1 - wide["target_loss"][1] / H, 1 - wide["target_loss"][0] / H)
    )
    assert (
        wide["tight"][0] >= wide["target_loss"][0]
    )  # tight lies above the target loss in every replicate


def test_bootstrap_of_constants_is_a_point():
    source, target = (np.full(5, 0.4), np.full(5, 0.2)), (np.full(6, 0.9),)
    classes = [one_class(*source, *target, np.full(6, 1 / 6), np.ones(6, bool))]
    found = intervals.bootstrap(classes, H, np.random.default_rng(0), 50, 0.9).limits
    for name, value in (
        ("target_loss", 0.9),
        ("tight", 0.9),
        ("score", 1 - 0.9 / H),
    ):
        assert found[name] == pytest.approx((value, value), rel=1e-5)


@pytest.mark.parametrize(("right", "n"), [(0, 8), (3, 8), (8, 8), (57, 60)])
def test_accuracy_has_the_interval_of_clopper_and_pearson(right, n):
    hits = np.arange(n) < right
    low, high = intervals.clopper_pearson(hits, np.full(n, 0.5 / n), 0.95)
    exact = stats.binomtest(right, n).proportion_ci(0.95)
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_groups_are_drawn_whole():
    """Copies of every item change nothing about how sure a mean is."""
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=40)

    def spread(copies):
        values, groups = np.repeat(losses, copies), np.repeat(np.arange(40), copies)
        number = len(values)
        mass = np.full(number, 1 / number)
        c = one_class(values, mass, values, mass, values < 1)
        c = c._replace(source_groups=groups, target_groups=groups)
        found = intervals.bootstrap([c], H, np.random.default_rng(1), 3000, 0.9)
        low, high = found.limits["target_loss"]
        return high - low

    assert spread(5) == pytest.approx(spread(1), rel=0.08)


def test_two_groups_have_no_interval():
    c = two_classes(np.random.default_rng(0))[0]
    c = c._replace(target_groups=np.arange(len(c.target)) % 2)
    found = intervals.bootstrap([c], H, np.random.default_rng(1), 50, 0.9)
    assert found == intervals.Intervals({}, "too few items")


def test_a_margin_decides_what_is_informative():
    rng = np.random.default_rng(0)
    told = []
    for loss in (0.05, H, 3.0):
        values = loss + 0.05 * rng.random(60)
        classes = [
            one_class(
                values, np.full(60, 1 / 120), values, np.full(60, 1 / 120), values < 0
            )._replace(label=k, target_groups=np.arange(60) + 60 * k)
            for k in range(2)
        ]
        found = intervals.bootstrap(classes, H, np.random.default_rng(1), 300, 0.95)
        told.append(found.informative)
    assert told[0] == "yes"
    assert told[2] == "no"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "classes", "grouped"), [(8, 2, False), (30, 10, False), (125, 2, True)]
)
def test_intervals_cover_the_figures_of_a_known_population(size, classes, grouped):
    found = coverage.coverage(size, classes, grouped, draws=200)
    for name in coverage.FIGURES:
        assert found[name] >= 0.88, name  # 95 %, less 4 standard errors


@pytest.mark.slow
def test_random_labels_are_not_called_informative():
    assert coverage.informative_by_chance(100, 2, draws=100) <= 0.05


def test_bootstrap_has_the_spread_of_a_mean():
    """For one class the weights are Dirichlet: the standard error of the mean, within a
    few percent.
    """
    losses = np.random.default_rng(0).exponential(size=400)
    mass = np.full(400, 1 / 400)
    classes = [one_class(losses, mass, losses, mass, losses < 1)]
    found = intervals.bootstrap(classes, H, np.random.default_rng(1), 4000, 0.6827)
    low, high = found.limits["target_loss"]
    assert (high - low) / 2 == pytest.approx(losses.std() / math.sqrt(401), rel=0.06)


def test_bootstrap_without_entropy_has_no_score_and_skips_empty_classes():
    classes = two_classes(np.random.default_rng(0))
    none = np.zeros(0)
    empty = one_class(none, none, none, none, np.zeros(0, bool))
    found = intervals.bootstrap(
        [*classes, empty], 0.0, np.random.default_rng(1), 50, 0.9
    ).limits
    assert np.isnan(found["score"]).all()
    assert np.isfinite(found["target_loss"]).all()
    same = intervals.bootstrap(classes, 0.0, np.random.default_rng(1), 50, 0.9).limits
    assert same["target_loss"] == found["target_loss"]


def test_bootstrap_in_parts_is_a_bootstrap(monkeypatch):
    """Many replicates are drawn in parts to bound memory; every replicate must still be
    filled.
    """
    classes = two_classes(np.random.default_rng(0))
    whole = intervals.bootstrap(classes, H, np.random.default_rng(1), 999, 0.9).limits
    monkeypatch.setattr(intervals, "_CELLS", 777)
    parts = intervals.bootstrap(classes, H, np.random.default_rng(2), 999, 0.9).limits
    for name in whole:
        assert parts[name] == pytest.approx(whole[name], rel=0.1)


def test_bootstrap_keeps_both_sides_equally_heavy():
    """Tight transports losses between equal masses: one heavy target item must not
    drown 400 source items.
    """
    losses = np.r_[np.zeros(200), np.ones(200)]
    mass = np.full(400, 1 / 400)
    classes = [
        one_class(losses, mass, np.zeros(3), np.full(3, 1 / 3), np.ones(3, bool))
    ]
    found = intervals.bootstrap(classes, H, np.random.default_rng(0), 500, 0.95)
    low, high = found.limits["tight"]
    assert low < 0.5 < high < 0.6


def test_means_over_folds_leave_out_folds_without_items():
    weights = intervals.fold_weights(np.array([[3, 1], [2, 0], [0, 0]]))
    np.testing.assert_allclose(weights, [[0.75, 0.25], [1, 0], [0, 0]])
    values = {"loss": np.array([[1.0, 5.0], [2.0, np.nan], [np.nan, np.nan]])}
    mean = intervals.mean_over_folds(values, weights)
    np.testing.assert_allclose(mean["loss"], [2.0, 2.0, 0.0])


def test_folds_enter_the_bootstrap_with_their_share():
    folds = [two_classes(np.random.default_rng(k)) for k in range(2)]
    joined = intervals.join_folds(folds, np.array([0.75, 0.25]))
    losses = [figures(classes)[0] for classes in folds]
    assert figures(joined)[0] == pytest.approx(0.75 * losses[0] + 0.25 * losses[1])
    assert sum(c.source_mass.sum() for c in joined) == pytest.approx(1)
