"""What a bias audit concludes, and from how much: the rules and the sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.findings import Finding, Level
from mlflow_relabel_audit.analyses.groups.class_metrics import missed, wrongly
from mlflow_relabel_audit.analyses.groups.grouping import ALL, Attribute

MIN_EXCESS = 0.05
"""Difference between a group's rate and its mean probability that matters in practice."""

CRITICAL_EXCESS = 0.10

MIN_LIFT = 1.25
"""Lift that matters in practice: a quarter more than the share of the training rows."""

MAX_K_RATIO = 2.0 / 3.0
"""A group's median k against the others' that is worth a line."""

ORDER = ("critical", "warning", "info")


@dataclass(frozen=True)
class Rules:
    """Error level, smallest group, and the name of the positive class."""

    alpha: float
    min_group: int
    positive: str


def conclude(
    groups: pd.DataFrame,
    by_group: pd.DataFrame,
    judged: pd.DataFrame,
    row_sets: pd.DataFrame,
    attributes: list[Attribute],
    rules: Rules,
) -> tuple[Finding, ...]:
    """Findings from the frames of `BiasResult`, alarms first; ``judged`` is the one with the errors in excess.

    B001 a group's errors in excess rest on a group's labels (or no group has any); B002 errors in excess
    that do not; B003 errors in excess rest on a named set of rows; B004 decisions that rest on fewer labels
    than others'; B005 groups too small; B006 groups shown together.
    """
    compared = by_group[by_group["group"] != ALL]
    findings = _errors(groups, judged, judged[judged["group"] != ALL], row_sets, rules)
    findings.sort(key=lambda f: ORDER.index(f.level))
    findings += _fewest_labels(compared, rules.alpha)
    small = compared[compared["status"] == "too small"]
    if len(small):
        names = [f"{r['attribute']} {r['group']} ({r['n']})" for _, r in small.head(5).iterrows()]
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        text = f"Too small to judge, with fewer than {rules.min_group} predictions: {', '.join(names)}{more}."
        findings.append(Finding("B005", "info", text, False))
    for a in attributes:
        if a.pooled:
            text = f"{a.name}: its {a.pooled} smallest groups are shown together; bin a numeric column."
            findings.append(Finding("B006", "info", text))
    return tuple(findings)


def _errors(
    groups: pd.DataFrame, by_group: pd.DataFrame, compared: pd.DataFrame, row_sets: pd.DataFrame, rules: Rules
) -> list[Finding]:
    judged = by_group[by_group["excess_p_adjusted"].notna()]
    if not len(judged):
        text = f"Errors by group: not judged, fewer than {rules.min_group} evaluation rows have a label."
        return [Finding("B001", "info", text, False)]
    findings: list[Finding] = []
    if not len(compared):
        text = "Errors by group: not judged, no groups of the evaluation rows were given."
        findings.append(Finding("B001", "info", text, False))
    else:
        judged = judged[judged["group"] != ALL]
    alarming = judged[(judged["excess_p_adjusted"] < rules.alpha) & (judged["excess"].abs() >= MIN_EXCESS)]
    for _, gap in alarming.sort_values("excess", key=lambda v: -v.abs(), kind="stable").iterrows():
        level: Level = "critical" if abs(gap["excess"]) >= CRITICAL_EXCESS else "warning"
        lead = _gap_sentence(gap, rules.positive)
        if gap["group"] != ALL:
            cells = _of_errors(groups, gap)
            cells = cells[(cells["train_label"] != ALL) & (cells["train_group"] != ALL)]
            found = cells[_stands_out(cells, rules.alpha)]
            if len(found):
                source = found.iloc[int(np.argmax(found["share"]))]
                findings.append(Finding("B001", level, f"{lead} {_source_sentence(source)}"))
            else:
                why = "The flip sets of these errors do not point at one group's labels."
                if not (cells["status"] == "ok").any():
                    why = f"Too few {_kinds(_side(gap))} (under {rules.min_group}) to say on whose labels they rest."
                findings.append(Finding("B002", "warning", f"{lead} {why}"))
        sets = _of_errors(row_sets, gap)
        for _, named in sets[_stands_out(sets, rules.alpha)].iterrows():
            findings.append(Finding("B003", level, f"{lead} {_set_sentence(named)}"))
    if len(compared) and not findings:
        text = (
            f"Errors by group: {_judged(judged)} do labels and probabilities differ by "
            f"{MIN_EXCESS * 100:.0f} points or more, beyond chance (level {rules.alpha:g})."
        )
        findings.append(Finding("B001", "info", text))
    return findings


