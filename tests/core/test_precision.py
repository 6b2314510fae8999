"""Accelerators multiply float32 with fewer bits unless a product asks for more: what
decides a certificate asks. Rounding the operands of all other products must change
nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.lax import lax as lax_internal

import tta_jax as tta
from tests.bounds.test_chain_gradients import case_of
from tta_jax.core.feature_maps import FAMILIES

MAPS = [name for name in FAMILIES if name not in ("coupling_layers", "logit_affine")]


@pytest.fixture(params=[10, 7], ids=["tf32", "bfloat16"])
def fewer_bits(request, monkeypatch):
    exact = lax_internal.dot_general

    def product(lhs, rhs, *args, precision=None, **more):
        asked = str(precision)
        if "HIGHEST" not in asked.upper():
            lhs, rhs = (
                jax.lax.reduce_precision(v, 8, request.param)
                if v.dtype == jnp.float32
                else v
                for v in (lhs, rhs)
            )
        return exact(lhs, rhs, *args, precision=precision, **more)

    def call(function, *args):
        with monkeypatch.context() as patched:
            patched.setattr(lax_internal, "dot_general", product)
            jax.clear_caches()
            found = jax.device_get(function(*args))
        jax.clear_caches()
        return found

    return call


def test_the_emulation_rounds_what_does_not_ask(fewer_bits):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)), jnp.float32)
    exact = np.asarray(x, np.float64) @ np.asarray(x, np.float64)
    plain = fewer_bits(jnp.matmul, x, x)
    assert np.abs(plain - exact).max() > 1e-4
    precise = fewer_bits(partial(jnp.matmul, precision="highest"), x, x)
    assert np.abs(precise - exact).max() < 1e-5


def evaluated(name):
    transforms, source, head, target = case_of(name, 20, jnp.float32)

    def theorem(parts):
        phi, head = parts
        moved = tta.Transforms(transforms.log_joint, phi)
        return tta.bound_terms(moved, source, head, target, max_iterations=50).theorem

    return jax.value_and_grad(theorem)((transforms.feature_map, head))


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS)
def test_upper_rungs_stay_finite_and_have_a_gradient(name, fewer_bits):
    value, (_, slope) = fewer_bits(evaluated, name)
    assert np.isfinite(value)
    exact, (_, wanted) = evaluated(name)
    np.testing.assert_allclose(value, exact, rtol=1e-3)
    np.testing.assert_allclose(
        slope.weight, wanted.weight, atol=2e-2 * np.abs(wanted.weight).max()
    )
