"""Figures and pages: what is drawn against oracles, what is written against a parser of
HTML.
"""

import dataclasses
import io
import itertools
import json
import re
from html.parser import HTMLParser
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import tta_jax as tta
from tests.scans import scan_tasks
from tests.typed import on_host
from tta_jax.analysis import decomposition
from tta_jax.analysis.result import headline_bound
from tta_jax.bounds.chain import RUNGS
from tta_jax.evaluation import regression
from tta_jax.report import Page
from tta_jax.report.class_distances import class_distances
from tta_jax.report.embedding import fit_mds, principal_axes, project_features
from tta_jax.report.figures import _style
from tta_jax.report.figures.bounds import (
    analysis_figure,
    chain_figure,
    convergence_figure,
    mixing_figure,
    parts_figure,
    ranking_figure,
    relatedness_figure,
)
from tta_jax.report.figures.features import features_figure
from tta_jax.report.figures.scores import score_figure
from tta_jax.report.figures.tasks import distance_figure, task_map_figure
from tta_jax.report.html.report import find, report
from tta_jax.report.task_graph import task_graph

NASTY = "</th><script>alert('x')</script> & \"$5 or $6\""


def task(n, classes, seed, name, names=None, dim=8):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    features = rng.normal(size=(n, dim)).astype(np.float32)
    features[np.arange(n), labels] += 2.5
    return tta.Task.from_arrays(features, labels, class_names=names, name=name)


@pytest.fixture(scope="module")
def pair():
    return task(200, 4, 0, "wild & free", ["ant", "bee", NASTY, "dog"]), task(
        120, 3, 1, NASTY
    )


QUICK: dict[str, Any] = {"bootstrap": 20, "sinkhorn_iterations": 60}


@pytest.fixture(scope="module")
def result(pair):
    """Solved in closed form."""
    return tta.analyze(pair[0], None, pair[1], tta.Config(**QUICK))


@pytest.fixture(scope="module")
def descent(pair):
    """By steps of an optimiser; its file knows of them."""
    config = tta.Config(
        objective="oscillation",
        feature_map="translation",
        steps=30,
        restarts=2,
        **QUICK,
    )
    return tta.analyze(pair[0], None, pair[1], config)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    out = tmp_path_factory.mktemp("scan") / "scan"
    odd = scan_tasks.task(9, dim=5, name="odd")
    sources, targets = (
        scan_tasks.sources(4),
        [*scan_tasks.targets(3), scan_tasks.sources(1)[0], odd],
    )
    tta.scan(sources, targets, out, refine=1, config=scan_tasks.CONFIG)
    return out


@pytest.fixture(scope="module")
def evaluation():
    rng = np.random.default_rng(0)
    cells = [(m, t) for t in "xyz" for m in "abcdef"]
    truth = [{"encoder": m, "target": t, "accuracy": rng.uniform()} for m, t in cells]
    rows = [
        {
            "encoder": m,
            "target": t,
            "metric": "logme",
            "value": row["accuracy"] + 0.2 * rng.normal(),
        }
        for (m, t), row in zip(cells, truth, strict=True)
    ]
    return tta.evaluate(rows, truth, replicates=50)


class Reader(HTMLParser):
    """Tables as rows of cells, images, links, ids, and every tag's balance."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.images, self.tables, self.words = [], [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        if tag == "tr":
            self.tables[-1]["rows"].append([])
        if tag in ("th", "td"):
            self.tables[-1]["rows"][-1].append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data
        if "caption" in self.open:
            self.tables[-1]["caption"] += data
        elif self.open and self.open[-1] in ("th", "td"):
            self.tables[-1]["rows"][-1][-1][2] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def checked(made):
    """The page's reader, after what every page has to keep."""
    text = made.html()
    found = Reader(text)
    for _, attrs in found.tags:
        for name in ("src", "href"):
            assert re.match(
                r"(data:image/svg\+xml;base64,|#)", attrs.get(name) or "#"
            ), attrs
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
    assert (
        len(found.all("script"))
        == len(found.all("style"))
        == len(found.all("main"))
        == len(found.all("h1"))
        == 1
    )
    assert not {"link", "iframe", "object", "base"} & {name for name, _ in found.tags}
    assert found.all("html")[0]["lang"] == "en"
    assert all(len(image["alt"]) > 20 for image in found.images)
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {a["href"][1:] for a in found.all("a")} | {
        a["aria-labelledby"] for _, a in found.tags if "aria-labelledby" in a
    } <= set(ids)
    for table in found.tables:
        assert table["caption"]
        head, *rows = table["rows"]
        assert all(
            tag == "th" and attrs["scope"] == "col" and text
            for tag, attrs, text in head
        )
        for row in rows:
            assert len(row) == len(head)
            assert row[0][0] == "th"
            assert row[0][1]["scope"] == "row"
    assert all(
        attrs.get("tabindex") == "0"
        for _, attrs in found.tags
        if attrs.get("role") == "region"
    )
    assert made.html() == text
    return found


