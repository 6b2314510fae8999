"""Fine-tuning as ground truth: it learns what a frozen encoder cannot, stops in time,
and judges on the test items alone.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tta_jax as tta
from tests.typed import anything
from tta_jax._internal.warning import DataWarning
from tta_jax.data import Encoder, Examples, as_examples, extract_features, fine_tuning
from tta_jax.data.fine_tuning import FineTuneResult


class Net(nnx.Module):
    """Two hidden layers with what evaluation mode switches off."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.first, self.second = (
            nnx.Linear(8, 16, rngs=rngs),
            nnx.Linear(16, 4, rngs=rngs),
        )
        self.norm, self.drop = nnx.BatchNorm(16, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def features(self, x):
        return nnx.relu(self.second(self.drop(self.norm(nnx.relu(self.first(x))))))


def exclusive_or(n, seed):
    """Four corners of a square, opposite ones alike: a task for hidden layers, here in
    the first two of eight inputs.
    """
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 2, (n, 2))
    x = rng.normal(size=(n, 8)).astype(np.float32)
    x[:, :2] = 2 * corner - 1 + 0.2 * x[:, :2]
    return x, np.array(["same", "other"])[corner.sum(1) % 2]


@pytest.fixture(scope="module")
def tuned():
    (x, y), (u, v) = exclusive_or(400, 0), exclusive_or(300, 1)
    net = Net()
    before = [np.array(leaf) for leaf in nnx.state(net, nnx.Param).flat_state().leaves]
    seen = []
    result = tta.fine_tune(
        net,
        x,
        u,
        train_labels=y,
        test_labels=v,
        learning_rates=(1e-2, 1e-3),
        epochs=40,
        progress=lambda *a: seen.append(a),
    )
    after = [np.array(leaf) for leaf in nnx.state(net, nnx.Param).flat_state().leaves]
    assert all(
        (a == b).all() for a, b in zip(before, after, strict=True)
    )  # the module stays as it is
    return net, (x, y), (u, v), result, seen


def test_it_learns_what_a_linear_probe_cannot(tuned):
    net, (x, y), (u, v), result, seen = tuned
    train, test = (
        extract_features(net, a, labels=b, cache=False).task()
        for a, b in ((x, y), (u, v))
    )
    probe = tta.linear_probe(train, test)
    assert probe.accuracy < 0.85
    assert result.accuracy > 0.95
    assert result.loss < probe.loss
    assert result.items == 300
    assert (seen[0][0], seen[-1]) == ("reading", ("test", 1.0))


def test_it_stops_and_keeps_the_best_epoch(tuned):
    _, _, _, result, _ = tuned
    assert isinstance(result, FineTuneResult)
    assert set(result.history) == {1e-2, 1e-3}
    starts = {losses[0] for losses in result.history.values()}
    assert len(starts) == 1  # both rates begin at the same linear probe
    chosen = result.history[result.learning_rate]
    assert (
        result.validation_loss
        == chosen[result.epoch]
        == min(min(losses) for losses in result.history.values())
    )
    for losses in result.history.values():
        best = int(np.argmin(losses))
        assert len(losses) - 1 == 40 or len(losses) - 1 - best == 3
    facts = result.to_dict()
    assert facts["score"] == pytest.approx(1 - result.loss / result.prior_entropy)
    assert "params" not in facts


def test_figures_are_those_of_the_weights_that_are_returned(tuned):
    net, _, (u, v), result, _ = tuned
    graph = nnx.graphdef(net)
    copy = nnx.merge(graph, result.params)
    copy.eval()
    features = np.asarray(copy.features(u))
    logits = features @ np.asarray(result.head.weight).T + np.asarray(result.head.bias)
    names = sorted(set(v)) if set(v) == {"other", "same"} else None
    right = np.array(names)[logits.argmax(1)] == v
    assert right.mean() == pytest.approx(result.accuracy)
    start = nnx.state(net, nnx.BatchStat)
    kept = nnx.state(copy, nnx.BatchStat)
    for a, b in zip(start.flat_state().leaves, kept.flat_state().leaves, strict=True):
        np.testing.assert_array_equal(
            np.asarray(a), np.asarray(b)
        )  # statistics are no weights


def test_the_same_key_gives_the_same_bits(tuned):
    net, (x, y), (u, v), _, _ = tuned
    options = {"train_labels": y, "test_labels": v, "learning_rates": 1e-2, "epochs": 3}
    one, two = (tta.fine_tune(net, x, u, **options) for _ in range(2))
    assert one.loss == two.loss
    other = tta.fine_tune(net, x, u, key=np.random.SeedSequence(5), **options)
    assert other.loss != one.loss


def test_a_rate_that_diverges_is_never_chosen(tuned):
    net, (x, y), (u, v), _, _ = tuned
    options = {"train_labels": y, "test_labels": v, "epochs": 2}
    result = tta.fine_tune(net, x, u, learning_rates=(1e-2, 1e30), **options)
    assert result.learning_rate == 1e-2
    assert np.isfinite(result.loss)
    alone = tta.fine_tune(net, x, u, learning_rates=anything(1e30), **options)
    assert alone.epoch == 0  # the linear probe it starts from


