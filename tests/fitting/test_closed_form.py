"""What learning does on the device: ridge paths, the closed form's search, refinement,
the loop; alone and in batches.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

import tta_jax as tta
from tta_jax.core import coupling
from tta_jax.core.heads import own_losses
from tta_jax.fitting.closed_form import (
    RIDGES,
    SCALES,
    closed_form,
    expand_weights,
    ridge_path,
)
from tta_jax.fitting.gradient_descent import Params, batch_objective, minimise
from tta_jax.fitting.logistic_regression import (
    decay_path,
    penalised_path,
    refit_head,
    second_moments,
)

N, K_T, K_S, FOLDS = 48, 3, 4, 4
PRIOR = np.array([0.5, 0.3, 0.2])


def target_case(seed, dim, padding=4):
    """A target with rows that do not count, inner folds, an assignment and source
    logits to regress on.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(N) % K_T
    features = rng.normal(size=(N, dim)) + 2 * np.eye(K_T, dim)[labels]
    features[-padding:] = 0
    mask = np.arange(N) < N - padding
    fold = np.where(mask, (np.arange(N) // K_T) % FOLDS, 0)
    source_of = rng.permutation(K_S)[:K_T]
    log_joint = coupling.log_coupling(
        coupling.assignment_logits(jnp.asarray(source_of), K_S),
        jnp.log(jnp.asarray(PRIOR)),
    )
    words = rng.normal(size=(K_S, K_S)) * 3
    sample = tta.Samples(jnp.asarray(features), jnp.asarray(labels), jnp.asarray(mask))
    return (
        sample,
        jnp.asarray(mask),
        jnp.asarray(fold),
        log_joint,
        jnp.asarray(source_of),
        jnp.asarray(words),
    )


def ridge(sample, judged, fold):
    return ridge_path(sample, judged, fold, inner_folds=FOLDS, num_targets=K_T)


def learn(case, refine=True):
    sample, judged, fold, log_joint, source_of, words = case
    return closed_form(
        ridge(sample, judged, fold),
        log_joint,
        source_of,
        words,
        jnp.asarray(jnp.nan),
        refine=refine,
    )


@pytest.mark.parametrize("dim", [5, 80])
def test_ridge_path_equals_scikit_learns(dim, x64):
    """Every fold and every ridge, also with fewer items than features, where the path
    works in a basis.
    """
    sample, judged, fold = target_case(0, dim)[:3]
    path = ridge(sample, judged, fold)
    x, onehot = np.asarray(sample.features), np.eye(K_T)[np.asarray(sample.labels)]
    for k, (i, strength) in itertools.product(range(FOLDS + 1), enumerate(RIDGES)):
        mine = np.asarray(judged) & (np.asarray(fold) != k)
        expected = Ridge(strength * float(path.unit) * mine.sum(), tol=1e-12).fit(
            x[mine], onehot[mine]
        )
        np.testing.assert_allclose(
            expand_weights(path.basis, path.beta[k, i].T),
            expected.coef_,
            rtol=1e-6,
            atol=1e-8,
        )
        np.testing.assert_allclose(
            path.intercept[k, i], expected.intercept_, rtol=1e-6, atol=1e-8
        )


def test_the_closed_form_is_the_best_of_its_grid(x64):
    """Brute force over ridges, code words, scales and offsets in NumPy finds the same
    inner-fold loss.
    """
    case = target_case(1, 6)
    sample, judged, fold, _, source_of, words = case
    path, fit = ridge(sample, judged, fold), learn(case, refine=False)
    x, labels, keep = (np.asarray(v) for v in (sample.features, sample.labels, judged))
    used = np.zeros(K_S, bool)
    used[np.asarray(source_of)] = True
    log_d = np.zeros(K_S)
    log_d[np.asarray(source_of)] = np.log(PRIOR)
    beta, intercept = np.asarray(path.beta), np.asarray(path.intercept)
    mean_words = np.asarray(words)[np.asarray(source_of)]
    flat = (np.eye(K_S) - used / used.sum())[np.asarray(source_of)] * np.sqrt(
        (mean_words**2).sum(1).mean()
    )
    best = np.inf
    for i, code in itertools.product(range(len(RIDGES)), (mean_words, flat)):
        out = np.stack([x @ beta[k, i] + intercept[k, i] for k in range(FOLDS)])
        coded = out[np.asarray(fold), np.arange(N)] @ code
        for scale, offset in itertools.product(SCALES, (0, 1)):
            s = np.where(used, scale * coded + offset * log_d, -np.inf)
            log_h = s - np.logaddexp.reduce(s, axis=1, keepdims=True)
            own = -log_h[np.arange(N), np.asarray(source_of)[labels]][keep]
            # One item more, its class drawn from D; B is 0 or 1.
            more = -(log_h[keep][:, used] @ np.exp(log_d[used])).mean()
            best = min(best, (own.sum() + more) / (keep.sum() + 1))
    np.testing.assert_allclose(fit.start_loss, best, rtol=1e-10)


@pytest.mark.slow
def test_few_items_that_are_all_told_apart_call_for_no_certainty():
    """Two labels a class, and classes of which 70 % of other items can be told: what is
    learned beats guessing on average.
    """
    losses = []
    for seed in range(12):
        rng = np.random.default_rng(seed)

        def draw(n):
            return (
                rng.normal(size=(n, 30)) + 0.3 * (np.arange(n) % 2 * 2 - 1)[:, None],
                np.arange(n) % 2,
            )

        (x, y), (seen, z), (others, truth) = draw(100), draw(4), draw(400)
        source, target = tta.Task.from_arrays(x, y), tta.Task.from_arrays(seen, z)
        found = tta.analyze(
            source,
            None,
            target,
            tta.Config(folds=2, bootstrap=0, rungs="tight"),
            jax.random.key(seed),
        )
        p = found.predict_proba(others)[np.arange(400), truth]
        losses.append(-np.log(np.maximum(p, 1e-30)).mean())
    assert np.mean(losses) < np.log(2)
    assert max(losses) < 2


def test_refinement_is_adopted_only_where_inner_folds_gain(x64):
    adopted = 0
    for seed in range(6):
        fit, start = (
            learn(target_case(seed, 6)),
            learn(target_case(seed, 6), refine=False),
        )
        np.testing.assert_allclose(fit.start_loss, start.start_loss, rtol=1e-12)
        if int(fit.pull) < 0:
            np.testing.assert_array_equal(fit.weight, start.weight)
            assert float(fit.best_loss) == float(fit.start_loss)
        else:
            adopted += 1
            assert float(fit.start_loss - fit.best_loss) > float(fit.margin) > 0
            np.testing.assert_allclose(fit.best_loss, fit.path[fit.pull], rtol=1e-12)
    assert adopted  # the rule must be able to say yes


@pytest.mark.parametrize("dim", [6, 80])
def test_closed_form_in_a_batch_is_each_alone(dim, x64):
    cases = [target_case(seed, dim) for seed in range(3)]
    batch = jax.jit(jax.vmap(learn))(jax.tree.map(lambda *v: jnp.stack(v), *cases))
    for i, case in enumerate(cases):
        for name, value in learn(case)._asdict().items():
            np.testing.assert_allclose(
                getattr(batch, name)[i], value, rtol=1e-6, atol=1e-9, err_msg=name
            )


def test_a_class_without_items_does_not_spoil_the_refinement(x64):
    """Padding carries label 0; where class 0 has no items its posterior there is NaN,
    which must not count.
    """
    sample, judged, fold, _, source_of, words = target_case(2, 6)
    there = judged & (sample.labels != 0)
    prior = jnp.log(jnp.asarray([0.0, 0.6, 0.4]))
    log_joint = coupling.log_coupling(coupling.assignment_logits(source_of, K_S), prior)
    sample = sample._replace(labels=jnp.where(there, sample.labels, 0), mask=there)
    path = ridge(sample, there, fold)
    fit = closed_form(path, log_joint, source_of, words, jnp.asarray(0.0))
    assert np.isfinite(fit.path).all()
    assert np.isfinite(fit.weight).all()


# -- the loop --------------------------------------------------------------------------


def loop_case(seed):
    """Source and target around shared means, the identity as a diagonal map, and a head
    that fits the source.
    """
    rng = np.random.default_rng(seed)

    def sample(n, k, shift):
        return tta.Samples(
            jnp.asarray(
                rng.normal(size=(n, 5)) + 3 * np.eye(5)[np.arange(n) % k] + shift
            ),
            jnp.asarray(np.arange(n, dtype=np.int32) % k),
            jnp.ones(n, bool),
        )

    source, target = sample(60, K_S, 0.0), sample(N, K_T, 0.5)
    head = tta.SoftmaxHead(jnp.asarray(1.5 * np.eye(K_S, 5)), jnp.zeros(K_S))
    theta = coupling.assignment_logits(jnp.arange(K_T), K_S, 4.0)
    phi = tta.feature_maps.Diagonal(jnp.zeros(5), jnp.zeros(5))
    return Params(theta, phi, head), source, target


def run(case, objective, checks=3):
    start, source, target = case
    candidates = jnp.tile(jnp.arange(K_S)[None], (K_T, 1))
    return minimise(
        start,
        source,
        target,
        (source, target),
        candidates,
        jnp.log(jnp.asarray(PRIOR)),
        jnp.asarray(0.1),
        jnp.asarray(0.05),
        jax.random.key(0),
        objective=objective,
        learn="all",
        learn_head=True,
        batch_size=8,
        checks=checks,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", ["score", "tight", "directed", "oscillation", "theorem"]
)
def test_the_loop_keeps_its_best_iterate(objective, x64):
    _, value, step, info = run(loop_case(0), objective)
    assert int(step) > 0  # lower than the start's
    assert float(value) == float(jnp.min(info.validation))
    assert int(step) == 10 * (1 + int(jnp.argmin(info.validation)))
    if objective == "score":
        start, begin, nothing, _ = run(loop_case(0), objective, checks=0)
        assert float(value) < float(begin)
        assert int(nothing) == 0
        jax.tree.map(np.testing.assert_array_equal, start, loop_case(0)[0])


@pytest.mark.slow
def test_the_loop_in_a_batch_is_each_alone(x64):
    cases = [loop_case(seed) for seed in range(2)]
    batch = jax.jit(jax.vmap(lambda case: run(case, "oscillation")))(
        jax.tree.map(lambda *v: jnp.stack(v), *cases)
    )
    for i, case in enumerate(cases):
        _, value, _, info = run(case, "oscillation")
        np.testing.assert_allclose(batch[1][i], value, rtol=1e-5)
        np.testing.assert_allclose(batch[3].objective[i], info.objective, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["score", "tight"])
def test_gradients_of_the_batch_objective_by_finite_difference(objective, x64):
    """Of the two objectives that are their own derivative; those with transport have
    Danskin's, tested with the transport.
    """
    params, source, target = loop_case(0)
    rows, columns = (
        (jnp.arange(k * 8).reshape(8, k).T.astype(jnp.int32), jnp.ones(k, bool))
        for k in (K_S, K_T)
    )
    candidates = jnp.tile(jnp.arange(K_S)[None], (K_T, 1))

    def value(params):
        return batch_objective(
            params,
            source,
            target,
            rows,
            columns,
            jnp.zeros((K_T, 8)),
            candidates,
            jnp.log(jnp.asarray(PRIOR)),
            jnp.asarray(0.1),
            objective=objective,
            iterations=5,
        )[0]

    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda v: jnp.asarray(rng.normal(size=v.shape)), params)

    def along(s):
        return value(jax.tree.map(lambda v, d: v + s * d, params, direction))

    slope = sum(
        jax.tree.leaves(
            jax.tree.map(
                lambda g, d: jnp.sum(g * d), jax.grad(value)(params), direction
            )
        )
    )
    np.testing.assert_allclose(slope, (along(1e-6) - along(-1e-6)) / 2e-6, rtol=1e-5)


# -- heads along a path ----------------------------------------------------------------


def test_majorised_steps_end_at_scikit_learns_optimum(x64):
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    x = rng.normal(size=(90, 4)) + np.eye(3, 4)[labels]
    weights = np.r_[np.ones(80), np.zeros(10)]
    zeros = tta.SoftmaxHead(jnp.zeros((3, 4)), jnp.zeros(3))
    given = (jnp.asarray(x), jnp.asarray(labels), jnp.asarray(weights))
    decays = jnp.asarray([0.1, 0.01])
    found = penalised_path(
        zeros,
        *given,
        None,
        jnp.ones(3, bool),
        decays,
        second_moments(given[0], given[2]),
        steps=3000,
    )
    for i, decay in enumerate(decays):
        expected = LogisticRegression(
            C=1 / (80 * float(decay)), tol=1e-12, max_iter=10_000
        ).fit(x[:80], labels[:80])
        np.testing.assert_allclose(found.weight[i], expected.coef_, atol=1e-4)


@pytest.mark.parametrize("n", [30, 9000])
def test_decay_paths_ignore_padding_and_fit_on(n):
    """Few items are used as they are, many by a choice; padding has no say; fitting on
    lowers the penalised loss.
    """
    rng = np.random.default_rng(0)
    labels = (np.arange(n) % 3).astype(np.int32)
    x = (rng.normal(size=(n, 6)) + 2 * np.eye(3, 6)[labels]).astype(np.float32)
    path = decay_path(x, labels, np.ones(n), 3)
    assert np.isfinite(path.losses).all()
    assert path.losses.min() < 0.6 < np.log(3)
    if n < 100:

        def more(v, fill):
            return np.concatenate([v, np.full((7, *v.shape[1:]), fill, v.dtype)])

        padded = decay_path(more(x, 0), more(labels, 0), more(np.ones(n), 0), 3)
        np.testing.assert_allclose(padded.losses, path.losses, rtol=1e-4)
    everything, active = jnp.ones(n, jnp.float32), jnp.ones(3, bool)
    begin = path.head(path.l2)
    fitted = refit_head(
        begin,
        jnp.asarray(x),
        jnp.asarray(labels),
        everything,
        active,
        jnp.asarray(path.l2, jnp.float32),
        steps=30,
    )

    def objective(head):
        return float(
            own_losses(head, jnp.asarray(x), jnp.asarray(labels), active).mean()
            + path.l2 / 2 * (np.asarray(head.weight) ** 2).sum()
        )

    assert objective(fitted) < objective(begin)
