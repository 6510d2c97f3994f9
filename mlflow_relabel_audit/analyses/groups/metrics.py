"""Figures by evaluation group: accuracy and error rates, outcomes against probabilities, and k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mlflow_relabel_audit.analyses.groups.grouping import ALL, Attribute
from mlflow_relabel_audit.analyses.groups.statistics import excess, holm, median_interval, wilson
from mlflow_relabel_audit.problem import FloatArray

RATES = ("accuracy", "selection_rate", "false_positive_rate", "false_negative_rate")
"""Names and definitions are those of fairlearn.metrics."""

COUNTS = ("n", "n_labelled", "n_positive", "n_negative", "n_train", "n_k")
TEXTS = ("attribute", "group", "k_source", "status")
EXCESS = (
    "observed_rate",
    "predicted_rate",
    "excess",
    "excess_low",
    "excess_high",
    "excess_p",
    "excess_p_adjusted",
)
FLIPS = ("k_median", "k_median_low", "k_median_high", "k_ratio", "k_p", "k_p_adjusted")
FIGURES = (*(f"{rate}{end}" for rate in RATES for end in ("", "_low", "_high")), *EXCESS, *FLIPS)
COLUMNS = (*TEXTS[:2], *COUNTS, *FIGURES, *TEXTS[2:])


def metrics_by_group(
    predictions: pd.DataFrame,
    outcomes: Mapping[str, Any],
    attributes: list[Attribute],
    classes: tuple[Any, Any],
    *,
    alpha: float,
    min_group: int,
    log_odds_shift: float,
) -> pd.DataFrame:
    """One row per attribute and evaluation group, one for all predictions first.

    Groups with fewer than ``min_group`` predictions keep their counts and lose their figures.
    P-values are adjusted by Holm's method: a group's figures share no rows with another's of the same
    attribute, so there is little dependence for a permutation to exploit.
    """
    probability = predictions["probability"].to_numpy(dtype=np.float64)
    if log_odds_shift:
        with np.errstate(divide="ignore"):
            odds = probability / (1.0 - probability) * np.exp(-log_odds_shift)
        probability = np.where(np.isinf(odds), 1.0, odds / (1.0 + odds))
    k, source = flip_counts(predictions)
    labels = predictions["label"] if "label" in predictions.columns else pd.Series(np.nan, index=predictions.index)
    known = labels.notna().to_numpy()
    positive = ((labels == classes[1]).fillna(False)).to_numpy(dtype=bool)

    everyone = np.ones(len(predictions), dtype=bool)
    n_all = len(attributes[0].train)
    groups: list[tuple[str, str, Any, int]] = [(ALL, ALL, everyone, n_all)]
    for a in attributes:
        if a.evaluation is not None:
            trained = np.bincount(a.train, minlength=len(a.levels))
            for j, level in enumerate(a.levels):
                groups.append((a.name, level, a.evaluation == j, int(trained[j])))

    rows = []
    for attribute, level, mask, n_train in groups:
        seen = mask & known
        row: dict[str, Any] = {
            "attribute": attribute,
            "group": level,
            "n": int(mask.sum()),
            "n_labelled": int(seen.sum()),
            "n_positive": int((seen & positive).sum()),
            "n_negative": int((seen & ~positive).sum()),
            "n_train": n_train,
            "n_k": int((mask & ~np.isnan(k)).sum()),
            "k_source": source,
            "status": "ok" if mask.sum() >= min_group else "too small",
        }
        if mask.sum() >= min_group:
            row |= _rates(outcomes, mask, seen, positive, alpha)
            if seen.sum() >= min_group:
                gap = excess(positive[seen].astype(np.float64), probability[seen], n_train, alpha)
                row |= {
                    "observed_rate": float(positive[seen].mean()),
                    "predicted_rate": float(probability[seen].mean()),
                    "excess": gap.gap,
                    "excess_low": gap.low,
                    "excess_high": gap.high,
                    "excess_p": gap.p_value,
                }
            row |= _flips(k, mask, ~mask, alpha)
        rows.append(row)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    table: pd.DataFrame = frame.astype(dict.fromkeys(FIGURES, np.float64))
    table["excess_p_adjusted"] = holm(table["excess_p"].to_numpy())
    table["k_p_adjusted"] = holm(table["k_p"].to_numpy())
    return table


def flip_counts(predictions: pd.DataFrame) -> tuple[FloatArray, str]:
    """Return k as floats and the column they come from.

    ``inf`` where no set of labels flips the prediction, NaN where unknown. The verified column, or the
    estimate where nothing was verified.
    """
    source = "k"
    if "k" not in predictions.columns or (predictions["k"].isna().all() and "k_estimate" in predictions.columns):
        source = "k_estimate"
    if source not in predictions.columns:
        return np.full(len(predictions), np.nan), source
    k = predictions[source].astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
    if "status" in predictions.columns:
        never = (predictions["status"] == "not_flippable").to_numpy(dtype=bool)
        k = np.where(never, np.inf, k)
    return k, source


def _rates(outcomes: Mapping[str, Any], mask: Any, seen: Any, positive: Any, alpha: float) -> dict[str, float]:
    """Rates with Wilson intervals; one without a denominator is left out."""
    counts = {}
    if "predicted_positive" in outcomes:
        counts["selection_rate"] = (int((mask & outcomes["predicted_positive"]).sum()), int(mask.sum()))
    if "misclassified" in outcomes:
        n, n_positive = int(seen.sum()), int((seen & positive).sum())
        counts["accuracy"] = (n - int((mask & outcomes["misclassified"]).sum()), n)
    if "false_positive" in outcomes:
        counts["false_positive_rate"] = (int((mask & outcomes["false_positive"]).sum()), n - n_positive)
        counts["false_negative_rate"] = (int((mask & outcomes["false_negative"]).sum()), n_positive)
    row: dict[str, float] = {}
    for name, (hits, of) in counts.items():
        if of:
            low, high = wilson(hits / of, of, alpha)
            row |= {name: hits / of, f"{name}_low": float(low), f"{name}_high": float(high)}
    return row


def _flips(k: FloatArray, mask: Any, others: Any, alpha: float) -> dict[str, float]:
    """Median k of a group with its interval, against the other predictions' (Mann and Whitney's test)."""
    here, there = k[mask & ~np.isnan(k)], k[others & ~np.isnan(k)]
    median, low, high = median_interval(here, alpha)
    row = {"k_median": median, "k_median_low": low, "k_median_high": high}
    if len(here) and len(there):
        rest = median_interval(there, alpha)[0]
        if np.isfinite(median) and np.isfinite(rest) and rest > 0:
            row["k_ratio"] = median / rest
        same = np.all(here == here[0]) and np.all(there == here[0])
        row["k_p"] = 1.0 if same else float(stats.mannwhitneyu(here, there, method="asymptotic").pvalue)
    return row
