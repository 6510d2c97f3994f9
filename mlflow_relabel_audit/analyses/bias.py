"""Bias audit: whose training labels hold whose predictions in place, and whether they hold errors there.

Two figures are kept apart, because neither alone is evidence of biased labels.

* **Composition.** A group's share of the flip sets over its share of the training rows is the *lift*. It is
  above 1 in clean data wherever similar people are influential for each other, most of all where the group
  is itself a feature. Its p-value answers only: more than rows of the same labels picked at random?
* **Excess errors.** A group's evaluation labels against the model's own probabilities. Similarity does not
  move this figure; training labels that were changed for one group do.

An alarm (findings B001 and B003) needs both: errors beyond what the probabilities promise, and flip sets of
those errors that draw on a group's labels more than chance explains, and by a practical factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from mlflow_relabel_audit.analyses.bias_findings import Rules, conclude
from mlflow_relabel_audit.analyses.findings import Finding
from mlflow_relabel_audit.analyses.groups.class_metrics import class_outcomes, metrics_of_classes
from mlflow_relabel_audit.analyses.groups.composition import Mask, compose
from mlflow_relabel_audit.analyses.groups.grouping import (
    ALL,
    align,
    attributes_of,
    classes_of,
    places_of,
    row_set_masks,
)
from mlflow_relabel_audit.analyses.groups.metrics import metrics_by_group
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.problem import FloatArray

MAX_GROUPS = 25
"""Groups of one attribute that are shown; the smallest beyond are pooled."""

CAUTIONS = (
    "A flip set says which labels a decision rests on, not which labels are wrong. Whether they are is for "
    "people who know how the labels came about.",
    "A lift above 1 is usual where similar rows are influential for each other, and certain where the "
    "group is itself a feature. By itself it is no sign of bias; the p-value beside it only rules out "
    "chance.",
    "An alarm needs evaluation labels that can be trusted. Where they carry the same bias as the training "
    "labels, the errors do not show it, and silence here is no proof of fairness.",
    "Excess errors can also come from features that mean different things in different groups, from a "
    "drift between training and evaluation data, or from a model that cannot see the group. Biased labels "
    "are one explanation among these.",
    "Error rates by group differ where base rates differ, even for a calibrated model with right labels. "
    "Which gap matters (selection rate, false positive rate, false negative rate) depends on who is harmed "
    "by which error; they cannot all be closed at once.",
    "Groups with few rows are shown as too small. They may still be treated unfairly; this audit cannot tell.",
    "The audit describes associations between groups, labels and decisions of this model. It does not "
    "establish discrimination in law, nor what would happen under another policy.",
)
"""What the audit can and cannot show, for the report."""


DRIVER_COLUMNS = (
    "attribute",
    "eval_group",
    "outcome",
    "n_predictions",
    "train_id",
    "train_label",
    "train_group",
    "n_sets",
    "weight",
)


@dataclass(frozen=True)
class BiasResult:
    """What `bias_audit` found.

    Attributes
    ----------
    groups : DataFrame
        composition, one row for each attribute, evaluation group, outcome, training group and training
        label: attribute, eval_group, outcome, n_predictions (with a flip set), train_group, train_label (a
        class or "(all)"), n_train, n_flip (distinct rows of the flip sets), share (mean over predictions),
        share_low, share_high, share_pooled (of all memberships together), base_rate, lift, lift_low,
        lift_high, expected_given_label (mean share with groups dealt at random within labels),
        lift_given_label, effective_rows, p_value, p_adjusted, status ("ok", or "too small": no figures).
    by_group_k : DataFrame
        one row for each attribute and evaluation group: counts, accuracy, selection_rate,
        false_positive_rate, false_negative_rate with Wilson intervals, excess (observed less predicted
        rate) with interval and p-values, median k with interval, k_ratio to the others' median, p-values.
    row_sets : DataFrame
        the columns of ``groups`` that apply, for named sets of training rows.
    drivers : DataFrame
        the training rows that recur most in the flip sets of each group's errors.
    summary : dict of str to float
        finite figures, the metrics.
    findings : tuple of Finding
    by_class : DataFrame
        of more than two classes, whose rates and excess ``by_group_k`` leaves missing: one row for each attribute,
        evaluation group and class (``class``), with the rates and the excess of that class against the rest. Outcomes
        are then "all", "misclassified", and of each class "predicted X", "missed X" (X, predicted as another) and
        "wrongly X" (another, predicted as X).
    """

    groups: pd.DataFrame
    by_group_k: pd.DataFrame
    row_sets: pd.DataFrame
    drivers: pd.DataFrame
    summary: dict[str, float]
    findings: tuple[Finding, ...]
    by_class: pd.DataFrame = field(default_factory=pd.DataFrame)


def bias_audit(
    predictions: pd.DataFrame,
    flip_sets: pd.DataFrame,
    groups_train: Any,
    groups_eval: Any = None,
    train_labels: Any = None,
    *,
    row_sets: Mapping[str, Any] | None = None,
    alpha: float = 0.05,
    min_group: int = 30,
    permutations: int = 999,
    seed: int = 0,
    train_ids: Any = None,
    classes: tuple[Any, ...] | None = None,
    log_odds_shift: float = 0.0,
    probabilities: Any = None,
) -> BiasResult:
    """Audit flip sets by group.

    Parameters
    ----------
    predictions, flip_sets : DataFrame
        of `Auditor.robustness`. ``label`` may be absent or missing: then nothing is said about errors.
    groups_train : DataFrame, Series, mapping or array of N rows
        group attributes of all training rows, indexed by training id (positions for an array). A
        missing value is a group. Pairs of columns, and all together, are crossed.
    groups_eval : same columns for the predictions, optional
        indexed by row id, or an array in the order of ``predictions``.
    train_labels : Series indexed by training id, or array of shape (N,)
    row_sets : mapping of name to mask or training ids, optional
    alpha : float
        error level over everything tested, and one minus the level of each interval.
    min_group : int
        fewer predictions or training rows than this are too small to report on.
    permutations, seed : int
        of the permutation test.
    train_ids : sequence of N ids, optional
        where ``groups_train`` is an array and the ids are not positions.
    classes : (negative, positive), or all of more, optional
        read off the predictions where not given.
    log_odds_shift : float
        what class weights add to the model's log odds (log of positive over negative weight); taken off
        the probabilities before they are compared with rates.
    probabilities : array of shape (T, K), optional
        of every class of more than two, in the order of ``classes``, without what class weights add.

    Raises
    ------
    RequestError
        Tables that do not belong together; the message gives both numbers.

    Notes
    -----
    Time is proportional to permutations times the distinct training rows in the flip sets times slices.
    """
    _check(predictions, flip_sets, alpha, min_group, permutations, train_labels)
    ids = None if train_ids is None else pd.Index(train_ids)
    train_table, train_index = align(groups_train, ids, "groups_train")
    row_index = pd.Index(predictions["row_id"])
    eval_table = None if groups_eval is None else align(groups_eval, row_index, "groups_eval")[0]
    attributes = attributes_of(train_table, eval_table, MAX_GROUPS)
    given_labels = _aligned_labels(train_labels, train_index)
    classes = classes_of(predictions, given_labels, classes)
    y = _codes(given_labels, classes)
    masks = row_set_masks(row_sets, train_index)

    members = sp.csr_array(
        (
            np.ones(len(flip_sets)),
            (
                places_of(flip_sets["row_id"], row_index, "flip_sets.row_id", "predictions"),
                places_of(flip_sets["train_id"], train_index, "flip_sets.train_id", "groups_train"),
            ),
        ),
        shape=(len(row_index), len(train_index)),
    )
    members.sum_duplicates()
    members.data[:] = 1.0

    outcomes = _outcomes(predictions, classes)
    composition = compose(
        members,
        attributes,
        outcomes,
        y,
        masks,
        classes=tuple(map(str, classes)),
        alpha=alpha,
        min_group=min_group,
        permutations=permutations,
        seed=seed,
    )
    sizes: dict[str, Any] = {"alpha": alpha, "min_group": min_group}
    by_class = pd.DataFrame()
    if len(classes) > 2:
        chances = _probabilities(probabilities, len(predictions), len(classes))
        by_group, by_class = metrics_of_classes(predictions, outcomes, attributes, classes, chances, **sizes)
    else:
        pair = (classes[0], classes[1])
        by_group = metrics_by_group(predictions, outcomes, attributes, pair, log_odds_shift=log_odds_shift, **sizes)
    judged = by_class if len(by_class) else by_group
    groups, sets = composition.groups, composition.row_sets
    drivers = composition.drivers.assign(
        train_id=np.asarray(train_index[composition.drivers["train_row"]]),
        train_label=given_labels[composition.drivers["train_row"]],
    )[list(DRIVER_COLUMNS)]
    findings = conclude(groups, by_group, judged, sets, attributes, Rules(alpha, min_group, str(classes[1])))
    summary = _summary(groups, by_group, judged, sets, findings)
    return BiasResult(groups, by_group, sets, drivers, summary, findings, by_class)


def _check(
    predictions: pd.DataFrame,
    flip_sets: pd.DataFrame,
    alpha: float,
    min_group: int,
    permutations: int,
    train_labels: Any,
) -> None:
    for name, table, needed in (
        ("predictions", predictions, ("row_id", "predicted", "probability", "margin")),
        ("flip_sets", flip_sets, ("row_id", "train_id")),
    ):
        missing = [c for c in needed if c not in table.columns]
        if missing:
            raise RequestError(f"{name}: got no column {missing[0]!r}; pass the frame that robustness() returned")
    if len(predictions) == 0:
        raise RequestError("predictions: got 0 rows; audit at least one prediction")
    if predictions["row_id"].duplicated().any():
        twice = predictions.loc[predictions["row_id"].duplicated(), "row_id"].tolist()[0]
        raise RequestError(f"predictions: row_id {twice!r} occurs twice; pass one row per row id")
    if train_labels is None:
        raise RequestError("train_labels: got none; pass the training rows' labels, one per row of groups_train")
    if not 0.0 < alpha < 1.0:
        raise RequestError(f"alpha: got {alpha!r}; pass an error level between 0 and 1, such as 0.05")
    if min_group < 2:
        raise RequestError(f"min_group: got {min_group}; pass at least 2")
    if (permutations + 1) * alpha < 1.0:
        raise RequestError(
            f"permutations: {permutations} cannot give a p-value of {alpha:g}; pass "
            f"{int(np.ceil(1 / alpha)) - 1} or more"
        )


def _aligned_labels(labels: Any, index: pd.Index[Any]) -> np.ndarray[Any, Any]:
    """Training labels in the order of the training rows, shape (N,)."""
    if isinstance(labels, pd.Series) and labels.index.is_unique:
        places = labels.index.get_indexer(index)
        if (places >= 0).all():
            return np.asarray(labels.iloc[places])
        if not labels.index.equals(pd.RangeIndex(len(index))):
            raise RequestError(
                f"train_labels: its {len(labels)} rows name {int((places >= 0).sum())} of the {len(index)} "
                "training ids; index it by training id, or pass an array in the order of the rows"
            )
    values = np.asarray(labels)
    if values.shape != (len(index),):
        raise RequestError(
            f"train_labels: got shape {values.shape} beside {len(index)} rows of groups_train; pass one label per row"
        )
    return values


def _codes(labels: Any, classes: tuple[Any, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Position of each label among the classes, -1 where it is none, shape (n,)."""
    codes = np.full(len(labels), -1, dtype=np.int64)
    for code, name in enumerate(classes):
        codes[np.asarray(pd.Series(labels) == name, dtype=object) == True] = code  # noqa: E712  missing is neither
    return codes


