"""Out-of-fold margins of the training rows, and the refits they take, all folds of a deal at once.

A fold is left out by giving its rows weight 0: the rows themselves are never copied or split. All refits of a
deal run together by nonlinear conjugate gradients (Polak-Ribiere+), preconditioned by one factor of the full
Hessian, which every fold shares to within a fifth; an iteration is two products with the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint, factor
from mlflow_relabel_audit.errors import RelabelAuditError
from mlflow_relabel_audit.likelihood import TWO_CLASSES, Likelihood
from mlflow_relabel_audit.problem import FloatArray, IntArray, Problem
from mlflow_relabel_audit.rows import Rows

FOLDS = 5
MIN_CLASS_ROWS = 2 * FOLDS
"""Rows of a class below which folds cannot judge it."""
LADDER = tuple(10.0 ** (step / 2.0) for step in range(-6, 5))
"""Multiples of the model's C that may be tried: factors of sqrt(10), from 1/1000 to 100."""
RIDGE_LADDER = tuple(10.0**step for step in range(-1, 5))
"""For a model without a penalty: each column's own curvature over the ridge that is put on it."""
FACTOR_ITERATIONS = 1500.0
"""Products with the rows that a factor saves over a diagonal preconditioner, over the refits of one C."""
SPARSE_FLOP = 10.0
MAX_FACTOR_BYTES = 2**30
MAX_ITERATIONS = 300
SECONDS_WORK = 2e11
"""Multiply-adds (about a minute of one core) above which one deal of the folds replaces five."""

Preconditioner = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class FoldOut:
    """What models that did not see a row say of it.

    Attributes
    ----------
    margin : ndarray of shape (n M,)
        x_i . theta of the fold models that left row i out, averaged over the deals; M outputs side by side.
    theta : ndarray of shape (p,)
        mean of all fold models: its margins stand for evaluation rows, which no fold has seen.
    multiplier : float
        the C of the fold models over the model's own (for a model without a penalty: the columns' own
        curvature over the ridge that was put on).
    losses : dict of float to float
        out-of-fold log-loss per row of each multiplier that was tried.
    deals : int
        how many times the rows were dealt into folds.
    """

    margin: FloatArray = field(repr=False)
    theta: FloatArray = field(repr=False)
    multiplier: float
    losses: dict[float, float]
    deals: int


def class_weights(problem: Problem, rows: Rows, labels: FloatArray, base: FloatArray) -> FloatArray:
    """Weights s_i per column, shape (n M, B), for labels (n, B) or (n, 1) and base weights (n, B)."""
    total = base.sum(axis=0)
    if problem.outputs > 1:
        return _class_weights_of_outputs(problem, labels, base)
    positive = (base * labels).sum(axis=0)
    if problem.class_weight.balanced:
        pairs = np.stack([problem.class_weight.at(a, float(t)) for a, t in zip(positive, total, strict=True)], axis=1)
        pairs[~np.isfinite(pairs)] = 0.0
    else:
        pairs = np.asarray(problem.class_weight.at(positive, 1.0))
    return np.asarray(base * np.where(labels > 0.5, pairs[1], pairs[0]))


def _class_weights_of_outputs(problem: Problem, labels: FloatArray, base: FloatArray) -> FloatArray:
    likelihood, columns = problem.likelihood, []
    labels = np.broadcast_to(labels, base.shape)
    for column in range(base.shape[1]):
        mass, y = base[:, column], labels[:, column]
        by_class = likelihood.class_weights(problem.class_weight, likelihood.counts(mass, y), float(mass.sum()))
        by_class = np.where(np.isfinite(by_class), by_class, 0.0)  # of a class that no row has
        columns.append(likelihood.weights(mass, by_class[..., None], y)[:, 0])
    return np.stack(columns, axis=1)


