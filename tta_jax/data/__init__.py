"""From raw data to features: files, data sets, encoders, extraction."""

from tta_jax.data.encoders import ENCODERS, load_encoder
from tta_jax.data.encoders.base import Batch, Encoder
from tta_jax.data.examples import Examples, as_examples
from tta_jax.data.extraction.adapters import as_encoder
from tta_jax.data.extraction.extract import extract_features
from tta_jax.data.fine_tuning import FineTuneResult, fine_tune
from tta_jax.data.io.features import Features, load_features, save_features
from tta_jax.data.loading import open_data
from tta_jax.data.registry import TASKS

__all__ = [
    "ENCODERS",
    "TASKS",
    "Batch",
    "Encoder",
    "Examples",
    "Features",
    "FineTuneResult",
    "as_encoder",
    "as_examples",
    "extract_features",
    "fine_tune",
    "load_encoder",
    "load_features",
    "open_data",
    "save_features",
]
