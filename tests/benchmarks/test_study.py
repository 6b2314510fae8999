"""The study's machinery: statistics by their definitions, work that is kept and taken
up again, what a configuration may say.
"""

import json
import re
import time

import numpy as np
import pytest

import tta_jax as tta
from benchmarks.study import __main__ as study
from benchmarks.study import report, tables, tasks
from benchmarks.study.features import Grid
from benchmarks.study.parts import gathered, read_part, write_part
from benchmarks.study.report import Table, publish
from benchmarks.study.settings import HERE, read
from benchmarks.study.store import Store, Unit
from benchmarks.study.tasks import Recipe, open_task
from tta_jax.data.examples import Examples, picture
from tta_jax.data.prepare import prepare_task
from tta_jax.tasks.subdivision import with_enough_classes


@pytest.fixture(scope="module")
def prepared_digits(tmp_path_factory):
    """A folder of this module's own that holds the digits as a TFDS data set."""
    pytest.importorskip("tensorflow_datasets", reason="install tta-jax[data]")
    folder = tmp_path_factory.mktemp("tfds")
    prepare_task("digits", folder)
    return folder


@pytest.fixture
def digits(prepared_digits, monkeypatch):
    """Let the study find the digits where `prepared_digits` put them."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared_digits))


def rows(n=40, targets=8, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "target": f"t{i % targets}",
            "source": f"s{i // targets}",
            "x": rng.normal(),
            "y": rng.normal(),
            "group": "trained g",
        }
        for i in range(n)
    ]


def test_correlations_are_pearsons_and_draw_whole_targets():
    found = rows()
    x, y = tables.column(found, "x"), tables.column(found, "y")
    targets = np.array([row["target"] for row in found])
    one = tables.correlation(x, y, targets)
    np.testing.assert_allclose(one["value"], np.corrcoef(x, y)[0, 1])
    assert one["low"] < one["value"] < one["high"]
    # Five copies of every target's mean say no more than the means do: rows of a target
    # are drawn together.
    means = (
        np.array([x[targets == t].mean() for t in targets]),
        np.array([y[targets == t].mean() for t in targets]),
    )
    few = tables.correlation(means[0][:8], means[1][:8], targets[:8])
    many = tables.correlation(*means, targets)
    np.testing.assert_allclose([many["low"], many["high"]], [few["low"], few["high"]])
    mean = tables.mean(np.where(np.arange(40) < 3, np.nan, x), targets)
    assert mean["pairs"] == 37
    np.testing.assert_allclose(mean["value"], x[3:].mean())
    assert mean["low"] < mean["value"] < mean["high"]


def test_differences_are_paired_and_of_rows_that_have_both():
    found = rows(seed=3)
    for number, row in enumerate(found):
        row |= {"z": row["y"] + 0.1 * row["x"], "same": row["x"], "repeat": number % 2}
    one = tables.difference(found, "z", "x", "y")

    def pearson(name, part):
        return np.corrcoef([[row[k] for row in part] for k in (name, "y")])[0, 1]

    np.testing.assert_allclose(
        one["value"],
        np.mean(
            [
                pearson("z", part) - pearson("x", part)
                for part in (found[::2], found[1::2])
            ]
        ),
    )
    assert one["low"] < one["value"] < one["high"]
    nothing = tables.difference(found, "x", "same", "y")
    assert nothing["value"] == 0
    assert (
        tables.difference([row | {"x": None} for row in found], "x", "z", "y")["pairs"]
        == 0
    )
    some = [
        row | {"x": None} if number > 29 else row for number, row in enumerate(found)
    ]
    np.testing.assert_allclose(
        tables.difference(some, "x", "z", "y")["value"],
        tables.difference(found[:30], "x", "z", "y")["value"],
    )


def test_blanks_and_single_targets_have_no_interval():
    nothing = tables.correlation(
        np.full(3, np.nan), np.ones(3), np.array(["a", "b", "c"])
    )
    assert nothing["pairs"] == 0
    assert np.isnan(nothing["value"])
    alone = tables.mean(np.arange(4.0), np.array(["a"] * 4))
    assert alone["value"] == 1.5
    assert np.isnan(alone["low"])


def test_choices_count_related_sources_and_what_the_choice_costs():
    found = [
        {"target": "a", "source": "right", "good": 2.0, "bad": 0.0, "truth": 0.9},
        {"target": "a", "source": "wrong", "good": 1.0, "bad": 1.0, "truth": 0.5},
        {"target": "b", "source": "right", "good": 0.0, "bad": None, "truth": 0.8},
        {"target": "b", "source": "wrong", "good": 1.0, "bad": None, "truth": 0.7},
    ]
    good, bad = tables.choices(
        found, ["bad", "good"], "truth", {"a": ["right"], "b": ["right"]}
    )
    assert (good["score"], good["targets"], good["related first"]) == ("good", 2, 0.5)
    np.testing.assert_allclose(good["regret"], 0.05)
    assert (bad["targets"], bad["related first"]) == (1, 0.0)
    np.testing.assert_allclose(bad["regret"], 0.4)
    # Each split chooses for itself: in a second one of target "a" the wrong source is
    # put first.
    second = [row | {"repeat": 1, "good": 3 - row["good"]} for row in found[:2]]
    (both,) = tables.choices(
        [*found, *second], ["good"], "truth", {"a": ["right"], "b": ["right"]}
    )
    assert (both["targets"], both["related first"]) == (2, 0.25)
    np.testing.assert_allclose(both["regret"], ((0.0 + 0.4) / 2 + 0.1) / 2)


def test_correlations_within_targets_are_means_over_splits_then_targets():
    first, second = (
        rows(seed=1),
        rows(n=20, targets=4, seed=2),
    )  # the second split has half of the targets
    for row in second:
        row |= {"repeat": 1}
    (one,) = tables.within_targets([*first, *second], ["x"], "y")
    by_hand = []
    for target in range(8):
        parts = [
            [r for r in part if r["target"] == f"t{target}"] for part in (first, second)
        ]
        by_hand.append(
            np.mean(
                [
                    np.corrcoef([r["x"] for r in p], [r["y"] for r in p])[0, 1]
                    for p in parts
                    if p
                ]
            )
        )
    assert one["targets"] == 8
    np.testing.assert_allclose(one["value"], np.mean(by_hand))


def test_correlations_are_means_over_splits():
    first, second = rows(seed=1), rows(seed=2)
    for row in second:
        row |= {"repeat": 1, "y": row["x"]}
    alone = tables.over_pairs(first, "x", "y")
    both = tables.over_pairs([*first, *second], "x", "y")
    assert alone["pairs"] == both["pairs"] == len(first)
    np.testing.assert_allclose(both["value"], (alone["value"] + 1) / 2)
    assert alone["low"] < both["low"] < both["value"] < both["high"] < 1


def test_scales_of_guessing_and_of_chance():
    row = {
        "tight": 0.5,
        "prior_entropy": 2.0,
        "metric_leep": -0.5,
        "target_accuracy": 0.7,
        "largest_share": 0.4,
        "reason": "",
        "probe_loss": 1.0,
        "probe_entropy": 2.0,
        "lipschitz": None,
    }
    (found,) = tables.on_scale([row, row | {"reason": "it broke"}])
    assert (
        found["scaled_tight"],
        found["scaled_probe_loss"],
        found["metric_leep_scaled"],
    ) == (0.75, 0.5, 0.75)
    np.testing.assert_allclose(found["corrected_accuracy"], 0.5)
    assert found["scaled_lipschitz"] is None


def test_no_score_is_ranked_upside_down():
    rng = np.random.default_rng(0)
    scores = [
        "score",
        "corrected_accuracy",
        "scaled_tight",
        "scaled_theorem",
        "scaled_free_probe_loss",
        "metric_otdd",
        "metric_knn",
    ]
    found = []
    for target in "abcde":
        for encoder in "uvwxyz":
            truth = float(rng.random())
            found.append(
                {
                    "encoder": encoder,
                    "target": target,
                    "probe_accuracy": truth,
                    **dict.fromkeys(scores, truth),
                }
            )
    (table,) = report._ranking(found, scores, "targets")
    taus = {row["score"]: row["weighted tau"] for row in table.rows}
    for name in scores:
        assert taus[report._label(name)] == pytest.approx(1)


def unit(run, path, **settings):
    return Unit("part", {"name": "one"}, (path,), settings, run)


def test_work_is_kept_failed_work_is_tried_again_other_contents_are_other_work(
    tmp_path,
):
    data = tmp_path / "data"
    data.write_text("1")
    calls = []

    def broken():
        calls.append("broken")
        raise ValueError("no luck\ntoday")

    store = Store(tmp_path / "units")
    store.do(unit(broken, data))
    assert not store.done(unit(broken, data))
    # Another process of this run leaves it alone; the next run does not.
    assert store.settled(unit(broken, data), since=0)
    assert not store.settled(unit(broken, data), since=time.time() + 60)
    (row,) = store.rows([unit(broken, data)])
    assert row["reason"] == "no luck today"
    fine = unit(lambda: [{"value": 1.0, "odd": float("nan")}], data)
    store.do(fine)
    assert store.done(fine)
    (row,) = store.rows([fine])
    assert (row["name"], row["value"], row["odd"], row["reason"]) == (
        "one",
        1.0,
        None,
        "",
    )
    assert not store.done(unit(broken, data, seed=1))
    store.path(fine).write_text('[{"val')
    with pytest.raises(SystemExit, match=r"damaged.*delete it"):
        list(store.rows([fine]))
    data.write_text("2")
    assert not Store(tmp_path / "units").done(fine)


@pytest.mark.parametrize(("breaks", "status"), [(False, 0), (True, 1)])
def test_work_that_fails_makes_the_run_fail(
    tmp_path, monkeypatch, capsys, breaks, status
):
    data = tmp_path / "data"
    data.write_text("1")

    def run():
        if breaks:
            raise ValueError("no luck")
        return [{"value": 1.0}]

    work = unit(run, data)
    monkeypatch.setattr(
        study, "units_of", lambda part, grid: iter([work] if part == "few" else [])
    )
    monkeypatch.setattr(
        study,
        "_side_by_side",
        lambda words, number: study._work([work], store, 0, 1) or True,
    )
    monkeypatch.setattr("benchmarks.study.report.SECTIONS", ())
    monkeypatch.setattr(
        "sys.argv", ["study", "few", "--quick", "--out", str(tmp_path / "out")]
    )
    monkeypatch.setattr(study.signal, "signal", lambda *_: None)
    store = Store(tmp_path / "out" / "units")
    assert study.main() == status
    assert ("1 failed" in capsys.readouterr().err) is breaks
    assert ("no luck" in (tmp_path / "out" / "report.md").read_text()) is breaks


def test_published_parts_that_were_not_begun_here_stay(tmp_path, monkeypatch):
    settings, data = read(HERE / "quick.toml"), tmp_path / "data"
    data.write_text("1")
    store, work = Store(tmp_path / "other"), unit(lambda: [{"value": 1.0}], data)
    store.do(work)
    table = tmp_path / "published" / "tables" / "few.parquet"
    write_part(table, gathered(settings, store, [work]))
    monkeypatch.setattr(study, "units_of", lambda part, grid: iter([]))
    monkeypatch.setattr("benchmarks.study.report.SECTIONS", ())
    monkeypatch.setattr(study.signal, "signal", lambda *_: None)
    words = [
        "study",
        "--tables",
        "--out",
        str(tmp_path / "out"),
        "--results",
        str(tmp_path / "published"),
    ]
    monkeypatch.setattr("sys.argv", [*words, "--quick"])
    assert study.main() == 0
    assert read_part(table, settings).rows[0]["value"] == 1.0
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match="made with another configuration"):
        study.main()
    monkeypatch.setattr(
        "sys.argv",
        [
            "study",
            "--quick",
            "--tables",
            "--known",
            str(tmp_path),
            "--out",
            str(tmp_path / "out"),
        ],
    )
    with pytest.raises(SystemExit, match="no tables of the study"):
        study.main()


def test_a_part_of_a_task_never_shares_an_item_with_the_other(digits):
    source, target = (
        open_task("t", Recipe("digits"), part, 5000, 0) for part in ("source", "target")
    )
    assert len(source) + len(target) == 1797
    assert not {bytes(item) for item in source.items} & {
        bytes(item) for item in target.items
    }
    turned = open_task("t", Recipe("digits", turn="rotated"), "target", 5000, 0)
    np.testing.assert_array_equal(np.asarray(turned.labels), np.asarray(target.labels))
    np.testing.assert_array_equal(
        np.rot90(np.asarray(picture(target.items[3]))), np.asarray(turned.items[3])
    )


def test_a_target_has_no_item_that_a_source_has_too(monkeypatch):
    """Official splits share some."""
    made = {
        part: Examples(words, "text", np.arange(len(words)) % 2, ("a", "b"))
        for part, words in {
            "train": ["x", "y", "z", "x"],
            "test": ["u", "y", "v", "x", "y"],
        }.items()
    }
    monkeypatch.setattr(
        "benchmarks.study.tasks.open_data", lambda name, split: made[split]
    )
    tasks._learned.cache_clear()
    source, target = (
        open_task("t", Recipe("reuters-r8"), part, 100, 0)
        for part in ("source", "target")
    )
    tasks._learned.cache_clear()
    assert list(source.items) == ["x", "y", "z", "x"]
    assert list(target.items) == ["u", "v"]
    np.testing.assert_array_equal(target.labels, [0, 0])


def test_halves_are_the_same_under_every_encoder(tmp_path):
    """Also under one that cannot tell two items apart."""
    settings = read(HERE / "quick.toml")
    grid, rng = Grid(tmp_path, settings), np.random.default_rng(0)
    labels, fine = np.arange(60) % 3, rng.normal(size=(60, 4)).astype(np.float32)
    coarse = fine.copy()
    coarse[7] = coarse[30] = coarse[41]
    halves = [
        grid._split(tta.Task.from_arrays(features, labels), grid.key())
        for features in (fine, coarse)
    ]
    for one, other in zip(*halves, strict=True):
        np.testing.assert_array_equal(one, other)
    groups = np.r_[0, 0, np.arange(1, 59)]
    seen, judged = grid._split(
        tta.Task.from_arrays(fine, labels, groups=groups), grid.key()
    )
    assert {0, 1} <= set(seen) or {0, 1} <= set(judged)


def test_classes_are_gathered_and_labels_shuffled(digits):
    recipe = Recipe("digits", classes={"low": ["0", "1"], "nine": ["9"]})
    made = open_task("t", recipe, "target", 5000, 0)
    assert made.class_names == ("low", "nine")
    whole = np.asarray(open_task("t", Recipe("digits"), "target", 5000, 0).labels)
    np.testing.assert_array_equal(
        np.bincount(np.asarray(made.labels)), [(whole <= 1).sum(), (whole == 9).sum()]
    )
    shuffled = open_task("t", Recipe("digits", labels="shuffled"), "target", 5000, 0)
    np.testing.assert_array_equal(np.sort(np.asarray(shuffled.labels)), np.sort(whole))
    assert (np.asarray(shuffled.labels) == whole).mean() < 0.3


@pytest.mark.parametrize("name", ["study.toml", "quick.toml"])
def test_configurations_are_sound(name):
    settings = read(HERE / name)
    for group in settings.trained:
        assert not set(group.fresh) & set(group.targets)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('seed = "x', "quick"),
        ("unheard = 1", "unknown unheard"),
        ("[tasks]\nodd = 1", "tasks.odd: found 1"),
        ('[tasks]\nodd = { data = "nothing" }', "tasks.odd: data 'nothing'"),
        ('[tasks]\nodd = { data = "digits", turn = "over" }', "turn 'over'"),
        (
            '[tasks]\nodd = { data = "digits", classes = "0" }',
            "tasks.odd: classes = '0'; give a table, each entry a list",
        ),
        ("repeats = 0", "repeats = 0; give 1 or more"),
        ('repeats = "2"', "repeats = '2'; give a whole number"),
        ("holdout = 5", "holdout = 5; give a share"),
        ('few_metrics = ["guess"]', "few_metrics: unknown guess"),
        ('size_objectives = ["guess"]', "size_objectives: unknown guess"),
        ("few = 3", "few = 3; give a list, each entry a whole number"),
        ("targets = 3", "targets = 3; give a list, each entry a text"),
        ('encoders = ["guess"]', "unknown encoder guess"),
        ("targets = []", "no target"),
        (
            '[tasks]\nodd = { data = "digits", classes = { a = ["10"] } }',
            "has no class '10'",
        ),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_line(tmp_path, change, says):
    text = (HERE / "quick.toml").read_text()
    path = tmp_path / "quick.toml"
    entry = re.compile(rf"^{re.escape(change.split(' = ')[0])} = .*$", re.M)
    if "[tasks]" in change:
        path.write_text(text.replace("[tasks]", change))
    else:
        path.write_text(
            entry.sub(change, text, count=1)
            if entry.search(text)
            else change + "\n" + text
        )
    with pytest.raises(SystemExit) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert says in message
    assert "\n" not in message


def test_an_empty_study_publishes_its_provenance(tmp_path):
    settings = read(HERE / "quick.toml")
    files = [path.name for path in publish(tmp_path, settings, {})]
    assert "report.md" in files
    assert "Seed 0" in (tmp_path / "report.md").read_text()


def test_a_part_is_read_back_as_it_was_and_stands_in_for_work_not_done_here(tmp_path):
    settings, data = read(HERE / "quick.toml"), tmp_path / "data"
    data.write_text("1")
    rows = [
        {"value": 1.0, "rungs": ["tight"]},
        {"odd": None, "none": [], "reason": "[Errno 12]"},
    ]
    store, work = Store(tmp_path / "units"), unit(lambda: rows, data)
    store.do(work)
    part = gathered(settings, store, [work, unit(list, data, seed=1)])
    assert part.about["done"] == (1, 2)
    back = read_part(
        write_part(tmp_path / "known" / "tables" / "few.parquet", part), settings
    )
    assert (back.rows[0]["value"], back.rows[0]["rungs"], back.rows[1]["odd"]) == (
        1.0,
        ["tight"],
        None,
    )
    assert back.rows[1]["none"] == []
    assert back.rows[1]["reason"] == "[Errno 12]"
    assert back.about == json.loads(json.dumps(part.about))
    assert study.known_parts(tmp_path / "known", settings)["few"].rows == back.rows
    assert study.known_parts(tmp_path, settings) == {}
    with pytest.raises(SystemExit, match="made with another configuration"):
        read_part(
            tmp_path / "known" / "tables" / "few.parquet", read(HERE / "study.toml")
        )
    # Rows do not depend on which answers are right.
    text = (HERE / "quick.toml").read_text()
    other = tmp_path / "other.toml"
    other.write_text(re.sub(r"(?m)^digits = .*$", "", text))
    assert read(other).trained[0].related != settings.trained[0].related
    again = read_part(tmp_path / "known" / "tables" / "few.parquet", read(other))
    assert again.rows == back.rows
    with pytest.raises(SystemExit, match="no table of the study"):
        read_part(data)


def test_tables_print_blanks_as_blanks():
    text = tables.markdown(
        [{"a_b": 1.23456, "c": None}, {"a_b": float("nan"), "c": "x"}]
    )
    assert text.splitlines() == [
        "| a b | c |",
        "|---|---|",
        "| 1.235 | - |",
        "| - | x |",
    ]
    assert Table("says", []).digits == 3
    assert (
        json.loads(json.dumps(tables.span({"low": 0.1, "high": 0.25})))
        == "0.10 to 0.25"
    )


def test_a_source_with_too_few_classes_is_divided_for_an_analysis():
    features = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    task = tta.Task.from_arrays(features, np.arange(200) % 2)
    assert with_enough_classes(task, 2) is task
    assert with_enough_classes(task, 4).num_classes == 8


def test_features_of_another_configuration_are_refused(tmp_path):
    text = (HERE / "quick.toml").read_text()
    for name, words in (
        ("same", text),
        ("other", text.replace("target_items = 300", "target_items = 301")),
    ):
        (tmp_path / f"{name}.toml").write_text(words)
    Grid(tmp_path / "features", read(tmp_path / "same.toml")).make([])
    Grid(tmp_path / "features", read(tmp_path / "same.toml")).make([])
    with pytest.raises(SystemExit, match="another configuration \\(target_items\\)"):
        Grid(tmp_path / "features", read(tmp_path / "other.toml")).make([])


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ('ablation = ["digits"', "nothing is no source"),
        ('finetuned = ["digits"', "nothing is no source"),
        (
            'published = [["digits"',
            r"\['nothing', 'digits-rotated'\] is no pair of its sources and targets",
        ),
        (
            'sizes = [["digits"',
            r"\['nothing', 'digits-inverted'\] is no pair of its sources and targets",
        ),
    ],
)
def test_parts_name_tasks_of_their_group(tmp_path, entry, says):
    text = (HERE / "quick.toml").read_text()
    assert entry in text
    (tmp_path / "quick.toml").write_text(
        text.replace(entry, entry.replace("digits", "nothing"))
    )
    with pytest.raises(SystemExit, match=rf"trained\.pictures.*{says}"):
        read(tmp_path / "quick.toml")
