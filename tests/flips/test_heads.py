"""Influences ranked where the rows are, against those ranked in one array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from mlflow_relabel_audit.flips.order import apart as there
from mlflow_relabel_audit.flips.order import heads
from mlflow_relabel_audit.flips.order.apart import Apart
from mlflow_relabel_audit.flips.order.heads import Held
from mlflow_relabel_audit.flips.order.influence import estimate
from mlflow_relabel_audit.flips.relabelling import RelabelEffect
from mlflow_relabel_audit.likelihood import TWO_CLASSES
from mlflow_relabel_audit.rows import Rows, Spool, store
from tests.flips.fitting import Fitted, fitted


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK_BYTES", 8 * 4 * 170)
    monkeypatch.setattr(store, "SPARSE_ROWS", 170)


def apart(model: Fitted) -> Rows:
    """The same rows on disk, in blocks."""
    spool = Spool()
    spool.add(model.X)
    return Rows(spool.store(model.rows.intercept, 2**20), model.y, model.weight, intercept=model.rows.intercept)


@pytest.mark.parametrize("fetched", [there.FETCHED, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sparse": True},
        {"sparse": True, "fit_intercept": False},
        {"class_weight": "balanced", "weighted": True},
        {"sorted": True},
        {"tied": True},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_orders_are_those_of_one_array(
    options: dict[str, Any], fetched: int, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(there, "FETCHED", fetched)
    options, n = dict(options), 1500
    rng = np.random.default_rng(4)
    X = rng.standard_normal((n, 4))
    if options.pop("tied", False):
        X = np.repeat(X[: n // 50], 50, axis=0)
    if options.get("sparse"):
        X *= rng.random(X.shape) < 0.4
    y = (X @ np.linspace(1.0, -0.5, 4) + 1.5 * rng.standard_normal(n) > 0).astype(float)
    if options.pop("sorted", False):  # one block holds what another lacks
        order = np.argsort(X[:, 0] + 10 * y)
        X, y = X[order], y[order]
    model = fitted(n=n, X=X, y=y, C=0.01, **options)
    effect = RelabelEffect.at(model.problem, model.rows, model.point)
    asked = model.evaluation(
        np.concatenate([rng.standard_normal((20, 4)), 5.0 * rng.standard_normal((20, 4)), X[:3], 200.0 * X[:2]])
    )
    elsewhere = apart(model)
    assert len(elsewhere.store.bounds) > 5
    assert not elsewhere.held
    found, wanted = (
        [order for block in estimate(rows, model.point, effect, asked, model.problem) for order in block.orders]
        for rows in (elsewhere, model.rows)
    )
    for one, two in zip(found, wanted, strict=True):
        size = min(len(one.index), len(two.index))  # the floor is itself a float32 influence, rounded either way
        assert size >= two.k_estimate
        assert np.array_equal(one.index[:size], two.index[:size])
        assert one.influence[:size] == pytest.approx(two.influence[:size], rel=1e-6)
        assert (one.k_estimate, one.k_paper, one.complete) == (two.k_estimate, two.k_paper, two.complete)
    assert any(order.k_paper > len(order.index) for order in wanted) or len(np.unique(X, axis=0)) < n


@pytest.mark.parametrize("fetched", [there.FETCHED, 3])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_depths_against_a_full_sort(
    elsewhere: bool, fetched: int, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(there, "FETCHED", fetched)
    rng = np.random.default_rng(6)
    X = rng.standard_normal((1200, 4)) * 10.0 ** rng.integers(-12, 9, (1200, 1))  # far more than 32 octaves
    X[::3] = X[0]
    rows = Rows(X, np.zeros(1200), np.ones(1200), intercept=False)
    if elsewhere:
        spool = Spool()
        spool.add(X)
        rows = Rows(spool.store(False, 2**20), rows.y, rows.base_weight, intercept=False)
    narrow = rng.standard_normal((4, 9)).astype(np.float32)
    coefficient = rng.choice([-1.0, 1.0], 1200).astype(np.float32)
    values = np.ascontiguousarray((X @ narrow).T.astype(np.float32) * coefficient)
    source: Any = Held.of(values)
    if elsewhere:
        effect = RelabelEffect(
            -coefficient.astype(np.float64), np.ones(1200), np.zeros(4), True,
            TWO_CLASSES, np.zeros(1200, dtype=np.intp), np.full((1200, 1), 0.5), np.ones((2, 1)),
        )  # fmt: skip
        source = Apart(rows, effect, narrow[:, None], np.zeros(9))
        cells = source.reaching(np.arange(9), np.full(9, heads.TINY), np.zeros(9))
        values = np.zeros((9, 1200), dtype=np.float32)
        values[cells[0], cells[1]] = cells[2]
    best = -np.sort(-np.maximum(values, 0.0).astype(np.float64), axis=1)
    total = np.cumsum(best, axis=1)
    for share in (1e-9, 0.2, 0.9, 0.999, *([] if elsewhere else [0.999999, 1.0 - 1e-12]), 1.1):
        goal = share * total[:, -1]
        found = source.depths(np.arange(9), goal)
        for t in range(9):
            wanted = int(np.searchsorted(total[t], goal[t], side="right")) + 1
            assert found[t] == (wanted if share < 1 else 0), (share, t)


def test_sparse_pieces_are_alike() -> None:
    X = sp.random(500, 30, density=0.2, random_state=0, format="csr", dtype=np.float64)
    narrow = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
    (block,) = [Rows(X, np.zeros(500), np.ones(500), intercept=False).store.block(0)]
    ((_, product),) = there.responses(block, narrow)
    assert product == pytest.approx((X @ narrow).T, rel=1e-5, abs=1e-5)
