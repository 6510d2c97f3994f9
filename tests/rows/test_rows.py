"""Every reduction against its dense definition, for dense and sparse rows, with and without an intercept."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.rows import RowBlock, Rows, store

RNG = np.random.default_rng(0)
DENSE = RNG.standard_normal((300, 7)) * (RNG.random((300, 7)) < 0.6)


@pytest.fixture(params=["dense", "csr", "float32", "fortran"])
def features(request: pytest.FixtureRequest) -> object:
    return {
        "dense": DENSE,
        "csr": sp.csr_matrix(DENSE),
        "float32": DENSE.astype(np.float32),
        "fortran": np.asfortranarray(DENSE),
    }[request.param]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("length", [None, 64])
def test_reductions(features: object, intercept: bool, length: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if length:
        monkeypatch.setattr(store, "BLOCK_BYTES", 8 * 7 * length)
        monkeypatch.setattr(store, "SPARSE_ROWS", length)
        monkeypatch.setattr(RowBlock, "piece_length", lambda self, columns=64: 11)
    rows = Rows(features, np.zeros(300), np.ones(300), intercept=intercept)
    assert len(rows.store.bounds) == (1 if length is None else 5)
    full = np.asarray(features.toarray() if sp.issparse(features) else features, dtype=float)  # type: ignore[attr-defined]
    full = np.hstack([full, np.ones((300, 1))]) if intercept else full
    theta, residual = RNG.standard_normal((rows.p, 5)), RNG.standard_normal((300, 4))
    diagonal = RNG.random(300)
    assert rows.margins(theta) == pytest.approx(full @ theta)
    assert rows.margins(theta[:, 0]) == pytest.approx(full @ theta[:, 0])
    assert rows.pull(residual) == pytest.approx(full.T @ residual)
    assert rows.pull(residual[:, 0]) == pytest.approx(full.T @ residual[:, 0])
    assert rows.gram(diagonal) == pytest.approx(full.T @ (diagonal[:, None] * full))
    assert rows.square_norms() == pytest.approx((full**2).sum(axis=1))
    taken = rows.take(np.array([5, 2]))
    assert (taken.toarray() if rows.sparse else taken) == pytest.approx(full[[5, 2]])


def test_dense_rows_are_not_copied() -> None:
    data = np.ascontiguousarray(DENSE)
    rows = Rows(data, np.zeros(300), np.ones(300), intercept=True)
    assert rows.features is data
    assert all(np.shares_memory(piece.features, data) for _, piece in rows.store.block(0).pieces(64))


def test_relabelled_rows_share_their_features() -> None:
    rows = Rows(DENSE, np.zeros(300), np.ones(300), intercept=True)
    other = rows.relabelled(np.array([3]))
    assert other.features is rows.features
    assert np.flatnonzero(other.y != rows.y).tolist() == [3]


def test_tables_only() -> None:
    with pytest.raises(RequestError, match="1 dimensions"):
        Rows(np.zeros(3), np.zeros(3), np.ones(3), intercept=True)
