"""The exact minimiser of the training objective, and how far the logged coefficients were from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from mlflow_relabel_audit.curvature.base import Curvature
from mlflow_relabel_audit.curvature.choose import choose_kind, factor
from mlflow_relabel_audit.errors import DataMismatchError, SingularHessianError
from mlflow_relabel_audit.problem import FloatArray, Problem
from mlflow_relabel_audit.rows import Rows

REFUSE_GAP = 1e-2  # a quarter of the rows missing leaves 1e-2 to 2e-2; converged fits stay below 1e-3
WARN_GAP = 1e-4
STATIONARY = 1e-18  # squared Newton decrement: margins are then exact to about 1e-9 times ||x||_{H^-1}
ROUNDED = 1e-10  # decrement below which a step that gains nothing is taken for rounding
MAX_STEPS = 100
EASY_CONDITION = 1e4
"""Of the preconditioned H: up to here conjugate gradients need some hundred products at most."""


@dataclass(frozen=True)
class Stationarity:
    """How nearly the logged coefficients minimise the training objective on these rows.

    Attributes
    ----------
    gap : float
        half the squared Newton decrement at the logged coefficients: the objective they leave on the table.
    relative_gap : float
        ``gap`` over the objective.
    residual : float
        ``||gradient||_{H^-1}`` after polishing.
    polished : bool
        whether the coefficients had to be moved.
    steps : int
        Newton-like steps taken.
    """

    gap: float
    relative_gap: float
    residual: float
    polished: bool
    steps: int


@dataclass(frozen=True)
class StationaryPoint:
    """The minimiser, the training rows' state there, and the curvature.

    Attributes
    ----------
    theta : ndarray of shape (p,)
    margin : ndarray of shape (n M,)
        z_i = x_i . theta_m of every row and output; with two classes, one per row.
    probability : ndarray of shape (n M,)
        of the class of each output.
    weight : ndarray of shape (n M,)
        s_i, class weights included.
    diagonal : ndarray of shape (n M,)
        curvature weights c: d_i = s_i sigma(z_i) sigma(-z_i) with two classes (see `likelihood`).
    curvature : Curvature
    stationarity : Stationarity
    outputs : int
        M.
    """

    theta: FloatArray
    margin: FloatArray = field(repr=False)
    probability: FloatArray = field(repr=False)
    weight: FloatArray = field(repr=False)
    diagonal: FloatArray = field(repr=False)
    curvature: Curvature = field(repr=False)
    stationarity: Stationarity
    outputs: int = 1


def row_weights(problem: Problem, rows: Rows) -> FloatArray:
    """Weights s_i with the class weights at the given labels, of every row and output, shape (n M,)."""
    likelihood = problem.likelihood
    counts = likelihood.counts(rows.base_weight, rows.y)
    by_class = likelihood.class_weights(problem.class_weight, counts, float(rows.base_weight.sum()))
    return likelihood.weights(rows.base_weight, by_class[..., None], rows.y)[:, 0]


def objective(problem: Problem, rows: Rows, weight: FloatArray, theta: FloatArray, margin: FloatArray) -> float:
    """F(theta), the sum of weighted log-losses plus half the penalty."""
    loss = problem.likelihood.loss(margin, rows.y)
    return float(weight @ loss + 0.5 * theta @ (problem.penalty * theta))


def find_stationary_point(
    problem: Problem,
    rows: Rows,
    *,
    kind: str | None = None,
    start: FloatArray | None = None,
    curvature: Curvature | None = None,
) -> StationaryPoint:
    """Polish the logged coefficients to the minimiser and factor the Hessian there.

    Parameters
    ----------
    problem, rows
        the objective; ``problem.theta`` is the logged point.
    kind : str, optional
        force the form of the curvature.
    start, curvature : optional
        a minimiser found before and its curvature (from storage); used as they are where the gradient there
        vanishes, else ignored.

    Raises
    ------
    DataMismatchError
        The gap at the logged coefficients is above 1e-2 of the objective: these are not the training rows.
    SingularHessianError
        The Hessian cannot be inverted (separable classes without a penalty, dependent columns).
    """
    weight = row_weights(problem, rows)
    logged = _State.at(problem, rows, weight, problem.theta)
    stored = None
    if start is not None and curvature is not None:
        candidate = _State.at(problem, rows, weight, start)
        if float(candidate.gradient @ curvature.solve(candidate.gradient)) <= 1e4 * STATIONARY:
            stored = candidate
    form = kind or choose_kind(rows, problem.penalty, coupled=problem.likelihood.coupled)
    here = curvature if stored is not None and curvature is not None else None
    if here is None:
        here = _for_steps(problem, rows, logged.diagonal, form)
    gap = 0.5 * float(logged.gradient @ here.solve(logged.gradient))
    relative = gap / max(logged.value, np.finfo(float).tiny)
    if not relative <= REFUSE_GAP:
        raise DataMismatchError(
            f"training data: on these rows the logged coefficients leave {relative:.2g} of the objective to gain "
            f"(at most {REFUSE_GAP:g} is accepted); pass the very rows, labels and weights the model was trained on, "
            "or refit with more iterations if the fit stopped early"
        )
    if stored is not None:
        state, steps = stored, 0
    else:
        state, here, steps = _minimise(problem, rows, weight, logged, here, form)
    residual = math.sqrt(max(float(state.gradient @ here.solve(state.gradient)), 0.0))
    polished = not np.array_equal(state.theta, problem.theta)
    report = Stationarity(gap, relative, residual, polished=polished, steps=steps)
    return _point(problem, state, weight, here, report)


def refit(problem: Problem, rows: Rows, theta: FloatArray, kind: str | None = None) -> StationaryPoint:
    """Minimise the objective of other labels on the same rows, from ``theta``, by damped Newton steps.

    Raises
    ------
    SingularHessianError
        The Hessian cannot be inverted, or no minimiser is found.
    """
    weight = row_weights(problem, rows)
    first = _State.at(problem, rows, weight, theta)
    form = kind or choose_kind(rows, problem.penalty, coupled=problem.likelihood.coupled)
    here = _for_steps(problem, rows, first.diagonal, form)
    state, here, steps = _minimise(problem, rows, weight, first, here, form)
    residual = math.sqrt(max(float(state.gradient @ here.solve(state.gradient)), 0.0))
    report = Stationarity(np.nan, np.nan, residual, polished=True, steps=steps)
    return _point(problem, state, weight, here, report)


@dataclass(frozen=True)
class _State:
    """The objective and what it needs, at one theta."""

    theta: FloatArray
    margin: FloatArray
    probability: FloatArray
    diagonal: FloatArray
    gradient: FloatArray
    value: float

    @classmethod
    def at(cls, problem: Problem, rows: Rows, weight: FloatArray, theta: FloatArray) -> _State:
        margin = rows.margins(theta)
        likelihood = problem.likelihood
        probability = likelihood.probability(margin)
        gradient = rows.pull(weight * (probability - likelihood.targets(rows.y))) + problem.penalty * theta
        diagonal = likelihood.curvature(probability, weight, margin)
        return cls(theta, margin, probability, diagonal, gradient, objective(problem, rows, weight, theta, margin))


def _point(
    problem: Problem, state: _State, weight: FloatArray, here: Curvature, report: Stationarity
) -> StationaryPoint:
    return StationaryPoint(
        state.theta, state.margin, state.probability, weight, state.diagonal, here, report, problem.outputs
    )


def _minimise(
    problem: Problem, rows: Rows, weight: FloatArray, state: _State, here: Curvature, form: str
) -> tuple[_State, Curvature, int]:
    """Chord-Newton steps, halved until the objective falls; H taken anew where the decrement falls slowly.

    Returns the minimiser, the curvature there in ``form`` and the number of steps.
    """
    direction = here.solve(state.gradient)
    decrement = float(state.gradient @ direction)
    steps = 0
    while decrement > STATIONARY:
        if steps == MAX_STEPS:
            raise SingularHessianError(
                f"training objective: no minimiser found in {MAX_STEPS} steps (decrement {decrement:.1e}); the classes "
                "may be separable without a penalty: refit with a finite C"
            )
        length = 1.0
        while True:
            trial = _State.at(problem, rows, weight, state.theta - length * direction)
            enough = state.value - 1e-4 * length * decrement + 1e-14 * abs(state.value)
            if trial.value <= enough or length < 1e-6:
                break
            length *= 0.5
        trial_direction = here.solve(trial.gradient)
        trial_decrement = float(trial.gradient @ trial_direction)
        if trial_decrement >= 0.5 * decrement and decrement <= ROUNDED:
            break  # rounding: no further progress to be had
        slow = trial_decrement > 0.0625 * decrement
        state, decrement, direction = trial, trial_decrement, trial_direction
        steps += 1
        if slow and decrement > STATIONARY:
            here = _factored(problem, rows, state.diagonal, here.kind)
            direction = here.solve(state.gradient)
            decrement = float(state.gradient @ direction)
    if steps or here.kind != form:
        here = _factored(problem, rows, state.diagonal, form)
    return state, here, steps


def _factored(problem: Problem, rows: Rows, diagonal: FloatArray, form: str) -> Curvature:
    return factor(rows, diagonal, problem.penalty, form, coupled=problem.likelihood.coupled)


def _for_steps(problem: Problem, rows: Rows, diagonal: FloatArray, form: str) -> Curvature:
    """H for the steps to the minimiser: products alone where sparse rows are well conditioned, else ``form``."""
    if rows.sparse and form != "cg":
        try:
            products = _factored(problem, rows, diagonal, "cg")
        except SingularHessianError:
            return _factored(problem, rows, diagonal, form)
        if products.condition < EASY_CONDITION:
            return products
    return _factored(problem, rows, diagonal, form)
