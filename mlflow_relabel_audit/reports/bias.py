"""The page on whose labels hold whose decisions in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.bias import CAUTIONS, BiasResult
from mlflow_relabel_audit.analyses.groups.grouping import ALL, CROSSED
from mlflow_relabel_audit.reports import text
from mlflow_relabel_audit.reports.context import ReportContext
from mlflow_relabel_audit.reports.environment import render
from mlflow_relabel_audit.reports.tables import Column, Table

_FINDINGS = 20
_OWN = 12
_GROUPS = 2_000
_COMPOSITIONS = 3_000
_DRIVERS = 1_000
_OUTCOMES = {
    "all": "all",
    "predicted_positive": "predicted positive",
    "predicted_negative": "predicted negative",
    "misclassified": "errors",
    "false_positive": "false positives",
    "false_negative": "false negatives",
}


def render_bias(result: BiasResult, context: ReportContext) -> str:
    """Return bias.html: findings, figures by group, and the groups behind each group's flip sets.

    Parameters
    ----------
    result : BiasResult
        Composition of the flip sets, figures by group, drivers and findings.
    context : ReportContext
        What was audited.

    Returns
    -------
    str
        One self-contained HTML page.
    """
    groups = result.by_group_k
    seen = groups[(groups["group"] != ALL)] if len(groups) else groups
    judged = result.by_class[result.by_class["group"] != ALL] if context.several else seen
    compositions = _compositions(result.groups)
    sets = _compositions(result.row_sets) if len(result.row_sets) else result.row_sets
    return render(
        "bias.html",
        title="Bias audit",
        context=context,
        sentence=_sentence(result, judged, "pairs of group and class" if context.several else "groups"),
        meaning=_meaning(result),
        figures=_figures(result, seen, judged),
        findings=result.findings[:_FINDINGS],
        n_more_findings=max(0, len(result.findings) - _FINDINGS),
        groups=_group_table(groups, context).payload() if len(seen) else None,
        by_class=_class_table(result.by_class).payload() if context.several and len(judged) else None,
        n_groups=len(seen),
        n_groups_shown=min(len(groups), _GROUPS),
        own=_own(result.groups),
        compositions=_composition_table(compositions, "Labels of").payload() if len(compositions) else None,
        sets=_composition_table(sets, "Rows in").payload() if len(sets) else None,
        drivers=_driver_table(result.drivers).payload() if len(result.drivers) else None,
        cautions=CAUTIONS,
    )


def _alarms(result: BiasResult, *codes: str) -> int:
    return sum(f.level != "info" and f.applicable and f.code in codes for f in result.findings)


def _sentence(result: BiasResult, seen: pd.DataFrame, units: str) -> str:
    judged = int(seen["excess_p_adjusted"].notna().sum()) if len(seen) else 0
    if not judged:
        return "Errors by group could not be judged on this data."
    # A group has one of B001 and B002; B003 names further rows behind the same errors.
    off = min(judged, _alarms(result, "B001", "B002"))
    if off:
        return f"In {off} of {judged} {units} the model's probabilities miss the labels by more than chance."
    where = "the one group judged" if judged == 1 else f"all {judged} {units}"
    return f"In {where} the model's probabilities agree with the labels, as far as chance lets one see."


def _meaning(result: BiasResult) -> str:
    explained = _alarms(result, "B001", "B003")
    if explained:
        return "Where labels of particular training rows stand behind it, the findings name them."
    if _alarms(result, "B002"):
        return "The flip sets do not point at particular training labels."
    return "Nothing here points at biased labels; the cautions below say what that can and cannot mean."


def _figures(result: BiasResult, seen: pd.DataFrame, judged: pd.DataFrame) -> list[dict[str, Any]]:
    alarms = _alarms(result, "B001", "B002", "B003")
    excess = float(judged["excess"].abs().max()) if len(judged) else float("nan")
    k = seen["k_median"].replace(np.inf, np.nan).min() if len(seen) else float("nan")
    lift = result.summary.get("bias_max_lift")
    items = [
        {"label": "groups with alarms", "value": text.count(alarms), "alarm": alarms > 0},
        {"label": "largest miss of a group's rate", "value": text.percent(excess), "alarm": alarms > 0},
        {"label": "largest lift of a group's labels", "value": text.number(lift), "alarm": False},
        {"label": "labels decide in the most fragile group (median)", "value": text.count(k), "alarm": False},
    ]
    return [item for item in items if item["value"] != text.MISSING]


def _name(attribute: Any, group: Any) -> str:
    return "everyone" if group == ALL else f"{attribute}: {group}"


def _small(status: pd.Series[Any]) -> list[str]:
    return ["too small" if s != "ok" else "" for s in status.astype(str)]


def _between(low: Any, high: Any, shown: Any) -> str:
    if not (text.is_finite(low) and text.is_finite(high)):
        return ""
    return f"{shown(low)} to {shown(high)}"


def _group_table(groups: pd.DataFrame, context: ReportContext) -> Table:
    """Return figures by group, the largest misses first, intervals behind each row."""
    size = groups["excess"].abs().fillna(-1)
    part = groups.loc[size.sort_values(ascending=False, kind="stable").index].head(_GROUPS)
    positive = text.visible(context.class_names[1], 24)
    names = [_name(a, g) for a, g in zip(part["attribute"], part["group"], strict=True)]
    columns = [
        Column("Group", "text", names),
        Column("n", "count", part["n"].tolist(), "evaluated rows of the group"),
        *([] if context.several else _rates(part, positive)),
        Column("Accuracy", "percent", part["accuracy"].tolist()),
        Column("Median k", "count", part["k_median"].replace(np.inf, np.nan).tolist(), "labels that decide"),
    ]
    small = _small(part["status"])
    if any(small):
        columns.append(Column("Note", "word", small))
    cells = [
        (
            _between(row.excess_low, row.excess_high, text.percent),
            _p(row.excess_p_adjusted),
            _between(row.accuracy_low, row.accuracy_high, text.percent),
            _rate(row.selection_rate, row.selection_rate_low, row.selection_rate_high),
            _rate(row.false_positive_rate, row.false_positive_rate_low, row.false_positive_rate_high),
            _rate(row.false_negative_rate, row.false_negative_rate_low, row.false_negative_rate_high),
            _between(row.k_median_low, row.k_median_high, text.count),
            _p(row.k_p_adjusted),
            text.count(row.n_train),
        )
        for row in part.itertuples()
    ]
    labels = (
        "Miss, 95 % interval",
        "Miss, adjusted p",
        "Accuracy, 95 % interval",
        "Selection rate",
        "False positive rate",
        "False negative rate",
        "Median k, 95 % interval",
        "k against the others', adjusted p",
        "Training rows",
    )
    shown = (2, *range(6, len(labels))) if context.several else range(len(labels))  # the others are by class
    details = [[row[at] for at in shown] for row in cells]
    return Table(columns, sort=len(columns), details=details, detail_labels=[labels[at] for at in shown])


def _rates(part: pd.DataFrame, positive: str) -> list[Column]:
    return [
        Column("Labelled", "percent", part["observed_rate"].tolist(), f"share labelled {positive}"),
        Column("Expected", "percent", part["predicted_rate"].tolist(), f"mean probability of {positive}"),
        Column("Miss", "percent", part["excess"].tolist(), "labelled less expected"),
    ]


def _class_table(by_class: pd.DataFrame) -> Table:
    """Return figures by group and class, the largest misses first."""
    size = by_class["excess"].abs().fillna(-1)
    part = by_class.loc[size.sort_values(ascending=False, kind="stable").index].head(_GROUPS)
    columns = [
        Column("Group", "text", [_name(a, g) for a, g in zip(part["attribute"], part["group"], strict=True)]),
        Column("Class", "word", part["class"].astype(str).tolist()),
        Column("n", "count", part["n_positive"].tolist(), "rows labelled with the class"),
        *_rates(part, "with the class"),
        Column("Missed", "percent", part["false_negative_rate"].tolist(), "of the class, predicted as another"),
    ]
    details = [
        (
            _between(row.excess_low, row.excess_high, text.percent),
            _p(row.excess_p_adjusted),
            _rate(row.selection_rate, row.selection_rate_low, row.selection_rate_high),
            _rate(row.false_positive_rate, row.false_positive_rate_low, row.false_positive_rate_high),
            _rate(row.false_negative_rate, row.false_negative_rate_low, row.false_negative_rate_high),
        )
        for row in part.itertuples()
    ]
    labels = ("Miss, 95 % interval", "Miss, adjusted p", "Selection rate", "False positive rate", "False negative rate")
    return Table(columns, sort=len(columns), details=details, detail_labels=labels)


def _rate(value: Any, low: Any, high: Any) -> str:
    return f"{text.percent(value)} ({_between(low, high, text.percent)})" if text.is_finite(value) else ""


def _p(value: Any) -> str:
    if not text.is_finite(value):
        return ""
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def _own(groups: pd.DataFrame) -> dict[str, Any] | None:
    """Return how far each group's decisions rest on the group's own labels: errors, where they are known."""
    if groups.empty:
        return None
    rows = groups[
        (groups["status"] == "ok")
        & (groups["train_group"] == groups["eval_group"])
        & (groups["train_group"] != ALL)
        & (groups["train_label"] == ALL)
        & ~groups["attribute"].astype(str).str.contains(CROSSED, regex=False)
    ]
    errors = rows["outcome"] == "misclassified"
    outcome = "misclassified" if errors.any() else "all"
    rows = rows[rows["outcome"] == outcome].sort_values("lift", ascending=False, kind="stable")
    if rows.empty:
        return None
    return {
        "errors": outcome == "misclassified",
        "rows": [
            {
                "name": _name(row.attribute, row.eval_group),
                "n": row.n_predictions,
                "share": row.share,
                "base": row.base_rate,
                "lift": row.lift,
                "interval": _between(row.lift_low, row.lift_high, text.number),
            }
            for row in rows.head(_OWN).itertuples()
        ],
        "more": max(0, len(rows) - _OWN),
    }


def _compositions(groups: pd.DataFrame) -> pd.DataFrame:
    """Return the compositions that have figures and say something, the surest and strongest first."""
    part = groups[(groups["status"] == "ok") & groups["share"].notna()]
    if "train_group" in part:
        part = part[part["train_group"] != ALL]
    by_p = part.assign(_strength=-(part["lift"] - 1).abs())
    order = by_p.sort_values(["p_adjusted", "_strength"], kind="stable", na_position="last").index
    first: pd.DataFrame = part.loc[order].head(_COMPOSITIONS)
    return first


def _composition_table(part: pd.DataFrame, whose: str) -> Table:
    if "train_group" in part:
        rows = [
            str(g) + ("" if label == ALL else f", labelled {label}")
            for g, label in zip(part["train_group"], part["train_label"], strict=True)
        ]
    else:
        rows = part["set"].astype(str).tolist()
    outcomes = [_OUTCOMES.get(o, o) for o in part["outcome"].astype(str)]
    columns = [
        Column(
            "Decisions on",
            "text",
            [_name(a, g) for a, g in zip(part["attribute"], part["eval_group"], strict=True)],
        ),
        Column("Which", "word", outcomes),
        Column("n", "count", part["n_predictions"].tolist(), "decisions with a flip set"),
        Column(whose, "text", rows),
        Column("Share", "percent", part["share"].tolist(), "of the labels that flip these decisions"),
        Column("Base", "percent", part["base_rate"].tolist(), "share of all training rows"),
        Column("Lift", "ratio", part["lift"].tolist(), "share divided by base"),
        Column("p", "probability", part["p_adjusted"].tolist(), "against chance, adjusted for all tests"),
    ]
    details = [
        (
            f"{text.count(row.n_flip)} of {text.count(row.n_train)}",
            _between(row.share_low, row.share_high, text.percent),
            _between(row.lift_low, row.lift_high, text.number),
            text.number(row.lift_given_label),
        )
        for row in part.itertuples()
    ]
    labels = (
        "Rows of the sets, of all such rows",
        "Share, 95 % interval",
        "Lift, 95 % interval",
        "Lift beyond what the labels alone give",
    )
    return Table(columns, sort=len(columns), details=details, detail_labels=labels)


def _driver_table(drivers: pd.DataFrame) -> Table:
    part = drivers.head(_DRIVERS)
    names = [_name(a, g) for a, g in zip(part["attribute"], part["eval_group"], strict=True)]
    columns = [
        Column("Errors on", "word", names),
        Column("Training row", "text", part["train_id"].tolist()),
        Column("Label", "word", part["train_label"].tolist()),
        Column("n", "count", part["n_predictions"].tolist(), "these errors"),
        Column("Flip sets", "count", part["n_sets"].tolist(), "of these errors that hold the row"),
        Column("Share", "percent", part["weight"].tolist(), "of the labels behind these errors"),
    ]
    groups = part["train_group"].astype(str)
    if (groups != ALL).any():
        columns.insert(3, Column("Its group", "word", ["" if g == ALL else g for g in groups]))
    return Table(columns, sort=len(columns))