def test_items_that_share_rows_have_their_own_labels():
    """An encoder whose batches put two items into one row of its output, in another
    order.
    """
    from tta_jax.data.encoders.base import Batch

    def batches(prepared, size):
        for start in range(0, len(prepared), 2 * size):
            part = np.stack(prepared[start : start + 2 * size])
            index = np.arange(start, start + len(part))
            part = np.concatenate(
                [part, np.zeros((2 * size - len(part), 8), np.float32)]
            )[::-1]
            yield Batch(
                part.reshape(size, 2, 8), index, 2 * size - 1 - np.arange(len(index))
            )

    (x, y), (u, v) = exclusive_or(200, 2), exclusive_or(100, 3)
    weights = {
        "w": np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32),
        "steps": np.int32(3),
    }

    def apply(p, a):
        return nnx.relu(a @ p["w"])

    made = Encoder(
        "packed",
        "array",
        lambda item: np.asarray(item),
        lambda: (apply, weights),
        batches=batches,
        batch_size=4,
    )
    packed = tta.fine_tune(
        made,
        x,
        u,
        train_labels=y,
        test_labels=v,
        learning_rates=anything(1e-2),
        epochs=5,
        batch_size=8,
    )
    assert packed.accuracy > 0.9
    assert int(packed.params["steps"]) == 3
    assert not np.array_equal(packed.params["w"], weights["w"])


X, Y = exclusive_or(40, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_labels": None}, "^train: .*no labels"),
        ({"test_labels": None}, "^test: .*no labels"),
        (
            {"train_labels": np.zeros(40, int), "test_labels": np.zeros(40, int)},
            "^train: .*one class",
        ),
        (
            {"test_labels": np.where(np.arange(40) == 3, "new", Y)},
            "^test: class 'new' is none of those",
        ),
        ({"encoder": lambda x: x}, "^encoder: .*no weights to train"),
        ({"encoder": 3}, "^encoder: found int"),
        ({"learning_rates": (0.1, -1)}, "^learning_rates: "),
        ({"epochs": 0}, "^epochs: "),
        ({"patience": 1.5}, "^patience: "),
        ({"batch_size": 0}, "^batch_size: "),
        ({"weight_decay": -1.0}, "^weight_decay: "),
        ({"holdout": 1.0}, "^holdout: "),
        ({"test": X[:, :5]}, "^test: its items have shape"),
        ({"train": np.full_like(X, np.nan)}, "^train: item 0 .*NaN"),
    ],
)
def test_wrong_calls_are_refused(change, words):
    options = {
        "encoder": Net(),
        "train": X,
        "test": X,
        "train_labels": Y,
        "test_labels": Y,
        **change,
    }
    with pytest.raises(ValueError, match=words):
        tta.fine_tune(
            options.pop("encoder"), options.pop("train"), options.pop("test"), **options
        )


def test_an_item_that_cannot_be_read_is_named():
    pictures = Examples(
        [b"no picture"] * 4, "image", labels=["a", "b", "a", "b"], name="photos"
    )
    with pytest.raises(ValueError, match=r"^train: item 0 of 'photos' "):
        tta.fine_tune(Net(), pictures, pictures)


class Positions(nnx.Module):
    """Features of every position, no mean over them."""

    def __init__(self):
        self.layer = nnx.Linear(8, 4, rngs=nnx.Rngs(0))

    def features(self, x):
        return self.layer(jnp.stack([x, x], axis=1))


def test_an_output_that_is_no_row_for_each_item_is_refused():
    for encoder in (
        Positions(),
        Encoder(
            "flat",
            "array",
            np.asarray,
            lambda: (lambda p, x: (x @ p)[:, 0], np.ones((8, 1), np.float32)),
        ),
    ):
        with pytest.raises(
            ValueError,
            match=r"^encoder: '(Positions|flat)' gave dtype float32 and shape",
        ):
            tta.fine_tune(encoder, X, X, train_labels=Y, test_labels=Y)
    with pytest.raises(ValueError, match=r"^encoder: 'Net' failed \(TypeError"):
        tta.fine_tune(Net(), X[:, :5], X[:, :5], train_labels=Y, test_labels=Y)


def test_copies_of_an_item_do_not_decide_when_to_stop(monkeypatch):
    """Even where their features differ in a last bit."""
    seen = []
    split = tta.Task.split
    monkeypatch.setattr(
        tta.Task, "split", lambda task, *a: seen.append(task) or split(task, *a)
    )
    twice = np.concatenate([X, X])
    tta.fine_tune(
        Net(),
        twice,
        X,
        train_labels=np.concatenate([Y, Y]),
        test_labels=Y,
        learning_rates=anything(1e-3),
        epochs=1,
    )
    np.testing.assert_array_equal(seen[0].groups[:40], seen[0].groups[40:])


def test_data_may_be_named(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(4):
            pil.fromarray(
                np.full((4, 4, 3), 40 * k + 90 * (name == "b"), np.uint8)
            ).save(tmp_path / name / f"{k}.png")

    def prepare(picture):
        return np.asarray(picture, np.float32).mean((0, 2)).repeat(2) / 255

    result = tta.fine_tune(
        Net(),
        tmp_path,
        str(tmp_path),
        prepare=prepare,
        learning_rates=anything(1e-3),
        epochs=1,
        holdout=0.3,
    )
    assert result.items == 8


def test_items_without_a_label_are_left_out_with_a_note():
    data = as_examples(["a", "b", "c", "d"], [0, None, 1, 0])
    with pytest.warns(DataWarning, match="1 of 4 items of 'data' have no label"):
        left = anything(fine_tuning._labelled(data))
    assert list(left.items) == ["a", "c", "d"]
    assert (left.labels.tolist(), left.labelled) == ([0, 1, 0], None)
