"""Races among encoders: what is taken, what is claimed, what is looked at."""

import jax
import numpy as np
import pytest
from PIL import Image

import tta_jax as tta
from tta_jax.data import Encoder, Examples, Features
from tta_jax.selection.candidates import split_names
from tta_jax.selection.choice import load_classifier

CLASSES, DIM = 3, 4


def items(number, seed=0):
    """Labels, and what all encoders see of the items."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=number)
    shared = 2.2 * np.eye(CLASSES, DIM)[labels] + rng.normal(size=(number, DIM))
    return labels, shared


def encoded(shared, noise, seed):
    rng = np.random.default_rng(seed)
    return (shared + noise * rng.normal(size=shared.shape)).astype(np.float32)


def ready(number=600, noises=(0.1, 3.0, 0.3), seed=0):
    labels, shared = items(number, seed)
    return {
        name: tta.Task.from_arrays(encoded(shared, noise, k), labels, name="made up")
        for k, (name, noise) in enumerate(zip("abc", noises, strict=False))
    }


@pytest.fixture(scope="module")
def chosen():
    return tta.choose(features=ready(), until="sure")


def test_a_bad_encoder_leaves_and_a_good_one_is_taken(chosen):
    assert chosen.best in ("a", "c")
    assert "b" not in chosen.equivalent
    by_name = {one.name: one for one in chosen.candidates}
    assert by_name["b"].left == 150
    assert by_name["b"].items == 150 < by_name[chosen.best].items
    assert by_name["b"].interval[0] > 0
    assert by_name["b"].why.startswith("worse by at least")
    assert by_name[chosen.best].why == "best"


def test_figures_are_those_of_the_library_s_probe(chosen):
    """The last classifier of the best: learned from the first half of what was seen."""
    last = chosen.candidates[0].rounds[-1]

    assert last.learned + last.judged == chosen.seen
    assert last.score_interval[0] < last.score < last.score_interval[1]
    assert last.accuracy_interval[0] < last.accuracy < last.accuracy_interval[1]
    task = ready()[chosen.best]
    half, rest = np.arange(last.learned), np.arange(last.learned, chosen.seen)
    probe = tta.linear_probe(task.take(half), task.take(rest))
    assert last.accuracy == pytest.approx(probe.accuracy, abs=0.08)


def test_the_same_key_gives_the_same_choice(chosen):
    again = tta.choose(features=ready(), until="sure")
    other = tta.choose(features=ready(), until="sure", key=jax.random.key(1))

    def figures(found):
        return [
            (one.name, one.difference, one.rounds[-1].loss_error)
            for one in found.candidates
        ]

    assert figures(again) == figures(chosen)
    assert figures(other) != figures(chosen)


def test_enough_looks_at_less_than_sure():
    tasks = ready(2000, (0.3, 1.6))

    enough = tta.choose(features=tasks)
    sure = tta.choose(features=tasks, until="sure")

    assert enough.best == sure.best == "a"
    assert enough.seen <= sure.seen
    assert "less than a quarter of the margin" in enough.stop or enough.seen == 200


def test_copies_of_one_encoder_are_not_told_apart():
    tasks = ready(400, (0.3, 0.3))

    found = tta.choose(features=tasks, until="sure")

    assert set(found.equivalent) == {"a", "b"}
    assert found.stop == "all items were looked at"
    assert "not enough data to tell it from" in found.summary()


def test_of_equal_ones_the_cheapest_is_taken():
    tasks = ready(4000, (0.3, 0.3))
    costs = {"a": 0.5, "b": 0.001}

    found = tta.choose(features=tasks, until="sure", margin=0.2, costs=costs)

    assert found.best == "b"
    assert set(found.equivalent) == {"a", "b"}


def test_costs_are_what_items_took():
    found = tta.choose(features=ready(), costs={"a": 0.5, "b": 0.25, "c": 0.125})

    for one in found.candidates:
        assert one.seconds == pytest.approx(
            one.items * {"a": 0.5, "b": 0.25, "c": 0.125}[one.name]
        )


def test_exact_copies_are_judged_once():
    """An item that was learned from would be known by heart."""
    labels, shared = items(120)
    labels, shared = np.tile(labels, 5), np.tile(shared, (5, 1))
    task = tta.Task.from_arrays(encoded(shared, 0.0, 0), labels)

    found = tta.choose(features={"a": task})

    assert sum(r.judged for r in found.candidates[0].rounds) < 120


def test_groups_are_learned_from_or_judged_but_never_both():
    """With labels that only the group tells, nothing can be learned."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 10)
    labels = rng.integers(2, size=60)[groups]
    features = np.eye(60, dtype=np.float32)[groups] + 0.01 * rng.normal(
        size=(600, 60)
    ).astype(np.float32)

    alone, grouped = (
        tta.choose(
            features={"a": tta.Task.from_arrays(features, labels, groups=given)},
            until="sure",
        )
        for given in (None, groups)
    )

    assert alone.candidates[0].rounds[-1].accuracy > 0.95
    assert grouped.candidates[0].rounds[-1].accuracy < 0.7


