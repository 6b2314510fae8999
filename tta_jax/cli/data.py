"""`tta-jax data`."""

from __future__ import annotations

import argparse

from tta_jax.cli._terminal import as_json, bar, print_table
from tta_jax.data import ENCODERS
from tta_jax.data.encoders.libraries import LIBRARIES
from tta_jax.data.prepare import prepare_task, task_rows


def data(args: argparse.Namespace) -> int:
    return {"list": _list, "prepare": _prepare}[args.action](args)


def _list(args: argparse.Namespace) -> int:
    tasks = task_rows(args.data_dir)
    encoders = [
        {
            "encoder": name,
            "takes": encoder.modality,
            "features": encoder.dim,
            "package": encoder.package,
            "installed": "yes" if encoder.installed() else "no",
            "licence": encoder.licence,
            "what": encoder.description,
        }
        for name, encoder in ENCODERS.items()
    ]
    libraries = library_rows()
    if args.json:
        print(as_json({"tasks": tasks, "encoders": encoders, "libraries": libraries}))
        return 0
    shown = (
        "name",
        "modality",
        "items",
        "classes",
        "splits",
        "installed",
        "prepared",
        "licence",
    )
    print_table(
        [{name: row[name] for name in shown} for row in tasks],
        "Tasks (tta-jax data prepare NAME)",
    )
    print()
    print_table(encoders, "Encoders (tta-jax extract --encoder NAME)")
    print()
    print_table(libraries, "Models of other libraries (pip install 'tta-jax[hub]')")
    return 0


def library_rows() -> list[dict[str, str]]:
    """One row for each library whose models are encoders."""
    return [
        {
            "encoder": f"{prefix}:{library.model}",
            "installed": "no" if library.missing() else "yes",
            "settings": ", ".join(f"#{name}=" for name in library.settings),
            "what": library.description,
        }
        for prefix, library in LIBRARIES.items()
    ]


def _prepare(args: argparse.Namespace) -> int:
    with bar(args.name, args.json) as progress:
        where = prepare_task(args.name, args.data_dir, args.source, progress=progress)
    print(
        as_json({"task": args.name, "prepared": str(where)})
        if args.json
        else f"{args.name} is prepared in {where}"
    )
    return 0
