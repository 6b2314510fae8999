"""How fast the metrics are: LogME, H-score, TransRate against their direct NumPy forms,
in one run, turn about.

    python -m benchmarks.metrics large     # n = 5,000, d = 2,048, K = 100: one task;
    minutes python -m benchmarks.metrics batch     # 64 tasks of n = 500, d = 256, K =
    10: vmap on a device for every core; NumPy in a loop

The NumPy forms are the published ones in float64, on all cores: H-score by `pinv` of
the covariance, TransRate by `slogdet` of the whole and of every class, LogME by the
fixed point of its paper (an SVD of F^T F, the mean of every class at every step) and by
the fixed point that its authors released later (a thin SVD of F). Both end at an
evidence that is not quite the largest, which is what `logme` gives: hence its
difference. Every form finds its arrays where it works, in its own precision. Times are
the best of the turns, after one of each to warm up.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jax

FIXED_POINT_STEPS, TOLERANCE = (
    11,
    1e-3,
)  # as released; the paper's stopped at 1e-2, where values are off by 3e-5
REQUIRED = 5.0


def h_score(x: np.ndarray, y: np.ndarray) -> float:
    means = np.array([x[y == k].mean(0) for k in range(y.max() + 1)])
    return float(
        np.trace(np.linalg.pinv(np.cov(x.T), rcond=1e-15) @ np.cov(means[y].T))
    )


def transrate(x: np.ndarray, y: np.ndarray, epsilon: float = 1e-4) -> float:
    z = x - x.mean(0)
    z /= np.sqrt((z**2).sum() / len(z))

    def rate(rows: np.ndarray) -> float:
        return (
            0.5
            * np.linalg.slogdet(
                np.eye(rows.shape[1]) + rows.T @ rows / (len(rows) * epsilon)
            )[1]
        )

    return float(rate(z) - np.mean([rate(z[y == k]) for k in range(y.max() + 1)]))


def logme_paper(f: np.ndarray, y: np.ndarray) -> float:
    n, d = f.shape
    v, s, vh = np.linalg.svd(f.T @ f, full_matrices=True)
    found = []
    for k in range(y.max() + 1):
        target = (y == k).astype(float)
        alpha = beta = 1.0
        projected = vh @ (f.T @ target)
        for _ in range(FIXED_POINT_STEPS):
            ratio = alpha / beta
            effective = (s / (s + ratio)).sum()
            mean = v @ (projected * beta / (alpha + beta * s))
            size, misfit = (mean**2).sum(), ((target - f @ mean) ** 2).sum()
            alpha, beta = effective / (size + 1e-5), (n - effective) / (misfit + 1e-5)
            if abs(alpha / beta - ratio) / ratio <= TOLERANCE:
                break
        found.append(_evidence(n, d, s, alpha, beta, misfit, size) / n)
    return float(np.mean(found))


def logme_released(f: np.ndarray, y: np.ndarray) -> float:
    n, d = f.shape
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    square = s**2
    found = []
    for k in range(y.max() + 1):
        target = (y == k).astype(float)
        inside = (u.T @ target) ** 2
        outside = (target**2).sum() - inside.sum()
        alpha = beta = 1.0
        for _ in range(FIXED_POINT_STEPS):
            ratio = alpha / beta
            effective = (square / (square + ratio)).sum()
            size = (square * inside / (ratio + square) ** 2).sum()
            misfit = (inside / (1 + square / ratio) ** 2).sum() + outside
            alpha, beta = effective / (size + 1e-5), (n - effective) / (misfit + 1e-5)
            if abs(alpha / beta - ratio) / ratio <= TOLERANCE:
                break
        found.append(_evidence(n, d, square, alpha, beta, misfit, size) / n)
    return float(np.mean(found))


def _evidence(
    n: int,
    d: int,
    square: np.ndarray,
    alpha: float,
    beta: float,
    misfit: float,
    size: float,
) -> float:
    return (
        d / 2 * np.log(alpha)
        + n / 2 * np.log(beta)
        - 0.5 * np.log(alpha + beta * square).sum()
        - beta / 2 * misfit
        - alpha / 2 * size
        - n / 2 * np.log(2 * np.pi)
    )


FORMS: list[tuple[str, str, Callable[[np.ndarray, np.ndarray], float]]] = [
    ("logme", "the paper's", logme_paper),
    ("logme", "released", logme_released),
    ("h_score", "direct", h_score),
    ("transrate", "direct", transrate),
]


def tasks(number: int, n: int, d: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes, `(number, n, d)` float32 and `(number, n)` int32."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, (number, n))
    labels[:, :classes] = np.arange(classes)
    features = (
        rng.normal(size=(number, n, d))
        + 0.3
        * rng.normal(size=(number, classes, d))[np.arange(number)[:, None], labels]
    )
    return features.astype(np.float32), labels.astype(np.int32)


def spread(batched: Callable, mesh: jax.sharding.Mesh) -> Callable:
    """A function of arrays with a leading axis of tasks, that axis divided among the
    devices.
    """
    import jax

    part = jax.sharding.PartitionSpec("tasks")
    return jax.shard_map(
        batched, mesh=mesh, in_specs=part, out_specs=part, check_vma=False
    )


def compare(number: int, n: int, d: int, classes: int, turns: int) -> list[dict]:
    import jax

    from tta_jax.metrics import REGISTRY

    features, labels = tasks(number, n, d, classes)
    wide = features.astype(np.float64)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("tasks",))
    held = {}
    for precision in (np.float32, np.float64):
        arrays = (features.astype(precision), labels)
        with jax.enable_x64(precision is np.float64):
            if number == 1:
                held[precision] = jax.device_put(jax.tree.map(lambda v: v[0], arrays))
            else:
                held[precision] = jax.device_put(
                    arrays,
                    jax.sharding.NamedSharding(
                        mesh, jax.sharding.PartitionSpec("tasks")
                    ),
                )
    rows = []
    for name, form, direct in FORMS:
        options = (
            {"class_size": int(max(np.bincount(y).max() for y in labels))}
            if name == "transrate"
            else {}
        )
        metric = functools.partial(
            REGISTRY[name].function, num_classes=classes, **options
        )
        program = jax.jit(metric if number == 1 else spread(jax.vmap(metric), mesh))

        def ours(precision: type) -> np.ndarray:
            with jax.enable_x64(precision is np.float64):
                return np.atleast_1d(jax.block_until_ready(program(*held[precision])))

        calls: dict[str, Callable[[], np.ndarray]] = {
            "numpy": lambda: np.array(
                [direct(x, y) for x, y in zip(wide, labels, strict=True)]
            ),
            "float32": lambda: ours(np.float32),
            "float64": lambda: ours(np.float64),
        }
        times, values = dict.fromkeys(calls, np.inf), {}
        for turn in range(turns + 1):
            for kind, call in calls.items():
                begin = time.perf_counter()
                values[kind] = call()
                if turn:
                    times[kind] = min(times[kind], time.perf_counter() - begin)
        row = {
            "metric": name,
            "NumPy form": form,
            "NumPy": times["numpy"],
            "value": float(values["numpy"][0]),
        }
        for kind in ("float32", "float64"):
            row[kind], row[f"{kind} ratio"] = times[kind], times["numpy"] / times[kind]
            row[f"{kind} difference"] = float(
                np.abs(values[kind] / values["numpy"] - 1).max()
            )
        rows.append(row)
        print(
            f"{name:<10} {form:<12} NumPy {row['NumPy']:7.3f} s   float32 "
            f"{row['float32']:7.3f} s, {row['float32 ratio']:5.1f}x "
            f"(values within {row['float32 difference']:.0e})   float64 "
            f"{row['float64']:7.3f} s, {row['float64 ratio']:5.1f}x "
            f"({row['float64 difference']:.0e})   value {row['value']:.6g}",
            flush=True,
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("large", "batch"))
    parser.add_argument(
        "--turns",
        type=int,
        default=3,
        help="of NumPy, float32 and float64 (default: %(default)s)",
    )
    args = parser.parse_args()
    if args.what == "batch":
        import tta_jax as tta

        tta.use_cores()
    sizes = (1, 5000, 2048, 100) if args.what == "large" else (64, 500, 256, 10)
    rows = compare(*sizes, turns=args.turns)
    least = min(
        row["float32 ratio"] for row in rows if row["NumPy form"] != "the paper's"
    )
    print(
        "least ratio to released forms in float32, the features' precision: "
        f"{least:.1f}x (required {REQUIRED:.0f}x)"
    )
    return 0 if least >= REQUIRED else 1


if __name__ == "__main__":
    raise SystemExit(main())
