"""What pairs of tasks may be like: heads in their own coordinates, items in common,
groups, lone classes, other units.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

import tta_jax as tta
from tests.typed import held_out
from tta_jax.analysis.analyze import evaluation_parts
from tta_jax.fitting.logistic_regression import decay_path

N, DIM, CLASSES = 240, 8, 3
TIGHT = tta.Config(rungs="tight", bootstrap=0)
KEY = jax.random.key(0)


def sample(seed, shift=0.0, n=N, shares=(0.5, 0.3, 0.2)):
    rng = np.random.default_rng(seed)
    y = rng.choice(CLASSES, n, p=shares)
    y[:CLASSES] = np.arange(CLASSES)
    return (rng.normal(size=(n, DIM)) + 4 * np.eye(CLASSES, DIM)[y] + shift).astype(
        np.float32
    ), y


@pytest.fixture(scope="module")
def far():
    """Two samples of one task, far from the origin, and the head of one of them."""
    (z, y), (x, v) = sample(0, 20.0), sample(1, 20.0, shares=(0.2, 0.3, 0.5))
    source = tta.Task.from_arrays(z, y)
    return source, tta.fit_head(source, l2=1e-3), x, v


def test_a_head_of_ones_own_names_unlabelled_items_in_its_own_coordinates(far):
    source, head, x, v = far
    result = tta.analyze(source, head, tta.Task.from_arrays(x, None), TIGHT, KEY)
    assert (result.predict_proba(x).argmax(1) == v).mean() > 0.9
    assert "pseudo-labels" in result.stopped


def test_a_head_of_ones_own_without_a_map_is_itself(far):
    source, head, x, v = far
    result = tta.analyze(
        source,
        head,
        tta.Task.from_arrays(x, v),
        dataclasses.replace(TIGHT, learn="none"),
        KEY,
    )
    np.testing.assert_allclose(
        result.predict_proba(x), head.predict_proba(x), atol=1e-4
    )


def test_heads_are_chosen_on_items_of_every_class_however_they_are_ordered():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(40), 250)  # more than are looked at
    x = (rng.normal(size=(len(y), 40)) + 8 * np.eye(40)[y]).astype(np.float32)
    head = decay_path(x, y, np.ones(len(y)), 40).head(1e-3)
    assert (np.asarray(head.logits(x)).argmax(1) == y).mean() > 0.95


def test_items_in_common_do_not_leak_from_one_task_into_the_others_evaluation():
    rng = np.random.default_rng(0)
    same = tta.Task.from_arrays(rng.normal(size=(150, 200)), rng.integers(0, 2, 150))
    result = tta.analyze(
        same, None, same, dataclasses.replace(TIGHT, learn="none", l2=1e-4), KEY
    )
    assert (
        held_out(result).bound.target_accuracy < 0.75
    )  # random labels; 0.9 with the leak


def test_large_source_classes_are_thinned_and_it_is_said():
    source, target = tta.Task.from_arrays(*sample(0)), tta.Task.from_arrays(*sample(1))
    few = tta.analyze(
        source, None, target, dataclasses.replace(TIGHT, source_per_class=40), KEY
    )
    (learn, held, _, _), *_ = evaluation_parts(source, target, few.config, KEY)
    learned = np.bincount(np.asarray(source.labels)[learn])
    assert (learned == 40).all()
    assert few.sizes["source"] == len(learn)
    kept = len(learn) + len(held)
    assert few.sizes["source_used"] == kept < N
    assert f"{N} thinned to {kept}" in few.summary()
    every = tta.analyze(
        source, None, target, dataclasses.replace(TIGHT, source_per_class=0), KEY
    )
    assert every.sizes["source_used"] == N
    assert "thinned" not in every.summary()


def test_source_classes_that_cannot_be_held_out_take_no_part():
    x, y = sample(0)
    y[-1] = 3
    result = tta.analyze(
        tta.Task.from_arrays(x, y), None, tta.Task.from_arrays(*sample(1)), TIGHT, KEY
    )
    assert np.asarray(result.transforms.prior)[3] == 0
    assert any("take no part" in w and "3" in w for w in result.warnings)


def test_choices_inside_a_single_group_are_made_on_items_and_say_so():
    x, v = sample(1)
    target = tta.Task.from_arrays(x, v, groups=np.arange(N) % 2)
    result = tta.analyze(
        tta.Task.from_arrays(*sample(0)),
        None,
        target,
        dataclasses.replace(TIGHT, confidence=0.9),
        KEY,
    )
    assert held_out(result).bound.target_loss < 0.6
    assert held_out(result).population is None
    assert any("groups" in w for w in result.warnings)
    assert any("population" in w for w in result.warnings)


@pytest.mark.parametrize("unit", [1e-3, 1e4, 1e8])
def test_units_of_the_features_do_not_matter_without_standardisation(unit):
    (z, y), (x, v) = sample(0), sample(1)
    config = dataclasses.replace(TIGHT, standardize=False, holdout=0)
    losses = [
        tta.analyze(
            tta.Task.from_arrays(z * c, y),
            None,
            tta.Task.from_arrays(x * c, v),
            config,
            KEY,
        ).target_loss
        for c in (1.0, unit)
    ]
    np.testing.assert_allclose(losses[1], losses[0], atol=0.02)


def test_float64_throughout(x64):
    source, target = (
        tta.Task.from_arrays(x.astype("d"), y.astype("i"))
        for x, y in (sample(0), sample(1))
    )
    result = tta.analyze(source, None, target, TIGHT, KEY)
    assert held_out(result).certificate.holds is not None
    assert held_out(result).bound.target_loss < 0.6


@pytest.mark.slow
def test_a_fitted_head_keeps_to_its_constant_while_it_is_learned():
    config = dataclasses.replace(
        TIGHT,
        objective="oscillation",
        lipschitz=0.3,
        steps=20,
        batch_size=16,
        feature_map="diagonal",
    )
    result = tta.analyze(
        tta.Task.from_arrays(*sample(0)),
        None,
        tta.Task.from_arrays(*sample(1)),
        config,
        KEY,
    )
    assert tta.lipschitz_constant(result.head.weight) <= 0.3 * (1 + 1e-6)


def test_figures_are_json_even_where_they_are_not_finite():
    target = tta.Task.from_arrays(*sample(1))
    result = tta.analyze(
        tta.Task.from_arrays(*sample(0)),
        None,
        target,
        dataclasses.replace(TIGHT, clip=np.inf),
        KEY,
    )
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["config"]["clip"] is None
    assert plain["in_sample"]["theorem"] is None
    for bad, word in (
        ([["a"] * DIM], "dtype"),
        (np.full((1, DIM), 1e300), "beyond float32"),
        (np.ones(DIM), "shape"),
    ):
        with pytest.raises(ValueError, match=f"features: .*{word}"):
            result.predict_proba(bad)


@pytest.mark.parametrize(
    ("argument", "value"), [("config", {"holdout": 0.2}), ("key", 0), ("key", "seed")]
)
def test_wrong_kinds_are_named(argument, value):
    source, target = tta.Task.from_arrays(*sample(0)), tta.Task.from_arrays(*sample(1))
    with pytest.raises(ValueError, match=f"{argument}: found {type(value).__name__}"):
        tta.analyze(
            source, None, target, **{"config": TIGHT, "key": KEY, argument: value}
        )


@pytest.mark.parametrize("epsilon", [1e-30, 1e30])
def test_certificates_hold_for_any_regularisation(epsilon):
    (z, y), (x, v) = sample(0), sample(1)
    ones = np.ones(N, bool)
    head = tta.fit_head(tta.Task.from_arrays(z, y), l2=1e-2)
    transforms = tta.Transforms(
        np.log(np.diag(np.bincount(v) / N) + 1e-300), tta.feature_maps.Identity()
    )
    arguments = (transforms, tta.Samples(z, y, ones), head, tta.Samples(x, v, ones))
    assert tta.certify(*arguments, epsilon=epsilon, max_iterations=20).certificate.holds
    bad: dict[str, Any]
    for bad in ({"epsilon": np.inf}, {"rungs": "tigth"}, {"max_iterations": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            tta.certify(*arguments, **bad)
