"""`analyze` from end to end on small tasks: figures, refusals, determinism, compilation
counts, files.
"""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

import tta_jax as tta
from tests.typed import held_out
from tta_jax.analysis.analyze import evaluation_parts

KEY = jax.random.key(0)


def task(n, classes, seed, dim=12, spread=3.0, **options):
    rng = np.random.default_rng(seed)
    labels = np.r_[
        np.arange(classes),
        np.arange(classes),
        rng.integers(0, classes, n - 2 * classes),
    ]
    features = rng.normal(size=(n, dim))
    features[np.arange(n), labels] += spread
    return tta.Task.from_arrays(features, labels, name=f"t{seed}", **options)


@pytest.fixture(scope="module")
def pair():
    return task(320, 4, 0), task(240, 4, 1)


@pytest.fixture(scope="module")
def result(pair):
    return tta.analyze(pair[0], None, pair[1], tta.Config(confidence=0.9), KEY)


def ordered(bound):
    chain = [
        bound.target_loss,
        bound.tight,
        bound.directed,
        bound.oscillation,
        bound.lipschitz,
        bound.theorem,
    ]
    return all(a <= b + 1e-9 * (1 + abs(a)) for a, b in itertools.pairwise(chain))


def test_chain_and_certificates_hold_in_sample_and_held_out(result):
    for part in (result, result.held_out):
        assert ordered(part.bound)
        assert part.certificate.holds
        assert part.certificate.oscillation.lower <= part.certificate.oscillation.upper
        assert np.isfinite(part.bound.theorem)


def test_top_level_figures_are_the_held_out_ones(result):
    assert result.target_loss == result.held_out.bound.target_loss
    assert result.score == 1 - result.target_loss / result.held_out.bound.prior_entropy
    assert result.target_loss != result.bound.target_loss


def test_predictions_reproduce_the_held_out_loss(pair, result):
    source, target = pair
    _, _, _, held = evaluation_parts(source, target, result.config, KEY)[0]
    p = result.predict_proba(np.asarray(target.features)[held])
    loss = -np.log(p[np.arange(len(held)), np.asarray(target.labels)[held]]).mean()
    assert loss == pytest.approx(result.target_loss, rel=1e-5)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)


def test_intervals_contain_the_figures(result):
    for name, (low, high) in result.held_out.intervals.items():
        value = (
            result.score if name == "score" else getattr(result.held_out.bound, name)
        )
        assert low <= value <= high, name


def test_population_statement_lies_above_the_mean(result):
    population = result.held_out.population
    assert population["confidence"] == 0.9
    assert population["expected_loss"] >= result.target_loss
    least = result.transforms.floor * np.exp(result.transforms.log_joint).sum(1).min()
    assert population["largest_loss"] == pytest.approx(-np.log(least))
    far = result.predict_proba(1e6 * np.eye(12, dtype=np.float32))
    assert far.min() >= 0.999 * least > 0


def test_a_clip_makes_it_a_statement_about_the_clipped_loss(pair):
    config = tta.Config(confidence=0.9, clip_loss=2.0, rungs="tight", bootstrap=0)
    result = tta.analyze(pair[0], None, pair[1], config, KEY)
    population = held_out(result).population
    assert population is not None
    assert set(population) == {"confidence", "clip", "expected_clipped_loss"}
    assert population["expected_clipped_loss"] <= population["clip"] == 2.0


def test_same_key_same_bits_and_other_key_other_split(pair, result):
    again = tta.analyze(pair[0], None, pair[1], tta.Config(confidence=0.9), KEY)
    assert again.bound == result.bound
    assert again.held_out == result.held_out
    other = tta.analyze(
        pair[0], None, pair[1], tta.Config(confidence=0.9), jax.random.key(1)
    )
    assert other.held_out != result.held_out


def test_transforms_are_consistent(result):
    transforms = result.transforms
    np.testing.assert_allclose(np.asarray(transforms.label_mixing).sum(0), 1, rtol=1e-6)
    mixed = np.asarray(transforms.label_mixing) @ np.asarray(transforms.prior)
    np.testing.assert_allclose(mixed, np.exp(transforms.log_joint).sum(1), rtol=1e-6)
    z = np.random.default_rng(0).normal(size=(5, 12))
    with jax.enable_x64(True):
        back = transforms.feature_map.inverse(transforms.feature_map(z))
    np.testing.assert_allclose(back, z, atol=1e-6)


class CountCompilations:
    def __enter__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._on)
        return self

    def _on(self, event, duration_secs, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"

    def __exit__(self, *_):
        jax.monitoring.clear_event_listeners()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["score", "oscillation"])
