"""Source weights up to a cap: against the transport with a dummy column in POT."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bounds.test_star import K, points, random_pair
from tests.reference import numpy_chain as oracle
from tta_jax.bounds import star
from tta_jax.bounds.capped import capped_directed

figures = jax.jit(star.star_figures)
losses = jax.jit(star.star_losses)


def by_transport(source, target, log_p, scale, cap):
    """Least cost with a dummy target that takes what weights leave over."""
    x, u = scale * points(source) + log_p, scale * points(target) + log_p
    total = 0.0
    for t in range(K):
        rows = np.flatnonzero(np.asarray(source.labels) == t)
        columns = np.flatnonzero(np.asarray(target.labels) == t)
        rise = u[columns][None] - x[rows][:, None]
        cost = rise.max(2) - rise[:, :, t]
        cost = cost + -oracle.log_softmax(x[rows])[:, t][:, None]
        q, r = np.asarray(source.mass)[rows], np.asarray(target.mass)[columns]
        cost = np.concatenate([cost, np.zeros((len(rows), 1))], axis=1)
        left = np.append(r, (cap - 1) * r.sum())
        total += oracle.exact_transport(cost, cap * q, left)
    return total


@pytest.mark.parametrize("cap", [1.0, 1.25, 2.0, 40.0])
@given(st.integers(0, 2**31 - 1))
def test_the_linear_program_is_the_transport_with_a_dummy_column(cap, seed):
    source, target, log_p, scale = random_pair(seed)
    with jax.enable_x64(True):
        lost = np.asarray(losses(source, log_p, scale))
        found = capped_directed(source, target, lost, scale, cap)
        plain = float(figures(source, target, log_p, scale).directed)
    wanted = by_transport(source, target, log_p, scale, cap)
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-7)
    if cap == 1.0:
        np.testing.assert_allclose(found, plain, rtol=1e-7, atol=1e-7)
    assert found <= plain + 1e-7