def column(table, name):
    head, *rows = table["rows"]
    place = [cell[2] for cell in head].index(name)
    return [row[place] for row in rows]


# -- parts and planes ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("held", [True, False])
def test_parts_add_up_to_their_rungs_and_are_those_of_the_certificate(
    result, descent, held
):
    for one in (result, descent):
        one = one if held else dataclasses.replace(one, held_out=None)
        bound, certificate = headline_bound(one)
        found = decomposition.rung_parts(bound)
        assert list(found) == list(RUNGS)
        for rung, pieces in found.items():
            assert sum(pieces.values()) == pytest.approx(
                getattr(bound, rung), abs=1e-12
            )
            assert pieces[decomposition.DISTRIBUTION] == pytest.approx(
                getattr(certificate, rung).upper, abs=1e-9
            )
            assert min(pieces.values()) >= -1e-12


def rectangles(axis):
    found = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    assert len(found) == len(axis.patches)
    return found


def test_drawn_bars_end_where_the_rungs_do(result, descent):
    figure = parts_figure([result, descent])
    drawn = [axis for axis in figure.axes if axis.axison]
    for axis, rung in zip(drawn, RUNGS, strict=True):
        assert axis.get_xscale() == "linear"
        for row, one in enumerate((result, descent)):
            bars = [
                bar
                for bar in rectangles(axis)
                if abs(bar.get_y() + bar.get_height() / 2 - row) < 0.1
            ]
            ends = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars)
            assert ends[0][0] == 0
            assert all(a[1] == pytest.approx(b[0]) for a, b in itertools.pairwise(ends))
            assert ends[-1][1] == pytest.approx(getattr(one.held_out.bound, rung))


def test_a_bar_of_another_size_is_cut_and_rungs_that_are_not_finite_are_named(result):
    row = {
        "source": "s",
        "target": "t",
        "target_loss": 0.1,
        "prior_entropy": 1.0,
        "tight": 0.3,
        "transformed_source_loss": 0.1,
        "reweighted_source_loss": 0.1,
        "label_mismatch": 0.0,
        "oscillation": 2.0,
        "lipschitz": None,
        "theorem": np.inf,
    }
    rows = [row, row | {"target": "u"}, row | {"target": "v", "oscillation": 500.0}]
    figure = parts_figure(rows)
    tight, oscillation = figure.axes
    assert oscillation.get_xlim()[1] < 20
    assert "500.00" in [text.get_text() for text in oscillation.texts]
    assert [text.get_text() for text in tight.texts] == ["0.30"] * 3
    figure = parts_figure([*rows, result])
    assert [text.get_text() for text in figure.axes[3].texts][:3] == [
        "not certified"
    ] * 3
    with pytest.raises(ValueError, match="results: no rung is finite"):
        parts_figure([{**row, "tight": None, "oscillation": None}])
    with pytest.raises(ValueError, match="results: it is empty"):
        parts_figure([])
    with pytest.raises(ValueError, match="names: found 1 for 3 results"):
        parts_figure(rows, ["a"])


@pytest.mark.parametrize("shape", [(40, 7), (6, 30)])
def test_principal_axes_are_those_of_the_singular_vectors(shape, x64):
    rng = np.random.default_rng(0)
    rows, weights = (
        rng.normal(size=shape) * np.linspace(3, 1, shape[1]) + 5,
        rng.uniform(0.5, 1, shape[0]),
    )
    found = principal_axes(rows, weights, 3)
    share = weights / weights.sum()
    mean = share @ rows
    _, sizes, axes = np.linalg.svd(
        (rows - mean) * np.sqrt(share)[:, None], full_matrices=False
    )
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.variances, sizes[:3] ** 2, rtol=1e-10)
    np.testing.assert_allclose(found.total, (sizes**2).sum(), rtol=1e-10)
    np.testing.assert_allclose(
        np.abs((np.asarray(found.axes) * axes[:3]).sum(1)), 1, rtol=1e-10
    )
    assert (
        np.asarray(found.axes)[np.arange(3), np.abs(found.axes).argmax(1)] > 0
    ).all()
    np.testing.assert_allclose(
        np.abs(found(rows)), np.abs((rows - mean) @ axes[:3].T), atol=1e-9
    )


