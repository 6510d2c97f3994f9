"""Table 1, Figure 6 and Tables 4 and 7: wrong labels planted in the training set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from benchmarks.paper.bench import Bench
from mlflow_relabel_audit.analyses.noise.injected import noise_curve

PLANTED = 1000
FEW = 2
NOISE = 0.3


def mislabelled(bench: Bench) -> dict[str, Any]:
    """Invert 1,000 training labels; the misclassified test rows that one or two relabels flip."""
    rng = np.random.default_rng(bench.seed)
    n = len(bench.data.y)
    planted = rng.permutation(n)[: min(PLANTED, n // 5)]
    noisy = bench.relabelled(planted)
    errors = np.flatnonzero(~noisy.correct())
    wrong = np.sort(rng.permutation(errors)[: bench.sizes.errors])
    found = noisy.auditor.robustness(
        noisy.data.X_test[wrong],
        certify=False,
        row_ids=wrong,
        progress=lambda done, total, stage: bench.progress(done, total),
    )
    table = found.predictions.set_index("row_id")
    sets = found.flip_sets.groupby("row_id")["train_id"].apply(list)
    k = table["k"].astype("Float64")
    few = [row for row in table.index[(k <= FEW).fillna(False)] if row in sets.index]
    marked = np.zeros(n, dtype=bool)
    marked[planted] = True
    before = bench.correct()
    return {
        "planted": len(planted),
        "rows": n,
        "misclassified": len(errors),
        "newly_misclassified": int(before[errors].sum()),
        "asked": len(wrong),
        "verified": int(k.notna().sum()),
        "few": [
            {
                "row_id": row,
                "label": int(bench.data.y_test[row]),
                "probability": table.loc[row, "probability"],
                "train_ids": sets[row],
                "planted": marked[sets[row]].tolist(),
                "right_before": bool(before[row]),
            }
            for row in few
        ],
        "planted_share": [float(marked[chosen].mean()) for chosen in sets if len(chosen)],
    }


def curve(bench: Bench) -> dict[str, Any]:
    """k and accuracy as more of the labels are replaced by coin tosses, and by the other class."""
    auditor, data = bench.auditor, bench.data
    evaluation = auditor.evaluation_rows(data.X_test)
    kinds = ("coin", "inverted")
    tables = {}
    for at, kind in enumerate(kinds):
        found = noise_curve(
            auditor.problem,
            auditor.rows,
            auditor.point,
            evaluation.features,
            data.y_test.astype(np.float64),
            draws=bench.sizes.draws,
            predictions=bench.sizes.curve,
            kind=kind,
            seed=bench.seed,
            progress=lambda done, total, at=at: bench.progress(done + at * total, len(kinds) * total),
        )
        tables[kind] = {"draws": found.draws, "predictions": found.predictions, **found.table.to_dict(orient="list")}
    return tables


def removal(bench: Bench) -> dict[str, Any]:
    """Compare relabelling with removal by Algorithms 1 and 2, on the labels as they are and with 30 % inverted."""
    n = len(bench.data.y)
    planted = np.random.default_rng(bench.seed).permutation(n)[: round(NOISE * n)]
    index = bench.test_rows(bench.sizes.removed)
    out: dict[str, Any] = {"rows": n, "predictions": len(index)}
    for at, (name, wrong) in enumerate((("clean", planted[:0]), ("noisy", planted))):
        here = bench.relabelled(wrong) if len(wrong) else bench
        marked = np.zeros(n, dtype=bool)
        marked[wrong] = True
        X_test, methods = bench.data.X_test[index], {}
        result = here.auditor.robustness(X_test, certify=False)
        sets = result.flip_sets.groupby("row_id")["train_id"].apply(list)
        verified = result.predictions["status"] == "verified"
        methods["relabel"] = [
            _row(sets.get(row, []), marked, bool(known) or None)
            for row, known in zip(result.predictions["row_id"], verified, strict=True)
        ]
        bench.progress(4 * at + 1, 8)
        for step, (label, options) in enumerate(
            {
                "removal 1": {"algorithm": 1},
                "removal 2": {"algorithm": 2},
                "removal, searched": {"algorithm": 1, "search": True},
            }.items()
        ):
            table = here.auditor.removal(X_test, **options)
            methods[label] = [
                _row(ids, marked, None if pd.isna(flipped) else bool(flipped))
                for ids, flipped in zip(table["train_ids"], table["flipped"], strict=True)
            ]
            bench.progress(4 * at + 2 + step, 8)
        out[name] = methods
    return out


def _row(ids: Any, marked: np.ndarray, flipped: bool | None) -> dict[str, Any]:
    chosen = np.asarray(ids, dtype=np.intp)
    wrong = int(marked[chosen].sum())
    return {"k": len(chosen) or None, "planted": wrong, "normal": len(chosen) - wrong, "flipped": flipped}
