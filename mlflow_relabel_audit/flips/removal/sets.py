"""Training rows whose removal flips a prediction: Algorithms 1 and 2 of Yang, Jain and Wallace (2023).

"How Many and Which Training Points Would Need to be Removed to Flip this Prediction?" ranks the rows by the
first-order effect of their removal, ``theta + H^-1 e_i x_i`` with ``e_i = s_i (p_i - y_i)``, and takes them
until the summed effects carry the predicted probability over the threshold (Algorithm 1). Algorithm 2 then
estimates again with the Hessian of the rows that stay, and shrinks the set while that helps.

Removal changes the Hessian, by one rank for every removed row: ``H_S = H - X_S' D_S X_S``. Algorithm 2 asks
for nothing but ``X_S H_S^-1 x``, and by the matrix inversion lemma that is ``(I - K D_S)^-1 X_S H^-1 x`` with
the small matrix ``K = X_S H^-1 X_S'`` of the set; nothing is factored anew.

A set is verified by minimising the objective exactly without its rows, to a margin of proved accuracy: see
`flips.removal.refit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import LinAlgError, lu_factor, lu_solve

from mlflow_relabel_audit.curvature import StationaryPoint, factor
from mlflow_relabel_audit.errors import RequestError, SingularHessianError, UnsupportedModelError
from mlflow_relabel_audit.flips.removal.effect import class_counts, combined_moves, removal_moves
from mlflow_relabel_audit.flips.removal.refit import ACCURACY, refit_without
from mlflow_relabel_audit.likelihood import sigmoid
from mlflow_relabel_audit.problem import FloatArray, IntArray, Problem
from mlflow_relabel_audit.rows import Rows

MAX_ROUNDS = 100
MAX_REFITS = 40
GRAM_LIMIT = 512
BUFFER_BYTES = 2**27


@dataclass(frozen=True)
class RemovalSet:
    """The rows whose removal is found to flip one prediction.

    Attributes
    ----------
    found : bool
        whether a set was found: predicted to flip, or with ``search=True`` proved to.
    k : int
        rows in it, 0 where none was found.
    index : ndarray of shape (k,)
        the training rows, the one that moves the margin furthest first.
    influence : ndarray of shape (k,)
        estimated move of the margin by each, signed; they sum to ``margin_after - margin`` up to rounding.
    margin : float
        margin of the fitted model.
    margin_after : float
        estimated margin without the rows; NaN where no set was found.
    verified : bool or None
        whether the model refitted without the rows predicts the other class; None where no refit was asked
        for, or its sign could not be proved.
    margin_verified : float
        margin of that refit, within 1e-6 (relative to its size above 1); NaN without one.
    """

    found: bool
    k: int
    index: IntArray = field(repr=False)
    influence: FloatArray = field(repr=False)
    margin: float
    margin_after: float
    verified: bool | None
    margin_verified: float


@dataclass
class _Candidate:
    """One prediction's order of removal, and how far its first k rows are estimated to move the margin."""

    margin: float
    index: IntArray
    total: FloatArray
    k: int
    verified: bool | None = None
    margin_verified: float = float("nan")

    def result(self) -> RemovalSet:
        toward = -1.0 if self.margin > 0 else 1.0
        after = self.margin + toward * self.total[self.k - 1] if self.k else np.nan
        influence = toward * np.diff(self.total[: self.k], prepend=0.0)
        return RemovalSet(
            self.k > 0, self.k, self.index[: self.k], influence, self.margin, float(after), self.verified,
            self.margin_verified,
        )  # fmt: skip