def test_points_in_a_plane_are_found_again(x64):
    points = np.random.default_rng(1).normal(size=(12, 2)) * [3, 1]
    wanted = np.linalg.norm(points[:, None] - points[None], axis=-1)
    found = fit_mds(wanted)
    placed = np.asarray(found.points)
    np.testing.assert_allclose(
        np.linalg.norm(placed[:, None] - placed[None], axis=-1), wanted, atol=1e-8
    )
    assert found.stress < 1e-9
    assert placed[:, 0].std() > placed[:, 1].std()


def test_scaling_lowers_the_stress_of_the_classical_start(x64):
    rng = np.random.default_rng(2)
    noise = rng.uniform(0.5, 1, (15, 15))
    wanted = (noise + noise.T) * (1 - np.eye(15))
    centre = np.eye(15) - 1 / 15
    values, vectors = np.linalg.eigh(-centre @ wanted**2 @ centre / 2)
    start = vectors[:, -2:] * np.sqrt(values[-2:])

    def stress(x):
        return np.sqrt(
            ((np.linalg.norm(x[:, None] - x[None], axis=-1) - wanted) ** 2).sum()
            / (wanted**2).sum()
        )

    found = fit_mds(wanted)
    assert stress(np.asarray(found.points)) == pytest.approx(float(found.stress))
    assert found.stress < 0.8 * stress(start)


def test_relations_average_directions_and_go_over_others():
    rows = [
        {"source": "a", "target": "b", "score": 0.9},
        {"source": "b", "target": "a", "score": 0.7},
        {"source": "a", "target": "c", "score": 0.4},
        {
            "source": "a",
            "target": "c",
            "score": 0.5,
        },  # another encoder: the best counts
        {
            "source": "b",
            "target": "c",
            "score": 0.95,
        },  # a detour shorter than a to c, which has a score of its own
        {
            "source": "b",
            "target": "d",
            "score": -3.0,
        },  # worse than guessing is guessing
        {"source": "x", "target": "y", "score": 0.5},
        {"source": "c", "target": "c", "score": None},
    ]
    found = task_graph(rows)
    assert found.names == ("a", "b", "c", "d")
    assert found.left_out == ("x", "y")
    wanted = [
        [0, 0.2, 0.5, 1.2],
        [0.2, 0, 0.05, 1],
        [0.5, 0.05, 0, 1.05],
        [1.2, 1, 1.05, 0],
    ]
    np.testing.assert_allclose(found.distances, wanted)
    assert found.measured == pytest.approx(4 / 6)
    assert set(found.best) == {(0, 1), (1, 0), (1, 2), (1, 3)}
    losses = task_graph(
        [row | {"tight": -row["score"] if row["score"] else None} for row in rows],
        "tight",
    )
    assert losses.distances[0, 1] < losses.distances[1, 3] == 1
    with pytest.raises(ValueError, match="none has a source"):
        task_graph(rows[-1:])
    with pytest.raises(ValueError, match="three tasks that hang together; 2 do"):
        task_graph(rows[:2])


# -- lines -----------------------------------------------------------------------------


def test_a_line_is_that_of_numpy_and_its_interval_that_of_its_draws():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30) + 1e4
    y = 0.5 * (x - 1e4) + rng.normal(size=30)
    found = regression.fit_line([*x, np.nan], [*y, 1.0], replicates=400)
    slope, intercept = np.polyfit(x - 1e4, y, 1)
    assert found.slope == pytest.approx(slope)
    assert found.intercept == pytest.approx(intercept - slope * 1e4, rel=1e-6)
    assert found.pearson == pytest.approx(np.corrcoef(x, y)[0, 1])
    again = tta.ranking.correlate(x, y, ["pearson"], over="models", replicates=400)[
        "pearson"
    ]
    assert (found.low, found.high) == pytest.approx((again.low, again.high))
    low, high = found.band(np.array([x.min(), x.mean(), x.max()]))
    assert (
        (low < found.slope * np.array([x.min(), x.mean(), x.max()]) + found.intercept)
        & (low < high)
    ).all()
    assert high[1] - low[1] < min(high[0] - low[0], high[2] - low[2])
    assert "30 points; bootstrap over points" in found.words()


