"""What commands share that read raw data."""

from __future__ import annotations

import argparse
import warnings
from typing import Any

from tta_jax._internal.warning import DataWarning
from tta_jax.data.examples import Examples
from tta_jax.data.loading import open_data


def raw_data(args: argparse.Namespace) -> Examples:
    """The data that a command names."""
    return open_data(
        args.data,
        args.split,
        column=args.column,
        label_column=args.label_column,
        id_column=args.id_column,
        group_column=args.group_column,
        separator=args.separator,
        encoding=args.encoding,
        data_dir=args.data_dir,
    )


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `load_encoder`, but its weights."""
    return {
        name: getattr(args, name)
        for name in ("device", "precision", "trust_remote_code")
    }


def extraction_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `extract_features`."""
    return {name: getattr(args, name) for name in ("batch_size", "on_error", "cache")}


def quiet_pictures() -> None:
    """Keep Pillow's warnings of odd tags in pictures from the terminal."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", DataWarning)
