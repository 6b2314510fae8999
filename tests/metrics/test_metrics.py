"""Every metric against an oracle, on tasks of every kind; laws that all of them keep;
gradients; what is refused.
"""

import functools
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tta_jax as tta
from tests.reference import numpy_metrics as oracles
from tta_jax import metrics
from tta_jax.fitting.logistic_regression import L2_GRID
from tta_jax.metrics._registry import REGISTRY
from tta_jax.tasks.task import Samples

CASES = range(54)
ROWS, SOURCE_ROWS = 48, 32
NAMES = list(REGISTRY)

ORACLES = {name: getattr(oracles, name) for name in NAMES if hasattr(oracles, name)}


def padded(values, rows, fill):
    """With rows of rubbish at the end, which a mask has to hide."""
    return np.concatenate(
        [values, np.full((rows - len(values), *values.shape[1:]), fill, values.dtype)]
    )


def source_of(name, c):
    if REGISTRY[name].needs == "probabilities":
        return padded(c.theta, ROWS, np.nan)
    if REGISTRY[name].needs == "task":
        return Samples(
            padded(c.u, SOURCE_ROWS, np.nan),
            padded(c.v, SOURCE_ROWS, 7),
            np.arange(SOURCE_ROWS) < len(c.v),
        )
    return None


def options_of(name):
    """Static sizes, the same for all cases, so that few programs are compiled."""
    found = {"num_classes": oracles.MOST_CLASSES}
    if REGISTRY[name].needs == "task":
        found["num_source_classes"] = 4
    if "class_size" in inspect.signature(REGISTRY[name].function).parameters:
        found["class_size"] = ROWS
    return found


