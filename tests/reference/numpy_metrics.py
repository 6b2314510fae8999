"""The metrics once more, from their definitions, in float64 NumPy, SciPy, scikit-learn
and POT; and random tasks to compare on.
"""

import dataclasses

import numpy as np
import ot
from scipy import linalg, optimize, stats
from scipy.special import logsumexp, softmax
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture

MOST_CLASSES = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """A target `x, y`, the source head's probabilities `theta`, a source task `u, v`;
    classes are 0..K-1, all with items.
    """

    x: np.ndarray
    y: np.ndarray
    theta: np.ndarray
    u: np.ndarray
    v: np.ndarray

    @property
    def classes(self):
        return self.y.max() + 1


def case(seed):
    """Tall or wide, two to five unbalanced classes, scales from 0.3 to 3; every third
    has copies, some with other labels.
    """
    rng = np.random.default_rng((41, seed))
    wide = seed % 2
    d = 40 if wide else 6
    n, m = (
        int(rng.integers(low, high))
        for low, high in ((18, 31) if wide else (30, 49), (20, 31))
    )

    def task(size, classes):
        shares = rng.dirichlet(np.full(classes, 1.0))
        labels = np.concatenate(
            [
                np.repeat(np.arange(classes), 2),
                rng.choice(classes, size - 2 * classes, p=shares),
            ]
        )
        labels = rng.permutation(labels)
        centres = rng.normal(size=(classes, d)) * rng.uniform(0, 1.5)
        return rng.uniform(0.3, 3) * (
            rng.normal(size=(size, d)) + centres[labels] + 1
        ), labels

    x, y = task(n, (2, 3, MOST_CLASSES)[seed % 3])
    u, v = task(m, 3 + seed % 2)
    if seed % 3 == 0:
        copies = rng.integers(0, n, (2, n // 4))
        keep = np.bincount(y, minlength=y.max() + 1)
        for a, b in copies.T:
            x[b] = x[a]
            if (
                keep[y[b]] > 2 and rng.random() < 0.5
            ):  # the other copies contradict each other
                keep[y[b]] -= 1
                keep[y[a]] += 1
                y[b] = y[a]
    theta = rng.dirichlet(np.full(4, 0.5), n)
    theta[:, 3] = 0  # a source class without mass
    return Case(x, y, theta / theta.sum(1, keepdims=True), u, v)


def one_hot(y):
    return np.eye(y.max() + 1)[y]


def leep(c):
    return leep_of(c.theta, c.y)


def leep_of(theta, y):
    total = 0.0
    joint = np.array([theta[y == k].sum(0) for k in range(y.max() + 1)]) / len(y)
    for i in range(len(y)):
        total += np.log(
            sum(
                joint[y[i], z] / joint[:, z].sum() * theta[i, z]
                for z in range(theta.shape[1])
                if theta[:, z].any()
            )
        )
    return total / len(y)


def conditional_entropy(joint):
    """H(column | row)."""
    return -sum(
        p * np.log(p / joint[i].sum())
        for i in range(len(joint))
        for p in joint[i]
        if p > 0
    )


def nce(c):
    joint = np.zeros((c.theta.shape[1], c.classes))
    np.add.at(joint, (c.theta.argmax(1), c.y), 1 / len(c.y))
    return -conditional_entropy(joint)


def evidence(x, y):
    """Largest log density of `y` under `N(0, (I + x x^T / t) / beta)` over t and
    beta.
    """
    n = len(y)
    if (
        np.linalg.matrix_rank(x) < n
        and np.linalg.norm(y - x @ np.linalg.lstsq(x, y)[0]) < 1e-9
    ):
        return (
            np.inf
        )  # exact with fewer directions than items: any precision of the noise will do

    def minus(log_t):
        lower = linalg.cholesky(np.eye(n) + x @ x.T / np.exp(log_t), lower=True)
        whitened = linalg.solve_triangular(lower, y, lower=True)
        beta = n / (whitened @ whitened)
        return n / 2 * np.log(2 * np.pi / beta) + n / 2 + np.log(np.diag(lower)).sum()

    top = np.log(np.linalg.norm(x, 2) ** 2)
    grid = np.linspace(top - 36, top + 12, 193)
    best = int(np.argmin([minus(t) for t in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, 192)]
    return -optimize.minimize_scalar(
        minus, bounds=(low, high), method="bounded", options={"xatol": 1e-9}
    ).fun


def logme(c):
    return np.mean([evidence(c.x, column) for column in one_hot(c.y).T]) / len(c.y)


def class_mean_of_each(x, y):
    return np.array([x[y == k].mean(0) for k in range(y.max() + 1)])[y]


def h_score(c):
    return np.trace(
        np.linalg.pinv(np.cov(c.x.T), rcond=1e-12, hermitian=True)
        @ np.cov(class_mean_of_each(c.x, c.y).T)
    )


def shrinkage_h_score(c):
    found = LedoitWolf().fit(c.x)
    between = np.cov(class_mean_of_each(c.x, c.y).T, bias=True)
    return (1 - found.shrinkage_) * np.trace(np.linalg.inv(found.covariance_) @ between)


def transrate(c, epsilon=1e-4):
    z = c.x - c.x.mean(0)
    z = z / np.sqrt((z**2).sum() / len(z))

    def rate(z):
        return (
            0.5
            * np.linalg.slogdet(np.eye(z.shape[1]) + z.T @ z / (len(z) * epsilon))[1]
        )

    return rate(z) - np.mean([rate(z[c.y == k]) for k in range(c.classes)])


def parc(c):
    z = (c.x - c.x.mean(0)) / c.x.std(0)
    upper = np.triu_indices(len(z), 1)
    # Rounded: ties are ties, not what the last digits say.
    return stats.spearmanr(
        np.round(1 - np.corrcoef(z), 11)[upper],
        np.round(1 - np.corrcoef(one_hot(c.y)), 11)[upper],
    )[0]


def rank(x):
    return np.linalg.matrix_rank(x - x.mean(0), tol=1e-6)


def gbc(c, gaussian="spherical", components=64):
    x = PCA(min(components, rank(c.x))).fit_transform(c.x) if components else c.x
    means = [x[c.y == k].mean(0) for k in range(c.classes)]
    spread = [np.maximum(x[c.y == k].var(0), 1e-4) for k in range(c.classes)]
    if gaussian == "spherical":
        spread = [np.full_like(s, s.mean()) for s in spread]
    total = 0.0
    for i in range(c.classes):
        for j in range(c.classes):
            if i != j:
                both = np.diag((spread[i] + spread[j]) / 2)
                gap = means[i] - means[j]
                dets = [
                    np.linalg.slogdet(np.diag(s))[1] for s in (spread[i], spread[j])
                ]
                total += np.exp(
                    -(
                        gap @ np.linalg.solve(both, gap) / 8
                        + (np.linalg.slogdet(both)[1] - sum(dets) / 2) / 2
                    )
                )
    return -total


def log_gbc(c):
    return -np.log(-gbc(c))


def adaptive_shrinkage(x, y):
    rest = x - class_mean_of_each(x, y)
    return max(np.exp(-5 * np.linalg.eigvalsh(rest.T @ rest / len(x))[-1]), 1e-10)


def whitening(x, y, shrinkage):
    """`((1 - s) S_W + s tr(S_W) / d I)^(-1/2)` times a rotation, from singular vectors
    of the residuals.

    Matrix sums, such as scikit-learn's, lose ten digits where the shrinkage is 1e-10.
    """
    _, spread, axes = np.linalg.svd((x - class_mean_of_each(x, y)) / np.sqrt(len(x)))
    spread = np.r_[spread, np.zeros(len(axes) - len(spread))] ** 2
    return axes.T / np.sqrt(
        (1 - shrinkage) * spread + shrinkage * spread.sum() / x.shape[1]
    )


def posterior(x, y, shrinkage):
    whiten = whitening(x, y, shrinkage)
    means = np.array([x[y == k].mean(0) for k in range(y.max() + 1)])
    gaps = np.array([((x - mean) @ whiten) for mean in means])
    return softmax(-0.5 * (gaps**2).sum(2).T + np.log(np.bincount(y) / len(y)), axis=1)


def etran_lda(c):
    return posterior(c.x, c.y, adaptive_shrinkage(c.x, c.y))[
        np.arange(len(c.y)), c.y
    ].mean()


def sfda(c):
    share = adaptive_shrinkage(c.x, c.y)
    sure = softmax(posterior(c.x, c.y, share), axis=1)[np.arange(len(c.y)), c.y]
    means = np.array([c.x[c.y == k].mean(0) for k in range(c.classes)])
    moved = np.array(
        [
            p * x + (1 - p) * np.delete(means, k, 0).mean(0)
            for p, x, k in zip(sure, c.x, c.y, strict=True)
        ]
    )
    return posterior(moved, c.y, share)[np.arange(len(c.y)), c.y].mean()


def etran_energy(c):
    energy = np.sort(np.asarray(logsumexp(c.x, axis=1)))
    return energy[: max(1, int(0.005 * len(energy)))].mean()


def ncti(c):
    pca = PCA(min(64, rank(c.x)))
    z = pca.fit_transform(c.x)
    share = max(np.exp(-pca.explained_variance_[:32].sum()), 1e-10)
    p = posterior(z, c.y, share)

    def nuclear(a):
        return np.linalg.svd(a, compute_uv=False).sum()

    collapse = -np.log(sum(nuclear(p[c.y == k]) for k in range(c.classes)))
    whiten = whitening(z, c.y, share)
    total = (z**2).sum() / z.size
    means = class_mean_of_each(z, c.y)
    between = (1 - share) * means.T @ means / len(z) + share * (
        total - ((z - means) ** 2).sum() / z.size
    ) * np.eye(z.shape[1])
    best = np.linalg.eigh(whiten.T @ between @ whiten)[1][:, ::-1][:, : c.classes - 1]
    return nuclear(z @ whiten @ best), p[np.arange(len(z)), c.y].mean(), collapse


def ncti_seli(c):
    return ncti(c)[0]


def ncti_ncc(c):
    return ncti(c)[1]


def ncti_collapse(c):
    return ncti(c)[2]


def pactran(c, strength=1.0, variance=100.0):
    x, target, n = c.x - c.x.mean(0), one_hot(c.y), len(c.y)
    d, k = x.shape[1], c.classes

    def objective(flat):
        w, b = flat[: d * k].reshape(d, k), flat[d * k :]
        s = x @ w + b
        log_q = s - logsumexp(s, axis=1, keepdims=True)
        gap = (np.exp(log_q) - target) / n
        loss = -(target * log_q).sum() / n + (w**2).sum() / (2 * strength * n)
        return loss, np.concatenate(
            [(x.T @ gap + w / (strength * n)).ravel(), gap.sum(0)]
        )

    found = optimize.minimize(
        objective,
        np.zeros(d * k + k),
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": 20000,
            "maxfun": 40000,
            "ftol": 0,
            "gtol": 1e-11,
            "maxcor": 50,
        },
    )
    w, b = found.x[: d * k].reshape(d, k), found.x[d * k :]
    p = softmax(x @ w + b, axis=1)
    bend = p - p**2
    trace = ((x**2).T @ bend + 1 / (strength * n)).sum() + bend.sum()
    precision = trace * strength * n / (d * k) + 1e-10
    return -(
        found.fun + 0.5 * d * k / (strength * n) * variance / d * np.log(precision)
    )


def plan(cost, epsilon):
    """The entropic plan by Newton's method on the semi-dual; Sinkhorn's iterations
    crawl between a task and itself.
    """
    n, m = cost.shape

    def minus_dual(g):
        scaled = (g - cost) / epsilon
        f = -epsilon * (logsumexp(scaled, axis=1) - np.log(m))
        p = np.exp(scaled + f[:, None] / epsilon) / (n * m)
        columns = p.sum(0)
        hessian = (np.diag(columns) - n * p.T @ p) / epsilon
        return -(f.mean() + g.mean()), columns - 1 / m, hessian, p

    g, p = np.zeros(m), np.zeros((n, m))
    for _ in range(30):  # Sinkhorn's, to where Newton's are safe
        _, slope, _, p = minus_dual(g)
        g = g - epsilon * np.log(m * np.maximum(p.sum(0), 1e-300))
    for _ in range(100):
        value, slope, hessian, p = minus_dual(g)
        if np.abs(slope).sum() < 1e-11:
            break
        step = np.linalg.lstsq(hessian, -slope, rcond=1e-14)[0]
        length = 1.0
        while (
            minus_dual(g + length * step)[0]
            > value + 1e-4 * length * (slope @ step) + 1e-15
            and length > 1e-6
        ):
            length /= 2
        if length <= 1e-6:
            break
        g = g + length * step
    return p


def between(x, z):
    return np.asarray(ot.dist(x, z))


def unit(c):
    return between(c.u, c.x).mean()


def class_joint(p, v, y):
    joint = np.zeros((v.max() + 1, y.max() + 1))
    for i in range(len(v)):
        for j in range(len(y)):
            joint[v[i], y[j]] += p[i, j]
    return joint


def otce(c, epsilon=0.05):
    p = plan(between(c.u, c.x), epsilon * unit(c))
    return -conditional_entropy(class_joint(p, c.v, c.y))


def otce_wasserstein(c, epsilon=0.05):
    cost = between(c.u, c.x)
    return -(plan(cost, epsilon * unit(c)) * cost).sum()


def entropic_value(cost, epsilon):
    p = plan(cost, epsilon)
    uniform = 1 / p.size
    return (p * cost).sum() + epsilon * (
        p * np.log(np.maximum(p, 1e-300) / uniform)
    ).sum()


def bures(x, z):
    s, t = (np.atleast_2d(np.cov(w.T, bias=True)) for w in (x, z))
    values, vectors = np.linalg.eigh(s)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    middle = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ t @ root), 0)).sum()
    return ((x.mean(0) - z.mean(0)) ** 2).sum() + max(
        np.trace(s) + np.trace(t) - 2 * middle, 0
    )


