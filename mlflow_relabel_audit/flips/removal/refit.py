"""The model without some of its training rows, minimised exactly for a block of predictions at once.

Preconditioned nonlinear conjugate gradients (Polak-Ribiere, restarted where the direction is no descent) with
the cached factor of H as the preconditioner: an iteration is two products with the training rows, whatever
the sets are. The line search needs none: margins along it are ``z + a X d``.

The margin found carries a proved error. With g the gradient and M the Hessian at the last iterate, lambda =
``||g||_{M^-1}`` and rho the largest ``||x_i||_{M^-1}``: the third derivative of the logistic loss is at most
its second, so a step e away the Hessian is at least ``exp(-rho ||e||_M) M``. Integrated along the way to the
minimiser, ``lambda >= (1 - exp(-rho ||e||_M)) / rho``; hence ``||e||_M <= -log(1 - rho lambda) / rho``, and
the margin of x is off by at most ``||x||_{M^-1}`` times that. Where M is bounded by the penalty from below
this costs one product; where that is too loose, or the iteration stalls, Newton steps factor M.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mlflow_relabel_audit.curvature import StationaryPoint, factor
from mlflow_relabel_audit.curvature.stationary import objective
from mlflow_relabel_audit.errors import SingularHessianError
from mlflow_relabel_audit.likelihood import sigmoid
from mlflow_relabel_audit.problem import FloatArray, IntArray, Problem
from mlflow_relabel_audit.rows import Rows

ACCURACY = 1e-6
MAX_ITERATIONS = 400
PATIENCE = 40
GIVE_UP = 1e-5
NEWTON_STEPS = 60
ROUNDING = 1e-10
"""What is added to a proved error for the rounding of the margin itself."""
LINE_STEPS = 30
MAX_WIDTH = 32
BUFFER_BYTES = 2**27


@dataclass(frozen=True)
class RemovalRefit:
    """Models refitted without sets of rows, one column per set.

    Attributes
    ----------
    theta : ndarray of shape (p, B)
    margin : ndarray of shape (B,)
        margin of each evaluation row under its model, NaN where none can be fitted.
    error : ndarray of shape (B,)
        proved bound of the margin's distance from the exact minimiser's, at most 1e-6 (relative to the margin
        above 1) where the iteration got that far; infinite where nothing is proved.
    products : int
        products with the training rows, counted per set.
    """

    theta: FloatArray = field(repr=False)
    margin: FloatArray
    error: FloatArray
    products: int


def refit_without(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    sets: Sequence[IntArray],
    targets: FloatArray,
    *,
    start: FloatArray | None = None,
    sign_only: bool = False,
) -> RemovalRefit:
    """Minimise the training objective without each set of rows.

    Parameters
    ----------
    problem, rows, point
        the fitted model, its n training rows and its minimiser.
    sets : sequence of B int arrays
        positions of the rows left out; balanced class weights are those of the rows that stay.
    targets : ndarray of shape (p, B)
        the evaluation row whose margin is asked for with each set.
    start : ndarray of shape (p, B), optional
        where to start; by default the fitted model.
    sign_only : bool
        stop as soon as the margin is proved within a quarter of its size.
    """
    theta = np.repeat(point.theta[:, None], len(sets), axis=1) if start is None else start.copy()
    margin, error, products = np.full(len(sets), np.nan), np.full(len(sets), np.inf), 0
    width = int(np.clip(BUFFER_BYTES // (48 * max(rows.n, 1)), 1, MAX_WIDTH))
    largest = float(np.sqrt(_feature_squares(rows).max(initial=0.0)))
    for first in range(0, len(sets), width):
        block = slice(first, min(first + width, len(sets)))
        job = _Leftover(problem, rows, point, sets[block], largest, 0.25 if sign_only else 0.0)
        theta[:, block], margin[block], error[block] = job.minimise(theta[:, block], targets[:, block])
        products += job.products
    return RemovalRefit(theta, margin - problem.cut, error, products)


def _feature_squares(rows: Rows) -> FloatArray:
    return rows.square_norms() - 1.0 if rows.intercept else rows.square_norms()


class _Leftover:
    """The objectives of a block of B models, each without its own rows."""

    def __init__(
        self,
        problem: Problem,
        rows: Rows,
        point: StationaryPoint,
        sets: Sequence[IntArray],
        largest: float,
        slack: float,
    ) -> None:
        self.problem, self.rows, self.point, self.sets = problem, rows, point, sets
        self.largest, self.slack = largest, slack
        self.products = 0
        counts = np.array([rows.base_weight @ (1.0 - rows.y), rows.base_weight @ rows.y])
        self.left = np.empty((2, len(sets)))
        for column, index in enumerate(sets):
            base, y = rows.base_weight[index], rows.y[index]
            self.left[:, column] = counts - [base @ (1.0 - y), base @ y]
        self.fittable = np.all(self.left > 1e-12 * counts[:, None], axis=0)

    def weigh(self, values: FloatArray, columns: IntArray) -> FloatArray:
        """Multiply (n, b) values by every row's weight in each column's model, in place."""
        if self.problem.class_weight.balanced:
            left = self.left[:, columns]
            by_class = left.sum(axis=0) / (2.0 * left)
            values *= np.where(self.rows.y[:, None] > 0.5, by_class[1], by_class[0])
            values *= self.rows.base_weight[:, None]
        else:
            values *= self.point.weight[:, None]
        for position, column in enumerate(columns):
            values[self.sets[column], position] = 0.0
        return values

    def gradient(self, theta: FloatArray, z: FloatArray, columns: IntArray) -> FloatArray:
        residual = sigmoid(z)
        residual -= self.rows.y[:, None]
        self.products += len(columns)
        return self.rows.pull(self.weigh(residual, columns)) + self.problem.penalty[:, None] * theta

    def minimise(self, theta: FloatArray, targets: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Models (p, B), linear scores of the targets (B,) and their proved errors (B,)."""
        count = theta.shape[1]
        out, error = theta.copy(), np.full(count, np.inf)
        columns = np.flatnonzero(self.fittable)
        curvature = self.point.curvature
        theta = theta[:, columns]
        size = np.sqrt(np.einsum("pb,pb->b", targets, curvature.solve(targets)))[columns]
        z = self.rows.margins(theta)
        self.products += len(columns)
        gradient = self.gradient(theta, z, columns)
        conditioned = curvature.solve(gradient)
        rho = np.einsum("pb,pb->b", gradient, conditioned)
        direction = -conditioned
        check = np.full(len(columns), np.inf)  # the decrement below which a proof is tried (again)
        best, since = rho.copy(), np.zeros(len(columns), dtype=int)
        for _ in range(MAX_ITERATIONS):
            if not len(columns):
                break
            score = np.einsum("pb,pb->b", targets[:, columns], theta)
            wanted = np.abs(score - self.problem.cut)
            wanted = np.maximum(ACCURACY * np.maximum(1.0, wanted), self.slack * wanted)
            root = np.sqrt(np.maximum(rho, 0.0))
            # a proof by the penalty alone is cheap but loose, so the iteration goes on to give it room;
            # Newton steps, each with a factor of its own, are for where that leads nowhere
            done = (since > PATIENCE) | (root * size <= GIVE_UP * wanted)
            due = (root * size <= 0.3 * wanted) & (root <= check)
            for position in np.flatnonzero(due & ~done):
                column = int(columns[position])
                diagonal = self.curvature_weights(z[:, position], column)
                error[column] = _travel(*self._norms(diagonal, gradient[:, position], targets[:, column]))
                done[position] = error[column] <= wanted[position]
            for position in np.flatnonzero(done & (error[columns] > wanted)):
                column = int(columns[position])
                theta[:, position], error[column] = self.newton(theta[:, position], column, targets[:, column])
            check[due] = 0.2 * root[due]
            if done.any():
                out[:, columns[done]] = theta[:, done]
                keep = ~done
                columns, size, check, best, since = (
                    columns[keep],
                    size[keep],
                    check[keep],
                    best[keep],
                    since[keep],
                )
                theta, z, gradient, rho = theta[:, keep], z[:, keep], gradient[:, keep], rho[keep]
                conditioned, direction = conditioned[:, keep], direction[:, keep]
                if not len(columns):
                    break
            slope = np.einsum("pb,pb->b", gradient, direction)
            uphill = slope >= -1e-12 * rho
            direction[:, uphill] = -conditioned[:, uphill]
            slope[uphill] = -rho[uphill]
            along = self.rows.margins(direction)
            self.products += len(columns)
            step = self.line_search(theta, direction, z, along, slope, columns)
            theta += step * direction
            z += step * along
            before, previous = gradient, rho
            gradient = self.gradient(theta, z, columns)
            conditioned = curvature.solve(gradient)
            rho = np.einsum("pb,pb->b", gradient, conditioned)
            beta = (rho - np.einsum("pb,pb->b", before, conditioned)) / np.maximum(previous, 1e-300)
            direction = -conditioned + np.maximum(beta, 0.0) * direction
            better = rho < 0.25 * best
            best, since = np.where(better, rho, best), np.where(better, 0, since + 1)
        out[:, columns] = theta
        scores = np.einsum("pb,pb->b", targets, out)
        scores[~self.fittable] = np.nan
        return out, scores, error

    def line_search(
        self,
        theta: FloatArray,
        direction: FloatArray,
        z: FloatArray,
        along: FloatArray,
        slope: FloatArray,
        columns: IntArray,
    ) -> FloatArray:
        """Step lengths (b,) where the slope has fallen to a tenth: Newton's, in a bracket of the zero."""
        penalty = self.problem.penalty[:, None]
        fixed = np.einsum("pb,pb->b", penalty * theta, direction)
        square = np.einsum("pb,pb->b", penalty * direction, direction)
        step, low, high = np.zeros(len(columns)), np.zeros(len(columns)), np.full(len(columns), np.inf)
        weighted = self.weigh(along.copy(), columns)
        squared = weighted * along
        for _ in range(LINE_STEPS):
            probability = sigmoid(z + step * along)
            bend = np.einsum("nb,nb->b", squared, probability * (1.0 - probability)) + square
            probability -= self.rows.y[:, None]
            here = np.einsum("nb,nb->b", weighted, probability) + fixed + step * square
            settled = (np.abs(here) <= 0.1 * np.abs(slope)) & (step > 0)
            if settled.all():
                break
            low = np.where(here < 0, step, low)
            high = np.where(here > 0, step, high)
            newton = step - here / np.maximum(bend, 1e-300)
            inside = (newton > low) & (newton < high)
            halved = np.where(np.isfinite(high), 0.5 * (low + high), 2.0 * low + 1.0)
            step = np.where(settled, step, np.where(inside, newton, halved))
        return step

    def curvature_weights(self, z: FloatArray, column: int) -> FloatArray:
        """Weights d of one column's Hessian, shape (n,)."""
        probability = sigmoid(z)
        return self.weigh((probability * (1.0 - probability))[:, None], np.array([column]))[:, 0]

    def newton(self, theta: FloatArray, column: int, x: FloatArray) -> tuple[FloatArray, float]:
        """Minimise one column by damped Newton steps; the coefficients and the margin's proved error."""
        only = np.array([column])
        weight = self.weigh(np.ones((self.rows.n, 1)), only)[:, 0]
        best, least = theta, np.inf
        for _ in range(NEWTON_STEPS):
            z = self.rows.margins(theta)
            gradient = self.gradient(theta[:, None], z[:, None], only)[:, 0]
            try:
                here = factor(
                    self.rows,
                    self.curvature_weights(z, column),
                    self.problem.penalty,
                    self.point.curvature.kind,
                )
                reach = float(here.row_norms(self.rows).max(initial=0.0))
                solved = here.solve(np.stack([gradient, x], axis=1))
            except SingularHessianError:
                break
            decrement = _root(float(gradient @ solved[:, 0]))
            error = _travel(decrement, reach, _root(float(x @ solved[:, 1])))
            if error < least or not np.isfinite(least):
                best, least = theta, error
            margin = abs(float(x @ theta) - self.problem.cut)
            if error <= max(ACCURACY * max(1.0, margin), self.slack * margin) or decrement == 0.0:
                break
            value, step = objective(self.problem, self.rows, weight, theta, z), 1.0
            along = self.rows.margins(solved[:, 0])
            self.products += 2
            while step > 1e-8:
                trial = theta - step * solved[:, 0]
                fallen = value - objective(self.problem, self.rows, weight, trial, z - step * along)
                if fallen >= 1e-4 * step * decrement**2 - 1e-13 * abs(value):
                    break
                step *= 0.5
            theta = trial
        return best, least

    def _norms(self, diagonal: FloatArray, gradient: FloatArray, x: FloatArray) -> tuple[float, float, float]:
        """Bound the M^-1 norms of the gradient, of the longest row and of x, by the penalty alone.

        With every column penalised ``M >= R``. With a free intercept, centring the features by their weighted
        mean m splits M into ``sum(d)`` and at least ``R``:
        ``||(v, b)||^2 <= b^2 / sum(d) + ||v - b m||^2 / min R``.
        """
        penalty = self.problem.penalty
        inner = penalty[:-1] if self.rows.intercept else penalty
        least = float(inner.min(initial=np.inf))
        if least <= 0:
            return np.inf, np.inf, np.inf
        if not self.rows.intercept or penalty[-1] > 0:
            reach = self.largest**2 / least + (1.0 / float(penalty[-1]) if self.rows.intercept else 0.0)
            return _length(gradient / np.sqrt(penalty)), float(np.sqrt(reach)), _length(x / np.sqrt(penalty))
        total = float(diagonal.sum())
        if total <= 0:
            return np.inf, np.inf, np.inf
        self.products += 1
        mean = self.rows.pull(diagonal)[:-1] / total

        def norm(vector: FloatArray) -> float:
            return float(np.sqrt(vector[-1] ** 2 / total + _length(vector[:-1] - vector[-1] * mean) ** 2 / least))

        reach = 1.0 / total + (self.largest + _length(mean)) ** 2 / least
        return norm(gradient), float(np.sqrt(reach)), norm(x)


def _travel(decrement: float, reach: float, size: float) -> float:
    """Bound the margin's way to the minimiser from the M^-1 norms of gradient, longest row and x."""
    product = decrement * reach
    if not product < 1.0:
        return float("inf")
    return float(size * -np.log1p(-product) / max(reach, 1e-300)) + ROUNDING


def _length(vector: FloatArray) -> float:
    return _root(float(vector @ vector))


def _root(square: float) -> float:
    return float(np.sqrt(max(square, 0.0)))