def _probabilities(given: Any, count: int, classes: int) -> FloatArray | None:
    if given is None:
        return None
    values = np.asarray(given, dtype=np.float64)
    if values.shape != (count, classes):
        raise RequestError(
            f"probabilities: got shape {values.shape} for {count} predictions of {classes} classes; pass a row for "
            "each prediction and a column for each class"
        )
    return values


def _outcomes(predictions: pd.DataFrame, classes: tuple[Any, ...]) -> dict[str, Mask]:
    """Masks of the outcomes, shape (T,); errors only where some label is known."""
    if len(classes) > 2:
        labels = predictions["label"] if "label" in predictions.columns else pd.Series(np.nan, predictions.index)
        truth, known = _codes(labels, classes), labels.notna().to_numpy()
        _refuse_odd(labels, known & (truth < 0), classes)
        return class_outcomes(_codes(predictions["predicted"], classes), truth, known, classes)
    positive = (predictions["predicted"] == classes[1]).to_numpy(dtype=bool)
    masks = {
        "all": np.ones(len(positive), dtype=bool),
        "predicted_positive": positive,
        "predicted_negative": ~positive,
    }
    if "label" in predictions.columns and predictions["label"].notna().any():
        is_positive = (predictions["label"] == classes[1]).fillna(False).to_numpy(dtype=bool)
        is_negative = (predictions["label"] == classes[0]).fillna(False).to_numpy(dtype=bool)
        odd = predictions["label"].notna().to_numpy() & ~is_positive & ~is_negative
        _refuse_odd(predictions["label"], odd, classes)
        masks["false_positive"], masks["false_negative"] = positive & is_negative, ~positive & is_positive
        masks["misclassified"] = masks["false_positive"] | masks["false_negative"]
    return masks