def preconditioner(
    rows: Rows, diagonal: FloatArray, penalty: FloatArray, *, coupled: bool = False
) -> tuple[Preconditioner, bool]:
    """Solve with the Hessian's factor where that pays, with its diagonal elsewhere; True for the factor.

    Sparse text has cheap products and a dear factor, a dense table the reverse.
    """
    outputs = float(rows.outputs)
    n, p = float(rows.n), float(rows.p if coupled else rows.coordinates)
    touch = rows.nnz * (SPARSE_FLOP if rows.sparse else 1.0)
    pairs, factors = (outputs * (outputs + 1.0) / 2.0, 1.0) if coupled else (outputs, outputs)
    primal = pairs * touch * rows.nnz / max(n, 1.0) + factors * p**3 / 3.0
    dual = outputs * (touch * n + n**3 / 3.0)
    if coupled or not (penalty[: rows.features_in] > 0).all():
        dual = np.inf
    if outputs > 1 and 8.0 * factors * p * p > MAX_FACTOR_BYTES:
        primal = np.inf
    if min(primal, dual) <= FACTOR_ITERATIONS * outputs * touch:
        return factor(rows, diagonal, penalty, "primal" if primal <= dual else "dual", coupled=coupled).solve, True
    inverse = 1.0 / (column_curvature(rows, diagonal, coupled=coupled) + penalty)[:, None]
    return lambda right: np.asarray(inverse * right), False


def column_curvature(rows: Rows, diagonal: FloatArray, *, coupled: bool = False) -> FloatArray:
    """Diagonal of ``X' W X``, shape (p,), for curvature weights of shape (n M,)."""
    c = diagonal.reshape(rows.n, rows.outputs)
    if coupled:
        total = c.sum(axis=1, keepdims=True)
        c = c * (1.0 - np.divide(c, total, out=np.zeros_like(c), where=total > 0))
    single = rows.of_one_output()
    out = np.concatenate([single.column_squares(np.ascontiguousarray(c[:, m])) for m in range(rows.outputs)])
    tiny = np.finfo(np.float64).tiny
    return np.asarray(np.maximum(out, max(out.max(initial=0.0) * 1e-14, tiny)))


def refit(
    rows: Rows,
    labels: FloatArray,
    weight: FloatArray,
    penalty: FloatArray,
    start: FloatArray,
    precondition: Preconditioner,
    tolerance: float = 1e-3,
    likelihood: Likelihood = TWO_CLASSES,
) -> FloatArray:
    """Minimise B weighted logistic objectives on the same rows at once.

    Parameters
    ----------
    rows : Rows
        n rows of p coordinates; their own labels and weights are not used.
    labels : ndarray of shape (n M, B) or (n M, 1)
        0.0 or 1.0 for every output.
    weight : ndarray of shape (n M, B)
        s_i of each problem; 0 leaves a row out.
    penalty : ndarray of shape (p,)
        diagonal of R, shared.
    start : ndarray of shape (p, B)
    precondition : callable
        right sides (p, B) to an approximate H^-1 of them.
    tolerance : float
        a problem stops where the preconditioned norm of its gradient, about ``||grad||_{H^-1}``, is below
        this: its margins are then exact to ``tolerance * ||x||_{H^-1}``.
    likelihood : Separate or Coupled

    Returns
    -------
    ndarray of shape (p, B)
    """
    theta = np.array(start, dtype=np.float64)
    labels = np.broadcast_to(labels, weight.shape)
    ridge = penalty[:, None]
    active = np.arange(theta.shape[1])
    here, goal, mass = theta.copy(), labels, weight
    margin = rows.margins(here)
    gradient = rows.pull(mass * (likelihood.probability(margin) - goal)) + ridge * here
    steep = precondition(gradient)
    size = np.einsum("ij,ij->j", gradient, steep)
    direction = -steep
    for _ in range(MAX_ITERATIONS):
        going = size > tolerance**2
        if not going.all():
            theta[:, active[~going]] = here[:, ~going]
            active, size = active[going], size[going]
            if not active.size:
                return theta
            here, margin, gradient, steep, direction, goal, mass = (
                part[:, going] for part in (here, margin, gradient, steep, direction, goal, mass)
            )
        slope = np.einsum("ij,ij->j", gradient, direction)
        uphill = slope >= 0
        if uphill.any():
            direction[:, uphill] = -steep[:, uphill]
            slope[uphill] = -size[uphill]
        along = rows.margins(direction)
        length = _line_search(likelihood, margin, along, goal, mass, here, direction, ridge)
        here = here + length * direction
        margin = margin + length * along
        before, before_size = gradient, size
        gradient = rows.pull(mass * (likelihood.probability(margin) - goal)) + ridge * here
        steep = precondition(gradient)
        size = np.einsum("ij,ij->j", gradient, steep)
        mixing = np.maximum((size - np.einsum("ij,ij->j", before, steep)) / before_size, 0.0)
        direction = mixing * direction - steep
    theta[:, active] = here
    return theta


