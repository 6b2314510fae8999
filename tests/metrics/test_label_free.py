"""Scores without target labels: laws, oracles, what is refused."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tta_jax as tta
from tests.typed import anything
from tta_jax.metrics import label_free as lf
from tta_jax.metrics._inputs import labelled_features

KEY = jax.random.key(0)


def classes(n, k, dim, spread, seed, shape=None):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    x = rng.normal(size=(n, dim)) + spread * np.eye(k, dim)[y]
    return (x if shape is None else x @ shape), y


def given(x, source=None, mask=None, seed=0, logits=None):
    mask = np.ones(len(x), bool) if mask is None else mask
    z, y = source or classes(120, 3, x.shape[1], 3.0, 9)
    logits = np.zeros((len(x), 3)) if logits is None else logits
    return lf.Unlabelled(
        labelled_features(x, np.zeros(len(x), np.int32), mask, 1),
        labelled_features(z, y, None, 3),
        jnp.asarray(logits),
        jax.random.key(seed),
    )


def task(x, y=None, name="t"):
    return tta.Task.from_arrays(x, y, name=name)


@pytest.mark.parametrize("shape", ["round", "long"])
@pytest.mark.usefixtures("x64")
def test_a_gaussian_cloud_has_no_structure_whatever_its_shape(shape):
    stretch = np.diag(np.geomspace(1, 30 if shape == "long" else 1, 8))
    values = [
        float(
            lf.structure(
                given(np.random.default_rng(s).normal(size=(400, 8)) @ stretch, seed=s),
                4,
            )
        )
        for s in range(6)
    ]
    assert abs(np.mean(values)) < 0.03
    assert np.max(np.abs(values)) < 0.1


@pytest.mark.usefixtures("x64")
def test_structure_grows_with_the_distance_of_classes_and_sees_no_unit():
    values = [
        float(lf.structure(given(classes(400, 4, 8, spread, 1)[0]), 4))
        for spread in (0, 3, 5, 12)
    ]
    assert values == sorted(values)
    assert values[-1] > 0.5
    x, source = classes(300, 4, 8, 5.0, 2)[0], classes(120, 3, 8, 3.0, 9)
    one = lf.structure(given(x, source), 4)
    other = lf.structure(given(x * 1000 + 7, (source[0] * 1000, source[1])), 4)
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_source_tells_which_directions_matter():
    """Clusters along an axis in which the source's classes are wide count for less than
    along one where they are narrow.
    """
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    z = (
        rng.normal(size=(300, 6)) * np.array([10, 0.1, 1, 1, 1, 1])
        + 3 * np.eye(3, 6)[y]
    )
    x = rng.normal(size=(400, 6)) * np.array([0.3, 0.3, 1, 1, 1, 1])
    apart = np.where(np.arange(400) % 2 > 0, 1.5, -1.5)

    def along(axis):
        return x + apart[:, None] * np.eye(6)[axis]

    narrow, wide = (
        float(lf.structure(given(along(axis), (z, y)), 2)) for axis in (1, 0)
    )
    assert narrow > wide + 0.2


@pytest.mark.usefixtures("x64")
def test_neighbours_and_clusters_are_those_of_brute_force():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(700, 5))  # more than a block
    mine = np.eye(4)[rng.integers(0, 4, 700)]
    weights = (np.arange(700) < 650).astype(float)
    distance = np.linalg.norm(x[:650, None] - x[None, :650], axis=2)
    np.fill_diagonal(distance, np.inf)
    near = np.argsort(distance, axis=1)[:, :5]
    labels = mine.argmax(1)[:650]
    expected = (labels[near] == labels[:, None]).mean()
    found = lf._agreement(
        jnp.asarray(np.where(weights[:, None] > 0, x, 0.0)),
        jnp.asarray(weights),
        jnp.asarray(mine),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_silhouette_is_scikit_learns():
    from sklearn.metrics import silhouette_score

    from tta_jax.metrics._kmeans import best_k_means
    from tta_jax.metrics.loo_knn import standardised

    for seed, n in enumerate((60, 600)):
        one = given(classes(n, 3, 5, 2.0, seed)[0], seed=seed)
        x = standardised(one.target)
        mine, _ = best_k_means(x, one.target.weights, one.key, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = silhouette_score(np.asarray(x), np.asarray(mine).argmax(1))
        np.testing.assert_allclose(lf.silhouette(one, 3), expected, rtol=1e-8)


@pytest.mark.usefixtures("x64")
def test_figures_of_the_head_are_their_definitions():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 3)) * 3
    one = given(rng.normal(size=(50, 4)), logits=logits)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own, mixed = -(p * np.log(p)).sum(1).mean(), -(p.mean(0) * np.log(p.mean(0))).sum()
    np.testing.assert_allclose(lf.confidence(one, 3), p.max(1).mean())
    np.testing.assert_allclose(lf.negative_entropy(one, 3), -own)
    np.testing.assert_allclose(lf.mutual_information(one, 3), mixed - own)
    np.testing.assert_allclose(lf.energy(one, 3), np.log(np.exp(logits).sum(1)).mean())


@pytest.mark.usefixtures("x64")
def test_frechet_is_the_distance_of_gaussians():
    import scipy.linalg

    rng = np.random.default_rng(1)
    z, y = classes(90, 3, 4, 2.0, 3)
    x = rng.normal(size=(70, 4)) @ rng.normal(size=(4, 4)) + 1
    a, b = np.cov(z.T, bias=True), np.cov(x.T, bias=True)
    squared = ((z.mean(0) - x.mean(0)) ** 2).sum() + np.trace(
        a + b - 2 * np.real(np.asarray(scipy.linalg.sqrtm(a @ b)))
    )
    np.testing.assert_allclose(
        lf.frechet(given(x, (z, y)), 3), -np.sqrt(squared / np.trace(a)), rtol=1e-6
    )


@pytest.mark.parametrize("name", list(lf.LABEL_FREE))
@pytest.mark.usefixtures("x64")
def test_padding_changes_nothing_that_is_not_drawn(name):
    """Starts and draws depend on the number of rows; figures without them do not."""
    x = classes(60, 3, 5, 9.0, 4)[0]
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 3))
    padded = np.concatenate([x, np.full((36, 5), np.nan)])
    mask = np.arange(96) < 60
    one = lf.LABEL_FREE[name](given(x, logits=logits), 3)
    other = lf.LABEL_FREE[name](
        given(
            padded, mask=mask, logits=np.concatenate([logits, np.full((36, 3), np.nan)])
        ),
        3,
    )
    np.testing.assert_allclose(one, other, rtol=0.1 if name == "structure" else 1e-9)


@pytest.mark.parametrize("name", list(lf.LABEL_FREE))
def test_runs_under_jit_and_vmap(name):
    batch = [
        given(
            classes(60, 3, 5, 2.0, s)[0].astype(np.float32),
            seed=s,
            logits=np.ones((60, 3), np.float32),
        )
        for s in range(3)
    ]
    run = jax.jit(lambda one: lf.LABEL_FREE[name](one, 3))
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *batch)
    found = jax.jit(jax.vmap(lambda one: lf.LABEL_FREE[name](one, 3)))(stacked)
    np.testing.assert_allclose(found, [run(one) for one in batch], rtol=1e-3, atol=1e-3)


def test_labels_are_not_looked_at_and_the_key_decides():
    x, y = classes(120, 3, 6, 3.0, 0)
    source = task(*classes(90, 3, 6, 3.0, 1), "source")

    def values(t, **options):
        return {s.metric: s.value for s in tta.label_free(t, source, **options)}

    known = values(task(x, y))
    assert set(known) == set(lf.LABEL_FREE)
    assert known == values(task(x, np.roll(y, 1)))
    assert known == values(task(x), num_classes=3)
    assert known == values(
        task(np.concatenate([x, x[:40]]), np.concatenate([y, y[:40]]))
    )  # copies count once
    other = values(task(x, y), key=jax.random.key(1))
    assert other["structure"] != known["structure"]
    assert other["confidence"] == known["confidence"]
    assert [
        s.metric for s in tta.label_free(task(x), source, names=["energy", "structure"])
    ] == ["energy", "structure"]


def test_wrong_calls_are_refused_by_name():
    x, y = classes(60, 3, 6, 3.0, 0)
    good = task(x, y)
    with pytest.raises(ValueError, match=r"^source: it has 5 features"):
        tta.label_free(good, task(x[:, :5], y))
    with pytest.raises(ValueError, match=r"^source: task 't' has fewer than 2 classes"):
        tta.label_free(good, task(x))
    with pytest.raises(ValueError, match=r"^names: 'x' is unknown"):
        tta.label_free(good, good, names=["x"])
    with pytest.raises(ValueError, match=r"^num_classes: found 1;"):
        tta.label_free(good, good, num_classes=1)
    with pytest.raises(ValueError, match=r"^target: task 't' has 4 distinct items"):
        tta.label_free(task(x[:4]), good, num_classes=3)
    with pytest.raises(ValueError, match=r"^head: its weight has shape"):
        tta.label_free(good, good, head=tta.SoftmaxHead(np.zeros((3, 2)), np.zeros(3)))
    with pytest.raises(ValueError, match=r"^target: found ndarray"):
        tta.label_free(anything(x), good)
    flat = tta.label_free(
        task(np.ones((1, 6)).repeat(60, 0) + np.eye(60, 6) * 1e-3, y),
        good,
        names=["silhouette"],
    )[0]
    assert flat.value is None or np.isfinite(flat.value)
