"""Time and peak memory of one analysis over n_S, n_T, d, K; every row in a process of
its own.

    python -m benchmarks.scale                 # the table
    python -m benchmarks.scale --row 60000 10000 2048 10 all

Features are Gaussian classes whose means lie on a random simplex of edge `--edge`, so
that the problem is neither trivial nor hopeless. All source items are used. `tight`
leaves out the transport, `all` is the full chain with certificates.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import numpy as np

from benchmarks.memory import peak

ROWS = [
    (1_000, 1_000, 256, 10, "all"),
    (10_000, 1_000, 256, 10, "all"),
    (10_000, 10_000, 256, 10, "all"),
    (10_000, 10_000, 2048, 10, "all"),
    (10_000, 10_000, 256, 100, "all"),
    (60_000, 10_000, 2048, 10, "tight"),
    (60_000, 10_000, 2048, 10, "all"),
]


def make(n: int, dim: int, classes: int, edge: float, seed: int):
    import tta_jax as tta

    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    features = rng.standard_normal((n, dim), np.float32)
    features += (
        edge * rng.standard_normal((classes, dim), np.float32) / np.sqrt(2 * dim)
    )[labels]
    return tta.Task.from_arrays(features, labels, name=f"gaussian-{seed}")


def measure(
    n_s: int, n_t: int, dim: int, classes: int, rungs: str, edge: float
) -> dict:
    import tta_jax as tta

    source, target = make(n_s, dim, classes, edge, 0), make(n_t, dim, classes, edge, 1)
    before = peak()
    start = time.perf_counter()
    result = tta.analyze(
        source, None, target, tta.Config(rungs=rungs, source_per_class=0)
    )
    seconds = time.perf_counter() - start
    bound = result.held_out.bound
    return {
        "seconds": seconds,
        "peak_gb": peak(),
        "data_gb": before,
        "target_loss": bound.target_loss,
        "tight": bound.tight,
        "oscillation": bound.oscillation,
        "lipschitz": bound.lipschitz,
        "holds": result.certificate.holds and result.held_out.certificate.holds,
        "timings": result.timings,
        "gap": result.held_out.certificate.oscillation.gap,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", nargs=5, metavar=("N_S", "N_T", "D", "K", "RUNGS"))
    parser.add_argument("--edge", type=float, default=6.0)
    args = parser.parse_args()
    if args.row:
        *sizes, rungs = args.row
        print(json.dumps(measure(*map(int, sizes), rungs, args.edge)))
        return
    print(
        "| n_S | n_T | d | K | rungs | seconds (cold) | peak GB | target loss | tight "
        "| oscillation | lipschitz | holds |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in ROWS:
        words = [
            sys.executable,
            "-m",
            "benchmarks.scale",
            "--edge",
            str(args.edge),
            "--row",
            *map(str, row),
        ]
        out = subprocess.run(words, capture_output=True, text=True)
        if out.returncode:
            print(
                f"| {' | '.join(map(str, row))} | failed: "
                f"{out.stderr.strip().splitlines()[-1]} |"
            )
            continue
        r = json.loads(out.stdout.splitlines()[-1])
        print(
            f"| {' | '.join(f'{v:,}' if isinstance(v, int) else v for v in row)} | "
            f"{r['seconds']:.0f} | {r['peak_gb']:.2f} | "
            f"{r['target_loss']:.3f} | {r['tight']:.3f} | {r['oscillation']:.2f} | "
            f"{r['lipschitz']:.1f} | {r['holds']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
