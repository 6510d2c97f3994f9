"""Table 2 and Figures 3 to 5 and 7 to 10: how many labels flip a prediction, and whether they do."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import f1_score, roc_auc_score

from benchmarks.paper.bench import Bench, flipped_labels, tight
from benchmarks.paper.transcribed import transcribed
from benchmarks.published import PublishedRun, fit, refit_flips

CONFIRM_TOLERANCE = 1e-6
"""A refitted margin nearer to zero than this has no sign that scikit-learn's tolerance would settle."""


def sizes(bench: Bench) -> dict[str, Any]:
    """Find k for a sample of the test set, and confirm some of it by refits of scikit-learn's own."""
    data, index = bench.data, bench.test_rows(bench.sizes.predictions)
    began = time.perf_counter()
    auditor = bench.auditor
    found = auditor.robustness(
        data.X_test[index],
        data.y_test[index],
        certify=False,
        row_ids=index,
        progress=lambda done, total, stage: bench.progress(done, total),
    )
    table = found.predictions
    result = {name: list(_plain(table[name])) for name in ("row_id", "label", "probability", "status", "correct")}
    result |= {name: list(_plain(table[name])) for name in ("k_paper", "k_estimate", "k")}
    result["rows"], result["columns"] = auditor.rows.n, auditor.rows.features_in
    result["curvature"], result["seconds"] = auditor.curvature.kind, time.perf_counter() - began
    result["quality"] = quality(bench)
    result["confirmed"] = confirm(bench, table, found.flip_sets)
    return result


def quality(bench: Bench) -> dict[str, float]:
    """Accuracy, F1 and area under the curve on the whole test set."""
    probability = bench.model.predict_proba(bench.data.X_test)[:, 1]
    truth = bench.data.y_test > 0.5
    both = truth.any() and not truth.all()
    return {
        "accuracy": float(bench.correct().mean()),
        "f1": float(f1_score(truth, probability > bench.data.threshold, zero_division=0.0)),
        "auc": float(roc_auc_score(truth, probability)) if both else float("nan"),
    }


def confirm(bench: Bench, table: pd.DataFrame, flip_sets: pd.DataFrame) -> list[dict[str, Any]]:
    """Refit with k and with k - 1 labels changed, at tight tolerance, for predictions drawn at random."""
    known = table[table["k"].notna()]
    drawn = known.sample(min(bench.sizes.confirmed, len(known)), random_state=bench.seed)
    ranked = flip_sets.sort_values(["row_id", "rank"])
    cut = np.log(bench.data.threshold / (1.0 - bench.data.threshold))
    out = []
    for row, k, margin in zip(drawn["row_id"], drawn["k"], drawn["margin"], strict=True):
        index = ranked.loc[ranked["row_id"] == row, "train_id"].to_numpy()
        after = []
        for size in (k, k - 1):
            model = tight(bench.data, flipped_labels(bench.data.y, index[:size]))
            after.append(float(model.decision_function(bench.data.X_test[[row]])[0]) - cut)
        signs = [(value > 0) != (margin > 0) for value in after]
        doubtful = min(abs(value) for value in after) < CONFIRM_TOLERANCE
        out.append({"row_id": row, "k": k, "flips": signs[0], "one_less_flips": signs[1], "doubtful": doubtful})
    return out


def published(bench: Bench) -> dict[str, Any]:
    """Run Algorithm 1 as published; refits of the sets it finds, with its leak of labels and without."""
    data, index = bench.data, bench.test_rows(bench.sizes.refitted)
    X_test = data.X_test[index]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        run = transcribed(fit(data.X, data.y, data.l2), data.X, data.y, X_test, data.l2, data.threshold)
        flips = {leak: _refits(bench, run, X_test, leak) for leak in (True, False)}
    return {
        "row_id": index.tolist(),
        "probability": run.probability.tolist(),
        "k": [int(k) or None for k in run.k],
        "flipped_leak": flips[True].tolist(),
        "flipped_clean": flips[False].tolist(),
        "smaller": smaller(bench, index, run),
    }


def smaller(bench: Bench, index: np.ndarray, run: PublishedRun) -> list[dict[str, Any]]:
    """Published sets that are smaller than ours, and whether they flip a refit that is run to the end.

    The published refits stop where lbfgs does by default, which can decide a margin near zero.
    """
    found = bench.auditor.robustness(bench.data.X_test[index], certify=False).predictions
    cut = np.log(bench.data.threshold / (1.0 - bench.data.threshold))
    out = []
    for row, theirs, chosen, ours, margin in zip(index, run.k, run.sets, found["k"], found["margin"], strict=True):
        if theirs and not pd.isna(ours) and theirs < ours:
            model = tight(bench.data, flipped_labels(bench.data.y, chosen))
            after = float(model.decision_function(bench.data.X_test[[row]])[0]) - cut
            out.append({"row_id": row, "published": theirs, "ours": ours, "flips": (after > 0) != (margin > 0)})
    return out


def _refits(bench: Bench, run: PublishedRun, X_test: Any, leak: bool) -> np.ndarray:
    def report(done: int, total: int) -> None:
        bench.progress(done + (0 if leak else total), 2 * total)

    data = bench.data
    return refit_flips(run, data.X, data.y, X_test, data.l2, data.threshold, leak=leak, progress=report)


def _plain(column: pd.Series) -> Any:
    return (None if pd.isna(value) else value for value in column.tolist())