def test_groups_are_drawn_whole_where_there_are_enough():
    rng = np.random.default_rng(0)
    centre = np.repeat(rng.normal(size=(8, 2)) * 3, 20, axis=0)
    x, y = (centre + rng.normal(size=(160, 2)) * 0.1).T
    groups = [f"g{k // 20}" for k in range(160)]
    by_points, by_groups = regression.fit_line(x, y), regression.fit_line(x, y, groups)
    assert by_groups.drawn == "8 groups"
    assert by_groups.high - by_groups.low > 2 * (by_points.high - by_points.low)
    assert regression.fit_line(x[:60], y[:60], groups[:60]).drawn == "points"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (([1, 1, 1], [1, 2, 3]), "three points of different scores; found 1"),
        (([1, 2, np.nan], [1, 2, 3]), "three points of different scores; found 2"),
        (([1, 2], [1, 2, 3]), r"found shapes \(2,\) and \(3,\)"),
        (([1, 2, 3], [1, 2, 3], ["a"]), "one score, truth and group for each"),
    ],
)
def test_no_line(given, says):
    with pytest.raises(ValueError, match=says):
        regression.fit_line(*given)


# -- figures ---------------------------------------------------------------------------


def test_every_figure_is_one_of_its_own_and_written_the_same_twice(
    result, descent, pair, tmp_path
):
    import matplotlib

    backend = matplotlib.rcParams["backend"]
    found = task_graph(
        [
            {"source": f"s{i}", "target": f"t{j}", "score": (i * j % 5) / 5}
            for i in range(4)
            for j in range(5)
        ]
    )
    draw = {
        "analysis": lambda path: analysis_figure(result, path),
        "chain": lambda path: chain_figure(descent, path),
        "mixing": lambda path: mixing_figure(result, path),
        "relatedness": lambda path: relatedness_figure(result, path),
        "parts": lambda path: parts_figure(result, path=path),
        "convergence": lambda path: convergence_figure(descent, path),
        "ranking": lambda path: ranking_figure([result, descent], [0.1, 0.2], path),
        "features": lambda path: features_figure(descent, pair[0], pair[1], path),
        "distance": lambda path: distance_figure(
            result, pair[0], pair[1], path, space="logits"
        ),
        "score": lambda path: score_figure(
            [1, 2, 3, 5], [2, 1, 4, 4], "abab", [NASTY, "b", "c", "d"], path=path
        ),
        "map": lambda path: task_map_figure(found, path),
    }
    for name, made in draw.items():
        files = [tmp_path / f"{name}{k}.svg" for k in range(2)]
        for file in files:
            assert isinstance(made(file), Figure)
        assert files[0].read_bytes() == files[1].read_bytes()
        assert files[0].read_bytes().startswith(b"<?xml")
    for name, starts in (
        ("a.png", b"\x89PNG"),
        ("no_suffix", b"\x89PNG"),
        ("a.pdf", b"%PDF"),
        ("b.pdf", b"%PDF"),
    ):
        draw["chain"](tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(starts)
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert matplotlib.rcParams["backend"] == backend


def test_labels_overlap_neither_each_other_nor_a_point():
    rng = np.random.default_rng(0)
    points = np.concatenate(
        [rng.normal(size=(20, 2)) * 0.15, rng.normal(size=(10, 2)) + 1]
    )
    figure = _style.new_figure(figsize=(9, 7))
    axis = figure.subplots()
    axis.scatter(*points.T)
    axis.margins(0.15)
    _style.place_labels(axis, points, [f"a task named {k}" for k in range(30)])
    figure.savefig(io.BytesIO())
    boxes = [text.get_window_extent() for text in axis.texts]
    frame, at = axis.get_window_extent(), axis.transData.transform(points)
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:k])
        assert not any(box.contains(*place) for place in at)
        assert frame.contains(box.x0, box.y0)
        assert frame.contains(box.x1, box.y1)


def test_convergence_shows_what_was_recorded_and_nothing_where_nothing_was(
    descent, result
):
    figure = convergence_figure(descent)
    drawn = [line.get_ydata() for line in figure.axes[0].lines]
    for run in range(2):
        assert any(
            np.array_equal(line, descent.info["info_validation"][run]) for line in drawn
        )
    best = int(np.argmin(descent.info["validation"]))
    assert drawn[-1] == pytest.approx([descent.info["validation"][best]])
    with pytest.raises(ValueError, match="nothing was iterated"):
        convergence_figure(result)