def _line_search(
    likelihood: Likelihood,
    margin: FloatArray,
    along: FloatArray,
    labels: FloatArray,
    weight: FloatArray,
    theta: FloatArray,
    direction: FloatArray,
    ridge: FloatArray,
) -> FloatArray:
    """Step lengths by three Newton steps on the convex objective along each direction, shape (B,)."""
    linear = np.einsum("ij,ij->j", ridge * theta, direction)
    square = np.einsum("ij,ij->j", ridge * direction, direction)
    length = np.zeros(margin.shape[1])
    along_square = along * along
    limit = np.full(margin.shape[1], np.inf)
    for step in range(3):
        probability = likelihood.probability(margin + length * along)
        pull = weight * (probability - labels)
        first = np.einsum("ij,ij->j", pull, along) + linear + length * square
        c = likelihood.curvature(probability, weight)
        bent, other = (likelihood.product(c, along), along) if likelihood.coupled else (c, along_square)
        curve = np.einsum("ij,ij->j", bent, other) + square
        move = -first / np.maximum(curve, np.finfo(np.float64).tiny)
        if step == 0:
            # sigma's curvature changes by at most e^|dz|: keep the first steps where the model can be trusted
            limit = np.maximum(4.0 / np.maximum(np.abs(along).max(axis=0), 1e-300), 1.0)
        length = np.clip(length + np.clip(move, -limit, limit), 0.0, None)
    return length


def deal_folds(rows: Rows, seed: int, folds: int = FOLDS) -> IntArray:
    """Fold of every row, shape (n,): stratified by label, and tied to the rows rather than to their order.

    The rows of a class are ranked along a random direction and dealt out in turn, so that shuffling the rows
    shuffles the folds with them, and duplicates of a row go to different folds.
    """
    rng = np.random.default_rng(seed)
    direction = np.append(rng.standard_normal(rows.features_in), np.zeros(int(rows.intercept)))
    place = rows.of_one_output().margins(direction)
    fold = np.empty(rows.n, dtype=np.int64)
    first = int(rng.integers(folds))
    for value in range(max(2, int(rows.y.max(initial=0.0)) + 1)):
        members = np.flatnonzero(rows.y == value)
        ordered = members[np.argsort(place[members], kind="stable")]
        fold[ordered] = (np.arange(len(ordered)) + first) % folds
        first += len(ordered)
    return fold


def fold_out(problem: Problem, rows: Rows, point: StationaryPoint, *, seed: int = 0, deals: int = 5) -> FoldOut:
    """Out-of-fold margins at the C, near the model's, that predicts held-out labels best.

    The ladder of C is walked from the model's own to both sides for as long as the log-loss falls; the other
    deals of the folds are made at the best C only. Where even that is much work (large sparse text), one deal
    has to do.

    Parameters
    ----------
    problem, rows, point
        the objective, the training rows and the minimiser.
    seed : int
        of the deals.
    deals : int
        how many times to deal the rows into five folds.
    """
    search = _Search(problem, rows, point, seed)
    search.walk()
    if rows.nnz * (SPARSE_FLOP if rows.sparse else 1.0) * 2.0 * FOLDS * 20.0 * deals * rows.outputs > SECONDS_WORK:
        deals = 1
    margin, theta = search.margins[search.best], search.thetas[search.best].mean(axis=1)
    for deal in range(1, deals):
        more = search.solve(search.best, deal_folds(rows, seed + deal), search.thetas[search.best])
        margin = margin + more[0]
        theta = theta + more[1].mean(axis=1)
    return FoldOut(margin / deals, theta / deals, search.best, dict(sorted(search.losses.items())), deals)


