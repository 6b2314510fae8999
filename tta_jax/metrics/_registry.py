"""The decorator that makes a metric, and the table of what each needs, costs and comes
from, for commands, tests and documentation.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol

from tta_jax._internal.extensions import entry_points_of
from tta_jax._internal.text import one_line
from tta_jax._internal.typing import Array, ArrayLike
from tta_jax._internal.warning import warn_of_data
from tta_jax.metrics import _inputs

# Costs that several metrics share.
SPD_COST = "n d^2 + d^3"
GRAM_COST = "n d r + r^3, r = min(n, d)"
TRANSPORT_COST = "n m (d + iterations); memory of one tile"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a refusal looks at: items with labels, features, classes with items."""

    items: int
    dim: int
    classes: int


def _never(facts: Facts) -> None:
    """Refuse nothing."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """One baseline.

    Attributes:
      name: as in `tta_jax.metrics`.
      function: `(features, labels, source, *, mask, num_classes, ...) -> scalar`,
        larger means better transfer.
      needs: what `source` is: "nothing", "probabilities" (n, K_S) of the source head,
        or the source "task".
      cost: operations and memory beyond the features, for n items, m of the source, d
        features, K classes.
      reference: where it comes from.
      differentiable: whether `jax.grad` with respect to features (or probabilities)
        gives its gradient.
      sees_scale: whether multiplying all features by a number changes it; then compare
        within one encoder, or standardise.
      takes: what else `compute` passes on: "key", "groups", "fold",
        "num_source_classes".
      underflows: whether 0 means that nothing is left of it.
      refuse: why it cannot be computed on such a task, or None.
      undefined: what an infinite value, a NaN or an underflow to 0 means.
    """

    name: str
    function: Callable[..., Any]
    needs: str
    cost: str
    reference: str
    differentiable: bool = True
    sees_scale: bool = False
    takes: tuple[str, ...] = ()
    underflows: bool = False
    refuse: Callable[[Facts], str | None] = _never
    undefined: str = "it is not a number; the features may be constant"


REGISTRY: dict[str, Metric] = {}  # in the order in which metrics are imported


class MetricFunction(Protocol):
    """A public metric: the common signature, and options of its own."""

    def __call__(
        self,
        features: ArrayLike | None,
        labels: ArrayLike,
        source: Any = None,
        *,
        mask: ArrayLike | None = None,
        num_classes: int | None = None,
        **options: Any,
    ) -> Array: ...


_PREPARE = {
    "nothing": _inputs.prepare_target,
    "probabilities": _inputs.prepare_predictions,
    "task": _inputs.prepare_tasks,
}


def metric(
    needs: str, *, cost: str, reference: str, **facts: Any
) -> Callable[[Callable[..., Array]], MetricFunction]:
    """Make a metric of a function of checked inputs, and enter it in `REGISTRY`.

    The function gets a target as `LabelledFeatures` and, if it needs them, the source
    head's probabilities or the source task; keyword-only arguments are its options. The
    metric has the common signature with these options, and a docstring that describes
    the common arguments, those of the function, and the reference.

    Args:
      needs: what `source` is: "nothing", "probabilities" or "task".
      cost: as in `Metric`.
      reference: as in `Metric`; it ends the docstring.
      **facts: further fields of `Metric`.
    """
    prepare = _PREPARE[needs]

    def decorate(function: Callable[..., Array]) -> MetricFunction:
        common = inspect.signature(prepare).parameters
        options = {
            name: option
            for name, option in inspect.signature(function).parameters.items()
            if option.kind is inspect.Parameter.KEYWORD_ONLY
        }
        signature = inspect.Signature(
            [*common.values(), *options.values()], return_annotation="Array"
        )

        @functools.wraps(function, ("__module__", "__name__", "__qualname__"))
        def call(*args: Any, **kwargs: Any) -> Array:
            given = signature.bind(*args, **kwargs)
            own = {k: v for k, v in given.kwargs.items() if k in options}
            shared = {k: v for k, v in given.kwargs.items() if k in common}
            return function(*prepare(*given.args, **shared), **own)

        call.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
        call.__doc__ = _documented(function, prepare, reference)
        name = call.__name__
        if name in REGISTRY:
            raise ValueError(f"metric: there is one called {name!r}; rename yours")
        REGISTRY[name] = Metric(
            name, call, needs=needs, cost=cost, reference=reference, **facts
        )
        return call

    return decorate


@functools.cache
def load_registered() -> None:
    """Import the metrics that installed packages register as entry points of the group
    `tta_jax.metrics`: modules or functions that use `metric`. One that fails is named
    in a warning and left out.
    """
    for name, point in entry_points_of("metrics").items():
        try:
            point.load()
        except Exception as error:
            owner = "unknown" if point.dist is None else point.dist.name
            warn_of_data(
                f"metrics: {name!r} of package {owner!r} cannot be imported "
                f"({type(error).__name__}: {one_line(error)[:200]}); it is left out"
            )


def _documented(
    function: Callable[..., Array], prepare: Callable[..., Any], reference: str
) -> str:
    """Join the docstrings of a metric and of the preparation of its inputs."""
    text, _, own = (inspect.getdoc(function) or "").partition("\n\nArgs:\n")
    shared = (inspect.getdoc(prepare) or "").partition("\n\nArgs:\n")[2]
    arguments, _, errors = shared.partition("\n\n")
    arguments = "\n".join(part for part in (arguments, own) if part)
    return f"{text}\n\nArgs:\n{arguments}\n\n{errors}\n\nReference: {reference}."
