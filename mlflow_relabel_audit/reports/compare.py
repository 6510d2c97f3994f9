"""The page that puts audited models side by side, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.compare import ALPHA, MIN_RATIO, CompareResult
from mlflow_relabel_audit.reports import pictures, text
from mlflow_relabel_audit.reports.charts import Chart
from mlflow_relabel_audit.reports.context import ReportContext
from mlflow_relabel_audit.reports.environment import render
from mlflow_relabel_audit.reports.tables import ROW_LIMIT, Column, Table

_PAIRS = 12
_PICTURES = 2
_METRICS = 40


def render_compare(result: CompareResult, context: ReportContext) -> str:
    """Return the page that compares audits on the rows they share: k by k, and where they disagree.

    Parameters
    ----------
    result : CompareResult
        The shared rows, a row per pair of runs, the runs' metrics and the findings.
    context : ReportContext
        ``model_name`` names what is compared; ``eval_source``, ``messages`` and the dates are shown, and
        what belongs to one model alone is not.

    Returns
    -------
    str
        One self-contained HTML page.
    """
    names = [str(c) for c in result.metrics.columns]
    return render(
        "compare.html",
        title="Comparison",
        context=context,
        names=names,
        headline=_headline(result, names),
        figures=_figures(result, names),
        findings=result.findings,
        charts=_charts(result),
        pairs=[_pair(row) for _, row in result.pairs.head(_PAIRS).iterrows()],
        n_more_pairs=max(0, len(result.pairs) - _PAIRS),
        metrics=_metrics(result),
        table=_table(result, names).payload(),
        n_shared=len(result.shared),
        row_limit=ROW_LIMIT,
    )


def _headline(result: CompareResult, names: list[str]) -> dict[str, Any]:
    """Return the pieces of the first sentence: who is more robust, in how many of the rows."""
    if len(names) != 2:
        return {"kind": "several", "rows": len(result.shared)}
    row = result.pairs.iloc[0]
    if not row["n"]:
        return {"kind": "unknown"}
    ahead = row["more_a"] > row["more_b"]
    clear = row["p_adjusted"] < ALPHA and not 1 / MIN_RATIO < row["k_ratio"] < MIN_RATIO
    if not clear or (row["k_ratio"] > 1) != ahead:
        return {"kind": "equal"}
    return {
        "kind": "clear",
        "first": row["run_a"] if ahead else row["run_b"],
        "second": row["run_b"] if ahead else row["run_a"],
        "more": max(row["more_a"], row["more_b"]),
        "n": row["n"],
    }


def _figures(result: CompareResult, names: list[str]) -> list[dict[str, Any]]:
    items = [
        {"label": "rows that all models decided", "value": text.count(len(result.shared))},
        {"label": "of them decided alike", "value": text.percent(result.summary.get("agree_share"))},
    ]
    for name in names[:4]:
        label = f"labels flip the median prediction of {text.visible(name, 30)}"
        items.append({"label": label, "value": text.count(result.summary.get(f"k_median_{name}"))})
    return [{"alarm": False, **item} for item in items]


def _charts(result: CompareResult) -> list[Chart]:
    charts = []
    for number, row in enumerate(result.pairs.head(_PICTURES).to_dict("records")):
        a, b = row["run_a"], row["run_b"]
        k = result.shared[[f"k_{a}", f"k_{b}"]].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
        known = np.isfinite(k).all(axis=1)
        differ = (
            result.shared[f"predicted_{a}"].astype(object) != result.shared[f"predicted_{b}"].astype(object)
        ).to_numpy(dtype=bool)
        if known.sum() > 1:
            charts.append(pictures.k_against_k(k[known, 0], k[known, 1], differ[known], (a, b), number))
    return charts


def _pair(row: pd.Series[Any]) -> dict[str, Any]:
    labelled = bool(row["n_labelled"])
    interval = ""
    if text.is_finite(row["k_ratio_low"]) and text.is_finite(row["k_ratio_high"]):
        interval = f"{text.number(row['k_ratio_low'])} to {text.number(row['k_ratio_high'])}"
    return {
        "a": row["run_a"],
        "b": row["run_b"],
        "ratio": row["k_ratio"],
        "interval": interval,
        "more_a": row["more_a"],
        "ties": row["ties"],
        "more_b": row["more_b"],
        "disagree": row["disagree_share"],
        "accuracy_a": row["accuracy_a"] if labelled else None,
        "accuracy_b": row["accuracy_b"] if labelled else None,
    }


def _metrics(result: CompareResult) -> list[dict[str, Any]]:
    shown = result.metrics.dropna(how="all").head(_METRICS)
    return [{"name": name, "values": row.tolist()} for name, row in shown.iterrows()]


def _table(result: CompareResult, names: list[str]) -> Table:
    """Return the shared rows, those in which the models differ most first."""
    shared = result.shared
    k = shared[[f"k_{name}" for name in names]].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    spread = np.full(len(shared), -1.0)
    known = np.isfinite(k).any(axis=1)
    spread[known] = np.nanmax(np.log(k[known]), axis=1) - np.nanmin(np.log(k[known]), axis=1)
    alike = shared["agree"].to_numpy(dtype=bool)
    order = np.lexsort((-spread, alike))[:ROW_LIMIT]
    part = shared.iloc[order]
    columns = [Column("Row", "text", part["row_id"].tolist())]
    if "label" in part and part["label"].notna().any():
        columns.append(Column("Label", "word", part["label"].tolist()))
    for name in names:
        short = text.visible(name, 24)
        columns.append(Column(f"{short} says", "word", part[f"predicted_{name}"].tolist()))
        columns.append(Column("k", "count", part[f"k_{name}"].tolist(), f"labels that flip {short}"))
    columns.append(Column("Decided", "word", ["alike" if a else "differently" for a in part["agree"]]))
    return Table(columns, sort=len(columns))