def sinkhorn_divergence(x, z, epsilon):
    def value(a, b):
        return entropic_value(between(a, b), epsilon)

    return value(x, z) - (value(x, x) + value(z, z)) / 2


def label_distance(x, y, z, w, kind, epsilon):
    one = (
        bures if kind == "gaussian" else lambda a, b: sinkhorn_divergence(a, b, epsilon)
    )
    return np.array(
        [
            [one(x[y == k], z[w == j]) for j in range(w.max() + 1)]
            for k in range(y.max() + 1)
        ]
    )


def jc_nce(c, kind="exact", weight=0.5, epsilon=0.05):
    epsilon = epsilon * unit(c)
    labels = label_distance(c.u, c.v, c.x, c.y, kind, epsilon)
    cost = weight * between(c.u, c.x) + (1 - weight) * labels[c.v][:, c.y]
    return -conditional_entropy(class_joint(plan(cost, epsilon), c.v, c.y))


def otdd(c, kind="gaussian", epsilon=0.05):
    epsilon = epsilon * unit(c)

    def value(x, y, z, w):
        return entropic_value(
            between(x, z) + label_distance(x, y, z, w, kind, epsilon)[y][:, w], epsilon
        )

    return (value(c.u, c.v, c.u, c.v) + value(c.x, c.y, c.x, c.y)) / 2 - value(
        c.u, c.v, c.x, c.y
    )


