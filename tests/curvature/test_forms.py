"""The three forms of the curvature agree with the dense Hessian, and refuse a singular one."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from mlflow_relabel_audit.curvature import choose_kind, factor
from mlflow_relabel_audit.errors import RequestError, SingularHessianError
from mlflow_relabel_audit.rows import Rows


def case(n: int, p: int, sparse: bool, intercept: bool, seed: int = 0) -> tuple[Rows, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) * (rng.random((n, p)) < 0.5)
    rows = Rows(sp.csr_matrix(X) if sparse else X, np.zeros(n), np.ones(n), intercept=intercept)
    diagonal = rng.random(n) * 0.25
    diagonal[:2] = 0.0  # rows of no weight
    return rows, diagonal, X


@pytest.mark.parametrize("kind", ["primal", "dual", "cg"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("intercept", "free"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("shape", [(60, 9), (20, 45)])
def test_solve_and_row_norms(kind: str, sparse: bool, intercept: bool, free: bool, shape: tuple[int, int]) -> None:
    rows, diagonal, X = case(*shape, sparse, intercept)
    penalty = np.full(rows.p, 0.3)
    if free:
        penalty[-1] = 0.0
    full = np.hstack([X, np.ones((len(X), 1))]) if intercept else X
    hessian = full.T @ (diagonal[:, None] * full) + np.diag(penalty)
    curvature = factor(rows, diagonal, penalty, kind)
    right = np.random.default_rng(1).standard_normal((rows.p, 3))
    assert curvature.kind == kind
    assert curvature.solve(right) == pytest.approx(np.linalg.solve(hessian, right), rel=1e-7, abs=1e-9)
    assert curvature.solve(right[:, 0]) == pytest.approx(curvature.solve(right)[:, 0], abs=1e-8)
    norms = np.sqrt(np.einsum("ij,ij->i", full, np.linalg.solve(hessian, full.T).T))
    found = curvature.row_norms(rows)
    if kind == "cg":
        assert np.all(found >= norms * (1 - 1e-9))
    else:
        assert found == pytest.approx(norms, rel=1e-7)
    assert np.isfinite(curvature.condition)
    assert curvature.condition >= 1


@pytest.mark.parametrize("kind", ["primal", "dual", "cg"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("moved", [5, 50])
def test_other_weights(kind: str, intercept: bool, sparse: bool, moved: int) -> None:
    rows, diagonal, X = case(60, 9, sparse, intercept)
    penalty = np.full(rows.p, 0.3)
    curvature = factor(rows, diagonal, penalty, kind)
    rng = np.random.default_rng(4)
    index = np.sort(rng.choice(60, moved, replace=False))
    other = diagonal.copy()
    other[index] = 0.25 * rng.random(moved)  # some more than before, some less
    found = curvature.updated(rows, penalty, other, index, (other - diagonal)[index])
    full = np.hstack([X, np.ones((60, 1))]) if intercept else X
    hessian = full.T @ (other[:, None] * full) + np.diag(penalty)
    right = rng.standard_normal((rows.p, 3))
    assert found.kind == kind
    assert found.solve(right) == pytest.approx(np.linalg.solve(hessian, right), rel=1e-7, abs=1e-9)


def test_singular_hessians_are_named() -> None:
    X = np.random.default_rng(0).standard_normal((30, 3))
    rows = Rows(np.hstack([X, X[:, :1]]), np.zeros(30), np.ones(30), intercept=True)
    for kind in ("primal", "dual"):
        with pytest.raises(SingularHessianError, match="Hessian: singular"):
            factor(rows, np.full(30, 0.2), np.zeros(5), kind)
    constant = Rows(np.hstack([X, np.zeros((30, 1))]), np.zeros(30), np.ones(30), intercept=False)
    with pytest.raises(SingularHessianError, match="no penalty"):
        factor(constant, np.full(30, 0.2), np.zeros(4), "cg")


def test_the_cheapest_form_is_chosen() -> None:
    def kind(n: int, p: int, entries: int | None = None) -> str:
        X: object = np.zeros((n, p), dtype=np.float32)
        if entries is not None:
            rng = np.random.default_rng(0)
            where = (rng.integers(0, n, entries), rng.integers(0, p, entries))
            X = sp.csr_matrix((np.ones(entries), where), shape=(n, p))
        return choose_kind(Rows(X, np.zeros(n), np.ones(n), intercept=True), np.ones(p + 1))

    assert kind(5000, 300) == "primal"
    assert kind(300, 5000) == "dual"
    assert kind(50_000, 60_000, 300_000) == "cg"
    assert kind(20_000, 6_000, 20_000) == "primal"  # one word a row: nothing is left of H but the intercept
    rows, diagonal, _ = case(20, 5, False, True)
    with pytest.raises(RequestError, match="pass one of"):
        factor(rows, diagonal, np.ones(6), "qr")
