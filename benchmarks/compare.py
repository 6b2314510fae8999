"""Our analysis and the published algorithm on the same Fashion-MNIST -> MNIST features,
in one process.

python -m benchmarks.compare            # the table; minutes
python -m benchmarks.compare --quick    # a smoke run of the yardstick; its ratios mean
nothing
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import numpy as np

from benchmarks.fashion_mnist import FEATURES
from benchmarks.memory import peak
from benchmarks.published_numpy import run


def load() -> dict[str, np.ndarray]:
    if not FEATURES.exists():
        raise SystemExit(
            "no features: run python -m benchmarks.fashion_mnist --from FILE.deb first"
        )
    with np.load(FEATURES) as stored:
        return dict(stored)


def cpu() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.split(":")[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--labels", type=int, default=1000, help="target labels (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    data = load()
    order = np.random.default_rng(0).permutation(len(data["target"]))
    learn, unseen = order[: args.labels], order[args.labels :]
    u, v = data["target"][unseen], data["target_labels"][unseen]

    start = time.perf_counter()
    import jax
    import ott  # noqa: F401 - imported lazily otherwise; POT's import is not counted either

    import tta_jax as tta
    import tta_jax.analysis.analyze

    imports = time.perf_counter() - start
    source = tta.Task.from_arrays(data["source"], data["source_labels"], name="fashion")
    target = tta.Task.from_arrays(
        data["target"][learn], data["target_labels"][learn], name="mnist"
    )
    seconds, results = [], []
    for seed in range(4):
        start = time.perf_counter()
        results.append(
            tta.analyze(source, None, target, tta.Config(), jax.random.key(seed))
        )
        seconds.append(time.perf_counter() - start)
    cold, warm, result = seconds[0], float(np.median(seconds[1:])), results[1]
    # The same with every source item, as the published algorithm uses them.
    for seed in range(3):
        start = time.perf_counter()
        whole = tta.analyze(
            source, None, target, tta.Config(source_per_class=0), jax.random.key(seed)
        )
        full = time.perf_counter() - start
    p = result.predict_proba(u)
    loss, accuracy = (
        float(-np.log(p[np.arange(len(v)), v]).mean()),
        float((p.argmax(1) == v).mean()),
    )
    memory = peak()

    start = time.perf_counter()
    passes, steps = (2, 10) if args.quick else (500, 1001)
    theirs = run(
        (data["source"], data["source_labels"]),
        (data["source_test"], data["source_test_labels"]),
        (data["target"][learn], data["target_labels"][learn]),
        (u, v),
        passes=passes,
        steps=steps,
    )
    yardstick = time.perf_counter() - start

    bound = result.held_out.bound
    print(
        f"{cpu()}, {os.cpu_count()} cores, Python {platform.python_version()}, jax "
        f"{jax.__version__}; {args.labels} target labels"
    )
    print("| | tta_jax `score` | published algorithm, NumPy + POT |\n|---|---|---|")
    print(
        f"| seconds, cold (compilation included; imports {imports:.1f} more) | "
        f"{cold:.1f} | {yardstick:.0f} |"
    )
    print(f"| seconds, warm (median of 3) | {warm:.2f} | {yardstick:.0f} |")
    print(
        f"| seconds, warm, with all {len(source):,} source items | {full:.2f} | "
        f"{yardstick:.0f} |"
    )

    def phases(d):
        return ", ".join(
            f"{k} {s:.1f}" for k, s in d.items() if k != "total" and s > 0.05
        )

    print(f"| warm, by phase | {phases(result.timings)} | {phases(theirs.seconds)} |")
    print(
        f"| target loss of h''' on unseen points | {loss:.3f} | "
        f"{theirs.target_loss:.3f} |"
    )
    print(f"| its accuracy there | {accuracy:.1%} | {theirs.accuracy:.1%} |")
    rungs = ", ".join(
        f"{n} {getattr(bound, n):.2f}"
        for n in ("tight", "directed", "oscillation", "lipschitz", "theorem")
    )
    print(
        f"| bound (ours: held out, certified) | {rungs} | {theirs.bound:.2f} "
        f"uncertified, {theirs.certified_bound:.2f} certified |"
    )
    print(f"| H(p_T) | {bound.prior_entropy:.3f} | {bound.prior_entropy:.3f} |")
    print(
        "| chain holds | "
        f"{result.certificate.holds and result.held_out.certificate.holds} | - |"
    )
    print(f"| peak memory of the process, GB | {memory:.2f} | {peak():.2f} |")
    rungs = ", ".join(
        f"{n} {getattr(whole.held_out.bound, n):.2f}"
        for n in ("tight", "oscillation", "lipschitz")
    )
    print(f"| bound with all source items (held out, certified) | {rungs} | |")
    note = " (quick run: meaningless)" if args.quick else ""
    print(
        f"\nyardstick / warm = {yardstick / warm:.0f} (all source items: "
        f"{yardstick / full:.0f}), yardstick / cold = {yardstick / cold:.1f}{note}"
    )


if __name__ == "__main__":
    main()
