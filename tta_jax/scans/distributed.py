"""Several hosts: who is who, and where they wait for each other. JAX's own distributed
runtime, nothing else.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import jax
import numpy as np

from tta_jax._internal.text import one_line


class Hosts(NamedTuple):
    """This process among those of the scan."""

    process: int
    processes: int

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; all of them wait here for each
        other.
        """
        if self.processes == 1:
            return flag
        from jax.experimental import multihost_utils

        return bool(
            np.asarray(multihost_utils.process_allgather(np.asarray(flag))).any()
        )


def hosts() -> Hosts:
    """As `jax.distributed` was initialised, alone without it."""
    return Hosts(jax.process_index(), jax.process_count())


def use_cores(most: int = 8) -> None:
    """Make a device of every core of the CPU, at most so many; before anything is
    computed with jax.

    Scans divide their pairs among devices, each with its own copy of what tasks have in
    common. How many devices there are is left to the user where `XLA_FLAGS` or
    `JAX_NUM_CPU_DEVICES` tell. LAPACK is held to one thread, by `OPENBLAS_NUM_THREADS`
    unless that is set: its threads wait busily and take the cores from XLA's. (NumPy's
    own has been loaded by then.)

    Raises:
      RuntimeError: if jax has computed something already.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    told = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not told and jax.config.jax_num_cpu_devices < 1:  # pyright: ignore
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        jax.config.update("jax_num_cpu_devices", min(most, cores))


def join_processes(
    coordinator: str | None, processes: int | None, process: int | None
) -> None:
    """Join the other processes before anything else is done with jax; without arguments
    as TPU pods and Slurm tell.

    Raises:
      ValueError: if they cannot be joined.
    """
    if (coordinator is None) != (processes is None) or (coordinator is None) != (
        process is None
    ):
        raise ValueError(
            "coordinator, processes, process-id: give all three, or none of them where "
            "the cluster tells"
        )
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(f"process-id: found {process}; give 0 to {processes - 1}")
    if os.environ.get("JAX_PLATFORMS", "") in ("", "cpu"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"coordinator: the processes cannot join ({one_line(error)[:200]})"
        ) from None
