"""Whose training rows, with which labels, make up the flip sets of which predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from mlflow_relabel_audit.analyses.groups.grouping import ALL, Attribute
from mlflow_relabel_audit.analyses.groups.statistics import flip_set_shares, permutation_test
from mlflow_relabel_audit.problem import IntArray

Mask = np.ndarray[Any, np.dtype[np.bool_]]

OUTCOMES = (
    "all",
    "predicted_positive",
    "predicted_negative",
    "misclassified",
    "false_positive",
    "false_negative",
)
"""Slices of an evaluation group's predictions, of two classes; the last three need evaluation labels."""

DRIVERS = 20
"""Training rows listed for each group's errors."""

FIGURES = (
    "share",
    "share_low",
    "share_high",
    "share_pooled",
    "base_rate",
    "lift",
    "lift_low",
    "lift_high",
    "expected_given_label",
    "lift_given_label",
    "effective_rows",
    "p_value",
    "p_adjusted",
)


@dataclass(frozen=True)
class Composition:
    """Frames of `BiasResult`; ``drivers`` names training rows by position, in ``train_row``."""

    groups: pd.DataFrame
    row_sets: pd.DataFrame
    drivers: pd.DataFrame


@dataclass(frozen=True)
class _Slice:
    """Predictions of one evaluation group and outcome that have a flip set; ALL for everyone."""

    attribute: str
    group: str
    outcome: str
    mask: Mask = field(repr=False)
    n: int


@dataclass(frozen=True)
class _Category:
    """Training rows of one group and label, of a label (group ALL), or of a named set (attribute None)."""

    attribute: str | None
    group: str
    label: str
    n: int


