"""What follows from losses: comparisons, who leaves, intervals."""

import numpy as np
import pytest

from tta_jax.selection.race import FLOOR, Judgements, reason, stand


def log_p_of(labels, right, classes=3, sure=0.9):
    """Log probabilities that favour the label where `right`."""
    p = np.full((len(labels), classes), (1 - sure) / (classes - 1))
    favoured = np.where(right, labels, (labels + 1) % classes)
    p[np.arange(len(labels)), favoured] = sure
    return np.log(p)


def standing(made, names, margin, delta, *, sure):
    return stand(made, names, measure="loss", margin=margin, delta=delta, sure=sure)


def judgements(accuracies, n=600, classes=3, groups=None, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    made = Judgements(labels, np.arange(n) if groups is None else groups, classes)
    for name, share in accuracies.items():
        for learned, stop in ((n // 4, n // 2), (n // 2, n)):
            part = labels[learned:stop]
            right = rng.random(len(part)) < share
            made.add(
                name, learned, learned, log_p_of(part, right), np.ones(len(part), bool)
            )
    return made


def test_losses_are_those_of_probabilities_with_a_floor():
    labels = np.array([0, 1, 2, 0])
    made = Judgements(labels, np.arange(4), 3)
    p = np.array([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]])
    with np.errstate(divide="ignore"):
        made.add("a", 2, 2, np.log(p), np.ones(2, bool))

    own = np.array([0.1, 0.0])
    expected = -np.log((1 - FLOOR) * own + FLOOR / 3)
    assert made.mean("a", "loss") * made.prior_entropy == pytest.approx(expected.mean())
    assert made.mean("a", "accuracy") == pytest.approx(1.0 / (1 - 1 / 3))
    assert (expected <= made.largest_loss + 1e-12).all()


def test_a_clear_loser_leaves_and_the_best_stays():
    made = judgements({"good": 0.9, "bad": 0.4, "fair": 0.88})

    now = standing(made, ["good", "bad", "fair"], 0.02, 0.025, sure=False)

    assert now.leader in ("good", "fair")
    assert now.out == ["bad"]
    assert now.against["bad"].low > 0
    assert set(now.regret) | {now.leader} == {"good", "fair"}
    assert all(0 < value < 0.1 for value in now.regret.values())


def test_sure_keeps_those_who_may_be_worse_by_the_margin():
    made = judgements({"a": 0.9, "b": 0.87})
    found = standing(made, ["a", "b"], 0.5, 0.05, sure=False)
    (other,) = found.against.values()
    margin = (max(-other.low, other.mean) + other.high) / 2

    assert len(standing(made, ["a", "b"], margin, 0.05, sure=False).out) == 1
    assert standing(made, ["a", "b"], margin, 0.05, sure=True).out == []
    assert len(standing(made, ["a", "b"], 1.01 * other.high, 0.05, sure=True).out) == 1


@pytest.mark.parametrize("measure", ["loss", "accuracy"])
def test_a_comparison_is_the_same_from_both_sides(measure):
    made = judgements({"a": 0.8, "b": 0.7})

    one = made.compare("a", "b", measure, 0.05)
    other = made.compare("b", "a", measure, 0.05)

    assert one.mean == pytest.approx(-other.mean)
    assert one.low == pytest.approx(-other.high)
    assert one.items == other.items == 450


def test_items_that_one_was_not_judged_on_do_not_count():
    made = judgements({"a": 0.8})
    made.add("b", 450, 450, log_p_of(made.labels[450:], True), np.ones(150, bool))

    assert made.compare("a", "b", "loss", 0.05).items == 150


def test_groups_widen_what_is_known():
    """Whole groups are right or wrong: their items are one observation."""
    groups = np.arange(600) // 10
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=600)
    right = {
        name: np.repeat(rng.random(60) < p, 10)
        for name, p in zip("ab", (0.9, 0.7), strict=True)
    }
    widths = []
    for numbers in (np.arange(600), groups):
        made = Judgements(labels, numbers, 3)
        for name, hits in right.items():
            made.add(name, 0, 0, log_p_of(labels, hits), np.ones(600, bool))
        found = made.compare("b", "a", "accuracy", 0.05)
        widths.append(found.high - found.low)
        figures = made.figures("a", 0.95)[0]
        assert figures.accuracy_low < figures.accuracy < figures.accuracy_high

    assert widths[1] > 1.8 * widths[0]


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_cover_accuracy_and_loss(grouped):
    inside = np.zeros(2)
    truth_loss = -(
        0.8 * np.log((1 - FLOOR) * 0.9 + FLOOR / 3)
        + 0.2 * np.log((1 - FLOOR) * 0.05 + FLOOR / 3)
    )
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = rng.integers(3, size=100)
        groups = np.arange(100) // 4 if grouped else np.arange(100)
        right = rng.random(25 if grouped else 100) < 0.8
        right = np.repeat(right, 4) if grouped else right
        made = Judgements(labels, groups, 3)
        made.add("a", 0, 0, log_p_of(labels, right), np.ones(100, bool))
        found = made.figures("a", 0.95)[0]
        inside += [
            found.accuracy_low <= 0.8 <= found.accuracy_high,
            found.loss_low <= truth_loss <= found.loss_high,
        ]

    assert (inside >= 186).all()


def test_reasons_say_what_is_known():
    made = judgements({"a": 0.9, "b": 0.9, "c": 0.3}, n=20_000)

    assert reason(made.compare("c", "a", "loss", 0.05), 0.02).startswith("worse by")
    assert reason(made.compare("b", "a", "loss", 0.05), 0.2) == "equal within 0.2"
    assert reason(made.compare("b", "a", "loss", 0.05), 1e-4) == "not told apart"
