"""Scans as a user sees them: rows, failures, resuming, ranking, equality however they
are computed.
"""

import collections
import dataclasses
import itertools
import json
import math

import jax
import numpy as np
import pytest

import tta_jax as tta
from tests.scans import scan_tasks
from tests.scans.scan_tasks import CONFIG, task
from tests.typed import anything, on_host
from tta_jax.analysis.analyze import analyze
from tta_jax.bounds.certificate import certify
from tta_jax.bounds.chain import RUNGS, Transforms
from tta_jax.core.feature_maps import LogitAffine
from tta_jax.scans import api, device_cache, parquet_store, screening_stage
from tta_jax.scans.refinement_stage import Refining
from tta_jax.scans.screening_stage import Screening
from tta_jax.tasks.subdivision import with_enough_classes
from tta_jax.tasks.task import Samples

FIGURES = (
    "target_loss",
    "target_accuracy",
    "tight",
    "reweighted_source_loss",
    "label_mismatch",
    "prior_entropy",
    "probe_loss",
    "score",
)
UPPER = (
    "oscillation",
    "lipschitz",
    "theorem",
    "wasserstein",
    "score_low",
    "score_high",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One scan that most tests look at."""
    out = tmp_path_factory.mktemp("scans") / "whole"
    return tta.scan(
        scan_tasks.sources(),
        scan_tasks.targets(),
        out,
        refine=2,
        config=CONFIG,
        arrays=True,
    )


def columns(result, stage, names=FIGURES):
    rows = result.table(stage)
    return {
        tuple(k): np.array([row[n] for n in names], float)
        for row in rows.to_pylist()
        if (k := (row["source"], row["target"]))
    }


def assert_same(first, second, stage="screen", names=FIGURES, rtol=2e-5):
    a, b = columns(first, stage, names), columns(second, stage, names)
    assert a.keys() == b.keys()
    for key, values in a.items():
        np.testing.assert_allclose(
            values, b[key], rtol=rtol, atol=1e-6, err_msg=str(key)
        )


def test_every_pair_has_a_row_and_the_chain_holds(whole):
    rows = whole.table("screen").to_pylist()
    assert [row["pair"] for row in rows] == list(range(20))
    assert {row["status"] for row in rows} == {"ok"}
    for row in rows:
        assert row["target_loss"] <= row["tight"] + 1e-5
        np.testing.assert_allclose(
            row["score"], 1 - row["target_loss"] / row["prior_entropy"], rtol=1e-12
        )
        most = row["reweighted_source_loss"] + row["label_mismatch"]
        assert row["transformed_source_loss"] <= most + 1e-5
        assert row["informative"] == (row["tight"] < row["prior_entropy"])
        assert row["oscillation"] is None
    refined = whole.table("refine").to_pylist()
    assert len(refined) == 10
    for row in refined:
        chain = [row[name] for name in ("target_loss", *RUNGS)]
        assert all(a <= b + 1e-10 for a, b in itertools.pairwise(chain))
        assert row["holds"]
        assert row["score_low"] <= row["score"] <= row["score_high"]
        for cost in ("directed_wasserstein", "oscillation_wasserstein"):
            assert row[f"{cost}_lower"] <= row[cost] + 1e-9
        assert row["stopped"]


def test_the_best_of_each_target_are_refined(whole):
    screened, refined = (
        columns(whole, "screen", ("score",)),
        columns(whole, "refine", ("score",)),
    )
    for target in {t for _, t in screened}:
        scores = {s: v[0] for (s, t), v in screened.items() if t == target}
        assert {s for s, t in refined if t == target} == set(
            sorted(scores, key=lambda s: scores[s])[-2:]
        )


def test_shared_source_classes_cost_label_mismatch_and_divided_ones_do_not(whole):
    names = ["source", "target", "label_mismatch", "floor"]

    def costs(row):
        """More than the floor does."""
        return row["label_mismatch"] > 1e-6 - np.log1p(-row["floor"])

    given = {t.name: t for t in (*scan_tasks.sources(), *scan_tasks.targets())}
    for row in whole.table("screen", names).to_pylist():
        wanted = given[row["target"]].num_classes
        source = with_enough_classes(given[row["source"]], wanted)
        assert costs(row) == (wanted > source.num_classes)
    config = dataclasses.replace(CONFIG, divide_source=False)
    shared = tta.scan(
        scan_tasks.sources(), scan_tasks.targets(), refine=0, config=config
    )
    rows = shared.table("screen", names).to_pylist()
    classes = {
        t.name: t.num_classes for t in (*scan_tasks.sources(), *scan_tasks.targets())
    }
    for row in rows:
        assert costs(row) == (classes[row["target"]] > classes[row["source"]])


def test_arrays_say_which_class_carries_which(whole):
    found = whole._folder.dataset("arrays").to_table().to_pylist()
    assert len(found) == 30
    sources, targets = scan_tasks.sources(), scan_tasks.targets()
    for row in found:
        j, i = divmod(row["pair"], len(sources))
        mixing, prior = np.array(row["label_mixing"]), np.array(row["prior"])
        wanted = targets[j].num_classes
        source = with_enough_classes(sources[i], wanted)
        assert mixing.shape == (wanted, source.num_classes)
        np.testing.assert_allclose(mixing.sum(0), 1, rtol=1e-6)
        np.testing.assert_allclose(prior.sum(), 1, rtol=1e-6)
        assert all(mixing[t, k] > 0 for t, k in enumerate(row["assigned"]))


@pytest.mark.slow
def test_a_pair_alone_has_the_same_figures(whole):
    alone = tta.scan(
        scan_tasks.sources()[2:3], scan_tasks.targets()[1:2], refine=1, config=CONFIG
    )
    key = ("s2", "t1")
    for stage, names in (("screen", FIGURES), ("refine", (*FIGURES, *UPPER[:-2]))):
        together = columns(whole, stage, names)
        if key in together:
            np.testing.assert_allclose(
                columns(alone, stage, names)[key], together[key], rtol=1e-4, atol=1e-5
            )


@pytest.mark.slow
def test_one_device_or_eight_give_the_same_figures(whole, monkeypatch):
    assert len(jax.local_devices()) == 8
    first = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda *_, **__: first)
    one = tta.scan(scan_tasks.sources(), scan_tasks.targets(), refine=2, config=CONFIG)
    assert_same(one, whole)
    assert_same(one, whole, "refine", (*FIGURES, *UPPER[:-2]), 1e-4)


def test_the_size_of_a_chunk_and_of_a_table_changes_nothing(whole, monkeypatch):
    """Little memory: few lanes, one block, a few tasks at a time."""
    monkeypatch.setattr(screening_stage, "_LANES_CPU", 3)
    monkeypatch.setattr(device_cache.DeviceMesh, "table_rows", lambda *_: (2, 1, False))
    small = tta.scan(
        scan_tasks.sources(), scan_tasks.targets(), refine=0, config=CONFIG
    )
    assert_same(small, whole)


@pytest.mark.slow
def test_a_pair_too_large_for_one_device_is_spread_over_all(whole, monkeypatch):
    monkeypatch.setattr(device_cache.DeviceMesh, "table_rows", lambda *_: (1, 1, True))
    spread = tta.scan(
        scan_tasks.sources()[:2], scan_tasks.targets()[:2], refine=1, config=CONFIG
    )
    wanted = columns(whole, "screen")
    for key, values in columns(spread, "screen").items():
        np.testing.assert_allclose(values, wanted[key], rtol=1e-4, atol=1e-5)


def test_when_memory_runs_out_the_chunk_is_halved_and_the_scan_goes_on(
    whole, monkeypatch
):
    real, failures = Screening.launch, [0]

    def launch(self, program, *rest):
        failures[0] += 1
        if failures[0] <= 2:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."
            )
        return real(self, program, *rest)

    monkeypatch.setattr(Screening, "launch", launch)
    halved = tta.scan(
        scan_tasks.sources(), scan_tasks.targets(), refine=0, config=CONFIG
    )
    assert failures[0] > 2
    assert_same(halved, whole)


def test_a_second_scan_of_the_same_shapes_compiles_nothing(whole):
    seen = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: seen.append(event)
    )
    tta.scan(scan_tasks.sources(), scan_tasks.targets(), refine=2, config=CONFIG)
    assert "/jax/core/compile/backend_compile_duration" not in seen


def test_compilations_are_foreseen():
    job = api.prepare(
        scan_tasks.sources(), scan_tasks.targets(), config=CONFIG, refine=0
    )
    found = job.forecast()
    assert len(found["buckets"]) == len(job.plan.buckets) <= 32
    assert found["pairs"] == 20
    assert job.setup.machine.compilations <= len(job.plan.buckets)
    assert json.dumps(found)
    assert found["screen_seconds"] > 0


# -- the certificate of the second stage -----------------------------------------------


@pytest.mark.slow
def test_refined_chains_are_those_of_certify(monkeypatch):
    """The batched certificate evaluates the same transformations as `certify` does, on
    the same items.
    """
    seen = []
    real = Refining._certify
    monkeypatch.setattr(
        Refining,
        "_certify",
        lambda self, problems: (
            seen.append((problems, real(self, problems))) or seen[-1][1]
        ),
    )
    tta.scan(scan_tasks.sources(), scan_tasks.targets(), refine=2, config=CONFIG)
    (problems, certified), *_ = seen
    for number, x in enumerate(make() for make in problems[:6]):
        live, k_t = np.flatnonzero(x.source_mask), int((x.log_prior > -np.inf).sum())
        joint = np.full((k_t, len(live)), -np.inf)
        joint[np.arange(k_t), x.source_of[:k_t]] = x.log_prior[:k_t]
        phi = on_host(
            LogitAffine,
            np.asarray(x.mapped.weight)[live],
            np.asarray(x.mapped.bias)[live],
        )
        head = tta.SoftmaxHead(
            np.asarray(x.head.weight)[live], np.asarray(x.head.bias)[live]
        )
        phi = phi.complete(
            head,
            np.ones(len(live), bool),
            (x.mean_source, 1.0),
            (x.mean_target, (float(x.gain) / 0.1) ** 2),
        )
        z = np.concatenate([x.source[k, : x.source_counts[k]] for k in live])
        y = np.repeat(np.arange(len(live)), x.source_counts[live]).astype(np.int32)
        wanted = certify(
            Transforms(joint, phi, x.floor),
            Samples(z, y, np.ones(len(y), bool)),
            head,
            x.target,
            epsilon=0.02,
            max_iterations=50,
        )
        for name in (
            "target_loss",
            "tight",
            "reweighted_source_loss",
            "label_mismatch",
            "target_accuracy",
            "lipschitz_constant",
        ):
            np.testing.assert_allclose(
                getattr(certified.bound, name)[number],
                getattr(wanted.bound, name),
                rtol=1e-9,
                atol=1e-12,
                err_msg=name,
            )
        for name in (
            "directed",
            "oscillation",
            "lipschitz",
            "theorem",
        ):  # of plans that may stop at other iterations
            np.testing.assert_allclose(
                getattr(certified.bound, name)[number],
                getattr(wanted.bound, name),
                rtol=1e-2,
                err_msg=name,
            )


def test_refined_losses_are_close_to_those_of_analyze(whole):
    """Learning differs in a head fitted with fewer steps and in float32 rounding, not
    in kind.
    """
    config = dataclasses.replace(CONFIG, rungs="tight")
    records = api.prepare(
        scan_tasks.sources(), scan_tasks.targets(), config=CONFIG
    ).plan
    gaps = []

    def number(k, j):
        return (records.sources[k].classes, records.targets[j].classes)

    rows = whole.table("refine").to_pylist()
    shapes = collections.Counter(number(*divmod(row["pair"], 4)[::-1]) for row in rows)
    (most, _), *_ = shapes.most_common(1)  # one shape, so that little is compiled
    for row in rows:
        j, i = divmod(row["pair"], 4)
        if number(i, j) != most:
            continue
        parts = [
            (s.source_learn, s.source_held, t.learn, t.held)
            for s, t in zip(
                records.sources[i].parts, records.targets[j].parts, strict=True
            )
        ]
        found = analyze(
            scan_tasks.sources()[i], None, scan_tasks.targets()[j], config, parts=parts
        )
        gaps.append(abs(found.target_loss - row["target_loss"]))
    assert len(gaps) >= 2
    assert np.median(gaps) < 0.03


@pytest.mark.slow
def test_other_objectives_are_refined_pair_by_pair():
    config = tta.Config(objective="tight", rungs="tight", steps=10, bootstrap=10)
    result = tta.scan(
        [task(0, name="s0"), task(2, name="s2")],
        scan_tasks.targets(1),
        refine=2,
        config=config,
    )
    rows = result.table("refine").to_pylist()
    assert len(rows) == 2
    assert all(row["holds"] and row["tight"] >= row["target_loss"] for row in rows)


# -- what goes wrong -------------------------------------------------------------------


def test_a_bad_task_is_rows_with_a_reason_and_spoils_no_other(whole):
    nan = scan_tasks.task(1, 3, 60, 6, name="nan")
    bad = dataclasses.replace(
        nan,
        features=np.where(np.arange(6) == 2, np.nan, nan.features).astype(np.float32),
    )
    broken = {f"s{k}": t for k, t in enumerate(scan_tasks.sources())} | {
        "nan": bad,
        "narrow": task(3, 3, 60, 5),
        "single": tta.Task.from_arrays(
            np.ones((4, 6), np.float32) * np.arange(4)[:, None], ["a"] * 4
        ),
        "missing": lambda: tta.data.load_features("nowhere.npz").task(),
    }
    result = tta.scan(broken, scan_tasks.targets(), refine=0, config=CONFIG)
    reasons = {row["source"]: row["reason"] for row in result.failures()}
    assert set(reasons) == {"nan", "narrow", "single", "missing"}
    assert "NaN" in reasons["nan"]
    assert "5 features in the source, 6 in the target" in reasons["narrow"]
    assert "single class" in reasons["single"]
    assert "no file" in reasons["missing"]
    assert len(result.failures()) == 20
    good = columns(result, "screen")
    for key, values in columns(whole, "screen").items():
        np.testing.assert_allclose(values, good[key], rtol=2e-5, atol=1e-6)


def test_features_that_overflow_fail_on_the_device_only_in_their_pair():
    """Finite features whose figures are not: found after the computation."""
    huge = task(5, 3, 60, 6, name="huge")
    huge = dataclasses.replace(huge, features=huge.features * np.float32(1e30))
    config = dataclasses.replace(CONFIG, standardize=False)
    result = tta.scan(
        [huge, task(6, name="fine")], [task(7, name="target")], refine=0, config=config
    )
    rows = {row["source"]: row for row in result.table("screen").to_pylist()}
    assert rows["fine"]["status"] == "ok"
    if rows["huge"]["status"] == "failed":
        assert "not finite" in rows["huge"]["reason"]
        assert rows["huge"]["score"] is None


@pytest.mark.slow
def test_items_that_both_tasks_have_are_not_judged_where_the_source_learned_them():
    base = task(11, 3, 90, name="base")
    half = dataclasses.replace(base.take(np.arange(60)), name="half")
    other = dataclasses.replace(base.take(np.arange(30, 90)), name="other")
    result = tta.scan([base, half], [other, base], refine=2, config=CONFIG)
    rows = {
        (r["source"], r["target"], r["stage"]): r for r in result.table().to_pylist()
    }
    # A task with itself: what is held out of the target is held out of the source.
    assert rows["base", "base", "screen"]["shared_items"] == 0
    found = rows["base", "other", "screen"]
    records = api.prepare([base, half], [other, base], config=CONFIG).plan
    learned = {
        tuple(x)
        for x in np.asarray(base.features)[records.sources[0].parts[0].source_learn]
    }
    held = [
        tuple(x) for x in np.asarray(other.features)[records.targets[0].parts[0].held]
    ]
    assert found["shared_items"] == sum(x in learned for x in held) > 0
    assert found["items"] == len(held) - found["shared_items"]
    assert rows["base", "other", "refine"]["items"] == found["items"]


def test_calls_that_cannot_be_are_refused_in_one_line(tmp_path):
    some, others = scan_tasks.sources(2), scan_tasks.targets(2)
    twice = [task(1, name="same"), task(2, name="same")]
    cases = [
        (lambda: tta.scan(twice, others), "sources: two of them are called 'same'"),
        (lambda: tta.scan([], others), "sources: there is no task"),
        (lambda: tta.scan(anything(some[0]), others), "sources: found Task"),
        (lambda: tta.scan([1], others), "sources: '' is int"),
        (
            lambda: tta.scan(some, others, pairs=[("s0", "nix")]),
            "pairs: there is no target 'nix'",
        ),
        (
            lambda: tta.scan(some, others, pairs=[(0, 9)]),
            "pairs: there is no target number 9",
        ),
        (
            lambda: tta.scan(some, others, pairs=anything(["s0"])),
            "pairs: found 's0'",
        ),
        (
            lambda: tta.scan(some, others, pairs=lambda a, b: False),
            "pairs: no pair is left",
        ),
        (lambda: tta.scan(some, others, refine=-1), "refine: found -1"),
        (
            lambda: tta.scan(some, others, config=tta.Config(holdout=0)),
            "config: a scan compares held-out figures",
        ),
        (lambda: tta.scan(some, others, memory=3), "memory: found 3"),
        (
            lambda: tta.scan(
                some, others, heads={"nix": tta.SoftmaxHead(np.eye(3), np.ones(3))}
            ),
            "heads: there is no source 'nix'",
        ),
        (lambda: tta.scan(some, others, key=anything("k")), "key: found str"),
        (lambda: tta.ScanResult.load(tmp_path / "nowhere"), "holds no scan"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=r"[a-z]") as error:
            call()
        assert words in str(error.value)
        assert "\n" not in str(error.value)


# -- resuming --------------------------------------------------------------------------


def test_a_finished_scan_is_read_not_computed(whole, monkeypatch):
    monkeypatch.setattr(Screening, "compile", None)
    again = tta.scan(
        scan_tasks.sources(),
        scan_tasks.targets(),
        whole.path,
        refine=2,
        config=CONFIG,
        arrays=True,
    )
    assert again.table().equals(whole.table())


def test_a_folder_of_another_scan_is_refused_and_says_how_they_differ(whole, tmp_path):
    def call(s=None, t=None, **kw):
        return tta.scan(
            s or scan_tasks.sources(),
            t or scan_tasks.targets(),
            whole.path,
            **({"config": CONFIG, "arrays": True} | kw),
        )

    changed = scan_tasks.sources()
    changed[1] = dataclasses.replace(
        changed[1], features=changed[1].features + np.float32(1e-3)
    )
    cases = [
        (
            lambda: call(
                config=tta.Config(bootstrap=20, clip=4.0, sinkhorn_iterations=50)
            ),
            "its config clip is 5.0, now 4.0",
        ),
        (lambda: call(key=jax.random.key(1)), "its key is"),
        (
            lambda: call(changed),
            "the features, labels or class names of source 's1' have changed",
        ),
        (lambda: call(scan_tasks.sources(5)), "it lacks 1 sources: s4"),
        (lambda: call(None, scan_tasks.targets(4)), "it has besides 1 targets: t4"),
        (
            lambda: call(scan_tasks.sources()[::-1]),
            "its sources stood in another order",
        ),
        (lambda: call(arrays=False), "its arrays is True, now False"),
        (lambda: call(pairs=[("s0", "t0")]), "its pairs"),
    ]
    for again, words in cases:
        with pytest.raises(ValueError, match=r"out: .* holds another scan") as error:
            again()
        assert words in str(error.value)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files but no scan"):
        tta.scan(scan_tasks.sources(1), scan_tasks.targets(1), tmp_path / "full")
    (tmp_path / "file").write_text("mine")
    for place, words in (("file", "is a file"), ("file/deeper", "cannot be made")):
        with pytest.raises(ValueError, match=f"^out: .* {words}"):
            tta.scan(scan_tasks.sources(1), scan_tasks.targets(1), tmp_path / place)


def test_more_can_be_refined_later(tmp_path):
    arguments = (scan_tasks.sources(), scan_tasks.targets(), tmp_path / "scan")
    assert len(tta.scan(*arguments, refine=0, config=CONFIG).table("refine")) == 0
    more = tta.scan(*arguments, refine=2, config=CONFIG)
    assert len(more.table("refine")) == 10
    assert len(more) == 20


def test_a_damaged_part_is_named(tmp_path):
    arguments = (scan_tasks.sources(1), scan_tasks.targets(1), tmp_path / "scan")
    tta.scan(*arguments, refine=0, config=CONFIG)
    part = next((tmp_path / "scan").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"part-.* is damaged .* remove it"):
        tta.scan(*arguments, refine=0, config=CONFIG)
    part.unlink()
    assert len(tta.scan(*arguments, refine=0, config=CONFIG)) == 1


def test_a_scan_that_is_being_written_is_left_alone(tmp_path):
    arguments = (scan_tasks.sources(1), scan_tasks.targets(1), tmp_path / "scan")
    tta.scan(*arguments, refine=0, config=CONFIG)
    with (
        parquet_store.locked(parquet_store.Folder(tmp_path / "scan")),
        pytest.raises(ValueError, match="another scan is writing"),
    ):
        tta.scan(*arguments, refine=0, config=CONFIG)


def test_any_file_system_of_fsspec_will_do():
    where = "memory://scans/one"
    result = tta.scan(
        scan_tasks.sources(2), scan_tasks.targets(2), where, refine=0, config=CONFIG
    )
    assert len(result) == 4
    again = tta.ScanResult.load(where)
    assert again.table().equals(result.table())
    assert (
        len(
            tta.scan(
                scan_tasks.sources(2),
                scan_tasks.targets(2),
                where,
                refine=0,
                config=CONFIG,
            )
        )
        == 4
    )


def test_rows_are_plain_parquet(whole):
    import pyarrow.parquet as pq

    found = pq.read_table(f"{whole.path}/pairs")
    assert found.num_rows == 30
    assert {"stage", "source", "target", "score", "tight"} <= set(found.column_names)


# -- results ---------------------------------------------------------------------------


def test_ranking(whole):
    best = whole.rank(target="t1", top=None)
    assert [row["rank"] for row in best] == [1, 2, 3, 4]
    assert {row["target"] for row in best} == {"t1"}
    assert [row["stage"] for row in best] == ["refine", "refine", "screen", "screen"]
    assert best[0]["score"] >= best[1]["score"]
    assert best[2]["score"] >= best[3]["score"]
    served = whole.rank(source="s0", by="target_loss", top=3)
    assert len(served) == 3
    assert {row["source"] for row in served} == {"s0"}
    for arguments, words in (
        ({"target": "x"}, "there is no target 'x'"),
        ({"by": "x"}, "there is no figure 'x'"),
        ({"top": 0}, "top: found 0"),
    ):
        with pytest.raises(ValueError, match=words):
            whole.rank(**arguments)


def test_how_the_stages_differ_is_reported(whole):
    gaps = whole.differences()
    screened, refined = (
        columns(whole, "screen", ("target_loss",)),
        columns(whole, "refine", ("target_loss",)),
    )
    change = np.array([refined[key][0] - screened[key][0] for key in refined])
    assert gaps["pairs"] == 10
    np.testing.assert_allclose(gaps["target_loss_mean_change"], change.mean())
    np.testing.assert_allclose(gaps["target_loss_most"], np.abs(change).max())
    text = whole.summary()
    assert "20 screened, 10 refined, 0 failed" in text
    assert "refined less screened" in text
    assert json.dumps(whole.facts())
    assert "20 of 20" in repr(whole)


def test_encoders_are_not_mixed():
    pairs = [task(1, encoder="a", name="x"), task(2, encoder="b", name="x", dim=5)]
    result = tta.scan(pairs, refine=0, config=CONFIG)
    assert [
        (r["encoder"], r["source"], r["target"]) for r in result.table().to_pylist()
    ] == [
        ("a", "x", "x"),
        ("b", "x", "x"),
    ]
    assert {row["encoder"] for row in result.rank(target="x")} == {"a", "b"}
    assert [row["encoder"] for row in result.rank(target="b/x")] == ["b"]
    asked = tta.scan(pairs, refine=0, config=CONFIG, pairs=[("a/x", "b/x"), ("x", "x")])
    assert [r["reason"] for r in asked.failures()] == [
        "features of different encoders, a and b"
    ]
    assert len(asked) == 3
    with pytest.raises(ValueError, match="use the same encoder"):
        tta.analyze(
            pairs[0],
            None,
            dataclasses.replace(pairs[1], features=pairs[0].features[:, :6]),
        )


@pytest.mark.slow
def test_a_head_that_is_given_is_used_as_it_is():
    source, target = scan_tasks.sources()[2], scan_tasks.targets()[1]
    head = tta.fit_head(source)
    given = tta.scan([source], [target], heads={"s2": head}, refine=1, config=CONFIG)
    fitted = tta.scan([source], [target], refine=1, config=CONFIG)
    a, b = (r.table("screen").to_pylist()[0] for r in (given, fitted))
    assert a["reweighted_source_loss"] != b["reweighted_source_loss"]
    assert given.table("refine").to_pylist()[0]["holds"]
    wrong = tta.scan(
        [source],
        [target],
        heads={"s2": tta.SoftmaxHead(np.ones((2, 6)), np.ones(2))},
        refine=0,
        config=CONFIG,
    )
    assert (
        "head: weight has shape (2, 6), expected (3, 6)"
        in wrong.failures()[0]["reason"]
    )


def test_heads_belong_to_the_scan_and_are_checked(tmp_path):
    source, target = scan_tasks.sources()[2], scan_tasks.targets()[1]
    head = tta.fit_head(source)

    def call(given, **more):
        return tta.scan(
            [source],
            [target],
            tmp_path / "scan",
            refine=0,
            config=dataclasses.replace(CONFIG, **more),
            heads={"s2": given},
        )

    first = call(head)
    with pytest.raises(ValueError, match="the head of source 's2' is another one"):
        call(tta.SoftmaxHead(2 * np.asarray(head.weight), head.bias))
    for bias, words in ((np.zeros(2), "bias has shape"), (np.full(3, np.nan), "NaN")):
        wrong = tta.scan(
            [source],
            [target],
            refine=0,
            config=CONFIG,
            heads={"s2": tta.SoftmaxHead(head.weight, bias)},
        )
        assert words in wrong.failures()[0]["reason"]
    # A head that is to be refitted is as good as none.
    config = dataclasses.replace(CONFIG, refit_head=True)
    refitted = tta.scan([source], [target], refine=0, config=config, heads={"s2": head})
    assert_same(
        refitted, tta.scan([source], [target], refine=0, config=CONFIG), rtol=1e-9
    )
    given, fitted = (
        columns(result, "screen")["s2", "t1"] for result in (first, refitted)
    )
    assert not np.allclose(given, fitted, rtol=1e-3)
    twins = [dataclasses.replace(source, encoder=name) for name in "ab"]
    with pytest.raises(
        ValueError, match="several sources 's2'; name one of a/s2, b/s2"
    ):
        tta.scan(twins, [target], refine=0, config=CONFIG, heads={"s2": head})
    job = api.prepare(twins, [target], refine=0, config=CONFIG, heads={"b/s2": head})
    sources = job.plan.sources[: job.plan.given]
    assert [record.head is None for record in sources] == [True, False]


def test_whatever_a_loader_raises_is_a_row():
    def fails():
        return {}["features"]

    result = tta.scan(
        {"s2": scan_tasks.sources()[2], "bad": fails},
        [scan_tasks.targets()[1]],
        refine=0,
        config=CONFIG,
    )
    (row,) = result.failures()
    assert row["reason"] == "source: KeyError: 'features'"


def test_tables_that_memory_does_not_hold_leave_the_longest_unused_first(monkeypatch):
    job = api.prepare(
        scan_tasks.sources(), scan_tasks.targets(), refine=0, config=CONFIG
    )
    stage, bucket = Screening(job.setup, lambda _: None), job.plan.buckets[0]
    made = []
    monkeypatch.setattr(
        device_cache.ProfileCache,
        "_make",
        lambda self, *a: (
            made.append(a[0])
            or device_cache.ProfileTable({"x": np.zeros(100)}, anything(None), {}, {})
        ),
    )
    monkeypatch.setattr(device_cache.ProfileCache, "bytes_of", lambda *_: 100)
    job.setup.machine.memory = math.ceil(
        2200 / device_cache.TABLE_SHARE
    )  # two tables of 800 bytes and one of 100 items to come

    def get(role, items):
        return stage.tables.get(role, bucket.source._replace(items=items), (), (0,), 8)

    for role, items in (
        ("source", 1),
        ("target", 2),
        ("source", 1),
        ("target", 3),
        ("source", 1),
        ("target", 2),
    ):
        get(role, items)
    assert made == ["source", "target", "target", "target"]


def test_a_stop_is_heard_while_profiles_are_made(tmp_path, monkeypatch):
    made, stops = device_cache.ProfileCache._profile, []
    real = api.SignalHandler

    def stop():
        stops.append(real())
        return stops[-1]

    def profile(self, *rest):
        stops[-1].asked = True
        return made(self, *rest)

    monkeypatch.setattr(api, "SignalHandler", stop)
    monkeypatch.setattr(device_cache.ProfileCache, "_profile", profile)
    with pytest.raises(KeyboardInterrupt, match="goes on from there"):
        tta.scan(
            scan_tasks.sources(),
            scan_tasks.targets(),
            tmp_path / "scan",
            refine=0,
            config=CONFIG,
        )
    monkeypatch.undo()
    assert (
        len(
            tta.scan(
                scan_tasks.sources(),
                scan_tasks.targets(),
                tmp_path / "scan",
                refine=0,
                config=CONFIG,
            )
        )
        == 20
    )


def test_folds_average_over_parts():
    source, target = task(1, name="s", items=90), task(2, name="t", items=90)
    config = dataclasses.replace(CONFIG, folds=3)
    row = (
        tta.scan([source], [target], refine=0, config=config)
        .table("screen")
        .to_pylist()[0]
    )
    assert row["items"] == 90
    assert row["target_loss"] <= row["tight"] + 1e-5


def test_float64_tasks_are_scanned_in_float64(x64):
    source, target = task(1, name="s"), task(2, name="t")
    wide = [
        tta.Task.from_arrays(np.asarray(t.features, np.float64), t.labels, name=t.name)
        for t in (source, target)
    ]
    row = (
        tta.scan(wide[:1], wide[1:], refine=0, config=CONFIG)
        .table("screen")
        .to_pylist()[0]
    )
    assert row["status"] == "ok"
    mixed = tta.scan(
        {"wide": wide[0], "narrow": source}, [target], refine=0, config=CONFIG
    )  # the wider precision for both
    assert {r["status"] for r in mixed.table("screen").to_pylist()} == {"ok"}
    assert float(np.float32(row["target_loss"])) != row["target_loss"]
    assert row["target_loss"] <= row["tight"] + 1e-13
