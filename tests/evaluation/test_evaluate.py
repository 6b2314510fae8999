"""The table of all scores against the truth: where it reads from, what it adds, how it
refuses.
"""

import csv
import dataclasses

import numpy as np
import pytest

import tta_jax as tta
from tests.typed import anything
from tta_jax.evaluation import evaluate, rank_statistics
from tta_jax.probes import ground_truth

RNG = np.random.default_rng(0)
TARGETS, ENCODERS = ("t1", "t2", "t3"), ("a/x", "b", "c", "d")
TRUTH = [
    {"encoder": e, "target": t, "accuracy": float(a), "loss": float(1 - a)}
    for (t, e), a in zip(
        ((t, e) for t in TARGETS for e in ENCODERS), RNG.random(12), strict=True
    )
]
LONG = [
    {
        "encoder": row["encoder"],
        "source": "",
        "target": row["target"],
        "metric": metric,
        "value": value,
        "reason": "",
    }
    for row in TRUTH
    for metric, value in (
        ("logme", row["accuracy"] ** 2),
        ("leep", float(RNG.normal())),
        ("knn", float(RNG.random())),
    )
]


def table(name, rows):
    found = {
        (row["target"], row["encoder"]): row["value"]
        for row in rows
        if row["metric"] == name
    }
    return np.array([[found[t, e] for e in ENCODERS] for t in TARGETS])


def truth_table():
    return np.array([row["accuracy"] for row in TRUTH]).reshape(3, 4)


def test_scores_stand_in_the_table_with_baselines_and_intervals():
    result = tta.evaluate(LONG, TRUTH, parameters={"a/x": 1, "b": 2, "c": 3, "d": 4})
    assert (result.targets, result.models) == (TARGETS, ENCODERS)
    np.testing.assert_array_equal(result.truth, truth_table())
    assert set(result.scores) == {
        "logme",
        "leep",
        "knn",
        "mean_elsewhere",
        "parameter_count",
    }
    assert {name for name, kind in result.kinds.items() if kind == "baseline"} == set(
        evaluate.ALWAYS
    )
    for name in ("logme", "leep"):
        direct = rank_statistics.correlate(
            table(name, LONG), truth_table(), ["kendall"], replicates=0
        )["kendall"]
        assert result.estimates[name]["kendall"].value == direct.value
    np.testing.assert_array_equal(
        result.scores["mean_elsewhere"], rank_statistics.mean_elsewhere(truth_table())
    )
    np.testing.assert_array_equal(
        result.scores["parameter_count"], np.tile([1.0, 2, 3, 4], (3, 1))
    )
    rows = result.table("kendall")
    assert rows[0]["score"] == "logme"
    assert rows[0]["kendall"] == 1
    assert result.table("regret_1")[0]["regret_1"] == 0
    one = {row["score"]: row for row in result.table("kendall", "t2")}
    assert one["leep"]["kendall"] == result.estimates["leep"]["kendall"].per_target[1]
    paired = rank_statistics.compare(
        table("logme", LONG), table("leep", LONG), truth_table(), "kendall"
    )
    assert result.compare("logme", "leep", "kendall").difference == paired.difference
    assert "logme less mean_elsewhere" in result.summary()


def test_the_score_chosen_elsewhere_has_not_seen_the_target():
    result = tta.evaluate(LONG, TRUTH)
    for place, row in enumerate(result.chosen_elsewhere("kendall")):
        means = {
            name: np.nanmean(np.delete(found["kendall"].per_target, place))
            for name, found in result.estimates.items()
            if found["kendall"].targets > 1
        }
        assert row["elsewhere"] == pytest.approx(max(means.values()))
        assert (
            row["kendall"]
            == result.estimates[row["score"]]["kendall"].per_target[place]
        )


