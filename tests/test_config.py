"""`Config`: what each field takes, what is stored of it, and which combinations mean
nothing.
"""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from tta_jax import Config

WHOLE = (
    "source_per_class",
    "steps",
    "folds",
    "batch_size",
    "restarts",
    "bootstrap",
    "sinkhorn_iterations",
)
REAL = (
    "holdout",
    "learning_rate",
    "epsilon",
    "clip",
    "l2",
    "floor",
    "lipschitz",
    "confidence",
    "clip_loss",
    "interval",
)
OPTIONAL = ("steps", "l2", "floor", "lipschitz", "confidence", "clip_loss")
SHARES = ("holdout", "floor")
SWITCHES = ("standardize", "refit_head")
NO_NUMBERS = (True, np.True_, "2", math.nan, math.inf, -math.inf, [1], np.ones(2), 1j)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in (*WHOLE, *REAL)
            for value in NO_NUMBERS
            if name != "clip" or value is not math.inf
        ),
        *((name, value) for name in WHOLE for value in (2.5, 2.0, -1, np.float32(2))),
        ("folds", 1),
        ("batch_size", 1),
        ("restarts", 0),
        ("sinkhorn_iterations", 0),
        *((name, value) for name in REAL if name not in SHARES for value in (0, 0.0)),
        *((name, 1.0) for name in (*SHARES, "confidence", "interval")),
        *((name, value) for name in REAL for value in (-0.5, 10**400)),
        *((name, None) for name in (*WHOLE, *REAL) if name not in OPTIONAL),
        *((name, value) for name in SWITCHES for value in (0, 1, "no", None)),
        *(
            (name, value)
            for name in ("objective", "learn", "assignment", "rungs", "feature_map")
            for value in (None, "x", 1, ["all"])
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_a_field_does_not_take_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: found [^\n]+; [^\n]+$"):
        Config(**{name: value})


def test_numpy_scalars_become_plain_values():
    scalars: dict[str, Any] = {
        "steps": np.int64(20),
        "folds": np.uint8(2),
        "batch_size": np.array(8),
        "epsilon": np.float32(0.5),
        "l2": np.array(0.5),
        "holdout": 0,
        "clip": math.inf,
        "standardize": np.False_,
        "learn": np.str_("map"),
    }
    given = Config(**scalars)
    plain = Config(
        steps=20,
        folds=2,
        batch_size=8,
        epsilon=0.5,
        l2=0.5,
        holdout=0.0,
        clip=math.inf,
        standardize=False,
        learn="map",
    )
    assert given == plain
    assert hash(given) == hash(plain)
    kinds = {type(v) for v in dataclasses.asdict(given).values()}
    assert kinds == {str, int, float, bool, type(None)}
    assert json.loads(json.dumps(dataclasses.asdict(given))) == dataclasses.asdict(
        given
    )
    for name in OPTIONAL:
        left_out: dict[str, Any] = {name: None}
        assert getattr(Config(**left_out), name) is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("feature_map", {"objective": "theorem", "feature_map": "coupling_layers"}),
        ("feature_map", {"objective": "theorem", "feature_map": "logit_affine"}),
        ("feature_map", {"objective": "published", "feature_map": "dense"}),
        ("lipschitz", {"objective": "published", "lipschitz": 1.0}),
    ],
)
def test_combinations_that_mean_nothing_are_refused(name, options):
    with pytest.raises(ValueError, match=rf"^{name}: found "):
        Config(**options)


@pytest.mark.parametrize(
    ("options", "family"),
    [
        ({}, "logit_affine"),
        ({"objective": "theorem"}, "dense"),
        ({"objective": "tight", "feature_map": "rotation"}, "rotation"),
        ({"learn": "none"}, "identity"),
        ({"learn": "none", "objective": "theorem", "feature_map": "dense"}, "identity"),
        ({"objective": "published"}, "published_pair"),
        (
            {
                "objective": "published",
                "feature_map": "published_pair",
                "learn": "none",
            },
            "published_pair",
        ),
    ],
)
def test_the_family_is_the_map_that_is_used(options, family):
    assert Config(**options).family == family
