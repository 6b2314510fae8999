"""Budgets, and the order in which items are looked at."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tta_jax.selection.schedule import Budget, Order, first_round, learning_sizes


@pytest.mark.parametrize(
    ("text", "seconds", "items"),
    [
        ("90s", 90, np.inf),
        ("10min", 600, np.inf),
        (" 1.5 h ", 5400, np.inf),
        ("5000items", np.inf, 5000),
        ("1 item", np.inf, 1),
        (None, np.inf, np.inf),
    ],
)
def test_budgets_are_read(text, seconds, items):
    assert Budget.parse(text) == (seconds, items)


@pytest.mark.parametrize(
    "text", ["", "10", "-5min", "0s", "5 apples", "1e400s", "nan h"]
)
def test_other_budgets_are_refused(text):
    with pytest.raises(ValueError, match=r"^budget: found "):
        Budget.parse(text)


@given(st.integers(0, 10_000), st.booleans())
def test_every_beginning_has_the_shares_of_the_whole(seed, grouped):
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, 300, p=[0.5, 0.3, 0.15, 0.05])
    groups = None
    if grouped:
        groups = 10 * labels + rng.integers(10, size=300)  # of one class each

    order = Order.stratified(labels, groups, np.random.SeedSequence(seed))

    assert sorted(order.items) == list(range(300))
    largest = 1 if groups is None else np.bincount(groups).max()
    shares = np.bincount(labels, minlength=4) / 300
    for number in (40, 100, 200):
        seen = np.bincount(labels[order.items[:number]], minlength=4)
        assert np.abs(seen - number * shares).max() <= 1.5 + 2.5 * largest


def test_groups_are_never_cut():
    rng = np.random.default_rng(0)
    groups, labels = rng.integers(40, size=200), rng.integers(3, size=200)

    order = Order.stratified(labels, groups, np.random.SeedSequence(0))

    ordered = groups[order.items]
    assert (np.diff(ordered) != 0).sum() == len(np.unique(groups)) - 1
    for number in range(1, 200):
        cut = order.cut(number)
        assert cut >= number
        assert not set(ordered[:cut]) & set(ordered[cut:])


def test_another_seed_is_another_order():
    labels = np.arange(100) % 4
    first, again, other = (
        Order.stratified(labels, None, np.random.SeedSequence(seed)).items
        for seed in (0, 0, 1)
    )

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_first_round_has_some_items_of_every_class():
    assert first_round(5000, 10) == 200
    assert first_round(50_000, 1000) == 5_000
    assert first_round(600, 10) == 150
    assert first_round(120, 10) == 50
    assert first_round(30, 10) == 30


def test_later_rounds_are_judged_before_they_are_learned_from():
    order = Order.stratified(np.arange(800) % 4, None, np.random.SeedSequence(0))

    assert learning_sizes(order, 0, 200) == [(25, 50), (50, 100), (100, 200)]
    assert learning_sizes(order, 200, 400) == [(200, 400)]
