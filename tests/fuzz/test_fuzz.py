"""A minute of changed files of all kinds, and every byte of a chunk of the cache."""

import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.kinds import KEY, KINDS, plain
from tests.fuzz.mutations import mutated
from tests.fuzz.worker import Watch, judged
from tta_jax.data.extraction.cache import Store


def test_changed_files_are_read_as_they_were_or_refused():
    counts, failures, folder = fuzz(1.0, seed=20, names=list(KINDS), inputs=900)
    assert not failures, f"{failures[0]} (in {folder})"
    assert {outcome for _, outcome in counts} == {"same", "other", "refused"}
    assert all(counts[name, "refused"] for name in KINDS)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("path: 'x/a.npz' is odd"), "refused"),
        (ValueError("path: it is odd"), "no name"),
        (ValueError("path: 'x/a.npz' is\nodd"), "not one line"),
        (ValueError("path: 'x/a.npz' is \x1b[31modd"), "not one line"),
        (OSError("path: 'x/a.npz' is odd"), "raised OSError"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "a.npz"), "raised UnicodeDecodeError"),
    ],
)
def test_what_counts_as_refused(error, outcome):
    assert judged(error, Path("x/a.npz"), Path("elsewhere"))[0] == outcome


def test_what_a_file_may_not_do_is_noticed():
    watch = Watch()
    watch.on = True
    sys.modules.pop("this_is_no_module", None)
    with pytest.raises(ModuleNotFoundError):
        __import__("this_is_no_module")
    with socket.socket():
        pass
    exec("1")
    watch.on = False
    assert {met.split()[0] for met in watch.met} >= {"import", "socket.__new__", "exec"}


def test_the_cache_never_returns_other_features(tmp_path):
    KINDS["cache"].write(tmp_path)
    right, path = KINDS["cache"].read(tmp_path), Store(tmp_path).path(KEY)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    changes = [(k, v ^ flip) for k, v in enumerate(whole) for flip in (1, 0xFF)]
    changes += [
        (int(k), whole[k] ^ (1 << int(bit)))
        for k, bit in zip(
            rng.integers(len(whole), size=3000), rng.integers(8, size=3000), strict=True
        )
    ]
    kept = 0
    for k, value in changes:
        path.write_bytes(whole[:k] + bytes([value]) + whole[k + 1 :])
        found = Store(tmp_path).read(KEY)
        if found is not None:
            kept += 1
            assert plain([found.features, found.kept, found.skipped]) == right, (
                k,
                value,
            )
    assert 0 < kept < len(changes) / 2
    for number in range(500):
        path.write_bytes(mutated(whole, np.random.default_rng([1, number]))[0])
        Store(tmp_path).read(KEY)  # never an exception
