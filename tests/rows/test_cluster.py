"""Rows on a real scheduler with worker processes: the same answers as in memory, lost workers, named errors."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mlflow_relabel_audit import Auditor
from mlflow_relabel_audit.errors import StoreError
from mlflow_relabel_audit.flips.order.influence import estimate
from mlflow_relabel_audit.flips.relabelling import RelabelEffect
from mlflow_relabel_audit.flips.search import prefix as search
from mlflow_relabel_audit.rows import ClusterStore, ParquetSource, Rows
from tests.flips.fitting import fitted
from tests.rows.test_spill import model, same, small_blocks, table

distributed = pytest.importorskip("distributed")
cloudpickle = pytest.importorskip("cloudpickle")

__all__ = ["small_blocks"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    import dask

    options = {"distributed.scheduler.allowed-failures": 1, "distributed.logging.distributed": "critical"}
    with (
        dask.config.set(options),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs="CRITICAL"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def compare(auditors: tuple[Auditor, Auditor], asked: Any, labels: Any) -> None:
    found, wanted = (auditor.robustness(asked, labels) for auditor in auditors)
    same(found, wanted)
    assert (found.predictions["status"] == "verified").sum() > 8


@pytest.mark.parametrize("kind", ["text", "balanced"])
def test_same_answers_as_in_memory(
    kind: Any, client: Any, tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "keeps", lambda rows, width: False)
    frame, test = table(), table(12)
    estimator, X = model(kind, frame)
    frame.iloc[:250].to_parquet(tmp_path / "a.parquet", row_group_size=90)
    frame.iloc[250:].to_parquet(tmp_path / "b.parquet")
    text = "text" if kind == "text" else None
    inside = Auditor(estimator, X, frame["label"])
    outside = Auditor.from_parquet(estimator, tmp_path, "label", text=text, dask=client)
    assert len(outside.rows.store.bounds) > 5
    assert outside.fingerprint == inside.fingerprint
    compare((outside, inside), test["text"] if text else test.drop(columns=["label", "text"]), test["label"])


def test_a_worker_killed_in_the_middle(client: Any, small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "keeps", lambda rows, width: False)
    frame, test = table(), table(12)
    estimator, X = model(None, frame)
    inside, outside = Auditor(estimator, X, frame["label"]), Auditor(estimator, X, frame["label"], dask=client)
    before = set(client.run(os.getpid).values())
    passes = 0
    submit = ClusterStore._submit

    def counting(self: ClusterStore, *arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 12:
            os.kill(min(before), 9)
        return submit(self, *arguments)

    monkeypatch.setattr(ClusterStore, "_submit", counting)
    compare((outside, inside), test.drop(columns=["label", "text"]), test["label"])
    assert passes > 20
    client.wait_for_workers(2, timeout=30)
    assert set(client.run(os.getpid).values()) != before


def test_rows_do_not_travel(client: Any, small_blocks: None) -> None:
    X = np.random.default_rng(0).standard_normal((900, 4))
    kept = ClusterStore(client, X, _plain, X[:2], True)
    rows = Rows(kept, np.zeros(900), np.ones(900), intercept=True)
    theta = np.ones((5, 2))
    first = rows.margins(theta)
    assert np.array_equal(first, Rows(X, np.zeros(900), np.ones(900), intercept=True).margins(theta))
    where = client.who_has(kept._parts)
    assert {worker for held in where.values() for worker in held} == set(client.scheduler_info()["workers"])
    rows.pull(first)
    now = client.who_has(kept._parts)
    assert all(set(where[key]) & set(now[key]) for key in where)  # Dask may copy one to an idle worker, none goes


def test_heads_travel_and_not_the_influences(client: Any, small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fitted(n=6000, C=1e-3, noise=3.0)
    kept = ClusterStore(client, model.X, _plain, model.X[:2], True)
    rows = Rows(kept, model.y, model.weight, intercept=True)
    effect = RelabelEffect.at(model.problem, model.rows, model.point)
    asked = model.evaluation(np.random.default_rng(3).standard_normal((40, 4)))
    came: list[int] = []
    brought = ClusterStore.map

    def watched(self: ClusterStore, *arguments: Any) -> Any:
        for item in brought(self, *arguments):
            came.append(len(cloudpickle.dumps(item)))
            yield item

    monkeypatch.setattr(ClusterStore, "map", watched)
    found, wanted = (
        [order for block in estimate(each, model.point, effect, asked, model.problem) for order in block.orders]
        for each in (rows, model.rows)
    )
    for one, two in zip(found, wanted, strict=True):
        assert (one.k_estimate, one.k_paper) == (two.k_estimate, two.k_paper)
        assert np.array_equal(one.index[: one.k_estimate], two.index[: two.k_estimate])
    assert sum(came) < 4 * rows.n * asked.n / 3  # 94 blocks of 64 rows: half of it are envelopes


def test_certificates_are_summed_where_the_rows_are(
    client: Any, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bounds as in memory, and nothing that has a number for each row comes back once it is prepared."""
    rng = np.random.default_rng(5)
    X, asked = rng.standard_normal((1_500, 4)), rng.standard_normal((12, 4))
    y = (X[:, 0] + rng.standard_normal(1_500) > 0).astype(int)
    model = LogisticRegression(C=0.1, tol=1e-10).fit(X, y)
    inside, outside = Auditor(model, X, y), Auditor(model, X, y, dask=client)
    wanted, first = (
        each.robustness(asked, verify=False, certify=True).predictions["k_lower"] for each in (inside, outside)
    )
    assert wanted.max() > 2
    assert first.equals(wanted)
    axes: list[int] = []
    bring = ClusterStore._bring

    def watched(self: ClusterStore, *arguments: Any) -> Any:
        found = bring(self, *arguments)
        axes.extend(length for array in _arrays(found) for length in array.shape)
        return found

    monkeypatch.setattr(ClusterStore, "_bring", watched)
    again = outside.robustness(asked, verify=False, certify=True).predictions["k_lower"]
    assert again.equals(wanted)
    assert axes
    assert max(axes) < 1_500
    os.kill(min(client.run(os.getpid).values()), 9)  # half of what is kept is lost
    assert outside.robustness(asked, verify=False, certify=True).predictions["k_lower"].equals(wanted)


