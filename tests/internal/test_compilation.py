"""Compiling ahead: once, waited for, harmless when it fails; and what certificates
share by it.
"""

import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import tta_jax as tta
from tests.analysis.test_analyze import CountCompilations
from tests.bounds.test_chain import SHAPES, random_case
from tta_jax._internal.compilation import (
    evict_compiled_programs,
    precompile_in_thread,
    run_once_per_key,
)
from tta_jax.bounds import certificate


def test_whoever_comes_while_it_runs_waits_and_nobody_repeats_it():
    calls, finished = [], threading.Event()

    @run_once_per_key
    def slowly(value):
        calls.append(value)
        time.sleep(0.2)
        finished.set()

    with precompile_in_thread(lambda: slowly(1)) as ready:
        while not calls:
            time.sleep(0.01)
        slowly(1)
        assert finished.is_set()
        slowly(1)
        slowly(2)
        ready()
    assert calls == [1, 2]


def test_a_failure_ahead_is_nobodys_business():
    @run_once_per_key
    def fails():
        raise RuntimeError("no compiler")

    done = []
    with precompile_in_thread(fails, lambda: done.append(True)) as ready:
        ready()
    assert done  # what follows is still tried
    fails()  # and nobody waits for ever


def test_the_thread_has_the_callers_precision():
    found = []
    with (
        jax.enable_x64(True),
        precompile_in_thread(lambda: found.append(jax.numpy.ones(1).dtype)) as ready,
    ):
        ready()
    assert found == [np.float64]


def test_an_early_end_is_no_abort():
    """The interpreter waits for a compiler at work instead of dying in it; what has not
    begun is dropped.
    """
    code = """
import jax, time
from tta_jax._internal.compilation import precompile_in_thread
try:
    loop = lambda x: jax.lax.fori_loop(0, 9, lambda i, v: v @ v + i, x)
    slow = lambda: jax.jit(loop).lower(jax.numpy.ones((9, 9))).compile()
    with precompile_in_thread(slow, lambda: time.sleep(60)):
        raise ValueError("early")
except ValueError:
    raise SystemExit(2)
"""
    start = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 2
    assert time.monotonic() - start < 45


def test_after_the_rehearsal_a_certificate_compiles_nothing():
    padded = certificate.plan_padding([(np.array([40, 36, 33]), np.array([20, 22]))])[0]
    certificate.precompile_certificate(padded, 7, 3, 2, "diagonal", "all", 300)
    rng = np.random.default_rng(0)
    y, v = np.repeat(np.arange(3), (40, 36, 33)), np.repeat(np.arange(2), (20, 22))
    source, target = (
        tta.Samples(
            rng.normal(size=(len(k), 7)).astype(np.float32), k, np.ones(len(k), bool)
        )
        for k in (y, v)
    )
    log_joint = np.where(np.eye(2, 3), np.log(0.5), -np.inf)
    transforms = tta.Transforms(
        log_joint, tta.feature_maps.Diagonal(np.zeros(7), np.zeros(7))
    )
    head = tta.SoftmaxHead(rng.normal(size=(3, 7)), np.zeros(3))
    with CountCompilations() as compilations:
        found = tta.certify(
            transforms, source, head, target, padded=padded, max_iterations=300
        )
    assert compilations.count == 0
    assert found.certificate.holds


@pytest.mark.parametrize("shape", SHAPES)
def test_more_padding_changes_no_figure(shape):
    for seed in range(3):
        case = random_case(shape, "diagonal", 40 + seed)
        tightly = tta.certify(*case, epsilon=0.05)
        loosely = tta.certify(
            *case, epsilon=0.05, padded=certificate.PaddedShape(96, 64, 128)
        )
        for a, b in zip(
            jax.tree.leaves(tightly.bound), jax.tree.leaves(loosely.bound), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        np.testing.assert_allclose(tightly.bound.tight, loosely.bound.tight, rtol=1e-12)
        assert loosely.certificate.holds


def test_padded_shapes_are_shared_only_where_that_is_cheap():
    def even(n, k):
        return np.full(k, n)

    shared = certificate.plan_padding(
        [(even(250, 10), even(25, 10)), (even(750, 10), even(75, 10))]
    )
    assert shared == [(768, 80, 8192)] * 2
    # Ten times the work for the smaller evaluation would take longer than compiling for
    # it.
    own = certificate.plan_padding(
        [(even(600, 10), even(60, 10)), (even(6000, 10), even(600, 10))]
    )
    assert own == [(640, 64, 8192), (6144, 640, 8192)]
    # So unequal that problems have shapes of their own, which depend on what is
    # assigned to what.
    unequal = np.array([60_000, 20, 20])
    assert certificate.plan_padding([(unequal, even(300, 2))]) == [None]
    # Small ones are padded however unequal they are.
    assert certificate.plan_padding([(np.array([87, 68, 20]), np.array([5, 60]))]) == [
        (96, 64, 192)
    ]


@pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="memory maps are counted on Linux"
)
def test_programs_are_dropped_only_where_there_are_too_many():
    count = []
    double = jax.jit(lambda x: (count.append(1), 2 * x)[1])
    double(np.float32(1))
    assert not evict_compiled_programs(10**9)
    double(np.float32(2))
    assert len(count) == 1
    assert evict_compiled_programs(0)
    assert double(np.float32(3)) == 6
    assert len(count) == 2