def _judged(judged: pd.DataFrame) -> str:
    count = len(judged[["attribute", "group"]].drop_duplicates())
    groups = "not in the one group" if count == 1 else f"in none of {count} groups"
    return groups if "class" not in judged else f"{groups}, of {judged['class'].nunique()} classes each,"


def _kinds(outcome: str) -> str:
    """Name an outcome's errors, in the plural."""
    return f"{outcome.replace('_', ' ')}s" if " " not in outcome else f"errors ({outcome})"


def _side(gap: pd.Series[Any]) -> str:
    if "class" in gap.index:
        return missed(gap["class"]) if gap["excess"] > 0 else wrongly(gap["class"])
    return "false_negative" if gap["excess"] > 0 else "false_positive"


def _of_errors(table: pd.DataFrame, gap: pd.Series[Any]) -> pd.DataFrame:
    """Rows on the group's errors of the kind that is in excess."""
    chosen = (table["eval_group"] == gap["group"]) & (table["outcome"] == _side(gap))
    if gap["group"] != ALL:
        chosen &= table["attribute"] == gap["attribute"]
    rows: pd.DataFrame = table.loc[chosen]
    return rows


def _stands_out(table: pd.DataFrame, alpha: float) -> pd.Series[Any]:
    """Lift beyond chance, beyond what the labels alone explain, and large enough to matter."""
    return (table["lift"] >= MIN_LIFT) & (table["lift_given_label"] > 1.0) & (table["p_adjusted"] < alpha)


def _gap_sentence(gap: pd.Series[Any], positive: str) -> str:
    who = "All predictions" if gap["group"] == ALL else f"{gap['attribute']} {gap['group']}"
    positive = str(gap.get("class", positive))
    side = "too rarely" if gap["excess"] > 0 else "too often"
    return (
        f"{who}: the model expects {positive} {side}, {gap['predicted_rate']:.1%} on average against "
        f"{gap['observed_rate']:.1%} of the labels (n {gap['n_labelled']:,}, difference "
        f"{abs(gap['excess']) * 100:.1f} points, adjusted p {_p(gap['excess_p_adjusted'])})."
    )


def _source_sentence(row: pd.Series[Any]) -> str:
    return (
        f"The flip sets of its {_count(row)} rest on {row['train_group']} rows labelled "
        f"{row['train_label']}: {row['share']:.0%} of them against {row['base_rate']:.0%} of the training "
        f"rows, {_lift(row)}."
    )


def _set_sentence(row: pd.Series[Any]) -> str:
    return (
        f"The named rows {row['set']} ({row['n_train']:,}) are {row['share']:.0%} of the flip sets of its "
        f"{_count(row)} against {row['base_rate']:.0%} of the training rows, {_lift(row)}."
    )


def _count(row: pd.Series[Any]) -> str:
    return f"{row['n_predictions']:,} {_kinds(row['outcome'])}"


def _lift(row: pd.Series[Any]) -> str:
    interval = f"{row['lift_low']:.2f} to {row['lift_high']:.2f}"
    return f"lift {row['lift']:.2f} ({interval}, adjusted p {_p(row['p_adjusted'])})"


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def _fewest_labels(compared: pd.DataFrame, alpha: float) -> list[Finding]:
    """Whose decisions rest on the fewest labels, for each attribute where a group stands out."""
    low = (compared["k_p_adjusted"] < alpha) & (compared["k_ratio"] <= MAX_K_RATIO)
    found = []
    for attribute, part in compared[low].groupby("attribute", sort=False):
        row = part.iloc[int(np.argmin(part["k_ratio"]))]
        text = (
            f"{attribute} {row['group']}: decisions rest on fewer labels than others', median k "
            f"{row['k_median']:g} ({row['k_median_low']:g} to {row['k_median_high']:g}, n {row['n_k']:,}), "
            f"{row['k_ratio']:.2f} of the others' median."
        )
        found.append(Finding("B004", "info", text))
    return found
