"""What other installed packages add to the library."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from tta_jax._internal.warning import warn_of_data


def entry_points_of(kind: str) -> dict[str, EntryPoint]:
    """Entry points of the group `tta_jax.KIND` by name; none of them is loaded.

    Args:
      kind: "encoders" or "metrics".
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"tta_jax.{kind}"):
        if found.setdefault(point.name, point) != point:
            warn_of_data(
                f"{kind}: {point.name!r} is registered as {found[point.name].value} "
                f"and as {point.value}; the first is taken; remove one of the packages"
            )
    return found