def test_features_after_the_map_are_where_the_map_puts_them(descent, pair):
    source, target = pair
    clouds = project_features(descent, source, target)
    before, after = clouds.source
    z = np.asarray(descent.source_scaler(source.features))
    np.testing.assert_allclose(before, z, rtol=1e-6)
    np.testing.assert_allclose(
        after, descent.transforms.feature_map(z), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        clouds.target[1], descent.target_scaler(target.features), rtol=1e-6
    )
    joint = np.asarray(descent.transforms.coupling)
    for k in range(4):
        mine = clouds.carried[np.asarray(source.labels) == k]
        assert (mine == (joint[:, k].argmax() if joint[:, k].sum() > 0 else -1)).all()
    logits = project_features(descent, source, target, space="logits").target[1]
    used = joint.sum(0) > 0
    x = np.asarray(descent.target_scaler(target.features))
    wanted = np.asarray(descent.transforms.feature_map.target_logits(descent.head, x))[
        :, used
    ]
    np.testing.assert_allclose(
        logits, wanted - wanted.mean(1, keepdims=True), rtol=1e-4, atol=1e-4
    )


def test_class_distances_are_those_of_gaussians(descent, pair):
    from scipy.linalg import sqrtm

    source, target = pair
    found = class_distances(descent, source, target)
    z, u = (
        np.asarray(s(t.features), np.float64)
        for s, t in ((descent.source_scaler, source), (descent.target_scaler, target))
    )
    moved = np.asarray(descent.transforms.feature_map(z), np.float64)
    for rows, values in ((z, found.before), (moved, found.after)):
        for t, s in ((0, 1), (2, 3)):
            a, b = (
                u[np.asarray(target.labels) == t],
                rows[np.asarray(source.labels) == s],
            )
            root = sqrtm(np.cov(a.T, bias=True))
            cross = sqrtm(root @ np.cov(b.T, bias=True) @ root)
            squared = (
                ((a.mean(0) - b.mean(0)) ** 2).sum()
                + a.var(0).sum()
                + b.var(0).sum()
                - 2 * np.trace(cross).real
            )
            assert values[t, s] == pytest.approx(np.sqrt(squared), rel=1e-3)


def test_features_that_are_not_those_of_the_analysis_are_refused(result, pair):
    source, target = pair
    with pytest.raises(ValueError, match="source: it has 5 features, the analysis 8"):
        project_features(result, task(40, 4, 0, "x", dim=5), target)
    with pytest.raises(
        ValueError,
        match=(
            r"target: its classes .0, 1, 2, 3. are not those of the analysis .0, 1, "
            r"2."
        ),
    ):
        project_features(result, source, task(40, 4, 0, "x"))
    with pytest.raises(ValueError, match="space: found 'pixels'"):
        project_features(result, source, target, space="pixels")
    blind = tta.Task.from_arrays(target.features, None, name="blind")
    with pytest.raises(ValueError, match="target: it has no labels"):
        class_distances(result, source, blind)
    with pytest.raises(ValueError, match="source: it has no labels"):
        project_features(result, blind, target)
    phi = on_host(
        tta.feature_maps.LogitAffine,
        np.ones((4, 8)),
        np.zeros(4),
        reason="it was not completed",
    )
    bare = dataclasses.replace(
        result, transforms=dataclasses.replace(result.transforms, feature_map=phi)
    )
    with pytest.raises(
        ValueError, match=r"no features of its own to show .it was not completed"
    ):
        project_features(bare, source, target)
    assert (
        project_features(bare, source, target, space="logits").target[1].shape[0] == 120
    )


# -- pages -----------------------------------------------------------------------------


def test_a_table_escapes_formats_and_bounds_its_rows():
    rows = [
        {
            "name": NASTY,
            "value": 0.12345,
            "share": 0.5,
            "count": 12345,
            "holds": True,
            NASTY: "x",
        },
        {
            "name": "b",
            "value": float("nan"),
            "share": None,
            "count": np.int64(3),
            "holds": np.bool_(False),
        },
        {
            "name": "c",
            "value": float("inf"),
            "share": 1,
            "count": 7,
            "late": "only here",
        },
        {"name": "d", "value": 0.00001234, "share": np.float32(0.25), "count": 8},
    ]
    made = (
        Page(NASTY)
        .section(NASTY)
        .text(NASTY)
        .note(NASTY)
        .items([NASTY])
        .preformatted(NASTY, NASTY)
    )
    made.table(rows, caption=NASTY, digits=2, formats={"share": ".0%"}, most=3).table(
        [], caption="Nothing"
    )
    found = checked(made)
    (table,) = found.tables
    assert table["caption"] == NASTY
    assert [cell[2] for cell in table["rows"][0]] == [
        "name",
        "value",
        "share",
        "count",
        "holds",
        NASTY,
        "late",
    ]
    assert [cell[2] for cell in column(table, "value")] == ["0.12", "", "inf"]
    assert [cell[1].get("data-v") for cell in column(table, "value")] == [
        "0.12345",
        None,
        "Infinity",
    ]
    assert [cell[2] for cell in column(table, "share")] == ["50%", "", "100%"]
    assert [cell[2] for cell in column(table, "count")] == ["12,345", "3", "7"]
    assert [cell[2] for cell in column(table, "holds")] == ["yes", "no", ""]
    assert "3 of 4 rows are shown." in found.words
    assert "Nothing: no rows." in found.words
    assert "<p>See <code>a &lt; b</code>.</p>" in Page("t").text("See `a < b`.").html()
    made = Page("x").table(rows[3:], caption="y")
    assert "1.23e-05" in made.html()


