"""The noise audit: which training labels are probably wrong, and how many.

What the scores rest on is gathered for two classes in `two_classes` and for more in `several_classes`; here rows are
flagged and the verdict is told. How often a row appears in flip sets is shown as evidence; it does not rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.findings import Finding
from mlflow_relabel_audit.analyses.noise.foldout import MIN_CLASS_ROWS, FoldOut
from mlflow_relabel_audit.analyses.noise.several_classes import class_evidence
from mlflow_relabel_audit.analyses.noise.two_classes import label_evidence
from mlflow_relabel_audit.analyses.noise.verdict import NO_NOISE_RATE, SURE_SHARE, overfitted, unevaluated, verdict
from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.problem import FloatArray, IntArray, Problem
from mlflow_relabel_audit.rows import Rows

SURE = 0.5


class Evidence(Protocol):
    """What the scores of n training labels rest on."""

    @property
    def wrong(self) -> FloatArray:
        """Probability that each label is wrong, shape (n,)."""
        ...

    @property
    def suggested(self) -> FloatArray:
        """Code of the likeliest class other than the given label, shape (n,)."""
        ...

    @property
    def unseen(self) -> FloatArray:
        """Probability by models that did not see the row, of class 1 of two, of the label of more; shape (n,)."""
        ...

    @property
    def against(self) -> FloatArray:
        """How far those models speak against the label, shape (n,): equal probabilities are ranked by it."""
        ...

    @property
    def rate(self) -> tuple[float, float, float]:
        """Share of wrong labels, with a 95 % interval."""
        ...

    @property
    def out(self) -> FoldOut:
        """Outputs out of fold."""
        ...

    @property
    def sparing(self) -> bool:
        """Whether, where there may be no noise, no more rows are flagged than that verdict has room for."""
        ...

    def findings(self, problem: Problem, rows: Rows) -> list[Finding]:
        """What is to be said of these classes beside the verdict."""
        ...


@dataclass(frozen=True)
class NoiseResult:
    """What the noise audit found.

    Attributes
    ----------
    scores : DataFrame
        one row per training row, in their order: ``train_id``, ``label`` and ``suggested_label`` (the model's
        own class values; the suggestion differs from the label for suspects only), ``score`` (probability, 0
        to 1, that the label is wrong), ``probability_out_of_sample`` (of the positive class, by models that
        did not see the row; of more than two classes, of the label), ``flip_set_count`` (Int64, missing where no
        flip sets were given).
    suspects : DataFrame
        the flagged rows, highest score first, with ``level``: "sure" (more likely wrong than right) or
        "check" (worth a look).
    noise_rate : tuple of three floats
        estimate, low, high: the share of wrong training labels with a 95 % interval.
    summary : dict
        ``noise_rate``, ``noise_rate_low``, ``noise_rate_high``, ``suspect_count``; finite values only.
    findings : tuple of Finding
    evidence : Evidence or None
        what the scores rest on; None where the audit does not apply.
    """

    scores: pd.DataFrame
    suspects: pd.DataFrame
    noise_rate: tuple[float, float, float]
    summary: dict[str, float]
    findings: tuple[Finding, ...]
    evidence: Evidence | None = field(default=None, repr=False)


def noise_audit(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    eval_features: Any = None,
    eval_labels: FloatArray | None = None,
    *,
    row_ids: Any = None,
    flip_counts: Any = None,
    seed: int = 0,
) -> NoiseResult:
    """Score every training label, flag the suspects and estimate the share of wrong labels.

    Rows of a class that has fewer than 10 are not judged: their score is missing.

    Parameters
    ----------
    problem, rows, point
        the objective, the n training rows and the minimiser.
    eval_features : ndarray or CSR array of shape (m, features), optional
        transformed evaluation rows. Their labels are taken to be right: they pin down how clean labels follow the
        features, and so the rates.
    eval_labels : ndarray of shape (m,), optional
        class codes, from 0.
    row_ids : sequence of length n, optional
        ``train_id``; positions by default.
    flip_counts : sequence of length n, optional
        in how many flip sets each row appears.
    seed : int
        of the deals into folds.

    Raises
    ------
    RequestError
        Evaluation features without labels or the reverse, or lengths that do not fit.
    """
    ids, counts = _row_columns(rows, row_ids, flip_counts)
    code = rows.y.astype(np.intp)
    size = np.bincount(code, minlength=len(problem.classes))
    large = size >= MIN_CLASS_ROWS
    if large.sum() < 2:
        message = (
            f"noise: {int(large.sum())} of {len(size)} classes have {MIN_CLASS_ROWS} training rows or more; five folds "
            "need two such classes"
        )
        missing = np.full(rows.n, np.nan)
        scores = _score_frame(problem, rows, ids, counts, missing, missing, rows.y)
        suspects = scores.iloc[:0].assign(level=pd.Series(dtype=object))
        finding = Finding("N000", "info", message, applicable=False)
        return NoiseResult(scores, suspects, (np.nan, np.nan, np.nan), {"suspect_count": 0.0}, (finding,))
    clean_rows = _evaluation_rows(problem, rows, eval_features, eval_labels)
    found = evidence_of(problem, rows, point, clean_rows, seed=seed)

    wrong = np.where(large[code], found.wrong, 0.0)
    sure, flagged = flag(wrong)
    if found.rate[1] < NO_NOISE_RATE:
        flagged = sure & (_place(wrong) < NO_NOISE_RATE * rows.n) if found.sparing else sure
    scored = np.where(large[code], found.wrong, np.nan)
    suggested = np.where(flagged, found.suggested, rows.y)
    scores = _score_frame(problem, rows, ids, counts, scored, found.unseen, suggested)
    order = np.lexsort((-found.against, -found.wrong))
    order = order[flagged[order]]
    suspects = scores.iloc[order].assign(level=np.where(sure[order], "sure", "check")).reset_index(drop=True)
    summary = {
        "noise_rate": found.rate[0],
        "noise_rate_low": found.rate[1],
        "noise_rate_high": found.rate[2],
        "suspect_count": float(len(suspects)),
    }
    findings = verdict(found.rate, found.wrong, sure, flagged)
    findings += [] if clean_rows is not None else [unevaluated()]
    findings += [*overfitted(problem, found.out), *found.findings(problem, rows), *_not_judged(problem, large)]
    told = tuple(sorted(findings, key=lambda finding: finding.code))
    return NoiseResult(scores, suspects, found.rate, summary, told, found)


def evidence_of(
    problem: Problem, rows: Rows, point: StationaryPoint, clean_rows: Rows | None = None, *, seed: int = 0
) -> Evidence:
    """Gather what the scores rest on, of two classes or more; labels of ``clean_rows`` are taken to be right."""
    gather = class_evidence if rows.outputs > 1 else label_evidence
    return gather(problem, rows, point, clean_rows, seed=seed)


def flag(wrong: FloatArray) -> tuple[Any, Any]:
    """Which rows are sure, and which are flagged at all (sure, or worth a check); bool of shape (n,).

    Rows to check are the top k with the greatest expected F1, ``2 sum_k / (k + total)``. Where hardly any row
    is sure, the probabilities cannot tell which rows are wrong, and nothing else is flagged.
    """
    sure = wrong > SURE
    flagged = sure.copy()
    total = float(wrong.sum())
    if sure.any() and wrong[sure].sum() >= SURE_SHARE * total:
        order = np.argsort(-wrong, kind="stable")
        reached = np.cumsum(wrong[order])
        best = int(np.argmax(2.0 * reached / (np.arange(1, len(wrong) + 1) + total)))
        flagged[order[: best + 1]] = True
    return sure, flagged


def _place(wrong: FloatArray) -> IntArray:
    """How many rows are likelier wrong than each, shape (n,)."""
    place = np.empty(len(wrong), dtype=np.int64)
    place[np.argsort(-wrong, kind="stable")] = np.arange(len(wrong))
    return place


def _evaluation_rows(problem: Problem, rows: Rows, features: Any, labels: Any) -> Rows | None:
    """Evaluation rows with their labels, checked; None where there are none."""
    if (features is None) != (labels is None):
        have, miss = ("features", "labels") if labels is None else ("labels", "features")
        raise RequestError(f"evaluation rows: got {have} without {miss}; pass both, or neither")
    if features is None:
        return None
    label = np.asarray(labels, dtype=np.float64)
    if features.shape[0] != len(label) or features.shape[1] != rows.features_in:
        raise RequestError(
            f"evaluation rows: got features of shape {features.shape} and {len(label)} labels; "
            f"pass one label per row and {rows.features_in} features"
        )
    count = len(problem.classes)
    if not np.isin(label, np.arange(count)).all():
        codes = "0 and 1" if count == 2 else f"0 to {count - 1}"
        raise RequestError(f"evaluation rows: labels other than {codes}; encode them with Problem.encode")
    return Rows(features, label, np.ones(len(label)), intercept=rows.intercept, outputs=rows.outputs)


def _row_columns(rows: Rows, row_ids: Any, flip_counts: Any) -> tuple[Any, pd.api.extensions.ExtensionArray]:
    """The columns ``train_id`` and ``flip_set_count``: positions, and missing, where they are not given."""
    ids = np.arange(rows.n) if row_ids is None else row_ids
    counts = [pd.NA] * rows.n if flip_counts is None else flip_counts
    for name, values in (("row_ids", ids), ("flip_counts", counts)):
        if len(values) != rows.n:
            raise RequestError(f"{name}: got {len(values)} values for {rows.n} training rows; pass one per row")
    return ids, pd.array(counts, dtype="Int64")


def _score_frame(
    problem: Problem,
    rows: Rows,
    ids: Any,
    counts: Any,
    wrong: FloatArray,
    probability: FloatArray,
    suggested: FloatArray,
) -> pd.DataFrame:
    """The table of scores, see `NoiseResult`; ``suggested`` are class codes."""
    classes = pd.Series(problem.classes)
    columns = {
        "train_id": np.asarray(ids),
        "label": classes.take(rows.y.astype(np.intp)).to_numpy(),
        "suggested_label": classes.take(suggested.astype(np.intp)).to_numpy(),
        "score": wrong,
        "probability_out_of_sample": probability,
        "flip_set_count": counts,
    }
    frame: pd.DataFrame = pd.DataFrame(columns)
    return frame


def _not_judged(problem: Problem, large: Any) -> list[Finding]:
    """Classes of too few rows, where there are any."""
    rare = [str(name) for name, enough in zip(problem.classes, large, strict=True) if not enough]
    if not rare:
        return []
    message = f"Not judged, with fewer than {MIN_CLASS_ROWS} training rows: labels {', '.join(rare[:10])}."
    return [Finding("N009", "info", message, applicable=False)]
