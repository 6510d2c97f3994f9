"""How k and accuracy fall as noise is injected into the training labels.

A growing share of the labels is replaced by tosses of a coin, or of a die with a side per class (or by other
classes), the model is refitted, and k is
estimated for a sample of evaluation rows. k measures how far the labels agree beyond what a prediction needs,
so it falls from the first noisy labels on, while accuracy holds until few of them are left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.findings import Finding
from mlflow_relabel_audit.analyses.noise.foldout import SPARSE_FLOP, class_weights, refit
from mlflow_relabel_audit.curvature import StationaryPoint, factor
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.flips.order.influence import estimate
from mlflow_relabel_audit.flips.relabelling import RelabelEffect
from mlflow_relabel_audit.problem import FloatArray, IntArray, Problem
from mlflow_relabel_audit.rows import Rows

LEVELS = tuple(round(0.1 * step, 1) for step in range(10))
KINDS = ("coin", "inverted")
RESAMPLES = 500
WORK = 3e11
"""Multiply-adds (about a minute of one core) above which fewer draws of the noise are made."""
CG_ITERATIONS = 150.0


@dataclass(frozen=True)
class NoiseCurve:
    """Average k and accuracy at each level of injected noise.

    Attributes
    ----------
    table : DataFrame
        one row per level: ``noise`` (share of the labels that were replaced), ``k_mean``, ``k_low``,
        ``k_high``, ``found_share`` (predictions for which the estimate found a k; the means are over these),
        ``accuracy``, ``accuracy_low``, ``accuracy_high`` (missing without evaluation labels). The intervals
        are 95 % bootstrap intervals over evaluation rows and draws of the noise together.
    kind : {"coin", "inverted"}
    draws : int
        how often noise was drawn at each level above 0.
    predictions : int
        evaluation rows behind ``k_mean``.
    labelled : int
        evaluation rows behind ``accuracy``.
    findings : tuple of Finding
    """

    table: pd.DataFrame
    kind: str
    draws: int
    predictions: int
    labelled: int
    findings: tuple[Finding, ...] = field(default=())


def noise_curve(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    eval_features: Any,
    eval_labels: FloatArray | None = None,
    *,
    levels: tuple[float, ...] = LEVELS,
    draws: int = 5,
    predictions: int = 200,
    kind: str = "coin",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> NoiseCurve:
    """Inject noise, refit, and estimate k.

    Parameters
    ----------
    problem, rows, point
        the objective, the n training rows and the minimiser.
    eval_features : ndarray or CSR array of shape (m, features)
        transformed evaluation rows.
    eval_labels : ndarray of shape (m,), optional
        class codes, for the accuracy.
    levels : tuple of floats in [0, 1)
        share of the training labels to replace. Within a draw a higher level contains the lower ones.
    draws : int
        draws of the noise; fewer are made where one refit is much work.
    predictions : int
        evaluation rows, drawn at random, whose k is estimated.
    kind : {"coin", "inverted"}
        replace a label by the toss of a fair coin, or by the other class. Inverted beyond 0.5 the labels say
        the opposite, and k rises again. Of more than two classes, any of them or any other one, each as likely.
    seed : int
    progress : callable, optional
        called with (fits done, fits in all).

    Raises
    ------
    RequestError
        A level outside [0, 1), an unknown kind, no evaluation rows, or labels that do not fit them.
    """
    if kind not in KINDS:
        raise RequestError(f"noise curve: got kind {kind!r}; pass one of {list(KINDS)}")
    if not levels or min(levels) < 0 or max(levels) >= 1:
        raise RequestError(f"noise curve: got levels {list(levels)}; pass shares of at least 0 and below 1")
    total = eval_features.shape[0]
    if total == 0 or (eval_labels is not None and len(eval_labels) != total):
        labels = "no" if eval_labels is None else len(eval_labels)
        raise RequestError(f"noise curve: got {total} evaluation rows and {labels} labels; pass a label per row")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(total)[:predictions])
    shape: dict[str, Any] = {"intercept": rows.intercept, "outputs": rows.outputs}
    everything = Rows(eval_features, np.zeros(total), np.ones(total), **shape)
    sample = Rows(eval_features[chosen], np.zeros(len(chosen)), np.ones(len(chosen)), **shape)
    truth = None if eval_labels is None else np.asarray(eval_labels, dtype=np.float64)

    form, work = _cheapest_form(rows, point, len(chosen))
    draws = int(np.clip(WORK // (work * max(len(levels), 1)), 1, max(draws, 1)))
    levels = tuple(sorted(levels))
    k = np.full((len(levels), draws, len(chosen)), np.nan)
    correct = np.full((len(levels), draws, total), np.nan)
    done, fits = 0, draws * len(levels)
    for draw in range(draws):
        order, toss = rng.permutation(rows.n), _tosses(problem, rows, kind, rng)
        here = point
        for at, level in enumerate(levels):
            if level == 0 and draw > 0:
                k[at, draw], correct[at, draw] = k[at, 0], correct[at, 0]
            else:
                noisy, here = _refitted(problem, rows, here, form, _labels(rows, order, toss, level))
                k[at, draw] = _estimates(problem, noisy, here, sample)
                if truth is not None:
                    correct[at, draw] = _predicted(problem, everything.margins(here.theta)) == truth
            done += 1
            if progress is not None:
                progress(done, fits)
    table = pd.DataFrame(
        [
            {
                "noise": level,
                **_interval("k", k[at], rng),
                "found_share": float(np.isfinite(k[at]).mean()),
                **_interval("accuracy", correct[at], rng),
            }
            for at, level in enumerate(levels)
        ]
    ).rename(columns={"k": "k_mean"})
    labelled = 0 if truth is None else total
    return NoiseCurve(table, kind, draws, len(chosen), labelled, _findings(table, labelled > 0))


def _tosses(problem: Problem, rows: Rows, kind: str, rng: np.random.Generator) -> FloatArray:
    """The label that would replace each row's, shape (n,)."""
    classes = len(problem.classes)
    if classes == 2:
        coin = (rng.random(rows.n) < 0.5).astype(np.float64)
        return coin if kind == "coin" else 1.0 - rows.y
    first = np.zeros(rows.n) if kind == "coin" else rows.y + 1.0
    return np.asarray((first + rng.integers(classes - int(kind != "coin"), size=rows.n)) % classes)


