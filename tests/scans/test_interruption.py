"""Scans that are killed, interrupted, or run by several processes end in the same table
as one that was left alone.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tta_jax as tta
from tests.scans import scan_tasks

pytestmark = pytest.mark.slow
PROGRAM = [sys.executable, scan_tasks.__file__]
ENVIRONMENT = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "scan"
    subprocess.run(
        [*PROGRAM, str(out)],
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
        timeout=600,
    )
    return tta.ScanResult.load(out).table()


def assert_same_rows(found, wanted):
    """No pair lost, none twice, and the same figures; float32 on the same machine, so
    to the last bit but for a few.
    """
    assert found.num_rows == wanted.num_rows
    for name in ("pair", "stage", "status"):
        assert found[name].to_pylist() == wanted[name].to_pylist()
    for name in ("target_loss", "tight", "score", "oscillation", "theorem"):
        np.testing.assert_allclose(
            found[name].to_numpy(), wanted[name].to_numpy(), rtol=1e-6, err_msg=name
        )


@pytest.mark.slow
def test_killed_at_ten_random_moments(whole, tmp_path):
    assert whole.num_rows == 8 * 20 + 2 * 20
    out, chance, killed = tmp_path / "scan", random.Random(5), 0

    def parts():
        return len(list(out.rglob("part-*.parquet")))

    for _ in range(10):
        before = parts()
        with subprocess.Popen(
            [*PROGRAM, str(out)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            # A moment after one to three more parts were written, or before any.
            wanted, begun = before + chance.choice((0, 1, 1, 2)), time.monotonic()
            while (
                parts() < wanted
                and process.poll() is None
                and time.monotonic() - begun < 120
            ):
                time.sleep(0.005)
            time.sleep(chance.random() * 0.2)
            killed += process.poll() is None
            process.kill()
    assert killed == 10
    subprocess.run(
        [*PROGRAM, str(out)],
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
        timeout=600,
    )
    assert_same_rows(tta.ScanResult.load(out).table(), whole)
    assert not [p for p in out.rglob(".*part*") if p.stat().st_mtime > time.time() - 1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_writes_what_it_has_and_says_how_to_go_on(
    whole, tmp_path, number
):
    out = tmp_path / "scan"
    process = subprocess.Popen(
        [*PROGRAM, str(out)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        begun = time.monotonic()
        while not list(out.rglob("part-*.parquet")) and time.monotonic() - begun < 120:
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "the same call with this folder goes on from there" in said
    rows = tta.ScanResult.load(out).table().num_rows
    assert 0 < rows < 200
    subprocess.run(
        [*PROGRAM, str(out)],
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
        timeout=600,
    )
    assert_same_rows(tta.ScanResult.load(out).table(), whole)


@pytest.mark.slow
def test_two_processes_share_the_pairs(whole, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    out, logs = tmp_path / "scan", [tmp_path / f"{k}.log" for k in range(2)]
    with contextlib.ExitStack() as stack:
        workers = []
        for k, log in enumerate(logs):
            stream = stack.enter_context(log.open("w"))
            words = [*PROGRAM, str(out), coordinator, "2", str(k)]
            workers.append(
                subprocess.Popen(words, env=ENVIRONMENT, stdout=stream, stderr=stream)
            )
            stack.callback(workers[-1].kill)
        for worker, log in zip(workers, logs, strict=True):
            assert worker.wait(timeout=600) == 0, log.read_text()
    assert_same_rows(tta.ScanResult.load(out).table(), whole)
    writers = {Path(p).name.split("-")[1] for p in out.rglob("part-*.parquet")}
    assert writers == {"00000", "00001"}
