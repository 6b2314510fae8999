"""Shorten messages, escape control characters, and read and write JSON values."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from tta_jax._internal.limits import limit

# Control characters of ASCII and Latin-1, separators of lines and paragraphs, and marks
# that turn the direction of writing. Joiners of letters and emoji are not among them.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_MOST_DEPTH = 100  # of JSON


def printable(text: Any, keep: str = "") -> str:
    r"""Text with control characters as escapes: `\x1b`, `\n`, `\u202e`.

    Args:
      text: what is to be shown; anything but text is turned into it.
      keep: control characters that stay as they are.
    """

    def escaped(match: re.Match[str]) -> str:
        found = match[0]
        return found if found in keep else found.encode("unicode_escape").decode()

    return _CONTROL.sub(escaped, str(text))


class PrintableStream:
    """A text stream that shows control characters but line breaks as escapes.

    Attributes:
      stream: what is written to.
    """

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(printable(text, keep="\n"))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks and control characters; its kind if it
    says nothing.
    """
    return printable(" ".join(str(error).split())) or type(error).__name__


def finite(value: Any) -> Any:
    """Nested dictionaries and lists with None for NaN and infinities, for which JSON
    has no word.
    """
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text from a file.

    Args:
      text: of at most `TTA_JAX_MOST_JSON` bytes and 100 levels.

    Raises:
      ValueError: it is no JSON, too long or nested too deeply.
    """
    if len(text) > limit("JSON"):
        raise ValueError(
            f"a JSON text has {len(text):,} bytes, more than {limit('JSON'):,}; if it "
            "is to be trusted, set TTA_JAX_MOST_JSON higher"
        )
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("a JSON text is nested too deeply") from None
    level, depth = [value], 0
    while level := [
        inner
        for outer in level
        if isinstance(outer, (list, dict))
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        depth += 1
        if depth > _MOST_DEPTH:
            raise ValueError(
                f"a JSON text is nested more than {_MOST_DEPTH} levels deep"
            )
    return value