def content(tag, text):
    found = re.search(f"<{tag}>(.*?)</{tag}>", text, re.S)
    assert found
    return found.group(1)


def test_the_policy_allows_the_pages_own_script_and_nothing_else():
    import base64
    import hashlib

    text = Page("t").table([{"a": 1}], caption="c").html()
    policy = Reader(text).all("meta")[1]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("script", "style"):
        inside = content(tag, text)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?://", text)


def luminance(colour):
    def channel(v):
        return v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4

    value = colour.removeprefix("#")
    value = "".join(2 * c for c in value) if len(value) == 3 else value
    return np.dot(
        [0.2126, 0.7152, 0.0722],
        [channel(int(value[k : k + 2], 16) / 255) for k in (0, 2, 4)],
    )


def test_colours_have_the_contrast_that_readers_need():
    style = content("style", Page("t").html())
    themes = re.findall(r":root\s*\{([^}]*)\}", style)
    assert len(themes) == 3  # light, dark, print
    for theme in themes:
        colours = dict(re.findall(r"--(\w+):\s*(#\w+)", theme))
        for ink in ("ink", "soft", "link"):
            for ground in ("paper", "band", "note"):
                light, dark = sorted(
                    (luminance(colours[ink]), luminance(colours[ground])), reverse=True
                )
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_a_page_is_written_whole_and_the_same(tmp_path, result):
    def make():
        return Page("t").figure(
            chain_figure(result),
            caption="c",
            alt="a chain of bounds on a log scale",
        )

    sizes = [make().write(tmp_path / name) for name in ("a.html", "b.html")]
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sizes == [(tmp_path / "a.html").stat().st_size] * 2
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_the_page_of_an_analysis(result, pair, tmp_path):
    result.save(tmp_path / "a.tta")
    source, target = pair
    found = checked(report(tmp_path / "a.tta"))
    assert len(found.images) == 4
    assert "--source SOURCE.npz --target TARGET.npz" in found.words
    assert "Nothing was iterated" in found.words
    assert found.words.index("Expect about") < found.words.index(
        "Bounds on the target loss"
    )
    related, chain = found.tables[:2]
    assert [float(cell[1]["data-v"]) for cell in column(related, "nats")] == [
        result.relatedness.bound.directed,
        result.relatedness.theorem_bound.theorem,
    ]
    values = [float(cell[1]["data-v"]) for cell in column(chain, "nats")]
    bound = result.held_out.bound
    assert values == [
        bound.target_loss,
        *(getattr(bound, rung) for rung in RUNGS),
        bound.prior_entropy,
    ]
    shares = next(t for t in found.tables if "adds up" in t["caption"])
    nats = [float(cell[1]["data-v"]) for cell in column(shares, "nats")]
    for rung in RUNGS:
        mine = [
            v
            for v, cell in zip(nats, column(shares, "rung"), strict=True)
            if cell[2] == rung
        ]
        assert sum(mine) == pytest.approx(getattr(bound, rung))
    full = checked(
        report(tmp_path / "a.tta", source=source, target=target, title="Mine")
    )
    assert len(full.images) == 7
    assert full.words.count("SHA-256") == 2
    assert "Mine" in full.words
    for reader in (found, full):
        assert "numpy" in reader.words
        assert "sinkhorn_iterations" in reader.words


def test_the_page_of_a_descent_without_hold_out_and_of_a_chain_that_broke(
    descent, result, pair, tmp_path
):
    dataclasses.replace(descent, held_out=None).save(tmp_path / "d.tta")
    found = checked(report(tmp_path / "d.tta"))
    assert len(found.images) == 5
    assert "In sample only" in found.words
    broken = dataclasses.replace(
        result,
        certificate=dataclasses.replace(result.certificate, holds=False),
        warnings=("Mind this.",),
    )
    broken.save(tmp_path / "b.tta")
    made = report(tmp_path / "b.tta").html()
    assert 'role="note">The chain does not hold' in made
    assert 'role="note">Mind this.' in made


