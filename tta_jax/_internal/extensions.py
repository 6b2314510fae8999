"""What other installed packages add to the library."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points


def entry_points_of(kind: str) -> dict[str, EntryPoint]:
    """Entry points of the group `tta_jax.KIND` by name; none of them is loaded.

    Args:
      kind: "encoders" or "metrics".
    """
    return {point.name: point for point in entry_points(group=f"tta_jax.{kind}")}