def _predicted(problem: Problem, margin: FloatArray) -> FloatArray:
    if problem.outputs == 1:
        return np.asarray(margin > problem.cut, dtype=np.float64)
    return np.asarray(margin.reshape(-1, problem.outputs).argmax(axis=1), dtype=np.float64)


def _labels(rows: Rows, order: IntArray, toss: FloatArray, level: float) -> FloatArray:
    hit = np.zeros(rows.n, dtype=bool)
    hit[order[: round(level * rows.n)]] = True
    return np.asarray(np.where(hit, toss, rows.y))


def _refitted(
    problem: Problem, rows: Rows, start: StationaryPoint, form: str, labels: FloatArray
) -> tuple[Rows, StationaryPoint]:
    """The same rows with other labels, and the minimiser there."""
    noisy = copy.copy(rows)  # shares the design matrix
    noisy.y = np.asarray(labels, dtype=np.float64)
    weight = class_weights(problem, rows, labels[:, None], rows.base_weight[:, None])
    likelihood = problem.likelihood
    theta = refit(
        noisy,
        likelihood.targets(labels)[:, None],
        weight,
        problem.penalty,
        start.theta[:, None],
        start.curvature.solve,
        tolerance=1e-4,
        likelihood=likelihood,
    )[:, 0]
    margin = noisy.margins(theta)
    probability = likelihood.probability(margin)
    diagonal = likelihood.curvature(probability, weight[:, 0], margin)
    curvature = factor(noisy, diagonal, problem.penalty, form, coupled=likelihood.coupled)
    return noisy, replace(
        start,
        theta=theta,
        margin=margin,
        probability=probability,
        weight=weight[:, 0],
        diagonal=diagonal,
        curvature=curvature,
    )


def _estimates(problem: Problem, rows: Rows, point: StationaryPoint, sample: Rows) -> FloatArray:
    """Estimated k of each sampled row, to the closest other class, NaN where none was found."""
    effect = RelabelEffect.at(problem, rows, point)
    parts = [np.zeros(0)]
    for block in estimate(rows, point, effect, sample, problem):
        k = np.array([order.k_estimate or np.inf for order in block.orders], dtype=np.float64)
        least = np.full(block.stop - block.start, np.inf)
        np.minimum.at(least, block.asked.owner - block.start, k)
        parts.append(np.where(np.isfinite(least), least, np.nan))
    return np.concatenate(parts)


def _cheapest_form(rows: Rows, point: StationaryPoint, predictions: int) -> tuple[str, float]:
    """Form of the curvature for a few hundred solves, and the multiply-adds of one refit with estimates."""
    n, p = float(rows.n), float(rows.p)
    touch = rows.nnz * (SPARSE_FLOP if rows.sparse else 1.0) * rows.outputs
    predictions *= max(rows.outputs - 1, 1)  # each about every other class
    solves = predictions + 20.0
    cost = {
        "primal": touch * rows.nnz / max(n, 1.0) + p**3 / 3.0 + solves * p * p,
        "dual": touch * n + n**3 / 3.0 + solves * (n * n + 2.0 * touch),
        "cg": solves * CG_ITERATIONS * 2.0 * touch,
    }
    if point.curvature.kind == "primal":
        del cost["dual"]
    elif point.curvature.kind == "dual":
        del cost["primal"]
    else:
        return "cg", cost["cg"]
    form = min(cost, key=lambda name: cost[name])
    return form, cost[form] + predictions * touch


def _interval(name: str, value: FloatArray, rng: np.random.Generator) -> dict[str, float]:
    """Mean of a (draws, rows) table, and its bootstrap interval over both."""
    if not np.isfinite(value).any():
        return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
    draws, count = value.shape
    known = np.isfinite(value)
    filled = np.where(known, value, 0.0)
    means = np.full(RESAMPLES, np.nan)
    for b in range(RESAMPLES):
        taken = np.bincount(rng.integers(draws, size=draws), minlength=draws)
        weight = np.bincount(rng.integers(count, size=count), minlength=count)
        size = float(taken @ known @ weight)
        if size:
            means[b] = float(taken @ filled @ weight) / size
    low, high = np.nanquantile(means, (0.025, 0.975))
    return {name: float(filled.sum() / known.sum()), f"{name}_low": float(low), f"{name}_high": float(high)}


def _findings(table: pd.DataFrame, labelled: bool) -> tuple[Finding, ...]:
    k = table["k_mean"].to_numpy()
    halved = table.index[k <= 0.5 * k[0]] if np.isfinite(k[0]) else table.index[:0]
    if not len(halved):
        return (Finding("N010", "info", "The average k does not fall to half over the levels of noise tried."),)
    at = int(halved[0])
    message = f"The average k has halved at {table['noise'][at]:.0%} injected noise, from {k[0]:.0f} to {k[at]:.0f}"
    if labelled:
        accuracy = table["accuracy"]
        message += f"; accuracy has gone from {accuracy[0]:.1%} to {accuracy[at]:.1%}"
    return (Finding("N010", "info", message + "."),)