def test_second_call_compiles_nothing(objective):
    source, target = task(200, 3, 5), task(150, 3, 6)
    base = tta.Config(objective=objective, steps=10, l2=0.01)
    tta.analyze(source, None, target, base, KEY)
    tta.analyze(source, None, target, base, jax.random.key(1))
    with CountCompilations() as compilations:
        tta.analyze(source, None, target, base, jax.random.key(2))
        for change in (
            {"learning_rate": 0.003},
            {"epsilon": 0.03},
            {"l2": 0.1},
            {"clip": 4.0},
            {"interval": 0.9},
        ):
            tta.analyze(source, None, target, dataclasses.replace(base, **change), KEY)
    assert compilations.count == 0


@pytest.mark.slow
def test_folds_report_means_and_refit_on_everything(pair):
    result = tta.analyze(
        pair[0], None, pair[1], tta.Config(folds=3, rungs="tight"), KEY
    )
    held = held_out(result)
    assert held.folds == 3
    assert held.items == len(pair[1])
    assert result.sizes["target"] == len(pair[1])
    assert held.bound.target_loss <= held.bound.tight
    assert held.bound.oscillation == np.inf
    assert "rungs" in result.certificate.reasons["oscillation"]


def test_no_holdout_no_score(pair):
    result = tta.analyze(
        pair[0], None, pair[1], tta.Config(holdout=0, rungs="tight"), KEY
    )
    assert result.held_out is None
    assert result.score is None
    assert result.target_loss == result.bound.target_loss


def test_user_head_is_not_touched(pair):
    head = tta.fit_head(pair[0], l2=0.01)
    result = tta.analyze(pair[0], head, pair[1], tta.Config(rungs="tight"), KEY)
    np.testing.assert_array_equal(result.head.weight, head.weight)
    np.testing.assert_array_equal(result.head.bias, head.bias)
    refitted = tta.analyze(
        pair[0], head, pair[1], tta.Config(rungs="tight", refit_head=True), KEY
    )
    assert not np.array_equal(refitted.head.weight, head.weight)


def test_lipschitz_head_is_certified(pair):
    result = tta.analyze(
        pair[0], None, pair[1], tta.Config(rungs="tight", lipschitz=0.7), KEY
    )
    assert float(tta.lipschitz_constant(result.head.weight)) <= 0.7 * (1 + 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("classes_s", "classes_t"), [(6, 3), (3, 6)])
def test_class_numbers_may_differ(classes_s, classes_t):
    source, target = task(300, classes_s, 2), task(260, classes_t, 3)
    config = tta.Config(divide_source=False)
    result = tta.analyze(source, None, target, config, KEY)
    assert result.certificate.holds
    assert held_out(result).certificate.holds
    assert ordered(held_out(result).bound)
    prior = np.asarray(result.transforms.prior)
    assert (prior > 0).sum() == min(classes_s, classes_t)


# One without parameters, one with a group structure, one free and one that is not
# affine; each compiles for ten seconds.
# That every family inverts, pulls and differentiates is tested on its own.
@pytest.mark.slow
@pytest.mark.parametrize("family", ["identity", "rotation", "dense", "coupling_layers"])
def test_families_learn_by_gradient(pair, family):
    config = tta.Config(
        objective="oscillation", feature_map=family, steps=10, batch_size=16
    )
    result = tta.analyze(pair[0], None, pair[1], config, KEY)
    assert result.certificate.holds
    assert held_out(result).certificate.holds
    if family == "coupling_layers":
        assert result.bound.lipschitz == np.inf
        assert "not affine" in result.certificate.reasons["lipschitz"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["tight", "theorem", "published"])
def test_other_objectives(pair, objective):
    result = tta.analyze(
        pair[0], None, pair[1], tta.Config(objective=objective, steps=10), KEY
    )
    assert result.certificate.holds
    assert held_out(result).certificate.holds
    if objective == "published":
        assert result.info[
            "published_lipschitz_constant"
        ] <= result.bound.lipschitz_constant * (1 + 1e-9)


@pytest.mark.parametrize("learn", ["none", "map"])
def test_a_random_assignment_is_one_and_costs_more(pair, learn):
    source, target = pair

    def config(how):
        return tta.Config(learn=learn, assignment=how, rungs="tight", bootstrap=0)

    def run(how, seed):
        return tta.analyze(source, None, target, config(how), jax.random.key(seed))

    mixings = [
        np.asarray(run("random", seed).transforms.coupling) > 0 for seed in range(6)
    ]
    assert all((m.sum(1) == 1).all() for m in mixings)
    assert min(target.num_classes, source.num_classes) == min(
        m.any(0).sum() for m in mixings
    )  # distinct while there are enough
    assert len({m.tobytes() for m in mixings}) > 1
    if learn == "none":
        random = np.mean([run("random", seed).bound.tight for seed in range(6)])
        assert run("cost", 0).bound.tight < random


