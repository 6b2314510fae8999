"""Data sets of the Hugging Face hub by name, through the library `datasets`."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tta_jax._internal.text import one_line
from tta_jax.data.examples import Examples
from tta_jax.data.io.tables import Table, batch_groups
from tta_jax.data.raw_tables import table_examples
from tta_jax.data.records import Columns

PREFIX = "hf:"
# Before version 4 `datasets` could run code of a repository.
_LEAST = 4
_INSTALL = "install it with: pip install 'tta-jax[hub]'"
_LOCAL = (
    "or give local data: a folder that save_to_disk wrote, or Parquet files of the "
    "repository"
)
# A slash before a configuration would leave open whether A/B is a repository of an
# owner or a configuration of a repository without one.
_NAME = re.compile(r"hf:(?P<repository>[\w.-]+(/[\w.-]+)?)(#(?P<config>[^#]+))?")


def open_hub(name: str, split: str | None, columns: Columns) -> Examples:
    """A data set of the hub, downloaded by `datasets` or taken from its cache.

    No code of the repository is run.

    Args:
      name: `hf:OWNER/NAME` or `hf:NAME`, and `#CONFIG` where there are several
        configurations.
      split: may be left out where there is only one; with slices, such as
        `train[:500]`.
      columns: as of `table_examples`.

    Raises:
      ValueError: one line that names the argument, what was found and what to do.
    """
    parsed = _NAME.fullmatch(name)
    if parsed is None:
        parts = name.removeprefix(PREFIX).split("/")
        near = (
            f"; did you mean '{PREFIX}{parts[0]}/{parts[1]}#{parts[2]}'?"
            if len(parts) == 3 and all(parts)
            else ""
        )
        raise ValueError(
            f"data: found {name!r}; give hf:OWNER/NAME, or hf:OWNER/NAME#CONFIG with a "
            f"configuration{near}"
        )
    repository, config = parsed["repository"], parsed["config"]
    if Path(repository).exists():
        raise ValueError(
            f"data: {repository!r} is a file or folder here, which datasets would "
            f"read in place of the repository; call from another folder, or name it "
            f"without {PREFIX}"
        )
    datasets = _library(name)
    with _errors(name):
        builder = datasets.load_dataset_builder(repository, config)
    if getattr(builder, "repo_id", None) is None:
        raise ValueError(
            f"data: {name!r} is a format of datasets, not a repository; name one as in "
            "hf:OWNER/NAME"
        )
    with _errors(name):
        builder.download_and_prepare()
    splits = {key: found.num_examples for key, found in builder.info.splits.items()}
    has = ", ".join(f"{key} ({count})" for key, count in splits.items())
    if split is None and len(splits) != 1:
        raise ValueError(f"split: name a split of {name!r}; it has {has}")
    split = next(iter(splits)) if split is None else split
    try:
        stored = builder.as_dataset(split=split)
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(
            f"split: {name!r} has no {split!r} ({one_line(error)}); it has {has}, and "
            "parts of these, such as 'train[:50%]'"
        ) from None
    found = table_examples(
        as_table(stored, repr(name)), repository.split("/")[-1], None, columns
    )
    provenance = {
        **found.provenance,
        "kind": "hub",
        "data_set": repository,
        "configuration": builder.config.name,
        "revision": str(builder.hash or ""),
        "licence": builder.info.license or "not stated",
        "homepage": builder.info.homepage or "",
        "citation": builder.info.citation or "",
    }
    return dataclasses.replace(found, split=split, provenance=provenance)


def as_table(stored: Any, where: str) -> Table:
    """The Arrow table of a `datasets.Dataset`; `where` names it in messages."""
    table = stored.data.table
    schema = table.schema.with_metadata(stored.features.arrow_schema.metadata)
    groups = batch_groups(table.to_batches())
    return Table(where, schema, groups, [(where, len(table))], {})


def _library(name: str) -> Any:
    """The library `datasets`.

    Raises:
      ValueError: it is not installed, or could run code of repositories.
    """
    try:
        found = version("datasets")
    except PackageNotFoundError:
        raise ValueError(
            f"data: {name!r} needs datasets, which is not installed; {_INSTALL}"
        ) from None
    if int(found.split(".")[0]) < _LEAST:
        raise ValueError(
            f"data: {name!r} needs datasets {_LEAST} or newer, which runs no code of "
            f"repositories; found {found}; {_INSTALL}"
        )
    import datasets  # pyright: ignore[reportMissingImports]

    return datasets


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    """What `datasets` raises while it looks for a data set and downloads it, in one
    line; its reports of every attempt are left out.
    """
    from datasets.exceptions import (  # pyright: ignore[reportMissingImports]
        DatasetNotFoundError,
    )
    from huggingface_hub import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except DatasetNotFoundError as error:
        raise ValueError(
            f"data: the hub does not show {name!r} ({one_line(error)}); see that the "
            "name is right and that you may read it (hf auth login)"
        ) from None
    except ConnectionError as error:
        raise ValueError(
            f"data: the hub cannot be reached for {name!r} ({one_line(error)}); try "
            f"again, {_LOCAL}"
        ) from None
    except Exception as error:
        if "scripts are no longer supported" in str(error):
            raise ValueError(
                f"data: {name!r} is a repository with code of its own, which is never "
                f"run; take its Parquet files, {_LOCAL}"
            ) from None
        raise ValueError(
            f"data: {name!r} cannot be opened ({type(error).__name__}: "
            f"{one_line(error)[:400]})"
        ) from None
    finally:
        logging.set_verbosity(before)
