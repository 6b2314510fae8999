"""An encoder with a fitted head: one callable on raw items."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import Any

import numpy as np
from jaxtyping import Float

from tta_jax._internal.serialization import load_as, save, storable
from tta_jax._internal.text import printable
from tta_jax.core.heads import SoftmaxHead
from tta_jax.data.encoders import load_encoder
from tta_jax.data.encoders.base import Encoder
from tta_jax.data.extraction.extract import extract_features
from tta_jax.data.io.features import Features
from tta_jax.probes import LinearProbe
from tta_jax.tasks.standardizer import Standardizer
from tta_jax.tasks.task import Task

storable(Standardizer)
storable(SoftmaxHead)


@storable
@dataclasses.dataclass(frozen=True, eq=False)
class EncoderClassifier:
    """An encoder and a linear probe on its features.

    Attributes:
      encoder: the name that loads it; "" where it was given as an object, or where
        features are given in place of items.
      options: of `load_encoder`.
      identity: a hash that changes with the encoder's features; "" where none is known.
      probe: standardisation and head.
      class_names: of the K classes.
      learned: how many items it learned from.
    """

    encoder: str
    options: dict[str, Any]
    identity: str
    probe: LinearProbe
    class_names: tuple[str, ...]
    learned: int

    def check_stored(self) -> None:
        """Check what a file holds beyond the types of its fields: shapes that fit.

        Raises:
          ValueError: they do not.
        """
        weight, bias = np.shape(self.probe.head.weight), np.shape(self.probe.head.bias)
        known = {"device", "precision", "trust_remote_code"}
        if (
            len(weight) != 2
            or weight[0] != len(self.class_names)
            or bias != weight[:1]
            or np.shape(self.probe.standardizer.mean) != weight[1:]
            or np.shape(self.probe.standardizer.scale) != weight[1:]
            or np.shape(self.probe.standardizer.clip) != ()
            or not set(self.options) <= known
        ):
            raise ValueError("its head, classes and standardisation do not fit")

    def with_encoder(self, encoder: Any) -> EncoderClassifier:
        """The same classifier with an encoder that was given as an object.

        Args:
          encoder: what `extract_features` takes; the one whose features it learned.

        Raises:
          ValueError: its features are others.
        """
        made = load_encoder(encoder) if isinstance(encoder, str) else encoder
        if isinstance(made, Encoder):
            self._check_identity(made)
        found = dataclasses.replace(self)
        object.__setattr__(found, "_given", made)
        return found

    def _check_identity(self, encoder: Encoder) -> None:
        now = identity_hash(encoder)
        if self.identity and now and now != self.identity:
            raise ValueError(
                f"encoder: {encoder.name!r} is not the one that was learned from (its "
                "files, versions or device differ); choose or fit again"
            )

    def loaded(self) -> Any:
        """The encoder, loaded by its name once where it was not given.

        Raises:
          ValueError: as `load_encoder`; it is another one than was learned from; or it
            runs code of its own.
        """
        given = getattr(self, "_given", None)
        if given is not None:
            return given
        if not self.encoder:
            raise ValueError(
                "encoder: it was given as an object and is not in the file; pass it to "
                "with_encoder"
            )
        # No file may ask for code to be run.
        trusted = self.options.get("trust_remote_code", False)
        if trusted:
            raise ValueError(
                f"encoder: {self.encoder!r} runs code of its own; load it with "
                "load_encoder(..., trust_remote_code=True) and pass it to with_encoder"
            )
        encoder = load_encoder(self.encoder, **self.options)
        self._check_identity(encoder)
        object.__setattr__(self, "_given", encoder)
        return encoder

    def log_probabilities(self, items: Any, **options: Any) -> Float[np.ndarray, "n K"]:
        """Log probabilities of items, in float64.

        Args:
          items: what `extract_features` takes; features `(n, d)`, `Features` or a
            `Task` of the same encoder where it has learned from ready features.
          options: of `extract_features`.

        Raises:
          ValueError: as `extract_features`; other features; or an encoder that is
            another one by now.
        """
        if isinstance(items, (Task, Features)):
            rows = np.asarray(items.features)
        elif not self.encoder and getattr(self, "_given", None) is None:
            rows = np.asarray(items)
        else:
            rows = np.asarray(
                extract_features(self.loaded(), items, **options).features
            )
        wanted = np.shape(self.probe.head.weight)[1]
        if rows.ndim != 2 or rows.shape[1] != wanted:
            raise ValueError(
                f"data: found features of shape {rows.shape}; (items, {wanted}) are "
                "needed"
            )
        return self.probe.log_probabilities(rows)

    def __call__(self, items: Any, **options: Any) -> Float[np.ndarray, "n K"]:
        """Probabilities of items, `(n, K)`.

        Args:
          items, options: as for `log_probabilities`.
        """
        return np.exp(self.log_probabilities(items, **options))

    def predict(self, items: Any, **options: Any) -> list[str]:
        """The most probable class of each item, by name.

        Args:
          items, options: as for `log_probabilities`.
        """
        places = self.log_probabilities(items, **options).argmax(1)
        return [self.class_names[k] for k in places]

    def save(self, path: str | os.PathLike) -> None:
        """Write to one file, atomically; the encoder by its name.

        Args:
          path: ending in .tta.
        """
        save(path, self)

    @staticmethod
    def load(path: str | os.PathLike) -> EncoderClassifier:
        """Read what `save` wrote.

        Args:
          path: of the file.

        Raises:
          ValueError: it is no such file.
        """
        return load_as(path, EncoderClassifier, "a classifier")

    def summary(self) -> str:
        """What it is, in two sentences."""
        names = ", ".join(self.class_names[:8])
        names += ", ..." if len(self.class_names) > 8 else ""
        return printable(
            f"A linear classifier on {self.encoder or 'an encoder without a name'}, "
            f"which learned from {self.learned} items. It tells "
            f"{len(self.class_names)} classes apart: {names}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but its numbers as plain values."""
        return {
            "encoder": self.encoder,
            "options": dict(self.options),
            "identity": self.identity,
            "class_names": list(self.class_names),
            "learned": self.learned,
            "features": int(np.shape(self.probe.head.weight)[1]),
            "l2": float(self.probe.l2),
        }


def identity_hash(encoder: Encoder | None) -> str:
    """A hash of all that an encoder's features depend on; "" where it is not known.

    Args:
      encoder: or None.
    """
    if encoder is None or encoder.identity is None:
        return ""
    return hashlib.sha256(encoder.identity.encode()).hexdigest()


def made_classifier(
    *,
    encoder: Any,
    reference: str,
    options: dict[str, Any],
    probe: LinearProbe,
    class_names: tuple[str, ...],
    learned: int,
) -> EncoderClassifier:
    """A classifier that holds the encoder it was fitted with.

    Args:
      encoder: an `Encoder`, or None for ready features.
      reference: the name that loads it again, or "".
      options: of `load_encoder`.
      probe, class_names, learned: as `EncoderClassifier` has them.
    """
    found = EncoderClassifier(
        encoder=reference,
        options=options,
        identity=identity_hash(encoder),
        probe=probe,
        class_names=class_names,
        learned=learned,
    )
    object.__setattr__(found, "_given", encoder)
    return found
