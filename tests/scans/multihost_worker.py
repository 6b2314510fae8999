"""Evaluate one pair as one of several processes, for `test_sharding_over_hosts`.

python -m tests.scans.multihost_worker COORDINATOR PROCESSES PROCESS OUT.npy
"""

import sys

import jax
import numpy as np

import tta_jax as tta
from tests.bounds.test_chain import random_case


def case():
    """A pair whose 32 source and 24 target items divide among 8 devices, in float64."""
    return random_case((4, 3, 5, 32, 24), "diagonal", 11)


def values(case):
    found = tta.bound_terms(*case, capacity=24, max_iterations=200)
    slope = jax.grad(
        lambda h: (
            tta.bound_terms(
                case[0], case[1], h, case[3], capacity=24, rungs="tight"
            ).tight
        )
    )(case[2])
    return jax.numpy.stack(
        [
            found.target_loss,
            found.tight,
            found.oscillation,
            found.theorem,
            (slope.weight**2).sum(),
        ]
    )


def main(coordinator, number, process, out):
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, int(number), int(process))
    devices = np.asarray(jax.devices())
    assert len(devices) == 8
    assert len(jax.local_devices()) == 8 // int(number)
    mesh = jax.sharding.Mesh(devices, ("rows",))
    by_row, everywhere = (
        jax.NamedSharding(mesh, jax.P(*axes)) for axes in (["rows"], [])
    )

    def place(tree, sharding):
        def put(v):
            return jax.make_array_from_callback(
                v.shape, sharding, lambda index: v[index]
            )

        return jax.tree.map(lambda v: put(np.asarray(v)), tree)

    transforms, source, head, target = case()
    placed = (
        place(transforms, everywhere),
        place(source, by_row),
        place(head, everywhere),
        place(target, by_row),
    )
    found = jax.jit(values, out_shardings=everywhere)(placed)
    np.save(out, np.asarray(found.addressable_data(0)))


if __name__ == "__main__":
    main(*sys.argv[1:])
