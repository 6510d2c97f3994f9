"""The certificate against every relabelled set of a small problem, each refitted exactly.

``python -m tests.flips.exhaustive 2000`` runs that many seeded cases and prints what was seen.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest import mock

import numpy as np

from mlflow_relabel_audit.curvature import find_stationary_point
from mlflow_relabel_audit.flips.certificate import bound as module
from mlflow_relabel_audit.flips.certificate.bound import Certificate
from mlflow_relabel_audit.flips.certificate.localisation import LevelBound
from mlflow_relabel_audit.likelihood import sigmoid
from mlflow_relabel_audit.problem import ClassWeight, Problem
from mlflow_relabel_audit.rows import Rows

LARGEST = 5
TARGETS = 12
STRENGTHS = (0.005, 0.05, 0.3, 1.0, 3.0, 10.0, 100.0, 3000.0, np.inf)


@dataclass(frozen=True)
class Case:
    """A small problem: the design matrix with its column of ones, and what the certificate is asked to do."""

    X: np.ndarray
    y: np.ndarray
    base: np.ndarray
    penalty: np.ndarray
    intercept: bool
    by_class: tuple[float, float]
    threshold: float
    gram: bool
    kind: str
    dtype: type
    targets: np.ndarray
    tags: tuple[str, ...]


@dataclass
class Tally:
    """What a run has seen."""

    cases: int = 0
    sets: int = 0
    unattained: int = 0
    checks: int = 0
    predictions: int = 0
    equal: int = 0
    certified: int = 0
    ratio_sum: float = 0.0
    worst: Counter = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def record(self, name: str, got: np.ndarray, bound: np.ndarray, slack: np.ndarray, case: str) -> None:
        """Check ``got <= bound`` up to the refit's own error, and keep the largest ratio."""
        got, bound, slack = np.broadcast_arrays(got, bound, slack)
        self.checks += got.size
        over = got > bound + slack
        if over.any():
            at = np.unravel_index(np.argmax(got - bound), got.shape)
            self.violations.append(f"{case}: {name} {got[at]:.6g} > {bound[at]:.6g}")
        ratio = np.divide(got, bound, out=np.zeros(got.shape), where=bound > 1e-6)
        self.worst[name] = max(self.worst[name], float(ratio.max(initial=0.0)))


