"""How pictures are prepared for models whose files do not say it themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tta_jax._internal.files import reading
from tta_jax.data.encoders.libraries.reference import Reference, read_settings

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CAFFE = (104.0, 117.0, 123.0)  # blue, green, red
NAMED = ("imagenet", "symmetric", "unit", "caffe", "bytes")
_CROP = 0.875  # of the shorter side, as is usual for ImageNet
# What a file of the Hugging Face format may ask for beside what is done here.
_OTHER = (
    *("do_pad", "do_thumbnail", "do_align_long_axis", "do_center_pad"),
    *("crop_pct", "rescale_offset"),
)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From a picture to an array: resize, crop, scale, normalise.

    Attributes:
      size: `(height, width)` that the model takes.
      shortest: to how many pixels the shorter side is resized before `size` is cut out
        of the centre; None to resize the whole picture to `size`.
      resample: Pillow's number of the filter.
      scale: what bytes are multiplied with.
      mean, std: of each channel, after scaling.
      reverse: whether channels are blue, green, red.
    """

    size: tuple[int, int]
    shortest: int | None = None
    resample: int = 2  # bilinear
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    reverse: bool = False

    def __call__(self, picture: Any) -> np.ndarray:
        """Return `(height, width, 3)` float32 of an RGB `PIL.Image`."""
        height, width = self.size
        if self.shortest is None:
            picture = picture.resize((width, height), self.resample)
        else:
            # Rounded down, as torchvision and transformers do.
            wide, high = (
                self.shortest * side // min(picture.size) for side in picture.size
            )
            picture = picture.resize((wide, high), self.resample)
            left, top = (wide - width) // 2, (high - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
        pixels = np.asarray(picture, np.float32)
        if self.reverse:
            pixels = pixels[..., ::-1]
        mean, std = (np.asarray(v, np.float32) for v in (self.mean, self.std))
        return (pixels * np.float32(self.scale) - mean) / std

    def gives_bytes(self) -> bool:
        """Whether pixels stay as they are."""
        return self.scale == 1 and set(self.mean) == {0.0} and set(self.std) == {1.0}

    def __str__(self) -> str:
        how = (
            f"the whole picture resized to {self.size[0]}x{self.size[1]}"
            if self.shortest is None
            else f"shorter side resized to {self.shortest}, the centre "
            f"{self.size[0]}x{self.size[1]}"
        )
        order = "BGR" if self.reverse else "RGB"
        return (
            f"{how} (Pillow filter {self.resample}), {order} times {self.scale:.6g}, "
            f"minus {self.mean}, by {self.std}"
        )


def preprocessing_of(
    reference: Reference, shape: tuple[int | None, int | None], beside: Path
) -> Preprocessing:
    """Read or choose how pictures are prepared.

    Args:
      reference: its settings `preprocess` and `size` count.
      shape: height and width of the model's input, None where it leaves them open.
      beside: the folder where `preprocessor_config.json` may lie.

    Raises:
      ValueError: nothing says how, or something that is not done here is asked for.
    """
    said = reference.settings.get("preprocess")
    if said in NAMED:
        return _named(said, _size(reference, shape))
    file = beside / "preprocessor_config.json" if said is None else Path(said)
    if file.is_file():
        with reading("encoder", file, "the settings of an image processor"):
            return _of_file(reference, file, shape)
    found = "nothing says" if said is None else f"there is no file {said!r} that says"
    raise ValueError(
        f"encoder: {found} how pictures are prepared for {reference.text!r}; write "
        f"{reference.prefix}:...#preprocess=NAME ({', '.join(NAMED)}), or put its "
        "preprocessor_config.json beside it"
    )


def _size(
    reference: Reference, shape: tuple[int | None, int | None]
) -> tuple[int, int]:
    said = reference.settings.get("size")
    if said is not None:
        if not (said.isascii() and said.isdigit() and 0 < int(said) <= 4096):
            raise ValueError(
                f"encoder: {reference.text!r} has size={said}; give pixels, 1 to 4096"
            )
        size = (int(said), int(said))
        if any(n not in (None, int(said)) for n in shape):
            raise ValueError(
                f"encoder: {reference.text!r} has size={said}, but its input is "
                f"{shape[0]}x{shape[1]}; leave size out"
            )
        return size
    height, width = shape
    if height is None or width is None:
        raise ValueError(
            f"encoder: the input of {reference.text!r} has no fixed size; say which: "
            "#size=PIXELS"
        )
    return height, width


