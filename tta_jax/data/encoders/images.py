"""What happens to a picture before an encoder sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def square(size: int) -> Callable[[Any], np.ndarray]:
    """A function from an RGB `PIL.Image` to `(size, size, 3)` uint8: the whole picture,
    resized (bilinear, antialiased).

    Nothing is cropped, since the objects of a target task may sit at the rim, and
    proportions are not kept.
    """

    def prepare(image: Any) -> np.ndarray:
        from PIL import Image

        return np.asarray(
            image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        )

    return prepare
