"""Small tasks for the tests of scans; also run as a program that others kill.

python scan_tasks.py OUT [COORDINATOR NUMBER_OF_PROCESSES PROCESS]
"""

import sys
import time

import numpy as np

import tta_jax as tta


def task(seed, classes=3, items=60, dim=6, name=None, encoder="", spread=1.5):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(items) % classes)
    features = (
        rng.normal(size=(items, dim)) + spread * rng.normal(size=(classes, dim))[labels]
    )
    return tta.Task.from_arrays(
        features.astype(np.float32), labels, name=name or f"t{seed}", encoder=encoder
    )


def sources(number=4):
    return [task(k, 3 + k % 2, 60 + 7 * (k % 3), name=f"s{k}") for k in range(number)]


def targets(number=5):
    return [
        task(100 + k, 3 + k % 3, 64 + 9 * (k % 2), name=f"t{k}") for k in range(number)
    ]


CONFIG = tta.Config(bootstrap=20, sinkhorn_iterations=50)


def main(out, *cluster):
    if cluster:
        from tta_jax.scans import distributed

        coordinator, number, process = cluster
        distributed.join_processes(coordinator, int(number), int(process))
    from tta_jax.scans import executor, parquet_store, refinement_stage, screening_stage

    # Small calls and parts, so that there is much to interrupt.
    executor._PART_ROWS, screening_stage._LANES_CPU = 4, 2
    screening_stage.Screening.blocks = refinement_stage.Refining.blocks = 1
    write = parquet_store.Store.write

    def slowly(self, stage, rows, arrays=None):
        time.sleep(0.25)
        write(self, stage, rows, arrays)

    parquet_store.Store.write = slowly
    print("ready", flush=True)
    tta.scan(sources(8), targets(20), out, refine=2, config=CONFIG)


if __name__ == "__main__":
    main(*sys.argv[1:])
