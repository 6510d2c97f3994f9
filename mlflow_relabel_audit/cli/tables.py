"""Results as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

import click
import pandas as pd

_WIDEST = 32
_NAMES = len("Tracking URI")

_PERCENT = "{:.1%}".format
_COUNT = "{:,.0f}".format
_LABELS = "{:,.1f}".format

# Metric, what it says, how it is written; in the order of printing.
_METRICS = (
    ("k_median", "labels to change before a prediction flips (k), median", _LABELS),
    ("k_mean", "  mean", _LABELS),
    ("k_p10", "  the most fragile tenth at or below", _LABELS),
    ("k_p90", "  the most robust tenth at or above", _LABELS),
    ("k_lower_median", "certified lower bound of k, median", _LABELS),
    ("fraction_median", "k as a share of the training rows, median", _PERCENT),
    ("below_2pct_share", "predictions that fewer than 2 % of the labels flip", _PERCENT),
    ("confident_fragile_share", "probability beyond 0.9, yet under 1 % of the labels flip it", _PERCENT),
    ("flippable_share", "predictions that relabelling can flip", _PERCENT),
    ("verified_share", "of these, verified by refitting", _PERCENT),
    ("noise_rate", "labels estimated to be wrong", _PERCENT),
    ("suspect_count", "labels to look at first", _COUNT),
    ("bias_max_lift", "highest lift of a group's labels behind errors", "{:.2f}".format),
    ("seconds", "seconds", "{:.1f}".format),
)


def pairs(entries: Mapping[str, str | None]) -> str:
    """``name  value`` lines, aligned; what has no value is left out."""
    return "\n".join(f"{name:<{_NAMES}}  {value}" for name, value in entries.items() if value)


def metrics(summary: Mapping[str, float]) -> str:
    """The figures of an audit in words."""
    lines = [(text, form(summary[name])) for name, text, form in _METRICS if name in summary]
    width = max((len(value) for _, value in lines), default=0)
    return "\n".join(f"  {value:>{width}}  {text}" for text, value in lines)


def fragile(predictions: pd.DataFrame, count: int = 5) -> str:
    """The predictions that rest on the fewest labels, one line each.

    Parameters
    ----------
    predictions : DataFrame
        The columns of predictions.parquet.
    count : int
        At most as many lines.
    """
    size = "k" if predictions["k"].notna().any() else "k_estimate"
    # Of equally fragile ones the most confident first: there the probability misleads most.
    sure = predictions["probability"] if "flips_to" in predictions else (predictions["probability"] - 0.5).abs()
    order = predictions.assign(sure=-sure).dropna(subset=[size]).sort_values([size, "sure"], kind="stable")
    shown = ("row_id", "label", "predicted", "flips_to", "probability", size, "k_lower", "k_paper", "fraction")
    told = [name for name in shown if name in order and not (name == "k_paper" and "flips_to" in order)]
    return table(order[told].head(count))


def table(frame: pd.DataFrame) -> str:
    """A frame as right-aligned columns, missing values as ``-``, long cells cut."""
    if not len(frame):
        return ""
    cells = [[str(name) for name in frame.columns]]
    cells += [
        [_cell(name, value) for name, value in zip(frame.columns, row, strict=True)]
        for row in frame.itertuples(index=False)
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells
    )


def _cell(name: str, value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return "-"
    if isinstance(value, float):
        return _PERCENT(value) if name == "fraction" else f"{value:.3f}"
    text = " ".join(click.unstyle(str(value)).split())
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
