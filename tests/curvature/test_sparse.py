"""The primal form of sparse rows: columns that never meet are eliminated first, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from mlflow_relabel_audit.curvature import factor, load_hessian, save_hessian
from mlflow_relabel_audit.curvature.elimination import Elimination, independent
from mlflow_relabel_audit.curvature.sparse import InverseEntries, SparsePrimalCurvature, inverse_entries, sparse_forms
from mlflow_relabel_audit.errors import SingularHessianError
from mlflow_relabel_audit.rows import Rows
from tests.flips.fitting import fitted

P = 1100


def words(n: int = 400, seed: int = 0) -> sp.csr_matrix:
    """Counts of a few frequent words and many rare ones."""
    rng = np.random.default_rng(seed)
    chance = np.minimum(0.5, 4.0 / np.arange(1, P + 1))
    return sp.csr_matrix((rng.random((n, P)) < chance) * rng.integers(1, 4, (n, P)), dtype=float)


def case(penalty: float = 0.5, free: bool = True) -> tuple[Rows, np.ndarray, np.ndarray, np.ndarray]:
    X = words()
    rows = Rows(X, np.zeros(X.shape[0]), np.ones(X.shape[0]), intercept=True)
    diagonal = np.random.default_rng(1).random(rows.n) * 0.25
    diagonal[:20] = 0.0  # their words may have met nowhere else
    R = np.append(np.full(P, penalty), 0.0 if free else penalty)
    full = np.hstack([X.toarray(), np.ones((rows.n, 1))])
    return rows, diagonal, R, full


@pytest.fixture
def many_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a case is worth one round only, unless sparse products are taken to be cheap."""
    from mlflow_relabel_audit.curvature import elimination

    monkeypatch.setattr(elimination, "SPARSE_FLOP", 8.0)


def test_chosen_columns_have_no_entry_between_them() -> None:
    X = words()
    matrix = sp.csr_matrix(X.T @ X + sp.eye(P))
    chosen = independent(matrix)
    block = matrix[chosen][:, chosen]
    assert block.nnz == len(chosen) > P // 4
    assert np.all(np.diff(matrix[:, chosen].tocsr().indptr) > 0)  # and every other column has one with them


