"""Orders of the training rows by how much they are held to matter to one prediction.

The orders that Yang, Xu and Yu, "Relabeling Minimal Training Subset to Flip a Prediction" (2024, Figure 2),
compare, each turned so that its first row is the one it would relabel or remove first to flip the
prediction. With ``e_i = s_i (p_i - y_i)`` the loss gradient of training row i is ``e_i x_i``; with f the
probability of the evaluation row x, y its predicted class (or the label given) and ``u = H^-1 x``,

====================  ====================================================================================
``ip-relabel``        ``-(2 y_i - 1) s_i x_i.u``, toward the flip: the margin's move when row i is relabelled
``ip-remove``         ``e_i x_i.u``, toward the flip: its move when row i is removed (Yang, Jain and Wallace,
                      2023, Algorithm 1)
``influence``         ``(f - y) e_i x_i.u``: rise of the loss of (x, y) when row i is removed (Koh and Liang,
                      2017, equation 2)
``rif``               the same over ``||H^-1 e_i x_i||``: theta-relative influence (Barshan et al., 2020)
``gd``                ``(f - y) e_i x.x_i``, the gradients' dot product (Charpiat et al., 2019)
``gc``                the gradients' cosine (Charpiat et al., 2019)
``random``            a seeded permutation
====================  ====================================================================================

The published influences in probability are these times ``f (1 - f)``, one factor for all rows, so the orders
are the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.errors import RequestError, UnsupportedModelError
from mlflow_relabel_audit.flips.relabelling import RelabelEffect
from mlflow_relabel_audit.flips.removal.effect import removal_moves
from mlflow_relabel_audit.likelihood import sigmoid
from mlflow_relabel_audit.problem import FloatArray, IntArray, Problem
from mlflow_relabel_audit.rows import Rows

METHODS = ("ip-relabel", "ip-remove", "influence", "rif", "gd", "gc", "random")


class Ranking(NamedTuple):
    """An order of the training rows.

    Attributes
    ----------
    order : ndarray of shape (n,), int
        positions of the training rows, the most influential toward the flip first; equal ones by position.
    scores : ndarray of shape (n,), float64
        the score of every training row, in the rows' own order; larger is earlier.
    """

    order: IntArray
    scores: FloatArray


def rank(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    x: FloatArray,
    *,
    method: str = "ip-relabel",
    seed: int = 0,
    label: float | None = None,
    norms: FloatArray | None = None,
) -> Ranking:
    """Rank the training rows for one prediction.

    Parameters
    ----------
    problem, rows, point
        the fitted model, its n training rows and its minimiser.
    x : ndarray of shape (coordinates,)
        the evaluation row, the one appended where an intercept is fitted.
    method : str
        one of `METHODS`.
    seed : int
        of ``"random"``; the other methods do not draw.
    label : {0.0, 1.0}, optional
        the class whose loss ``influence``, ``rif``, ``gd`` and ``gc`` raise; by default the predicted one, so
        that the order points at the flip. The true label of a misclassified row points away from it.
    norms : ndarray of shape (n,), optional
        `direction_norms` of the rows, which ``rif`` needs and every prediction shares; computed where absent.

    Raises
    ------
    RequestError
        The method is not known, or x has another length.
    UnsupportedModelError
        More than two classes, and a method that is published for two.

    Notes
    -----
    Weights enter as they are at the present labels, class weights included, except in the ``ip-`` methods,
    where a change of the class counts changes the weights of ``class_weight="balanced"``. Of more than two classes
    ``ip-relabel`` ranks by the move of the predicted class's lead over the next in line, each row at the new label that
    moves it most.
    """
    if method not in METHODS:
        raise RequestError(f"ranking: got method {method!r}; pass one of {', '.join(METHODS)}")
    x = np.asarray(x, dtype=np.float64)
    if x.shape != (rows.coordinates,):
        raise RequestError(
            f"ranking: got an evaluation row of shape {x.shape} for a model of {rows.coordinates} coordinates; "
            "pass one transformed row, with a one at its end where an intercept is fitted"
        )
    if method == "random":
        order = np.random.default_rng(seed).permutation(rows.n)
        scores = np.empty(rows.n)
        scores[order] = np.arange(rows.n, 0, -1)
        return Ranking(order, scores)
    if problem.outputs > 1:
        return _several(problem, rows, point, x, method)
    margin = float(x @ point.theta)
    predicted = 1.0 if margin > problem.cut else 0.0
    toward = 1.0 - 2.0 * predicted
    if method == "ip-relabel":
        effect = RelabelEffect.at(problem, rows, point)
        u = point.curvature.solve(x)
        gradient = effect.coefficient * rows.margins(u) + effect.count * float(effect.shared @ u)
        return _ordered(-toward * gradient)
    if method == "ip-remove":
        response = rows.margins(point.curvature.solve(x))
        return _ordered(toward * removal_moves(problem, rows, point, response))
    slope = float(sigmoid(np.float64(margin))) - (predicted if label is None else float(label))
    error = point.weight * (point.probability - rows.y)
    if method in ("influence", "rif"):
        rise = slope * error * rows.margins(point.curvature.solve(x))
        if method == "influence":
            return _ordered(rise)
        norms = direction_norms(rows, point) if norms is None else norms
        return _ordered(_divide(rise, np.abs(error) * norms))
    products = slope * error * rows.margins(x)
    if method == "gd":
        return _ordered(products)
    lengths = abs(slope) * float(np.linalg.norm(x)) * np.abs(error) * np.sqrt(rows.square_norms())
    return _ordered(_divide(products, lengths))


def _for_two(method: str, classes: int) -> UnsupportedModelError:
    """What is said of a method that more than two classes have no place in."""
    return UnsupportedModelError(
        f"ranking: got method {method!r} for a model of {classes} classes, but it is defined for two; "
        "pass 'ip-relabel' or 'random'"
    )


def _several(problem: Problem, rows: Rows, point: StationaryPoint, x: FloatArray, method: str) -> Ranking:
    """``ip-relabel`` for more than two classes."""
    if method != "ip-relabel":
        raise _for_two(method, problem.outputs)
    scores = point.theta.reshape(problem.outputs, -1) @ x
    first, second = np.argsort(-scores, kind="stable")[:2]
    target = np.zeros((problem.outputs, len(x)))
    target[first], target[second] = -x, x
    effect, u = RelabelEffect.at(problem, rows, point), point.curvature.solve(target.reshape(-1, 1))
    response = rows.margins(u).reshape(1, rows.n, problem.outputs).transpose(0, 2, 1)
    return _ordered(effect.gain.best(effect.along(np.float64), response, effect.shift(u))[0])


def direction_norms(rows: Rows, point: StationaryPoint, length: int = 256) -> FloatArray:
    """``||H^-1 x_i||`` of every training row, shape (n,), a block of rows at a time.

    Where the factor is p x p and p is below n, the inverse is formed once, and a sparse row touches only the
    few rows of it that it holds; otherwise blocks of rows are solved with.
    """
    if rows.outputs > 1:
        raise _for_two("rif", rows.outputs)
    solve = point.curvature.solve
    inverse = solve(np.eye(rows.p)) if point.curvature.kind == "primal" and rows.p < rows.n else None
    out = np.empty(rows.n)
    for start in range(0, rows.n, length):
        index = np.arange(start, min(start + length, rows.n))
        part = rows.take(index)
        if inverse is not None:
            solved = np.asarray(part @ inverse)
        else:
            solved = solve(np.ascontiguousarray((part.toarray() if rows.sparse else part).T)).T
        out[index] = np.sqrt(np.einsum("ij,ij->i", solved, solved))
    return out


def _ordered(scores: FloatArray) -> Ranking:
    return Ranking(np.argsort(-scores, kind="stable"), scores)


def _divide(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Quotient, 0 where the denominator is: a row without a gradient has no direction to compare."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