def reweighted(
    problem: Problem, rows: Rows, point: StationaryPoint, out: FoldOut, doubt: FloatArray, *, seed: int = 0
) -> FoldOut:
    """Fold-out margins once more, with each training row's weight times ``1 - doubt``.

    Parameters
    ----------
    doubt : ndarray of shape (n,)
        probability that the row's label is wrong, as the first round saw it.
    """
    search = _Search(problem, rows, point, seed, trust=np.clip(1.0 - doubt, 0.0, 1.0))
    start = np.repeat(out.theta[:, None], FOLDS, axis=1)
    margin, theta = np.zeros(rows.n * rows.outputs), np.zeros(rows.p)
    for deal in range(out.deals):
        more = search.solve(out.multiplier, deal_folds(rows, seed + deal), start)
        margin += more[0]
        theta += more[1].mean(axis=1)
    return FoldOut(margin / out.deals, theta / out.deals, out.multiplier, out.losses, out.deals)


class _Search:
    """Fold models along the ladder of C, each started from its neighbour."""

    def __init__(
        self, problem: Problem, rows: Rows, point: StationaryPoint, seed: int, trust: FloatArray | None = None
    ) -> None:
        self.problem, self.rows, self.point = problem, rows, point
        self.base = rows.base_weight if trust is None else rows.base_weight * trust
        self.free = not (problem.penalty[: rows.features_in] > 0).any()
        self.ladder = RIDGE_LADDER if self.free else LADDER
        self.fold = deal_folds(rows, seed)
        self.losses: dict[float, float] = {}
        self.margins: dict[float, FloatArray] = {}
        self.thetas: dict[float, FloatArray] = {}
        self.best = self.ladder[0]
        self._solvers: dict[float, Preconditioner] = {}
        if self.free:
            self._unit = column_curvature(rows, point.diagonal, coupled=problem.likelihood.coupled)

    def penalty(self, multiplier: float) -> FloatArray:
        """Diagonal of R at this multiple of C; the intercept's entry stays as the solver has it."""
        out = (self._unit if self.free else self.problem.penalty) / multiplier
        if self.rows.intercept:
            out[self.rows.coordinates - 1 :: self.rows.coordinates] = self.problem.penalty[
                self.rows.coordinates - 1 :: self.rows.coordinates
            ]
        return out

    def solve(self, multiplier: float, fold: IntArray, start: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Out-of-fold margins (n M,) and the fold models (p, folds) of one deal."""
        rows, penalty, likelihood = self.rows, self.penalty(multiplier), self.problem.likelihood
        kept = fold[:, None] != np.arange(FOLDS)
        weight = class_weights(self.problem, rows, rows.y[:, None], self.base[:, None] * kept)
        if multiplier not in self._solvers:
            probability = likelihood.probability(rows.margins(start.mean(axis=1)))
            diagonal = likelihood.curvature(probability, weight.mean(axis=1))
            self._solvers[multiplier], self._exact = preconditioner(rows, diagonal, penalty, coupled=likelihood.coupled)
        tolerance = 1e-3 if self._exact else 1e-4
        targets = likelihood.targets(rows.y)[:, None]
        theta = refit(rows, targets, weight, penalty, start, self._solvers[multiplier], tolerance, likelihood)
        own = np.repeat(fold, rows.outputs)[:, None]
        return np.take_along_axis(rows.margins(theta), own, axis=1)[:, 0], theta

    def attempt(self, index: int, start: FloatArray) -> float:
        """Log-loss out of fold at one rung."""
        multiplier = self.ladder[index]
        margin, theta = self.solve(multiplier, self.fold, start)
        self.margins[multiplier], self.thetas[multiplier] = margin, theta
        loss = self.problem.likelihood.loss(margin, self.rows.y)
        # class weights shift the margins; the log-loss is weighted alike so that it still picks C
        weight = self.point.weight
        self.losses[multiplier] = float(weight @ loss / (weight.sum() / self.rows.outputs))
        return self.losses[multiplier]

    def walk(self) -> None:
        """From the model's own C down the log-loss, first to smaller C, then to larger."""
        begin = len(self.ladder) - 1 if self.free else self.ladder.index(1.0)
        start = np.repeat(self.point.theta[:, None], FOLDS, axis=1)
        lowest, best = self.attempt(begin, start), begin
        for step in (-1, 1):
            at = begin
            while 0 <= at + step < len(self.ladder):
                at += step
                loss = self.attempt(at, self.thetas[self.ladder[at - step]])
                if not loss < lowest:
                    break
                lowest, best = loss, at
            if best != begin:
                break
        self.best = self.ladder[best]
        if not np.isfinite(lowest):
            raise RelabelAuditError(
                "out-of-fold margins: the log-loss is not finite; check the features for huge values"
            )
