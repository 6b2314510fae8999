"""Tasks beyond the plain case: names of every kind, rare classes, copies, bundles,
other units.
"""

import datetime

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tta_jax as tta
from tests.typed import anything
from tta_jax.tasks import splits
from tta_jax.tasks.splits import first_duplicate_index, row_hashes, shared_rows

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
        ([7, 5] * 6, [5.0, 7]),
        ([True, False] * 6, [True, False]),
        (list("ab") * 6, ["b", "a"]),
        (np.array(["2020-01-01", "2021-01-01"] * 6, "datetime64[D]"), None),
        (
            [datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)] * 6,
            np.array(["2020-01-01", "2021-01-01"], "datetime64[D]"),
        ),
        ([frozenset({1}), frozenset({1, 2})] * 6, None),
    ],
)
def test_labels_that_are_names_keep_them(labels, names):
    """Labels of which every one is in `class_names` are those classes, whatever their
    type.
    """
    task = tta.Task.from_arrays(X, labels, class_names=names)
    assert named(task) == list(labels)
    if names is not None:
        assert task.class_names == tuple(names)


@pytest.mark.parametrize(
    "names", [["no", "yes"], [8, 9], [1, 5], [True, False], [1, "zero"], [0.5, 1.5]]
)
def test_integers_are_indices_unless_whole_names_hold_them_all(names):
    labels = [1, 0] * 6
    for kind in (int, float, object):
        task = tta.Task.from_arrays(X, np.array(labels, kind), class_names=names)
        assert task.class_names == tuple(names)
        assert named(task) == [names[k] for k in labels]


def test_bytes_become_text():
    """Names are stored as text, so bytes are decoded at the door, as labels and as
    class names.
    """
    expected = ["é", "y"] * 6
    raw = [text.encode() for text in expected]
    for labels in (raw, np.array(raw), np.array(raw, object)):
        for names in (
            None,
            ["y", "é"],
            [b"y", "é".encode()],
            anything(np.array([b"y", "é".encode()])),
        ):
            assert named(tta.Task.from_arrays(X, labels, class_names=names)) == expected


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("class_names", {"class_names": 2}),
        ("class_names", {"class_names": np.array(3)}),
        ("class_names", {"class_names": "ab"}),
        ("class_names", {"class_names": {"a", "b"}}),
        ("class_names", {"class_names": [["a"], ["b"]]}),
        ("class_names", {"class_names": [("a", []), "b"]}),
        ("class_names", {"class_names": ["a", None]}),
        ("class_names", {"class_names": [b"\xff", "b"]}),
        ("groups", {"groups": 3}),
        ("groups", {"groups": np.array(3)}),
        ("groups", {"groups": [[1]] * 12}),
        ("groups", {"groups": np.ones((12, 2))}),
        ("features", {"features": [[1.0, 2.0]] * 11 + [[1.0]]}),
        ("labelled", {"labelled": [[True], []]}),
        ("labels", {"labels": [1e300, 2e300] * 6}),
        ("labels", {"labels": [b"\xff", b"b"] * 6}),
        ("labels", {"labels": np.array([0, 1] * 6) + 0j}),
    ],
)
def test_refusals_are_one_line_that_names_the_argument(argument, change):
    with pytest.raises(ValueError, match=rf"^{argument}: [^\n]+$"):
        tta.Task.from_arrays(**{"features": X, "labels": np.arange(12) % 2, **change})


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
    """Without copies a lone item goes to the learning part; one pair of copies
    elsewhere must not change that.
    """
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
    """Groups of one class each, of equal size: the split is as stratified as without
    groups.
    """
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(24), 4)
    y = groups % 3
    order = rng.permutation(96)
    task = tta.Task.from_arrays(
        rng.normal(size=(96, 2)), y[order], groups=[f"g{g}" for g in groups[order]]
    )
    _, held = task.split(0.25, jax.random.key(seed))
    assert [(y[order][held] == k).sum() for k in range(3)] == [8, 8, 8]


def test_one_key_one_split_whatever_its_style():
    task = tta.Task.from_arrays(
        np.random.default_rng(0).normal(size=(50, 2)), np.arange(50) % 3
    )
    new, old = (
        task.split(0.3, jax.random.key(5)),
        task.split(0.3, jax.random.PRNGKey(5)),
    )
    np.testing.assert_array_equal(new[1], old[1])
    assert not np.array_equal(new[1], task.split(0.3, jax.random.key(6))[1])


@pytest.mark.parametrize(
    "share", [0.0, 1.0, -0.1, 2.0, float("nan"), None, "0.3", True]
)
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(ValueError, match="holdout"):
        tta.Task.from_arrays(X, np.arange(12) % 2).split(share, jax.random.key(0))


@pytest.mark.parametrize("number", [1, -2, 2.5, 3.0, float("nan"), "3", None, True])
def test_folds_that_are_none_are_refused_at_once(number):
    task = tta.Task.from_arrays(X, np.arange(12) % 2)
    with pytest.raises(ValueError, match=f"^folds: found {number!r}; "):
        task.folds(number, jax.random.key(0))


