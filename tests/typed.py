"""What a checker of types cannot see: which optional parts are there, and values that
annotations leave out.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import tta_jax as tta
from tta_jax.analysis.relatedness import Relatedness
from tta_jax.analysis.result import HeldOut

T = TypeVar("T")


def held_out(result: tta.Analysis) -> HeldOut:
    assert result.held_out is not None
    return result.held_out


def relatedness(result: tta.Analysis) -> Relatedness:
    assert result.relatedness is not None
    return result.relatedness


def anything(value: Any) -> Any:
    """`value`, where another type is expected: what is refused or converted."""
    return value


def on_host(kind: Callable[..., T], *fields: Any, **more: Any) -> T:
    """`kind` of NumPy arrays and numbers where its fields are JAX's."""
    return kind(*fields, **more)
