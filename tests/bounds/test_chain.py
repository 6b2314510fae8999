"""The central law on hundreds of random pairs and transformations, against an oracle
that shares no code.
"""

import itertools

import jax
import numpy as np
import pytest

import tta_jax as tta
from tests.reference import numpy_chain as oracle
from tests.typed import on_host
from tta_jax.bounds.certificate import PaddedShape
from tta_jax.bounds.chain import Transforms
from tta_jax.core import feature_maps
from tta_jax.tasks.task import Samples

# (K_S, K_T, d, n_S, n_T): more and fewer source classes than target classes, fewer
# items than features.
SHAPES = [(4, 3, 5, 30, 24), (3, 5, 4, 28, 30), (4, 4, 3, 30, 30), (3, 2, 40, 20, 14)]
FAMILIES = [*sorted(feature_maps.FAMILIES), "logit_affine", "logit_affine_completed"]
PER_CASE = 26  # 4 shapes * 10 families * 26 = 1,040 pairs, half with a floor


def random_map(family, dim, rng, head, active, z, u):
    if family.startswith("logit_affine"):
        rank = rng.normal(size=(dim, dim)) / np.sqrt(dim)
        phi = feature_maps.LogitAffine(
            head.weight @ rank, head.bias - head.weight @ rank @ rng.normal(size=dim)
        )
        if family.endswith("completed"):
            moments = [(x.mean(0), x.var(0).sum()) for x in (z, u)]
            phi = phi.complete(head, active, *moments)
        return phi
    phi = feature_maps.FAMILIES[family](dim, jax.random.key(int(rng.integers(1 << 30))))
    scale = rng.choice([0.1, 0.5, 1.0])
    phi = jax.tree.map(
        lambda leaf: (
            np.asarray(leaf, np.float64) + scale * rng.normal(size=np.shape(leaf))
        ),
        phi,
    )
    if family == "rotation":
        return on_host(
            feature_maps.Rotation,
            phi.generator,
            phi.shift,
            np.asarray(rng.choice([-1.0, 1.0])),
        )
    if family in ("dense", "published_pair") and rng.random() < 0.3:
        # Nearly singular: one direction squeezed a millionfold.
        left, values, right = np.linalg.svd(phi.matrix)
        values[-1] = values[0] * 1e-6
        name = "matrix" if family == "dense" else "inverse_matrix"
        return jax.tree.map(
            lambda v: v, phi.__class__(**{**vars(phi), name: (left * values) @ right})
        )
    return phi


