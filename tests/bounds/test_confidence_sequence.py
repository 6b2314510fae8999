"""Bounds that hold at all times: how often they fail, what they are a bound of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tta_jax.bounds.confidence_sequence import (
    expected_regret,
    lower_running_mean,
    upper_running_mean,
)

LOOKS = (5, 10, 20, 40, 80, 160, 320)


def fails(draw, draws, delta, bound=1.0):
    """Share of draws in which the upper bound was too low at any look."""
    wrong = 0
    for seed in range(draws):
        values, means = draw(np.random.default_rng(seed))
        running = np.cumsum(means) / np.arange(1, len(means) + 1)
        wrong += any(
            upper_running_mean(values[:n], bound, delta) < running[n - 1] - 1e-12
            for n in LOOKS
        )
    return wrong / draws


def two_points(rng):
    values = np.where(rng.random(320) < 0.1, -1.0, 0.2)
    return values, np.full(320, 0.08)


def rare_large(rng):
    values = np.where(rng.random(320) < 0.02, 1.0, -0.02)
    return values, np.full(320, 0.02 - 0.98 * 0.02)


def drifting(rng):
    """Means that depend on the values before, as those of a learner do."""
    values, means, state = np.zeros(320), np.zeros(320), 0.3
    for i in range(320):
        means[i] = state
        values[i] = 1.0 if rng.random() < (1 + state) / 2 else -1.0
        state = float(np.clip(0.95 * state + 0.02 * values[i], -0.9, 0.9))
    return values, means


@pytest.mark.parametrize("draw", [two_points, rare_large, drifting])
def test_bound_is_ever_too_low_in_at_most_delta_of_draws(draw):
    share = fails(draw, 300, 0.1)

    assert share <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / 300)


def test_bound_is_useful():
    """At 2,000 items of standard deviation 0.3 the mean is known to 0.035."""
    values = np.clip(0.3 * np.random.default_rng(0).normal(size=2000), -1, 1)

    high = upper_running_mean(values, 1.0, 0.05)

    assert values.mean() < high < values.mean() + 0.035


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=40),
    st.floats(0.001, 0.3),
    st.floats(0.5, 2.0),
)
def test_ends_enclose_the_mean_and_scale_with_the_values(values, delta, factor):
    values = np.array(values)

    low = lower_running_mean(values, 1.0, delta)
    high = upper_running_mean(values, 1.0, delta)

    assert -1.0 <= low <= values.mean() + 1e-9
    assert values.mean() - 1e-9 <= high <= 1.0
    scaled = upper_running_mean(values * factor, factor, delta)
    assert scaled == pytest.approx(high * factor, abs=1e-9)
    assert upper_running_mean(values, 1.0, delta / 2) >= high - 1e-9


def test_groups_are_one_observation_each():
    """Copies of an item say no more than the item does."""
    values = np.random.default_rng(0).uniform(-1, 1, 60)

    alone = upper_running_mean(values, 1.0, 0.05)
    copied = upper_running_mean(5 * values, 1.0, 0.05, np.full(60, 5.0))

    assert copied == pytest.approx(alone, abs=1e-9)


def test_nothing_is_known_without_values():
    assert upper_running_mean(np.zeros(0), 2.0, 0.05) == 2.0
    assert lower_running_mean(np.zeros(0), 2.0, 0.05) == -2.0


@pytest.mark.parametrize(("mean", "error"), [(0.0, 1.0), (0.5, 0.3), (-0.2, 0.1)])
def test_expected_regret_is_that_of_a_normal_advantage(mean, error):
    draws = -mean + error * np.random.default_rng(0).normal(size=2_000_000)

    assert expected_regret(mean, error) == pytest.approx(
        np.maximum(draws, 0).mean(), rel=1e-2, abs=1e-4
    )


def test_expected_regret_without_doubt_is_the_advantage_itself():
    assert expected_regret(0.1, 0.0) == 0.0
    assert expected_regret(-0.1, 0.0) == 0.1
