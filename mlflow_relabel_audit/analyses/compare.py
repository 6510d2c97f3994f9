"""Two or more audited models on the rows they share: k by k, who is more robust, where they disagree.

k is paired by row, so every test is one of differences within rows: the sign test (in how many rows one
model needs more labels) and Wilcoxon's (by how much). Ratios of k are taken, since k spans orders of
magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mlflow_relabel_audit.analyses.findings import Finding
from mlflow_relabel_audit.analyses.groups.metrics import flip_counts
from mlflow_relabel_audit.analyses.groups.statistics import holm, median_interval, wilson
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.problem import FloatArray

ALPHA = 0.05

MIN_RATIO = 1.1
"""Ratio of two models' k that is worth calling one of them more robust."""

NEEDED = ("row_id", "predicted")


@dataclass(frozen=True)
class CompareResult:
    """Models beside each other, on the rows they share.

    Attributes
    ----------
    shared : DataFrame
        row_id, label (where known) and, for each run NAME, predicted_NAME, probability_NAME, k_NAME (Int64),
        fraction_NAME, status_NAME; agree (do all predict the same).
    pairs : DataFrame
        one row per pair of runs a and b: run_a, run_b, n (rows with both k known), k_median_a, k_median_b,
        k_ratio (median of k_a / k_b) with its interval k_ratio_low and k_ratio_high, more_a, more_b, ties
        (rows where a, b, neither needs more labels), sign_p, wilcoxon_p, p_adjusted (of the sign test,
        Holm), n_shared, disagree, disagree_share with interval, n_labelled, accuracy_a, accuracy_b,
        only_a_right, only_b_right, accuracy_p (McNemar's exact test).
    metrics : DataFrame
        the runs' own summaries, over all their rows: a row per metric, a column per run.
    summary : dict of str to float
        shared_rows, agree_share, k_median_NAME on the shared rows.
    findings : tuple of Finding
    """

    shared: pd.DataFrame
    pairs: pd.DataFrame
    metrics: pd.DataFrame
    summary: dict[str, float]
    findings: tuple[Finding, ...]


def compare(results: Mapping[str, tuple[pd.DataFrame, Mapping[str, float]]]) -> CompareResult:
    """Compare audits on the evaluation rows they share, matched by row id.

    Parameters
    ----------
    results : mapping of run name to (predictions, summary)
        of `Auditor.robustness`.

    Raises
    ------
    RequestError
        Fewer than two runs, row ids twice, no row that all runs share, or two labels for one row: the message
        gives both numbers.
    """
    if len(results) < 2:
        raise RequestError(f"compare: got {len(results)} run(s); pass at least two audited runs")
    frames = {str(name): _indexed(str(name), predictions) for name, (predictions, _) in results.items()}
    shared_ids = _shared_ids(frames)
    parts = {name: frame.loc[shared_ids] for name, frame in frames.items()}
    labels = _labels(parts)

    columns: dict[str, Any] = {"row_id": shared_ids}
    if labels is not None:
        columns["label"] = labels.array
    counts: dict[str, FloatArray] = {}
    sources: dict[str, str] = {}
    for name, part in parts.items():
        counts[name], sources[name] = flip_counts(part)
        known = np.isfinite(counts[name])
        whole = np.where(known, counts[name], 0.0).astype(np.int64)
        columns[f"predicted_{name}"] = part["predicted"].array
        if "probability" in part.columns:
            columns[f"probability_{name}"] = part["probability"].to_numpy(dtype=np.float64)
        columns[f"k_{name}"] = pd.arrays.IntegerArray(whole, ~known)
        for extra in ("fraction", "status"):
            if extra in part.columns:
                columns[f"{extra}_{name}"] = part[extra].array
    shared = pd.DataFrame(columns)
    decisions = shared[[f"predicted_{name}" for name in parts]].astype(object)
    shared["agree"] = decisions.eq(decisions.iloc[:, 0], axis=0).all(axis=1).to_numpy(dtype=bool)

    rows = [_pair(a, b, parts, counts, labels) for a, b in combinations(parts, 2)]
    pairs = pd.DataFrame(rows)
    pairs["p_adjusted"] = holm(pairs["sign_p"].to_numpy(dtype=np.float64))
    metrics = pd.DataFrame({str(name): pd.Series(dict(s), dtype=np.float64) for name, (_, s) in results.items()})
    summary = {"shared_rows": float(len(shared)), "agree_share": float(shared["agree"].mean())}
    for name, k in counts.items():
        middle = median_interval(k[~np.isnan(k)], ALPHA)[0]
        if np.isfinite(middle):
            summary[f"k_median_{name}"] = middle
    return CompareResult(shared, pairs, metrics, summary, _conclude(frames, len(shared), pairs, sources))