def removal_sets(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    evaluation: Rows,
    *,
    algorithm: int = 1,
    max_size: int | None = None,
    verify: bool = True,
    search: bool = False,
    scale: str = "probability",
) -> list[RemovalSet]:
    """Find, for every evaluation row, training rows whose removal flips its prediction.

    Parameters
    ----------
    problem, rows, point
        the fitted model, its n training rows and its minimiser.
    evaluation : Rows
        T evaluation rows; their labels and weights are not used.
    algorithm : {1, 2}
        first-order effects at the fitted model, or estimated again with the Hessian of the rows that stay.
    max_size : int, optional
        the largest set considered; by default all rows that move the margin toward the flip. A set never
        takes the last rows of a class.
    verify : bool
        refit without the set.
    search : bool
        instead of the published set return a prefix of its order that flips the refitted model and whose next
        smaller one does not (or leaves the margin within 2e-6 of zero), found by refits; beyond the published
        set the order goes on with Algorithm 1's.
    scale : {"probability", "margin"}
        in what effects are summed. In probability, as published, a saturated sigmoid overstates the set or
        finds none; in the margin it does not.

    Returns
    -------
    list of RemovalSet
        one per evaluation row.

    Raises
    ------
    RequestError
        An option is not among its values.
    UnsupportedModelError
        More than two classes; algorithm 2 for ``class_weight="balanced"``: every removal then changes every row's
        weight, which is no low-rank change of the Hessian. Algorithm 1 and the refits take the changed weights exactly.
    """
    if problem.outputs > 1:
        raise UnsupportedModelError(
            f"removal: got a model of {len(problem.classes)} classes, but the published algorithms are defined by the "
            "one margin of two; ask which labels to change instead (robustness, contest)"
        )
    if algorithm not in (1, 2):
        raise RequestError(f"removal: got algorithm={algorithm!r}; pass 1 or 2")
    if scale not in ("probability", "margin"):
        raise RequestError(f"removal: got scale={scale!r}; pass 'probability' or 'margin'")
    if max_size is not None and max_size < 1:
        raise RequestError(f"removal: got max_size={max_size!r}; pass a positive number of rows, or None")
    if algorithm == 2 and problem.class_weight.balanced:
        raise UnsupportedModelError(
            "removal: got algorithm=2 and class_weight='balanced', where a removal changes all weights; "
            "pass algorithm=1, or refit with the class weights as a dict"
        )
    found: list[RemovalSet] = []
    width = int(np.clip(BUFFER_BYTES // (64 * max(rows.n, 1)), 1, 64))
    for start in range(0, evaluation.n, width):
        targets = evaluation.columns(np.arange(start, min(start + width, evaluation.n)))
        candidates = _estimate(problem, rows, point, targets, algorithm, max_size, scale)
        if search:
            _search(problem, rows, point, targets, candidates)
        elif verify:
            _check(problem, rows, point, targets, candidates)
        found += [candidate.result() for candidate in candidates]
    return found


def removal_frame(
    sets: Sequence[RemovalSet], problem: Problem, *, row_ids: Any = None, train_ids: Any = None
) -> pd.DataFrame:
    """Tabulate removal sets, one row per prediction.

    Columns: row_id, predicted (label), margin, k (Int64, missing where none was found), found, flipped
    (boolean, missing where not refitted or not proved), margin_after (estimate), margin_verified, train_ids
    (list of the removed rows' ids). ``row_ids`` and ``train_ids`` default to positions.
    """
    margin = np.array([one.margin for one in sets], dtype=np.float64)
    ids = np.arange(len(sets)) if row_ids is None else np.asarray(row_ids)
    if len(ids) != len(sets):
        raise RequestError(f"removal: got {len(ids)} row ids for {len(sets)} rows; pass one per row")
    names = None if train_ids is None else np.asarray(train_ids)
    predicted = pd.Series([problem.classes[int(m > 0)] for m in margin], dtype=object).infer_objects()
    frame: pd.DataFrame = pd.DataFrame(
        {
            "row_id": ids,
            "predicted": predicted,
            "margin": margin,
            "k": pd.array([one.k if one.found else None for one in sets], dtype="Int64"),
            "found": np.array([one.found for one in sets], dtype=bool),
            "flipped": pd.array([one.verified for one in sets], dtype="boolean"),
            "margin_after": np.array([one.margin_after for one in sets], dtype=np.float64),
            "margin_verified": np.array([one.margin_verified for one in sets], dtype=np.float64),
            "train_ids": pd.Series(
                [(one.index if names is None else names[one.index]).tolist() for one in sets], dtype=object
            ),
        }
    )
    return frame


def _estimate(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    targets: FloatArray,
    algorithm: int,
    max_size: int | None,
    scale: str,
) -> list[_Candidate]:
    """Algorithm 1, or 1 and 2, for a block of evaluation rows of shape (p, B)."""
    margins = point.theta @ targets - problem.cut
    responses = rows.margins(point.curvature.solve(targets))
    goals = np.abs(margins)
    if scale == "probability":
        probability = sigmoid(margins + problem.cut)
        slope = np.maximum(probability * (1.0 - probability), 1e-300)
        goals = np.abs(probability - problem.threshold) / slope
    out = []
    for t, margin in enumerate(margins):
        toward = -1.0 if margin > 0 else 1.0
        order, total = _order(problem, rows, point, responses[:, t], toward, max_size)
        k = _crossing(total, goals[t])
        candidate = _Candidate(float(margin), order, total, k)
        if algorithm == 2 and k:
            candidate = _shrink(problem, rows, point, targets[:, t], responses[:, t], candidate, goals[t])
        out.append(candidate)
    return out


def _order(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    response: FloatArray,
    toward: float,
    max_size: int | None,
) -> tuple[IntArray, FloatArray]:
    """Rows that move the margin toward the flip, furthest first, and the moves of the order's prefixes."""
    moves = toward * removal_moves(problem, rows, point, response)
    order = np.flatnonzero(moves > 0)
    order = order[np.argsort(-moves[order], kind="stable")]
    counts = class_counts(rows)
    base, y = rows.base_weight[order], rows.y[order]
    side = np.stack([1.0 - y, y])
    left = counts[:, None] - np.cumsum(base * side, axis=1)
    emptied = np.flatnonzero(np.any(left <= 1e-12 * counts[:, None], axis=0))
    stop = len(order) if not len(emptied) else int(emptied[0])
    stop = stop if max_size is None else min(stop, max_size)
    order = order[:stop]
    pulls = rows.base_weight * (point.probability - rows.y) * response
    sums = np.array([pulls[rows.y < 0.5].sum(), pulls[rows.y > 0.5].sum()])
    gone = np.cumsum(pulls[order] * side[:, :stop], axis=1)
    return order, toward * combined_moves(problem, counts, left[:, :stop], sums, gone)


def _crossing(total: FloatArray, goal: float) -> int:
    """Rows of the shortest prefix whose move passes the goal, 0 where none does."""
    past = total > goal
    return int(np.argmax(past)) + 1 if past.any() else 0


def _shrink(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    x: FloatArray,
    response: FloatArray,
    first: _Candidate,
    goal: float,
) -> _Candidate:
    """Algorithm 2: estimate again without the set, keep the shortest prefix that still flips, repeat.

    As in the published code, only rows of the present set are ranked, and a round that saves at most one row
    is the last.
    """
    toward = -1.0 if first.margin > 0 else 1.0
    order, total, k = first.index, first.total, first.k
    kept = np.arange(k)
    gram = _set_gram(rows, point, order[:k]) if k <= max(rows.p, GRAM_LIMIT) else None
    for _ in range(MAX_ROUNDS):
        chosen = order[kept]
        try:
            without = _response_without(problem, rows, point, x, response, chosen, gram, kept)
        except (LinAlgError, SingularHessianError):
            break
        moves = toward * (point.weight * (point.probability - rows.y))[chosen] * without
        ranked = np.argsort(-moves, kind="stable")
        cumulative = np.cumsum(moves[ranked])
        smaller = _crossing(cumulative, goal)
        if not smaller:
            break
        saved = len(kept) - smaller
        kept = kept[ranked[:smaller]]
        k, total = smaller, cumulative[:smaller]
        if saved <= 1:
            break
    if total is first.total:
        return first
    # beyond the set, Algorithm 1's order goes on with its own first-order moves
    rest = np.setdiff1d(np.arange(len(order)), kept)
    alone = np.diff(first.total, prepend=0.0)
    index = np.concatenate([order[kept], order[rest]])
    return _Candidate(first.margin, index, np.concatenate([total, total[-1] + np.cumsum(alone[rest])]), k)


def _set_gram(rows: Rows, point: StationaryPoint, index: IntArray) -> FloatArray:
    """``X_S H^-1 X_S'``, shape (k, k), by solves with 256 of its rows at a time."""
    part = rows.take(index)
    out = np.empty((len(index), len(index)))
    for start in range(0, len(index), 256):
        some = part[start : start + 256]
        columns = np.ascontiguousarray((some.toarray() if rows.sparse else some).T)
        out[:, start : start + 256] = part @ point.curvature.solve(columns)
    return out


def _response_without(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    x: FloatArray,
    response: FloatArray,
    chosen: IntArray,
    gram: FloatArray | None,
    kept: IntArray,
) -> FloatArray:
    """``X_S H_S^-1 x``, shape (k,); by a small system, or where the set outgrows p by factoring H_S."""
    if gram is not None:
        system = np.eye(len(kept)) - gram[np.ix_(kept, kept)] * point.diagonal[chosen]
        return np.asarray(lu_solve(lu_factor(system), response[chosen]))
    diagonal = point.diagonal.copy()
    diagonal[chosen] = 0.0
    direction = factor(rows, diagonal, problem.penalty, point.curvature.kind).solve(x)
    return np.asarray(rows.take(chosen) @ direction).ravel()


def _check(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    targets: FloatArray,
    candidates: list[_Candidate],
    start: FloatArray | None = None,
) -> None:
    """Refit without the sets that were found."""
    asked = [t for t, candidate in enumerate(candidates) if candidate.k]
    sets = [candidates[t].index[: candidates[t].k] for t in asked]
    start = None if start is None else start[:, asked]
    refit = refit_without(problem, rows, point, sets, targets[:, asked], start=start)
    for column, t in enumerate(asked):
        margin, error = float(refit.margin[column]), float(refit.error[column])
        candidates[t].margin_verified = margin
        flipped = (margin > 0) != (candidates[t].margin > 0)
        candidates[t].verified = flipped if abs(margin) > error else None


def _search(
    problem: Problem, rows: Rows, point: StationaryPoint, targets: FloatArray, candidates: list[_Candidate]
) -> None:
    """Find for each candidate a k that flips the refit and whose k - 1 does not.

    The next k is where the estimated moves, scaled by what the last refit moved, reach the threshold; after a
    few of those the bracket is halved. A refit on the threshold, to the accuracy of refits, is taken as no
    flip; one that proves nothing (its rows may be separable) closes the bracket from above without being one.
    """
    brackets = [_Bracket(one) for one in candidates]
    theta = np.repeat(point.theta[:, None], len(candidates), axis=1)
    for attempt in range(MAX_REFITS):
        active = [t for t, bracket in enumerate(brackets) if bracket.open]
        if not active:
            break
        sets = [candidates[t].index[: brackets[t].trial] for t in active]
        refit = refit_without(problem, rows, point, sets, targets[:, active], start=theta[:, active], sign_only=True)
        proved = np.abs(refit.margin) > refit.error
        theta[:, active] = np.where(proved, refit.theta, point.theta[:, None])
        for column, t in enumerate(active):
            margin, error = float(refit.margin[column]), float(refit.error[column])
            brackets[t].narrow(margin, error, halve=attempt >= 4)
    for one, bracket in zip(candidates, brackets, strict=True):
        settled = bracket.flips and not bracket.open
        one.k = bracket.high if settled else 0
        one.verified = None if settled or bracket.doubtful or bracket.open else False
    _check(problem, rows, point, targets, candidates, start=theta)
    for one in candidates:
        if one.k and not one.verified:  # only at a margin of about 0, where the closer refit proves no sign
            one.k, one.verified, one.margin_verified = 0, None, float("nan")


class _Bracket:
    """The k between one that does not flip (``low``) and one that does, is doubtful, or is one too many."""

    def __init__(self, candidate: _Candidate) -> None:
        self.candidate = candidate
        self.low, self.high = 0, len(candidate.index) + 1
        self.flips = self.doubtful = False
        self.trial = candidate.k or _crossing(candidate.total, abs(candidate.margin)) or len(candidate.index)

    @property
    def open(self) -> bool:
        return self.high - self.low > 1

    def narrow(self, margin: float, error: float, *, halve: bool) -> None:
        """Take in the refit at the trial k and aim the next one."""
        start, total = self.candidate.margin, self.candidate.total
        proved = abs(margin) > error
        if (proved and (margin > 0) == (start > 0)) or (not proved and error <= 2.0 * ACCURACY):
            self.low = self.trial
        else:
            self.high, self.flips, self.doubtful = self.trial, proved, not proved
        gained = abs(margin - start) if (margin - start) * start < 0 else 0.0
        ratio = gained / max(float(total[self.trial - 1]), 1e-300) if proved else 0.0
        aim = 0 if halve or ratio == 0 else _crossing(total, abs(start) / ratio)
        aim = aim or (self.low + self.high) // 2
        self.trial = int(np.clip(aim, self.low + 1, max(self.high - 1, self.low + 1)))
