"""One decision, contested: the labels it rests on, what each moves, and removal beside relabelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.decision import Decision, flip_table, refitted
from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.flips.removal.sets import RemovalSet, removal_sets
from mlflow_relabel_audit.flips.search.flip_set import VERIFIED, FlipSet
from mlflow_relabel_audit.likelihood import sigmoid
from mlflow_relabel_audit.problem import FloatArray, IntArray, Problem
from mlflow_relabel_audit.rows import Rows


@dataclass(frozen=True)
class RemovalSide:
    """The training rows whose removal would flip the same decision.

    Attributes
    ----------
    k : int or None
        rows of the set, None where none was found.
    removal_set : DataFrame
        rank, train_id, train_label, influence (estimated move of the margin), in the order of the set.
    margin_after, probability_after : float or None
        of the model refitted without the set.
    found : bool
        whether a set was found whose refit is proved to flip.
    """

    k: int | None
    removal_set: pd.DataFrame = field(repr=False)
    margin_after: float | None
    probability_after: float | None
    found: bool


@dataclass(frozen=True)
class ContestResult:
    """One decision and what would change it.

    Attributes
    ----------
    row_id : Any
    label : Any or None
        the true label, where it is known.
    predicted : Any
        the class predicted now.
    probability : float
        of the positive class of two, or of the predicted one of more, now.
    margin : float
        logit of the probability less that of the threshold; its sign decides. Of more than two classes, by how much
        the output of the predicted one exceeds that of the one flipped to.
    threshold : float
    k, k_lower, k_paper, k_estimate : int or None
        verified size of the flip set, certified lower bound, the published algorithm's, the estimate.
    status : str
        ``verified``, ``unverified`` or ``not_flippable``.
    flip_set : DataFrame
        rank, train_id, train_label, new_label, influence (estimated move of the margin by this label alone,
        signed), cumulative_margin and cumulative_probability (estimates with it and those before it changed).
    wanted : Any
        the class flipped to.
    any_change : bool
        whether k and k_lower are about any other class, not the wanted one alone.
    margin_after, probability_after : float or None
        of the model refitted with the whole set relabelled; None without a set, or where the refit's sign
        could not be proved.
    by_class, by_class_after : tuple of floats, or None
        probability of every class, now and after that refit.
    removal : RemovalSide or None
        None where it was not asked for, or the model has more than two classes: removal is defined by the one
        margin of two (Yang, Jain and Wallace, 2023).
    n_train : int
    classes : tuple
        the labels; of two, the negative one first.
    """

    row_id: Any
    label: Any
    predicted: Any
    probability: float
    margin: float
    threshold: float
    k: int | None
    k_lower: int | None
    k_paper: int | None
    k_estimate: int | None
    status: str
    flip_set: pd.DataFrame = field(repr=False)
    margin_after: float | None
    probability_after: float | None
    by_class: tuple[float, ...]
    by_class_after: tuple[float, ...] | None
    removal: RemovalSide | None
    n_train: int
    classes: tuple[Any, ...]
    wanted: Any
    any_change: bool = True


class SharedFeature(NamedTuple):
    """A feature's share in how strongly a training row pulls on a decision.

    Attributes
    ----------
    name : Any
    share : float
        its part of ``x . H^-1 x_i`` over the sum of the absolute parts; it strengthens the pull.
    shared : bool
        whether the feature is non-zero in both rows.
    """

    name: Any
    share: float
    shared: bool


def contest(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    x: FloatArray,
    *,
    flip: FlipSet,
    k_lower: Any = None,
    k_paper: Any = None,
    k_estimate: Any = None,
    row_id: Any = 0,
    label: Any = None,
    train_ids: Any = None,
    row_norms: FloatArray | None = None,
    removal: bool = True,
    want: int | None = None,
    any_change: bool = True,
    algorithm: int = 1,
    max_removed: int | None = None,
) -> ContestResult:
    """Lay out one decision for a reviewer.

    Parameters
    ----------
    problem, rows, point
        the fitted model, its n training rows and its minimiser.
    x : ndarray of shape (coordinates,)
        the row decided on, transformed, the one appended where an intercept is fitted.
    flip : FlipSet
        what the verified search found for this row.
    k_lower, k_paper, k_estimate : int, optional
        the certificate and the estimates for this row; None, NA or 0 where there is none.
    row_id, label : Any, optional
        its id, and its true label where known.
    train_ids : array-like of shape (n,), optional
        ids of the training rows; positions by default.
    row_norms : ndarray of shape (n,), optional
        ``point.curvature.row_norms(rows)``, where it is at hand; computed otherwise.
    removal : bool
        also find rows whose removal flips the decision (searched by refits, see `removal_sets`).
    want : int, optional
        code of the class that the set flips to; the next in line by default.
    any_change : bool
        whether k and k_lower are about any other class.
    algorithm : {1, 2}
        of the removal's order.
    max_removed : int, optional
        the largest removal set considered.

    Raises
    ------
    RequestError
        x or train_ids do not fit the training rows.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.shape != (rows.coordinates,):
        raise RequestError(
            f"contest: got a row of shape {x.shape} for a model of {rows.coordinates} coordinates; "
            "pass one transformed row, with a one at its end where an intercept is fitted"
        )
    ids = np.arange(rows.n) if train_ids is None else np.asarray(train_ids)
    if len(ids) != rows.n:
        raise RequestError(f"contest: got {len(ids)} training ids for {rows.n} training rows; pass one per row")
    decision = Decision.on(problem, point.theta, x, want)
    after = refitted(problem, rows, point, decision, flip.change, row_norms) if len(flip.change) else None
    margin = decision.margin(point.theta)
    features = x[:-1] if rows.intercept else x
    side = None
    if removal and problem.outputs == 1:
        alone = Rows(features[None, :], np.zeros(1), np.ones(1), intercept=rows.intercept)
        found = removal_sets(
            problem,
            rows,
            point,
            alone,
            algorithm=algorithm,
            max_size=max_removed,
            search=True,
            scale="margin",
        )[0]
        side = _removal_side(problem, rows, ids, found)
    return ContestResult(
        row_id=row_id,
        label=label,
        predicted=problem.classes[decision.predicted],
        probability=decision.probability(margin, point.theta),
        margin=margin,
        threshold=problem.threshold,
        k=_count(flip.k) if flip.status == VERIFIED else None,
        k_lower=_count(k_lower),
        k_paper=_count(k_paper),
        k_estimate=_count(k_estimate),
        status=flip.status,
        flip_set=flip_table(problem, rows, point, decision, flip.change, ids),
        margin_after=None if after is None else after[0],
        probability_after=None if after is None else decision.probability(*after),
        by_class=decision.probabilities(point.theta),
        by_class_after=None if after is None else decision.probabilities(after[1]),
        removal=side,
        n_train=rows.n,
        classes=problem.classes,
        wanted=problem.classes[decision.wanted],
        any_change=any_change or problem.outputs == 1,
    )