def test_the_page_of_rungs_that_are_not_certified(pair, tmp_path):
    blind = tta.Task.from_arrays(pair[1].features, None, name="blind")
    config = tta.Config(rungs="tight", **QUICK)
    tta.analyze(pair[0], None, blind, config).save(tmp_path / "b.tta")
    found = checked(report(tmp_path / "b.tta", source=pair[0], target=blind))
    assert "pseudo-labels" in found.words
    assert "no distances between classes" in found.words
    assert [cell[2] for cell in column(found.tables[0], "nats")][2:5] == ["inf"] * 3


def test_the_page_of_several_analyses(result, descent, tmp_path):
    (tmp_path / "deep").mkdir()
    result.save(tmp_path / "a.tta")
    descent.save(tmp_path / "deep" / "analysis.tta")
    dataclasses.replace(result, target_name="third", held_out=None).save(
        tmp_path / "c.tta"
    )
    (tmp_path / "cut.tta").write_bytes((tmp_path / "a.tta").read_bytes()[:500])
    found = checked(report(tmp_path))
    ranking = found.tables[0]
    scores = [float(cell[1]["data-v"]) for cell in column(ranking, "score") if cell[2]]
    assert scores == sorted(scores, reverse=True)
    assert {cell[2] for cell in column(ranking, "file")} == {
        "a.tta",
        "deep/analysis.tta",
        "c.tta",
    }
    assert column(found.tables[-1], "file")[0][2] == "cut.tta"
    assert (
        "is damaged or not a saved analysis" in column(found.tables[-1], "reason")[0][2]
    )
    assert "A map needs" in found.words
    few = checked(report(tmp_path, top=1))
    assert "The best 1 of 3 pairs" in few.words


@pytest.mark.slow
def test_the_page_of_a_scan(scanned):
    found = checked(report(scanned, top=3))
    result = tta.ScanResult.load(scanned)
    best = result.rank(top=3)
    table = next(t for t in found.tables if "pairs by score" in t["caption"])
    assert [cell[2] for cell in column(table, "source")] == [
        row["source"] for row in best
    ]
    assert [float(cell[1]["data-v"]) for cell in column(table, "score")] == [
        row["score"] for row in best
    ]
    served = next(t for t in found.tables if "Best source by score" in t["caption"])
    for target, source in zip(
        column(served, "target"), column(served, "source"), strict=True
    ):
        rows = result.rank(target=target[2], top=None)
        assert source[2] == max(rows, key=lambda row: row["score"])["source"]
    assert "3 of 4 targets" in served["caption"]
    failed = next(t for t in found.tables if "pairs without figures" in t["caption"])
    assert {cell[2] for cell in column(failed, "target")} == {"odd"}
    assert "use the same encoder" in column(failed, "reason")[0][2]
    served_by = {
        row["target"]: row["source"]
        for row in sorted(result.rank(top=None), key=lambda row: row["score"])
    }
    mapped = {*served_by, *served_by.values()}
    assert any(f"Map of {len(mapped)} tasks" in image["alt"] for image in found.images)
    assert any("Stacked bars" in image["alt"] for image in found.images)
    assert all(len(t["rows"]) <= 4 for t in found.tables if "content" in t["caption"])


def test_the_page_of_a_scan_that_has_not_begun(scanned, tmp_path):
    (tmp_path / "manifest.json").write_bytes((scanned / "manifest.json").read_bytes())
    found = checked(report(tmp_path))
    assert "No pair has figures yet" in found.words


def test_the_page_of_an_evaluation(evaluation, tmp_path):
    evaluation.save(tmp_path / "evaluation.tta")
    made = [report(where) for where in (tmp_path, tmp_path / "evaluation.tta")]
    assert made[0].html() == made[1].html()
    found = checked(made[0])
    table = found.tables[0]
    wanted = evaluation.table()
    assert [float(c[1]["data-v"]) for c in column(table, "weighted_tau") if c[2]] == [
        row["weighted_tau"] for row in wanted if np.isfinite(row["weighted_tau"])
    ]
    targets = next(
        t for t in found.tables if t["caption"].startswith("Weighted tau on each")
    )
    assert [cell[2] for cell in column(targets, "target")] == ["x", "y", "z"]
    per_target = evaluation.estimates["logme"]["weighted_tau"].per_target
    assert [
        float(cell[1]["data-v"]) for cell in column(targets, "logme")
    ] == per_target.tolist()
    assert any("standardised within targets" in image["alt"] for image in found.images)
    assert all(line.replace("`", "") in found.words for line in evaluation.notes())


