"""What comes in from outside: tasks, splits, files; what is refused, and in which
words.
"""

import io
import zipfile
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tta_jax as tta
from tests.bounds.test_intervals import one_class
from tta_jax import probes
from tta_jax._internal.files import write_atomically
from tta_jax._internal.serialization import load, save
from tta_jax.bounds import intervals
from tta_jax.bounds.chain import Transforms
from tta_jax.core import feature_maps
from tta_jax.data.io.features import load_head, load_task

X = np.random.default_rng(0).normal(size=(12, 3))
Y = np.arange(12) % 3


@pytest.mark.parametrize(
    ("features", "labels", "options", "words"),
    [
        (X[:, 0], Y, {}, "features.*shape"),
        (X[:1], Y[:1], {}, "at least 2 samples"),
        (np.where(np.arange(12)[:, None] == 4, np.nan, X), Y, {}, "features.*row 4"),
        (X * 1e300, Y, {}, "beyond float32"),
        (X.astype(object), Y, {}, "dtype object"),
        (X + 1j, Y, {}, "dtype complex"),
        (X, Y[:5], {}, "labels.*expected"),
        (X, np.eye(3)[Y], {}, "argmax"),
        (X, np.ones((12, 3)), {}, "multi-label"),
        (X, [[1, 2]] * 12, {}, "several labels"),
        (X, X[:, 0], {}, "regression"),
        (X, [{}] * 12, {}, "hashed"),
        (X, Y + 1, {"class_names": ["a", "b", "c"]}, "0..2"),
        (X, Y - 2, {"class_names": ["a", "b", "c"]}, "labels"),
        (X, Y, {"class_names": ["a", "b", "c", "d"]}, "no sample of class 'd'"),
        (X, Y, {"class_names": ["a", "b", "b"]}, "twice"),
        (X, ["x"] * 12, {"class_names": ["a", "b"]}, "not in class_names"),
        (X, Y, {"labelled": np.ones(12)}, "labelled.*boolean"),
        (X, Y, {"groups": [1, 2]}, "groups"),
        (X, None, {"labelled": np.ones(12, bool)}, "pass the labels"),
    ],
)
def test_bad_tasks_are_refused_by_name(features, labels, options, words):
    with pytest.raises(ValueError, match=words):
        tta.Task.from_arrays(features, labels, **options)


@pytest.mark.parametrize(
    "labels",
    [
        Y,
        Y.astype(float),
        list("abc" * 4),
        np.array(list("abc" * 4)),
        Y > 0,
        [("p", 1), ("q", 2), ("r", 3)] * 4,
        ["a", 1, 2.5] * 4,
    ],
)
def test_labels_come_back_under_their_names(labels):
    if isinstance(labels, list) and isinstance(labels[0], tuple):
        # Tuples are labels when given as an object array; a plain list of them looks
        # like several labels per item.
        boxed = np.empty(12, object)
        boxed[:] = labels
        labels = boxed
    task = tta.Task.from_arrays(X, labels)
    assert [task.class_names[k] for k in task.labels] == list(labels)


def test_integer_names_and_indices():
    assert tta.Task.from_arrays(X, Y + 5).class_names == (5, 6, 7)
    named = tta.Task.from_arrays(X, Y, class_names=["a", "b", "c"])
    assert [named.class_names[k] for k in named.labels[:3]] == ["a", "b", "c"]
    by_name = tta.Task.from_arrays(X, Y + 5, class_names=[7, 6, 5])
    assert [by_name.class_names[k] for k in by_name.labels[:3]] == [5, 6, 7]


@given(
    st.integers(0, 10_000), st.integers(20, 80), st.integers(2, 4), st.floats(0.1, 0.5)
)
def test_splits_are_stratified_disjoint_and_repeatable(seed, n, classes, share):
    rng = np.random.default_rng(seed)
    labels = np.r_[
        np.arange(classes),
        np.arange(classes),
        rng.integers(0, classes, n - 2 * classes),
    ]
    task = tta.Task.from_arrays(rng.normal(size=(n, 2)), labels)
    learn, held = task.split(share, jax.random.key(seed))
    assert sorted([*learn, *held]) == list(range(n))
    for k in range(classes):
        total, inside = (labels == k).sum(), (labels[held] == k).sum()
        assert abs(inside - share * total) <= 1
        assert inside < total
    again = task.split(share, jax.random.key(seed))
    np.testing.assert_array_equal(held, again[1])
    parts = [h for _, h in task.folds(2, jax.random.key(seed))]
    assert sorted(np.concatenate(parts)) == list(range(n))