def _indexed(name: str, predictions: pd.DataFrame) -> pd.DataFrame:
    missing = [c for c in NEEDED if c not in predictions.columns]
    if missing:
        raise RequestError(f"run {name}: predictions have no column {missing[0]!r}; pass those of a robustness audit")
    frame: pd.DataFrame = predictions.set_index("row_id", drop=False)
    if not frame.index.is_unique:
        twice = frame.index[frame.index.duplicated()].tolist()[0]
        raise RequestError(
            f"run {name}: row id {twice!r} occurs twice among {len(frame)} predictions; audit each row once"
        )
    return frame


def _shared_ids(frames: Mapping[str, pd.DataFrame]) -> pd.Index[Any]:
    """Ids that every run has, in the order of the first."""
    names = list(frames)
    index = frames[names[0]].index
    shared = np.ones(len(index), dtype=bool)
    for name in names[1:]:
        shared &= index.isin(frames[name].index)
    if not shared.any():
        sizes = ", ".join(f"{name} has {len(frame)} (first: {_first(frame)})" for name, frame in frames.items())
        raise RequestError(
            f"compare: no row id is in all runs; {sizes}; audit them on the same evaluation rows and ids"
        )
    ids: pd.Index[Any] = index[shared]
    return ids


def _first(frame: pd.DataFrame) -> str:
    return repr(frame.index.tolist()[0]) if len(frame) else "none"


def _labels(parts: Mapping[str, pd.DataFrame]) -> pd.Series[Any] | None:
    """Return the label of each shared row, from whichever run knows it; None where no run does."""
    labels: pd.Series[Any] | None = None
    origin = ""
    for name, part in parts.items():
        if "label" not in part.columns or part["label"].isna().all():
            continue
        # None can be compared elementwise; pd.NA cannot.
        here = part["label"].astype(object).where(part["label"].notna(), None)
        if labels is None:
            labels, origin = here, name
            continue
        differ = (labels != here) & labels.notna() & here.notna()
        if differ.any():
            row = differ.index[differ].tolist()[0]
            raise RequestError(
                f"compare: {int(differ.sum())} of {len(part)} shared rows have different labels; row "
                f"{row!r} is {labels[row]!r} in {origin} and {here[row]!r} in {name}; audit both on the "
                "same evaluation data"
            )
        labels = labels.where(labels.notna(), here)
    return labels


def _pair(
    a: str,
    b: str,
    parts: Mapping[str, pd.DataFrame],
    counts: Mapping[str, FloatArray],
    labels: pd.Series[Any] | None,
) -> dict[str, Any]:
    known = ~np.isnan(counts[a]) & ~np.isnan(counts[b])
    here, there = counts[a][known], counts[b][known]
    more_a, more_b = int((here > there).sum()), int((here < there).sum())
    ratio = np.ones(len(here))  # two rows that nothing flips are a tie
    np.divide(here, there, out=ratio, where=~(np.isinf(here) & np.isinf(there)))
    middle, low, high = median_interval(ratio, ALPHA)
    decided_a, decided_b = parts[a]["predicted"].astype(object), parts[b]["predicted"].astype(object)
    differ = (decided_a != decided_b).to_numpy(dtype=bool)
    share_low, share_high = wilson(differ.mean(), len(differ), ALPHA)
    row: dict[str, Any] = {
        "run_a": a,
        "run_b": b,
        "n": len(here),
        "k_median_a": median_interval(here, ALPHA)[0],
        "k_median_b": median_interval(there, ALPHA)[0],
        "k_ratio": middle,
        "k_ratio_low": low,
        "k_ratio_high": high,
        "more_a": more_a,
        "more_b": more_b,
        "ties": len(here) - more_a - more_b,
        "sign_p": _sign_p(more_a, more_b),
        "wilcoxon_p": _wilcoxon_p(ratio),
        "n_shared": len(differ),
        "disagree": int(differ.sum()),
        "disagree_share": float(differ.mean()),
        "disagree_low": float(share_low),
        "disagree_high": float(share_high),
        "n_labelled": 0,
        "accuracy_a": np.nan,
        "accuracy_b": np.nan,
        "only_a_right": 0,
        "only_b_right": 0,
        "accuracy_p": np.nan,
    }
    if labels is not None:
        given = labels.notna().to_numpy(dtype=bool)
        right_a, right_b = (
            (decided_a == labels).to_numpy(dtype=bool),
            (decided_b == labels).to_numpy(dtype=bool),
        )
        only_a, only_b = int((right_a & ~right_b & given).sum()), int((right_b & ~right_a & given).sum())
        row |= {
            "n_labelled": int(given.sum()),
            "accuracy_a": float(right_a[given].mean()),
            "accuracy_b": float(right_b[given].mean()),
            "only_a_right": only_a,
            "only_b_right": only_b,
            "accuracy_p": _sign_p(only_a, only_b),
        }
    return row


