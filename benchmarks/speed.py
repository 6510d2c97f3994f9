"""What the flip sets cost, every figure a ratio taken in one run on one machine.

    python -m benchmarks.speed --data DIR [--sets sst hate ...] [--quick]

Without ``--data`` a drawn set is measured. Ratios, lower is better unless said:

estimate / product     time of the estimate pass over the bare float32 product it rests on (median of repeats)
products               float64 products of the training rows with one vector that the search spent, a prediction
search / product       time of the verified search over the time of one such product
bisection / search     bisecting on k with scikit-learn refits (fastest solver, default tolerance) over the search;
                       higher is better
published / estimate   a transcription of the published algorithm over the estimate pass; higher is better
T doubled, N doubled   time over half the predictions, over half the rows
k_lower / k            median of the certified bound over the verified size, also from the rows' own inner products;
                       higher is better
peak / matrix          peak memory above the start over the bytes of the design matrix and the factor, p x p or as it is
                       held (what is left after elimination, where rows are sparse); warm: after a small audit, which
                       leaves out what the libraries take once (about 7 MB)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from benchmarks.published import published
from benchmarks.sets import Set, drawn, load
from mlflow_relabel_audit import Auditor
from mlflow_relabel_audit.analyses.robustness import Fitted
from mlflow_relabel_audit.flips.order.influence import block_width, estimate
from mlflow_relabel_audit.flips.search.prefix import VerifiedSearch
from mlflow_relabel_audit.rows import Rows

CERTIFIED = 100
"""Predictions whose certificate is measured."""


def clock(work: Callable[[], Any], repeats: int) -> float:
    """Median seconds of repeated calls, after one uncounted."""
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def bisect(data: Set, order: np.ndarray, x: Any, cut: float, k: int) -> float:
    """Seconds to find k by bisecting on the influence order with refits, the bracket given for nothing."""
    solver = "lbfgs" if sp.issparse(data.X) or data.X.shape[1] > 2000 else "newton-cholesky"
    low, high = 0, min(2 * k, len(order))
    began = time.perf_counter()
    first = None
    while high - low > 1:
        middle = (low + high) // 2
        labels = data.y.copy()
        labels[order[:middle]] = 1 - labels[order[:middle]]
        model = LogisticRegression(C=1.0 / data.l2, solver=solver, max_iter=1000).fit(data.X, labels)
        side = float(model.decision_function(x)[0]) > cut
        first = side if first is None else first
        if middle >= k:
            high = middle
        else:
            low = middle
    return time.perf_counter() - began


def measure(data: Set, tests: int, quick: bool) -> dict[str, Any]:
    """All ratios of one set."""
    repeats = 2 if quick else 5
    tests = min(tests, data.X_test.shape[0])
    X_test = data.X_test[:tests]
    auditor = Auditor(data.fit(), data.X, data.y, threshold=data.threshold)
    fitted, rows = auditor.fitted, auditor.rows
    evaluation = auditor.evaluation_rows(X_test)
    width = min(block_width(rows, fitted.point.curvature.order), tests)

    def estimates() -> list[Any]:
        return list(estimate(rows, fitted.point, fitted.effect, evaluation, fitted.problem))

    narrow = rows.features.astype(np.float32)
    directions = np.random.default_rng(0).standard_normal((rows.features_in, width)).astype(np.float32)

    def product() -> None:
        for start in range(0, tests, width):
            narrow @ directions[:, : tests - start]

    estimate_seconds, product_seconds = clock(estimates, repeats), clock(product, repeats)
    wide = np.random.default_rng(1).standard_normal((rows.p, 64))
    one = clock(lambda: rows.margins(wide), repeats) / 64
    searcher = VerifiedSearch(fitted.problem, rows, fitted.point, fitted.effect, fitted.row_norms)
    found, orders, search_seconds = [], [], 0.0
    for block in estimate(rows, fitted.point, fitted.effect, evaluation, fitted.problem):
        began = time.perf_counter()
        found += searcher.run(block)
        search_seconds += time.perf_counter() - began
        orders += block.orders
    k = np.array([item.k for item in found])
    k_paper = np.array([order.k_paper for order in orders])
    seen = k_paper > 0
    result: dict[str, Any] = {
        "set": data.name,
        "rows": rows.n,
        "columns": rows.p,
        "predictions": tests,
        "curvature": auditor.curvature.kind,
        "verified share": float(np.mean([item.status == "verified" for item in found])),
        "mean k": float(k[k > 0].mean()),
        "mean k, where the paper's is found": float(k[seen].mean()) if seen.any() else None,
        "mean k_paper": float(k_paper[seen].mean()) if seen.any() else None,
        "paper's found share": float(seen.mean()),
        "estimate ms": 1e3 * estimate_seconds / tests,
        "estimate / product": estimate_seconds / product_seconds,
        "search ms": 1e3 * search_seconds / tests,
        "products": searcher.cost.products / tests,
        "own Hessians": searcher.cost.refreshed,
        "search / product": search_seconds / tests / one,
    }
    if sp.issparse(data.X):
        sample = np.random.default_rng(2).standard_normal((512, rows.features_in)).astype(np.float32)
        dense = clock(lambda: sample @ directions, repeats) * rows.n / 512 / width
        result["estimate / dense product"] = estimate_seconds / tests / dense
        result["search / dense product"] = search_seconds / tests / dense
    pick = [t for t in range(tests) if k[t] > 1][: 2 if quick else 6]
    seconds = []
    for t in pick:
        index = np.concatenate([orders[t].index, np.setdiff1d(np.arange(rows.n), orders[t].index)])
        seconds.append(bisect(data, index, X_test[t : t + 1], fitted.problem.cut, int(k[t])))
    if seconds:
        result["bisection / search"] = float(np.median(seconds)) / (search_seconds / tests)
    if not sp.issparse(data.X) and rows.n <= 12_000:
        result["published / estimate"] = published_seconds(data, X_test) / (estimate_seconds / tests)
    certified = X_test[: min(tests, CERTIFIED)]
    for name, certify in (("k_lower / k", True), ("k_lower / k, Gram", "gram")):
        if name == "k_lower / k" or rows.n <= 12_000:
            bounds = auditor.robustness(certified, certify=certify).predictions.query("status == 'verified'")
            result[name] = float((bounds["k_lower"] / bounds["k"]).median())
            result["k_lower above k"] = result.get("k_lower above k", 0) + int((bounds["k_lower"] > bounds["k"]).sum())
    halved, whole = (seconds_for(fitted, auditor.evaluation_rows(X_test[:some])) for some in (tests // 2, tests))
    result["T doubled"] = whole / halved
    if not sp.issparse(data.X):
        result["N doubled"] = doubled_rows(data, X_test)
    return result


def seconds_for(fitted: Fitted, evaluation: Rows) -> float:
    """Seconds of the estimate pass and the search over evaluation rows."""
    searcher = VerifiedSearch(fitted.problem, fitted.rows, fitted.point, fitted.effect, fitted.row_norms)
    began = time.perf_counter()
    for block in estimate(fitted.rows, fitted.point, fitted.effect, evaluation, fitted.problem):
        searcher.run(block)
    return time.perf_counter() - began


def published_seconds(data: Set, X_test: Any) -> float:
    """Seconds a prediction of the transcription, set-up shared over the predictions asked."""
    model = data.fit(solver="liblinear")
    began = time.perf_counter()
    published(model, data.X, data.y, X_test, data.l2, threshold=data.threshold)
    return (time.perf_counter() - began) / X_test.shape[0]


def doubled_rows(data: Set, X_test: Any) -> float:
    """Time of a whole audit over that of half the rows."""
    seconds = []
    for share in (2, 1):
        part = slice(0, data.X.shape[0] // share)
        some = Set(data.name, data.X[part], data.y[part], X_test, data.y_test, data.l2, data.threshold)
        model = some.fit()
        began = time.perf_counter()
        Auditor(model, some.X, some.y, threshold=data.threshold).robustness(X_test, certify=False)
        seconds.append(time.perf_counter() - began)
    return seconds[1] / seconds[0]


def _peak_bytes() -> int:
    """Most memory this process has held; the resource usage would begin with that of the process it came from."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def _audit_peak(data: Set, tests: int, warm: bool, pipe: Any) -> None:
    model = data.fit()
    if warm:
        tiny = drawn(300, 20, 20)
        Auditor(tiny.fit(), tiny.X, tiny.y).robustness(tiny.X_test, certify=False)
    before = _peak_bytes()
    auditor = Auditor(model, data.X, data.y, threshold=data.threshold)
    auditor.robustness(data.X_test[:tests], certify=False)
    after = _peak_bytes()
    rows: Rows = auditor.rows
    matrix = rows.features.data.nbytes if rows.sparse else rows.features.nbytes
    pipe.send((after - before, matrix, 8 * rows.p**2, 8 * auditor.curvature.order**2))


