"""The noise audit of several classes beside cleanlab, on sets that ship with scikit-learn, with injected noise.

    python -m benchmarks.noise_classes [--sets iris wine digits] [--seeds 3] [--output DIR]

Labels go wrong to any other class alike (uniform), to the next class (pairwise), or in the first class only. Cleanlab
gets shuffled stratified 5-fold probabilities of the same kind of model. A third of the rows is held out; "evaluation"
gives them to the audit with their right labels.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from mlflow_relabel_audit import Auditor

SETS = {"iris": datasets.load_iris, "wine": datasets.load_wine, "digits": datasets.load_digits}
NOISES = (
    ("none", 0.0),
    ("uniform", 0.05),
    ("uniform", 0.2),
    ("uniform", 0.4),
    ("pairwise", 0.1),
    ("pairwise", 0.3),
    ("first class", 0.3),
)


def inject(labels: np.ndarray, kind: str, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Labels some of which are wrong, and which are."""
    classes = int(labels.max()) + 1
    wrong = rng.random(len(labels)) < rate
    if kind == "first class":
        wrong &= labels == 0
    step = 1 if kind == "pairwise" else rng.integers(1, classes, size=len(labels))
    return np.where(wrong, (labels + step) % classes, labels), wrong


def measure(X: np.ndarray, y: np.ndarray, kind: str, rate: float, seed: int) -> dict[str, Any]:
    """Average precision, flags, suggestions, rate and seconds of one setting."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    train, held = order[len(y) // 3 :], order[: len(y) // 3]
    given, wrong = inject(y[train], kind, rate, rng)
    model = LogisticRegression(max_iter=5000, tol=1e-8).fit(X[train], given)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    probability = cross_val_predict(
        LogisticRegression(max_iter=5000), X[train], given, cv=folds, method="predict_proba"
    )
    out: dict[str, Any] = {"rate": float(wrong.mean())}
    flagged = find_label_issues(given, probability, n_jobs=1)
    out["cleanlab"] = _ranking(-get_label_quality_scores(given, probability), flagged, wrong)
    auditor = Auditor(model, X[train], given)
    for name, extra in (("alone", ()), ("evaluation", (X[held], y[held]))):
        began = time.perf_counter()
        result = auditor.noise(*extra)
        seconds = time.perf_counter() - began
        suspects = result.suspects
        flagged = np.zeros(len(wrong), dtype=bool)
        flagged[suspects["train_id"].to_numpy()] = True
        found = wrong & flagged
        suggested = result.scores["suggested_label"].to_numpy()
        estimate, low, high = result.noise_rate
        out[name] = {
            **_ranking(result.scores["score"].to_numpy(), flagged, wrong),
            "suggested right": float((suggested == y[train])[found].mean()) if found.any() else np.nan,
            "estimate": estimate,
            "covered": float(low <= wrong.mean() <= high),
            "silent": float(low < 0.01),
            "seconds": seconds,
        }
    return out


def _ranking(score: np.ndarray, flagged: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    return {
        "ap": float(average_precision_score(wrong, score)) if wrong.any() else np.nan,
        "flagged": float(flagged.sum()),
        "right": float((flagged & wrong).sum()),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure every setting and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    lines = []
    for name in options.sets:
        X, y = SETS[name](return_X_y=True)
        X = StandardScaler().fit_transform(X)
        for kind, rate in NOISES:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = [measure(X, y, kind, rate, seed) for seed in range(options.seeds)]
            mean = pd.json_normalize(found).mean()
            lines.append({"set": name, "noise": f"{kind} {rate:.0%}" if rate else kind, **mean.round(3).to_dict()})
            print(json.dumps(lines[-1]), flush=True)
    table = pd.DataFrame(lines)
    if options.output is not None:
        table.to_csv(options.output / "noise_classes.csv", index=False)
    print(table.to_string())


if __name__ == "__main__":
    main()
