"""Tasks beyond the plain case: names of every kind, rare classes, copies, bundles, other units."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tta_jax as tta

X = np.random.default_rng(0).normal(size=(12, 3))
seeds = st.integers(0, 10_000)


def named(task):
    return [task.class_names[k] for k in np.asarray(task.labels)]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([2.0, 5.0] * 6, [2.0, 5.0]),
        ([2.0, 5.0] * 6, [5.0, 2.0]),
        ([0.0, 1.0] * 6, [1.0, 0.0]),
        ([0, 1] * 6, [1, 0]),
        ([True, False] * 6, [True, False]),
        (list("ab") * 6, ["b", "a"]),
        (np.array(["2020-01-01", "2021-01-01"] * 6, "datetime64[D]"), None),
        ([b"x", b"y"] * 6, None),
        ([frozenset({1}), frozenset({1, 2})] * 6, None),
    ],
)
def test_labels_that_are_names_keep_them(labels, names):
    """Labels of which every one is in `class_names` are those classes, whatever their type."""
    task = tta.Task.from_arrays(X, labels, class_names=names)
    assert named(task) == list(labels)
    if names is not None:
        assert task.class_names == tuple(names)


def test_integers_are_indices_into_names_of_another_kind():
    assert named(tta.Task.from_arrays(X, [1, 0] * 6, class_names=["no", "yes"])) == ["yes", "no"] * 6


def test_unlabelled_items_may_hold_anything():
    known = np.arange(12) > 2
    for junk in (None, "?", float("nan")):
        labels = np.empty(12, object)
        labels[:] = list("ab") * 6
        labels[:3] = junk
        task = tta.Task.from_arrays(X, labels, labelled=known)
        assert task.class_names == ("a", "b")
        assert task.counts.tolist() == [4, 5]
        assert named(task.take(np.flatnonzero(known))) == (list("ab") * 6)[3:]
    none = tta.Task.from_arrays(X, None, class_names=["a", "b"])
    assert none.counts.tolist() == [0, 0]
    assert none.prior.tolist() == [0, 0]


@given(seeds)
def test_a_class_of_one_item_learns_also_where_there_are_copies(seed):
    """Without copies a lone item goes to the learning part; one pair of copies elsewhere must not change that."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(30, 2)), np.r_[np.arange(29) % 2, 2]
    for copies in (False, True):
        if copies:
            x[1] = x[0]
        task = tta.Task.from_arrays(x, y)
        learn, held = task.split(0.3, jax.random.key(seed))
        assert 29 in learn
        for k in (0, 1):
            assert abs((y[held] == k).sum() - 0.3 * (y == k).sum()) <= 1.5
        for learn, _ in task.folds(3, jax.random.key(seed)):
            assert 29 in learn


@given(seeds)
def test_copies_stay_together_also_with_a_negative_zero(seed):
    """ReLU and its neighbours leave -0.0 beside 0.0; they are the same number."""
    x = np.random.default_rng(seed).normal(size=(40, 2))
    x[3], x[7] = [0.0, 1.0], [-0.0, 1.0]
    y = np.arange(40) % 2
    _, held = tta.Task.from_arrays(x, y).split(0.5, jax.random.key(seed))
    assert (3 in held) == (7 in held)


@given(seeds, st.integers(2, 5))
def test_folds_are_stratified(seed, number):
    rng = np.random.default_rng(seed)
    y = np.r_[np.repeat(np.arange(3), 6), rng.integers(0, 3, 40)]
    task = tta.Task.from_arrays(rng.normal(size=(58, 2)), y)
    for learn, held in task.folds(number, jax.random.key(seed)):
        assert sorted([*learn, *held]) == list(range(58))
        for k in range(3):
            assert abs((y[held] == k).sum() - (y == k).sum() / number) <= 1


