"""One self-contained HTML file of text, tables that sort, and figures. Nothing is
fetched, everything is escaped.

The markup, the style and the script are files in `templates`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup, escape

from tta_jax._internal.files import write_atomically
from tta_jax._internal.text import printable
from tta_jax._internal.version import VERSION
from tta_jax.report.figures._style import rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDE = 10  # columns beyond which a table is printed in landscape format


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tta_jax.report.html"),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code_spans": _code_spans, "sha256": _sha256}
    return environment


def _shown(value: Any) -> Any:
    """Text with control characters but line breaks as escapes; markup is ours."""
    plain = isinstance(value, str) and not isinstance(value, Markup)
    return printable(value, keep="\n") if plain else value


def _code_spans(text: str) -> Markup:
    """Escape the text and set what stands between backticks as code."""
    # A plain string, because substitution in a Markup would escape once more.
    escaped = str(escape(_shown(text)))
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", escaped))


def _sha256(text: str) -> str:
    """Hash a style or script as a content security policy names it."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _block(kind: str, **values: Any) -> Markup:
    """Render a macro of `blocks.html.jinja`."""
    blocks = _environment().get_template("blocks.html.jinja").module
    return getattr(blocks, kind)(**values)


def _verbatim(file: str) -> Markup:
    """Read a style or script, in which nothing is escaped."""
    return Markup(
        (files("tta_jax.report.html") / "templates" / file).read_text("utf-8")
    )


class _Section(NamedTuple):
    anchor: str
    title: str


class _Cell(NamedTuple):
    """A cell or a header.

    Attributes:
      text: what it shows.
      numeric: whether its column holds numbers.
      sort_key: what the script sorts numbers by; "" for text and for blanks.
    """

    text: str
    numeric: bool
    sort_key: str = ""


class Page:
    """Build a page from top to bottom and write it once; the same calls give the same
    bytes.

    All text is escaped; what stands between `backticks` is set as code. A content
    security policy forbids everything but the page's own style and script, and images
    inside it.

    >>> page = Page("Ten encoders").text("Held-out figures.").section("Scores")
    >>> page.table([{"encoder": "small", "accuracy": 0.81}], caption="Probes",
    formats={"accuracy": ".1%"}).write("page.html")
    """

    def __init__(self, title: str):
        self.title = title
        self.figures = self.tables = 0
        self._blocks: list[Markup] = []
        self._sections: list[_Section] = []

    def _add(self, kind: str, **values: Any) -> Page:
        self._blocks.append(_block(kind, **values))
        return self

    def section(self, title: str) -> Page:
        """Add a heading, which the list of contents names."""
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        section = _Section(f"s{len(self._sections) + 1}-{name}", title)
        self._sections.append(section)
        return self._add("heading", **section._asdict())

    def text(self, words: str) -> Page:
        """Add a paragraph."""
        return self._add("paragraph", text=words)

    def note(self, words: str) -> Page:
        """Add a paragraph that must not be overlooked."""
        return self._add("note", text=words)

    def items(self, lines: Sequence[str]) -> Page:
        """Add a list with a point for each line; nothing for no lines."""
        return self._add("items", lines=lines) if lines else self

    def preformatted(self, text: str, label: str) -> Page:
        """Add text in columns, as a terminal shows it; screen readers read `label`."""
        return self._add("preformatted", text=text, label=label)

    def table(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        caption: str,
        digits: int = 3,
        formats: Mapping[str, str] | None = None,
        most: int = 500,
    ) -> Page:
        """Add a table with a column for each key, in order of first appearance; a click
        on a header sorts by it.

        None and NaN are blanks, which sort last. The first column names the rows. A
        table without rows is a line that says so.

        Args:
          caption: what the table shows.
          digits: behind the point.
          formats: a format for numbers of a column in place of that, for example
            `".1%"`.
          most: rows shown at most; a line below says how many there are.
        """
        if not rows:
            return self._add("remark", text=f"{caption}: no rows.")
        self.tables += 1
        names = list(dict.fromkeys(name for row in rows for name in row))
        numeric = {
            name: _all_numbers([row.get(name) for row in rows]) for name in names
        }
        forms = formats or {}
        shown = rows[:most]
        self._add(
            "table",
            anchor=f"t{self.tables}",
            caption=caption,
            header=[_Cell(str(name), numeric[name]) for name in names],
            rows=[
                [
                    _cell(row.get(name), numeric[name], forms.get(name), digits)
                    for name in names
                ]
                for row in shown
            ],
            wide=len(names) > _WIDE,
        )
        if len(rows) > len(shown):
            self._add("remark", text=f"{len(shown):,} of {len(rows):,} rows are shown.")
        return self

    def figure(self, figure: Figure, *, caption: str, alt: str) -> Page:
        """Add a matplotlib figure as SVG inside the page.

        Args:
          caption: stands below it.
          alt: what screen readers read; it should say what the figure shows, not only
            what it is.
        """
        self.figures += 1
        return self._add(
            "figure",
            number=self.figures,
            picture=base64.b64encode(rendered(figure, "svg")).decode(),
            caption=caption,
            alt=alt,
        )

    def html(self) -> str:
        """Return the whole page."""
        return (
            _environment()
            .get_template("page.html.jinja")
            .render(
                title=self.title,
                sections=self._sections,
                blocks=self._blocks,
                style=_verbatim("style.css"),
                script=_verbatim("script.js"),
                version=VERSION,
            )
        )

    def write(self, path: str | os.PathLike) -> int:
        """Write the page to one file, atomically, and return its size in bytes."""
        # Names of files need not be valid text.
        content = self.html().encode(errors="backslashreplace")
        write_atomically(path, lambda stream: stream.write(content))
        return len(content)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, bool
    )


def _blank(value: Any) -> bool:
    return value is None or (_is_number(value) and math.isnan(value))


def _all_numbers(values: Sequence[Any]) -> bool:
    """Whether a column holds numbers and blanks only, and a number."""
    there = [value for value in values if not _blank(value)]
    return bool(there) and all(map(_is_number, there))


def _cell(value: Any, numeric: bool, form: str | None, digits: int) -> _Cell:
    """Format a value."""
    if _blank(value):
        return _Cell("", numeric)
    if isinstance(value, (bool, np.bool_)):
        return _Cell("yes" if value else "no", numeric)
    if not _is_number(value):
        return _Cell(str(value), numeric)
    if not math.isfinite(value):
        sign = "" if value > 0 else "-"
        return _Cell(f"{sign}inf", numeric, f"{sign}Infinity" if numeric else "")
    if form is not None:
        text = format(value, form)
    elif isinstance(value, (int, np.integer)):
        text = f"{value:,}"
    else:
        small = value != 0 and (round(value, digits) == 0 or abs(value) >= 1e6)
        text = f"{value:.{digits}g}" if small else f"{value:.{digits}f}"
    return _Cell(text, numeric, repr(float(value)) if numeric else "")