def test_unlabelled_items_are_not_looked_at():
    labels, shared = items(300)
    labels = labels.astype(object)
    labels[::2] = None
    task = tta.Task.from_arrays(encoded(shared, 0.1, 0), labels)

    found = tta.choose(features={"a": task}, until="sure")

    assert found.total == 150


@pytest.mark.parametrize(("budget", "most"), [("300items", 300), ("90items", 90)])
def test_a_budget_of_items_is_kept_to(budget, most):
    found = tta.choose(features=ready(), budget=budget, until="sure")

    assert sum(one.items for one in found.candidates) <= most
    assert found.stop == "the budget is used up"


def test_a_budget_of_time_ends_the_race():
    costs = {"a": 1000.0, "b": 1000.0, "c": 1000.0}

    found = tta.choose(features=ready(), budget="1s", costs=costs, until="sure")

    assert found.seen == 150
    assert found.stop == "the budget is used up"


def test_progress_tells_where_the_race_stands():
    told = []

    tta.choose(features=ready(), progress=told.append)

    assert {now.seen for now in told} >= {0, 150}
    assert all(len(now.rows) == 3 for now in told)
    assert told[-1].rows[0]["score"] > 0.5


def test_one_encoder_is_judged_alone():
    found = tta.choose(features={"a": ready()["a"]})

    assert found.best == "a"
    assert found.equivalent == ("a",)
    assert "right for" in found.summary()


def test_a_choice_is_saved_and_loaded(chosen, tmp_path):
    chosen.save(tmp_path / "choice.tta")

    again = tta.Choice.load(tmp_path / "choice.tta")

    assert again.to_dict() == chosen.to_dict()
    task = ready()[chosen.best]
    assert np.array_equal(again.fit()(task), chosen.fit()(task))
    assert np.array_equal(load_classifier(tmp_path)(task), chosen.fit()(task))
    chosen.fit().save(tmp_path / "classifier.tta")
    with pytest.raises(ValueError, match="holds EncoderClassifier, not a choice"):
        tta.Choice.load(tmp_path / "classifier.tta")


def test_a_classifier_learns_from_more_data_when_it_is_given(chosen):
    task = ready()[chosen.best]

    more = chosen.fit(task)

    assert more.learned == 600 > chosen.fit().learned - 1
    assert (
        np.mean(
            [a == str(b) for a, b in zip(more.predict(task), task.labels, strict=True)]
        )
        > 0.8
    )


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({}, r"^data: give labelled data and encoders"),
        ({"features": {}}, r"^features: give a mapping"),
        ({"features": {"a": 3}}, r"^features: found int for 'a'"),
        ({"budget": "soon"}, r"^budget: found 'soon'"),
        ({"budget": "20items"}, r"^budget: 20 items are too few for 3 encoders"),
        ({"confidence": 1.0}, r"^confidence: found 1.0"),
        ({"margin": 0.0}, r"^margin: found 0.0"),
        ({"measure": "luck"}, r"^measure: found 'luck'"),
        ({"until": "never"}, r"^until: found 'never'"),
        ({"costs": {"z": 1.0}}, r"^costs: 'z' is no candidate"),
        ({"costs": {"a": -1.0}}, r"^costs: found -1.0 for 'a'"),
        ({"data": [1], "encoders": ["a"]}, r"^features: found them and data"),
    ],
)
def test_refusals_name_the_argument(about, message):
    given = (
        about if not about or "features" in about else {"features": ready(60)} | about
    )

    with pytest.raises(ValueError, match=message):
        tta.choose(**given)


def test_features_of_other_items_are_refused():
    tasks = ready(60, (0.1, 0.1))
    labels, shared = items(60, seed=1)
    tasks["b"] = tta.Task.from_arrays(encoded(shared, 0.1, 0), labels)

    with pytest.raises(ValueError, match=r"'b' has other items or labels than 'a'"):
        tta.choose(features=tasks)


@pytest.mark.parametrize(("number", "classes"), [(10, 2), (60, 1)])
def test_too_little_data_is_refused(number, classes):
    labels = np.arange(number) % classes
    task = tta.Task.from_arrays(np.ones((number, 2)) * labels[:, None], labels)

    with pytest.raises(ValueError, match=r"^data: "):
        tta.choose(features={"a": task})


def test_names_are_split_at_commas_but_settings_are_not():
    text = "squeezenet, onnx:a.onnx#output=x,size=224,hf:b#pool=mean,minilm"

    assert split_names(text) == [
        "squeezenet",
        "onnx:a.onnx#output=x,size=224",
        "hf:b#pool=mean",
        "minilm",
    ]


# -- raw items -------------------------------------------------------------------------


