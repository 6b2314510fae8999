"""One self-contained HTML file of text, tables that sort, and figures. Nothing is
fetched, everything is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from tta_jax._internal.files import write_atomically
from tta_jax._internal.version import VERSION
from tta_jax.report.figures._style import rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1b;--soft:#555;--paper:#fff;--line:#c9c9c9;--band:#f3f5f8;--link:#0b4f9e;--note:#fff4d6}
@media (prefers-color-scheme:dark){
:root{--ink:#e9e9e9;--soft:#b5b9c0;--paper:#16181c;--line:#4a4e55;--band:#22262c;--link:#8ec1ff;--note:#3b3217}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main,header,footer,nav{max-width:68rem;margin:0 auto;padding:0 1rem;overflow-wrap:anywhere}
header{padding-top:1.5rem}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .25rem}
h2{font-size:1.25rem;margin:2.2rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--line)}
p,ul,ol{max-width:46rem}
li{margin:.2rem 0}
a{color:var(--link)}
nav ul{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;padding:0;margin:.6rem 0;list-style:none}
nav a{display:inline-block;padding:.25rem 0}
.skip{position:absolute;left:-999rem}
.skip:focus{left:.5rem;top:.5rem;padding:.5rem 1rem;background:var(--paper);border:2px solid var(--link);z-index:1}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.note{max-width:46rem;padding:.6rem .9rem;border-left:4px solid #b26a00;background:var(--note)}
.soft,figcaption{color:var(--soft)}
.scroll{overflow-x:auto;max-width:100%;margin:.9rem 0}
figure .scroll{margin:0}
table{width:max-content;border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.3rem 0}
caption span{display:block;position:sticky;left:0;max-width:min(46rem,calc(100vw - 2rem))}
code{font:.92em ui-monospace,Consolas,monospace}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;max-width:24rem}
th,td{overflow-wrap:normal}
thead th{background:var(--band);vertical-align:bottom}
tbody th{font-weight:600}
.n{text-align:right;white-space:nowrap}
th button{all:unset;cursor:pointer;font-weight:600;padding:.2rem 0;color:var(--link);text-decoration:underline dotted}
th button:focus-visible{outline:3px solid var(--link);outline-offset:2px}
th button::after{content:"\\2195";display:inline-block;width:1.1em;text-align:center;text-decoration:none}
th[aria-sort=ascending] button::after{content:"\\25B2"}
th[aria-sort=descending] button::after{content:"\\25BC"}
figure{margin:1.2rem 0}
figure img{display:block;height:auto;max-width:max(100%,34rem);background:#fff;padding:.5rem;border-radius:4px}
figcaption{max-width:46rem;font-size:.92rem;margin-top:.4rem}
pre{overflow-x:auto;font-size:.85rem;background:var(--band);padding:.7rem;margin:0}
footer{margin-top:2.5rem;padding-bottom:2rem;color:var(--soft);font-size:.88rem}
@media print{
:root{--ink:#000;--soft:#333;--paper:#fff;--line:#999;--band:#eee;--link:#000;--note:#fff}
@page{margin:14mm}
@page wide{size:landscape}
body{font-size:10pt}
nav,.skip{display:none}
main,header,footer{max-width:none;padding:0}
.scroll{overflow:visible}
table{font-size:7.5pt;width:auto;max-width:100%}
th,td{padding:2pt 3pt;overflow-wrap:break-word;max-width:none}
th.n{white-space:normal}
.wide{page:wide}
.wide table{font-size:7pt}
th button{color:inherit;text-decoration:none}
th button::after,th[aria-sort] button::after{content:"";width:0}
figure,tr,.note{break-inside:avoid}
h2,caption{break-after:avoid}
figure img{max-width:100%;max-height:200mm;padding:0}
thead{display:table-header-group}
}
"""

# Without it tables are as they were written; it makes buttons of the headers' words.
_SCRIPT = """
'use strict';
for (const table of document.querySelectorAll('table.sorts')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, place) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute('aria-sort', 'none');
    button.addEventListener('click', () => {
      const number = head.classList.contains('n'), was = head.getAttribute('aria-sort');
      const up = was === 'none' ? !number : was === 'descending';
      for (const other of heads) other.setAttribute('aria-sort', other === head ? (up ? 'ascending' : 'descending') : 'none');
      const key = row => {
        const cell = row.cells[place];
        return number ? ('v' in cell.dataset ? Number(cell.dataset.v) : NaN) : cell.textContent;
      };
      const blank = value => number ? Number.isNaN(value) : value === '';
      const order = new Intl.Collator('en', {numeric: true});
      const rows = [...body.rows].map(row => [key(row), row]);
      rows.sort(([a], [b]) => {
        if (blank(a) || blank(b)) return blank(a) - blank(b);
        const which = number ? (a < b ? -1 : a > b ? 1 : 0) : order.compare(a, b);
        return up ? which : -which;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
"""


_WIDE = 10  # columns beyond which a table is printed across the page


def _hash(text: str) -> str:
    return (
        "'sha256-"
        + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        + "'"
    )


def _said(words: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(words))