@given(seeds)
def test_groups_are_spread_by_class_as_well_as_they_can(seed):
    """Groups of one class each, of equal size: the split is as stratified as without groups."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(24), 4)
    y = groups % 3
    order = rng.permutation(96)
    task = tta.Task.from_arrays(rng.normal(size=(96, 2)), y[order], groups=[f"g{g}" for g in groups[order]])
    _, held = task.split(0.25, jax.random.key(seed))
    assert [(y[order][held] == k).sum() for k in range(3)] == [8, 8, 8]


def test_one_key_one_split_whatever_its_style():
    task = tta.Task.from_arrays(np.random.default_rng(0).normal(size=(50, 2)), np.arange(50) % 3)
    new, old = task.split(0.3, jax.random.key(5)), task.split(0.3, jax.random.PRNGKey(5))
    np.testing.assert_array_equal(new[1], old[1])
    assert not np.array_equal(new[1], task.split(0.3, jax.random.key(6))[1])


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(ValueError, match="holdout"):
        tta.Task.from_arrays(X, np.arange(12) % 2).split(share, jax.random.key(0))


def test_folds_that_are_none_are_refused():
    task = tta.Task.from_arrays(X, np.arange(12) % 2)
    with pytest.raises(ValueError, match="folds: found 1"):
        next(task.folds(1, jax.random.key(0)))


def test_what_cannot_be_split_says_so():
    together = tta.Task.from_arrays(X, np.arange(12) % 2, groups=np.zeros(12))
    with pytest.raises(ValueError, match=r"holdout|labels"):
        together.split(0.25, jax.random.key(0))
    no_labels = tta.Task.from_arrays(X, None)
    with pytest.raises(ValueError, match="holdout"):
        no_labels.split(0.25, jax.random.key(0))


def test_take_keeps_names_and_groups():
    task = tta.Task.from_arrays(X, list("abc") * 4, groups=np.arange(12) // 2)
    part = task.take(np.array([3, 0, 9]))
    assert part.class_names == ("a", "b", "c")
    assert part.counts.tolist() == [3, 0, 0]
    assert part.groups.tolist() == [1, 0, 4]
    np.testing.assert_array_equal(part.features, task.features[[3, 0, 9]])


def test_a_task_is_a_pytree_whose_names_are_static():
    task = tta.Task.from_arrays(X, list("abc") * 4, name="t")
    doubled = jax.tree.map(lambda v: v * 2, task)
    assert (doubled.class_names, doubled.name) == (task.class_names, "t")
    np.testing.assert_array_equal(doubled.features, task.features * 2)


# -- standardising -----------------------------------------------------------------------------------------------------


def test_standardizer_gives_means_of_zero_and_deviations_of_one():
    x = (np.random.default_rng(0).normal(size=(500, 3)) * [1, 3, 9] + [0, 1e3, -5]).astype(np.float32)
    z = tta.Standardizer.fit(x)(x)
    np.testing.assert_allclose(z.mean(0), 0, atol=2e-4)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-3)


def test_standardizer_of_whole_numbers():
    """Counts are features too: the mean of 0 and 1 is a half, not nothing."""
    scaler = tta.Standardizer.fit(np.array([[0, 5], [1, 5]] * 5))
    np.testing.assert_allclose(scaler(np.array([[0, 5], [1, 5]])), [[-1, 0], [1, 0]], atol=1e-6)


def test_standardizer_of_nothing_but_constants():
    for value in (0.0, 3.0, 1e6, 0.1):
        x = np.full((20, 3), value, np.float32)
        np.testing.assert_allclose(tta.Standardizer.fit(x)(x), 0, atol=1e-6)


def test_folding_and_unfolding_are_inverse():
    rng = np.random.default_rng(0)
    scaler = tta.Standardizer.fit(rng.normal(size=(30, 4)) * 5 + 2)
    weight, bias = rng.normal(size=(3, 4)), rng.normal(size=3)
    for a, b in zip(scaler.unfold_from(*scaler.fold_into(weight, bias)), (weight, bias), strict=True):
        np.testing.assert_allclose(a, b)
    x = rng.normal(size=(6, 4))
    raw = scaler.fold_into(weight, bias)
    np.testing.assert_allclose(x @ raw[0].T + raw[1], scaler(x) @ weight.T + bias)
