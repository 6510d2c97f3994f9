"""The page on how many labels each prediction rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.robustness import FLIPS_TO, confidence
from mlflow_relabel_audit.reports import pictures, text
from mlflow_relabel_audit.reports.context import CLASSES_SHOWN, ReportContext
from mlflow_relabel_audit.reports.environment import render
from mlflow_relabel_audit.reports.tables import ROW_LIMIT, Column, Table

if TYPE_CHECKING:
    from mlflow_relabel_audit.analyses.flip_table import FlipTable
    from mlflow_relabel_audit.analyses.robustness import RobustnessResult

_MOST_FRAGILE = 10
_LABELS_SHOWN = 8
_DETAILED_ROWS = 2_000
_SHARES = (0.005, 0.01, 0.02, 0.05, 0.10)


def render_robustness(result: RobustnessResult, context: ReportContext) -> str:
    """Return robustness.html: a verdict, the distribution of k, the fragile corner and every prediction.

    Parameters
    ----------
    result : RobustnessResult
        ``predictions`` and ``sets`` with the columns of their Parquet files.
    context : ReportContext
        What was audited.

    Returns
    -------
    str
        One self-contained HTML page.
    """
    reading = read(result.predictions, context)
    heads = _flip_set_heads(result.sets, reading)
    return render(
        "robustness.html",
        title="Robustness audit",
        context=context,
        reading=reading,
        verdict=verdict(reading, context),
        figures=_figures(reading),
        charts=_charts(reading, context),
        shares=_shares(reading, context),
        places=_places(reading, context),
        turns=_turns(reading, context),
        fragile=_most_fragile(reading, heads, context),
        recurring=_recurring(result.sets, reading),
        table=_table(reading, heads).payload() if len(reading.frame) else None,
        row_limit=ROW_LIMIT,
    )


@dataclass(frozen=True)
class Reading:
    """The predictions as the page reads them.

    ``frame`` has the columns of predictions plus ``shown`` (k, or its estimate where it was not verified),
    ``share`` (shown / N), ``confidence`` (probability of the likelier class, or of the predicted one of several);
    ``found`` are its rows with k.
    """

    frame: pd.DataFrame
    found: pd.DataFrame
    estimated: bool
    labelled: bool
    median: float
    few_share: float
    corner_share: float
    n_missing: int
    n_unverified: int


def read(predictions: pd.DataFrame, context: ReportContext) -> Reading:
    """Return what the page needs of the predictions frame."""
    frame = predictions.reset_index(drop=True).copy()
    k, estimate = _floats(frame["k"]), _floats(frame["k_estimate"])
    unverified = (frame["status"].astype(str) == "unverified").to_numpy()
    shown = np.where(np.isnan(k) & unverified, estimate, k)
    frame["shown"] = shown
    frame["share"] = shown / max(context.n_train, 1)
    frame["confidence"] = confidence(frame)
    found = frame[~np.isnan(shown)]
    n = max(len(frame), 1)
    corner = (found["confidence"] > pictures.CONFIDENT) & (found["share"] < pictures.FRAGILE)
    return Reading(
        frame=frame,
        found=found,
        estimated=bool(unverified[~np.isnan(shown)].any()),
        labelled=bool(frame["label"].notna().any()),
        median=float(found["shown"].median()) if len(found) else float("nan"),
        few_share=float((found["share"] < pictures.FEW).sum() / n),
        corner_share=float(corner.sum() / n),
        n_missing=len(frame) - len(found),
        n_unverified=int(unverified.sum()),
    )


def _floats(column: pd.Series[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return pd.to_numeric(column, errors="coerce").astype("Float64").to_numpy(dtype=float, na_value=np.nan)


@dataclass(frozen=True)
class Verdict:
    """What the page says first: a level in a word, one sentence, and what it means."""

    level: str
    word: str
    sentence: str
    meaning: str


def verdict(reading: Reading, context: ReportContext) -> Verdict:
    """Return the verdict in words a product owner understands."""
    total, found = len(reading.frame), len(reading.found)
    about = "about " if reading.estimated else ""
    if not total:
        return Verdict("none", "Nothing evaluated", "No prediction was evaluated.", "")
    if not found:
        return Verdict(
            "none",
            "No flip found",
            f"No set of training labels was found that flips {'this' if total == 1 else 'any of the'} "
            f"{'prediction' if total == 1 else text.plural(total, 'prediction')}.",
            "That is an answer about changed labels only, not about changed inputs or a changed world.",
        )
    share = reading.median / max(context.n_train, 1)
    k = f"{about}{text.count(reading.median)}"
    labels = f"of the {context.n_train:,} training labels ({text.percent(share)}) had been different"
    if total == 1:
        sentence = f"This prediction would flip if {k} {labels}."
    elif reading.n_missing:
        those = f"Of the {text.plural(found, 'prediction')} that changed labels can flip, half would"
        sentence = f"{those} if {k} or fewer {labels}."
    else:
        sentence = f"Half of the predictions would flip if {k} or fewer {labels}."
    least = reading.found["shown"].min()
    if reading.few_share >= 0.5:
        level, word = "fragile", "Fragile"
    elif reading.few_share >= 0.1:
        level, word = "mixed", "Fragile in places"
    else:
        level, word = "sturdy", "Sturdy"
    if total == 1:
        meaning = ""
    elif reading.few_share:
        meaning = (
            f"{text.percent(reading.few_share)} of them need fewer than 2 % of the labels; "
            f"the most fragile flips with {about}{text.plural(least, 'label')}."
        )
    else:
        needed = f"{about}{text.count(least)}"
        meaning = f"None flips with fewer than 2 % of the labels; the most fragile needs {needed}."
    return Verdict(level, word, sentence, meaning)


def _figures(reading: Reading) -> list[dict[str, Any]]:
    total = len(reading.frame)
    if not total:
        return []
    items = [
        {
            "label": "labels to flip the median prediction",
            "value": text.count(reading.median),
            "alarm": False,
        },
        {
            "label": "of predictions flip with fewer than 2 % of the labels",
            "value": text.percent(reading.few_share),
            "alarm": reading.few_share >= 0.1,
        },
        {
            "label": "are confident (over 0.9) but fragile (under 1 %)",
            "value": text.percent(reading.corner_share),
            "alarm": reading.corner_share > 0,
        },
    ]
    verified = text.percent((reading.frame["status"].astype(str) == "verified").mean())
    items.append({"label": "verified by refitting the model", "value": verified, "alarm": False})
    return items


def _charts(reading: Reading, context: ReportContext) -> dict[str, Any]:
    k = reading.found["shown"].to_numpy(dtype=float)
    if len(k) < 2:
        return {}
    whose = "predicted" if context.several else "likelier"
    return {
        "distribution": pictures.k_distribution(k, context.n_train, reading.estimated),
        "confidence": pictures.k_against_confidence(
            reading.found["confidence"].to_numpy(dtype=float), k, context.n_train, whose
        ),
    }


def _shares(reading: Reading, context: ReportContext) -> list[dict[str, Any]]:
    """Return, for a few shares of the labels, how many predictions fewer labels than that flip."""
    if len(reading.frame) < 2 or reading.found.empty:
        return []
    return [
        {
            "share": share,
            "labels": share * context.n_train,
            "count": int((reading.found["share"] < share).sum()),
            "of_all": float((reading.found["share"] < share).sum() / len(reading.frame)),
        }
        for share in _SHARES
    ]


def _places(reading: Reading, context: ReportContext) -> list[dict[str, Any]]:
    """Return where the fragile predictions are: by predicted class, by confidence, by being right."""
    frame = reading.frame
    groups: list[tuple[str, str | None, pd.Series[bool]]] = [
        *_by_class(frame, context),
        ("more than 0.9 sure", None, frame["confidence"] > pictures.CONFIDENT),
        ("at most 0.9 sure", None, frame["confidence"] <= pictures.CONFIDENT),
    ]
    if reading.labelled:
        correct = frame["correct"].astype("boolean")
        groups += [
            ("correct", None, correct.fillna(False).astype(bool)),
            ("wrong", None, (~correct).fillna(False).astype(bool)),
        ]
    places = []
    for words, name, chosen in groups:
        part = frame[chosen.to_numpy()]
        if len(part) and len(part) < len(frame):
            few = float((part["share"] < pictures.FEW).mean())
            places.append({"words": words, "name": name, "n": len(part), "median": part["shown"].median(), "few": few})
    return places


def _by_class(frame: pd.DataFrame, context: ReportContext) -> list[tuple[str, str | None, pd.Series[bool]]]:
    """Return which predictions are of which class; of several, the classes predicted most often."""
    if not context.several:
        positive = pd.Series(_floats(frame["margin"]) > 0)
        return [("predicted", name, at) for name, at in zip(context.class_names, (~positive, positive), strict=True)]
    predicted = frame["predicted"].astype(str)
    often = set(predicted.value_counts().index[:CLASSES_SHOWN])
    return [("predicted", name, predicted == name) for name in context.class_names if name in often]


def _turns(reading: Reading, context: ReportContext) -> list[dict[str, Any]]:
    """Return which class flips to which, and how easily; the most frequent pairs of several classes."""
    found = reading.found
    if not context.several or len(found) < 2 or FLIPS_TO not in found:
        return []
    pairs = found.groupby(["predicted", FLIPS_TO], sort=True)["shown"].agg(["size", "median", "min"]).reset_index()
    pairs = pairs.sort_values("size", ascending=False, kind="stable").head(CLASSES_SHOWN)
    records: list[dict[str, Any]] = pairs.to_dict("records")
    return records


def _flip_set_heads(sets: FlipTable, reading: Reading) -> dict[Any, pd.DataFrame]:
    """Return the first few labels of the flip set of each row that is shown, strongest first, by row id."""
    heads: dict[Any, pd.DataFrame] = {}
    size = reading.frame["shown"]
    shown = reading.frame.loc[size <= size.nsmallest(ROW_LIMIT).max(), "row_id"]
    for part in sets.parts():
        head = part[part["rank"] <= _LABELS_SHOWN].sort_values("rank", kind="stable")
        head = head[head["row_id"].isin(shown)]
        heads |= dict(iter(head.groupby("row_id", sort=False)))
    return heads


def _most_fragile(reading: Reading, heads: dict[Any, pd.DataFrame], context: ReportContext) -> list[dict[str, Any]]:
    rows = reading.found.sort_values(["shown", "confidence"], ascending=[True, False], kind="stable")
    items = []
    for row in rows.head(_MOST_FRAGILE).itertuples():
        head = heads.get(row.row_id)
        ids = [] if head is None else head["train_id"].tolist()
        items.append(
            {
                "row_id": row.row_id,
                "predicted": row.predicted,
                "flips_to": getattr(row, FLIPS_TO, None),
                "label": row.label if reading.labelled else None,
                "wrong": reading.labelled and row.correct is not pd.NA and not bool(row.correct),
                "confidence": row.confidence,
                "k": row.shown,
                "k_lower": row.k_lower,
                "train_ids": ids,
                "more": int(row.shown) - len(ids) if ids else 0,
            }
        )
    return items


def _recurring(sets: FlipTable, reading: Reading) -> list[dict[str, Any]]:
    """Return the training labels that stand in most flip sets, where any stands in more than one."""
    if not len(sets) or len(reading.found) < 2:
        return []
    counts: Any = None
    first: Any = None
    for part in sets.parts():
        groups = part.groupby("train_id", sort=False)
        more, seen = groups.size(), groups[["train_label", "new_label"]].first()
        counts = more if counts is None else counts.add(more, fill_value=0)
        first = seen if first is None else pd.concat([first, seen[~seen.index.isin(first.index)]])
    counts = counts.reindex(first.index).astype(int)  # in the order of their first appearance, which breaks ties
    counts = counts.sort_values(ascending=False, kind="stable").head(8)
    return [
        {
            "train_id": train_id,
            "label": first.at[train_id, "train_label"],
            "count": int(n),
            "of_all": n / len(reading.frame),
        }
        for train_id, n in counts.items()
        if n > 1
    ]


def _table(reading: Reading, heads: dict[Any, pd.DataFrame]) -> Table:
    """Return every prediction, most fragile first, with the first labels of its flip set behind it."""
    frame = reading.frame.sort_values("shown", kind="stable", na_position="last").head(ROW_LIMIT)
    several = FLIPS_TO in frame
    whose = "predicted" if several else "positive"
    columns = [Column("Row", "text", frame["row_id"].tolist())]
    if reading.labelled:
        columns.append(Column("Label", "word", frame["label"].tolist(), "what the evaluated data says"))
    columns += [
        Column("Predicted", "word", frame["predicted"].tolist()),
        *([Column("Flips to", "word", frame[FLIPS_TO].tolist())] if several else []),
        Column("Prob.", "probability", frame["probability"].tolist(), f"probability of the {whose} class"),
        Column("k_lower", "count", frame["k_lower"].tolist(), "no fewer labels can flip it, proved"),
        Column(
            "k",
            "count",
            frame["shown"].tolist(),
            "labels that flip it" + (", estimated where not verified" if reading.n_unverified else ""),
        ),
        *([] if several else [Column("k_paper", "count", frame["k_paper"].tolist(), "the published Algorithm 1")]),
        Column("of labels", "percent", frame["share"].tolist(), "k divided by the number of training labels"),
    ]
    sort = next(i for i, c in enumerate(columns) if c.label == "k")
    words = {"not_flippable": "not flippable"}
    status = [words.get(s, s) for s in frame["status"].astype(str)]
    if set(status) != {"verified"}:
        columns.append(Column("Status", "word", status))
    margins = [f"{m:+.3f}".replace("-", "\N{MINUS SIGN}") for m in _floats(frame["margin"])]
    estimates = [text.count(v) for v in frame["k_estimate"]]
    labels = [
        ", ".join(text.visible(i, 40) for i in heads[row]["train_id"]) if row in heads else ""
        for row in frame["row_id"].head(_DETAILED_ROWS)
    ]
    labels += [""] * (len(frame) - len(labels))
    lengths = frame["shown"].fillna(0).astype(int)
    labels = [
        f"{shown}, and {n - _LABELS_SHOWN:,} more" if shown and n > _LABELS_SHOWN else shown
        for shown, n in zip(labels, lengths, strict=True)
    ]
    return Table(
        columns,
        sort=sort,
        details=list(zip(margins, estimates, labels, strict=True)),
        detail_labels=("Margin", "k estimated", "Training rows whose labels flip it, strongest first"),
    )
