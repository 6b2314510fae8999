"""The floor under a classifier: chosen on held-out losses, one bad item no longer
decides.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tta_jax as tta
from tta_jax.core.losses import floored_loss
from tta_jax.fitting.floor import FLOORS, choose_floor

KEY = jax.random.key(0)
QUICK = tta.Config(rungs="tight", bootstrap=0)


@pytest.mark.parametrize("wrong", [0.0, 0.02, 0.2])
def test_choice_is_that_of_least_mean_loss(wrong, x64):
    rng = np.random.default_rng(0)
    losses = np.where(rng.random(500) < wrong, 12.0, 0.05)
    losses[-1] = np.inf if wrong else 0.05
    log_p = np.log(rng.choice([0.1, 0.4], 500))
    weights = np.where(np.arange(500) % 5 == 0, 0.0, 1.0)
    with np.errstate(divide="ignore"):
        means = [
            weights @ -np.log((1 - f) * np.exp(-losses) + f * np.exp(log_p))
            for f in FLOORS
        ]
    losses, log_p, weights = map(jnp.asarray, (losses, log_p, weights))
    found = choose_floor(losses, log_p, weights, jnp.asarray(jnp.nan))
    assert found == FLOORS[int(np.argmin(means))]
    assert choose_floor(losses, log_p, weights, jnp.asarray(0.25)) == 0.25


def test_items_without_weight_do_not_count():
    losses, weights = jnp.asarray([0.1, jnp.nan]), jnp.asarray([1.0, 0.0])
    chosen = choose_floor(losses, jnp.full(2, -1.0), weights, jnp.asarray(jnp.nan))
    assert chosen == np.float32(FLOORS[0])


def test_floored_losses_are_bounded_and_rise_by_less():
    losses, log_p = jnp.linspace(0, 80, 200), jnp.full(200, -2.0)
    found = floored_loss(losses, log_p, jnp.asarray(0.01))
    assert (found <= 2.0 - np.log(0.01) + 1e-5).all()
    rise, own = np.diff(found), np.diff(losses)
    assert (rise >= 0).all()
    assert (rise <= own).all()


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(3)

    def task(n, spread, name):
        y = np.arange(n) % 4
        x = rng.normal(size=(n, 12)).astype(np.float32)
        x[np.arange(n), y] += spread
        return tta.Task.from_arrays(x, y, name=name)

    return task(400, 4, "source"), task(240, 4, "target")


@pytest.mark.parametrize("row", range(0, 240, 30))
def test_a_saturated_row_moves_the_score_little_or_is_named(pair, row):
    source, target = pair
    clean = tta.analyze(source, None, target, QUICK, KEY)
    features = np.asarray(target.features).copy()
    features[row] = 65504
    spoiled = dataclasses.replace(target, features=features)
    found = tta.analyze(source, None, spoiled, QUICK, KEY)
    assert found.score is not None
    assert clean.score is not None
    moved = abs(found.score - clean.score)
    assert moved <= 0.05
    assert any(f"target: row {row} makes up" in w for w in found.warnings)
    assert not any("makes up" in w for w in clean.warnings)


@pytest.mark.parametrize("objective", ["score", "tight", "oscillation"])
def test_the_floor_is_part_of_the_classifier(pair, objective):
    config = dataclasses.replace(QUICK, objective=objective, steps=20)
    result = tta.analyze(pair[0], None, pair[1], config, KEY)
    assert result.info["floor"] == result.transforms.floor >= FLOORS[0]
    far = result.predict_proba(1e6 * np.eye(12, dtype=np.float32))
    shares = np.exp(result.transforms.log_joint).sum(1)
    assert (far >= 0.999 * result.transforms.floor * shares).all()
    none = dataclasses.replace(config, floor=0.0)
    assert tta.analyze(pair[0], None, pair[1], none, KEY).transforms.floor == 0


def test_nothing_is_mixed_into_what_is_not_learned(pair):
    for config in (
        dataclasses.replace(QUICK, learn="none"),
        tta.Config(objective="published", steps=2, rungs="tight", bootstrap=0),
    ):
        assert tta.analyze(pair[0], None, pair[1], config, KEY).transforms.floor == 0
    with pytest.raises(ValueError, match=r"floor: found 0\.1; objective 'published'"):
        tta.Config(objective="published", floor=0.1)
    with pytest.raises(ValueError, match="floor: found 1"):
        tta.Config(floor=1.0)
