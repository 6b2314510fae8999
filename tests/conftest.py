"""Settings for every test: warnings are errors (pyproject), nothing is promoted, 8
forced devices, compilations shared.
"""

import gc
import os
import tempfile

# Before jax is imported: sharding is tested on 8 forced host devices, and workers share
# what they compile. Most of the suite's time is compiling, so the compiler optimises
# only where that is asked for: TTA_JAX_TESTS_OPTIMISED=1, as the gate does for `quick`.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
if os.environ.get("TTA_JAX_TESTS_OPTIMISED") != "1":
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
# Its threads wait busily, and there is a worker for every core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(tempfile.gettempdir(), f"tta_jax_tests_{os.getuid()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(
    os, "sched_setaffinity"
):
    # Workers whose threads wait for each other's cores take several times as long: each
    # keeps to its share of them.
    cores, workers = (
        sorted(os.sched_getaffinity(0)),
        int(os.environ["PYTEST_XDIST_WORKER_COUNT"]),
    )
    os.sched_setaffinity(0, cores[int(worker[2:]) % len(cores) :: workers])

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from tta_jax._internal.compilation import evict_compiled_programs

# The shapes in signatures are checked at every call.
install_import_hook(
    [
        "tta_jax.core.linalg",
        "tta_jax.core.coupling",
        "tta_jax.core.losses",
        "tta_jax.core.heads",
        "tta_jax.transport",
        "tta_jax.bounds.chain",
        "tta_jax.fitting.assignment",
        "tta_jax.fitting.closed_form",
        "tta_jax.fitting.gradient_descent",
        "tta_jax.fitting.logistic_regression",
    ],
    "beartype.beartype",
)

# Users who forbid promotion differentiate the bound, too.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=60, print_blob=True
)
settings.load_profile("suite")


# Modules of `python -m pytest -m quick`, but for their slow tests: seconds each, and
# something of every package.
QUICK = (
    "bounds/test_intervals.py",
    "cli/test_metrics.py",
    "core/test_coupling.py",
    "core/test_linalg.py",
    "core/test_losses.py",
    "data/test_features.py",
    "data/test_loading.py",
    "data/test_weights.py",
    "evaluation/test_rank_statistics.py",
    "fitting/test_logistic_regression.py",
    "internal/test_serialization.py",
    "scans/test_plan.py",
    "tasks/test_task.py",
    "test_config.py",
    "test_imports.py",
    "test_public_api.py",
)
QUICK_ANALYSIS = "test_chain_and_certificates_hold_in_sample_and_held_out"


def pytest_collection_modifyitems(items):
    for item in items:
        wanted = str(item.path).endswith(QUICK) or item.name == QUICK_ANALYSIS
        if wanted and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.quick)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep what the library stores and finds out of the user's home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tensorflow_datasets"))
    return tmp_path / "cache" / "tta_jax"


@pytest.fixture(autouse=True, scope="module")
def evict_programs():
    """Keep a worker's memory small: modules share few shapes, and what they share is
    read from the compilation cache.
    """
    yield
    if evict_compiled_programs(most=3_000):
        from tta_jax.scans import device_cache

        device_cache._PROGRAMS.clear()
        device_cache._jitted.cache_clear()
        gc.collect()


@pytest.fixture
def x64():
    """Float64 inside jax for one test; the library's own default is float32."""
    with jax.enable_x64(True):
        yield
