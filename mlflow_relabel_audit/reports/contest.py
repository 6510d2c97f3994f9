"""The page on one decision: which labels it rests on, and whether it stands without them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlflow_relabel_audit.reports import pictures, text
from mlflow_relabel_audit.reports.charts import Chart
from mlflow_relabel_audit.reports.context import ReportContext
from mlflow_relabel_audit.reports.environment import render
from mlflow_relabel_audit.reports.similar import Reader, reader
from mlflow_relabel_audit.reports.tables import figure

if TYPE_CHECKING:
    from mlflow_relabel_audit.analyses.contest import ContestResult

_LABELS = 5_000
_ROWS_SHOWN = 300
_CHARACTERS = 240_000
_ROW_CHARACTERS = (120, 700)
_REMOVED_SHOWN = 40
_CLASSES = 40


def render_contest(result: ContestResult, context: ReportContext) -> str:
    """Return the page that lets a reviewer go through one decision label by label.

    Parameters
    ----------
    result : ContestResult
        The decision, its flip set with influences in the margin, and the removal set where it was searched.
    context : ReportContext
        With ``include_rows`` and its frames, the rows themselves are shown.

    Returns
    -------
    str
        One self-contained HTML page.
    """
    rows = _rows(result, context)
    return render(
        "contest.html",
        title="Contest of one decision",
        context=context,
        result=result,
        classes=_classes(result),
        by_class=_by_class(result, context),
        sentence=_sentence(result, context),
        certificate=_certificate(result),
        figures=_figures(result, context),
        own=rows.own() if rows else None,
        review=_review(result, context, rows) if len(result.flip_set) else None,
        path=_path(result, context) if len(result.flip_set) else None,
        removed=_removed(result),
        n_missing_labels=max(0, len(result.flip_set) - _LABELS),
    )


def _classes(result: ContestResult) -> tuple[str, str]:
    """Return the class predicted now and the one it is to flip to."""
    return str(result.predicted), str(result.wanted)


def _k(result: ContestResult) -> float:
    """Return k, or the length of the estimated set where it was not verified; NaN where no set was found."""
    if text.is_finite(result.k):
        return text.as_float(result.k)
    return float(len(result.flip_set)) if len(result.flip_set) else float("nan")


def _sentence(result: ContestResult, context: ReportContext) -> dict[str, Any]:
    """Return what the headline is made of."""
    k = _k(result)
    sure = result.probability if context.several or result.margin > 0 else 1 - result.probability
    return {
        "sure": sure,
        "k": k,
        "found": bool(np.isfinite(k)),
        "about": "" if result.status == "verified" else "about ",
        "share": k / max(result.n_train, 1),
    }


def _certificate(result: ContestResult) -> str:
    """Return what is proved about smaller sets, in one sentence."""
    if result.k_lower is None:
        return ""
    lower, k = result.k_lower, _k(result)
    does = "change this decision" if result.any_change else f"make it {text.visible(result.wanted, 40)}"
    if lower == k and result.status == "verified":
        return f"No smaller set of labels can {does}: that is proved."
    if lower == 2:
        return f"No single label can {does}, whichever is chosen: that is proved."
    if lower > 2:
        return f"No {lower - 1:,} labels can {does}, whichever are chosen: that is proved."
    return "Smaller sets are not ruled out by proof; none was found."


def _figures(result: ContestResult, context: ReportContext) -> list[dict[str, Any]]:
    k = _k(result)
    whose = str(result.predicted) if context.several else context.class_names[1]
    items = {
        "labels that flip it together (k)": text.count(k),
        "labels at least, proved (k_lower)": text.count(result.k_lower),
        f"probability of {text.visible(whose, 24)} now": text.probability(result.probability),
        "once those labels are changed": text.probability(result.probability_after),
    }
    if context.several and result.by_class_after is not None:
        after = result.by_class_after[context.class_names.index(str(result.wanted))]
        items[f"probability of {text.visible(result.wanted, 24)} then"] = text.probability(after)
    shown = {label: value for label, value in items.items() if value != text.MISSING}
    return [{"label": label, "value": value, "alarm": False} for label, value in shown.items()]


def _by_class(result: ContestResult, context: ReportContext) -> list[dict[str, Any]]:
    """Return the probability of every class of several, the likeliest first, and after the refit."""
    if not context.several:
        return []
    after = result.by_class_after or (None,) * len(result.by_class)
    likeliest = np.argsort(-np.array(result.by_class), kind="stable")[:_CLASSES]
    return [{"name": context.class_names[c], "before": result.by_class[c], "after": after[c]} for c in likeliest]


def _rows(result: ContestResult, context: ReportContext) -> Reader | None:
    if not context.include_rows or context.eval_rows is None:
        return None
    try:
        row = context.eval_rows.loc[result.row_id]
    except KeyError:
        return None
    if isinstance(row, pd.DataFrame):  # an id that stands twice names the first
        row = row.iloc[0]
    shown = min(max(len(result.flip_set), 1), _ROWS_SHOWN)
    characters = int(np.clip(_CHARACTERS // shown, *_ROW_CHARACTERS))
    others = _training_rows(result, context)
    if others is None:
        others = context.eval_rows.loc[[result.row_id]].iloc[:0]
    return reader(row, others, characters)


def _training_rows(result: ContestResult, context: ReportContext) -> pd.DataFrame | None:
    if context.train_rows is None:
        return None
    wanted = pd.Index(result.flip_set["train_id"].head(_ROWS_SHOWN))
    known = context.train_rows[~context.train_rows.index.duplicated()]
    found: pd.DataFrame = known.loc[wanted.intersection(known.index, sort=False)]
    return found


def _review(result: ContestResult, context: ReportContext, rows: Reader | None) -> dict[str, Any]:
    """Return what the script needs to add the influences up again."""
    labels = result.flip_set.head(_LABELS)
    others = _training_rows(result, context) if rows else None
    shown = []
    for train_id in labels["train_id"].head(_ROWS_SHOWN if rows else 0):
        known = rows is not None and others is not None and train_id in others.index
        shown.append(rows.show(others.loc[train_id]) if known and rows and others is not None else None)
    refitted = result.status == "verified" and len(labels) == len(result.flip_set)
    return {
        "margin": float(result.margin),
        "several": context.several,
        "offset": pictures.logit(result.threshold),
        "classes": [text.visible(c) for c in (_classes(result)[::-1] if context.several else context.class_names)],
        "ids": [text.visible(i) for i in labels["train_id"]],
        "old": [text.visible(v, 60) for v in labels["train_label"]],
        "new": [text.visible(v, 60) for v in labels["new_label"]],
        "influence": [figure(v) or 0 for v in labels["influence"]],
        "scale": _scale(result) if refitted else 1.0,
        "after": (result.margin_after if context.several else result.probability_after) if refitted else None,
        "positive": text.as_float(result.margin_after) > 0,
        "rows": shown,
    }


def _scale(result: ContestResult) -> float:
    """Return what single effects are multiplied by so that together they move the margin as the refit does.

    Each label's effect is first order at the fitted model; together they may overstate the move by half.
    """
    alone = float(result.flip_set["influence"].sum())
    moved = text.as_float(result.margin_after) - result.margin
    scale = moved / alone if alone else 1.0
    return scale if 0.1 <= scale <= 10.0 else 1.0


def _path(result: ContestResult, context: ReportContext) -> Chart:
    if context.several:
        margin = np.concatenate([[result.margin], result.flip_set["cumulative_margin"].to_numpy(dtype=float)])
        return pictures.margin_path(margin, text.as_float(result.margin_after), _classes(result))
    probability = np.concatenate(
        [[result.probability], result.flip_set["cumulative_probability"].to_numpy(dtype=float)]
    )
    after = text.as_float(result.probability_after)
    return pictures.label_path(probability, after, result.threshold, context.class_names)


def _removed(result: ContestResult) -> dict[str, Any] | None:
    """Return the removal set beside the relabelling set."""
    if result.removal is None:
        return None
    rows = result.removal.removal_set
    both = set(rows["train_id"]) & set(result.flip_set["train_id"])
    return {
        "k": result.removal.k,
        "found": result.removal.found,
        "probability_after": result.removal.probability_after,
        "ids": rows["train_id"].head(_REMOVED_SHOWN).tolist(),
        "more": max(0, len(rows) - _REMOVED_SHOWN),
        "shared": len(both),
    }
