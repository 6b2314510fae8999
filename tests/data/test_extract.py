"""Extraction: the same features in any batch, on any number of devices, from the cache,
and after an interruption.
"""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.typed import anything
from tta_jax import SoftmaxHead
from tta_jax.data import (
    Batch,
    Encoder,
    Examples,
    as_examples,
    extract_features,
    load_features,
)
from tta_jax.data.extraction import extract
from tta_jax.data.extraction.adapters import as_encoder

RNG = np.random.default_rng(0)
X = RNG.normal(size=(600, 12)).astype(np.float32)
Y = np.arange(600) % 3


def whole(batch):
    return batch


class Small(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(12, 8, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(8, 3, rngs=nnx.Rngs(1))

    def features(self, x):
        return self.drop(self.norm(nnx.relu(self.first(x))))

    def __call__(self, x):
        return self.head(self.features(x))


def expected(model, x=X):
    copy = nnx.clone(model)
    copy.eval()
    return np.asarray(copy.features(jnp.asarray(x)))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("devices", [1, 3, 8])
def test_a_module_in_any_batch_on_any_devices(batch_size, devices):
    model = Small()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    found = extract_features(
        model, X, labels=Y, batch_size=batch_size, devices=jax.devices()[:devices]
    )
    np.testing.assert_allclose(found.features, expected(model), rtol=1e-5, atol=1e-6)
    assert not model.drop.deterministic  # the caller's module stays in training mode
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert found.provenance["batch_size"] == -(-batch_size // devices) * devices
    assert found.task().counts.tolist() == [200, 200, 200]


def test_functions_and_their_outputs():
    def doubled(batch):
        return 2 * batch[:, :4]

    for jit in (True, False):
        np.testing.assert_array_equal(
            extract_features(doubled, X, jit=jit).features, 2 * X[:, :4]
        )
    assert extract_features(Small(), X, method="__call__").features.shape == (600, 3)
    half = extract_features(lambda batch: batch.astype(jnp.bfloat16), X).features
    assert half.dtype == np.float32
    lengths = extract_features(
        lambda texts: np.array([[len(t), t.count("a")] for t in texts]),
        ["a", "bab"],
        jit=False,
    )
    assert lengths.features.tolist() == [[1, 1], [3, 1]]
    coded = extract_features(
        lambda b: b, ["a", "b"], prepare=lambda t: np.full(3, ord(t), np.float32)
    )
    assert coded.features.tolist() == [[97.0] * 3, [98.0] * 3]


def test_one_program_whatever_the_size():
    traced = []

    def encoder(batch):
        traced.append(batch.shape)
        return batch

    made = Encoder(
        "counted",
        "array",
        np.asarray,
        lambda: ((lambda _, b: encoder(b)), ()),
        identity="counted",
    )
    for size in (600, 5, 333):
        extract_features(
            made, X[:size], batch_size=64, cache=False, devices=jax.devices()[:1]
        )
    assert set(traced) == {(64, 12)}
    assert len(traced) == 3  # one for each call, whatever the number of batches


def test_a_second_extraction_compiles_nothing():
    import jax._src.test_util as jtu

    extract_features(Small(), X, cache=False)
    other = Small()
    other.first.kernel[...] = other.first.kernel[...] * 2
    with jtu.count_jit_and_pmap_lowerings() as count:
        found = extract_features(other, X[:77], cache=False, labels=Y[:77])
    assert count() == 0
    np.testing.assert_allclose(
        found.features, expected(other, X[:77]), rtol=1e-5, atol=1e-6
    )


# -- what is kept ----------------------------------------------------------------------


def counting(identity: str | None = "v1", fail_after: int | None = None):
    """A Python encoder that counts the items it was given."""
    seen = []

    def encoder(batch):
        if fail_after is not None and len(seen) >= fail_after:
            raise KeyboardInterrupt
        seen.extend(batch)
        return batch * 3

    return seen, lambda data, **more: extract_features(
        encoder, data, jit=False, identity=identity, **more
    )


def test_a_second_call_computes_nothing_and_gives_the_same_bits(cache):
    seen, run = counting()
    first = run(X)
    assert len(seen) == 600
    second = run(X)
    assert len(seen) == 600
    np.testing.assert_array_equal(first.features, second.features)
    assert first.provenance == second.provenance
    assert len(list((cache / "features").glob("*/*.npz"))) == 3


def test_only_what_changed_is_computed_again(cache):
    seen, run = counting()
    run(X)
    changed = X.copy()
    changed[300, 0] += 1
    del seen[:]
    np.testing.assert_array_equal(run(changed).features, changed * 3)
    assert len(seen) == 256
    for other in (counting("v2")[1], lambda data: run(data, batch_size=9)):
        del seen[:]
        other(X)
    assert (
        len(seen) == 600
    )  # of the other batch size; the other identity counts for itself
    del seen[:]
    run(X, cache=cache / "elsewhere")
    run(X, cache=False)
    assert len(seen) == 1200


def test_without_an_identity_a_python_function_is_not_kept(cache):
    seen, run = counting(identity=None)
    run(X)
    run(X)
    assert len(seen) == 1200
    assert not list(cache.rglob("*.npz"))


def test_programs_and_arrays_are_told_apart(cache):
    """Modules, closures and constants are recognised by what they compute, not by
    name.
    """

    def kept():
        return len(list(cache.rglob("*.npz")))

    model, other = Small(), Small()
    other.first.kernel[...] = other.first.kernel[...].at[3, 3].add(1)
    weights = RNG.normal(size=(12, 4)).astype(np.float32)
    nearly = weights.copy()
    nearly[5, 1] += 1e-3

    def through(w):
        return lambda batch: batch @ w

    encoders = (model, other, through(weights), through(nearly), jnp.sin, jnp.cos)
    for number, encoder in enumerate(encoders, 1):
        once, twice = extract_features(encoder, X[:9]), extract_features(encoder, X[:9])
        np.testing.assert_array_equal(once.features, twice.features)
        assert kept() == number

    def hidden(batch):
        return jax.pure_callback(
            lambda b: np.asarray(b),
            jax.ShapeDtypeStruct(batch.shape, batch.dtype),
            batch,
        )

    assert (
        extract_features(hidden, X[:9], devices=jax.devices()[:1]).provenance[
            "encoder_identity"
        ]
        is None
    )
    assert kept() == len(encoders)


def test_an_interrupted_extraction_goes_on_where_it_was(tmp_path):
    seen, run = counting(fail_after=256)
    with pytest.raises(KeyboardInterrupt):
        run(X, out=tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
    rest, again = counting()
    again(X, out=tmp_path / "x.npz")
    assert (len(seen), len(rest)) == (256, 344)
    whole, fresh = counting()
    fresh(X, out=tmp_path / "y.npz", cache=False)
    assert len(whole) == 600
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()


KILLED = """
import sys, time, numpy as np, jax.numpy as jnp
from tta_jax.data import extract_features
slow = lambda item: (time.sleep(0.002), item)[1]
x = np.random.default_rng(0).normal(size=(3000, 6)).astype(np.float32)
w = np.random.default_rng(1).normal(size=(6, 6)).astype(np.float32)
print("begun", flush=True)
told = lambda what, _: print(what, flush=True)
encode = lambda b: jnp.tanh(b @ w)
extract_features(encode, x, prepare=slow, out=sys.argv[1], progress=told)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_result_is_the_same_bit_for_bit(tmp_path):
    def run(home):
        return subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / home / "x.npz")],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "XDG_CACHE_HOME": str(tmp_path / home),
                "XLA_FLAGS": "",
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
        )

    whole = run("whole")
    assert whole.wait() == 0
    assert whole.stdout is not None
    whole.stdout.close()
    for moment in (0.05, 0.2, 0.4):
        with run("cut") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            process.stdout.readline()  # at least one chunk is kept
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
    with run("cut") as last:
        assert last.stdout is not None
        said = last.stdout.read().splitlines()
        assert last.wait() == 0
    assert said[-1] == "3000 of 3000 items"
    assert (tmp_path / "cut/x.npz").read_bytes() == (
        tmp_path / "whole/x.npz"
    ).read_bytes()
    assert not [p for p in (tmp_path / "cut").iterdir() if p.name.startswith(".x")]


def test_damaged_chunks_are_computed_again(cache):
    seen, run = counting()
    run(X)
    for path in cache.rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(run(X).features, X * 3)
    assert len(seen) == 1200


def test_old_chunks_make_room(cache, monkeypatch):
    _, run = counting()
    run(X)
    for path in cache.rglob("*.npz"):
        os.utime(path, (1, 1))
    monkeypatch.setattr(extract, "MOST_KEPT", 10_000)
    run(X + 1)
    newer = [p for p in cache.rglob("*.npz") if p.stat().st_mtime > 1]
    assert (
        len(newer) == len(list(cache.rglob("*.npz"))) == 3
    )  # those of this run stay, even beyond the limit


# -- items -----------------------------------------------------------------------------


def encoded(array, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


PICTURES = [encoded(RNG.integers(0, 255, (9, 9, 3), np.uint8)) for _ in range(10)]


def mean_colour(batch):
    return jnp.mean(batch.astype(jnp.float32), (1, 2))


def test_pictures_of_every_kind_are_the_same_picture(tmp_path):
    array = RNG.integers(0, 255, (9, 9, 3), np.uint8)
    (tmp_path / "x.png").write_bytes(encoded(array))
    for item in (encoded(array), tmp_path / "x.png", Image.fromarray(array), array):
        made = as_encoder(mean_colour, "image")
        found = extract_features(made, [item])
        np.testing.assert_allclose(found.features[0], array.mean((0, 1)), rtol=1e-5)


def test_transparency_grey_and_sixteen_bits():
    made = as_encoder(mean_colour, "image")

    def value(item):
        return extract_features(made, [item]).features[0].tolist()

    clear = np.zeros((4, 4, 4), np.uint8)
    assert value(encoded(clear)) == [255] * 3
    assert (
        value(np.full((4, 4), 7, np.uint8))
        == value(np.full((4, 4, 1), 7, np.uint8))
        == [7] * 3
    )
    assert value(np.full((4, 4), 0.2, np.float32)) == [51] * 3
    assert value(encoded(np.full((4, 4), 257 * 9, np.uint16))) == [9] * 3
    assert value(Image.new("P", (4, 4), 0))[0] in (0, 255)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (PICTURES[0][:60], "not a readable picture"),
        (b"", "not a readable picture"),
        (b"text", "not a readable picture"),
        (np.zeros((2, 2, 5), np.uint8), "not a picture"),
        (np.full((2, 2), 300.0), r"in \[300.0, 300.0\]"),
        (np.full((2, 2), np.nan), "nan"),
        (Path("absent.png"), "cannot be read"),
    ],
)
def test_a_corrupt_picture_is_named_or_skipped_and_recorded(item, says):
    pictures = Examples(
        [*PICTURES[:3], item, *PICTURES[3:]],
        "image",
        np.arange(11) % 2,
        ("a", "b"),
        "album",
    )
    made = as_encoder(mean_colour, "image")
    with pytest.raises(
        ValueError, match=rf"^data: item 3 of 'album' [^\n]*{says}[^\n]*skip[^\n]*$"
    ):
        extract_features(made, pictures)
    for _ in range(2):  # the second time from the cache
        found = extract_features(made, pictures, on_error="skip")
        assert found.features.shape == (10, 3)
        assert found.labels.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 1, 0]
        [skipped] = found.provenance["skipped"]
        assert (skipped["item"], skipped["what"]) == (3, "item 3")
    with pytest.raises(
        ValueError, match="item 3"
    ):  # kept with the skipped item, which is refused all the same
        extract_features(made, pictures)


def test_everything_skipped_is_an_error():
    made = as_encoder(mean_colour, "image")
    with pytest.raises(
        ValueError, match=r"none of the 2 items .* item 0 is not a readable"
    ):
        extract_features(made, Examples([b"", b"x"], "image"), on_error="skip")


def test_copies_share_a_group():
    texts = ["a", "b", "a", "c", "b", "", "a"]

    def lengths(batch):
        return np.array([[len(text), i] for i, text in enumerate(batch)])

    for _ in range(2):  # the second time from the cache
        found = extract_features(
            lengths, texts, jit=False, identity="lengths", on_error="skip"
        )
        assert found.groups.tolist() == [0, 1, 0, 3, 1, 0]
        assert found.provenance["copies"] == 3
    assert extract_features(lengths, ["a", "b"], jit=False).groups is None


@pytest.mark.parametrize("jit", [True, False])
def test_items_without_finite_features_are_skipped(jit):
    data = np.array([[1.0], [0.0], [4.0]], np.float32)
    inverse = np.errstate(divide="ignore")(lambda b: 1 / b)
    for _ in range(2):
        found = extract_features(
            inverse,
            data,
            jit=jit,
            identity="inverse",
            on_error="skip",
            labels=[0, 1, 0],
        )
        assert (found.features[:, 0].tolist(), found.labels.tolist()) == (
            [1, 0.25],
            [0, 0],
        )
        assert found.provenance["classes_without_sample"] == ["1"]


def test_labels_keep_their_meaning():
    """Whole numbers as class names, as indices and as members; classes that are left
    out.
    """

    def classes(**more):
        task = extract_features(
            whole, X[:4], cache=False, on_error="skip", **more
        ).task()
        return [task.class_names[k] for k in task.labels]

    assert classes(labels=[0, 1, 0, 1], class_names=(2, 0, 1)) == ["0", "1", "0", "1"]
    assert classes(labels=[0, 2, 0, 2], class_names=(1, 7, 0)) == [
        "1",
        "0",
        "1",
        "0",
    ]  # indices, for 2 is no name
    assert classes(labels=["b", "a", "b", "a"], class_names=("a", "b", "c")) == [
        "b",
        "a",
        "b",
        "a",
    ]
    assert classes(labels=[10, 9, 10, 9]) == ["10", "9", "10", "9"]
    assert classes(labels=np.array([True, False, True, False])) == [
        "True",
        "False",
        "True",
        "False",
    ]


def test_pictures_are_told_apart_by_what_they_show(cache):
    def palette(colour):
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, *colour] + [0] * 700)
        return image

    made = as_encoder(mean_colour, "image")
    pictures = [palette((255, 0, 0)), palette((0, 0, 255)), palette((255, 0, 0))]
    found = extract_features(made, pictures)
    assert found.features[:2].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert found.groups.tolist() == [0, 1, 0]
    assert extract_features(made, [pictures[0]] * 300).features.shape == (
        300,
        3,
    )  # one picture, several threads


def test_pictures_are_turned_as_cameras_mean_them():
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(stream, "JPEG", exif=exif)
    found = extract_features(
        lambda b: b,
        [stream.getvalue()],
        prepare=lambda image: np.array(image.size, np.float32),
    )
    assert found.features.tolist() == [[20, 40]]


def test_a_file_that_changes_is_another_item(tmp_path):
    made = as_encoder(mean_colour, "image")
    for value in (7, 9):
        (tmp_path / "x.png").write_bytes(encoded(np.full((4, 4, 3), value, np.uint8)))
        assert (
            extract_features(made, [tmp_path / "x.png"]).features[0].tolist()
            == [value] * 3
        )


def test_only_our_own_files_make_room(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(extract, "MOST_KEPT", 0)
    mine, half = (
        tmp_path / "mine" / "ab" / "precious.npz",
        tmp_path / "mine" / "ab" / f".{'ab' * 32}.npz.x1y2",
    )
    mine.parent.mkdir(parents=True)
    for path in (mine, half):
        path.write_bytes(b"")
        os.utime(path, (1, 1))
    extract_features(whole, X, cache=tmp_path / "mine")
    assert mine.exists()
    assert not half.exists()  # left behind by a killed write


def test_constants_that_the_program_does_not_show(cache):
    """Newer versions of jax pass arrays that a function closes over beside the
    program.
    """
    code = """
import jax.numpy as jnp, numpy as np
from tta_jax.data import extract_features
x = np.ones((3, 2), np.float32)
for scale in (1.0, 2.0):
    w = scale * jnp.ones((2, 2))
    print(extract_features(lambda batch: batch @ w, x).features[0, 0])
"""
    environment = {**os.environ, "JAX_USE_SIMPLIFIED_JAXPR_CONSTANTS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.split() == ["2.0", "4.0"]


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"^cache: cannot write below [^\n]*--no-cache"
    ):
        extract_features(whole, X, cache=tmp_path / "file")


def test_libraries_that_are_missing_are_named_before_any_work(monkeypatch, tmp_path):
    from tta_jax.data import installed

    monkeypatch.setattr(installed, "find_spec", lambda module: None)
    with pytest.raises(
        ValueError, match=r"^data: pictures need PIL, .*pip install 'tta-jax\[data\]'$"
    ):
        extract_features(as_encoder(mean_colour, "image"), PICTURES, on_error="skip")
    with pytest.raises(ValueError, match=r"^out: Parquet files need pyarrow"):
        extract_features(whole, X, out=tmp_path / "x.parquet")


def test_whole_chunks_may_be_skipped():
    def prepare(item):
        if item[0] < 300:
            raise ValueError("is too small")
        return item

    data = np.stack([np.arange(600), np.ones(600)], 1).astype(np.float32)
    found = extract_features(
        lambda b: b,
        data,
        prepare=prepare,
        on_error="skip",
        labels=np.arange(600) >= 300,
    )
    np.testing.assert_array_equal(found.features, data[300:])
    assert len(found.provenance["skipped"]) == 300


def test_classes_without_a_sample_are_named_or_left_out():
    examples = Examples(
        X[:6], "array", np.array([0, 0, 2, 2, 2, 0]), ("a", "b", "c"), "six"
    )
    with pytest.raises(ValueError, match=r"^data: class 'b' of 'six' has no sample"):
        extract_features(lambda b: b, examples)
    found = extract_features(lambda b: b, examples, on_error="skip")
    assert (found.class_names, found.labels.tolist()) == (
        ("a", "c"),
        [0, 0, 1, 1, 1, 0],
    )
    assert found.provenance["classes_without_sample"] == ["b"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: extract_features("nothing", X), "encoder"),
        (lambda: extract_features(3, X), "encoder: found int"),
        (lambda: extract_features(whole, X, on_error="ignore"), "on_error"),
        (lambda: extract_features(whole, X, batch_size=0), "batch_size"),
        (lambda: extract_features(whole, X, batch_size=anything(2.5)), "batch_size"),
        (lambda: extract_features(whole, X[0]), "data"),
        (lambda: extract_features(whole, X[:0]), "data"),
        (lambda: extract_features(whole, "a text"), "data"),
        (lambda: extract_features(whole, []), "data"),
        (lambda: extract_features(whole, [1, 2]), "data"),
        (lambda: extract_features(whole, X, labels=Y[:3]), "labels"),
        (lambda: extract_features(whole, ["a"]), "prepare"),
        (lambda: extract_features(whole, [np.ones(2), np.ones(3)]), "prepare: item 1"),
        (lambda: extract_features(whole, X, method="features"), "method"),
        (lambda: extract_features(Small(), X, method="nothing"), "method"),
        (lambda: extract_features(Small(), X, jit=False), "jit"),
        (
            lambda: extract_features(lambda b: b[:, :, None], X),
            r"encoder: '<lambda>' gave dtype float32 and shape",
        ),
        (lambda: extract_features(lambda b: b[:1], X), "encoder"),
        (lambda: extract_features(lambda b: b[:, :0], X), "encoder"),
        (
            lambda: extract_features(lambda b: b / 0, X),
            "data: item 0 .* gets NaN or infinite features",
        ),
        (lambda: extract_features(lambda b: b.reshape(-1, 1), X), "encoder: .*shape"),
        (
            lambda: extract_features(lambda b: np.repeat(b, 2, 0), X, jit=False),
            "encoder: .*shape",
        ),
        (
            lambda: extract_features(lambda b: b[:, : 2 + (b[0, 0] > 0)], X, jit=False),
            "encoder: .*all items need as many",
        ),
        (lambda: extract_features(np.linalg.svd, X), "encoder: .*pass jit=False"),
        (
            lambda: extract_features(lambda b: b.no_such, X, jit=False),
            "encoder: .*AttributeError.*no_such",
        ),
        (lambda: extract_features(whole, X, identity=anything(3)), "identity"),
        (lambda: extract_features(whole, X, cache=anything(None)), "cache"),
        (lambda: extract_features(whole, X, devices=jax.devices()[0]), "devices"),
        (
            lambda: extract_features(whole, X, labels=Y, class_names=["a", "b"]),
            "labels: .* is 2",
        ),
        (
            lambda: extract_features(
                whole, X, labels=Y - 2, class_names=["a", "b", "c"]
            ),
            "labels: .* is -2",
        ),
        (
            lambda: extract_features(whole, X, labels=Y, class_names=["a", "a", "c"]),
            "class_names",
        ),
        (
            lambda: extract_features(whole, X, labels=Y, class_names=anything(3)),
            "class_names",
        ),
        (lambda: extract_features(whole, X, labels=Y / 2), "labels"),
        (
            lambda: extract_features(lambda t: t, ["a", None], jit=False),
            "data: item 1 .*is NoneType, not a text",
        ),
        (
            lambda: extract_features(lambda t: t, ["a", "\ud800"], jit=False),
            "data: item 1 .*surrogate",
        ),
        (
            lambda: extract_features(whole, X, prepare=lambda _: None),
            "data: item 0 .*NoneType",
        ),
        (lambda: extract_features(whole, [X[:2], [[1.0], [1.0, 2.0]]]), "data: item 1"),
        (
            lambda: extract_features(whole, [{"text": "a", "label": 1}, {"text": "b"}]),
            "data",
        ),
        (
            lambda: extract_features(lambda t: t, [{"text": "a"}, {}], jit=False),
            "data: item 1 .*no 'text'",
        ),
        (lambda: Examples([1], "images"), "modality"),
        (lambda: Examples([1], "text").limit(0), "limit"),
        (lambda: extract_features(lambda b: "text", X, jit=False), "encoder"),
        (lambda: extract_features(whole, X, out="/proc/nothing/x.npz"), "out"),
        (
            lambda: extract_features(whole, np.where(X > 2, np.nan, X)),
            "data: item .* NaN",
        ),
        (lambda: extract_features(whole, [{"a": 1}]), "data"),
        (lambda: extract_features(whole, X, out="x.txt"), "out"),
        (lambda: extract_features(whole, X, devices=[]), "devices"),
    ],
)
def test_wrong_calls_are_named(call, says):
    with pytest.raises(ValueError, match=rf"^{says}[^\n]*$"):
        call()


def test_records_of_data_sources():
    records = [
        {"image": RNG.integers(0, 255, (4, 4, 1), np.uint8), "label": i % 2}
        for i in range(6)
    ]
    examples = as_examples(records, class_names=["a", "b"], name="r")
    found = extract_features(as_encoder(mean_colour, "image"), examples)
    assert (found.features.shape, found.labels.tolist(), found.name) == (
        (6, 3),
        [0, 1] * 3,
        "r",
    )
    assert as_examples(np.array(["a", "b"])).modality == "text"
    texts = as_examples([{"text": b"gr\xc3\xbcn"}, {"text": "b"}])
    assert (texts.modality, texts.items[0], texts.labels) == ("text", "grün", None)


def test_a_torch_model_is_three_lines():
    torch = pytest.importorskip(
        "torch", reason="Torch is not installed: pip install torch"
    )
    model = torch.nn.Linear(12, 5).eval()
    encode = torch.inference_mode()(
        lambda batch: model(torch.from_numpy(batch)).numpy()
    )
    features = extract_features(
        encode, X, jit=False, identity="a linear layer"
    ).features
    np.testing.assert_allclose(
        features,
        X @ model.weight.detach().numpy().T + model.bias.detach().numpy(),
        atol=1e-5,
    )
    with pytest.raises(ValueError, match=r"^encoder: .*jit=False"):
        extract_features(encode, X)


def test_columns_of_data_frames():
    pd = pytest.importorskip(
        "pandas", reason="pandas is not installed: pip install pandas"
    )
    frame = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
    examples = as_examples(frame["text"], frame["label"])
    assert (examples.modality, list(examples.items), examples.class_names) == (
        "text",
        ["a", "b"],
        ("x", "y"),
    )
    with pytest.raises(ValueError, match=r"^data: found a DataFrame"):
        as_examples(frame)


def test_packed_batches_find_their_rows():
    """An encoder that packs two items into a row of two slots."""

    def pairs(prepared, size):
        for start in range(0, len(prepared), 2 * size):
            part = list(prepared[start : start + 2 * size])
            slots = np.zeros((size, 2, 12), np.float32)
            for k, item in enumerate(reversed(part)):
                slots[k // 2, k % 2] = item
            items = np.arange(start, start + len(part))[::-1]
            yield Batch(slots, items, np.arange(len(part)))

    made = Encoder(
        "pairs",
        "array",
        np.asarray,
        lambda: ((lambda _, b: b + 1), ()),
        batches=pairs,
        identity="p",
    )
    np.testing.assert_array_equal(
        extract_features(made, X, batch_size=8).features, X + 1
    )


def test_memory_is_bounded_by_the_batch(tmp_path):
    """Items of 1 MB each, made when they are asked for: of 1,200, half never lie in
    memory together.
    """
    import tracemalloc

    class Made:
        def __len__(self):
            return 1200

        def __getitem__(self, i):
            return np.full((512, 512), i % 7, np.float32)

    alive = []
    tracemalloc.start()

    def mean(batch):
        return (
            alive.append(tracemalloc.get_traced_memory()[0]),
            batch.mean((1, 2))[:, None] + [0, 1],
        )[1]

    found = extract_features(
        mean, Examples(Made(), "array"), jit=False, out=tmp_path / "x.npz"
    )
    tracemalloc.stop()
    assert found.features[:9, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    assert max(alive) < 2.5 * 256 * 2**20  # two chunks: one computed, one read ahead


def test_heads_come_from_layers():
    model = Small()
    head = SoftmaxHead.from_linear(model.head)
    z = jnp.asarray(X[:5, :8])
    np.testing.assert_allclose(head.logits(z), model.head(z), rtol=1e-6, atol=1e-6)
    bare = SoftmaxHead.from_linear(nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0)))
    assert np.asarray(bare.bias).tolist() == [0, 0, 0]
    for layer in (model.norm, nnx.Conv(1, 1, (2, 2), rngs=nnx.Rngs(0)), 3):
        with pytest.raises(ValueError, match=r"^layer: "):
            SoftmaxHead.from_linear(layer)


def test_out_is_written_and_mapped(tmp_path):
    model = Small()
    found = extract_features(
        model, X, labels=Y, class_names=["a", "b", "c"], out=tmp_path / "x.npz"
    )
    assert isinstance(found.features, np.memmap)
    again = load_features(tmp_path / "x.npz")
    np.testing.assert_array_equal(again.features, extract_features(model, X).features)
    assert again.provenance["encoder"] == "Small"
    assert again.task().class_names == ("a", "b", "c")
