"""Type aliases that every module shares."""

from __future__ import annotations

from typing import Any

import jax
import jax.typing

Array = jax.Array
DTypeLike = jax.typing.DTypeLike
# Fields of pytrees that stand on the host and on devices. No unions: what is read from
# them goes to functions of either.
ArrayLike = Any  # JAX's or NumPy's
Scalar = Any  # a float, or an array of one where a pair is traced
