"""Certificates of padded shapes, and which evaluations share them."""

import jax
import numpy as np
import pytest

import tta_jax as tta
from tests.bounds.test_chain import SHAPES, random_case
from tta_jax.bounds import certificate


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_more_padding_changes_no_figure(shape):
    for seed in range(3):
        case = random_case(shape, "diagonal", 40 + seed)
        tightly = tta.certify(*case, epsilon=0.05)
        loosely = tta.certify(
            *case, epsilon=0.05, padded=certificate.PaddedShape(96, 64, 128, 96)
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
    assert shared == [(768, 80, 8192, 768)] * 2
    # Ten times the work for the smaller evaluation would take longer than compiling for
    # it.
    own = certificate.plan_padding(
        [(even(600, 10), even(60, 10)), (even(6000, 10), even(600, 10))]
    )
    assert own == [(640, 64, 65_536, 6144), (6144, 640, 65_536, 6144)]
    # So unequal that problems have shapes of their own, which depend on what is
    # assigned to what.
    unequal = np.array([60_000, 20, 20])
    assert certificate.plan_padding([(unequal, even(300, 2))]) == [None]
    # Small ones are padded however unequal they are.
    assert certificate.plan_padding([(np.array([87, 68, 20]), np.array([5, 60]))]) == [
        (96, 64, 192, 80)
    ]
