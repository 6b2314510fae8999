"""Will a pre-trained classifier transfer to a new task, and why? Certified transfer
bounds in JAX.

Names are imported when they are first used, so that `import tta_jax` costs next to
nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tta_jax import coupling as coupling
    from tta_jax import data as data
    from tta_jax import maps as maps
    from tta_jax import metrics as metrics
    from tta_jax import probe as probe
    from tta_jax import ranking as ranking
    from tta_jax import report as report
    from tta_jax import terms as terms
    from tta_jax import transport as transport
    from tta_jax.analysis import Analysis as Analysis
    from tta_jax.analysis import analyze as analyze
    from tta_jax.bound import Bound as Bound
    from tta_jax.bound import Transforms as Transforms
    from tta_jax.bound import bound_terms as bound_terms
    from tta_jax.certificate import Certificate as Certificate
    from tta_jax.certificate import certify as certify
    from tta_jax.config import Config as Config
    from tta_jax.data.finetune import fine_tune as fine_tune
    from tta_jax.evaluation import Evaluation as Evaluation
    from tta_jax.evaluation import evaluate as evaluate
    from tta_jax.head import SoftmaxHead as SoftmaxHead
    from tta_jax.head import fit_head as fit_head
    from tta_jax.head import lipschitz_constant as lipschitz_constant
    from tta_jax.probe import knn as knn
    from tta_jax.probe import linear_probe as linear_probe
    from tta_jax.scans.api import scan as scan
    from tta_jax.scans.hosts import use_cores as use_cores
    from tta_jax.scans.result import ScanResult as ScanResult
    from tta_jax.subdivision import subdivided as subdivided
    from tta_jax.task import Samples as Samples
    from tta_jax.task import Standardizer as Standardizer
    from tta_jax.task import Task as Task
    from tta_jax.unlabelled import label_free as label_free

_HOME = {
    "Analysis": "analysis",
    "Config": "config",
    "analyze": "analysis",
    "Bound": "bound",
    "Transforms": "bound",
    "bound_terms": "bound",
    "Certificate": "certificate",
    "certify": "certificate",
    "SoftmaxHead": "head",
    "fit_head": "head",
    "lipschitz_constant": "head",
    "Evaluation": "evaluation",
    "evaluate": "evaluation",
    "fine_tune": "data.finetune",
    "knn": "probe",
    "linear_probe": "probe",
    "ScanResult": "scans.result",
    "scan": "scans.api",
    "use_cores": "scans.hosts",
    "Samples": "task",
    "Standardizer": "task",
    "Task": "task",
    "subdivided": "subdivision",
    "label_free": "unlabelled",
}

_ROOMS = (
    "coupling",
    "data",
    "maps",
    "metrics",
    "probe",
    "ranking",
    "report",
    "terms",
    "transport",
)

__all__ = sorted([*_HOME, *_ROOMS])  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"tta_jax.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"tta_jax.{_HOME[name]}"), name)
    raise AttributeError(f"module 'tta_jax' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_HOME, *_ROOMS])
