"""A worker that passes its memory limit: exit 3, what was finished is kept, and the next run goes on from there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from mlflow_relabel_audit.cli import main
from mlflow_relabel_audit.flips.order import influence as order
from mlflow_relabel_audit.flips.search import prefix as search
from mlflow_relabel_audit.rows import ClusterStore
from tests.test_cli import logged

distributed = pytest.importorskip("distributed")

__all__ = ["logged"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]

MEMORY = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.logging.distributed": "critical",
}


@contextmanager
def worker(limit: str) -> Iterator[str]:
    """The address of a scheduler with one worker process, whose nanny kills it beyond a limit."""
    import dask

    with (
        dask.config.set(MEMORY),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=limit,
            silence_logs="CRITICAL",
        ) as cluster,
    ):  # fmt: skip
        yield cluster.scheduler_address


def fill(block: Any, *given: Any) -> Any:
    """Take memory until somebody stops it."""
    held = []
    while True:
        held.append(np.ones(2**22))
        time.sleep(0.05)


def test_a_worker_out_of_memory(logged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, run_id, _ = logged
    monkeypatch.chdir(folder)
    monkeypatch.setattr(order, "MAX_BLOCK", 16)
    monkeypatch.setattr(search, "MAX_WIDTH", 16)
    # an absolute path: MLflow keeps an engine for each address, and a path from here was another test's
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    words = ["audit", "--tracking-uri", uri, "--run-id", run_id, "--no-log", "--target", "label"]
    words += ["--train-data", "train.parquet", "--eval-data", "test.parquet", "--max-predictions", "60"]

    def audited(name: str, *more: str) -> Any:
        return CliRunner().invoke(main, [*words, "--output-dir", str(tmp_path / name), *more])

    submit = ClusterStore._submit

    def greedy(self: ClusterStore, step: Any, *arguments: Any) -> Any:
        late = len(list(tmp_path.rglob("flip_sets-*.parquet"))) >= 2
        return submit(self, fill if late else step, *arguments)

    with worker("700MiB") as address, monkeypatch.context() as patch:
        patch.setattr(ClusterStore, "_submit", greedy)
        done = audited("out", "--dask", address)
    assert done.exit_code == 3, (done.output, done.exception)
    assert "they run out of memory; give workers more memory or use more of them" in done.stderr
    assert done.stderr.count("\n") == 1
    parts = list(tmp_path.rglob("predictions-*.parquet"))
    assert len(parts) >= 2
    shown: list[int] = []
    add = pd.DataFrame.to_parquet

    def noted(self: pd.DataFrame, path: Any, *arguments: Any, **options: Any) -> Any:
        if Path(path).name.startswith("predictions-"):
            shown.append(int(Path(path).stem.split("-")[1]))
        return add(self, path, *arguments, **options)

    with worker("8GiB") as address, monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", noted)
        done = audited("out", "--dask", address)
    assert done.exit_code == 0, (done.output, done.exception)
    assert min(shown) == len(parts)  # the parts that were there are not done again
    done = audited("memory")
    assert done.exit_code == 0, (done.output, done.exception)
    for name in ("predictions.parquet", "flip_sets.parquet"):
        found, wanted = (pd.read_parquet(tmp_path / each / name) for each in ("out", "memory"))
        floats = [column for column in wanted if wanted[column].dtype == np.float64]
        pd.testing.assert_frame_equal(found.drop(columns=floats), wanted.drop(columns=floats), check_exact=True)
        pd.testing.assert_frame_equal(found[floats], wanted[floats], rtol=1e-9, atol=1e-12)
