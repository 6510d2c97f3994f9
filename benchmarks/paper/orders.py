"""Figure 2: how far relabelling the first k rows of each order moves a prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.paper.bench import Bench
from benchmarks.paper.transcribed import Transcribed
from benchmarks.published import fit
from mlflow_relabel_audit.analyses.noise.foldout import refit
from mlflow_relabel_audit.curvature import factor
from mlflow_relabel_audit.likelihood import sigmoid

BASELINES = ("ip-remove", "influence", "rif", "gd", "gc", "random")
METHODS = ("this project", "ip-relabel", *BASELINES)
SHARES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02)
TOLERANCE = 1e-4
WIDTH = 64


def orders(bench: Bench) -> dict[str, Any]:
    """Change of the predicted probability, toward the flip, by the first k rows of each order."""
    data, auditor = bench.data, bench.auditor
    index = bench.test_rows(bench.sizes.ordered)
    n = auditor.rows.n
    ks = sorted({max(1, round(share * n)) for share in SHARES})
    algorithm = Transcribed(fit(data.X, data.y, data.l2), data.X, data.y, data.l2)
    steps, done = len(index) * (len(METHODS) + 1), 0
    moved: dict[str, list[list[float]]] = {method: [] for method in METHODS}
    for t in index:
        row = data.X_test[[t]]
        target = auditor.evaluation_rows(row).take(np.arange(1))
        target = np.asarray(target.toarray() if auditor.rows.sparse else target).ravel()
        start = float(target @ auditor.point.theta)
        toward = -1.0 if start > auditor.problem.cut else 1.0
        before = float(sigmoid(np.float64(start)))

        def moves(sets: list[np.ndarray], target: np.ndarray = target) -> tuple[np.ndarray, np.ndarray]:
            theta = refitted(bench, sets)
            return target @ theta, theta

        def gain(margin: np.ndarray, toward: float = toward, before: float = before) -> np.ndarray:
            return toward * (sigmoid(margin) - before)

        _, change = algorithm.influences(row)
        ranked = {"ip-relabel": np.argsort(-toward * change[0], kind="stable")}
        for method in BASELINES:
            ranked[method] = auditor.rank(row, method, seed=int(t)).order
        for method, order in ranked.items():
            moved[method].append(gain(moves([order[:k] for k in ks])[0]).tolist())
            done += 1
            bench.progress(done, steps)
        first = auditor.rank(row, "ip-relabel").order
        moved["this project"].append(reranked(bench, target, toward, [first[:k] for k in ks], moves, gain))
        done += 2
        bench.progress(done, steps)
    return {"row_id": index.tolist(), "ks": ks, "rows": n, "moved": moved}


def reranked(
    bench: Bench,
    target: np.ndarray,
    toward: float,
    sets: list[np.ndarray],
    moves: Callable[[list[np.ndarray]], tuple[np.ndarray, np.ndarray]],
    gain: Callable[[np.ndarray], np.ndarray],
) -> list[float]:
    """Gains of this project's sets of the given sizes: first-order, or ranked again at their refit if further."""
    auditor = bench.auditor
    rows, point = auditor.rows, auditor.point
    margin, theta = moves(sets)
    first = gain(margin)
    own = point.curvature.solve(target)
    kind = "cg" if rows.sparse else point.curvature.kind
    again = []
    for column, chosen in enumerate(sets):
        probability = sigmoid(rows.margins(theta[:, column]))
        curvature = factor(rows, point.weight * probability * (1.0 - probability), auditor.problem.penalty, kind)
        mean = 0.5 * (own + curvature.solve(target))
        gains = toward * -auditor.fitted.effect.coefficient * rows.margins(mean)
        again.append(np.argsort(-gains, kind="stable")[: len(chosen)])
    return np.maximum(first, gain(moves(again)[0])).tolist()


def refitted(bench: Bench, sets: list[np.ndarray]) -> np.ndarray:
    """Coefficients, shape (p, S), of the refits with each set relabelled."""
    auditor = bench.auditor
    rows, point = auditor.rows, auditor.point
    out = []
    for start in range(0, len(sets), WIDTH):
        group = sets[start : start + WIDTH]
        labels = np.repeat(rows.y[:, None], len(group), axis=1)
        for column, chosen in enumerate(group):
            labels[chosen, column] = 1.0 - labels[chosen, column]
        weight = np.repeat(point.weight[:, None], len(group), axis=1)
        begin = np.repeat(point.theta[:, None], len(group), axis=1)
        out.append(refit(rows, labels, weight, auditor.problem.penalty, begin, point.curvature.solve, TOLERANCE))
    return np.concatenate(out, axis=1)
