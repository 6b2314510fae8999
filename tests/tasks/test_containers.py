"""What users hand over: containers that carry more than values, and the spellings of
"no label", of class names and of groups.
"""

import warnings

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse

import tta_jax as tta
from tta_jax._internal.warning import DataWarning

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
Y = [0, 1, 0, 1, 0, 1]


class Scalar:
    """As a tensor: hashed by identity, compared by value."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return self.value == other.value

    __hash__ = object.__hash__


class Item(Scalar):
    def item(self):
        return self.value


def known(labels, names=None):
    return np.asarray(tta.Task.from_arrays(X, labels, names).labelled).tolist()


WANTED = [False, True, True, True, False, True]


@pytest.mark.parametrize(
    "labels",
    [
        [None, 0, 1, 0, None, 1],
        [float("nan"), 0, 1, 0, None, 1],
        np.array([np.nan, 0, 1, 0, np.nan, 1]),
        np.ma.array([7, 0, 1, 0, 9, 1], mask=[True, False, False, False, True, False]),
        pa.array([None, 0, 1, 0, None, 1]),
        pa.chunked_array([pa.array([None, 0, 1]), pa.array([0, None, 1])]),
        np.array(["NaT", "2020", "2021", "2020", "NaT", "2021"], "datetime64[Y]"),
        np.array([None, "a", "b", "a", None, "b"], object),
    ],
)
def test_null_nan_and_masked_labels_are_none(labels):
    task = tta.Task.from_arrays(X, labels)
    assert np.asarray(task.labelled).tolist() == WANTED
    assert (task.num_classes, task.counts.tolist()) == (2, [2, 2])


@pytest.mark.parametrize("nothing", [-1, -100])
@pytest.mark.parametrize("names", [None, ["a", "b"], {"a": 0, "b": 1}])
def test_minus_one_is_no_label_beside_indices(nothing, names):
    labels = np.array([nothing, 0, 1, 0, nothing, 1])
    with pytest.warns(DataWarning, match=f"is {nothing} in 2 rows"):
        assert known(labels, names) == WANTED
    with pytest.warns(DataWarning):
        assert not any(known(np.full(6, nothing), names))


def test_minus_one_is_a_class_beside_one_or_among_names():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        signs = tta.Task.from_arrays(X, [-1, 1, -1, 1, -1, 1])
        assert signs.class_names == (-1, 1)
        named = tta.Task.from_arrays(X, [-1, 0, 1, -1, 0, 1], [-1, 0, 1])
        assert named.class_names == (-1, 0, 1)
        assert np.asarray(named.labelled).all()


def test_a_label_that_labelled_calls_known_must_be_there():
    with pytest.raises(ValueError, match=r"^labels: .*row 2, which labelled="):
        tta.Task.from_arrays(X, [0, 1, None, 1, 0, 1], labelled=np.ones(6, bool))


@pytest.mark.parametrize(
    "names",
    [
        {"dog": 1, "cat": 0, "cow": 2},
        {0: "cat", 1: "dog", 2: "cow"},
        {"0": "cat", "1": "dog", "2": "cow"},
        {2: "cow", 1: "dog", 0: "cat"},
    ],
)
def test_mappings_of_names_are_read_by_index(names):
    task = tta.Task.from_arrays(X, [0, 1, 2] * 2, names)
    assert task.class_names == ("cat", "dog", "cow")


@pytest.mark.parametrize(
    "names",
    [
        {"cat": 0, "dog": 2},
        {0: 1, 1: 0},
        {"cat": "a", "dog": "b"},
        {1: "cat", 2: "dog"},
        {"cat": 0, "dog": 0},
    ],
)
def test_other_mappings_of_names_are_refused(names):
    with pytest.raises(ValueError, match=r"^class_names: .*mapping"):
        tta.Task.from_arrays(X, Y, names)


@pytest.mark.parametrize("argument", ["features", "labels", "groups"])
def test_mappings_of_values_are_refused(argument):
    given = {"features": X, "labels": Y, "groups": None}
    given[argument] = dict(enumerate(Y))
    with pytest.raises(ValueError, match=rf"^{argument}: .*dict"):
        tta.Task.from_arrays(**given)


@pytest.mark.parametrize(
    "features",
    [
        scipy.sparse.csr_matrix(X),
        scipy.sparse.coo_array(X),
        jnp.asarray(X),
        np.ma.array(X),
        X.tolist(),
        np.asfortranarray(X),
    ],
)
def test_features_of_other_containers_are_their_values(features):
    task = tta.Task.from_arrays(features, Y)
    np.testing.assert_allclose(task.features, X, rtol=1e-6)


def test_masked_features_are_refused_by_row():
    mask = np.zeros(X.shape, bool)
    mask[3, 1] = True
    with pytest.raises(ValueError, match=r"^features: .*row 3"):
        tta.Task.from_arrays(np.ma.array(X, mask=mask), Y)


@pytest.mark.parametrize("kind", [Item, np.int64, jnp.asarray, float, str, bytes])
def test_equal_groups_are_one_group(kind):
    if kind is bytes:
        groups = [str(i // 3).encode() for i in range(6)]
    else:
        groups = [kind(i // 3) for i in range(6)]
    task = tta.Task.from_arrays(X, Y, groups=groups)
    assert np.asarray(task.groups).tolist() == [0, 0, 0, 1, 1, 1]


def test_groups_told_apart_by_identity_are_refused():
    with pytest.raises(ValueError, match=r"^groups: .*Scalar objects.*identity"):
        tta.Task.from_arrays(X, Y, groups=[Scalar(i // 3) for i in range(6)])


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_items_without_a_group_are_refused_by_row(nothing):
    with pytest.raises(ValueError, match=r"^groups: .*row 4"):
        tta.Task.from_arrays(X, Y, groups=[0, 0, 1, 1, nothing, 2])


def test_frames_of_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X)
    labels = pandas.Series([pandas.NA, 0, 1, 0, pandas.NA, 1], dtype="Int64")
    task = tta.Task.from_arrays(frame, labels)
    np.testing.assert_allclose(task.features, X, rtol=1e-6)
    assert np.asarray(task.labelled).tolist() == WANTED
    kinds = pandas.Series([*list("abab"), None, "a"], dtype="category")
    assert tta.Task.from_arrays(frame, kinds).class_names == ("a", "b")
    frame.iloc[2, 0] = np.nan
    with pytest.raises(ValueError, match=r"^features: .*row 2"):
        tta.Task.from_arrays(frame, labels)