def _sign_p(one: int, other: int) -> float:
    """Exact two-sided p-value of ``one`` against ``other`` at even odds; 1 where both are 0."""
    return float(stats.binomtest(one, one + other).pvalue) if one + other else 1.0


def _wilcoxon_p(ratio: FloatArray) -> float:
    """Two-sided p-value of Wilcoxon's test on log ratios; infinite ones rank beyond all others."""
    with np.errstate(divide="ignore"):
        logs = np.log(ratio)
    finite = np.isfinite(logs)
    beyond = 1.0 + np.abs(logs[finite]).max(initial=0.0)
    # Ratios that are equal as fractions must tie: rounding decides the 12th digit.
    differences = np.round(np.where(finite, logs, np.sign(logs) * beyond), 12)
    differences = differences[differences != 0.0]
    return float(stats.wilcoxon(differences).pvalue) if len(differences) else 1.0


def _conclude(
    frames: Mapping[str, pd.DataFrame], n_shared: int, pairs: pd.DataFrame, sources: Mapping[str, str]
) -> tuple[Finding, ...]:
    """Name who is more robust (C001), disagreements (C002), rows left out (C003), mixed k (C004)."""
    findings = [_robust(row) for _, row in pairs.iterrows()]
    findings += [_disagree(row) for _, row in pairs.iterrows() if row["disagree"]]
    left = {name: len(frame) - n_shared for name, frame in frames.items() if len(frame) > n_shared}
    if left:
        listed = ", ".join(f"{count:,} of {len(frames[name]):,} in {name}" for name, count in left.items())
        findings.append(Finding("C003", "info", f"Rows that not all runs have were left out: {listed}."))
    if len(set(sources.values())) > 1:
        estimated = ", ".join(name for name, source in sources.items() if source != "k")
        text = f"Estimates of k ({estimated}) stand beside verified ones; audit all runs with verification."
        findings.append(Finding("C004", "warning", text))
    return tuple(findings)


def _robust(row: pd.Series[Any]) -> Finding:
    a, b = row["run_a"], row["run_b"]
    if not row["n"]:
        return Finding("C001", "info", f"{a} and {b}: no shared row has a k in both.", False)
    figures = (
        f"median of the ratio {row['k_ratio']:.2f} ({row['k_ratio_low']:.2f} to {row['k_ratio_high']:.2f}), "
        f"medians {row['k_median_a']:g} and {row['k_median_b']:g}, sign test p {_p(row['p_adjusted'])}, n "
        f"{row['n']:,}"
    )
    differ = row["p_adjusted"] < ALPHA and not 1.0 / MIN_RATIO < row["k_ratio"] < MIN_RATIO
    if differ and (row["k_ratio"] > 1.0) == (row["more_a"] > row["more_b"]):
        first, second, more, less = (
            (a, b, row["more_a"], row["more_b"])
            if row["more_a"] > row["more_b"]
            else (b, a, row["more_b"], row["more_a"])
        )
        text = f"{first} is more robust than {second}: it needs more labels in {more:,} rows, fewer in {less:,}"
        return Finding("C001", "info", f"{text}; k of {a} over k of {b}: {figures}.")
    return Finding("C001", "info", f"{a} and {b} are about equally robust; k of {a} over k of {b}: {figures}.")


def _disagree(row: pd.Series[Any]) -> Finding:
    text = (
        f"{row['run_a']} and {row['run_b']} decide differently in {row['disagree']:,} of "
        f"{row['n_shared']:,} rows ({row['disagree_share']:.1%}, {row['disagree_low']:.1%} to "
        f"{row['disagree_high']:.1%})"
    )
    if row["n_labelled"]:
        text += (
            f"; {row['run_a']} alone is right in {row['only_a_right']:,}, {row['run_b']} alone in "
            f"{row['only_b_right']:,} (p {_p(row['accuracy_p'])})"
        )
    return Finding("C002", "info", f"{text}.")


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"
