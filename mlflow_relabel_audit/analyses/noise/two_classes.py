"""The noise audit: which training labels are probably wrong, and how many.

What the scores rest on is gathered in `label_evidence`; here rows are flagged and the verdict is told. How often a row
appears in flip sets is shown as evidence; it does not rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.findings import Finding, Level
from mlflow_relabel_audit.analyses.noise.foldout import FoldOut
from mlflow_relabel_audit.analyses.noise.label_evidence import MIN_CLASS_ROWS, LabelEvidence, label_evidence
from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.likelihood import sigmoid
from mlflow_relabel_audit.problem import FloatArray, IntArray, Problem
from mlflow_relabel_audit.rows import Rows

NO_NOISE_RATE = 0.01
WIDE_HIGH = 0.1
"""An interval that reaches from none to beyond this rate does not tell."""
SURE = 0.5
SURE_SHARE = 0.05
"""Rows to check are shown only where the sure ones hold this share of the expected number of wrong labels."""


class Evidence(Protocol):
    """What the scores of training labels rest on."""

    @property
    def wrong(self) -> FloatArray:
        """Probability that each label is wrong, shape (n,)."""
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
    evidence : LabelEvidence, ClassEvidence or None
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

    Parameters
    ----------
    problem, rows, point
        the objective, the n training rows and the minimiser.
    eval_features : ndarray or CSR array of shape (m, features), optional
        transformed evaluation rows. Their labels are taken to be right: they pin down the clean curve, and so
        the rates.
    eval_labels : ndarray of shape (m,), optional
        0 or 1.
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
    ids, counts = row_columns(rows, row_ids, flip_counts)
    smallest = int(min(rows.y.sum(), rows.n - rows.y.sum()))
    if smallest < MIN_CLASS_ROWS:
        message = f"noise: the rarer class has {smallest} training rows; five folds need at least {MIN_CLASS_ROWS}"
        missing = np.full(rows.n, np.nan)
        scores = score_frame(problem, rows, ids, counts, missing, missing, rows.y)
        suspects = scores.iloc[:0].assign(level=pd.Series(dtype=object))
        finding = Finding("N000", "info", message, applicable=False)
        return NoiseResult(scores, suspects, (np.nan, np.nan, np.nan), {"suspect_count": 0.0}, (finding,))
    clean_rows = evaluation_rows(problem, rows, eval_features, eval_labels)

    evidence = label_evidence(problem, rows, point, clean_rows, seed=seed)
    wrong = evidence.wrong
    rate = evidence.rate
    sure, flagged = flag(wrong)
    if rate[1] < NO_NOISE_RATE:
        # no more of them than a verdict of "no noise" has room for
        flagged = sure & (_place(wrong) < NO_NOISE_RATE * rows.n)

    suggested = np.where(flagged, 1.0 - rows.y, rows.y)
    scores = score_frame(problem, rows, ids, counts, wrong, sigmoid(evidence.out.margin[: rows.n]), suggested)
    against = np.where(rows.y > 0.5, -evidence.margin, evidence.margin)
    order = np.lexsort((-against, -wrong))
    order = order[flagged[order]]
    suspects = scores.iloc[order].assign(level=np.where(sure[order], "sure", "check")).reset_index(drop=True)
    summary = {
        "noise_rate": rate[0],
        "noise_rate_low": rate[1],
        "noise_rate_high": rate[2],
        "suspect_count": float(len(suspects)),
    }
    findings = _findings(problem, rows, evidence, rate, sure, flagged, clean_rows is not None)
    return NoiseResult(scores, suspects, rate, summary, findings, evidence)


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


def evaluation_rows(problem: Problem, rows: Rows, features: Any, labels: Any) -> Rows | None:
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


def row_columns(rows: Rows, row_ids: Any, flip_counts: Any) -> tuple[Any, pd.api.extensions.ExtensionArray]:
    """The columns ``train_id`` and ``flip_set_count``: positions, and missing, where they are not given."""
    ids = np.arange(rows.n) if row_ids is None else row_ids
    counts = [pd.NA] * rows.n if flip_counts is None else flip_counts
    for name, values in (("row_ids", ids), ("flip_counts", counts)):
        if len(values) != rows.n:
            raise RequestError(f"{name}: got {len(values)} values for {rows.n} training rows; pass one per row")
    return ids, pd.array(counts, dtype="Int64")


def score_frame(
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


def verdict(rate: tuple[float, float, float], wrong: FloatArray, sure: Any, flagged: Any) -> list[Finding]:
    """Whether there is noise, and whether it is known where (findings N001 to N003)."""
    estimate, low, high = rate
    spread = f"{estimate:.1%} of the labels (95 % interval {low:.1%} to {high:.1%})"
    if low < NO_NOISE_RATE:
        message = f"Consistent with no label noise: the estimate is {spread}."
        if high >= WIDE_HIGH:
            message = f"No evidence of label noise, nor against it: the estimate is {spread}, which fits either."
        if flagged.any():
            message += f" The {int(flagged.sum())} flagged rows are worth a look all the same."
        return [Finding("N001", "info", message)]
    level: Level = "critical" if low >= 0.1 else "warning"
    found = [Finding("N002", level, f"Label noise: an estimated {spread} are wrong.")]
    if not (flagged & ~sure).any() and sure.sum() < SURE_SHARE * wrong.sum():
        message = "Which labels are wrong is not identified: hardly any is more likely wrong than right."
        found.append(Finding("N003", "info", message))
    return found


def unevaluated() -> Finding:
    """That no evaluation rows were heard."""
    message = "The rate is read off the training labels alone; labelled evaluation rows would narrow it."
    return Finding("N005", "info", message, applicable=False)


def overfitted(problem: Problem, out: FoldOut) -> list[Finding]:
    """That the model follows its labels too closely, where it does."""
    if out.multiplier > 0.1 or not (problem.penalty > 0).any():
        return []
    message = (
        f"Held-out labels are predicted best at {out.multiplier:.2g} times the model's C: "
        "the model follows its labels, right or wrong, more closely than they deserve."
    )
    return [Finding("N007", "info", message)]


def _findings(
    problem: Problem,
    rows: Rows,
    evidence: LabelEvidence,
    rate: tuple[float, float, float],
    sure: Any,
    flagged: Any,
    evaluated: bool,
) -> tuple[Finding, ...]:
    low = rate[1]
    curve, out = evidence.curve, evidence.out
    found = verdict(rate, evidence.wrong, sure, flagged)
    dirtier = float(curve.weight @ (curve.rate0 > curve.rate1))
    if low >= NO_NOISE_RATE and max(dirtier, 1.0 - dirtier) > 0.95:
        rates = float(curve.weight @ curve.rate0), float(curve.weight @ curve.rate1)
        worse = int(dirtier > 0.5)
        given, other = problem.classes[worse], problem.classes[1 - worse]
        found.append(
            Finding(
                "N004",
                "warning",
                f"The errors lean one way: {rates[1 - worse]:.1%} of the true {other!s} are labelled "
                f"{given!s}, {rates[worse]:.1%} of the true {given!s} are labelled {other!s}.",
            )
        )
    if not evaluated:
        found.append(unevaluated())
    if rows.p > rows.n:
        found.append(
            Finding(
                "N006",
                "info",
                f"More features ({rows.p}) than rows ({rows.n}): the margins' own errors can pass for wrong "
                "labels, and the rate tends to come out too high, by about 5 points.",
            )
        )
    found += overfitted(problem, out)
    alone, best = evidence.alone, evidence.stacks[-1]
    others = " and ".join(f"a {name}" if name != "boosted trees" else name for name in evidence.others)
    if others:
        those = "them" if len(evidence.others) > 1 else "it"
        found.append(
            Finding(
                "N008",
                "info",
                f"The ranking also hears {others}: with {those} held-out labels are predicted better than by "
                f"models of the audited kind alone (log-loss {alone:.3f} to {best.loss:.3f} a row).",
            )
        )
    return tuple(found)
