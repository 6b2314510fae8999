"""The yardstick: the published algorithm (spec, section 4) in NumPy and POT, written
from its description.

Vectorised, float32 where precision does not matter (the head), float64 elsewhere;
gradients by hand, `python -m benchmarks.published_numpy` checks them by finite
differences. The label cost of 1e8 is passed to exact OT in float64 as it
stands: batches are uniform, so the plan is an assignment and POT's network simplex
copes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import ot

BATCH, LABEL_COST, TAU, PENALTY = 500, 1e8, 0.2, 10.0


class Adam:
    """Adam on a dictionary of arrays, in place; one learning rate per entry."""

    def __init__(self, params: dict[str, np.ndarray], rates: dict[str, float]):
        self.rates, self.count = rates, 0
        self.first = {k: np.zeros_like(v) for k, v in params.items()}
        self.second = {k: np.zeros_like(v) for k, v in params.items()}

    def step(
        self, params: dict[str, np.ndarray], gradients: dict[str, np.ndarray]
    ) -> None:
        self.count += 1
        for name, g in gradients.items():
            self.first[name] += 0.1 * (g - self.first[name])
            self.second[name] += 0.001 * (g * g - self.second[name])
            mean = self.first[name] / (1 - 0.9**self.count)
            spread = self.second[name] / (1 - 0.999**self.count)
            params[name] -= self.rates[name] * mean / (np.sqrt(spread) + 1e-8)


def softmax(s: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(s - s.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def head_gradient(params, x, y, random, tau: float = TAU):
    """Loss with gradient penalty and its gradient in (W, c).

    The loss gradient at label l is `G = (p - e_l) W`; the penalty is the mean squared
    excess of its norm over tau.
    """
    w, c = params["w"], params["c"]
    n = len(x)
    p = softmax(x @ w.T + c)
    loss = -np.log(np.maximum(p[np.arange(n), y], 1e-30)).mean()
    ds = p.copy()
    ds[np.arange(n), y] -= 1
    ds /= n
    dw = np.zeros_like(w)
    for label in (y, random):
        q = p.copy()
        q[np.arange(n), label] -= 1
        g = q @ w
        norm = np.sqrt((g * g).sum(1) + 1e-12)
        excess = np.maximum(norm - tau, 0)
        loss += PENALTY * (excess**2).mean()
        dg = (2 * PENALTY / n * excess / norm)[:, None] * g
        dw += q.T @ dg
        dq = dg @ w.T
        ds += p * (dq - (p * dq).sum(1, keepdims=True))
    return loss, {"w": dw + ds.T @ x, "c": ds.sum(0)}


def train_head(
    x: np.ndarray, y: np.ndarray, classes: int, passes: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    x = x.astype(np.float32)
    params = {
        "w": np.zeros((classes, x.shape[1]), np.float32),
        "c": np.zeros(classes, np.float32),
    }
    adam = Adam(params, {"w": 1e-3, "c": 1e-3})
    size = min(BATCH, len(x))
    for _ in range(passes):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - size + 1, size):
            rows = order[start : start + size]
            random = rng.integers(0, classes, size)
            _, gradient = head_gradient(params, x[rows], y[rows], random)
            adam.step(params, gradient)
    return params


def transform_gradient(params, plan, z, y, u, v, class_loss, p_t):
    """The published objective and its gradient.

    `H + L_rw + 2 <plan, squared costs> + ||p_T - B D||^2 + inverse penalty`.
    """
    a, abar, shift = params["a"], params["abar"], params["b"]
    mixing, prior = softmax(params["mixing"], axis=0), softmax(params["prior"])
    eye = np.eye(len(a))
    log_b = np.log(np.maximum(mixing, 1e-300))
    column = -(mixing * log_b).sum(0)
    gap, gap_labels = z @ a.T + shift - u[plan], mixing.T[y] - v[plan]
    mismatch = mixing @ prior - p_t
    first, second = a @ abar - eye, abar @ a - eye
    n = len(z)
    value = (
        prior @ column
        + prior @ class_loss
        + 2 / n * ((gap**2).sum() + (gap_labels**2).sum())
    )
    value += (mismatch**2).sum() + (first**2).sum() + (second**2).sum()
    d_mixing = -prior * (log_b + 1) + 2 * np.outer(mismatch, prior)
    np.add.at(d_mixing.T, y, 4 / n * gap_labels)
    d_prior = column + class_loss + 2 * mixing.T @ mismatch
    gradient = {
        "a": 4 / n * gap.T @ z + 2 * first @ abar.T + 2 * abar.T @ second,
        "abar": 2 * a.T @ first + 2 * second @ a.T,
        "b": 4 / n * gap.sum(0),
        "mixing": mixing * (d_mixing - (mixing * d_mixing).sum(0)),
        "prior": prior * (d_prior - prior @ d_prior),
    }
    return value, gradient


@dataclass
class Published:
    """Figures on the test features and seconds by phase."""

    target_loss: float = 0.0
    accuracy: float = 0.0
    reweighted_source_loss: float = 0.0
    label_mismatch: float = 0.0
    wasserstein: float = 0.0
    tau: float = 0.0
    certified_tau: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def bound(self) -> float:
        """The published, uncertified bound."""
        return (
            self.reweighted_source_loss
            + self.label_mismatch
            + self.tau * self.wasserstein
        )

    @property
    def certified_bound(self) -> float:
        return (
            self.reweighted_source_loss
            + self.label_mismatch
            + self.certified_tau * self.wasserstein
        )


def standardise(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    mean, scale = train.mean(0), train.std(0)
    scale = np.where(scale > 1e-6, scale, 1)
    return [(x - mean) / scale for x in (train, *others)]


def run(
    source,
    source_test,
    target,
    target_test,
    *,
    passes: int = 500,
    steps: int = 1001,
    learn: str = "all",
    seed: int = 0,
) -> Published:
    """Head, transformation, final figures. Each argument is `(features, labels)`;
    `learn` is "all", "map" or "none".
    """
    rng = np.random.default_rng(seed)
    (zs, ys), (zt, yt), (us, vs), (ut, vt) = source, source_test, target, target_test
    zs, zt = standardise(zs, zt)
    us, ut = standardise(us, ut)
    k_s, k_t, dim = int(ys.max()) + 1, int(vs.max()) + 1, zs.shape[1]
    out = Published()
    clock = time.perf_counter()
    head = train_head(zs, ys, k_s, passes, rng)
    w, c = head["w"].astype(np.float64), head["c"].astype(np.float64)
    out.seconds["head"] = time.perf_counter() - clock

    clock = time.perf_counter()
    log_h = np.log(np.maximum(softmax(zs @ w.T + c), 1e-300))
    class_loss = np.array([-log_h[ys == k, k].mean() for k in range(k_s)])
    p_t = np.bincount(vs, minlength=k_t) / len(vs)
    permutation = rng.permutation(k_s)[np.arange(k_t) % k_s]
    mixing = np.zeros((k_t, k_s))
    mixing[np.arange(k_t), permutation] = 8.0
    params = {
        "a": np.eye(dim),
        "abar": np.eye(dim),
        "b": np.zeros(dim),
        "mixing": mixing,
        "prior": np.log(np.bincount(ys, minlength=k_s) / len(ys)),
    }
    adam = Adam(
        params, {"a": 1e-2, "abar": 1e-2, "b": 1e-2, "mixing": 1e-2, "prior": 1e-3}
    )
    free = {"all": set(params), "map": {"a", "abar", "b"}, "none": set()}[learn]
    by_source = [np.flatnonzero(ys == k) for k in range(k_s)]
    by_target = [np.flatnonzero(vs == t) for t in range(k_t)]
    onehot = np.eye(k_t)
    uniform = np.full(BATCH, 1 / BATCH)
    for _ in range(steps if free else 0):
        y = np.sort(rng.choice(k_s, BATCH, p=softmax(params["prior"])))
        t = np.sort(rng.choice(k_t, BATCH, p=p_t))
        rows = np.concatenate(
            [rng.choice(by_source[k], (y == k).sum()) for k in range(k_s)]
        )
        columns = np.concatenate(
            [rng.choice(by_target[k], (t == k).sum()) for k in range(k_t)]
        )
        z, u, v = zs[rows], us[columns], onehot[t]
        cost = ot.dist(z @ params["a"].T + params["b"], u, metric="euclidean")
        cost += LABEL_COST * ot.dist(
            softmax(params["mixing"], axis=0).T[y], v, metric="euclidean"
        )
        plan = ot.emd(uniform, uniform, cost).argmax(1)
        _, gradient = transform_gradient(params, plan, z, y, u, v, class_loss, p_t)
        adam.step(params, {k: g for k, g in gradient.items() if k in free})
    out.seconds["steps"] = time.perf_counter() - clock

    clock = time.perf_counter()
    b, d = softmax(params["mixing"], axis=0), softmax(params["prior"])
    h = softmax((ut - params["b"]) @ params["abar"].T @ w.T + c)
    p = h @ b.T
    out.target_loss = float(
        -np.log(np.maximum(p[np.arange(len(vt)), vt], 1e-300)).mean()
    )
    out.accuracy = float((p.argmax(1) == vt).mean())
    log_test = np.log(np.maximum(softmax(zt @ w.T + c), 1e-300))
    out.reweighted_source_loss = float(
        sum(d[k] * -log_test[yt == k, k].mean() for k in range(k_s))
    )
    out.label_mismatch = float(-(d * b * np.log(np.maximum(b, 1e-300))).sum())
    mapped = zt @ params["a"].T + params["b"]
    # The label distance of the final W goes by argmax of B: every test class against
    # the source classes mapped to it.
    top = b.argmax(0)
    for k in range(k_t):
        mine, theirs = mapped[top[yt] == k], ut[vt == k]
        if len(mine) and len(theirs):
            cost = ot.dist(mine, theirs, metric="euclidean")
            mass = (
                np.full(len(mine), 1 / len(mine)),
                np.full(len(theirs), 1 / len(theirs)),
            )
            out.wasserstein += (vt == k).mean() * ot.emd2(
                *mass, cost, numItermax=1_000_000
            )
    posterior = h[:, None] * b[None] / np.maximum(p, 1e-300)[..., None]
    out.tau = float(np.linalg.norm((h[:, None] - posterior) @ w, axis=2).max())
    rows = w @ params["abar"]
    out.certified_tau = float(max(np.linalg.norm(rows - r, axis=1).max() for r in rows))
    out.seconds["final"] = time.perf_counter() - clock
    return out


def check() -> None:
    """Both hand-written gradients against central differences."""
    rng = np.random.default_rng(0)
    x, y, other = rng.normal(size=(9, 4)), rng.integers(0, 3, 9), rng.integers(0, 3, 9)
    head = {"w": rng.normal(size=(3, 4)), "c": rng.normal(size=3)}
    params = {
        name: rng.normal(size=s)
        for name, s in {
            "a": (4, 4),
            "abar": (4, 4),
            "b": 4,
            "mixing": (2, 3),
            "prior": 3,
        }.items()
    }
    u, v, plan = (
        rng.normal(size=(9, 4)),
        np.eye(2)[rng.integers(0, 2, 9)],
        rng.permutation(9),
    )
    loss, p_t = rng.random(3), np.array([0.3, 0.7])
    for name, values, function in (
        ("head", head, lambda p: head_gradient(p, x, y, other)),
        (
            "transformation",
            params,
            lambda p: transform_gradient(p, plan, x, y, u, v, loss, p_t),
        ),
    ):
        gradient = function(values)[1]
        worst = 0.0
        for key, value in values.items():
            for index in np.ndindex(value.shape):
                value[index] += 1e-6
                up = function(values)[0]
                value[index] -= 2e-6
                down = function(values)[0]
                value[index] += 1e-6
                worst = max(worst, abs((up - down) / 2e-6 - gradient[key][index]))
        print(f"{name}: largest difference from central differences {worst:.1e}")
        assert worst < 1e-6


if __name__ == "__main__":
    check()
