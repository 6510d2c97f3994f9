"""One row's decision: its margin against the class it is to flip to, what flips it, and the refit with that changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.robustness import Fitted, robustness
from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.flips.refit.simultaneous import RefitBlock
from mlflow_relabel_audit.flips.relabelling import RelabelEffect, Relabelling
from mlflow_relabel_audit.flips.search.flip_set import FlipSet
from mlflow_relabel_audit.flips.search.prefix import VerifiedSearch
from mlflow_relabel_audit.flips.search.wanted import search_wanted
from mlflow_relabel_audit.likelihood import sigmoid
from mlflow_relabel_audit.problem import FloatArray, Problem
from mlflow_relabel_audit.rows import Rows

ACCURACY = 1e-7
MAX_ITERATIONS = 300


@dataclass(frozen=True)
class Answer:
    """What flips one prediction.

    Attributes
    ----------
    flip : FlipSet
    k_lower, k_paper, k_estimate : int, or missing
    want : int
        code of the class flipped to.
    """

    flip: FlipSet
    k_lower: Any
    k_paper: Any
    k_estimate: Any
    want: int


def answer(fitted: Fitted, evaluation: Rows, want: Any = None) -> Answer:
    """Find what flips the prediction of one row: to any other class, or to the one wanted.

    Parameters
    ----------
    fitted : Fitted
    evaluation : Rows
        of one row.
    want : optional
        a label of the model.

    Raises
    ------
    RequestError
        ``want`` is not a class of the model, or is what is predicted already.
    """
    problem, rows = fitted.problem, fitted.rows
    code = None if want is None else _wanted(problem, fitted.point, evaluation, want)
    if code is not None and problem.outputs > 1:
        searcher = VerifiedSearch(problem, rows, fitted.point, fitted.effect, fitted.row_norms)
        found = search_wanted(searcher, evaluation, code, fitted.row_norms)
        return Answer(found.flip, found.k_lower if fitted.certified else None, None, found.k_estimate, code)
    result = robustness(fitted, evaluation)
    row, labels = result.predictions.iloc[0], result.flip_sets["new_label"]
    position = pd.Series(np.arange(rows.n), index=pd.Index(fitted.train_ids))
    index = position.loc[result.flip_sets["train_id"]].to_numpy(dtype=np.intp)
    change = Relabelling(index, problem.encode(labels).astype(np.intp))
    flip = FlipSet(change, result.flip_sets["influence"].to_numpy(), str(row["status"]), np.nan)
    if problem.outputs == 1:
        code = 1 - problem.classes.index(row["predicted"])
    else:
        code = problem.classes.index(row["flips_to"])
    return Answer(flip, row["k_lower"], row["k_paper"], row["k_estimate"], code)


def _wanted(problem: Problem, point: StationaryPoint, evaluation: Rows, want: Any) -> int:
    """The code of a wanted class, as it is named in Python or on a command line."""
    named = [code for code, name in enumerate(problem.classes) if name == want or str(name) == want]
    if not named:
        raise RequestError(f"want: got {want!r}; pass one of the model's classes, {list(problem.classes)}")
    x = evaluation.columns(np.array([0]))[:, 0]
    if Decision.on(problem, point.theta, x).predicted == named[0]:
        raise RequestError(f"want: got {want!r}, which is predicted already; pass another class, or leave it out")
    return named[0]


@dataclass(frozen=True)
class Decision:
    """One row, the class predicted for it and the one it is to flip to.

    Attributes
    ----------
    problem : Problem
    x : ndarray of shape (coordinates,)
    predicted, wanted : int
        class codes.
    """

    problem: Problem = field(repr=False)
    x: FloatArray = field(repr=False)
    predicted: int
    wanted: int

    @classmethod
    def on(cls, problem: Problem, theta: FloatArray, x: FloatArray, want: int | None = None) -> Decision:
        """Of the model with these coefficients; flipped to ``want``, by default to the class next in line."""
        scores = theta.reshape(problem.outputs, -1) @ x
        if problem.outputs == 1:
            predicted = int(scores[0] > problem.cut)
            return cls(problem, x, predicted, 1 - predicted)
        order = np.argsort(-scores, kind="stable")
        return cls(problem, x, int(order[0]), int(order[1]) if want is None else want)

    def targets(self) -> FloatArray:
        """The row in every output, shape (p, M)."""
        return np.kron(np.eye(self.problem.outputs), self.x[:, None])

    @property
    def target(self) -> FloatArray:
        """The margin is its product with theta, less the cut, shape (p,)."""
        if self.problem.outputs == 1:
            return self.x
        targets = self.targets()
        return np.asarray(targets[:, self.predicted] - targets[:, self.wanted])

    def probabilities(self, theta: FloatArray) -> tuple[float, ...]:
        """Of every class, under other coefficients."""
        scores = theta.reshape(self.problem.outputs, -1) @ self.x
        return tuple(self.problem.probabilities(scores).tolist())

    def margin(self, theta: FloatArray) -> float:
        """Under other coefficients."""
        return float(self.target @ theta) - self.problem.cut

    def probability(self, margin: float, theta: FloatArray) -> float:
        """Of the positive class of two, of the predicted one of more, under other coefficients."""
        if self.problem.outputs == 1:
            return float(sigmoid(np.float64(margin + self.problem.cut)))
        return self.probabilities(theta)[self.predicted]


def flip_table(
    problem: Problem, rows: Rows, point: StationaryPoint, decision: Decision, change: Relabelling, train_ids: Any
) -> pd.DataFrame:
    """Tabulate a flip set in its order, with what each label is estimated to move (see `ContestResult`)."""
    effect, index, names = RelabelEffect.at(problem, rows, point), change.index, np.asarray(problem.classes)
    few, targets = effect.among(index), decision.targets()
    u = point.curvature.solve(targets)
    response = np.asarray(rows.take(index) @ rows.side_by_side(u), dtype=np.float64)
    by_output = response.reshape(len(index), rows.outputs, rows.outputs).transpose(2, 1, 0)
    along, own = few.along(np.float64), few.label
    moves = few.gain.given(along, by_output, effect.shift(u), own, change.label)
    if problem.outputs == 1:
        influence = moves[0]
        cumulative = decision.margin(point.theta) + np.cumsum(influence)
        probability = sigmoid(cumulative + problem.cut)
    else:
        influence = moves[decision.predicted] - moves[decision.wanted]
        cumulative = decision.margin(point.theta) + np.cumsum(influence)
        scores = (point.theta.reshape(problem.outputs, -1) @ decision.x)[:, None] + np.cumsum(moves, axis=1)
        probability = problem.probabilities(scores)[decision.predicted]
    frame: pd.DataFrame = pd.DataFrame(
        {
            "rank": np.arange(1, len(index) + 1),
            "train_id": np.asarray(train_ids)[index],
            "train_label": names[rows.y[index].astype(int)],
            "new_label": names[change.label],
            "influence": influence,
            "cumulative_margin": cumulative,
            "cumulative_probability": probability,
        }
    )
    return frame


def refitted(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    decision: Decision,
    change: Relabelling,
    row_norms: FloatArray | None = None,
) -> tuple[float, FloatArray] | None:
    """Margin of a decision under the model refitted with some rows relabelled, and coefficients near that refit.

    Iterated until it is proved within 1e-7 (relative to its size above 1); where that is out of reach, the
    best margin whose sign is proved, or None.
    """
    norms = point.curvature.row_norms(rows) if row_norms is None else row_norms
    block = RefitBlock(problem, rows, point, RelabelEffect.at(problem, rows, point), norms, 1)
    u, only = point.curvature.solve(decision.target), np.array([0])
    response = np.abs(rows.margins(u))[None] * (1.0 + 1e-6) if rows.outputs == 1 else None
    block.load(only, decision.target[:, None], u[:, None], response)
    block.relabel(only, [change])
    best, least, theta = 0.0, np.inf, point.theta
    for _ in range(MAX_ITERATIONS):
        block.condition(only)
        margins, bounds = block.prove()
        if bounds[0] < least:
            best, least, theta = float(margins[0]), float(bounds[0]), block.theta[:, 0].copy()
        if least <= ACCURACY * max(1.0, abs(best)):
            break
        block.descend()
    return (best, theta) if least < abs(best) else None
