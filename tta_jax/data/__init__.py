"""From raw data to features: files, data sets, encoders, extraction."""

from tta_jax.data.encoder import Batch, Encoder
from tta_jax.data.encoders import ENCODERS, load_encoder
from tta_jax.data.examples import Examples, as_examples
from tta_jax.data.extract import as_encoder, extract_features
from tta_jax.data.features import Features, load_features, save_features
from tta_jax.data.finetune import FineTuneResult, fine_tune
from tta_jax.data.sources import open_data
from tta_jax.data.tasks import TASKS

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
