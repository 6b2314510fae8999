"""Copies and groups: a large bundle is named, intervals draw groups whole."""

import jax
import numpy as np
import pytest

import tta_jax as tta
from tests.typed import held_out

CONFIG = tta.Config(bootstrap=300, rungs="tight")


def source(rng):
    y = np.arange(240) % 3
    return tta.Task.from_arrays(rng.normal(size=(240, 16)) + 3 * np.eye(16)[y], y)


@pytest.mark.parametrize("seed", range(3))
def test_blank_items_that_decide_a_hold_out_are_named(seed):
    """One in five target items is blank: all of these are held out or none, so scores
    of different splits lie far apart.
    """
    rng = np.random.default_rng(0)
    known, y = source(rng), np.arange(240) % 3
    x = rng.normal(size=(240, 16)) + 3 * np.eye(16)[y + 4]
    x[::5] = 0
    target = tta.Task.from_arrays(x, y)
    result = tta.analyze(known, None, target, CONFIG, jax.random.key(seed))
    (warning,) = (w for w in result.warnings if "copies of one item" in w)
    assert warning.startswith("48 of 240 target items (20%)")
    assert "(row 0)" in warning
    low, high = held_out(result).intervals["score"]
    assert high - low > 0.3


@pytest.mark.slow
def test_intervals_of_groups_cover_the_loss_on_fresh_items():
    """Four near copies of each of 60 items, given as groups."""
    runs, inside = 40, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        known, y = source(rng), np.arange(60) % 3
        x = rng.normal(size=(60, 16)) + 1.5 * np.eye(16)[y + 4]
        x = np.repeat(x, 4, axis=0) + 0.05 * rng.normal(size=(240, 16))
        target = tta.Task.from_arrays(
            x, np.repeat(y, 4), groups=np.repeat(np.arange(60), 4)
        )
        result = tta.analyze(known, None, target, CONFIG, jax.random.key(seed))
        fresh = np.arange(6000) % 3
        features = rng.normal(size=(6000, 16)) + 1.5 * np.eye(16)[fresh + 4]
        p = result.predict_proba(features.astype(np.float32))
        loss = -np.log(p[np.arange(6000), fresh]).mean()
        low, high = held_out(result).intervals["target_loss"]
        inside += low <= loss <= high
    # With intervals that cover 95 %, fewer than 34 of 40 have a probability of 0.3 %.
    assert inside >= 34
