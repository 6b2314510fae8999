"""Several real processes evaluate one pair together, each with half of its items."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.scans import multihost_worker as worker

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_with_half_of_the_items_each(tmp_path, x64):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    outs = [tmp_path / f"{process}.npy" for process in range(2)]
    logs = [tmp_path / f"{process}.log" for process in range(2)]
    with contextlib.ExitStack() as stack:
        workers = []
        for process, (out, log) in enumerate(zip(outs, logs, strict=True)):
            command = [sys.executable, "-m", worker.__name__, coordinator]
            command += ["2", str(process), str(out)]
            stream = stack.enter_context(log.open("w"))
            workers.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stderr=stream)
            )
            stack.callback(workers[-1].kill)
        for process, log in zip(workers, logs, strict=True):
            assert process.wait(timeout=300) == 0, log.read_text()
    alone = jax.jit(worker.values)(worker.case())
    for out in outs:
        np.testing.assert_allclose(np.load(out), alone, rtol=1e-5)