def compose(
    members: Any,
    attributes: list[Attribute],
    outcomes: Mapping[str, Mask],
    y: IntArray,
    row_sets: Mapping[str, Mask],
    *,
    classes: tuple[str, ...],
    alpha: float,
    min_group: int,
    permutations: int,
    seed: int,
) -> Composition:
    """Compose the flip sets of every evaluation group and outcome by training group, label and named set.

    Parameters
    ----------
    members : CSR array of shape (T, N)
        1 where a training row is in a prediction's flip set.
    attributes, outcomes, row_sets
        groups of both kinds of rows; masks of shape (T,) by outcome; masks of shape (N,) by name.
    y : ndarray of shape (N,), int
        training labels as class codes.
    classes : names of the classes.
    alpha, min_group, permutations, seed : see `bias_audit`.
    """
    slices = _slices(attributes, outcomes, np.diff(members.indptr) > 0)
    large = [s for s in slices if s.n >= min_group]
    categories, matrix = _categories(attributes, row_sets, y, classes)

    related = np.zeros((len(large), len(categories)), dtype=np.bool_)
    for j, s in enumerate(large):
        related[j] = [c.attribute is None or s.attribute in (ALL, c.attribute) for c in categories]
    big = np.array([c.n >= min_group for c in categories], dtype=np.bool_)
    tested = related & big & np.array([c.group != ALL for c in categories], dtype=np.bool_)
    chosen = np.array([s.mask for s in large], dtype=np.float64).reshape(len(large), members.shape[0]).T
    shares = flip_set_shares(members, chosen, matrix, alpha)
    test = permutation_test(shares.usage, matrix, y, tested, permutations=permutations, seed=seed)

    base = np.asarray(matrix.sum(axis=0)).ravel() / matrix.shape[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = {
            "share": shares.share,
            "share_low": shares.low,
            "share_high": shares.high,
            "share_pooled": shares.pooled,
            "base_rate": np.broadcast_to(base, shares.share.shape),
            "lift": shares.share / base,
            "lift_low": shares.low / base,
            "lift_high": shares.high / base,
            "expected_given_label": test.expected,
            "lift_given_label": shares.share / test.expected,
            "effective_rows": np.broadcast_to(shares.effective[:, None], shares.share.shape),
            "p_value": test.p_value,
            "p_adjusted": test.p_adjusted,
        }
    rows: list[dict[str, Any]] = []
    for s in slices:
        if s.n < min_group:
            for name in [a.name for a in attributes] if s.attribute == ALL else [s.attribute]:
                everyone = _Category(name, ALL, ALL, matrix.shape[0])
                rows.append(_row(s, name, everyone) | {"status": "too small"})
    for j, k in np.argwhere(related):
        s, c = large[j], categories[k]
        row = _row(s, c.attribute or s.attribute, c) | {"status": "ok" if big[k] else "too small"}
        if big[k]:
            row |= {name: float(table[j, k]) for name, table in figures.items()}
            row["n_flip"] = int(shares.distinct[j, k])
        rows.append(row)
    table = _frame(rows)
    named = table["set"].notna()
    return Composition(
        groups=table[~named].drop(columns=["set"]).reset_index(drop=True),
        row_sets=table[named].drop(columns=["train_group", "train_label"]).reset_index(drop=True),
        drivers=_drivers(large, shares.usage, members, attributes),
    )


def _slices(attributes: list[Attribute], outcomes: Mapping[str, Mask], has_set: Mask) -> list[_Slice]:
    """Every evaluation group by every outcome that occurs; errors also where there are none."""
    groups = [(ALL, ALL, np.ones(len(has_set), dtype=np.bool_))]
    for a in attributes:
        if a.evaluation is not None:
            groups += [(a.name, level, a.evaluation == j) for j, level in enumerate(a.levels)]
    slices = []
    for attribute, level, group in groups:
        for outcome in sorted(outcomes, key=lambda o: OUTCOMES.index(o) if o in OUTCOMES else len(OUTCOMES)):
            if group.any():
                mask = group & outcomes[outcome] & has_set
                if mask.any() or outcome == "misclassified":
                    slices.append(_Slice(attribute, level, outcome, mask, int(mask.sum())))
    return slices


def _categories(
    attributes: list[Attribute], row_sets: Mapping[str, Mask], y: IntArray, classes: tuple[str, ...]
) -> tuple[list[_Category], Any]:
    """Categories of training rows and their 0/1 indicator, a CSR array of shape (N, C)."""
    categories: list[_Category] = []
    columns: list[IntArray] = []

    def add(attribute: str | None, group: str, label: str, rows: IntArray) -> None:
        categories.append(_Category(attribute, group, label, len(rows)))
        columns.append(rows)

    for a in attributes:
        for j, level in enumerate(a.levels):
            rows = np.flatnonzero(a.train == j)
            add(a.name, level, ALL, rows)
            for v, label in enumerate(classes):
                add(a.name, level, label, rows[y[rows] == v])
        for v, label in enumerate(classes):
            add(a.name, ALL, label, np.flatnonzero(y == v))
    for name, mask in row_sets.items():
        add(None, name, ALL, np.flatnonzero(mask))
    indptr = np.cumsum([0, *map(len, columns)])
    indices = np.concatenate(columns)
    matrix = sp.csc_array((np.ones(len(indices)), indices, indptr), shape=(len(y), len(columns)))
    return categories, sp.csr_array(matrix)


def _row(s: _Slice, attribute: str, c: _Category) -> dict[str, Any]:
    named = c.attribute is None
    return {
        "set": c.group if named else None,
        "attribute": attribute,
        "eval_group": s.group,
        "outcome": s.outcome,
        "n_predictions": s.n,
        "train_group": None if named else c.group,
        "train_label": None if named else c.label,
        "n_train": c.n,
        "n_flip": 0,
    }


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a frame of fixed columns and dtypes, whatever was computed."""
    words = ("attribute", "eval_group", "outcome", "train_group", "train_label")
    counts = ("n_predictions", "n_train", "n_flip")
    facts = ("set", *words[:3], "n_predictions", *words[3:], "n_train", "n_flip")
    table = pd.DataFrame(rows, columns=[*facts, *FIGURES, "status"])
    types: dict[str, Any] = dict.fromkeys(("set", *words, "status"), object)
    types |= dict.fromkeys(counts, np.int64) | dict.fromkeys(FIGURES, np.float64)
    frame: pd.DataFrame = table.astype(types)
    return frame


def _drivers(slices: list[_Slice], usage: Any, members: Any, attributes: list[Attribute]) -> pd.DataFrame:
    """The training rows with most weight in the flip sets of each evaluation group's errors."""
    by_name = {a.name: a for a in attributes}
    parts = []
    columns = usage.tocsc()
    for j, s in enumerate(slices):
        if s.outcome != "misclassified":
            continue
        part = slice(columns.indptr[j], columns.indptr[j + 1])
        rows, weight = columns.indices[part].astype(np.int64), columns.data[part]
        order = np.lexsort((rows, -weight))[:DRIVERS]
        rows, weight = rows[order], weight[order]
        own = by_name.get(s.attribute)
        parts.append(
            pd.DataFrame(
                {
                    "attribute": s.attribute,
                    "eval_group": s.group,
                    "outcome": s.outcome,
                    "n_predictions": s.n,
                    "train_row": rows,
                    "train_group": [own.levels[c] for c in own.train[rows]] if own else ALL,
                    "n_sets": np.asarray(members[np.flatnonzero(s.mask)][:, rows].sum(axis=0), dtype=np.int64).ravel(),
                    "weight": weight,
                }
            )
        )
    names = [
        "attribute",
        "eval_group",
        "outcome",
        "n_predictions",
        "train_row",
        "train_group",
        "n_sets",
        "weight",
    ]
    empty: pd.DataFrame = pd.DataFrame({name: np.array([], dtype=np.int64) for name in names})
    table: pd.DataFrame = pd.concat(parts, ignore_index=True) if parts else empty
    return table
