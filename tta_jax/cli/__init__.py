"""`tta-jax`: parse, call, print. Exit status 0, 1 (the analysis failed) or 2 (the call was wrong)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

_EXAMPLES = """examples:
  tta-jax demo
  tta-jax analyze --source photos.npz --target scans.npz
  tta-jax analyze --source a.npz --target b.npz --head h.npz --folds 4 --out result
  tta-jax info b.npz

Files: .npz with arrays `features` (n, d), `labels` (n,), optional `class_names`, `groups`, `labelled`;
or a pair FEATURES.npy,LABELS.npy. A head is an .npz with `weight` (K, d) and `bias` (K,).
"""


class _Parser(argparse.ArgumentParser):
    """Errors are one line and exit status 2."""

    def error(self, message: str):
        print(f"{self.prog}: {message} (try {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tta-jax",
        description="Will a pre-trained classifier transfer to a new task, and why? Bounds before any fine-tuning.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    demo = commands.add_parser("demo", help="train a small encoder on handwritten digits and rank target tasks")
    demo.add_argument(
        "--out", default="tta_demo", metavar="DIR", help="where the figure and results go (default: %(default)s)"
    )
    demo.add_argument("--seed", type=int, default=0, help="of training and splits (default: %(default)s)")
    demo.add_argument("--json", action="store_true", help="print the table as JSON")

    analyze = commands.add_parser(
        "analyze", help="bound the target loss of one source and one target",
        description="Bound the target loss of the transformed source classifier, and explain it.",
        epilog="files:" + _EXAMPLES.split("Files:")[1], formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    analyze.add_argument("--source", required=True, metavar="FILE", help="labelled source features")
    analyze.add_argument("--target", required=True, metavar="FILE", help="target features, with all, some or no labels")
    analyze.add_argument("--head", metavar="FILE", help="source classifier on raw features; fitted when left out")
    analyze.add_argument(
        "--out", metavar="DIR", help="write analysis.tta, result.json, summary.txt and figure.png there"
    )
    analyze.add_argument("--json", action="store_true", help="print the result as JSON")
    analyze.add_argument("--seed", type=int, default=0, help="of splits and starts (default: %(default)s)")
    options = analyze.add_argument_group("configuration (see the README's table)")
    options.add_argument("--objective", metavar="NAME", help="score (default), tight, oscillation, theorem, published")
    options.add_argument("--learn", metavar="WHAT", help="all (default), map, none")
    options.add_argument(
        "--feature-map",
        metavar="FAMILY",
        help="logit_affine, identity, translation, diagonal, rotation, low_rank, dense, coupling_layers",
    )
    options.add_argument("--rungs", metavar="WHICH", help="all (default), or tight for no transport")
    options.add_argument("--holdout", type=float, metavar="SHARE", help="share held out (default 0.25; 0 for none)")
    options.add_argument("--folds", type=int, metavar="K", help="cross-fitting in place of one hold-out")
    options.add_argument("--steps", type=int, metavar="N", help="optimiser steps")
    options.add_argument("--learning-rate", type=float, metavar="RATE")
    options.add_argument("--restarts", type=int, metavar="N", help="starts optimised side by side")
    options.add_argument("--epsilon", type=float, metavar="E", help="entropic regularisation relative to the mean cost")
    options.add_argument("--l2", type=float, metavar="DECAY", help="weight decay of the fitted head")
    options.add_argument("--lipschitz", type=float, metavar="TAU", help="bound on the fitted head's certified constant")
    options.add_argument("--refit-head", action="store_true", default=None, help="refit the head that was given")
    options.add_argument(
        "--no-standardize", dest="standardize", action="store_false", default=None, help="take features as they are"
    )
    options.add_argument(
        "--confidence", type=float, metavar="LEVEL", help="add a statement about the population, e.g. 0.95"
    )

    info = commands.add_parser("info", help="what a file of features, or a saved analysis, holds")
    info.add_argument("file", metavar="FILE", help=".npz, FEATURES.npy,LABELS.npy, or a saved analysis")
    info.add_argument("--json", action="store_true", help="print as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    parser = _parser()
    try:
        args = parser.parse_args(argv)
        if args.command is None:
            parser.print_help()
            return 0
        from tta_jax.cli import commands

        return getattr(commands, args.command)(args)
    except SystemExit as stop:
        return int(stop.code or 0)
    except BrokenPipeError:
        return 1
    except (ValueError, OSError) as error:
        print(f"tta-jax: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tta-jax: interrupted, nothing was written", file=sys.stderr)
        return 1
    except Exception as error:
        print(
            f"tta-jax: the analysis failed: {type(error).__name__}: {' '.join(str(error).split())[:400]}",
            file=sys.stderr,
        )
        return 1
