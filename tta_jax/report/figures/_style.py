"""What figures share: a figure of its own, colours, names that fit, labels that do not
overlap, files of the same bytes.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tta_jax._internal.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Parts of bounds. All palettes here are Paul Tol's, told apart by colour-blind readers
# and in grey.
SOURCE, REWEIGHTED, MISMATCH, EXCESS = "#4477aa", "#99bbdd", "#ccbb44", "#ee8866"
INK, FAINT = "#222222", "#999999"
LEGEND = 12  # groups up to which a legend names them
PANELS = ("before the map", "after the map")
MAX_NAMED = 40  # classes that are named where they lie
NAMED_TASKS = 15  # points up to which each is named
GROUPS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#aa3377",
    "#ccbb44",
    "#66ccee",
    "#222222",
    "#ee8866",
    "#999933",
    "#882255",
)

_UNDATED: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "png": {},
}


def new_figure(**options: Any) -> Figure:
    """A figure of its own: a caller's pyplot, its backend and its open figures stay as
    they are.

    Raises:
      ValueError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(
            "figure: matplotlib is not installed; install it with: pip install "
            "'tta-jax[plots]'"
        ) from None
    return Figure(**options)


def rendered(figure: Figure, kind: str = "png") -> bytes:
    """The figure as "png", "svg" or "pdf": without a date, so the same figure gives the
    same bytes.
    """
    import matplotlib

    stream = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "tta_jax"}):
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from"
        )  # names in scripts that the font lacks
        figure.savefig(
            stream, format=kind, dpi=150, bbox_inches="tight", metadata=_UNDATED[kind]
        )
    return stream.getvalue()


def write_figure(figure: Figure, path: str | os.PathLike | None) -> Figure:
    """Write the figure, if there is a path: SVG or PDF where it ends in .svg or .pdf,
    else PNG.
    """
    if path is not None:
        kind = Path(path).suffix.removeprefix(".").lower()
        content = rendered(figure, kind if kind in _UNDATED else "png")
        write_atomically(path, lambda stream: stream.write(content))
    return figure


def truncate_label(name: object, most: int = 30) -> str:
    """A name as it may stand in a figure: on one line, not too long, its dollars no
    mathematics.
    """
    text = "".join(c if c.isprintable() else " " for c in " ".join(str(name).split()))
    text = text if len(text) <= most else text[: most - 3].rstrip() + "..."
    return text.replace("$", r"\$")


def short(value: float) -> str:
    """A number of nats beside a mark: two digits behind the point, or two that count
    where those would be zeros.
    """
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def remove_spines(axis: Axes) -> None:
    """No frame on the right and on top."""
    axis.spines[["top", "right"]].set_visible(False)


def group_colours(groups: Sequence[object]) -> dict[object, Any]:
    """A colour for each group, in order of appearance; shades of one scale where there
    are more groups than colours.
    """
    names = list(dict.fromkeys(groups))
    if len(names) <= len(GROUPS):
        return dict(zip(names, GROUPS, strict=False))
    from matplotlib import colormaps

    return dict(
        zip(names, colormaps["viridis"](np.linspace(0, 0.95, len(names))), strict=True)
    )


_RADII = (3, 6, 10, 16, 24, 34, 46, 60, 80, 105, 140, 180)  # points
_ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)


def place_labels(
    axis: Axes, points: np.ndarray, texts: Sequence[str], size: float = 8.0
) -> None:
    """Write a text beside each of the points `(n, 2)`, in data units: no text on
    another one or on a point, if there is room.

    A thin line leads from a text that had to go far. Limits and layout of the axes have
    to be settled before.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure: Any = axis.figure
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.draw_without_rendering()
        look: dict[str, Any] = {
            "fontsize": size,
            "ha": "center",
            "va": "center",
            "zorder": 4,
        }
        back = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5}
        written = [axis.text(0, 0, text, bbox=back, **look) for text in texts]
        half = np.array(
            [
                [(box := t.get_window_extent(renderer)).width / 2, box.height / 2]
                for t in written
            ]
        )
    unit = figure.dpi / 72
    frame: Any = axis.get_window_extent(renderer)
    to_data = axis.transData.inverted()
    at = axis.transData.transform(points)
    # Boxes as centre and half size; points first, then the texts as they find their
    # places.
    centres, halves = list(at), [np.full(2, 4 * unit)] * len(at)
    # Where points crowd there is least room: they come first.
    nearest = np.sort(np.abs(at[:, None] - at[None]).max(-1), axis=1)[
        :, : 1 + min(3, len(at) - 1)
    ].sum(1)
    for k in np.argsort(nearest, kind="stable"):
        place, text, extent = at[k], written[k], half[k] + unit
        way = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
        options = np.concatenate(
            [place + way * (extent + radius * unit + 3 * unit) for radius in _RADII]
        )
        taken, sizes = np.array(centres), np.array(halves)
        over = (
            np.clip(
                sizes[None] + extent - np.abs(options[:, None] - taken[None]), 0, None
            )
            .prod(-1)
            .sum(-1)
        )
        outside = np.clip(
            np.abs(options - (frame.p0 + frame.p1) / 2) + extent - frame.size / 2,
            0,
            None,
        ).sum(-1)
        best = int(np.argmin(over + outside * 1e3))
        centres.append(options[best])
        halves.append(extent)
        text.set_position(to_data.transform(options[best]))
        text.set_in_layout(False)
        if best >= 3 * len(_ANGLES):
            edge = options[best] + np.clip(place - options[best], -extent, extent)
            line = to_data.transform(np.stack([place, edge]))
            axis.plot(
                *line.T, color=INK, lw=0.6, ls=":", zorder=2, scalex=False, scaley=False
            )