@pytest.mark.parametrize("inverted", [True, False])
@pytest.mark.parametrize("free", [True, False])
def test_solve_and_row_norms(inverted: bool, free: bool, many_rounds: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow_relabel_audit.curvature import sparse

    if not inverted:
        monkeypatch.setattr(sparse, "SAFE_CONDITION", 1.0)
    rows, diagonal, penalty, full = case(free=free)
    hessian = full.T @ (diagonal[:, None] * full) + np.diag(penalty)
    curvature = factor(rows, diagonal, penalty, "primal")
    assert isinstance(curvature, SparsePrimalCurvature)
    assert curvature.kind == "primal"
    assert curvature.sparse_quick == inverted
    assert curvature.order < 0.8 * rows.p
    few = rows.columns(np.arange(60))
    few[:, 3] = 0.0
    mixed = few.copy()
    mixed[::2, :2] = 1.0  # beside few entries, so many that they are not
    dense = np.random.default_rng(2).standard_normal((rows.p, 4))
    for right in (few, mixed, dense, dense[:, 0]):
        before = right.copy()
        assert curvature.solve(right) == pytest.approx(np.linalg.solve(hessian, right), rel=1e-9, abs=1e-11)
        assert np.array_equal(right, before)
    norms = np.sqrt(np.einsum("ij,ij->i", full, np.linalg.solve(hessian, full.T).T))
    assert curvature.row_norms(rows) == pytest.approx(norms, rel=1e-9)
    exact = np.linalg.cond(hessian, 1)
    assert 0.2 * exact < curvature.condition < 1.01 * exact


def test_entries_of_the_inverse_where_columns_met(many_rounds: None) -> None:
    rows, diagonal, penalty, full = case()
    hessian = full.T @ (diagonal[:, None] * full) + np.diag(penalty)
    elimination, rest = Elimination.of(sp.csr_matrix(hessian))
    found = inverse_entries(elimination, np.linalg.inv(rest.toarray()))
    inverse = np.linalg.inv(hessian)[np.ix_(elimination.order, elimination.order)]
    a, b = np.divmod(found.keys, rows.p)
    assert len(elimination.rounds) > 1
    assert np.all(np.diff(found.keys) > 0)
    assert found.values == pytest.approx(inverse[a, b], rel=1e-9, abs=1e-13)
    assert found.at(b[:50], a[:50]) == pytest.approx(inverse[a[:50], b[:50]], rel=1e-9, abs=1e-13)
    apart = np.flatnonzero(np.isnan(found.at(np.zeros(rows.p, dtype=int), np.arange(rows.p))))
    assert set(apart) == set(range(rows.p)) - set(b[a == 0])


def test_other_weights() -> None:
    rows, diagonal, penalty, full = case()
    curvature = factor(rows, diagonal, penalty, "primal")
    index = np.arange(30, 90)
    other = diagonal.copy()
    other[index] *= 0.1
    moved = curvature.updated(rows, penalty, other, index, (other - diagonal)[index])
    right = np.random.default_rng(3).standard_normal(rows.p)
    hessian = full.T @ (other[:, None] * full) + np.diag(penalty)
    assert moved.solve(right) == pytest.approx(np.linalg.solve(hessian, right), rel=1e-9, abs=1e-11)


def test_rows_that_were_not_trained_on(many_rounds: None) -> None:
    rows, diagonal, penalty, full = case()
    curvature = factor(rows, diagonal, penalty, "primal")
    X = words(seed=5)
    hessian = full.T @ (diagonal[:, None] * full) + np.diag(penalty)
    others = np.hstack([X.toarray(), np.ones((X.shape[0], 1))])
    norms = np.sqrt(np.einsum("ij,ij->i", others, np.linalg.solve(hessian, others.T).T))
    found = curvature.row_norms(Rows(X, np.zeros(400), np.ones(400), intercept=True))
    assert found == pytest.approx(norms, rel=1e-9)


def test_columns_that_all_meet_are_left_as_they_are() -> None:
    hessian = sp.csr_matrix(np.full((50, 50), 0.1) + 2.0 * np.eye(50))
    elimination, rest = Elimination.of(hessian)
    assert elimination.rounds == ()
    assert elimination.left == 50
    assert np.array_equal(rest.toarray(), hessian.toarray())


@pytest.mark.parametrize("intercept", [True, False])
def test_one_word_a_row(intercept: bool) -> None:
    """Nothing couples the words but the intercept: one column is left, whichever."""
    rng = np.random.default_rng(6)
    X = sp.csr_matrix((np.ones(3000), (np.arange(3000), rng.integers(0, P, 3000))), shape=(3000, P))
    rows = Rows(X, np.zeros(3000), np.ones(3000), intercept=intercept)
    penalty = np.full(rows.p, 0.4)
    curvature = factor(rows, np.full(3000, 0.2), penalty, "primal")
    full = np.hstack([X.toarray(), np.ones((3000, 1))]) if intercept else X.toarray()
    right = rng.standard_normal((rows.p, 2))
    exact = np.linalg.solve(0.2 * full.T @ full + np.diag(penalty), np.hstack([right, full[:50].T]))
    assert curvature.order == 1
    assert curvature.solve(right) == pytest.approx(exact[:, :2], rel=1e-9, abs=1e-11)
    norms = np.sqrt(np.einsum("ij,ji->i", full[:50], exact[:, 2:]))
    assert curvature.row_norms(rows)[:50] == pytest.approx(norms, rel=1e-9)


def test_without_curvature_or_penalty_a_column_is_named() -> None:
    rows, diagonal, penalty, _ = case(penalty=0.0)
    with pytest.raises(SingularHessianError, match="Hessian: singular"):
        factor(rows, diagonal, penalty, "primal")


def test_forms_touch_pairs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow_relabel_audit.curvature import sparse

    X = words(60)
    X = sp.vstack([X, sp.csr_matrix((3, P))], format="csr")  # rows without a word
    matrix = np.random.default_rng(4).standard_normal((P, P))
    matrix += matrix.T
    entries = InverseEntries(np.arange(P), matrix, np.zeros(0, dtype=np.int64), np.zeros(0))
    dense = np.einsum("ij,jk,ik->i", X.toarray(), matrix, X.toarray(), optimize=True)
    assert sparse_forms(X, entries) == pytest.approx(dense)
    monkeypatch.setattr(sparse, "PAIRS", 7)
    assert sparse_forms(X, entries) == pytest.approx(dense)


def test_round_trip(many_rounds: None, tmp_path: Path) -> None:
    X = words(300)
    model = fitted(X=X, y=(np.arange(300) % 2).astype(float), C=0.05, sparse=True, kind="primal")
    assert isinstance(model.point.curvature, SparsePrimalCurvature)
    save_hessian(model.point, tmp_path, "print")
    restored = load_hessian(tmp_path, "print", model.problem, model.rows)
    assert restored is not None
    right = np.random.default_rng(0).standard_normal((model.rows.p, 2))
    assert np.array_equal(restored[1].solve(right), model.point.curvature.solve(right))
    assert np.array_equal(restored[1].row_norms(model.rows), model.point.curvature.row_norms(model.rows))