def standardised(x):
    return (x - x.mean(0)) / x.std(0)


def knn(c, k=5):
    z, right = standardised(c.x), 0
    share = np.bincount(c.y) / len(c.y)
    for i in range(len(z)):
        distance = np.linalg.norm(z - z[i], axis=1)
        distance[i] = np.inf
        near = np.argsort(distance, kind="stable")[:k]
        right += (np.bincount(c.y[near], minlength=len(share)) + share).argmax() == c.y[
            i
        ]
    return right / len(z)


def dealt(y, folds):
    return np.array([(y[:i] == y[i]).sum() % folds for i in range(len(y))])


def probe_losses(c, decays, folds):
    """Cross-validated loss at each decay, heads by Newton's method."""
    z, part = standardised(c.x), dealt(c.y, folds)
    losses = []
    for decay in decays:
        total = 0.0
        for fold in range(folds):
            learn, held = part != fold, part == fold
            if not held.any():
                continue
            model = LogisticRegression(
                C=1 / (decay * learn.sum()),
                tol=1e-12,
                max_iter=5000,
                solver="newton-cg" if c.classes > 2 else "lbfgs",
            )
            # Two classes in two rows of weights, as a softmax has them, halve the decay
            # of their difference.
            if c.classes == 2:
                model.set_params(C=2 / (decay * learn.sum()), solver="newton-cholesky")
            p = model.fit(z[learn], c.y[learn]).predict_log_proba(z[held])
            total -= p[np.arange(held.sum()), c.y[held]].sum()
        losses.append(total / len(z))
    return np.array(losses)


def mixture_posterior(z, start):
    """scikit-learn's EM from the responsibilities `start`, to convergence."""
    mass = start.sum(0) + 10 * np.finfo(float).eps
    means = start.T @ z / mass[:, None]
    rest = [z - m for m in means]
    precisions = [
        np.linalg.inv(
            (start[:, k, None] * r).T @ r / mass[k] + 1e-6 * np.eye(z.shape[1])
        )
        for k, r in enumerate(rest)
    ]
    model = GaussianMixture(
        start.shape[1],
        tol=1e-13,
        max_iter=20_000,
        reg_covar=1e-6,
        weights_init=mass / mass.sum(),
        means_init=means,
        precisions_init=np.array([(p + p.T) / 2 for p in precisions]),
    )
    return model.fit(z).predict_proba(z)
