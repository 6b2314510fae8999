"""How good the analysis is: Fashion-MNIST -> MNIST, five splits, judged on points that
no choice has seen.

    python -m benchmarks.quality            # the table; minutes
    python -m benchmarks.quality --row score 1000 --source-per-class 500 1000 2000 0

Every row learns from a few target labels (cross-fitting inside, so that none is wasted)
and reports figures on the MNIST points
that were left out altogether: loss and accuracy of h''' on all of them, and the
certified chain between them and source points that were left out of learning, too.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np

from benchmarks.compare import load

# objective, target labels, what the figures should be: (name, "below" or "above",
# value)
ROWS = [
    ("score", 1000, [("tight", "below", 0.68), ("accuracy", "above", 0.83)]),
    ("score", 300, [("tight", "below", 0.90)]),
    ("oscillation", 4000, [("oscillation", "below", 2.30)]),
]
SPLITS = 5


def judge(result, source, target, epsilon: float) -> dict[str, float]:
    """Figures of an analysis on raw samples `(features, labels)` that it has not
    seen.
    """
    import tta_jax as tta

    scaled = [
        tta.Samples(
            np.asarray(scaler(features)),
            labels.astype(np.int32),
            np.ones(len(labels), bool),
        )
        for scaler, (features, labels) in (
            (result.source_scaler, source),
            (result.target_scaler, target),
        )
    ]
    chain = tta.certify(
        result.transforms, scaled[0], result.head, scaled[1], epsilon=epsilon
    )
    bound = chain.bound
    figures = {
        "loss": bound.target_loss,
        "accuracy": bound.target_accuracy,
        "holds": float(chain.certificate.holds),
    }
    return figures | {
        name: getattr(bound, name)
        for name in ("tight", "directed", "oscillation", "lipschitz", "theorem")
    }


def run(objective: str, labels: int, per_class: int, split: int) -> dict[str, float]:
    import jax

    import tta_jax as tta

    data = load()
    order = np.random.default_rng(split).permutation(len(data["target"]))
    seen, unseen = order[:labels], order[labels:]
    source = tta.Task.from_arrays(data["source"], data["source_labels"], name="fashion")
    target = tta.Task.from_arrays(
        data["target"][seen], data["target_labels"][seen], name="mnist"
    )
    config = tta.Config(objective=objective, holdout=0, source_per_class=per_class)
    start = time.perf_counter()
    result = tta.analyze(source, None, target, config, jax.random.key(split))
    seconds = time.perf_counter() - start
    fresh = (data["source_test"], data["source_test_labels"])
    figures = judge(
        result,
        fresh,
        (data["target"][unseen], data["target_labels"][unseen]),
        config.epsilon,
    )
    return figures | {"seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", nargs=2, metavar=("OBJECTIVE", "LABELS"))
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument(
        "--source-per-class",
        type=int,
        nargs="+",
        default=[1000],
        metavar="N",
        help="0 for all",
    )
    args = parser.parse_args()
    rows = [(args.row[0], int(args.row[1]), [])] if args.row else ROWS
    names = (
        "loss",
        "accuracy",
        "tight",
        "directed",
        "oscillation",
        "lipschitz",
        "theorem",
        "seconds",
    )
    print(
        f"means over {args.splits} splits (standard deviation); H(p_T) is 2.30 nats\n"
    )
    print(
        f"| objective | labels | source items a class | {' | '.join(names)} | chain "
        "holds | required |"
    )
    print("|" + "---|" * (len(names) + 5))
    missed = False
    for (objective, labels, wanted), per_class in itertools.product(
        rows, args.source_per_class
    ):
        found = [
            run(objective, labels, per_class, split) for split in range(args.splits)
        ]
        mean = {name: float(np.mean([f[name] for f in found])) for name in found[0]}
        spread = {name: float(np.std([f[name] for f in found])) for name in found[0]}
        verdicts = []
        for name, side, value in wanted:
            met = mean[name] < value if side == "below" else mean[name] > value
            missed |= not met
            verdicts.append(f"{name} {side} {value}: {'met' if met else 'MISSED'}")
        cells = " | ".join(f"{mean[n]:.3f} ({spread[n]:.3f})" for n in names)
        row = (
            objective,
            labels,
            per_class or "all",
            cells,
            mean["holds"] == 1.0,
            "; ".join(verdicts) or "-",
        )
        print(f"| {' | '.join(map(str, row))} |", flush=True)
    if missed:
        raise SystemExit("a requirement was missed")


if __name__ == "__main__":
    main()
