"""Learning curves, continued."""

import numpy as np
import pytest

from tta_jax.selection.learning_curve import extrapolate


def power_law(n, level=0.1, slope=2.0, power=0.5):
    return level + slope * np.asarray(n, float) ** -power


def test_a_power_law_is_continued_exactly_where_nothing_is_in_doubt():
    n = [50, 100, 200, 400]

    found = extrapolate(
        n, power_law(n), np.full(4, 1e-7), [1600], 0.95, np.random.default_rng(0)
    )

    assert found is not None
    assert found[0] == pytest.approx(power_law([1600] * 3), abs=1e-4)


def test_interval_covers_the_curve_in_most_draws():
    n, wanted = [50, 100, 200, 400, 800], 3200
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        error = 0.6 / np.sqrt(n)
        values = power_law(n) + error * rng.normal(size=len(n))
        found = extrapolate(n, values, error, [wanted], 0.95, rng)
        assert found is not None
        inside += found[0, 1] <= power_law(wanted) <= found[0, 2]

    assert inside >= 180


def test_it_never_gets_worse_with_more_items_nor_below_zero():
    rng = np.random.default_rng(0)

    found = extrapolate([10, 20, 40], [0.1, 0.3, 0.5], [0.01] * 3, [80, 160], 0.9, rng)

    assert found is not None
    assert found[1, 0] <= found[0, 0]
    assert (found >= 0).all()


def test_two_points_are_no_curve():
    rng = np.random.default_rng(0)

    assert extrapolate([10, 20], [0.5, 0.4], [0.1, 0.1], [40], 0.95, rng) is None
