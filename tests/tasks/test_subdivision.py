"""Sources with fewer classes than the target."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tta_jax as tta
from tests.typed import anything, held_out
from tta_jax.cli.main import main
from tta_jax.data import save_features
from tta_jax.tasks.subdivision import LEAST


def blobs(classes, of_each, items, seed=0, d=6, **more):
    """Classes that are each a few blobs, every blob on an axis of its own."""
    rng = np.random.default_rng(seed)
    blob = np.repeat(np.arange(classes * of_each), items)
    centres = 8 * np.eye(max(d, classes * of_each))[: classes * of_each]
    features = centres[blob] + rng.normal(size=(len(blob), centres.shape[1]))
    return tta.Task.from_arrays(
        features.astype(np.float32), blob // of_each, **more
    ), blob


def test_finds_the_blobs_of_each_class():
    task, blob = blobs(2, 2, 60, class_names=["cat", "dog"])
    found = tta.subdivided(task, 4)
    assert found.class_names == ("cat/1", "cat/2", "dog/1", "dog/2")
    assert np.bincount(found.labels).tolist() == [60] * 4
    pairs = set(zip(blob.tolist(), np.asarray(found.labels).tolist(), strict=True))
    assert len(pairs) == 4  # one sub-class for each blob


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000), st.integers(2, 5), st.integers(2, 12), st.integers(5, 200)
)
def test_classes_are_only_divided_and_no_part_is_small(seed, classes, wanted, items):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, items)])
    features = np.round(
        rng.normal(size=(len(labels), 3)), int(rng.integers(0, 3))
    )  # with many equal rows at times
    task = tta.Task.from_arrays(
        features,
        labels,
        labelled=rng.random(len(labels))
        < np.where(np.arange(len(labels)) < classes, 1, 0.8),
    )
    found = tta.subdivided(task, wanted)
    known = np.asarray(task.labelled)
    old, new = np.asarray(task.labels)[known], np.asarray(found.labels)[known]
    parent = {int(b): int(a) for a, b in zip(old, new, strict=True)}
    assert all(
        parent[int(b)] == a for a, b in zip(old, new, strict=True)
    )  # a sub-class has one class
    assert np.array_equal(found.features, task.features)
    assert np.array_equal(found.labelled, task.labelled)
    assert task.num_classes <= found.num_classes <= max(wanted, task.num_classes)
    assert found.num_classes == len(set(found.class_names)) == len(parent)
    sizes = np.bincount(new, minlength=found.num_classes)
    divided = np.array(
        [
            sum(p == parent[k] for p in parent.values()) > 1
            for k in range(found.num_classes)
        ]
    )
    assert (sizes[divided] >= LEAST).all()
    # What a report does with the file and the number of classes of an analysis.
    again = tta.subdivided(task, found.num_classes)
    assert again.class_names == found.class_names
    assert np.array_equal(again.labels, found.labels)


def test_leaves_a_task_with_enough_classes_alone():
    task, _ = blobs(3, 1, 20)
    assert tta.subdivided(task, 3) is task
    few, _ = blobs(2, 1, 2 * LEAST - 1)
    assert (
        tta.subdivided(few, 4).num_classes == 2
    )  # nothing to divide: halves would be too small
    same = tta.Task.from_arrays(np.ones((80, 4)), [0, 1] * 40)
    assert tta.subdivided(same, 4).num_classes == 2  # copies cannot be told apart


@pytest.mark.parametrize("number", [0, 1, -3, 2.5, "4", None, True])
def test_refuses_a_number_that_is_none(number):
    with pytest.raises(ValueError, match="num_classes: found"):
        tta.subdivided(blobs(2, 1, 20)[0], number)


def test_rows_in_any_order_and_many_equal_ones():
    task, _ = blobs(2, 2, 2500, d=80)
    order = (
        np.arange(len(task)).reshape(2, -1).T.ravel()
    )  # classes by turns, more rows than are looked at for the axes
    assert sorted(np.bincount(tta.subdivided(task.take(order), 4).labels)) == [2500] * 4
    for share in (
        0.45,
        0.55,
    ):  # one feature of two values, on either side of the median
        ones = (np.arange(200) < 200 * share).astype(np.float32)
        two = tta.Task.from_arrays(np.tile(ones, 2)[:, None], np.repeat([0, 1], 200))
        assert tta.subdivided(two, 4).num_classes == 4


def test_refuses_tasks_without_labels_and_names_that_clash():
    with pytest.raises(ValueError, match="no labels"):
        tta.subdivided(tta.Task.from_arrays(np.eye(20), None), 4)
    task, _ = blobs(2, 2, 40, class_names=["a", "a/1"])
    with pytest.raises(ValueError, match="found str"):
        tta.subdivided(anything("photos.npz"), 4)
    with pytest.raises(ValueError, match=r"'a/1'.*rename"):
        tta.subdivided(task, 3)


@pytest.fixture(scope="module")
def pair():
    source, _ = blobs(2, 4, 60, name="source")
    target, _ = blobs(8, 1, 40, seed=1, d=8, name="target")
    return source, target


@pytest.mark.slow
def test_a_source_of_two_classes_serves_eight(pair):
    source, target = pair
    config = tta.Config(bootstrap=0)
    plain = dataclasses.replace(config, divide_source=False)
    coarse = tta.analyze(source, None, target, plain)
    fine = tta.analyze(tta.subdivided(source, 8), None, target, config)
    assert any("fewer than the target's 8" in warning for warning in coarse.warnings)
    assert not any("fewer" in warning for warning in fine.warnings)
    assert coarse.holds
    assert fine.holds
    after, before = held_out(fine).bound, held_out(coarse).bound
    assert after.target_loss < 0.2 * before.target_loss
    assert after.tight < 0.5 * before.tight


@pytest.mark.slow
def test_command_and_its_page(pair, tmp_path, capsys):
    for task in pair:
        save_features(tmp_path / f"{task.name}.npz", task)
    words = [
        "analyze",
        "--source",
        str(tmp_path / "source.npz"),
        "--target",
        str(tmp_path / "target.npz"),
        "--bootstrap",
        "0",
    ]
    assert main([*words, "--rungs", "tight"]) == 0
    assert "divided into 16 by their features" in capsys.readouterr().out
    assert main([*words, "--rungs", "tight", "--no-divide-source"]) == 0
    assert "must share them" in capsys.readouterr().out
    assert main([*words, "--subdivide", "16", "--out", str(tmp_path / "out")]) == 0
    assert "fewer" not in capsys.readouterr().out
    found = tta.Analysis.load(tmp_path / "out" / "analysis.tta")
    assert len(found.source_classes) == 16
    page = [
        "report",
        str(tmp_path / "out"),
        "--source",
        str(tmp_path / "source.npz"),
        "--target",
        str(tmp_path / "target.npz"),
    ]
    assert main(page) == 0
    assert "0/1" in (tmp_path / "out" / "report.html").read_text()


def test_command_refuses_a_head_beside_it(pair, tmp_path, capsys):
    for task in pair:
        save_features(tmp_path / f"{task.name}.npz", task)
    head = tta.fit_head(pair[0], key=jax.random.key(0))
    np.savez(
        tmp_path / "head.npz",
        weight=np.asarray(head.weight),
        bias=np.asarray(head.bias),
    )
    words = [
        "analyze",
        "--source",
        str(tmp_path / "source.npz"),
        "--target",
        str(tmp_path / "target.npz"),
    ]
    assert (
        main([*words, "--head", str(tmp_path / "head.npz"), "--subdivide", "16"]) == 2
    )
    assert "leave --head or --subdivide out" in capsys.readouterr().err