@pytest.mark.slow
def test_optimising_oscillation_lowers_its_validation_value(pair):
    result = tta.analyze(
        pair[0],
        None,
        pair[1],
        tta.Config(objective="oscillation", steps=60, restarts=2),
        KEY,
    )
    assert result.info["validation"].shape == (2,)
    assert "best validation" in result.stopped


@pytest.mark.slow
def test_more_steps_do_not_harm_small_targets():
    source, target = (
        task(300, 5, 8, dim=300, spread=4.0),
        task(100, 5, 9, dim=300, spread=4.0),
    )
    start = tta.analyze(source, None, target, tta.Config(steps=0, rungs="tight"), KEY)
    more = tta.analyze(source, None, target, tta.Config(steps=300, rungs="tight"), KEY)
    if "kept" in more.stopped:
        assert more.target_loss == start.target_loss
    else:
        assert more.target_loss < start.target_loss


def test_unlabelled_target_rests_on_pseudo_labels(pair):
    source, target = pair
    blind = tta.Task.from_arrays(np.asarray(target.features), None)
    result = tta.analyze(source, None, blind, tta.Config(rungs="tight"), KEY)
    assert result.held_out is None
    assert result.score is None
    assert "no certificate for the true loss" in result.certificate.covers
    truth = (result.predict_proba(target.features).argmax(1) == target.labels).mean()
    assert truth > 0.8  # the classes of this source are the target's
    assert "pseudo-labels" in result.summary()


def test_partly_labelled_target_is_judged_on_true_labels(pair):
    source, target = pair
    known = np.arange(len(target)) < 80
    part = tta.Task.from_arrays(
        np.asarray(target.features), np.asarray(target.labels), labelled=known
    )
    result = tta.analyze(source, None, part, tta.Config(rungs="tight"), KEY)
    held = held_out(result)
    assert held.items == 20
    assert held.certificate.covers == "the labels given"
    assert "pseudo-labels" in result.covers


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s, t: (s, task(100, 4, 1, dim=5)), "features"),
        (
            lambda s, t: (
                s,
                tta.Task.from_arrays(np.asarray(t.features), np.zeros(len(t), int)),
            ),
            "single class",
        ),
        (
            lambda s, t: (tta.Task.from_arrays(np.asarray(s.features), None), t),
            "no labels",
        ),
        (lambda s, t: (np.asarray(s.features), t), "source"),
        (
            lambda s, t: (
                s,
                tta.Task.from_arrays(
                    np.asarray(t.features),
                    np.asarray(t.labels),
                    groups=np.asarray(t.labels),
                ),
            ),
            "class",
        ),
    ],
)
def test_bad_pairs_are_refused_in_a_sentence(pair, change, word):
    source, target = change(*pair)
    with pytest.raises(ValueError, match=word):
        tta.analyze(source, None, target, tta.Config(), KEY)


@pytest.mark.parametrize(
    "bad",
    [
        {"objective": "best"},
        {"holdout": 1.0},
        {"folds": 1},
        {"steps": -1},
        {"epsilon": 0.0},
        {"l2": -1.0},
        {"confidence": 2.0},
        {"feature_map": "x"},
    ],
)
def test_bad_configurations_name_the_field(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        tta.Config(**bad)


def test_bad_heads_are_refused(pair):
    with pytest.raises(ValueError, match="transposed"):
        tta.analyze(pair[0], tta.SoftmaxHead(np.zeros((12, 4)), np.zeros(4)), pair[1])
    with pytest.raises(ValueError, match="NaN"):
        tta.analyze(
            pair[0], tta.SoftmaxHead(np.full((4, 12), np.nan), np.zeros(4)), pair[1]
        )


def test_save_load_bit_for_bit(result, tmp_path):
    result.save(tmp_path / "a.tta")
    loaded = tta.Analysis.load(tmp_path / "a.tta")
    assert loaded.bound == result.bound
    assert loaded.held_out == result.held_out
    assert loaded.config == result.config
    for a, b in zip(
        jax.tree.leaves((result.transforms, result.head, result.target_scaler)),
        jax.tree.leaves((loaded.transforms, loaded.head, loaded.target_scaler)),
        strict=True,
    ):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)
    assert loaded.summary() == result.summary()
    assert json.dumps(loaded.to_dict()) == json.dumps(result.to_dict())


def test_random_labels_score_nothing():
    rng = np.random.default_rng(0)
    source = task(300, 3, 0)
    target = tta.Task.from_arrays(rng.normal(size=(400, 12)), rng.integers(0, 3, 400))
    result = tta.analyze(source, None, target, tta.Config(rungs="tight"), KEY)
    assert result.score is not None
    assert result.score < 0.1
    assert result.certificate.holds
