"""Type aliases that every module shares."""

from __future__ import annotations

from typing import Any

import jax

Array = jax.Array
ArrayLike = Any
