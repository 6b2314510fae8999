"""The probe's weight decay: of converged heads, and continued beyond an end."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import tta_jax as tta
from tests.test_probes import task
from tta_jax import probes
from tta_jax.tasks.splits import seed_from_key
from tta_jax.tasks.standardizer import Standardizer


def test_the_decay_is_the_best_of_converged_heads():
    train, test = task(7, 80, 6, 3, 0.8), task(8, 60, 6, 3, 0.8)
    found = tta.linear_probe(train, test)
    seed = seed_from_key(jax.random.key(0))
    fold = probes.deal_folds(train, probes.FOLDS, seed)
    x, y = np.asarray(train.features), np.asarray(train.labels)
    x = np.asarray(Standardizer.fit(x, clip=5.0)(x))
    losses = []
    for decay in probes.DECAYS:
        lost = 0.0
        for k in range(probes.FOLDS):
            learn, held = fold != k, fold == k
            model = LogisticRegression(
                C=1 / (decay * learn.sum()), tol=1e-8, max_iter=5000
            ).fit(x[learn], y[learn])
            lost += held.sum() * log_loss(
                y[held], model.predict_proba(x[held]), labels=range(3)
            )
        losses.append(lost / len(y))
    mine = losses[int(np.argmin(np.abs(np.log(np.array(probes.DECAYS) / found.l2))))]
    assert mine <= min(losses) * 1.002
    assert not found.at_end


@pytest.mark.parametrize("seed", [0, 1])
def test_labels_without_meaning_want_more_decay_than_the_grid_has(seed):
    rng = np.random.default_rng(seed)
    noise = [
        tta.Task.from_arrays(
            rng.normal(size=(n, 20)).astype(np.float32), rng.integers(0, 2, n)
        )
        for n in (60, 200)
    ]
    found = tta.linear_probe(noise[0], noise[1])
    assert found.widened >= 1
    assert found.l2 > 1
    train, test = (np.asarray(one.labels) for one in noise)
    guess = -np.log(np.bincount(train, minlength=2) / len(train))[test].mean()
    assert found.loss == pytest.approx(guess, rel=0.01)


def test_a_decay_that_is_given_is_no_choice():
    found = tta.linear_probe(task(1, 60, 4, 2), task(2, 40, 4, 2), 0.5)
    assert (found.l2, found.widened, found.at_end) == (0.5, 0, False)
