"""Certified bounds on how well a pre-trained classifier transfers to a new task, in
JAX.

Submodules are imported lazily.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tta_jax._internal.version import VERSION

if TYPE_CHECKING:
    from tta_jax import data as data
    from tta_jax import metrics as metrics
    from tta_jax import probes as probes
    from tta_jax import report as report
    from tta_jax import transport as transport
    from tta_jax._internal.warning import DataWarning as DataWarning
    from tta_jax.analysis.analyze import analyze as analyze
    from tta_jax.analysis.result import Analysis as Analysis
    from tta_jax.bounds.certificate import Certificate as Certificate
    from tta_jax.bounds.certificate import certify as certify
    from tta_jax.bounds.chain import Bound as Bound
    from tta_jax.bounds.chain import Transforms as Transforms
    from tta_jax.bounds.chain import bound_terms as bound_terms
    from tta_jax.config import Config as Config
    from tta_jax.core import coupling as coupling
    from tta_jax.core import feature_maps as feature_maps
    from tta_jax.core.heads import SoftmaxHead as SoftmaxHead
    from tta_jax.core.heads import lipschitz_constant as lipschitz_constant
    from tta_jax.data.fine_tuning import fine_tune as fine_tune
    from tta_jax.evaluation import rank_statistics as ranking  # noqa: F401
    from tta_jax.evaluation.evaluate import Evaluation as Evaluation
    from tta_jax.evaluation.evaluate import evaluate as evaluate
    from tta_jax.fitting.logistic_regression import fit_head as fit_head
    from tta_jax.metrics.label_free import label_free as label_free
    from tta_jax.probes import knn as knn
    from tta_jax.probes import linear_probe as linear_probe
    from tta_jax.scans.api import scan as scan
    from tta_jax.scans.distributed import use_cores as use_cores
    from tta_jax.scans.result import ScanResult as ScanResult
    from tta_jax.selection.choice import Choice as Choice
    from tta_jax.selection.choose import choose as choose
    from tta_jax.selection.classifier import EncoderClassifier as EncoderClassifier
    from tta_jax.tasks.standardizer import Standardizer as Standardizer
    from tta_jax.tasks.subdivision import subdivided as subdivided
    from tta_jax.tasks.task import Samples as Samples
    from tta_jax.tasks.task import Task as Task

# Where each public name is defined, below `tta_jax`.
_LAZY_ATTRS = {
    "Analysis": "analysis.result",
    "Bound": "bounds.chain",
    "Certificate": "bounds.certificate",
    "Choice": "selection.choice",
    "Config": "config",
    "DataWarning": "_internal.warning",
    "EncoderClassifier": "selection.classifier",
    "Evaluation": "evaluation.evaluate",
    "Samples": "tasks.task",
    "ScanResult": "scans.result",
    "SoftmaxHead": "core.heads",
    "Standardizer": "tasks.standardizer",
    "Task": "tasks.task",
    "Transforms": "bounds.chain",
    "analyze": "analysis.analyze",
    "bound_terms": "bounds.chain",
    "certify": "bounds.certificate",
    "choose": "selection.choose",
    "evaluate": "evaluation.evaluate",
    "fine_tune": "data.fine_tuning",
    "fit_head": "fitting.logistic_regression",
    "knn": "probes",
    "label_free": "metrics.label_free",
    "linear_probe": "probes",
    "lipschitz_constant": "core.heads",
    "scan": "scans.api",
    "subdivided": "tasks.subdivision",
    "use_cores": "scans.distributed",
}
_LAZY_MODULES = {
    "coupling": "core.coupling",
    "data": "data",
    "feature_maps": "core.feature_maps",
    "metrics": "metrics",
    "probes": "probes",
    "ranking": "evaluation.rank_statistics",
    "report": "report",
    "transport": "transport",
}

__all__ = sorted([*_LAZY_ATTRS, *_LAZY_MODULES])  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = VERSION


def __getattr__(name: str):
    if name in _LAZY_MODULES:
        return importlib.import_module(f"tta_jax.{_LAZY_MODULES[name]}")
    if name in _LAZY_ATTRS:
        module = importlib.import_module(f"tta_jax.{_LAZY_ATTRS[name]}")
        return getattr(module, name)
    raise AttributeError(f"module 'tta_jax' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LAZY_ATTRS, *_LAZY_MODULES])
