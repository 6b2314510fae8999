"""What people read: text, figures, pages of one HTML file."""

from tta_jax.report.figures.bounds import (
    analysis_figure,
    chain_figure,
    convergence_figure,
    mixing_figure,
    parts_figure,
    ranking_figure,
    relatedness_figure,
)
from tta_jax.report.figures.features import features_figure
from tta_jax.report.figures.scores import evaluation_figure, score_figure
from tta_jax.report.figures.tasks import distance_figure, task_map_figure
from tta_jax.report.html.page import Page

__all__ = [
    "Page",
    "analysis_figure",
    "chain_figure",
    "convergence_figure",
    "distance_figure",
    "evaluation_figure",
    "features_figure",
    "mixing_figure",
    "parts_figure",
    "ranking_figure",
    "relatedness_figure",
    "score_figure",
    "task_map_figure",
]