def peak(data: Set, tests: int, warm: bool = False) -> tuple[float, float]:
    """(Design matrix + what the audit adds at its peak) over (design matrix + factor), in a process of its own.

    The factor as a whole p x p matrix, and as it is held; ``warm`` after an audit of 300 x 20 rows, so without what
    the libraries take once, whatever the rows.
    """
    context = multiprocessing.get_context("spawn")  # a forked process would begin with this one's peak
    here, there = context.Pipe()
    worker = context.Process(target=_audit_peak, args=(data, tests, warm, there))
    worker.start()
    added, matrix, whole, held = here.recv()
    worker.join()
    return (matrix + added) / (matrix + whole), (matrix + added) / (matrix + held)


def table(results: list[dict[str, Any]]) -> str:
    """Results as a Markdown table, a column per set."""
    names = list(dict.fromkeys(name for result in results for name in result if name != "set"))
    lines = ["| | " + " | ".join(result["set"] for result in results) + " |", "|---" * (len(results) + 1) + "|"]
    for name in names:
        cells = [result.get(name) for result in results]
        lines.append(f"| {name} | " + " | ".join(shown(cell) for cell in cells) + " |")
    return "\n".join(lines)


def shown(cell: Any) -> str:
    """A figure to three digits, a count in full."""
    if cell is None:
        return ""
    return f"{cell:.3g}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)


def main(arguments: list[str] | None = None) -> int:
    """Measure the sets asked for and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the data sets; without it a drawn set is measured")
    parser.add_argument("--sets", nargs="+", default=["sst", "hate", "loan", "adult", "tweet"])
    parser.add_argument("--tests", type=int, default=512, help="predictions a set")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    options = parser.parse_args(arguments)
    results = []
    for name in options.sets if options.data else ["drawn"]:
        data = load(options.data, name)
        print(f"{data.name}: {data.X.shape[0]} x {data.X.shape[1]}", file=sys.stderr, flush=True)
        tests = 128 if options.quick else options.tests
        result = measure(data, tests, options.quick)
        result["peak / (matrix + factor)"], result["peak / (matrix + factor held)"] = peak(data, tests)
        result["peak / (matrix + factor held), warm"] = peak(data, tests, warm=True)[1]
        results.append(result)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "speed.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"{platform.platform()}, {platform.processor() or platform.machine()}, numpy {np.__version__}\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
