"""What a scan found: a folder of rows, read back, ranked and summed up."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tta_jax._internal.text import printable
from tta_jax.scans.parquet_store import NUMBERS, STAGES, Folder, read_manifest

# What a ranking shows, in this order.
RANKED = (
    "encoder",
    "source",
    "target",
    "stage",
    "score",
    "score_low",
    "score_high",
    "target_loss",
    "target_accuracy",
    "tight",
    "directed",
    "oscillation",
    "relatedness",
    "reweighted_source_loss",
    "label_mismatch",
    "prior_entropy",
    "informative",
    "probe_loss",
    "probe_accuracy",
    "items",
    "shared_items",
)
LEAST_IS_BEST = (
    "target_loss",
    "tight",
    "directed",
    "oscillation",
    "lipschitz",
    "theorem",
    "star_directed",
    "star_theorem",
    "inner_loss",
)
# Computed by screening, of every pair.
SCREENED_ONLY = ("relatedness", "star_directed", "star_theorem")


class ScanResult:
    """The rows of a scan.

    Attributes:
      path: the folder.
      manifest: what was scanned, how, and with which versions.
    """

    def __init__(self, folder: Folder):
        self._folder = folder
        self.path = str(folder)
        self.manifest = read_manifest(folder)

    @staticmethod
    def load(path: str | os.PathLike) -> ScanResult:
        """Read a scan's folder, finished or not.

        Raises:
          ValueError: if there is no scan.
        """
        return ScanResult(Folder(path))

    def table(
        self, stage: str | None = None, columns: Sequence[str] | None = None
    ) -> Any:
        """The rows as a `pyarrow.Table`, by pair and stage; those of one stage, or of
        both.

        Raises:
          ValueError: for another stage or an unknown column.
        """
        import pyarrow.dataset as ds

        if stage is not None and stage not in STAGES:
            raise ValueError(
                f"stage: found {stage!r}; choose one of {', '.join(STAGES)}, or None "
                "for both"
            )
        found = self._folder.dataset("pairs")
        if found is None:
            import pyarrow as pa

            from tta_jax.scans.parquet_store import schema

            empty = schema().append(pa.field("stage", pa.string())).empty_table()
            return empty if columns is None else empty.select(list(columns))
        unknown = [name for name in columns or () if name not in found.columns]
        if unknown:
            raise ValueError(
                f"columns: there is no column {unknown[0]!r}; there are "
                f"{', '.join(found.columns)}"
            )
        wanted = (
            None
            if columns is None
            else list(dict.fromkeys([*columns, "pair", "stage"]))
        )
        rows = found.to_table(
            columns=wanted, filter=None if stage is None else ds.field("stage") == stage
        )
        rows = rows.sort_by([("pair", "ascending"), ("stage", "descending")])
        return rows if columns is None else rows.select(list(columns))

    def to_pandas(self, stage: str | None = None) -> Any:
        """The rows as a `pandas.DataFrame`; needs pandas."""
        return self.table(stage).to_pandas()

    def __len__(self) -> int:
        """Pairs that have a row."""
        found = self._folder.dataset("pairs")
        import pyarrow.dataset as ds

        return (
            0
            if found is None
            else found.count_rows(filter=ds.field("stage") == "screen")
        )

    def failures(self, most: int | None = None) -> list[dict[str, Any]]:
        """The pairs that have no figures: encoder, source, target, stage and reason."""
        found = self._folder.dataset("pairs")
        if found is None:
            return []
        import pyarrow.dataset as ds

        columns, wrong = (
            ["encoder", "source", "target", "stage", "reason"],
            ds.field("status") == "failed",
        )
        rows = (
            found.head(most, columns=columns, filter=wrong)
            if most
            else found.to_table(columns=columns, filter=wrong)
        )
        return rows.to_pylist()

    def counts(self) -> dict[str, Any]:
        """How many pairs were screened and refined, how many of the screened ones are
        informative, how many failed and why.
        """
        found = self._folder.dataset("pairs")
        if found is None:
            return {
                "screened": 0,
                "refined": 0,
                "informative": 0,
                "failed": 0,
                "reasons": {},
            }
        import pyarrow.dataset as ds

        stage, status = ds.field("stage"), ds.field("status")

        def number(wanted):
            return found.count_rows(filter=wanted)

        reasons = (
            found.to_table(columns=["reason"], filter=status == "failed")["reason"]
            .value_counts()
            .to_pylist()
        )
        return {
            "screened": number((stage == "screen") & (status == "ok")),
            "refined": number((stage == "refine") & (status == "ok")),
            "informative": number(
                (stage == "screen") & (status == "ok") & ds.field("informative")
            ),
            "failed": sum(row["counts"] for row in reasons),
            "reasons": {
                row["values"]: row["counts"]
                for row in sorted(reasons, key=lambda row: -row["counts"])
            },
        }

    def rank(
        self,
        *,
        target: str | None = None,
        source: str | None = None,
        by: str = "score",
        top: int | None = 10,
    ) -> list[dict[str, Any]]:
        """The best sources and encoders for a target, or the targets that a source
        serves best, or the best pairs of all.

        A pair that was refined is judged by its refined figures; with `by="score"` (or
        another figure of both stages) refined pairs come before screened ones, since
        they were the best of their target when they were chosen.

        Args:
          target, source: names as in the scan, "encoder/name" where several encoders
            are meant apart.
          by: a figure; the smallest is best for losses and bounds, the largest for
            others.
          top: how many rows; None for all.

        Raises:
          ValueError: for a name or a figure that is not there, or a number below 1.
        """
        import pyarrow.dataset as ds

        if by not in NUMBERS:
            raise ValueError(
                f"by: there is no figure {by!r}; choose one of {', '.join(NUMBERS)}"
            )
        if top is not None and top < 1:
            raise ValueError(f"top: found {top}; give at least 1, or None for all rows")
        found = self._folder.dataset("pairs")
        if found is None:
            return []
        wanted = ds.field("status") == "ok"
        for role, name in (("target", target), ("source", source)):
            if name is not None:
                wanted &= self._condition(ds, role, name)
        rows = found.to_table(
            columns=list(dict.fromkeys(["pair", *RANKED, by])), filter=wanted
        )
        pair, refined = (
            rows["pair"].to_numpy(),
            rows["stage"].cast("string").to_numpy(zero_copy_only=False) == "refine",
        )
        for name in set(SCREENED_ONLY) & {*RANKED, by}:
            rows = _fill_refined(rows, name, pair, refined)
        value = rows[by].to_numpy().astype(float)
        value = value if by in LEAST_IS_BEST else -value
        value = np.where(np.isnan(value), math.inf, value)
        keep = np.flatnonzero(refined | ~np.isin(pair, pair[refined]))
        order = keep[np.lexsort((pair[keep], value[keep], ~refined[keep]))][
            : len(keep) if top is None else top
        ]
        return [
            {"rank": number + 1, **row}
            for number, row in enumerate(
                rows.drop_columns(["pair"]).take(order).to_pylist()
            )
        ]

    def _condition(self, ds: Any, role: str, name: str) -> Any:
        tasks = self.manifest[f"{role}s"]
        if any(task["name"] == name for task in tasks):
            return ds.field(role) == name
        for task in tasks:
            if name == f"{task['encoder']}/{task['name']}":
                return (ds.field(role) == task["name"]) & (
                    ds.field("encoder") == task["encoder"]
                )
        few = sorted({task["name"] for task in tasks})
        raise ValueError(
            f"{role}: there is no {role} {name!r}; there are {', '.join(few[:8])}"
            + (", ..." if len(few) > 8 else "")
        )

    def differences(self) -> dict[str, float]:
        """How screened and refined figures of the same pairs differ.

        Returns:
          `pairs`; mean change, median and largest absolute difference of `target_loss`
          and `tight` (nats); `same_best`, the share of targets whose best refined
          source was also the best screened one. Empty without refined pairs.
        """
        found = self._folder.dataset("pairs")
        if found is None:
            return {}
        import pyarrow.dataset as ds

        columns, good = (
            ["pair", "target_loss", "tight", "score"],
            ds.field("status") == "ok",
        )
        refined = found.to_table(
            columns=columns, filter=good & (ds.field("stage") == "refine")
        ).sort_by("pair")
        if not len(refined):
            return {}
        chosen = (
            good
            & (ds.field("stage") == "screen")
            & ds.field("pair").isin(refined["pair"])
        )
        screened = found.to_table(columns=columns, filter=chosen).sort_by("pair")
        _, a, b = np.intersect1d(
            refined["pair"], screened["pair"], assume_unique=True, return_indices=True
        )
        both = refined["pair"].to_numpy()[a]

        def pick(name):
            return (refined[name].to_numpy()[a], screened[name].to_numpy()[b])

        out: dict[str, float] = {"pairs": len(both)}
        for name in ("target_loss", "tight"):
            new, old = pick(name)
            out[f"{name}_mean_change"] = float((new - old).mean())
            out[f"{name}_median"], out[f"{name}_most"] = (
                float(np.median(np.abs(new - old))),
                float(np.abs(new - old).max()),
            )
        best = [
            _best(both // len(self.manifest["sources"]), both, score)
            for score in pick("score")
        ]
        out["same_best"] = float(
            np.mean([best[0][target] == best[1][target] for target in best[0]])
        )
        return out

    def facts(self) -> dict[str, Any]:
        """The summary as plain values, for JSON."""
        whole = {"path": self.path, "pairs": self.manifest["pairs"]["number"]}
        return (
            whole
            | self.counts()
            | {"differences": self.differences(), "failures": self.failures(100)}
        )

    def summary(self) -> str:
        """A few lines: how many rows, what failed, how the stages differ."""
        count = self.counts()
        tasks = ", ".join(
            f"{len(self.manifest[role])} {role}" for role in ("sources", "targets")
        )
        lines = [
            f"{tasks}, {self.manifest['pairs']['number']:,} pairs: "
            f"{count['screened']:,} screened, {count['refined']:,} refined, "
            f"{count['failed']:,} failed",
            (
                f"`tight` lies below the prior entropy for {count['informative']:,} "
                "screened pairs"
            ),
        ]
        gaps = self.differences()
        if gaps:

            def figures(name):
                return tuple(
                    gaps[f"{name}_{what}"] for what in ("mean_change", "median", "most")
                )

            def said(name):
                return "{:+.3f} (median {:.3f}, at most {:.3f})".format(*figures(name))

            lines.append(
                f"refined less screened figures of {gaps['pairs']:,.0f} pairs, nats: "
                f"target loss {said('target_loss')}, `tight` "
                f"{said('tight')}; the same source is best for {gaps['same_best']:.0%} "
                "of the targets"
            )
        lines += [
            f"{number:,} failed: {reason}"
            for reason, number in list(count["reasons"].items())[:5]
        ]
        return "\n".join(map(printable, lines))

    def __repr__(self) -> str:
        return (
            f"ScanResult({self.path!r}, {len(self)} of "
            f"{self.manifest['pairs']['number']} pairs)"
        )


def _best(target: np.ndarray, pair: np.ndarray, score: np.ndarray) -> dict[int, int]:
    order = np.lexsort((pair, -score, target))
    first = np.flatnonzero(np.r_[True, np.diff(target[order]) != 0])
    return dict(
        zip(target[order][first].tolist(), pair[order][first].tolist(), strict=True)
    )


def _fill_refined(rows: Any, name: str, pair: np.ndarray, refined: np.ndarray) -> Any:
    """Give refined rows the figure that screening has computed of the same pair."""
    import pyarrow as pa

    values = rows[name].to_numpy().astype(float)
    known = np.flatnonzero(~refined)
    known = known[np.argsort(pair[known], kind="stable")]
    at = np.searchsorted(pair[known], pair[refined])
    at = np.minimum(at, max(len(known) - 1, 0))
    found = np.full(int(refined.sum()), np.nan)
    if len(known):
        same = pair[known][at] == pair[refined]
        found = np.where(same, values[known][at], np.nan)
    values = values.copy()
    values[refined] = found
    column = pa.array(values, mask=np.isnan(values))
    return rows.set_column(rows.schema.get_field_index(name), name, column)
