"""`tta-jax doctor`."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import jax

from tta_jax._internal.extensions import entry_points_of
from tta_jax._internal.version import VERSION
from tta_jax.cli._terminal import as_json, print_table
from tta_jax.cli.data import library_rows
from tta_jax.data import ENCODERS
from tta_jax.data.cache import cache_home
from tta_jax.data.extraction.cache import processor
from tta_jax.data.prepare import task_rows
from tta_jax.data.registry import data_home

_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(\[(?P<extras>[^]]+)\])?.*?(extra == ['\"](?P<extra>\w+)['\"])?$"
)
_FOR_USERS = ("scan", "data", "demo", "plots", "hub")  # the others are for developers
_SETTINGS = ("JAX_", "XLA_", "TTA_JAX_", "TFDS_", "HF_", "OPENBLAS_", "CUDA_VISIBLE")
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def doctor(args: argparse.Namespace) -> int:
    found = facts(args.data_dir)
    print(as_json(found) if args.json else _page(found))
    if not args.json:
        _tables(found)
    return 0


def facts(data_dir: str | None = None) -> dict[str, Any]:
    """What is installed and ready, as JSON values.

    Args:
      data_dir: where TFDS data sets are prepared; see `data_home`.
    """
    packages = _packages()
    return {
        "tta_jax": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "cores": os.cpu_count(),
        "memory_gb": _memory(),
        "jax": _jax(),
        "packages": packages,
        "caches": _caches(data_dir),
        "settings": {
            name: "(hidden)" if any(s in name for s in _SECRET) else value
            for name, value in sorted(os.environ.items())
            if name.startswith(_SETTINGS)
        },
        "encoders": [
            {
                "encoder": name,
                "ready": "yes" if encoder.installed() else "no",
                "install": encoder.install,
            }
            for name, encoder in ENCODERS.items()
        ],
        "libraries": library_rows(),
        "entry_points": {
            kind: {name: point.value for name, point in entry_points_of(kind).items()}
            for kind in ("encoders", "metrics")
        },
        "tasks": [
            {name: row[name] for name in ("name", "installed", "prepared")}
            for row in task_rows(data_dir)
        ],
    }


def _packages() -> list[dict[str, str]]:
    """Every package that the library needs or can use, with its version."""
    rows: dict[str, dict[str, str]] = {}
    for line in requires("tta-jax") or []:
        match = _REQUIREMENT.match(line.strip())
        if match is None or match["name"] == "tta-jax":
            continue
        extra = match["extra"] or ""
        if extra and extra not in _FOR_USERS:
            continue
        try:
            installed = version(match["name"])
        except PackageNotFoundError:
            installed = "no"
        row = rows.setdefault(
            match["name"], {"package": match["name"], "version": installed, "for": ""}
        )
        needed = extra or "all"
        row["for"] = ", ".join(filter(None, [row["for"], needed]))
    return list(rows.values())


def _jax() -> dict[str, Any]:
    try:
        devices = [f"{d.device_kind} ({d.platform})" for d in jax.local_devices()]
    except RuntimeError as error:  # a driver that does not fit
        devices = [f"none: {' '.join(str(error).split())[:200]}"]
    return {
        "version": jax.__version__,
        "jaxlib": version("jaxlib"),
        "devices": devices,
        "processor": processor(),
        "x64": bool(jax.config.read("jax_enable_x64")),
    }


def _memory() -> float | None:
    """Main memory in GB, where the system tells."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _caches(data_dir: str | None) -> list[dict[str, Any]]:
    home = cache_home()
    hub = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    places = {
        "features": home / "features",
        "compiled programs": home / processor(),
        "facts of models": home / "models",
        "prepared tasks": data_home(data_dir),
        "Hugging Face hub": Path(hub),
    }
    rows = []
    for what, folder in places.items():
        files, size = _size(folder)
        rows.append(
            {
                "what": what,
                "folder": str(folder),
                "files": files,
                "mb": round(size / 1e6, 1),
                "free_gb": _free(folder),
            }
        )
    return rows


def _size(folder: Path) -> tuple[int, int]:
    """Number and bytes of the files below a folder; links are not followed."""
    files = size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if not path.is_symlink():
                try:
                    size += path.stat().st_size
                except OSError:  # gone meanwhile
                    continue
                files += 1
    return files, size


def _free(folder: Path) -> float | None:
    """Free space in GB where a folder is, or would be."""
    for place in (folder, *folder.parents):
        if place.exists():
            return round(shutil.disk_usage(place).free / 1e9, 1)
    return None


def _page(found: dict[str, Any]) -> str:
    jax_facts = found["jax"]
    lines = [
        f"tta-jax {found['tta_jax']}, Python {found['python']} ({found['executable']})",
        f"{found['platform']}, {found['cores']} cores, {found['memory_gb']} GB",
        f"jax {jax_facts['version']}, jaxlib {jax_facts['jaxlib']}, devices: "
        f"{', '.join(jax_facts['devices'])}",
    ]
    if found["settings"]:
        said = ", ".join(f"{k}={v}" for k, v in found["settings"].items())
        lines.append(f"settings: {said}")
    for kind, points in found["entry_points"].items():
        if points:
            said = ", ".join(f"{k} ({v})" for k, v in points.items())
            lines.append(f"{kind} of other packages: {said}")
    ready = [row["name"] for row in found["tasks"] if row["prepared"] == "yes"]
    can = [
        row["name"]
        for row in found["tasks"]
        if row["prepared"] == "no" and row["installed"] == "yes"
    ]
    lines.append(f"tasks that are prepared: {', '.join(ready) or 'none'}")
    lines.append(
        f"tasks that can be prepared (tta-jax data prepare NAME): "
        f"{', '.join(can) or 'none'}"
    )
    return "\n".join(lines)


def _tables(found: dict[str, Any]) -> None:
    print()
    print_table(found["packages"], "Packages")
    print()
    print_table(found["caches"], "Caches")
    print()
    print_table(found["encoders"], "Encoders")
    print()
    rows = [
        {name: row[name] for name in ("encoder", "installed")}
        for row in found["libraries"]
    ]
    print_table(rows, "Models of other libraries (pip install 'tta-jax[hub]')")
