"""Planning, sharing, storing: without computing anything."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tta_jax.fitting.prepare import TaskShape, TaskSplit
from tta_jax.scans.parquet_store import DictionaryColumn, Folder, _parquet, schema
from tta_jax.scans.plan import MOST_BUCKETS, SharedItems, make_plan, merge_shapes
from tta_jax.scans.task_records import TaskRecord, choose_pairs

none = np.zeros(0, np.int64)


def record(
    name, classes=3, items=60, dim=8, encoder="", problem="", learned=(), held=()
):
    counts = np.full(classes, items // (4 * classes) + 1)
    part = TaskSplit(
        np.arange(items * 3 // 4),
        np.arange(items // 4),
        np.arange(items * 3 // 4),
        np.arange(items // 4),
        counts,
        counts,
        counts,
        counts,
    )

    def as_hashes(values):
        return (np.sort(np.array(values, np.uint64)),)

    return TaskRecord(
        name,
        encoder,
        None,
        items,
        dim,
        classes,
        name,
        (),
        (part,),
        problem,
        as_hashes(learned),
        (np.array(held, np.uint64),),
    )


sizes = st.tuples(
    st.integers(2, 40), st.integers(20, 5000), st.sampled_from([8, 64, 256])
)


@given(
    st.lists(sizes, min_size=1, max_size=12),
    st.lists(sizes, min_size=1, max_size=12),
    st.integers(1, 5),
    st.data(),
)
def test_every_pair_is_planned_once_and_shared_once(first, second, processes, data):
    sources, targets = (
        [record(f"{n}{k}", *size) for k, size in enumerate(s)]
        for n, s in (("s", first), ("t", second))
    )
    i, j = choose_pairs(sources, targets, None)
    plan = make_plan(sources, targets, i, j)
    every = np.concatenate([plan.failed[0], *(b.pair for b in plan.buckets)])
    assert sorted(every) == list(range(len(sources) * len(targets)))
    assert len(plan.buckets) <= MOST_BUCKETS
    for bucket in plan.buckets:
        np.testing.assert_array_equal(bucket.j * len(sources) + bucket.i, bucket.pair)
        assert (np.diff(bucket.j) >= 0).all()
        for k in np.unique(bucket.i):
            assert bucket.source.classes >= sources[k].classes
            assert bucket.source.dim >= sources[k].dim
            assert bucket.source.items >= len(sources[k].parts[0].source_learn)
        for k in np.unique(bucket.j):
            assert bucket.target.items >= len(targets[k].parts[0].learn)
            assert bucket.target.held >= len(targets[k].parts[0].held)
    # Tasks of other widths fail, whichever bucket they would be in.
    assert len(plan.failed[0]) == sum(
        s[2] != t[2] for s, t in itertools.product(first, second)
    )
    done = np.array(
        sorted(data.draw(st.sets(st.sampled_from(sorted(every.tolist()))))), np.int64
    )
    left = plan.without(done)
    shares = [left.share(k, processes) for k in range(processes)]
    whole = [
        x
        for share in shares
        for x in (*share.failed[0], *(p for b in share.buckets for p in b.pair))
    ]
    assert sorted(whole) == sorted(set(every.tolist()) - set(done.tolist()))
    assert len(plan.only(done)) == len(done)


def test_few_pairs_are_not_worth_two_programs_and_many_are():
    small, large = TaskShape(3, 8, 64, 4), TaskShape(3, 8, 512, 32)
    merged, _ = merge_shapes(
        [small, large],
        [small],
        np.array([[5], [5]]),
        np.array([5, 5]),
        np.array([1]),
        True,
    )
    assert set(merged) == {large}
    many = np.array([[10**7, 10**7]])
    _, apart = merge_shapes(
        [small], [small, large], many, np.array([10]), np.array([10**6, 10**6]), True
    )
    assert len(set(apart)) == 2


def test_predicates_and_names_choose_pairs():
    sources = [
        record("a", encoder="e"),
        record("b", encoder="e"),
        record("b", encoder="f"),
    ]
    targets = [record("x", encoder="e"), record("x", encoder="f"), record("y")]
    i, j = choose_pairs(sources, targets, None)
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == {
        (0, 0),
        (1, 0),
        (2, 1),
        (0, 2),
        (1, 2),
        (2, 2),
    }
    i, j = choose_pairs(sources, targets, lambda s, t: s.name == "b" and t.name == "x")
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == {(1, 0), (2, 1)}
    i, j = choose_pairs(sources, targets, [("b", "x"), ("e/b", "y"), (0, 0), (0, 0)])
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == {
        (0, 0),
        (1, 0),
        (2, 1),
        (1, 2),
    }


@given(
    st.lists(st.sets(st.integers(0, 30)), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 30), max_size=9), min_size=1, max_size=4),
)
def test_shared_items_are_those_that_the_source_learned(learned, held):
    sources = [record(f"s{k}", learned=sorted(v)) for k, v in enumerate(learned)]
    targets = [record(f"t{k}", held=v) for k, v in enumerate(held)]
    shared = SharedItems(sources, targets)
    for j, items in enumerate(held):
        found = {source: sorted(rows.tolist()) for part, source, rows in shared.rows(j)}
        wanted = {
            i: [k for k, item in enumerate(items) if item in known]
            for i, known in enumerate(learned)
        }
        assert found == {i: rows for i, rows in wanted.items() if rows}


@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1), min_size=1)
)
def test_words_join_to_what_they_say(columns):
    joined = DictionaryColumn.joined(
        [DictionaryColumn.of(column) for column in columns]
    )
    said = [None if code < 0 else joined.names[code] for code in joined.codes]
    assert said == [word for column in columns for word in column]


def test_rows_come_back_as_they_were_written(tmp_path):
    import pyarrow.parquet as pq

    rows = {
        "pair": np.array([3, 1]),
        "source": DictionaryColumn.of(["s", "s"]),
        "reason": DictionaryColumn.of([None, "why"]),
        "score": np.array([0.5, np.nan]),
    }
    (tmp_path / "x.parquet").write_bytes(_parquet(rows, schema()))
    found = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["pair"] for row in found] == [3, 1]
    assert [row["reason"] for row in found] == [None, "why"]
    assert [row["score"] for row in found] == [0.5, None]
    assert found[0]["oscillation"] is None


def test_files_appear_whole_or_not_at_all(tmp_path):
    folder = Folder(tmp_path / "new")
    assert not folder.exists()
    assert folder.names("pairs") == []
    folder.write(b"abc", "pairs", "one")
    assert folder.names("pairs") == ["one"]
    assert folder.read("pairs", "one") == b"abc"
    (tmp_path / "new" / "pairs" / ".half").write_bytes(b"ab")
    assert folder.names("pairs") == ["one"]
    with pytest.raises(ValueError, match="cannot be opened"):
        Folder("nosuch://place/scan")


def test_every_core_is_a_device_unless_the_user_says_otherwise():
    """In a process of its own: devices are made once."""
    code = (
        "import jax, tta_jax; tta_jax.use_cores(3); print(jax.device_count()); "
        "tta_jax.use_cores(3)"
    )
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    }

    def run(**more):
        return subprocess.run(
            [sys.executable, "-c", code],
            env=clean | more,
            capture_output=True,
            text=True,
        )

    free, told = run(), run(JAX_NUM_CPU_DEVICES="5")
    assert int(free.stdout) == min(3, len(os.sched_getaffinity(0)))
    assert int(told.stdout) == 5
    assert told.returncode == 0
    forced = run(XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert int(forced.stdout) == 4
