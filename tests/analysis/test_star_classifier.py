"""`Config(feature_map="star")`: the star is the classifier of the result."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import tta_jax as tta
from tests.typed import held_out
from tta_jax.analysis.analyze import evaluation_parts
from tta_jax.bounds.star import StarEncoder
from tta_jax.report.html.analysis import analysis_page
from tta_jax.tasks.task import Samples

KEY = jax.random.key(0)
STAR = tta.Config(objective="directed", feature_map="star", bootstrap=100)


def task(n, classes, seed, **options):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = rng.normal(size=(n, 8)).astype(np.float32)
    x[np.arange(n), y] += 3
    return tta.Task.from_arrays(x, y, name=f"t{seed}", **options)


@pytest.fixture(scope="module")
def pair():
    return task(320, 4, 0), task(240, 4, 1)


@pytest.fixture(scope="module", params=["directed", "theorem"])
def result(pair, request):
    config = dataclasses.replace(STAR, objective=request.param, confidence=0.9)
    return tta.analyze(pair[0], None, pair[1], config, KEY)


def of_objective(result):
    related = result.relatedness
    directed = result.config.objective == "directed"
    return related.bound if directed else related.theorem_bound


def test_the_bound_is_that_of_the_star(result):
    assert result.held_out.bound == of_objective(result)
    assert result.held_out.bound.theorem < result.held_out.bound.prior_entropy
    assert result.holds
    assert result.score == 1 - result.target_loss / result.held_out.bound.prior_entropy


def test_folds_are_one_sample(pair):
    config = dataclasses.replace(STAR, folds=3)
    result = tta.analyze(pair[0], None, pair[1], config, KEY)
    held = held_out(result)
    assert held.bound == of_objective(result)
    assert (held.items, held.folds) == (240, 3)


def test_predictions_have_the_held_out_loss_and_accuracy(pair, result):
    source, target = pair
    _, _, _, held = evaluation_parts(source, target, result.config, KEY)[0]
    p = result.predict_proba(np.asarray(target.features)[held])
    labels = np.asarray(target.labels)[held]
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    loss = -np.log(p[np.arange(len(held)), labels]).mean()
    assert loss == pytest.approx(result.target_loss, rel=1e-3)
    assert (p.argmax(1) == labels).mean() == pytest.approx(result.target_accuracy)


def test_any_other_evaluation_of_its_chain_agrees(pair, result):
    """On encoded features the generic chain has the same losses, and its transport,
    which knows no closed form, is no cheaper.
    """
    source, target = pair
    _, held_s, _, held_t = evaluation_parts(source, target, result.config, KEY)[0]

    def encoded(task, rows, encoder):
        x = np.asarray(encoder(np.asarray(task.features)[rows]))
        return Samples(x, np.asarray(task.labels)[rows], np.ones(len(rows), bool))

    found = tta.certify(
        result.transforms,
        encoded(source, held_s, result.source_scaler),
        result.head,
        encoded(target, held_t, result.target_scaler),
    )
    mine = result.held_out.bound
    for name in ("target_loss", "tight", "transformed_source_loss", "prior_entropy"):
        assert getattr(found.bound, name) == pytest.approx(
            getattr(mine, name), rel=1e-3
        )
    for name in ("directed", "oscillation"):
        interval = getattr(found.certificate, name)
        moved = getattr(mine, f"{name}_wasserstein")
        assert interval.lower - 1e-3 <= moved <= interval.upper + 1e-3


def test_intervals_and_the_population_speak_of_the_same_loss(result):
    held = result.held_out
    low, high = held.intervals["target_loss"]
    assert low <= held.bound.target_loss <= high
    assert held.bound.target_loss <= held.population["expected_loss"]
    limit = result.info["scale"] + np.log(4)
    assert held.population["largest_loss"] == pytest.approx(limit, rel=0.05)


def test_it_is_saved_shown_and_written(pair, result, tmp_path):
    result.save(tmp_path / "star.tta")
    again = tta.Analysis.load(tmp_path / "star.tta")
    x = np.asarray(pair[1].features)
    np.testing.assert_array_equal(again.predict_proba(x), result.predict_proba(x))
    assert again.held_out == result.held_out
    json.dumps(result.to_dict())
    assert f"star of least {result.config.objective}" in result.summary()
    page = analysis_page(result, pair[0], pair[1], None).html()
    assert "the star" in page


def test_a_head_of_ones_own_and_pseudo_labels(pair):
    source, target = pair
    found = tta.analyze(source, None, target, STAR, KEY)
    weight = np.zeros((4, 8), np.float32)
    weight[np.arange(4), np.arange(4)] = 2.0
    mine = tta.SoftmaxHead(weight, np.full(4, -3.0, np.float32))
    given = tta.analyze(source, mine, target, STAR, KEY)
    assert held_out(given).bound == of_objective(given)
    assert isinstance(given.source_scaler, StarEncoder)
    np.testing.assert_array_equal(given.source_scaler.head.weight.shape, (4, 8))
    unlabelled = tta.Task.from_arrays(np.asarray(target.features), None)
    guessed = tta.analyze(source, None, unlabelled, STAR, KEY)
    assert guessed.held_out is None
    assert guessed.covers.startswith("pseudo-labels")
    assert guessed.predict_proba(np.asarray(target.features)).shape == (240, 4)
    assert found.covers == "the labels given"
    some = np.arange(240) % 5 > 0
    part = tta.Task.from_arrays(
        np.asarray(target.features), np.asarray(target.labels), labelled=some
    )
    held = tta.analyze(source, None, part, STAR, KEY)
    assert held.covers.startswith("pseudo-labels")
    assert held_out(held).certificate.covers == "the labels given"


def test_too_few_source_classes_are_refused(pair):
    config = dataclasses.replace(STAR, divide_source=False)
    with pytest.raises(ValueError, match="needs a source class for each"):
        tta.analyze(task(120, 2, 5), None, pair[1], config, KEY)
    divided = tta.analyze(task(240, 2, 5), None, pair[1], STAR, KEY)
    assert divided.holds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("objective", "score"),
        ("learn", "map"),
        ("assignment", "random"),
        ("rungs", "tight"),
        ("floor", 0.1),
    ],
)
def test_what_the_star_does_not_have_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: found .*'star' needs"):
        dataclasses.replace(STAR, **{name: value})


def test_a_scan_refines_with_it(pair):
    found = tta.scan([pair[0]], [pair[1]], refine=1, config=STAR)
    (row,) = found.table("refine").to_pylist()
    alone = tta.analyze(pair[0], None, pair[1], STAR, KEY)
    assert row["theorem"] == pytest.approx(held_out(alone).bound.theorem)
    assert row["holds"]