def draw(seed: int) -> Case:
    """A seeded case: weak and strong regularisation, weights, binary columns, duplicates, outliers."""
    rng = np.random.default_rng(seed)
    while True:
        n, p = int(rng.integers(6, 14)), int(rng.integers(1, 4))
        strength = float(rng.choice(STRENGTHS))
        free = not np.isfinite(strength)
        p = 1 if free else p
        features = rng.standard_normal((n, p)) * float(rng.choice([0.3, 1.0, 3.0]))
        tags = []
        if rng.random() < 0.3:
            features[:, 0] = rng.integers(0, 2, n)
            tags.append("binary")
        if rng.random() < 0.3:
            features[rng.integers(0, n, n // 3)] = features[0]
            tags.append("duplicates")
        if rng.random() < 0.25:
            features[rng.integers(0, n)] *= float(rng.choice([4.0, 15.0, 60.0]))
            tags.append("outlier")
        y = (features @ rng.standard_normal(p) + rng.standard_normal(n) * 1.5 > 0).astype(float)
        base = rng.choice([0.5, 1.0, 2.0, 0.1], n) if rng.random() < 0.5 else np.ones(n)
        if rng.random() < 0.1:
            base[rng.integers(0, n)] = 0.0
        intercept = bool(rng.random() < 0.6)
        by_class = tuple(rng.choice([0.3, 1.0, 2.0], 2)) if rng.random() < 0.25 else (1.0, 1.0)
        penalised = bool(rng.random() < 0.2)
        kind = str(
            rng.choice(["primal", "primal", "primal", "cg" if not free else "primal", "primal" if free else "dual"])
        )
        X = np.hstack([features, np.ones((n, 1))]) if intercept else features
        penalty = np.full(p, 0.0 if free else 1.0 / strength)
        if intercept:
            penalty = np.append(penalty, penalty[0] if penalised else 0.0)
        few = np.linalg.matrix_rank(X[base > 0]) < X.shape[1]
        if attained(X, y[None], base > 0, penalty, intercept)[0] and not (free and few):
            break
    targets = rng.standard_normal((TARGETS, p)) * features.std() * float(rng.choice([0.5, 1.0, 3.0]))
    targets[: TARGETS // 3] = features[rng.integers(0, n, TARGETS // 3)]
    if intercept:
        targets = np.hstack([targets, np.ones((TARGETS, 1))])
    threshold = float(rng.choice([0.5, 0.5, 0.25, 0.8]))
    gram, dtype = bool(rng.random() < 0.5), (np.float32 if rng.random() < 0.5 else np.float64)
    tags += [f"C={strength:g}", kind, "gram" if gram else "norms", f"classes={by_class}", dtype.__name__]
    return Case(
        X,
        y,
        base,
        penalty,
        intercept,
        by_class,
        threshold,
        gram,
        kind,
        dtype,
        targets,
        (f"seed={seed}", *tags),
    )


def attained(X: np.ndarray, labels: np.ndarray, held: np.ndarray, penalty: np.ndarray, intercept: bool) -> np.ndarray:
    """Whether the objective has a minimiser, for each row of labels.

    Without one the loss falls for ever along a direction without a penalty: one class only, where the intercept is
    free; separated classes, where nothing is penalised (one feature here, so the order of its values decides).
    """
    y = labels[:, held] > 0.5
    if not penalty.any():
        x = X[held, 0]
        if intercept:
            lows = [np.where(y == c, x, np.inf).min(axis=1) for c in (False, True)]
            highs = [np.where(y == c, x, -np.inf).max(axis=1) for c in (False, True)]
            return (highs[0] > lows[1]) & (highs[1] > lows[0])
        toward = np.where(y, x, -x)
        return (toward > 0).any(axis=1) & (toward < 0).any(axis=1)
    if intercept and penalty[-1] == 0.0:
        return y.any(axis=1) & ~y.all(axis=1)
    return np.ones(len(labels), dtype=bool)


def minimise(
    X: np.ndarray, labels: np.ndarray, weights: np.ndarray, penalty: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Minimisers for each row of labels and weights by damped Newton; ``||x_j||_{H^-1} ||grad||_{H^-1}``, (M, n)."""
    theta = np.tile(start, (len(labels), 1))
    open_ = np.arange(len(labels))
    error = np.full((len(labels), len(X)), np.inf)

    def value(t: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        z = t @ X.T
        return (w * (np.logaddexp(0.0, z) - y * z)).sum(axis=1) + 0.5 * (t * t) @ penalty

    for cap in 4.0 * np.minimum(1.05 ** np.arange(600), 200.0):
        t, y, w = theta[open_], labels[open_], weights[open_]
        z = t @ X.T
        gradient = (w * (sigmoid(z) - y)) @ X + t * penalty
        hessian = np.einsum("mi,ij,ik->mjk", w * sigmoid(z) * sigmoid(-z), X, X, optimize=True) + np.diag(penalty)
        scale = np.sqrt(np.einsum("mjj->mj", hessian))
        scaled = hessian / scale[:, :, None] / scale[:, None, :]
        solved = np.linalg.solve(
            scaled, np.concatenate([(gradient / scale)[:, :, None], X.T / scale[:, :, None]], axis=2)
        )
        step = solved[:, :, 0] / scale
        decrement = np.sqrt(np.maximum(np.einsum("mj,mj->m", gradient, step), 0.0))
        reach = np.sqrt(np.maximum(np.einsum("mji,ij,mj->mi", solved[:, :, 1:], X, 1.0 / scale), 0.0))
        error[open_] = decrement[:, None] * reach
        near = error[open_].max(axis=1) < 0.05  # Newton converges quadratically here
        before = value(t, y, w)
        length = np.minimum(1.0, cap / np.maximum(np.abs(step @ X.T).max(axis=1), 1e-300))  # into no flat region
        for _ in range(60):
            after = value(t - length[:, None] * step, y, w)
            short = ~near & (after > before - 1e-4 * length * decrement**2 + 1e-15 * np.abs(before))
            if not short.any():
                break
            length[short] *= 0.5
        theta[open_] = t - length[:, None] * step
        open_ = open_[error[open_].max(axis=1) > 1e-11]
        if not open_.size:
            break
    return theta, error


@cache
def subsets(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indicators of all sets of up to five of n rows, shape (M, n), and their sizes."""
    chosen = [s for k in range(LARGEST + 1) for s in itertools.combinations(range(n), k)]
    inside = np.zeros((len(chosen), n))
    for m, members in enumerate(chosen):
        inside[m, list(members)] = 1.0
    return inside, inside.sum(axis=1).astype(int)


def check(case: Case, tally: Tally) -> None:
    """Refit every set exactly, and hold every bound of the certificate against it."""
    name = " ".join(case.tags)
    n = len(case.y)
    inside, sizes = subsets(n)
    labels = np.abs(case.y - inside)
    weights = case.base * np.where(labels > 0.5, case.by_class[1], case.by_class[0])
    exists = attained(case.X, labels, case.base > 0, case.penalty, case.intercept)
    zero = np.zeros(case.X.shape[1])
    theta0, _ = minimise(case.X, labels[:1], weights[:1], case.penalty, zero)
    theta, error = minimise(case.X, labels[exists], weights[exists], case.penalty, theta0[0])
    if not error.max() < 1e-8:
        tally.violations.append(f"{name}: a refit stopped at {error.max():.1e}")
    rows = Rows(case.X[:, :-1] if case.intercept else case.X, case.y, case.base, intercept=case.intercept)
    rule = ClassWeight(fixed=case.by_class)
    problem = Problem(theta0[0], case.penalty, case.intercept, (0, 1), case.threshold, rule, "newton")
    point = find_stationary_point(problem, rows, kind=case.kind)
    bounds: list[LevelBound] = []

    def noted(*arguments: Any) -> Any:
        bounds.append(bound_level(*arguments))
        return bounds[-1]

    bound_level = module.bound_level
    with mock.patch.object(module, "bound_level", noted):
        certificate = Certificate.prepare(problem, rows, point, gram=case.gram)
    tally.cases += 1
    tally.sets += len(labels)
    tally.unattained += int((~exists).sum())
    inside, sizes, lost = inside[exists], sizes[exists], sizes[~exists]

    moved = (theta - point.theta) @ case.X.T
    z = point.margin
    energy = (point.weight * moved * (sigmoid(z + moved) - sigmoid(z))).sum(axis=1)
    targets = np.ascontiguousarray(case.targets.T)
    margin = point.theta @ targets - problem.cut
    toward = np.where(margin > 0, -1.0, 1.0)
    direction = point.curvature.solve(targets)
    norms = np.sqrt(np.einsum("pb,pb->b", targets, direction))
    exact = toward[:, None] * (direction.T @ case.X.T)
    response = exact.astype(case.dtype)
    lengths = np.maximum(np.linalg.norm(case.X, axis=1), 1e-300)
    rounding = (np.abs(exact) / lengths).max(axis=1) * (2.0**-24 if case.dtype is np.float32 else 2.0**-50) + 1e-30
    moves = toward * ((theta - point.theta) @ targets)
    # the refits' own error at a target: at most its distance from the rows, in units of the error at the rows
    slack_at_rows = 2e-9 + 4.0 * error
    slack = 1e-7 + 1e-6 * np.abs(moves)
    everyone = np.arange(len(margin))
    for place, bound in enumerate(bounds[: len(certificate.levels)]):
        held = sizes <= bound.k
        if (lost <= bound.k).any():
            tally.violations.append(f"{name}: level {bound.k} is bounded, yet a set of that size has no minimiser")
        tally.record("move of a row", np.abs(moved[held]), bound.rho, slack_at_rows[held], name)
        charged = bound.energy.offset + inside[held] @ bound.energy.charge
        tally.record("energy", energy[held], charged, 1e-9 * (1.0 + energy[held]), name)
        prospects = certificate.prospects(response.T, rounding, norms)
        survey = prospects.survey(everyone, np.full(len(margin), place))
        for guess in (0.0, bound.energy.total / 2.0, bound.energy.total):
            tau = prospects.price(survey, everyone, np.full(len(margin), guess))
            sums, _ = prospects.moves(survey, everyone, tau)
            allowed = np.hstack([np.zeros((len(margin), 1)), sums[:, : bound.k]])
            allowed += certificate.slack(np.abs(margin), norms)[:, None]
            tally.record("move of the margin", moves[held], allowed.T[sizes[held]], slack[held], name)
    k_lower = certificate.lower_bounds(margin, response.T, rounding, norms)
    flips = moves > np.abs(margin) + slack
    fewest = np.where(flips, sizes[:, None], LARGEST + 1).min(axis=0)
    for t in range(len(margin)):
        tally.predictions += 1
        if fewest[t] <= LARGEST:
            tally.certified += 1
            tally.ratio_sum += k_lower[t] / fewest[t]
            tally.equal += int(k_lower[t] == fewest[t])
            if k_lower[t] > fewest[t]:
                tally.violations.append(f"{name}: k_lower {k_lower[t]} though {fewest[t]} labels flip target {t}")


def run(first: int, count: int) -> Tally:
    """Check that many cases from a first seed."""
    tally = Tally()
    for seed in range(first, first + count):
        check(draw(seed), tally)
    return tally


def main() -> None:
    """Print what was seen."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    tally = run(first, count)
    for line in tally.violations[:20]:
        print("VIOLATION", line)
    print(
        f"{tally.cases} cases, {tally.sets} sets ({tally.unattained} without a minimiser), {tally.checks} checks, "
        f"{tally.predictions} predictions, {len(tally.violations)} violations"
    )
    print(
        f"k* known for {tally.certified}: mean k_lower/k* {tally.ratio_sum / max(tally.certified, 1):.3f}, "
        f"equal {tally.equal / max(tally.certified, 1):.3f}"
    )
    print("largest ratio to its bound:", {name: round(value, 5) for name, value in tally.worst.items()})


if __name__ == "__main__":
    main()
