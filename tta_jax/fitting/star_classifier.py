"""Make the star a classifier: encoders of both tasks, an assignment and a head
(docs/theory.md, section 5.2).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tta_jax.bounds.chain import Transforms
from tta_jax.bounds.star import StarEncoder
from tta_jax.config import Config
from tta_jax.core import feature_maps
from tta_jax.core.heads import SoftmaxHead
from tta_jax.fitting.assignment import log_joint64
from tta_jax.fitting.relatedness import StarChoice, StarFit
from tta_jax.tasks.standardizer import Standardizer
from tta_jax.tasks.task import Task


def _chosen(star: StarFit, config: Config) -> StarChoice:
    """The star of least objective."""
    return star.directed if config.objective == "directed" else star.theorem


def star_encoders(
    star: StarFit,
    source_head: SoftmaxHead,
    probe: SoftmaxHead,
    scalers: tuple[Standardizer, Standardizer],
    config: Config,
) -> tuple[StarEncoder, StarEncoder]:
    """Make the encoders of both tasks.

    Args:
      star: both stars.
      source_head: fitted to the source alone, `(K_S, d)`.
      probe: of the target, `(K_T, d)`.
      scalers: of source and target features.
      config: `objective` counts.
    """
    choice, classes = _chosen(star, config), star.classes
    weight = np.asarray(source_head.weight)[classes.source_class]
    bias = np.asarray(source_head.bias)[classes.source_class] + classes.shift
    bias = np.where(classes.target_mask, bias, -np.inf).astype(weight.dtype)
    return (
        StarEncoder(scalers[0], SoftmaxHead(weight, bias), choice.source_cut),
        StarEncoder(scalers[1], probe, choice.target_cut),
    )


def star_classifier(
    star: StarFit,
    num_sources: int,
    target: Task,
    log_prior: np.ndarray,
    config: Config,
) -> tuple[Transforms, SoftmaxHead, dict[str, Any], str]:
    """Make the transformations and the head on encoded features.

    Args:
      star: both stars.
      num_sources: K_S.
      target: the learning part.
      log_prior: `(K_T,)`, log p_T.
      config: `objective` counts.

    Returns:
      Transformations, head, record, and why the fit stopped.

    Raises:
      ValueError: the source has too few classes.
    """
    choice, classes = _chosen(star, config), star.classes
    if not bool(classes.possible):
        raise ValueError(
            "feature_map: 'star' needs a source class for each of the target's "
            f"{target.num_classes}; leave it out, or give a source with more classes"
        )
    there = np.flatnonzero(classes.target_mask)
    assigned = np.asarray(classes.source_class)[there]
    theta = np.full((len(log_prior), num_sources), -np.inf)
    theta[there, assigned] = 0.0
    head = SoftmaxHead(
        np.zeros((num_sources, len(log_prior)), log_prior.dtype),
        np.zeros(num_sources, log_prior.dtype),
    )
    head.weight[assigned, there] = choice.scale
    head.bias[assigned] = log_prior[there]
    info = {
        "assignment": np.asarray(classes.source_class),
        "source_cut": np.asarray(choice.source_cut),
        "target_cut": np.asarray(choice.target_cut),
        "scale": float(choice.scale),
    }
    stopped = (
        f"star of least {config.objective} on the inner folds: scale "
        f"{float(choice.scale):.2f}"
    )
    if not choice.scale > 0:
        stopped = f"no star had a {config.objective} below guessing on the inner folds"
    transforms = Transforms(log_joint64(theta, target), feature_maps.Identity())
    return transforms, head, info, stopped
