"""Source classes are chosen with the target in view."""

import jax
import numpy as np

import tta_jax as tta
from tta_jax.fitting import prepare
from tta_jax.fitting.assignment import match_classes
from tta_jax.fitting.fit_pair import class_means, fit_source

CLASSES, WANTED, DIM = 20, 4, 24


def arrays(seed, role, labels, means, rng):
    x = (rng.normal(size=(len(labels), DIM)) + means[labels]).astype(np.float32)
    names = [f"c{k}" for k in range(labels.max() + 1)]
    task = tta.Task.from_arrays(x, labels, class_names=names)
    every = np.arange(len(task))
    split = prepare.TaskSplit.of_indices(task, every, every, every, every)
    config, seed = tta.Config(), np.random.SeedSequence(seed)
    if role == "source":
        scaler = prepare.source_scaler(task, split, config, None)
        return prepare.prepare_source(task, split, scaler, config, None, seed)
    scaler = prepare.target_scaler(task, split, config, None)
    return prepare.prepare_target(task, split, scaler, config, seed)[0]


@jax.jit
def matched(source, target):
    classes = match_classes(fit_source(source), class_means(target), target.log_prior)
    return classes.source_class[classes.source_of]


def test_classes_that_both_tasks_have_are_assigned_to_each_other():
    """40 targets of 4 classes among 20 of the source: all 160 are found."""
    right = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        means = 1.2 * rng.normal(size=(CLASSES, DIM))
        chosen = rng.choice(CLASSES, WANTED, replace=False)
        source = arrays(seed, "source", np.arange(400) % CLASSES, means, rng)
        target = arrays(seed, "target", np.arange(80) % WANTED, means[chosen], rng)
        right += int((np.asarray(matched(source, target)) == chosen).sum())
    assert right == 160
