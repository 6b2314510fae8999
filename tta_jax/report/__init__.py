"""What people read: text, figures, pages of one HTML file."""

from tta_jax.report.figures import (
    analysis_figure,
    chain_figure,
    convergence_figure,
    evaluation_figure,
    mixing_figure,
    parts_figure,
    ranking_figure,
)
from tta_jax.report.page import Page
from tta_jax.report.views import (
    distance_figure,
    features_figure,
    score_figure,
    task_map_figure,
)

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
    "score_figure",
    "task_map_figure",
]