@given(seeds)
def test_unlabelled_items_are_not_learned_from_while_their_group_or_copy_is_evaluated(
    seed,
):
    rng = np.random.default_rng(seed)
    known = rng.random(90) < 0.6
    features, groups = rng.normal(size=(90, 2)), rng.integers(0, 60, 90)
    features[rng.integers(0, 90, 10)] = features[rng.integers(0, 90, 10)]
    for by_group in (groups, None):
        task = tta.Task.from_arrays(
            features, np.arange(90) % 3, groups=by_group, labelled=known
        )
        learned_from = np.zeros(90, bool)
        for learn, held in [
            task.split(0.3, jax.random.key(seed)),
            *task.folds(3, jax.random.key(seed)),
        ]:

            def rows(part):
                return {row.tobytes() for row in task.features[part]}

            assert len(held)
            assert known[held].all()
            assert not set(learn) & set(held)
            assert not rows(learn) & rows(held)
            if by_group is not None:
                assert not set(groups[learn]) & set(groups[held])
            if by_group is None:
                # Only copies of evaluated items are left out.
                assert rows(np.setdiff1d(np.arange(90), np.r_[learn, held])) <= rows(
                    held
                )
            learned_from[learn] = True
        assert learned_from.all()


@pytest.mark.parametrize(
    "hashes", [None, lambda rows: np.zeros(len(rows)), lambda rows: rows[:, 0] == 0]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_copies_are_told_from_collisions(hashes, dtype, monkeypatch):
    """The hash only narrows down what is compared exactly: hashes that all collide
    change nothing.
    """
    rng = np.random.default_rng(0)
    rows = rng.integers(-1, 2, (60, 3)).astype(dtype) * dtype(0.5)
    rows[::7] *= -1  # some zeros become -0.0
    expected = [next(j for j in range(60) if (rows[j] == row).all()) for row in rows]
    if hashes is not None:
        monkeypatch.setattr(splits, "row_hashes", hashes)
    assert len(set(expected)) < 30
    np.testing.assert_array_equal(first_duplicate_index(rows), expected)


def test_hashes_of_near_and_permuted_rows_differ():
    x = np.random.default_rng(0).normal(size=(2000, 50)).astype(np.float32)
    near = x.copy()
    near[:, 7] = np.nextafter(near[:, 7], np.inf, dtype=np.float32)
    assert len(np.unique(row_hashes(np.concatenate([x, near, x[:, ::-1]])))) == 6000


def test_shared_rows():
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[5], x[9] = [0.0, 1.0, 2.0], [-0.0, 1.0, 2.0]
    first, second = (
        tta.Task.from_arrays(x[:20], None),
        tta.Task.from_arrays(np.r_[x[20:], x[[3, 9]]], None),
    )
    assert shared_rows(first, second).tolist() == [3, 5, 9]
    assert shared_rows(second, first).tolist() == [20, 21]
    assert shared_rows(first, tta.Task.from_arrays(x[20:], None)).tolist() == []
    with pytest.raises(ValueError, match=r"second: .*features"):
        shared_rows(first, tta.Task.from_arrays(x[:, :2], None))


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
    assert part.groups is not None
    assert part.groups.tolist() == [1, 0, 4]
    np.testing.assert_array_equal(part.features, task.features[[3, 0, 9]])


def test_a_task_is_a_pytree_whose_names_are_static():
    task = tta.Task.from_arrays(X, list("abc") * 4, name="t")
    doubled = jax.tree.map(lambda v: v * 2, task)
    assert (doubled.class_names, doubled.name) == (task.class_names, "t")
    np.testing.assert_array_equal(doubled.features, task.features * 2)


# -- standardising ---------------------------------------------------------------------


def test_standardizer_gives_means_of_zero_and_deviations_of_one():
    x = (
        np.random.default_rng(0).normal(size=(500, 3)) * [1, 3, 9] + [0, 1e3, -5]
    ).astype(np.float32)
    z = tta.Standardizer.fit(x)(x)
    np.testing.assert_allclose(z.mean(0), 0, atol=2e-4)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-3)


def test_standardizer_of_whole_numbers():
    """Counts are features too: the mean of 0 and 1 is a half, not nothing."""
    scaler = tta.Standardizer.fit(np.array([[0, 5], [1, 5]] * 5))
    np.testing.assert_allclose(
        scaler(np.array([[0, 5], [1, 5]])), [[-1, 0], [1, 0]], atol=1e-6
    )


def test_standardizer_of_nothing_but_constants():
    for value in (0.0, 3.0, 1e6, 0.1):
        x = np.full((20, 3), value, np.float32)
        np.testing.assert_allclose(tta.Standardizer.fit(x)(x), 0, atol=1e-6)


def test_a_folded_head_gives_the_same_logits_on_raw_features():
    rng = np.random.default_rng(0)
    scaler = tta.Standardizer.fit(rng.normal(size=(30, 4)) * 5 + 2)
    weight, bias = rng.normal(size=(3, 4)), rng.normal(size=3)
    x = rng.normal(size=(6, 4))
    raw = scaler.fold_into(weight, bias)
    np.testing.assert_allclose(x @ raw[0].T + raw[1], scaler(x) @ weight.T + bias)