def pictures(number, seed=0, damaged=()):
    """Pictures whose class is how bright they are."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=number)
    made = []
    for i, label in enumerate(labels):
        pixels = rng.integers(0, 120, (8, 8, 3), np.uint8) + np.uint8(100 * label)
        made.append(b"no picture" if i in damaged else Image.fromarray(pixels))
    return Examples(made, "image", labels, ("dark", "light"), name="pictures")


def encoder(name, scale, seen=None):
    """An encoder that sees how bright a picture is, less and less with `scale`."""
    rng = np.random.default_rng(0)

    def prepare(picture):
        if seen is not None:
            seen.append(1)
        return np.asarray(picture, np.float32).reshape(-1) / 255

    def apply(weight, arrays):
        return arrays @ weight

    weight = rng.normal(size=(192, 5)).astype(np.float32) + scale
    return Encoder(name, "image", prepare, lambda: (apply, weight), identity=name)


def test_raw_items_are_encoded_round_by_round(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    seen: list[int] = []
    data = pictures(500)
    encoders = [encoder("good", 1.0, seen), encoder("poor", 0.0)]

    found = tta.choose(data, encoders, cache=tmp_path, until="sure")

    assert len(seen) == found.candidates[0].items <= 500
    assert {one.name for one in found.candidates} == {"good", "poor"}
    known = len(seen)
    again = tta.choose(data, encoders, cache=tmp_path, until="sure")
    assert len(seen) == known  # all of it was kept
    assert again.best == found.best
    for one in again.candidates:  # what was read from the cache has cost as much
        before = next(c for c in found.candidates if c.name == one.name)
        assert one.cost >= 0.99 * before.cost > 0
    new = pictures(50, seed=1)
    predicted = found.fit().predict(Examples(new.items, "image"))
    names = ("dark", "light")
    right = [a == names[b] for a, b in zip(predicted, new.labels, strict=True)]
    assert np.mean(right) > 0.9


def test_an_item_that_one_cannot_read_is_left_out_for_all():
    data = pictures(120, damaged=(3, 50))
    encoders = {"one": encoder("one", 1.0), "two": encoder("two", 1.0)}

    with pytest.raises(ValueError, match="not a readable picture"):
        tta.choose(data, encoders, cache=False, until="sure")
    found = tta.choose(data, encoders, cache=False, on_error="skip", until="sure")

    assert [what for what, _ in found.skipped] == ["item 3", "item 50"] or {
        what for what, _ in found.skipped
    } == {"item 3", "item 50"}
    assert {one.items for one in found.candidates} == {120}
    assert found.candidates[0].compared == 0  # the best with itself


def test_an_encoder_that_was_an_object_is_asked_for_again(tmp_path):
    data = pictures(60)
    found = tta.choose(data, [encoder("mine", 1.0)], cache=False)
    found.save(tmp_path / "choice.tta")

    kept = tta.Choice.load(tmp_path / "choice.tta").fit()

    with pytest.raises(ValueError, match=r"^data: found features of shape|^encoder: "):
        kept(data)
    assert kept.with_encoder(encoder("mine", 1.0))(data, cache=False).shape == (60, 2)
    with pytest.raises(ValueError, match="is not the one that was learned from"):
        kept.with_encoder(encoder("other", 1.0))


@pytest.mark.parametrize(
    ("encoders", "message"),
    [
        (["efficientnet-lite9"], r"^encoder: 'efficientnet-lite9' is unknown"),
        ("minilm", r"takes text items"),
        ([], r"^encoders: found none"),
        (3, r"^encoders: found int"),
        ([encoder("a", 1.0), encoder("a", 0.0)], r"^encoders: 'a' is named twice"),
    ],
)
def test_other_encoders_are_refused(encoders, message):
    with pytest.raises(ValueError, match=message):
        tta.choose(pictures(30), encoders, cache=False)


def test_data_without_labels_are_refused():
    bare = Examples(pictures(30).items, "image", name="bare")

    with pytest.raises(ValueError, match=r"^data: 'bare' has no labels"):
        tta.choose(bare, [encoder("a", 1.0)], cache=False)


def test_features_as_they_lie_in_files_serve_as_well():
    task = ready(60)["a"]
    found = Features(np.asarray(task.features), np.asarray(task.labels))

    assert tta.choose(features={"a": found}).best == "a"


def test_items_that_are_all_right_promise_no_certainty():
    labels, shared = items(400)
    apart = 9 * np.eye(CLASSES, DIM)[labels] + 0.01 * shared

    found = tta.choose(
        features={"a": tta.Task.from_arrays(apart.astype(np.float32), labels)},
        until="sure",
    )

    assert found.candidates[0].rounds[-1].accuracy == 1.0
    assert found.curve
    assert all(more.accuracy[1] < 1.0 for more in found.curve)


def test_one_group_leaves_nothing_to_judge():
    labels, shared = items(60)
    task = tta.Task.from_arrays(
        encoded(shared, 0.1, 0), labels, groups=np.zeros(60, int)
    )
    told = []

    with pytest.raises(ValueError, match=r"^data: no item of .* can be judged"):
        tta.choose(features={"a": task, "b": task}, progress=told.append)
