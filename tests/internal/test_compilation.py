"""Programs that are forgotten before a process is full of them."""

from pathlib import Path

import jax
import numpy as np
import pytest

from tta_jax._internal.compilation import evict_compiled_programs


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