def shared_features(
    point: StationaryPoint, x: FloatArray, part: Any, feature_names: Sequence[Any], top: int = 10
) -> list[list[SharedFeature]]:
    """Name, for each training row, the features that make it pull on the decision.

    The pull ``x . H^-1 x_i`` is the sum over features of ``(H^-1 x)_j x_ij``. Features of the pull's own sign
    are named, the strongest first; those that work against it are left out, and so is the intercept.

    Parameters
    ----------
    point : StationaryPoint
    x : ndarray of shape (p,)
        the row decided on.
    part : ndarray or CSR matrix of shape (m, p) or (m, features)
        training rows, as ``rows.take(index)`` gives them.
    feature_names : sequence of length features
    top : int
        the most features named for a row.

    Raises
    ------
    RequestError
        There is not one name per feature.
    """
    names = list(feature_names)
    if len(names) not in (len(x), len(x) - 1) or part.shape[1] not in (len(x), len(names)):
        raise RequestError(
            f"features: got {len(names)} names for rows of {part.shape[1]} columns; "
            "pass one name per transformed feature"
        )
    u = point.curvature.solve(np.asarray(x, dtype=np.float64))
    out = []
    for position in range(part.shape[0]):
        row = part[position]
        if hasattr(row, "indices"):
            columns, values = row.indices, row.data
        else:
            columns = np.flatnonzero(row)
            values = row[columns]
        pulls = u[columns] * values
        pulls = pulls if pulls.sum() >= 0 else -pulls
        inner = columns < len(names)
        columns, pulls = columns[inner], pulls[inner]
        total = max(float(np.abs(pulls).sum()), 1e-300)
        best = np.argsort(-pulls, kind="stable")[:top]
        out.append(
            [
                SharedFeature(names[columns[j]], float(pulls[j] / total), bool(x[columns[j]] != 0))
                for j in best
                if pulls[j] > 0
            ]
        )
    return out


def _removal_side(problem: Problem, rows: Rows, ids: Any, found: RemovalSet) -> RemovalSide:
    table = pd.DataFrame(
        {
            "rank": np.arange(1, found.k + 1),
            "train_id": ids[found.index],
            "train_label": _labels(problem, rows.y[found.index].astype(int)),
            "influence": found.influence,
        }
    )
    after = _finite(found.margin_verified)
    return RemovalSide(
        k=found.k if found.found else None,
        removal_set=table,
        margin_after=after,
        probability_after=None if after is None else _probability(problem, after),
        found=found.found,
    )


def _labels(problem: Problem, encoded: IntArray) -> FloatArray:
    """Class labels of 0/1 codes, in the labels' own dtype."""
    return np.asarray(problem.classes)[encoded]


def _probability(problem: Problem, margin: float) -> float:
    return float(sigmoid(np.float64(margin + problem.cut)))


def _finite(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def _count(value: Any) -> int | None:
    """Return k as a plain int, None where it is missing (None, NA, NaN, or 0 for not found)."""
    return None if value is None or pd.isna(value) or value == 0 else int(value)