def _named(name: str, size: tuple[int, int]) -> Preprocessing:
    if name == "imagenet":
        mean, std = _IMAGENET
        shortest = round(min(size) / _CROP)
        if size[0] != size[1]:
            return Preprocessing(size, scale=1 / 255, mean=mean, std=std)
        return Preprocessing(size, shortest, scale=1 / 255, mean=mean, std=std)
    if name == "caffe":
        return Preprocessing(size, mean=_CAFFE, reverse=True)
    if name == "symmetric":
        return Preprocessing(size, scale=1 / 127.5, mean=(1.0, 1.0, 1.0))
    return Preprocessing(size, scale=1 / 255 if name == "unit" else 1.0)


def _of_file(
    reference: Reference, file: Path, shape: tuple[int | None, int | None]
) -> Preprocessing:
    """What a file in the format of Hugging Face's image processors says."""
    said = read_settings(file)
    if asked := [name for name in _OTHER if said.get(name)]:
        raise ValueError(
            f"encoder: {str(file)!r} asks for {asked[0]}, which is not done here; "
            "write a function around the model (docs: your own encoders)"
        )
    if not said.get("do_resize", True):
        raise ValueError(
            f"encoder: {str(file)!r} does not resize pictures, which differ in size; "
            f"name what to do: #preprocess=NAME ({', '.join(NAMED)})"
        )
    crops, size = said.get("do_center_crop", False), said.get("size")
    shortest = _shortest(size)
    if shortest is not None and not crops and not isinstance(size, int):
        raise ValueError(
            f"encoder: {str(file)!r} resizes the shorter side and cuts nothing out, so "
            "pictures would differ in size; write do_center_crop and crop_size, or a "
            "size with height and width"
        )
    inside = _height_width(said.get("crop_size") if crops else size)
    if inside is None:
        inside = _size(reference, shape)
    if any(n not in (None, m) for n, m in zip(shape, inside, strict=True)):
        raise ValueError(
            f"encoder: {str(file)!r} makes pictures of {inside[0]}x{inside[1]}, but "
            f"{reference.text!r} takes {shape[0]}x{shape[1]}"
        )
    if crops and shortest is None and (whole := _height_width(size)) is not None:
        shortest = min(whole)
    scale = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if said.get("do_normalize", True):
        if not {"image_mean", "image_std"} <= set(said):
            raise ValueError(
                f"encoder: {str(file)!r} has no image_mean and image_std, on which "
                "features depend; add them, or do_normalize: false"
            )
        mean, std = (_channels(said[name]) for name in ("image_mean", "image_std"))
        if not all(value > 0 for value in std):
            raise ValueError(f"encoder: {str(file)!r} has image_std {std}, not above 0")
    return Preprocessing(
        inside,
        shortest if crops else None,
        int(said.get("resample", 2)),
        float(scale),
        mean,
        std,
        bool(said.get("do_flip_channel_order", False)),
    )


def _channels(value: Any) -> tuple[float, ...]:
    """A number for each of three channels, given as one or as three."""
    found = tuple(map(float, value if isinstance(value, list) else [value] * 3))
    if len(found) != 3:
        raise TypeError(f"{len(found)} channels where 3 are needed")
    return found


def _shortest(size: Any) -> int | None:
    if isinstance(size, int):
        return size
    if isinstance(size, dict) and size.get("shortest_edge") is not None:
        return int(size["shortest_edge"])
    return None


def _height_width(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    return None


def channels_first(prepare: Callable[[Any], np.ndarray]) -> Callable:
    """The same pictures as `(3, height, width)`."""
    return lambda picture: np.ascontiguousarray(np.moveaxis(prepare(picture), -1, 0))