def _refuse_odd(labels: pd.Series[Any], odd: Any, classes: tuple[Any, ...]) -> None:
    if odd.any():
        raise RequestError(
            f"predictions: {int(odd.sum())} labels (first: {labels[odd].tolist()[0]!r}) "
            f"are none of the classes {list(classes)}; pass labels as the model knows them"
        )


def _summary(
    groups: pd.DataFrame,
    by_group: pd.DataFrame,
    judged: pd.DataFrame,
    sets: pd.DataFrame,
    findings: tuple[Finding, ...],
) -> dict[str, float]:
    """Metrics; only what is finite."""
    shown = groups[(groups["status"] == "ok") & (groups["train_group"] != ALL) & (groups["train_label"] == ALL)]
    errors = shown.loc[(shown["outcome"] == "misclassified") & (shown["eval_group"] != ALL), "lift"]
    large = by_group[(by_group["status"] == "ok") & (by_group["group"] != ALL)]
    figures = {
        "bias_max_lift": errors.max(),
        "bias_max_excess": judged.loc[(judged["status"] == "ok") & (judged["group"] != ALL), "excess"].abs().max(),
        "bias_k_median_lowest": large["k_median"].min(),
        "bias_groups": float(len(large)),
        "bias_alarms": float(sum(f.applicable and f.level != "info" for f in findings)),
    }
    over_all = sets[(sets["eval_group"] == ALL) & (sets["outcome"] == "misclassified") & (sets["status"] == "ok")]
    for row in over_all.itertuples():  # what the named rows hold of the sets of all errors
        figures |= {f"bias_share_{row.set}": row.share, f"bias_lift_{row.set}": row.lift}
    return {name: float(value) for name, value in figures.items() if np.isfinite(value)}