def write_csv(path, rows, encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_files_frames_and_wide_tables_say_the_same(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    expected = tta.evaluate(LONG, TRUTH).to_dict()
    wide = [
        {"encoder": row["encoder"], "target": row["target"]}
        | {
            r["metric"]: r["value"]
            for r in LONG
            if (r["encoder"], r["target"]) == (row["encoder"], row["target"])
        }
        for row in TRUTH
    ]
    pq.write_table(pa.Table.from_pylist(LONG), tmp_path / "s.parquet")
    for scores in (
        write_csv(tmp_path / "s.csv", LONG),
        write_csv(tmp_path / "b.csv", LONG, "utf-8-sig"),
        tmp_path / "s.parquet",
        pa.Table.from_pylist(LONG),
        wide,
        write_csv(tmp_path / "w.csv", wide),
        [LONG[:18], LONG[18:]],
    ):
        found = tta.evaluate(
            scores, str(write_csv(tmp_path / "t.csv", TRUTH))
        ).to_dict()
        assert found == expected


def test_losses_and_errors_are_ranked_from_the_least():
    by_loss = tta.evaluate(LONG, TRUTH, truth_column="loss")
    by_accuracy = tta.evaluate(LONG, TRUTH)
    assert (
        by_loss.estimates["leep"]["kendall"].value
        == by_accuracy.estimates["leep"]["kendall"].value
    )
    bounds = [
        {"encoder": r["encoder"], "target": r["target"], "tight": r["loss"]}
        for r in TRUTH
    ]
    assert tta.evaluate(bounds, TRUTH).estimates["tight"]["kendall"].value == 1


def test_blanks_are_blanks_and_say_why():
    rows = [
        row
        | (
            {"value": None, "reason": "too few items"}
            if row["metric"] == "leep" and row["encoder"] == "b"
            else {}
        )
        for row in LONG
    ]
    result = tta.evaluate([row for row in rows if row["metric"] != "knn"], TRUTH)
    assert np.isnan(result.scores["leep"][:, 1]).all()
    (leep,) = [row for row in result.table() if row["score"] == "leep"]
    assert (leep["blanks"], leep["reason"]) == (3, "too few items")
    assert np.isnan(result.scores["knn"]).all()
    assert "knn" in result.reasons
    assert "parameter_count" in result.reasons
    assert result.to_dict()["scores"]["leep"][0][1] is None


def test_the_best_of_several_sources_speaks_for_an_encoder():
    rows = [
        {"encoder": e, "source": s, "target": "t", "metric": "otdd", "value": v}
        for e, s, v in (("a", "s1", -3.0), ("a", "s2", -1.0), ("b", "s1", -2.0))
    ]
    truth = [
        {"encoder": "a", "target": "t", "accuracy": 0.9},
        {"encoder": "b", "target": "t", "accuracy": 0.8},
    ]
    np.testing.assert_array_equal(
        tta.evaluate(rows, truth).scores["otdd"], [[-1.0, -2.0]]
    )
    apart = [
        {**truth[0], "source": s, "accuracy": v} for s, v in (("s1", 0.3), ("s2", 0.4))
    ]
    result = tta.evaluate(
        [
            *rows,
            {
                "encoder": "a",
                "source": "",
                "target": "t",
                "metric": "logme",
                "value": 5.0,
            },
        ],
        apart,
    )
    assert result.models == ("a/s1", "a/s2")
    np.testing.assert_array_equal(result.scores["otdd"], [[-3.0, -1.0]])
    np.testing.assert_array_equal(
        result.scores["logme"], [[5.0, 5.0]]
    )  # needs no source: the same for all


def test_pooled_scores_are_made_of_their_parts_and_marked():
    parts = {"logme": "etran_energy", "leep": "etran_lda"}
    rows = [
        {**row, "metric": parts[row["metric"]]}
        for row in LONG
        if row["metric"] in parts
    ]
    result = tta.evaluate(rows, TRUTH)
    assert result.kinds["etran"] == "pooled"
    for target in range(3):
        parts = {
            name: result.scores[name][target] for name in ("etran_energy", "etran_lda")
        }
        np.testing.assert_array_equal(
            result.scores["etran"][target], tta.metrics.pooling.pool("etran", parts)
        )


def test_a_saved_evaluation_comes_back(tmp_path):
    result = tta.evaluate(LONG, TRUTH, replicates=50)
    result.save(tmp_path / "e.tta")
    again = tta.Evaluation.load(tmp_path / "e.tta")
    assert again.to_dict() == result.to_dict()
    assert again.compare("logme", "leep") == result.compare("logme", "leep")
    with pytest.raises(ValueError, match=r"^path: there is no file"):
        tta.Evaluation.load(tmp_path / "none.tta")


def test_the_same_key_gives_the_same_intervals():
    one, same, other = (
        tta.evaluate(LONG, TRUTH, key=np.random.SeedSequence(k)).to_dict()
        for k in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_a_scan_brings_scores_and_its_own_truth(tmp_path):
    pytest.importorskip("pyarrow")
    rng = np.random.default_rng(1)

    def task(name, encoder, spread):
        y = np.arange(60) % 3
        return tta.Task.from_arrays(
            rng.normal(size=(60, 5)) + spread * np.eye(5)[y],
            y,
            name=name,
            encoder=encoder,
        )

    tasks = [
        (t, task(t, e, s))
        for t in ("p", "q")
        for e, s in (("weak", 0.5), ("strong", 4.0))
    ]
    scan = tta.scan(tasks, tasks, tmp_path / "scan", refine=0)
    result = tta.evaluate(scan)
    assert (result.targets, set(result.models), result.truth_name) == (
        ("p", "q"),
        {"weak", "strong"},
        "probe_accuracy",
    )
    assert result.estimates["target_loss"]["kendall"].value == 1
    assert result.to_dict() == tta.evaluate(str(tmp_path / "scan")).to_dict()
    with pytest.raises(ValueError, match=r"^ground_truth: it has one model"):
        tta.evaluate(tta.scan(tasks[:1], tasks[:1], tmp_path / "one", refine=0))


@pytest.mark.parametrize(
    ("scores", "truth", "words"),
    [
        (LONG, None, "^ground_truth: only a scan"),
        (3, TRUTH, "^scores: found int"),
        ("none.csv", TRUTH, "^scores: there is no file or scan 'none.csv'"),
        (LONG, [], "^ground_truth: it has no rows"),
        (
            LONG,
            [{"encoder": "b", "accuracy": 1.0}],
            "^ground_truth: it has no column 'target'",
        ),
        (
            LONG,
            [{"target": "t1", "accuracy": 1.0}],
            "^ground_truth: it names no models",
        ),
        (
            LONG,
            [{**row, "accuracy": "", "loss": ""} for row in TRUTH],
            "^ground_truth: which column",
        ),
        (
            LONG,
            [{**TRUTH[0], "extra": 1.0, "accuracy": "high"}],
            "^ground_truth: which column is the truth",
        ),
        (
            LONG,
            [*TRUTH, {**TRUTH[0], "accuracy": 2.0}],
            "^ground_truth: a/x on t1 has two values",
        ),
        (
            LONG,
            [{**row, "encoder": "b"} for row in TRUTH[:1]],
            "^ground_truth: it has one model",
        ),
        (
            LONG,
            [{**row, "encoder": row["encoder"] + "!"} for row in TRUTH],
            "^scores: no row has a target and a model",
        ),
        (
            [{**row, "value": "much"} for row in LONG],
            TRUTH,
            "^scores: row 1, column 'value': 'much' is no number",
        ),
        (
            [{"target": "t1", "metric": "logme", "value": 1.0}],
            TRUTH,
            "^scores: they name no encoder",
        ),
    ],
)
def test_wrong_tables_are_refused(scores, truth, words):
    with pytest.raises(ValueError, match=words):
        tta.evaluate(scores, truth)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"truth_column": "acc"},
            "^truth_column: there are no numbers in a column 'acc'",
        ),
        ({"parameters": [{"a": 1}]}, "^parameters: give a dictionary"),
        ({"parameters": {"b": "big"}}, "^parameters: b: 'big' is no number"),
        ({"over": "all"}, "^over: "),
        ({"interval": 2.0}, "^interval: "),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        tta.evaluate(LONG, TRUTH, **options)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "encoder,target,accuracy\nb,t1\n",
            "row 1 of .* has another number of columns",
        ),
        (
            "encoder,target,accuracy\nb,t1,1,2\n",
            "row 1 of .* has another number of columns",
        ),
        ("", "'.*t.csv': it has no rows"),
    ],
)
def test_damaged_csv_is_refused(text, words, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=f"^ground_truth: {words}"):
        tta.evaluate(LONG, tmp_path / "t.csv")


