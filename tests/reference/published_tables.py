"""Scores and fine-tuned accuracies printed in the ranking README of
thuml/Transfer-Learning-Library (commit 56ccfd7), as data.

Five of its eight tables; the other three print correlations that do not follow from
their own rows.
"""

import csv
from pathlib import Path

SCORES = ("h_score", "leep", "logme", "nce")
FILE = Path(__file__).parents[2] / "benchmarks" / "published_rankings.csv"

# Printed Pearson correlations and weighted taus of the four scores.
PRINTED = {
    "cifar10": {
        "pearson": (0.839, 0.604, 0.733, 0.786),
        "weighted_tau": (0.8, 0.638, 0.785, 0.714),
    },
    "cifar100": {
        "pearson": (0.815, 0.513, 0.698, 0.705),
        "weighted_tau": (0.775, 0.659, 0.79, 0.654),
    },
    "cars": {
        "pearson": (0.503, 0.433, 0.274, 0.695),
        "weighted_tau": (0.638, 0.703, 0.654, 0.75),
    },
    "sun397": {
        "pearson": (0.913, 0.428, 0.824, 0.782),
        "weighted_tau": (0.918, 0.581, 0.748, 0.873),
    },
    "caltech101": {
        "pearson": (0.748, 0.324, 0.794, 0.843),
        "weighted_tau": (0.721, 0.127, 0.697, 0.81),
    },
}


def columns(target):
    """Accuracies of ten models, and their four scores."""
    with FILE.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["target"] == target]
    return [[float(row[name]) for row in rows] for name in ("accuracy", *SCORES)]
