"""Tables 3 and 8: milliseconds a prediction, beside the published algorithm on the same machine."""

from __future__ import annotations

import statistics
import time
import warnings
from dataclasses import replace
from typing import Any

import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning

from benchmarks.paper.bench import Bench, tight
from benchmarks.published import fit, published
from mlflow_relabel_audit import Auditor

WORDS = 1000
"""Counts are timed on their most frequent words: the published algorithm inverts a dense p x p matrix."""
DENSE = 2500
REPEATS = 3


def cost(bench: Bench) -> dict[str, Any]:
    """Seconds of the published algorithm, of the estimate pass and of the verified search; set-up is shared."""
    data, entry = bench.data, bench.entry
    if sp.issparse(data.X) and data.X.shape[1] > DENSE:
        if entry.features != "counts":
            return {"skipped": f"{data.X.shape[1]:,} sparse columns; the published algorithm needs them dense"}
        data = replace(entry.load(bench.folder, words=WORDS), l2=data.l2)
    rows = min(len(data.y), bench.sizes.timed_rows)
    tests = min(data.X_test.shape[0], bench.sizes.timed)
    data = replace(data, X=data.X[:rows], y=data.y[:rows], X_test=data.X_test[:tests])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        run = published(fit(data.X, data.y, data.l2), data.X, data.y, data.X_test, data.l2, data.threshold)
    bench.progress(1, 3)
    model = tight(data)
    setup, estimate, verified = [], [], []
    for repeat in range(REPEATS):
        began = time.perf_counter()
        auditor = Auditor(model, data.X, data.y, threshold=data.threshold)
        setup.append(time.perf_counter() - began)
        for verify, seconds in ((False, estimate), (True, verified)):
            if verify and repeat:
                continue
            began = time.perf_counter()
            auditor.robustness(data.X_test, verify=verify, certify=False)
            seconds.append(time.perf_counter() - began)
    bench.progress(2, 3)
    milliseconds = 1e3 / tests
    ours = statistics.median(setup)
    return {
        "rows": rows,
        "columns": data.X.shape[1],
        "predictions": tests,
        "published_ms": milliseconds * (run.setup_seconds + run.search_seconds),
        "published_search_ms": milliseconds * run.search_seconds,
        "estimate_ms": milliseconds * (ours + statistics.median(estimate)),
        "verified_ms": milliseconds * (ours + statistics.median(verified)),
    }
