"""What size costs: time and peak memory as rows and predictions double, on disk, and on Dask.

    python -m benchmarks.scale flights --data DIR [--tests 1000 --searched 32]
    python -m benchmarks.scale drawn [--rows 10000000 --columns 100 --searched 8 --memory-limit 1GiB]
    python -m benchmarks.scale dask --data DIR [--searched 16]

Every measurement is a process of its own, so that its peak memory is its own. The estimate pass runs over all
predictions asked for; the verified search and the certificate over the first ``--searched`` of them, the rest would
only take longer.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from benchmarks.sets import tabular
from mlflow_relabel_audit import Auditor
from mlflow_relabel_audit.analyses.robustness import bounded_below
from mlflow_relabel_audit.flips.order.influence import estimate
from mlflow_relabel_audit.flips.search.prefix import VerifiedSearch

ROW_GROUP = 50_000
L2 = 100.0
STAGES = ("estimate", "estimate CPU", "search", "search CPU", "levels", "certificate", "certificate CPU")


def alone(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run in a fresh process; adds its peak memory above what its imports take, in MiB."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    result: dict[str, Any] = ours.recv()
    process.join()
    return result


def _send(pipe: Any, work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = work(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    pipe.send({**found, "peak MiB": peak / 1024})
    pipe.close()


def audit(folder: Path, tests: int, searched: int, options: dict[str, Any], rows: int | None = None) -> dict[str, Any]:
    """Seconds of each stage on the rows of a folder, of the wall and of CPU; k of the searched predictions beside them.

    CPU seconds are those of this process and of the workers' together; other loads stretch the wall alone.
    """
    seconds: dict[str, Any] = {}

    def spent() -> float:
        client = None if auditor is None else getattr(auditor.rows.store, "client", None)
        return time.process_time() + (0.0 if client is None else sum(client.run(time.process_time).values()))

    def clock(name: str, work: Callable[[], Any]) -> Any:
        before, began = spent(), time.perf_counter()
        out = work()
        seconds[name] = time.perf_counter() - began
        if auditor is not None:
            seconds[f"{name} CPU"] = spent() - before
        return out

    auditor: Any = None

    with np.load(folder / "model.npz") as kept:
        model, asked = _model(kept), kept["tests"][:tests]
    path = folder / "rows" if rows is None else folder / f"rows-{rows}"
    auditor = clock("read, factor", lambda: Auditor.from_parquet(model, path, "label", **options))
    fitted = clock("row norms", lambda: auditor.fitted)
    evaluation = auditor.evaluation_rows(asked)
    args = (fitted.rows, fitted.point, fitted.effect, evaluation, fitted.problem)
    blocks = clock("estimate", lambda: sum(len(block.orders) for block in estimate(*args)))
    assert blocks == len(asked)
    searcher = VerifiedSearch(fitted.problem, fitted.rows, fitted.point, fitted.effect, fitted.row_norms)
    few = auditor.evaluation_rows(asked[:searched])
    args = (*args[:3], few, args[4])
    found = clock("search", lambda: [item for block in estimate(*args) for item in searcher.run(block)])
    certified = clock("levels", lambda: auditor.certified)
    orders = list(estimate(*args))
    lower = clock("certificate", lambda: [k for _, part in bounded_below(certified, iter(orders)) for k in part])
    return {
        **seconds,
        "estimate ms each": 1e3 * seconds["estimate"] / len(asked),
        "search ms each": 1e3 * seconds["search"] / len(found),
        "certificate ms each": 1e3 * seconds["certificate"] / len(found),
        "products each": searcher.cost.products / len(found),
        "k": [item.k for item in found],
        "k_lower": [int(k) for k in lower],
        "verified": float(np.mean([item.status == "verified" for item in found])),
        "rows": auditor.rows.n,
        "columns": auditor.rows.p,
        "blocks": len(auditor.rows.store.bounds),
    }


def _model(kept: Any) -> Any:
    model = LogisticRegression(C=1.0 / L2)
    model.coef_, model.intercept_ = kept["theta"][None, :-1], kept["theta"][-1:]
    model.classes_, model.n_iter_ = np.array([0, 1]), np.array([1])
    model.n_features_in_ = len(kept["theta"]) - 1
    if "sparse" not in kept:
        return model
    return make_pipeline(FunctionTransformer(sp.csr_matrix), model)  # one-hot columns, kept as CSR


def dense(X: Any) -> np.ndarray:
    """Rows as an array."""
    return np.asarray(X.toarray() if sp.issparse(X) else X)


def write_flights(data: Path, folder: Path) -> None:
    """Flights one-hot as Parquet, and halves of it, with a fit of each."""
    whole = tabular(data, "flights", L2)
    for count in (len(whole.y) // 2, len(whole.y)):
        write_rows(folder / f"rows-{count}", ((whole.X[a : a + ROW_GROUP], whole.y[a : a + ROW_GROUP])
                   for a in range(0, count, ROW_GROUP)), count)  # fmt: skip
        fit = LogisticRegression(C=1.0 / L2, tol=1e-6, max_iter=1000).fit(whole.X[:count], whole.y[:count])
        theta = np.append(fit.coef_[0], fit.intercept_)
        np.savez(folder / f"model-{count}.npz", theta=theta, tests=dense(whole.X_test[:20_000]), sparse=True)


def write_rows(folder: Path, chunks: Any, count: int) -> None:
    """Write chunks of (features, labels) as one Parquet file of at most ``count`` rows."""
    folder.mkdir(parents=True)
    writer, left = None, count
    for X, y in chunks:
        X, y = dense(X[:left]), y[:left]
        left -= len(y)
        table = pa.table({**{f"x{j}": X[:, j] for j in range(X.shape[1])}, "label": np.asarray(y)})
        writer = writer or pq.ParquetWriter(folder / "part.parquet", table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


def drawn_chunks(rows: int, columns: int, seed: int = 0) -> Any:
    """Independent float32 features, a label each."""
    weights = np.random.default_rng(seed).standard_normal(columns) / np.sqrt(columns)
    for number, start in enumerate(range(0, rows, ROW_GROUP)):
        rng = np.random.default_rng((seed, number))
        X = rng.standard_normal((min(ROW_GROUP, rows - start), columns), dtype=np.float32)
        yield X, (X @ weights + rng.logistic(size=len(X)) > 0).astype(np.int64)


def write_drawn(rows: int, columns: int, folder: Path) -> None:
    """Drawn rows, and the minimiser found by Newton's method over the chunks."""
    write_rows(folder / f"rows-{rows}", drawn_chunks(rows, columns), rows)
    theta = np.zeros(columns + 1)
    penalty = np.append(np.full(columns, L2), 0.0)
    for share in (50, 50, 50, 1, 1, 1):  # on some of the rows first, which is near
        gradient, hessian = penalty / share * theta, np.diag(penalty / share)
        for X, y in drawn_chunks(max(rows // share, ROW_GROUP), columns):
            X = np.hstack([X, np.ones((len(X), 1))])
            p = 1.0 / (1.0 + np.exp(-X @ theta))
            gradient = gradient + X.T @ (p - y)
            root = X * np.sqrt(p * (1 - p))[:, None]
            hessian = hessian + root.T @ root
        theta = theta - np.linalg.solve(hessian, gradient)
    tests = np.random.default_rng(99).standard_normal((4096, columns), dtype=np.float32)
    np.savez(folder / f"model-{rows}.npz", theta=theta, tests=tests)


def point(folder: Path, rows: int) -> Path:
    """Make ``model.npz`` that of so many rows."""
    link = folder / "model.npz"
    link.unlink(missing_ok=True)
    link.symlink_to(folder / f"model-{rows}.npz")
    return folder


def show(name: str, result: dict[str, Any]) -> None:
    """One line, every prediction's k left out."""
    told = {key: value for key, value in result.items() if not isinstance(value, list)}
    cells = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in told.items()]
    print(f"{name}: " + ", ".join(cells), flush=True)


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs gave every prediction the same k and the same bound."""
    return all(one[name] == other[name] for name in ("k", "k_lower"))


def doubled(what: str, half: dict[str, Any], whole: dict[str, Any]) -> None:
    """Print how much more twice as much takes."""
    ratios = [f"{name} {whole[name] / half[name]:.2f}" for name in (*STAGES, "peak MiB")]
    print(f"{what} doubled: {', '.join(ratios)}", flush=True)


def flights(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """As T and N double, in memory; the same on disk within the limit."""
    if not list(folder.glob("model-*.npz")):
        write_flights(options.data, folder)
    half, whole = sorted(int(path.stem.split("-")[1]) for path in folder.glob("model-*.npz"))
    results = {}
    for name, rows, tests, extra in (
        ("in memory", whole, options.tests, {}),
        ("half the predictions", whole, options.tests // 2, {}),
        ("half the rows", half, options.tests, {}),
        ("20,000 predictions", whole, 20_000, {}),
        (f"on disk, {options.memory_limit}", whole, options.tests, {"memory_limit": options.memory_limit}),
    ):
        searched = options.searched if tests == options.tests else options.searched // 2
        results[name] = alone(audit, point(folder, rows), tests, searched, extra, rows)
        show(name, results[name])
    doubled("rows", results["half the rows"], results["in memory"])
    doubled("predictions", results["half the predictions"], results["in memory"])
    print(f"k and k_lower on disk as in memory: {alike(results['in memory'], results[name])}")
    return results


def drawn(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rows that are larger than the limit, and half of them."""
    results = {}
    for rows in (options.rows // 2, options.rows):
        if not (folder / f"model-{rows}.npz").exists():
            began = time.perf_counter()
            write_drawn(rows, options.columns, folder)
            print(f"drawn and fitted {rows:,} rows in {time.perf_counter() - began:.0f} s", flush=True)
        extra = {"memory_limit": options.memory_limit}
        name = f"{rows:,} rows on disk, {options.memory_limit}"
        results[name] = alone(audit, point(folder, rows), options.tests, options.searched, extra, rows)
        show(name, results[name])
    doubled("rows", *results.values())
    return results


def on_dask(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One and two worker processes, a thread each, beside the same in one process of one thread."""
    import distributed

    if not list(folder.glob("model-*.npz")):
        write_flights(options.data, folder)
    rows = max(int(path.stem.split("-")[1]) for path in folder.glob("model-*.npz"))
    results = {"in memory": alone(audit, point(folder, rows), options.tests, options.searched, {}, rows)}
    show("in memory", results["in memory"])
    for workers in (1, 2):
        with distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster:
            extra = {"dask": cluster.scheduler_address}
            results[f"{workers} worker(s)"] = alone(
                audit, point(folder, rows), options.tests, options.searched, extra, rows
            )
            show(f"{workers} worker(s)", results[f"{workers} worker(s)"])
    base = results["in memory"]
    for name, found in results.items():
        ratios = [f"{stage} {found[stage] / base[stage]:.2f}" for stage in STAGES]
        print(f"{name} over memory: {', '.join(ratios)}; same k and k_lower: {alike(found, base)}")
    return results


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for and print a line each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["flights", "drawn", "dask"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tests", type=int, default=1000)
    parser.add_argument("--searched", type=int, default=32)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--memory-limit", default="1GiB")
    parser.add_argument("--folder", type=Path, help="where drawn rows are kept for the next time")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    options = parser.parse_args(arguments)
    if options.what != "drawn" and options.data is None:
        parser.error("--data DIR: the folder of the data sets")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        results = {"flights": flights, "drawn": drawn, "dask": on_dask}[options.what](options, folder.absolute())
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"scale-{options.what}.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"numpy {np.__version__}, Python {sys.version.split()[0]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
