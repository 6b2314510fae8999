"""Extraction against Torch on the CPU, linear probes on real tasks, and what the cache
saves.

    python -m benchmarks.features speed         # needs Torch: pip install torch && pip
    install --no-deps efficientnet-lite-pytorch python -m benchmarks.features probe
    # 4-fold linear probes; all tasks take half an hour python -m benchmarks.features
    probe --row reuters-r8 minilm test

Tasks and encoders are those of `tta-jax data list`; what is not installed is skipped
with its reason.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.memory import peak
from tta_jax.data import extract_features, load_encoder, open_data
from tta_jax.data.prepare import prepare_task
from tta_jax.probes import linear_probe

# Task, encoder, split, the accuracy that is expected at least.
PROBES = [
    ("mnist-5k", "efficientnet-lite0", "train", 0.86),
    ("solar-cells", "efficientnet-lite0", "train", 0.83),
    ("20newsgroups", "minilm", "test", 0.72),
    ("reuters-r8", "minilm", "test", 0.93),
    ("digits", "efficientnet-lite0", "train", None),
    ("digits", "squeezenet", "train", None),
    ("mnist-5k", "squeezenet", "train", None),
    ("photo-stamps", "efficientnet-lite0", "train", None),
    ("fashion-mnist", "efficientnet-lite0", "test", None),
    ("20newsgroups", "word-vectors", "test", None),
    ("reuters-r8", "word-vectors", "test", None),
    ("election-tweets", "minilm", "train", None),
]


def in_turns(
    runs: dict[str, Callable[[], np.ndarray]], repeats: int
) -> dict[str, tuple[float, np.ndarray]]:
    """The least seconds of each run, and what it gave; they take turns, after one to
    warm up.
    """
    best = {}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            result = run()
            seconds = time.perf_counter() - begin
            best[name] = (min(seconds, best[name][0]) if turn > 1 else seconds, result)
    return best


def speed(pictures: int, documents: int, repeats: int) -> None:
    """Whole extractions, decoding and resizing or tokenizing included on both sides, in
    one process.
    """
    import torch

    from benchmarks import torch_networks

    torch.set_num_threads(os.cpu_count() or 1)
    cells, texts = (
        open_data("solar-cells", f"train[:{pictures}]"),
        open_data("20newsgroups", f"test[:{documents}]"),
    )
    for name, examples, yardstick in (
        (
            "efficientnet-lite0",
            cells,
            lambda e, size, last: torch_networks.efficientnet(e, cells, size, last),
        ),
        (
            "minilm",
            texts,
            lambda e, size, _: torch_networks.minilm(e, list(texts.items), size),
        ),
    ):
        encoder = load_encoder(name)
        runs = {
            "tta_jax": lambda: np.asarray(
                extract_features(encoder, examples, cache=False).features
            )
        }
        for size in (4, 8, 32):
            for last in (True, False) if name.startswith("eff") else (None,):
                order = (
                    "" if last is None else f", channels {'last' if last else 'first'}"
                )
                runs[f"Torch, batch {size}{order}"] = lambda size=size, last=last: (
                    yardstick(encoder, size, last)
                )
        found = in_turns(runs, repeats)
        ours, features = found["tta_jax"]
        print(f"{name}, {len(examples)} {examples.modality}s of {examples.name}")
        for form, (seconds, result) in found.items():
            gap = np.abs(result - features).max() / np.abs(features).max()
            print(
                (
                    f"  {form:<36} {seconds:6.1f} s   ours / this "
                    f"{ours / seconds:5.2f}   relative difference {gap:.0e}"
                ),
                flush=True,
            )
    print(f"most memory held: {peak():.1f} GB, Torch included")


def probe(
    task: str, encoder: str, split: str, expected: float | None, cache: Path
) -> None:
    """Mean accuracy and loss of linear probes over four folds, and the times of
    extracting and of reading back.
    """
    try:
        open_data(task, split)
        made = load_encoder(encoder)
    except ValueError as error:
        print(f"{task:<16} {encoder:<20} skipped: {error}")
        return
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        found = extract_features(
            made, open_data(task, split), cache=cache, on_error="skip"
        )
        times.append(time.perf_counter() - begin)
    data = found.task()
    results = [
        linear_probe(data.take(a), data.take(b))
        for a, b in data.folds(4, jax.random.key(0))
    ]
    accuracy = np.array([r.accuracy for r in results])
    loss = np.mean([r.loss for r in results])
    print(
        f"{task:<16} {encoder:<20} {len(data):6d} items {data.num_classes:3d} classes  "
        f"accuracy {accuracy.mean():.3f} "
        f"({accuracy.std(ddof=1):.3f}; at least {expected or '-'})  loss {loss:.3f}  "
        f"extracted {times[0]:6.1f} s, "
        f"again {times[1]:.2f} s  skipped {len(found.provenance['skipped'])}  "
        f"{peak():.1f} GB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    timed = actions.add_parser("speed")
    timed.add_argument("--pictures", type=int, default=1000)
    timed.add_argument("--documents", type=int, default=500)
    timed.add_argument("--repeats", type=int, default=3)
    probed = actions.add_parser("probe")
    probed.add_argument(
        "--row", nargs=3, metavar=("TASK", "ENCODER", "SPLIT"), help="this one alone"
    )
    args = parser.parse_args()
    if args.action == "speed":
        for task in ("solar-cells", "20newsgroups"):
            prepare_task(task)
        speed(args.pictures, args.documents, args.repeats)
        return
    rows = [(*args.row, None)] if args.row else PROBES
    for task in {row[0] for row in rows}:
        try:
            prepare_task(task)
        except ValueError as error:
            print(f"{task}: skipped: {error}")
    with tempfile.TemporaryDirectory() as cache:
        for row in rows:
            probe(*row, Path(cache))


if __name__ == "__main__":
    main()