def random_case(shape, family, seed):
    k_s, k_t, dim, n_s, n_t = shape
    rng = np.random.default_rng(seed)
    z, u = (
        rng.normal(size=(n_s, dim)),
        rng.normal(size=(n_t, dim)) * rng.choice([0.3, 1.0, 3.0]),
    )
    # Unbalanced labels; sometimes a source class without a sample.
    y = rng.choice(k_s, n_s, p=rng.dirichlet(np.ones(k_s) * rng.choice([0.5, 5.0])))
    v = np.r_[np.arange(k_t), rng.choice(k_t, n_t - k_t, p=rng.dirichlet(np.ones(k_t)))]
    if rng.random() < 0.3:
        z[5:12], u[3:8] = z[4], u[2]  # duplicates
        u[0] = z[0]
    weight = rng.normal(size=(k_s, dim)) * rng.choice([0.3, 1.0, 4.0])
    if rng.random() < 0.3:
        weight = np.outer(rng.normal(size=k_s), weight[0])  # rank 1
    head = tta.SoftmaxHead(weight, rng.normal(size=k_s))
    theta = rng.normal(size=(k_t, k_s)) * rng.choice([0.5, 3.0])
    theta[rng.random(theta.shape) < 0.4] = -np.inf  # zeros in B
    present = np.bincount(y, minlength=k_s) > 0
    for t in range(k_t):
        if not np.isfinite(theta[t, present]).any():
            theta[t, rng.choice(np.flatnonzero(present))] = 0.0
    theta[:, ~present] = -np.inf
    p = np.bincount(v, minlength=k_t) / n_t
    log_j = theta - np.log(np.exp(theta).sum(1, keepdims=True)) + np.log(p)[:, None]
    phi = random_map(family, dim, rng, head, np.exp(log_j).sum(0) > 0, z, u)
    return (
        Transforms(log_j, phi, np.float64(0.05 * (seed % 2))),
        Samples(z, y, np.ones(n_s, bool)),
        head,
        Samples(u, v, np.ones(n_t, bool)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_chain_holds_and_equals_the_oracle(shape, family):
    if family == "coupling_layers" and shape[2] < 2:
        pytest.fail("shapes must allow coupling layers")
    for seed in range(PER_CASE):
        transforms, source, head, target = random_case(shape, family, seed)
        phi = transforms.feature_map
        # One shape for all seeds, so one compilation.
        found = tta.certify(
            transforms,
            source,
            head,
            target,
            max_iterations=200,
            padded=PaddedShape(32, 32, 32, 32),
        )
        bound, certificate = found.bound, found.certificate
        note = f"{shape} {family} seed {seed}: {bound}"
        chain = [
            bound.target_loss,
            bound.tight,
            bound.directed,
            bound.oscillation,
            bound.lipschitz,
            bound.theorem,
        ]
        for low, high in itertools.pairwise(chain):
            assert low <= high + 1e-9 * (1 + abs(low)), note
        assert certificate.holds, note
        with jax.enable_x64(True):
            affine = phi.affine
            logits = np.asarray(phi.target_logits(head, target.features))
            mapped = np.asarray(phi(source.features)) if affine else None
            rows = np.asarray(phi.pull(head).weight) if affine else None
        exact = oracle.chain(
            np.exp(transforms.log_joint),
            head.weight,
            head.bias,
            logits,
            mapped,
            rows,
            source.features,
            source.labels,
            target.features,
            target.labels,
            floor=float(transforms.floor),
        )
        for name in (
            "target_loss",
            "transformed_source_loss",
            "tight",
            "reweighted_source_loss",
            "label_mismatch",
        ):
            np.testing.assert_allclose(
                getattr(bound, name),
                exact[name],
                rtol=1e-6,
                atol=1e-9,
                err_msg=f"{name} {note}",
            )
        slack = 1e-7 * (1 + exact["oscillation"])
        for name in ("directed", "oscillation"):
            interval = getattr(certificate, name)
            assert interval.lower <= exact[name] + slack, note
            assert exact[name] <= interval.upper + slack, note
        assert exact["directed"] <= exact["oscillation"] + slack, note
        if affine and np.isfinite(bound.lipschitz):
            np.testing.assert_allclose(
                bound.lipschitz_constant, exact["tau"], rtol=1e-6
            )
            slope = exact["tau"] * exact["distance"]
            assert certificate.lipschitz.lower <= slope * (1 + 1e-6) + 1e-9, note
            assert slope <= certificate.lipschitz.upper * (1 + 1e-6) + 1e-9, note
            assert exact["oscillation"] <= slope * (1 + 1e-6) + 1e-9, note
        else:
            assert bound.theorem == np.inf
            assert certificate.reasons["lipschitz"], note


@pytest.mark.slow
def test_certificates_of_affine_families_are_finite():
    """The law must not be met by giving up: well-conditioned affine maps have finite
    Lipschitz rungs.
    """
    for family in (
        "identity",
        "diagonal",
        "rotation",
        "low_rank",
        "logit_affine_completed",
    ):
        for seed in range(3):
            case = random_case((4, 4, 6, 30, 30), family, 100 + seed)
            assert np.isfinite(tta.certify(*case, max_iterations=50).bound.theorem), (
                family,
                seed,
            )


def test_tiled_equals_dense():
    case = random_case(SHAPES[0], "dense", 7)
    dense, tiled = tta.certify(*case), tta.certify(*case, dense_entries=16)
    for a, b in zip(
        jax.tree.leaves(dense.bound), jax.tree.leaves(tiled.bound), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-3)
    exact = (dense.certificate.oscillation.lower, dense.certificate.oscillation.upper)
    assert tiled.certificate.oscillation.lower <= exact[1]
    assert tiled.certificate.oscillation.upper >= exact[0]


def test_self_transport_is_zero():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(30, 4)), np.arange(30) % 3
    head = tta.SoftmaxHead(rng.normal(size=(3, 4)), rng.normal(size=3))
    with np.errstate(divide="ignore"):
        transforms = Transforms(np.log(np.eye(3) / 3), feature_maps.Identity())
    sample = Samples(z, y, np.ones(30, bool))
    bound = tta.certify(
        transforms, sample, head, sample, epsilon=0.002, max_iterations=2000
    ).bound
    np.testing.assert_allclose(bound.tight, bound.target_loss, rtol=1e-12)
    np.testing.assert_allclose(bound.wasserstein, 0, atol=1e-6)
