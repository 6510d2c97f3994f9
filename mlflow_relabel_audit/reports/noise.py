"""The page on which training labels are probably wrong, and how many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from mlflow_relabel_audit.analyses.noise.verdict import NO_NOISE_RATE, WIDE_HIGH
from mlflow_relabel_audit.reports import pictures, text
from mlflow_relabel_audit.reports.charts import Chart
from mlflow_relabel_audit.reports.context import ReportContext
from mlflow_relabel_audit.reports.environment import render
from mlflow_relabel_audit.reports.tables import Column, Table

if TYPE_CHECKING:
    from mlflow_relabel_audit.analyses.noise.audit import NoiseResult
    from mlflow_relabel_audit.analyses.noise.correction import Correction
    from mlflow_relabel_audit.analyses.noise.injected import NoiseCurve

_SUSPECTS = 5_000
_ROW_CHARACTERS = 250_000
_REVIEW = ("new_label", "reviewed", "keep")
"""Columns that a reviewer adds, and `relabel` reads."""


def render_noise(
    result: NoiseResult,
    context: ReportContext,
    curve: NoiseCurve | None = None,
    correction: Correction | None = None,
) -> str:
    """Return noise.html: the rate of wrong labels with its interval, and the suspects for a reviewer.

    Parameters
    ----------
    result : NoiseResult
        Scores of every training row, the flagged ones, the rate and the findings.
    context : ReportContext
        With ``include_rows`` and ``train_rows``, each suspect opens to show its row.
    curve : NoiseCurve, optional
        Average k and accuracy under injected noise.
    correction : Correction, optional
        What relabelling, or dropping, the top suspects changes on evaluation rows.

    Returns
    -------
    str
        One self-contained HTML page.
    """
    suspects = result.suspects.head(_SUSPECTS)
    return render(
        "noise.html",
        title="Label noise audit",
        context=context,
        sentence=_sentence(result),
        meaning=_meaning(result),
        figures=_figures(result),
        findings=(*result.findings, *(f for part in (curve, correction) if part for f in part.findings)),
        classes=_classes(result),
        chart=_chart(result),
        table=_table(suspects, context).payload() if len(suspects) else None,
        curve=pictures.injected_noise(curve.table) if curve is not None and len(curve.table) > 1 else None,
        correction=_correction(correction) if correction is not None and len(correction.table) else None,
        n_suspects=len(result.suspects),
        n_shown=len(suspects),
    )


def suspects_for_review(result: NoiseResult, context: ReportContext) -> pd.DataFrame:
    """Return the suspects as suspects.csv has them: with ``include_rows`` each beside its own row.

    Columns of the rows that share a name with one of the suspects' are prefixed with ``row_``. A cell that a
    spreadsheet would take for a formula is written behind an apostrophe.
    """
    suspects = result.suspects
    if not context.include_rows or context.train_rows is None or suspects.empty:
        return suspects
    known = context.train_rows[~context.train_rows.index.duplicated()].reindex(suspects["train_id"])
    taken = {*suspects.columns, *_REVIEW}
    known = known.rename(columns={c: f"row_{c}" for c in known.columns if c in taken}).map(_no_formula)
    return pd.concat([suspects, known.reset_index(drop=True)], axis=1)


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _sentence(result: NoiseResult) -> str:
    estimate, low, high = result.noise_rate
    if not text.is_finite(estimate):
        return "The share of wrong labels cannot be told from this data."
    spread = f"{text.percent(low)} to {text.percent(high)}"
    if low < NO_NOISE_RATE and high >= WIDE_HIGH:
        return f"Whether labels are wrong cannot be told from this data: {spread} of them would fit."
    if low < NO_NOISE_RATE:
        estimated = f"an estimated {text.percent(estimate)} wrong ({spread})"
        return f"The labels are consistent with no noise: {estimated}."
    return f"About {text.percent(estimate)} of the training labels are probably wrong ({spread})."


def _levels(result: NoiseResult) -> tuple[int, int]:
    """Return how many suspects are more likely wrong than right, and how many are worth a look."""
    sure = int((result.suspects["score"] > 0.5).sum())
    return sure, len(result.suspects) - sure


def _meaning(result: NoiseResult) -> str:
    if not text.is_finite(result.noise_rate[0]):
        return ""
    sure, check = _levels(result)
    if not sure and not check:
        return "No single label stands out as wrong."
    words = f"{text.plural(sure, 'label is', 'labels are')} more likely wrong than right"
    return f"{words}; {text.count(check)} more {'is' if check == 1 else 'are'} worth a look." if check else words + "."


def _figures(result: NoiseResult) -> list[dict[str, Any]]:
    estimate, low, _ = result.noise_rate
    if not text.is_finite(estimate):
        return []
    sure, check = _levels(result)
    return [
        {"label": "of the labels wrong, estimated", "value": text.percent(estimate), "alarm": low >= NO_NOISE_RATE},
        {"label": "labels more likely wrong than right", "value": text.count(sure), "alarm": sure > 0},
        {"label": "more worth a look", "value": text.count(check), "alarm": False},
        {"label": "labels scored", "value": text.count(len(result.scores)), "alarm": False},
    ]


def _classes(result: NoiseResult) -> list[dict[str, Any]]:
    """Return, for each class as labelled, how many labels are expected to be wrong."""
    scores = result.scores
    if scores["score"].isna().all():
        return []
    flagged = set(result.suspects["train_id"])
    return [
        {
            "label": label,
            "n": len(part),
            "flagged": int(part["train_id"].isin(flagged).sum()),
            "expected": round(float(part["score"].sum())),
            "share": float(part["score"].mean()),
        }
        for label, part in scores.groupby("label", sort=True)
    ]


def _chart(result: NoiseResult) -> Chart | None:
    if not len(result.suspects):
        return None
    shown = min(len(result.scores), max(20, 2 * len(result.suspects)))
    return pictures.review_yield(result.scores["score"].dropna().to_numpy(dtype=float), shown)


def _table(suspects: pd.DataFrame, context: ReportContext) -> Table:
    columns = [
        Column("Training row", "text", suspects["train_id"].tolist()),
        Column("Label", "word", suspects["label"].tolist(), "as it stands in the training data"),
        Column("Suggested", "word", suspects["suggested_label"].tolist(), "what the other rows speak for"),
        Column("Wrong?", "probability", suspects["score"].tolist(), "probability that the label is wrong"),
        Column(
            "Unseen",
            "probability",
            suspects["probability_out_of_sample"].tolist(),
            f"probability of the {'label' if context.several else 'positive class'} by models that did not see the row",
        ),
    ]
    if suspects["flip_set_count"].notna().any():
        hint = "flip sets the row stands in: how many predictions lean on it"
        columns.append(Column("Flip sets", "count", suspects["flip_set_count"].tolist(), hint))
    details: list[Any] = []
    labels: list[str] = []
    if context.include_rows and context.train_rows is not None:
        details, labels = row_details(suspects["train_id"], context.train_rows)
    return Table(columns, sort=3, descending=True, details=details, detail_labels=labels)


def _correction(correction: Correction) -> list[dict[str, Any]]:
    """Return what doing nothing, relabelling and dropping give, with intervals of the changes."""
    words = {"nothing": "left as they are", "relabel": "relabelled", "drop": "dropped"}
    return [
        {
            "action": words.get(row["action"], row["action"]),
            "count": row["count"],
            "loss": row["loss"],
            "rows": row["rows"],
            "loss_change": _change(row, "loss_change", _thousandths),
            "loss_interval": _interval(row, "loss_change", _thousandths),
            "accuracy": row["accuracy"],
            "accuracy_change": _change(row, "accuracy_change", _points),
            "accuracy_interval": _interval(row, "accuracy_change", _points),
        }
        for row in correction.table.to_dict("records")
    ]


def _thousandths(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\u2212")


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\u2212")


def _change(row: dict[Any, Any], name: str, shown: Any) -> str:
    return "" if row["action"] == "nothing" else str(shown(row[name]))


def _interval(row: dict[Any, Any], name: str, shown: Any) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if row["action"] == "nothing" or not (text.is_finite(low) and text.is_finite(high)):
        return ""
    return f"{shown(low)} to {shown(high)}"


def row_details(ids: pd.Series[Any], rows: pd.DataFrame) -> tuple[list[Any], list[str]]:
    """Return each row's columns as visible text, within a budget of characters; None where unknown."""
    known = rows[~rows.index.duplicated()]
    names = list(known.columns[:40])
    limit = max(60, min(text.TEXT_LIMIT, _ROW_CHARACTERS // max(1, len(ids) * len(names))))
    details: list[Any] = []
    spent = 0
    for row_id in ids:
        shown = None
        if row_id in known.index and spent < _ROW_CHARACTERS:
            shown = [text.visible(value, limit) for value in known.loc[row_id, names]]
            spent += sum(map(len, shown))
        details.append(shown)
    return details, [text.visible(name, 60) for name in names]