def test_what_cannot_be_reported_is_said_in_a_line(result, scanned, tmp_path):
    def refused(path, says, **options):
        with pytest.raises(ValueError, match=says) as caught:
            report(path, **options)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none.tta", "path: there is no file or folder '.*none.tta'")
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "empty",
        "holds no analysis, scan, evaluation or choice .it holds nothing",
    )
    (tmp_path / "empty" / "notes.txt").write_text("x")
    refused(tmp_path / "empty", "it holds notes.txt.*wrote with --out")
    np.savez(tmp_path / "f.npz", features=np.ones((3, 2)))
    refused(tmp_path / "f.npz", "f.npz' is a file of features; analyse it first")
    (tmp_path / "t.csv").write_text("a,b\n")
    refused(tmp_path / "t.csv", "t.csv' is a table; compare it")
    refused(tmp_path / "empty" / "notes.txt", "is no .tta file")
    (tmp_path / "cut").mkdir()
    result.save(tmp_path / "good.tta")
    (tmp_path / "cut" / "cut.tta").write_bytes(
        (tmp_path / "good.tta").read_bytes()[:900]
    )
    refused(tmp_path / "cut" / "cut.tta", "cut.tta' is damaged or not a saved analysis")
    refused(tmp_path / "cut", "of 1 files in .* none can be read")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_text(json.dumps({"kind": 1}))
    refused(tmp_path / "bad", "manifest of .* is damaged")
    refused(tmp_path / "good.tta", "top: found 0", top=0)
    refused(
        tmp_path / "good.tta",
        "target: give both tasks, or neither",
        source=task(20, 2, 0, "s"),
    )
    both = {"source": task(20, 2, 0, "s"), "target": task(20, 2, 0, "t")}
    refused(
        scanned, "source: features belong to a single analysis; this is a scan", **both
    )
    assert find(tmp_path / "good.tta").kind == "analysis"
    assert find(scanned).kind == "scan"


def wide_scan(folder, template, number):
    """A screened scan of `number` sources and as many targets, every hundredth pair
    failed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tta_jax.scans.parquet_store import schema

    manifest = json.loads((template / "manifest.json").read_text())
    one, pairs = manifest["sources"][0], number**2
    for role in ("source", "target"):
        manifest[f"{role}s"] = [one | {"name": f"{role} {k}"} for k in range(number)]
    manifest["pairs"]["number"] = pairs
    (folder / "pairs" / "stage=screen").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    source, target = np.divmod(np.arange(pairs), number)
    score = np.random.default_rng(0).uniform(size=pairs)
    failed = np.arange(pairs) % 100 == 99
    columns = {
        "pair": np.arange(pairs),
        "encoder": [""] * pairs,
        "source": [f"source {k}" for k in source],
        "target": [f"target {k}" for k in target],
        "status": np.where(failed, "failed", "ok"),
        "reason": np.where(failed, "it is odd", ""),
        "score": np.where(failed, np.nan, score),
    }
    arrays = [
        pa.array(columns[f.name], from_pandas=True).cast(f.type)
        if f.name in columns
        else pa.nulls(pairs, f.type)
        for f in schema()
    ]
    table = pa.Table.from_arrays(arrays, schema=schema())
    pq.write_table(
        table, folder / "pairs" / "stage=screen" / "part-00000-000000000000-1.parquet"
    )
    return np.where(failed, -1, score).reshape(number, number)


def test_a_scan_of_many_rows_makes_a_page_of_bounded_size(scanned, tmp_path):
    sizes = {}
    for number in (40, 250):
        scores = wide_scan(tmp_path / str(number), scanned, number)
        made = report(tmp_path / str(number), top=5)
        found, sizes[number] = checked(made), len(made.html())
        served = next(t for t in found.tables if "Best source by score" in t["caption"])
        best = np.argsort(-scores.max(0))[:5]
        assert [cell[2] for cell in column(served, "target")] == [
            f"target {k}" for k in best
        ]
        assert [cell[2] for cell in column(served, "source")] == [
            f"source {k}" for k in scores.argmax(0)[best]
        ]
        assert f"5 of {number} targets" in served["caption"]
        assert f"50 of {number**2 // 100:,} pairs" in found.words or number == 40
        assert any("Map of 30 tasks" in image["alt"] for image in found.images)
    assert sizes[250] < 1.5 * sizes[40]


def test_figures_do_not_depend_on_the_key_of_jax(result, pair):
    first = features_figure(result, *pair)
    jax.random.key(7)
    np.random.default_rng(3).normal(size=5)
    assert _style.rendered(first, "svg") == _style.rendered(
        features_figure(result, *pair), "svg"
    )
