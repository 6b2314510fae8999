"""What a file may ask for before it is refused.

Each limit has a default and an environment variable, which is read when it is needed:

    TTA_JAX_MOST_EXPANDED   bytes of memory for what is stored in less (compressed
                            members, repeated values); 2 GiB, or 32 times the size of
                            the file where that is more
    TTA_JAX_MOST_PIXELS     pixels of a picture; 178,956,970, as Pillow has it
    TTA_JAX_MOST_JSON       bytes of a JSON text; 256 MiB
"""

from __future__ import annotations

import os

_DEFAULTS = {"EXPANDED": 2 << 30, "PIXELS": 178_956_970, "JSON": 256 << 20}
_TIMES = 32  # what is stored may be compressed so much without being doubtful


def limit(name: str) -> int:
    """Return the limit "EXPANDED", "PIXELS" or "JSON".

    Args:
      name: of the limit, what follows `TTA_JAX_MOST_`.

    Raises:
      ValueError: the environment variable is not a whole number of at least 1.
    """
    variable = f"TTA_JAX_MOST_{name}"
    text = os.environ.get(variable, "")
    if not text:
        return _DEFAULTS[name]
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise ValueError(
            f"{variable}: found {text!r}; give a whole number of at least 1"
        )
    return int(text)


def check_expansion(asked: int, stored: int) -> None:
    """Compare the memory that a file asks for with its size.

    Args:
      asked: bytes of memory.
      stored: bytes of the file.

    Raises:
      ValueError: it asks for more than the limit; says how to raise that.
    """
    most = max(limit("EXPANDED"), _TIMES * stored)
    if asked > most:
        raise ValueError(
            f"its {stored:,} bytes ask for {asked:,} bytes of memory, at most {most:,} "
            "are given; if it is to be trusted, set TTA_JAX_MOST_EXPANDED higher"
        )