@given(st.integers(0, 10_000))
def test_groups_and_exact_copies_never_sit_on_both_sides(seed):
    rng = np.random.default_rng(seed)
    labels, groups = np.arange(60) % 3, rng.integers(0, 20, 60)
    features = rng.normal(size=(60, 2))
    features[10] = features[47]
    task = tta.Task.from_arrays(features, labels, groups=groups)
    for learn, held in [
        task.split(0.3, jax.random.key(seed)),
        *task.folds(3, jax.random.key(seed)),
    ]:
        assert not set(groups[learn]) & set(groups[held])
        assert (10 in held) == (47 in held)
        assert len(held)


def test_standardizer_is_harmless_on_constant_and_dead_features():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 4)).astype(np.float32)
    x[:, 1], x[:, 2] = 3.0, 1e-7 * x[:, 2]
    scaler = tta.Standardizer.fit(x, clip=5.0)
    z = scaler(x)
    np.testing.assert_allclose(z[:, 1], 0, atol=1e-5)
    assert np.abs(z[:, 2]).max() < 1e-4
    assert np.abs(scaler(x + 100)).max() == 5.0
    head = tta.SoftmaxHead(rng.normal(size=(3, 4)), rng.normal(size=3))
    raw = tta.SoftmaxHead(*scaler.fold_into(head.weight, head.bias))
    np.testing.assert_allclose(raw.logits(x), head.logits(z), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", sorted(feature_maps.FAMILIES))
def test_archive_returns_every_map_bit_for_bit(family, tmp_path):
    import tta_jax.analysis.analyze  # registers what can be stored

    assert tta_jax.analysis
    phi = feature_maps.FAMILIES[family](4, jax.random.key(0))
    stored = Transforms(np.array([[0.0, -np.inf]]), phi)
    save(tmp_path / "x", stored)
    loaded = load(tmp_path / "x")
    assert type(loaded.feature_map) is type(phi)
    z = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(loaded.feature_map(z), phi(z))
    np.testing.assert_array_equal(loaded.log_joint, stored.log_joint)


def test_archive_refuses_damage_and_leaves_nothing_half_written(tmp_path):
    path = tmp_path / "x"
    save(path, tta.SoftmaxHead(np.ones((2, 2)), np.ones(2)))
    whole = path.read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    for bad in ("cut", "absent"):
        with pytest.raises(ValueError, match="path"):
            load(tmp_path / bad)

    def fails(stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fails)
    assert path.read_bytes() == whole
    assert {p.name for p in tmp_path.iterdir()} == {"x", "cut"}


def test_files_name_what_is_wrong(tmp_path):
    np.savez(tmp_path / "a.npz", features=X, labels=Y, extra=Y)
    np.savez(tmp_path / "b.npz", labels=Y)
    np.savez(tmp_path / "c.npz", features=X, labels=np.array(["a", None] * 6, object))
    for name, words in (
        ("a.npz", "extra"),
        ("b.npz", "features"),
        ("c.npz", "damaged|strings"),
        ("d.txt", "no file"),
    ):
        with pytest.raises(ValueError, match=words):
            load_task(str(tmp_path / name), "source")


def npy(shape=(12, 3), damage=("", "")):
    """Bytes of an .npy of doubles with the shape and the damage that a test wants in
    its header.
    """
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return (
        stream.getvalue().replace(damage[0].encode(), damage[1].encode(), 1)
        + X.tobytes()
    )


def member(content, name="features.npy"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as stored:
        stored.writestr(name, content)
    return stream.getvalue()


def deflated():
    stream = io.BytesIO()
    np.savez_compressed(stream, features=np.zeros((100, 9)))
    data = bytearray(stream.getvalue())
    begin = data.index(b"features.npy") + 40
    data[begin : begin + 20] = b"\xff" * 20
    return bytes(data)


BROKEN = {
    "an array called npz": ("x.npz", npy()),
    "damaged compression": ("x.npz", deflated()),
    "an open bracket": ("x.npz", member(npy(damage=("'shape'", "((((((('")))),
    "an open bracket, alone": ("x.npy", npy(damage=("'shape'", "((((((('"))),
    "an open string": ("x.npy", npy(damage=("'shape'", "'''shape"))),
    "a huge shape": ("x.npz", member(npy(shape=(10**13, 3)))),
    "a huge shape, alone": ("x.npy", npy(shape=(2**62, 2**62))),
    "a long header": (
        "x.npz",
        member(npy(shape=(1,) * 5000)),
    ),  # NumPy says so in three lines
    "text inside": ("x.npz", member("ant", "class_names")),
    "npz called npy": ("x.npy", member(npy())),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_in_one_line(case, tmp_path):
    name, content = BROKEN[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"^source: [^\n]*x\.np[yz]' is damaged or not a NumPy file \([^\n]+\)$",
    ):
        load_task(str(path), "source")
    with pytest.raises(ValueError, match=r"^head: [^\n]+$"):
        load_head(str(path))
    says = r"^path: [^\n]+ is damaged or not a saved analysis \([^\n]+\)$"
    with pytest.raises(ValueError, match=says):
        load(path)


@pytest.mark.parametrize(
    ("argument", "arrays"),
    [
        ("class_names", {"class_names": np.array(3)}),
        ("class_names", {"class_names": np.array([["a"], ["b"], ["c"]])}),
        ("groups", {"groups": np.array(3)}),
        ("groups", {"groups": np.ones((12, 2))}),
        ("labels", {"labels": np.array(1)}),
        ("features", {"features": np.array("x")}),
    ],
)
def test_arrays_of_files_are_refused_by_name(argument, arrays, tmp_path):
    np.savez(tmp_path / "x.npz", **{"features": X, "labels": Y, **arrays})
    with pytest.raises(
        ValueError, match=rf"^source: [^\n]*x\.npz: {argument}: [^\n]+$"
    ):
        load_task(str(tmp_path / "x.npz"), "source")


@pytest.mark.parametrize(
    "arrays",
    [
        {"weight": np.array([["a"]])},
        {"weight": np.array([[None, 1]], object)},
        {"weight": np.ones((2, 2)) * 1j},
        {"weight": np.ones((2, 2)), "bias": np.array(["a", "b"])},
        {"weight": np.array(2.0)},
        {"weight": np.ones(2), "bias": np.ones(2)},
        {"bias": np.ones(2)},
    ],
)
def test_files_that_hold_no_head_are_refused(arrays, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=r"^head: [^\n]+$"):
        load_head(str(tmp_path / "x.npz"))


def test_pairs_and_heads_from_files(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    np.savez(tmp_path / "h.npz", weight=np.eye(3), features=X)

    def pair(a, b):
        return load_task(f"{tmp_path / a},{tmp_path / b}", "source")

    assert pair("x.npy", "y.npy").counts.tolist() == [4, 4, 4]
    for a, b in (("x.npy", "h.npz"), ("h.npz", "y.npy")):
        with pytest.raises(ValueError, match=r"source: .*h\.npz' is not \.npy"):
            pair(a, b)
    weight, bias = load_head(str(tmp_path / "h.npz"))
    assert (weight.tolist(), bias.tolist()) == (np.eye(3).tolist(), [0, 0, 0])


def probed(train=None, test=None, l2: Any = 0.1):
    task = tta.Task.from_arrays(X, Y)
    return probes.linear_probe(train or task, test or task, l2)


@pytest.mark.parametrize("l2", [float("nan"), float("inf"), -1.0, 0.0, True, "0.1"])
def test_probes_refuse_a_decay_that_is_none(l2):
    with pytest.raises(ValueError, match=r"^l2: found "):
        probed(l2=l2)


def test_probes_need_labels_on_both_sides():
    blind = tta.Task.from_arrays(X, None, class_names=[0, 1, 2])
    for argument in ("train", "test"):
        with pytest.raises(ValueError, match=f"^{argument}: .*no labels"):
            probed(**{argument: blind})


def test_probes_count_losses_that_float32_probabilities_cannot_hold(monkeypatch):
    steep = tta.SoftmaxHead(np.eye(3, dtype=np.float32) * 200, np.zeros(3, np.float32))
    monkeypatch.setattr(probes, "minimise_cross_entropy", lambda *_, **__: steep)
    z = (
        tta.Standardizer.fit(X.astype(np.float32), clip=5.0)(
            X.astype(np.float32)
        ).astype(float)
        * 200
    )
    expected = (np.logaddexp.reduce(z, axis=1) - z[np.arange(12), Y]).mean()
    assert probed().loss == pytest.approx(expected, rel=1e-6)
    assert expected > 150


def test_bootstrap_intervals_cover():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        target, source = rng.exponential(size=(2, 80))
        mass = np.full(80, 1 / 80)
        classes = [one_class(source, mass, target, mass, np.ones(80, bool))]
        found = intervals.bootstrap(classes, 1.0, rng, 200, 0.9)
        low, high = found.limits["target_loss"]
        covered += low <= 1.0 <= high
    assert 0.8 <= covered / 200 <= 0.97
