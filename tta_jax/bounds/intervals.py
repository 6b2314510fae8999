"""How sure the held-out figures are: bootstrap intervals and a statement about the
population.
"""

from __future__ import annotations

import math

import numpy as np

from tta_jax._internal.numbers import real_number

_CELLS = 4_000_000  # random weights held at once


def bootstrap(
    classes: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
    hits: list[np.ndarray],
    prior_entropy: float,
    rng: np.random.Generator,
    replicates: int,
    level: float,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of held-out figures by the Bayesian bootstrap (exponential
    weights on the items, Rubin 1981).

    Args:
      classes: for each target class the source losses, their masses, the target losses
        and their masses.
      hits: for each target class whether its items are classified correctly.
      prior_entropy: `H(p_T)`, held fixed in the score.

    Returns:
      `target_loss`, `target_accuracy`, `tight`, `score` -> (low, high) at the given
      level.
    """
    blocks = [
        (losses[q > 0], q[q > 0], t, r, hit)
        for (losses, q, t, r), hit in zip(classes, hits, strict=True)
        if r.sum() > 0
    ]
    source_losses, q, target_losses, r, hit = (
        np.concatenate(column) for column in zip(*blocks, strict=True)
    )
    n, m = ([len(block[k]) for block in blocks] for k in (1, 3))
    starts_s, starts_t = (np.cumsum([0, *sizes[:-1]]) for sizes in (n, m))
    # Class by class, each in the order of its losses: any number of small classes is
    # one array.
    losses = np.concatenate([source_losses, target_losses])
    of_class = np.concatenate(
        [np.repeat(np.arange(len(blocks)), sizes) for sizes in (n, m)]
    )
    order = np.lexsort((losses, of_class))
    with np.errstate(invalid="ignore"):
        gaps = (np.diff(losses[order]) * (np.diff(of_class[order]) == 0)).astype(
            np.float32
        )
    # Weights are float32, and so is what they are multiplied by: enough for intervals.
    source_losses, target_losses, hit, q, r = (
        v.astype(np.float32) for v in (source_losses, target_losses, hit, q, r)
    )

    loss, accuracy, tight, total = (np.zeros(replicates) for _ in range(4))
    step = max(1, _CELLS // len(order))
    for start in range(0, replicates, step):
        rows = slice(start, min(start + step, replicates))
        count = rows.stop - rows.start
        w_r = rng.standard_exponential((count, len(r)), np.float32) * r
        w_q = rng.standard_exponential((count, len(q)), np.float32) * q
        mass = np.add.reduceat(w_r, starts_t, axis=1)
        w_q *= np.repeat(mass / np.add.reduceat(w_q, starts_s, axis=1), n, axis=1)
        loss[rows], accuracy[rows], total[rows] = (
            w_r @ target_losses,
            w_r @ hit,
            mass.sum(1),
        )
        # `int max(F^-1, G^-1)` is the mean under F and what F lies above G.
        excess = np.cumsum(np.concatenate([w_q, -w_r], axis=1)[:, order[:-1]], axis=1)
        tight[rows] = w_q @ source_losses + np.maximum(excess, 0) @ gaps
    loss, accuracy, tight = loss / total, accuracy / total, tight / total
    score = (
        1 - loss / prior_entropy if prior_entropy > 0 else np.full_like(loss, np.nan)
    )
    tails = [50 * (1 - level), 50 * (1 + level)]
    figures = {
        "target_loss": loss,
        "target_accuracy": accuracy,
        "tight": tight,
        "score": score,
    }
    limits = {name: np.percentile(values, tails) for name, values in figures.items()}
    return {name: (float(low), float(high)) for name, (low, high) in limits.items()}


def kl_upper(mean: float, n: int, delta: float) -> float:
    """Largest p with `kl(mean || p) <= ln(1 / delta) / n`: an upper confidence bound
    for a mean of values in [0, 1].

    The Chernoff-Hoeffding bound in its relative-entropy form; never looser than
    Hoeffding's.
    """
    budget = math.log(1 / delta) / n

    def divergence(p: float) -> float:
        first = mean * math.log(mean / p) if mean > 0 else 0.0
        second = (1 - mean) * math.log((1 - mean) / (1 - p)) if mean < 1 else 0.0
        return first + second

    low, high = mean, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle >= 1 or divergence(middle) > budget:
            high = middle
        else:
            low = middle
    return high


def population_bound(losses: np.ndarray, clip: float, confidence: float) -> float:
    """With probability `confidence` over i.i.d. items, `E min(loss, clip)` of a
    classifier fixed before is at most this, nats.

    Args:
      losses: `(n,)` nats, at least 0; infinite ones count as `clip`.
      clip: positive and finite.
      confidence: strictly between 0 and 1.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    losses = np.asarray(losses)
    if losses.ndim != 1 or not losses.size or losses.dtype.kind not in "fiu":
        raise ValueError(
            f"losses: found shape {losses.shape} and dtype {losses.dtype}; give one "
            "real number per item"
        )
    # The logarithm of a probability of one may be off by a rounding error, on either
    # side of zero.
    if not (losses >= -1e-5).all():
        raise ValueError(
            f"losses: found {losses.min()}; the bound holds for losses of at least 0, "
            "without NaN"
        )
    if not 0 < real_number(clip) < math.inf:
        raise ValueError(f"clip: found {clip!r}; give a positive number of nats")
    if not 0 < real_number(confidence) < 1:
        raise ValueError(
            f"confidence: found {confidence!r}; give a level between 0 and 1, for "
            "example 0.95"
        )
    mean = float((np.clip(losses, 0, clip) / clip).mean())
    return clip * kl_upper(min(mean, 1.0), len(losses), 1 - confidence)
