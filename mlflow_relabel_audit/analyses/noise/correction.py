"""What correcting the suspects buys: evaluation loss and accuracy after relabelling and after dropping them.

How many suspects to treat is chosen on one half of the evaluation rows, and what that gains is reported on
the other half, beside doing nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.findings import Finding
from mlflow_relabel_audit.analyses.noise.audit import evidence_of, flag
from mlflow_relabel_audit.analyses.noise.foldout import class_weights, refit
from mlflow_relabel_audit.curvature import StationaryPoint
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.problem import FloatArray, IntArray, Problem
from mlflow_relabel_audit.rows import Rows

SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
MIN_HALF = 20
ACTIONS = ("nothing", "relabel", "drop")


@dataclass(frozen=True)
class Correction:
    """Gains of a correction, measured on evaluation rows that had no part in choosing it.

    Attributes
    ----------
    table : DataFrame
        one row per action ("nothing", "relabel", "drop"; none at all where nothing could be measured): ``action``,
        ``count`` (training rows treated),
        ``loss`` (mean log-loss), ``loss_change``, ``loss_change_low``, ``loss_change_high``, ``accuracy``,
        ``accuracy_change``, ``accuracy_change_low``, ``accuracy_change_high``, ``rows`` (evaluation rows of
        the reporting half). Changes are against doing nothing, with 95 % intervals of the paired difference.
    candidates : DataFrame
        what the choosing half saw: ``action``, ``count``, ``loss``, ``accuracy``.
    findings : tuple of Finding
    """

    table: pd.DataFrame
    candidates: pd.DataFrame
    findings: tuple[Finding, ...]


def not_measured(reason: str) -> Correction:
    """A correction that could not be measured, with the reason as its finding."""
    return Correction(pd.DataFrame(), pd.DataFrame(), (Finding("N020", "info", reason, applicable=False),))


def correction(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    eval_features: Any,
    eval_labels: FloatArray,
    *,
    counts: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Correction:
    """Refit with the top suspects relabelled, and with them dropped.

    The suspects are ranked anew with the choosing half as the only evaluation rows, so that the reporting
    half stays unseen.

    Parameters
    ----------
    problem, rows, point
        the objective, the n training rows and the minimiser.
    eval_features : ndarray or CSR array of shape (m, features)
        transformed evaluation rows.
    eval_labels : ndarray of shape (m,)
        class codes; they are taken to be right.
    counts : tuple of int, optional
        how many suspects to try; by default shares of the training rows from 0.5 % to 30 % (at most about
        twice the expected number of wrong labels), and the number the noise audit would flag.
    seed : int
        of the split into halves.

    Returns
    -------
    Correction
        Empty tables and the reason, where there are fewer than 20 evaluation rows a half.

    Raises
    ------
    RequestError
        Lengths that do not fit.
    """
    truth = np.asarray(eval_labels, dtype=np.float64)
    if eval_features.shape[0] != len(truth):
        raise RequestError(
            f"correction: got {eval_features.shape[0]} evaluation rows and {len(truth)} labels; pass one per row"
        )
    if len(truth) < 2 * MIN_HALF:
        return not_measured(
            f"What correcting suspects buys is not measured: {len(truth)} evaluation rows, "
            f"of the {2 * MIN_HALF} it needs."
        )
    choosing = _half(truth, seed)
    shape: dict[str, Any] = {"intercept": rows.intercept, "outputs": rows.outputs}
    evaluation = Rows(eval_features, truth, np.ones(len(truth)), **shape)
    chosen_rows = Rows(eval_features[choosing], truth[choosing], np.ones(choosing.sum()), **shape)
    found = evidence_of(problem, rows, point, chosen_rows, seed=seed)
    wrong, new_label = found.wrong, found.suggested
    order = np.argsort(-wrong, kind="stable")
    if counts is None:
        flagged = int(flag(wrong)[1].sum())
        most = max(2.0 * float(wrong.sum()), float(flagged), 0.02 * rows.n)
        counts = (*(round(share * rows.n) for share in SHARES if share * rows.n <= most), flagged)
    tried = np.unique([count for count in counts if 0 < count <= rows.n // 2])

    margin = {
        action: evaluation.margins(_models(problem, rows, point, order, new_label, tried, action))
        for action in ACTIONS[1:]
    }
    plain = evaluation.margins(point.theta)
    base_loss, base_hit = _loss(problem, plain, truth), _hit(problem, plain, truth)
    candidates = [_candidate("nothing", 0, base_loss[choosing], base_hit[choosing])]
    table = [_report("nothing", 0, base_loss, base_hit, base_loss, base_hit, ~choosing)]
    for action, margins in margin.items():
        best, best_loss = -1, np.inf
        for at, count in enumerate(tried):
            loss, hit = _loss(problem, margins[:, at], truth), _hit(problem, margins[:, at], truth)
            candidates.append(_candidate(action, int(count), loss[choosing], hit[choosing]))
            gain = (base_loss - loss)[choosing]
            # a gain within one standard error of nothing is left alone
            if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)) and loss[choosing].mean() < best_loss:
                best, best_loss = at, float(loss[choosing].mean())
        chosen = plain if best < 0 else margins[:, best]
        treated = 0 if best < 0 else int(tried[best])
        loss, hit = _loss(problem, chosen, truth), _hit(problem, chosen, truth)
        table.append(_report(action, treated, loss, hit, base_loss, base_hit, ~choosing))
    return Correction(pd.DataFrame(table), pd.DataFrame(candidates), (_finding(table),))


def _models(
    problem: Problem,
    rows: Rows,
    point: StationaryPoint,
    order: IntArray,
    new_label: FloatArray,
    counts: IntArray,
    action: str,
) -> FloatArray:
    """Coefficients after treating the first rows of ``order``, shape (p, len(counts))."""
    likelihood = problem.likelihood
    theta = np.empty((rows.p, len(counts)))
    start = point.theta[:, None]
    for at, count in enumerate(counts):
        labels, base = rows.y[:, None].copy(), rows.base_weight[:, None].copy()
        if action == "relabel":
            labels[order[:count], 0] = new_label[order[:count]]
        else:
            base[order[:count]] = 0.0
        weight = class_weights(problem, rows, labels, base)
        targets = likelihood.targets(labels[:, 0])[:, None]
        start = refit(rows, targets, weight, problem.penalty, start, point.curvature.solve, likelihood=likelihood)
        theta[:, at] = start[:, 0]
    return theta


def _half(truth: FloatArray, seed: int) -> Any:
    """Half of the rows of each class, bool of shape (m,)."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(truth), dtype=bool)
    for value in range(max(2, int(truth.max(initial=0.0)) + 1)):
        members = rng.permutation(np.flatnonzero(truth == value))
        chosen[members[: len(members) // 2]] = True
    return chosen


def _loss(problem: Problem, margin: FloatArray, truth: FloatArray) -> FloatArray:
    """Log-loss of every row, shape (m,)."""
    if problem.outputs == 1:
        return problem.likelihood.loss(margin, truth)
    probability = problem.probabilities(np.ascontiguousarray(margin.reshape(len(truth), -1).T))
    of_truth = probability[truth.astype(np.intp), np.arange(len(truth))]
    return np.asarray(-np.log(np.maximum(of_truth, np.finfo(float).tiny)))


def _hit(problem: Problem, margin: FloatArray, truth: FloatArray) -> FloatArray:
    if problem.outputs == 1:
        return np.asarray((margin > problem.cut) == (truth > 0.5), dtype=np.float64)
    return np.asarray(margin.reshape(len(truth), -1).argmax(axis=1) == truth, dtype=np.float64)


def _candidate(action: str, count: int, loss: FloatArray, hit: FloatArray) -> dict[str, Any]:
    return {"action": action, "count": count, "loss": float(loss.mean()), "accuracy": float(hit.mean())}


def _report(
    action: str,
    count: int,
    loss: FloatArray,
    hit: FloatArray,
    base_loss: FloatArray,
    base_hit: FloatArray,
    reporting: Any,
) -> dict[str, Any]:
    out: dict[str, Any] = {"action": action, "count": count}
    for name, value, base in (("loss", loss, base_loss), ("accuracy", hit, base_hit)):
        change = (value - base)[reporting]
        spread = 1.96 * float(change.std(ddof=1)) / np.sqrt(len(change))
        mean = float(change.mean())
        out[name] = float(value[reporting].mean())
        out[f"{name}_change"], out[f"{name}_change_low"] = mean, mean - spread
        out[f"{name}_change_high"] = mean + spread
    return {**out, "rows": int(reporting.sum())}


def _finding(table: list[dict[str, Any]]) -> Finding:
    relabel = table[1]
    if not relabel["count"]:
        return Finding("N020", "info", "Relabelling suspects does not lower the evaluation loss: leave the labels.")
    change = (
        f"{relabel['loss_change']:+.3f} (95 % interval {relabel['loss_change_low']:+.3f} to "
        f"{relabel['loss_change_high']:+.3f}) and accuracy by {100 * relabel['accuracy_change']:+.1f} points"
    )
    message = f"Relabelling the {relabel['count']} top suspects changes the evaluation loss by {change}."
    if relabel["loss_change_high"] < 0:
        return Finding("N021", "warning", message)
    return Finding("N020", "info", message + " That is within chance.")