class Page:
    """A page that is built from top to bottom and written once; the same calls give the
    same bytes.

    All words are escaped; what stands between `backticks` is set as code. A content
    security policy forbids everything but the page's own style and script, and images
    inside it.

    >>> page = Page("Ten encoders").text("Held-out figures.").section("Scores")
    >>> page.table([{"encoder": "small", "accuracy": 0.81}], caption="Probes",
    formats={"accuracy": ".1%"}).write("page.html")
    """

    def __init__(self, title: str):
        self.title = title
        self.figures = self.tables = 0
        self._body: list[str] = []
        self._sections: list[tuple[str, str]] = []

    def section(self, title: str) -> Page:
        """A heading; the list of contents above names it."""
        anchor = f"s{len(self._sections) + 1}-" + (
            re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        )
        self._sections.append((anchor, title))
        self._body.append(f'<h2 id="{anchor}">{escape(title)}</h2>')
        return self

    def text(self, words: str) -> Page:
        """A paragraph."""
        self._body.append(f"<p>{_said(words)}</p>")
        return self

    def note(self, words: str) -> Page:
        """A paragraph that must not be overlooked."""
        self._body.append(f'<p class="note" role="note">{_said(words)}</p>')
        return self

    def items(self, lines: Sequence[str]) -> Page:
        """A list, a line for each point; nothing for no lines."""
        if lines:
            self._body.append(
                "<ul>" + "".join(f"<li>{_said(line)}</li>" for line in lines) + "</ul>"
            )
        return self

    def preformatted(self, text: str, label: str) -> Page:
        """Text in columns, as a terminal shows it; `label` names it for those who hear
        the page.
        """
        self._body.append(
            '<pre tabindex="0" role="region" '
            f'aria-label="{escape(label)}">{escape(text)}</pre>'
        )
        return self

    def table(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        caption: str,
        digits: int = 3,
        formats: Mapping[str, str] | None = None,
        most: int = 500,
    ) -> Page:
        """A table with a column for each key, in order of first appearance; a click on
        a header sorts by it.

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
            self._body.append(f'<p class="soft">{_said(caption)}: no rows.</p>')
            return self
        self.tables += 1
        columns = list(dict.fromkeys(name for row in rows for name in row))
        shown, mark = rows[:most], f"t{self.tables}"
        numbers = {
            name for name in columns if _all_numbers([row.get(name) for row in rows])
        }
        head = "".join(
            (
                "<th "
                f'scope="col"{" class=n" if name in numbers else ""}>{escape(str(name))}</th>'
            )
            for name in columns
        )
        lines = []
        for row in shown:
            cells = [
                _cell(row.get(name), name in numbers, (formats or {}).get(name), digits)
                for name in columns
            ]
            first = f'<th scope="row"{cells[0][0]}>{cells[0][1]}</th>'
            lines.append(
                f"<tr>{first}"
                + "".join(f"<td{extra}>{text}</td>" for extra, text in cells[1:])
                + "</tr>"
            )
        self._body.append(
            f'<div class="scroll{" wide" if len(columns) > _WIDE else ""}" '
            f'tabindex="0" role="region" aria-labelledby="{mark}"><table class="sorts">'
            "<caption "
            f'id="{mark}"><span>{_said(caption)}</span></caption><thead><tr>{head}</tr></thead><tbody>\n'
            + "\n".join(lines)
            + "\n</tbody></table></div>"
        )
        if len(rows) > len(shown):
            self._body.append(
                f'<p class="soft">{len(shown):,} of {len(rows):,} rows are shown.</p>'
            )
        return self

    def figure(self, figure: Figure, *, caption: str, alt: str) -> Page:
        """A matplotlib figure as SVG inside the page.

        Args:
          caption: stands below it.
          alt: what those hear who do not see it; it should say what the figure shows,
            not only what it is.
        """
        self.figures += 1
        picture = base64.b64encode(rendered(figure, "svg")).decode()
        self._body.append(
            '<figure><div class="scroll" tabindex="0" role="region" '
            f'aria-label="Figure {self.figures}">'
            f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{picture}"></div>'
            f"<figcaption>Figure {self.figures}. {_said(caption)}</figcaption></figure>"
        )
        return self

    def html(self) -> str:
        """The whole page."""
        policy = (
            f"default-src 'none'; img-src data:; style-src {_hash(_STYLE)}; "
            f"script-src {_hash(_SCRIPT)}"
        )
        links = "".join(
            f'<li><a href="#{anchor}">{escape(title)}</a></li>'
            for anchor, title in self._sections
        )
        contents = (
            f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n'
            if len(self._sections) > 2
            else ""
        )
        body = "\n".join(self._body)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            '<a class="skip" href="#main">Skip to the content</a>\n'
            f"<header><h1>{escape(self.title)}</h1></header>\n{contents}"
            f'<main id="main" tabindex="-1">\n{body}\n</main>\n<footer>Written by '
            f"tta_jax {VERSION}.</footer>\n"
            f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
        )

    def write(self, path: str | os.PathLike) -> int:
        """Write the page to one file, atomically; its size in bytes."""
        content = self.html().encode(
            errors="backslashreplace"
        )  # names of files need not be text
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


def _cell(value: Any, number: bool, form: str | None, digits: int) -> tuple[str, str]:
    """Attributes and text of a cell; `data-v` is what numbers are sorted by."""
    if _blank(value):
        return (" class=n" if number else ""), ""
    if isinstance(value, (bool, np.bool_)):
        return "", "yes" if value else "no"
    if not _is_number(value):
        return (" class=n" if number else ""), escape(str(value))
    if not math.isfinite(value):
        text = "inf" if value > 0 else "-inf"
    elif form is not None:
        text = format(value, form)
    elif isinstance(value, (int, np.integer)):
        text = f"{value:,}"
    else:
        small = value != 0 and (round(value, digits) == 0 or abs(value) >= 1e6)
        text = f"{value:.{digits}g}" if small else f"{value:.{digits}f}"
    order = (
        ("Infinity" if value > 0 else "-Infinity")
        if not math.isfinite(value)
        else repr(float(value))
    )
    return (f' class=n data-v="{order}"' if number else ""), escape(text)