def evaluate(name, c, **options):
    mask = np.arange(ROWS) < len(c.y)
    x, y = padded(c.x, ROWS, np.inf), padded(c.y, ROWS, -9)
    return float(
        REGISTRY[name].function(
            x, y, source_of(name, c), mask=mask, **options_of(name), **options
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.usefixtures("x64")
def test_metrics_equal_their_definitions(name):
    """54 tasks: n < d and n > d, two to five unbalanced classes, copies; padding and
    classes without items in all of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [ORACLES[name](oracles.case(seed)) for seed in CASES]
    found = [evaluate(name, oracles.case(seed)) for seed in CASES]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_every_metric_has_an_oracle_and_a_complete_docstring():
    assert set(ORACLES) | {"nleep", "linear_probe"} == set(REGISTRY)
    for name, metric in REGISTRY.items():
        function, text = metric.function, inspect.getdoc(metric.function)
        assert metric.function is getattr(metrics, name)
        assert text is not None
        for argument in inspect.signature(function).parameters:
            assert text.count(f"\n  {argument}: ") == 1, (name, argument)
        assert text.startswith("Return ")
        assert text.endswith(f"\n\nReference: {metric.reference}.")


def test_the_order_of_the_table_stays():
    assert NAMES[:4] == ["leep", "nce", "nleep", "logme"]
    assert NAMES[-4:] == ["jc_nce", "otdd", "knn", "linear_probe"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("x64")
def test_nleep_is_leep_of_a_converged_mixture(seed):
    """scikit-learn's EM from the same start, to convergence."""
    from tta_jax.metrics._kmeans import k_means
    from tta_jax.metrics.nleep import fit_mixture

    c = oracles.case(
        2 * seed
    )  # tall ones: of Gaussians that interpolate their items nothing converges
    z = np.linalg.svd(c.x - c.x.mean(0), full_matrices=False)
    z = z[0][:, :2] * z[1][:2]
    start = k_means(jnp.asarray(z), jnp.ones(len(z)), jax.random.key(seed), 3)
    assert ((start == 0) | (start == 1)).all()
    assert (start.sum(1) == 1).all()
    fitted = jax.jit(fit_mixture, static_argnums=4)(
        jnp.asarray(z), jnp.ones(len(z)), start, 1e-13, 20_000
    )
    expected = oracles.mixture_posterior(z, np.asarray(start))
    np.testing.assert_allclose(np.exp(fitted.log_posterior), expected, atol=1e-5)
    mine = evaluate(
        "nleep",
        c,
        components=3,
        dimensions=2,
        tolerance=1e-13,
        iterations=20_000,
        key=jax.random.key(seed),
    )
    begun = k_means(
        jnp.asarray(padded(z, ROWS, 0.0)),
        (jnp.arange(ROWS) < len(z)).astype(float),
        jax.random.key(seed),
        3,
    )
    assert mine <= 0
    if np.array_equal(np.asarray(begun)[: len(z)], np.asarray(start)):
        np.testing.assert_allclose(mine, oracles.leep_of(expected, c.y), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 4, 5])
@pytest.mark.usefixtures("x64")
def test_linear_probe_is_the_cross_validated_loss_of_converged_heads(seed):
    c = oracles.case(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = oracles.probe_losses(c, L2_GRID, 2)
    found = -float(metrics.linear_probe(c.x, c.y, folds=2))
    nearest = np.argmin(np.abs(losses - found))
    np.testing.assert_allclose(found, losses[nearest], rtol=1e-6)
    assert losses[nearest] <= losses.min() + 0.1  # the path chooses well


@pytest.mark.usefixtures("x64")
def test_logme_of_random_labels_with_few_items_is_the_direct_evidence():
    """n = 100, d = 512, K = 10: the usual fixed point gives 17; the exact evidence is
    below zero.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 512)), rng.permutation(np.arange(100) % 10)
    found = float(metrics.logme(x, y))
    assert -0.3 < found < -0.1
    direct = (
        np.mean([oracles.evidence(x, column) for column in oracles.one_hot(y).T[:3]])
        / 100
    )
    first = np.mean(
        [
            float(metrics.logme_regression(x, column))
            for column in oracles.one_hot(y).T[:3]
        ]
    )
    np.testing.assert_allclose(first, direct, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_known_traps():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 50)), rng.permutation(np.arange(30) % 3)
    assert float(metrics.h_score(x, y)) == pytest.approx(
        2
    )  # K - 1 whatever the labels are
    assert float(metrics.shrinkage_h_score(x, y)) < 1
    assert float(metrics.shrinkage_h_score(np.eye(3)[y] * 9 + 1e-3 * x[:, :3], y)) > 1.5
    assert float(metrics.gbc(x + 200 * y[:, None], y)) == 0  # underflows
    assert float(metrics.log_gbc(x + 200 * y[:, None], y)) > 700
    small, large = (float(metrics.transrate(s * x, y)) for s in (0.01, 100))
    assert small == pytest.approx(large)
    assert float(metrics.transrate(0.01 * x, y, normalize=False)) != pytest.approx(
        float(metrics.transrate(x, y, normalize=False))
    )
    before = x.copy()
    metrics.sfda(x, y)
    assert np.array_equal(x, before)
    theta = np.eye(4)[rng.integers(0, 4, 30)]
    swapped = float(metrics.nce(None, theta.argmax(1), np.eye(3)[y]))
    assert float(metrics.nce(None, y, theta)) != pytest.approx(swapped)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", "exact"])
@pytest.mark.usefixtures("x64")
def test_otdd_of_a_task_with_itself_is_zero_and_tiles_change_nothing(kind):
    c = oracles.case(2)
    same = Samples(c.x, c.y, np.ones(len(c.y), bool))
    found = float(
        metrics.otdd(c.x, c.y, same, num_source_classes=c.classes, label_distance=kind)
    )
    assert abs(found) < 1e-12 * np.square(c.x).sum()
    other = Samples(c.u, c.v, np.ones(len(c.v), bool))
    whole, tiled = (
        float(
            metrics.otdd(
                c.x, c.y, other, num_source_classes=4, label_distance=kind, cells=cells
            )
        )
        for cells in (1 << 22, 300)
    )
    assert whole < -1
    np.testing.assert_allclose(tiled, whole, rtol=1e-8)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["otdd", "otce", "otce_wasserstein"])
def test_transport_holds_tiles_of_its_matrices(name):
    """The whole of one matrix is 400 MB."""
    n = 10_000
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((n, 8), np.float32), ((n,), np.int32), ((n,), bool))
    ]
    options = {"num_source_classes": 50, "num_classes": 50} | (
        {"class_size": 400} if name == "otdd" else {}
    )
    call = functools.partial(REGISTRY[name].function, **options)
    program = (
        jax.jit(lambda x, y, keep: call(x, y, Samples(x, y, keep), mask=keep))
        .lower(*shapes)
        .compile()
    )
    memory = program.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 150e6


@pytest.mark.slow
def test_otdd_exact_is_its_definition():
    for seed in range(6):
        c = oracles.case(seed)
        np.testing.assert_allclose(
            evaluate("otdd", c, label_distance="exact"),
            oracles.otdd(c, "exact"),
            rtol=1e-6,
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("x64")
def test_metrics_do_not_see_the_order_of_items_and_batch_under_vmap(name):
    """Also: a permutation of class names; `jit` and `vmap` give what single calls
    give.
    """
    if name == "nleep":
        pytest.skip("starts from random items")
    cases = [oracles.case(seed) for seed in (2, 8)]
    single = [evaluate(name, c) for c in cases]
    rng = np.random.default_rng(0)
    if name != "linear_probe":  # which deals items out in their order
        shuffled = []
        for c in cases:
            order, names = rng.permutation(len(c.y)), rng.permutation(c.classes)
            names = (
                np.arange(c.classes) if name == "knn" else names
            )  # ties of votes go by the class
            shuffled.append(
                evaluate(
                    name,
                    oracles.Case(
                        c.x[order], names[c.y[order]], c.theta[order], c.u, c.v
                    ),
                )
            )
        np.testing.assert_allclose(shuffled, single, rtol=1e-8)
    columns = [
        (padded(c.x, ROWS, 0.0), padded(c.y, ROWS, 0), np.arange(ROWS) < len(c.y))
        for c in cases
    ]
    x, y, mask = (np.stack(column) for column in zip(*columns, strict=True))
    sources = [
        jax.tree.map(lambda v: np.nan_to_num(v), source_of(name, c)) for c in cases
    ]
    source = (
        None if sources[0] is None else jax.tree.map(lambda *v: np.stack(v), *sources)
    )
    call = functools.partial(REGISTRY[name].function, **options_of(name))
    batched = jax.jit(jax.vmap(lambda a, b, s, m: call(a, b, s, mask=m)))(
        x, y, source, mask
    )
    np.testing.assert_allclose(batched, single, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [m.name for m in REGISTRY.values() if m.differentiable]
)
@pytest.mark.usefixtures("x64")
def test_gradients_are_those_of_finite_differences(name):
    for seed in (2, 5):
        c = oracles.case(seed)
        call = functools.partial(REGISTRY[name].function, **options_of(name))
        one = Samples(jnp.asarray(c.u), jnp.asarray(c.v), jnp.ones(len(c.v), bool))
        y = jnp.asarray(c.y)
        if REGISTRY[name].needs == "probabilities":
            point, function = (
                jnp.asarray(c.theta) * 0.9 + 0.025,
                lambda theta: call(None, y, theta),
            )
            way = np.random.default_rng(seed).normal(size=point.shape) * 1e-3
            way -= way.mean(1, keepdims=True)
        else:
            point, function = (
                jnp.asarray(c.x),
                lambda x: call(x, y, one if REGISTRY[name].needs == "task" else None),
            )
            way = np.random.default_rng(seed).normal(size=point.shape)
        slope = jax.grad(lambda p: jax.jit(function)(p))(point)
        step = 1e-5
        measured = (function(point + step * way) - function(point - step * way)) / (
            2 * step
        )
        np.testing.assert_allclose((slope * way).sum(), measured, rtol=2e-4, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logme", "h_score", "transrate", "gbc", "sfda"])
@pytest.mark.usefixtures("x64")
def test_second_derivatives_are_those_of_gradients(name):
    """Some factorisations are loops on CPUs, whose batches a second derivative makes of
    what is no batch.
    """
    c = oracles.case(2)
    x, way = jnp.asarray(c.x), np.random.default_rng(2).normal(size=c.x.shape)
    gradient = jax.grad(
        lambda x: REGISTRY[name].function(x, jnp.asarray(c.y), **options_of(name))
    )
    found = jnp.tensordot(jax.jacfwd(gradient)(x), way, 2)
    step = 1e-5
    measured = (gradient(x + step * way) - gradient(x - step * way)) / (2 * step)
    np.testing.assert_allclose(
        found, measured, rtol=1e-4, atol=1e-6 * np.abs(measured).max()
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_refused_under_jit_is_nan(name):
    c = oracles.case(2)
    options = options_of(name) | (
        {"dimensions": 2, "components": 3} if name == "nleep" else {}
    )
    call = functools.partial(REGISTRY[name].function, **options)
    source = jax.tree.map(
        lambda v: np.nan_to_num(np.asarray(v, np.float32)) if v.dtype == float else v,
        source_of(name, c),
    )
    mask = np.arange(ROWS) < len(c.y)
    x = padded(c.x, ROWS, 0.0).astype(np.float32)
    run = jax.jit(lambda y: call(x, y, source, mask=mask))
    good = padded(c.y, ROWS, 0).astype(np.int32)
    bad = good.copy()
    bad[3] = 77
    assert np.isfinite(run(good))
    if name != "etran_energy":  # whose labels only tell padding apart
        assert not np.isfinite(run(bad))


X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
Y = np.arange(12) % 3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.logme(X[:, 0], Y), "^features: found shape"),
        (lambda: metrics.logme(np.where(X > 1, np.nan, X), Y), "^features: NaN"),
        (lambda: metrics.logme(X.astype(str), Y), "^features: "),
        (lambda: metrics.logme(X, Y[:5]), "^features: found shape"),
        (lambda: metrics.logme(X, Y * 1.0), "^labels: .*dtype"),
        (lambda: metrics.logme(X, Y, num_classes=2), "^labels: found 2"),
        (lambda: metrics.logme(X, Y - 1), "^labels: found -1"),
        (lambda: metrics.logme(X, Y, mask=Y), "^mask: "),
        (lambda: metrics.logme(X, Y, mask=Y > 5), "^mask: no item counts"),
        (lambda: metrics.logme(X, Y, num_classes=0), "^num_classes: "),
        (lambda: jax.jit(metrics.logme)(X, Y), "^num_classes: .*jit"),
        (lambda: metrics.leep(X, Y, None), "^source: .*probabilities"),
        (lambda: metrics.leep(X, Y, X), "^source: rows are no probabilities"),
        (lambda: metrics.otce(X, Y, np.abs(X)), "^source: .*source task"),
        (
            lambda: metrics.otce(X, Y, tta.Task.from_arrays(X[:, :2], Y)),
            "^source: .*features",
        ),
        (
            lambda: metrics.otdd(X, Y, tta.Task.from_arrays(X, Y), label_distance="x"),
            "^label_distance: ",
        ),
        (lambda: metrics.gbc(X, Y, gaussian="full"), "^gaussian: "),
        (lambda: metrics.gbc(X, Y, components=0), "^components: "),
        (lambda: metrics.nleep(X, Y), "^components: found 15 for 12"),
        (lambda: metrics.nleep(X, Y, components=2, dimensions=9), "^dimensions: "),
        (lambda: metrics.knn(X, Y, k=0), "^k: "),
        (lambda: metrics.transrate(X, Y, class_size=0), "^class_size: "),
        (lambda: metrics.pactran(X, Y, strength=-1.0), "^strength: "),
        (lambda: metrics.etran_energy(X, Y, share=0.0), "^share: "),
    ],
)
def test_bad_input_is_refused_by_name(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_compute_gives_reasons_in_place_of_zeros():
    task = tta.Task.from_arrays(
        np.random.default_rng(0).normal(size=(20, 40)), np.arange(20) % 5
    )
    found = {score.metric: score for score in metrics.compute(task)}
    assert list(found) == NAMES
    blank = {name for name, score in found.items() if score.value is None}
    assert blank == {
        "leep",
        "nce",
        "nleep",
        "h_score",
        "otce",
        "otce_wasserstein",
        "jc_nce",
        "otdd",
    }
    assert (
        found["h_score"].reason
        == "with 20 items and 40 features it is 4 whatever the labels are"
    )
    assert found["leep"].reason == "needs the source head"
    assert all((score.value is None) == bool(score.reason) for score in found.values())
    alone = tta.Task.from_arrays(X, np.zeros(12, int))
    assert all("one class" in score.reason for score in metrics.compute(alone))
    with pytest.raises(ValueError, match=r"^names: there is no metric 'lep'"):
        metrics.compute(task, names=["lep"])


def test_pooled_scores_depend_on_their_pool_and_nothing_else_does():
    parts = {
        "etran_energy": np.array([1.0, 2.0, 4.0]),
        "etran_lda": np.array([0.5, 0.9, 0.7]),
    }
    np.testing.assert_allclose(
        metrics.pooling.pool("etran", parts), [0, 0.15 / 3 + 0.85, 0.15 + 0.425]
    )
    assert np.isnan(metrics.pooling.scaled(np.ones(3))).all()
    with pytest.raises(ValueError, match="etran_lda is missing"):
        metrics.pooling.pool("etran", {"etran_energy": np.ones(2)})
