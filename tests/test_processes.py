"""Several real processes evaluate one pair together, each with half of its items."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import worker


def test_two_processes_with_half_of_the_items_each(tmp_path, x64):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    outs = [tmp_path / f"{process}.npy" for process in range(2)]
    workers = [
        subprocess.Popen(
            [sys.executable, str(Path(worker.__file__)), coordinator, "2", str(process), str(out)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process, out in enumerate(outs)
    ]
    for process in workers:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    alone = jax.jit(worker.values)(worker.case())
    for out in outs:
        np.testing.assert_allclose(np.load(out), alone, rtol=1e-5)