def _arrays(found: Any) -> list[np.ndarray]:
    if isinstance(found, np.ndarray):
        return [found]
    return [array for part in found for array in _arrays(part)] if isinstance(found, (list, tuple)) else []


def test_large_coefficients_reach_every_pass(client: Any, small_blocks: None) -> None:
    X = np.random.default_rng(1).standard_normal((300, 4))
    rows = Rows(ClusterStore(client, X, _plain, X[:2], True), np.zeros(300), np.ones(300), intercept=True)
    direct = Rows(X, np.zeros(300), np.ones(300), intercept=True)
    for scale in (1.0, 2.0):
        theta = scale * np.random.default_rng(2).standard_normal((5, 40_000))
        assert np.allclose(rows.margins(theta)[:, ::1000], direct.margins(theta[:, ::1000]), rtol=1e-12)


def test_data_goes_out_with_tasks_without_a_warning(client: Any) -> None:
    X = np.random.default_rng(1).standard_normal((2_000_000, 1))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rows = Rows(ClusterStore(client, X, _plain, X[:2], True), np.zeros(len(X)), np.ones(len(X)), intercept=True)
        assert rows.pull(np.ones(len(X)))[1] == len(X)
    assert not [str(warning.message) for warning in said if "graph" in str(warning.message)]


def test_a_file_that_the_workers_do_not_see(client: Any, tmp_path: Path) -> None:
    frame = table(60)
    for name in "ab":
        frame.to_parquet(tmp_path / f"{name}.parquet")
    source = ParquetSource(tmp_path).select(["size", "age"], array=True)
    head = source.read(0, 2)
    (tmp_path / "b.parquet").unlink()
    store = ClusterStore(client, source, _plain, head, True)
    with pytest.raises(StoreError, match=r"b\.parquet"):
        Rows(store, np.zeros(120), np.ones(120), intercept=True).square_norms()


def test_a_task_whose_worker_dies(client: Any, small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", 0)
    X = np.ones((64, 4))
    rows = Rows(ClusterStore(client, X, _plain, X[:2], True), np.zeros(64), np.ones(64), intercept=True)
    rows.square_norms()
    with pytest.raises(StoreError, match="run out of memory"):
        rows.reduce(_die, join=("sum",))


def test_an_interrupt_cancels_what_was_asked(client: Any, small_blocks: None) -> None:
    X = np.ones((2000, 4))
    rows = Rows(ClusterStore(client, X, _plain, X[:2], True), np.zeros(2000), np.ones(2000), intercept=True)
    before = rows.square_norms()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            rows.reduce(_slow, join=("sum",))
        timer.join()
    finally:
        signal.signal(signal.SIGINT, handler)
    tasks = client.cluster.scheduler.tasks
    while any(key.startswith("slow") for key in list(tasks)) and time.monotonic() < began + 10:
        time.sleep(0.05)
    assert not [key for key in tasks if key.startswith("slow")]
    assert time.monotonic() < began + 10  # all of it takes 32 blocks a second and two workers: 16 seconds
    assert np.array_equal(rows.square_norms(), before)


def test_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow_relabel_audit.rows.cluster.PATIENCE", 0.5)
    with pytest.raises(StoreError, match=r"tcp://127\.0\.0\.1:1: no scheduler"):
        ClusterStore("tcp://127.0.0.1:1", np.ones((3, 2)), _plain, np.ones((2, 2)), True)


def _plain(rows: Any) -> Any:
    return rows


def _slow(block: Any) -> tuple[float]:
    time.sleep(1.0)
    return (float(block.rows),)


def _die(block: Any) -> Any:
    os._exit(1)
