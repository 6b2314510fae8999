"""Where installed packages keep data and weights. Nothing is imported from them,
nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path


def installed_file(package: str, file: str, argument: str, remedy: str) -> Path:
    """The path of `file` (as the package lists it, e.g. `pkg/data/x.csv`) of the
    installed distribution `package`.

    Raises:
      ValueError: not installed, or without that file; names `argument` and ends in
        `remedy`.
    """
    try:
        found = distribution(package)
    except PackageNotFoundError:
        raise ValueError(
            f"{argument}: package {package!r} is not installed; {remedy}"
        ) from None
    path = Path(str(found.locate_file(file)))
    if not path.exists():
        raise ValueError(
            f"{argument}: {package} {found.version} holds no {file!r}; {remedy}"
        )
    return path


def require_package(module: str, argument: str, what: str) -> None:
    """Find out before any work whether `module` of the extra `data` is there.

    Raises:
      ValueError: it is not; names `argument`, what needs it (`what`, with its verb) and
        the command that installs it.
    """
    if find_spec(module) is None:
        raise ValueError(
            f"{argument}: {what} {module}, which is not installed; install it with: "
            "pip install 'tta-jax[data]'"
        )


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def package_version(package: str) -> str:
    """The version of an installed distribution, or "unknown"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
