"""Encoders and metrics that other installed packages register."""

import sys

import numpy as np
import pytest

import tta_jax as tta
from tests.typed import anything
from tta_jax._internal.extensions import entry_points_of
from tta_jax._internal.warning import DataWarning
from tta_jax.data import extract_features, load_encoder
from tta_jax.metrics import REGISTRY, _registry

PACKAGE = '''
import numpy as np
from tta_jax.data import Encoder
from tta_jax.metrics import LabelledFeatures, metric


def load(model, options):
    """Means of arrays, times the number after the colon."""
    factor = float(model or 1)
    return Encoder(
        "acme", "array", np.asarray, lambda: (lambda _, x: x * factor, ()),
        identity=f"acme {factor} {options.precision}",
    )


def wrong(model, options):
    return 3


@metric("nothing", cost="n d", reference="Acme, 2026")
def acme_spread(target: LabelledFeatures):
    """Mean square of the features."""
    d = target.features.shape[1]
    return (target.features ** 2).sum() / (d * target.size)
'''
POINTS = """[tta_jax.encoders]
acme = acme_tta:load
acme-wrong = acme_tta:wrong

[tta_jax.metrics]
acme = acme_tta:acme_spread
broken = acme_tta:nothing
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with entry points."""
    (tmp_path / "acme_tta.py").write_text(PACKAGE)
    about = tmp_path / "acme_tta-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: acme-tta\nVersion: 1.0"
    )
    (about / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    _registry.load_registered.cache_clear()
    yield
    REGISTRY.pop("acme_spread", None)
    sys.modules.pop("acme_tta", None)
    _registry.load_registered.cache_clear()


def test_an_encoder_of_another_package_is_loaded_by_name(package, tmp_path):
    data = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    found = extract_features(load_encoder("acme:2"), data, cache=tmp_path / "c")
    np.testing.assert_array_equal(found.features, 2 * data)
    with pytest.raises(ValueError, match=r"package 'acme-tta' gave a int"):
        load_encoder("acme-wrong")
    with pytest.raises(ValueError, match=r"did you mean 'acme'"):
        load_encoder("acmee")


def test_two_packages_of_one_name_are_told(package, tmp_path):
    about = tmp_path / "other_tta-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: other-tta\nVersion: 1.0"
    )
    (about / "entry_points.txt").write_text("[tta_jax.encoders]\nacme = other:load")
    with pytest.warns(DataWarning, match="'acme' is registered as .* remove one"):
        assert "acme" in entry_points_of("encoders")


def test_a_metric_of_another_package_stands_in_the_table(package):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 3)).astype(np.float32)
    task = tta.Task.from_arrays(features, np.arange(40) % 2, name="t")
    with pytest.warns(DataWarning, match="'broken' of package 'acme-tta'"):
        scores = tta.metrics.compute(task, names=None)
    found = {score.metric: anything(score.value) for score in scores}
    np.testing.assert_allclose(found["acme_spread"], (features**2).mean(), rtol=1e-5)
    assert "leep" in found


def test_a_name_is_not_taken_twice():
    with pytest.raises(ValueError, match="there is one called 'logme'"):

        @tta.metrics.metric("nothing", cost="1", reference="none")
        def logme(target: tta.metrics.LabelledFeatures):
            """Nothing."""
            return target.size