def test_ground_truth_learns_from_what_scores_may_see():
    rng = np.random.default_rng(2)
    y = np.arange(80) % 4
    good = tta.Task.from_arrays(
        rng.normal(size=(80, 6)) + 3 * np.eye(6)[y], y, name="good", encoder="e"
    )
    single = tta.Task.from_arrays(
        rng.normal(size=(80, 6)), y * 0, name="single", encoder="e"
    )
    blind = dataclasses.replace(good, labelled=np.zeros(80, bool), name="blind")
    rows, learned = ground_truth([good, blind, single])
    assert [row["target"] for row in rows] == ["good", "blind", "single"]
    assert "no labels" in rows[1]["reason"]
    assert rows[1]["accuracy"] is None
    seen = {tuple(row) for row in np.asarray(learned[0].features)}
    held = [
        k for k, row in enumerate(np.asarray(good.features)) if tuple(row) not in seen
    ]
    assert rows[0]["items"] == len(held) == 20
    direct = tta.linear_probe(learned[0], good.take(np.array(held)))
    assert rows[0]["accuracy"] == direct.accuracy
    unseen = good.take(np.array(held))
    by_neighbours, _ = ground_truth(learned[:1], [unseen], by="knn")
    assert by_neighbours[0]["accuracy"] == tta.knn(learned[0], unseen).accuracy
    leaking, _ = ground_truth([good], [unseen])
    assert leaking[0]["accuracy"] is None
    assert (
        leaking[0]["reason"]
        == "test: 20 items of task 'good' are among those to learn from; take them out"
    )
    assert "one class" in rows[2]["reason"]
    for call, words in (
        (lambda: ground_truth([good], by="svm"), "^by: found 'svm'"),
        (lambda: ground_truth([good], []), "^test: found 0 tasks for 1"),
        (lambda: ground_truth(anything(good)), "^tasks: give a list of tasks"),
        (lambda: ground_truth([good], holdout=0), "^holdout: found 0"),
        (lambda: ground_truth([good], key=anything(3)), "^key: found int"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_metrics_of_many_tasks_are_those_of_each():
    rng = np.random.default_rng(3)

    def task(name, encoder, d=6):
        y = np.arange(48) % 3
        return tta.Task.from_arrays(
            rng.normal(size=(48, d)) + 2 * np.eye(d)[y], y, name=name, encoder=encoder
        )

    target, other, source = task("t", "e"), task("u", "f", 5), task("s", "e")
    names = ["logme", "leep", "otdd"]
    rows = tta.metrics.tabulate(
        [target, other, ("broken", lambda: 1 / 0)], [source], names=names
    )
    assert [(r["encoder"], r["source"], r["target"], r["metric"]) for r in rows] == [
        ("e", "", "t", "logme"),
        ("e", "s", "t", "otdd"),
        ("e", "s", "t", "leep"),
        ("f", "", "u", "logme"),
        ("f", "", "u", "otdd"),
        ("f", "", "u", "leep"),
        ("", "", "broken", "logme"),
        ("", "", "broken", "leep"),
        ("", "", "broken", "otdd"),
    ]
    values = {row["metric"]: row["value"] for row in rows[:3]}
    alone = {
        score.metric: score.value
        for score in tta.metrics.compute(target, source=source, names=names)
    }
    assert values == alone
    assert rows[4]["reason"] == "there is no source of its encoder"
    assert "division by zero" in rows[6]["reason"]
    head = tta.fit_head(source)
    by_encoder = tta.metrics.tabulate([target], heads={"e": head}, names=["leep"])
    assert by_encoder[0]["value"] == pytest.approx(values["leep"])
    assert by_encoder == [by_encoder[0] | {"source": ""}]
    wrong = tta.metrics.tabulate([other], heads=head, names=["leep", "logme"])
    assert [row["value"] is None for row in wrong] == [False, True]
    with pytest.raises(ValueError, match=r"^sources: broken: "):
        tta.metrics.tabulate([target], [("broken", lambda: 1 / 0)])


def test_sources_of_one_name_keep_their_own_classifiers():
    rng = np.random.default_rng(4)

    def task(name, encoder):
        y = np.arange(60) % 3
        return tta.Task.from_arrays(
            rng.normal(size=(60, 5)) + 2 * np.eye(5)[y], y, name=name, encoder=encoder
        )

    sources, targets = [task("s", e) for e in "ab"], [task("t", e) for e in "ab"]
    rows = tta.metrics.tabulate(targets, sources, names=["leep"])
    for row, source, target in zip(rows, sources, targets, strict=True):
        (alone,) = tta.metrics.compute(target, source=source, names=["leep"])
        assert row["value"] == alone.value
    twice = tta.metrics.tabulate([targets[0], targets[0]], names=["logme"])
    assert twice[1]["reason"] == "another task has this name and encoder"


def test_blanks_have_many_words_and_other_words_are_errors(tmp_path):
    wide = [
        {"encoder": r["encoder"], "target": r["target"], "m": str(r["accuracy"])}
        for r in TRUTH
    ]
    for word in ("n/a", "NA", "", "-", "nan"):
        result = tta.evaluate(
            write_csv(tmp_path / "w.csv", [{**wide[0], "m": word}, *wide[1:]]), TRUTH
        )
        assert np.isnan(result.scores["m"][0, 0])
        assert result.estimates["m"]["kendall"].value == 1
    with pytest.raises(
        ValueError, match=r"^scores: '.*w.csv': row 1, column 'm': '1,5' is no number"
    ):
        tta.evaluate(
            write_csv(tmp_path / "w.csv", [{**wide[0], "m": "1,5"}, *wide[1:]]), TRUTH
        )
    with pytest.raises(
        ValueError, match=r"^ground_truth: row 1, column 'accuracy': '92%' is no number"
    ):
        tta.evaluate(LONG, [{**TRUTH[0], "accuracy": "92%"}, *TRUTH[1:]])
    missing = [
        {**row, "source": float("nan")} for row in LONG
    ]  # as pandas writes blanks
    assert tta.evaluate(missing, TRUTH).to_dict() == tta.evaluate(LONG, TRUTH).to_dict()


@pytest.mark.parametrize(
    "name", ["Loss", "test_loss", "error rate", "NLL", "val-error", "brier"]
)
def test_what_is_better_the_less_there_is_goes_by_its_words(name):
    truth = [
        {"encoder": r["encoder"], "target": r["target"], name: r["loss"]} for r in TRUTH
    ]
    result = tta.evaluate(LONG, truth)
    assert result.estimates["logme"]["kendall"].value == 1
    assert f"ranked from the least: {name}" in result.summary()
    long = [
        {
            "encoder": r["encoder"],
            "target": r["target"],
            "metric": name,
            "value": r["loss"],
        }
        for r in TRUTH
    ]
    assert tta.evaluate(LONG, long).estimates["logme"]["kendall"].value == 1


def test_two_values_of_one_score_are_refused():
    other = [{**row, "value": 9.0} for row in LONG[:1]]
    with pytest.raises(ValueError, match=r"^scores: logme of a/x on t1 has two values"):
        tta.evaluate([LONG, other], TRUTH)
    with pytest.raises(ValueError, match=r"^parameters: b has two values"):
        tta.evaluate(
            LONG, TRUTH, parameters=[{"encoder": "b", "parameters": k} for k in (1, 2)]
        )


def test_the_static_ranker_is_chosen_without_the_target():
    """Whatever the truth of a target is, the choice of its score is the same."""
    rng = np.random.default_rng(5)
    for trial in range(20):
        truth = [
            {"encoder": e, "target": t, "accuracy": float(rng.random())}
            for t in "pqr"
            for e in "abcd"
        ]
        scores = [
            {
                "encoder": r["encoder"],
                "target": r["target"],
                "metric": "m",
                "value": float(rng.random()),
            }
            for r in truth
        ]
        changed = [
            r if r["target"] != "p" else {**r, "accuracy": float(rng.random())}
            for r in truth
        ]
        rows = [
            tta.evaluate(scores, one, replicates=0).chosen_elsewhere("kendall")[0]
            for one in (truth, changed)
        ]
        assert rows[0]["score"] == rows[1]["score"], trial
        assert rows[0]["elsewhere"] == rows[1]["elsewhere"]


def test_a_score_of_few_targets_is_not_called_the_best():
    lucky = [
        {
            "encoder": r["encoder"],
            "target": "t1",
            "metric": "lucky",
            "value": r["accuracy"],
        }
        for r in TRUTH[:4]
    ]
    result = tta.evaluate(
        [[row for row in LONG if row["metric"] == "leep"], lucky], TRUTH
    )
    rows = result.table("kendall")
    assert [row["score"] for row in rows if row["kind"] == "score"] == ["leep", "lucky"]
    assert rows[-1]["targets"] <= 1
    assert "defined by fewer targets than others: lucky" in result.summary("kendall")
    assert "lucky" not in {row["score"] for row in result.chosen_elsewhere("kendall")}
