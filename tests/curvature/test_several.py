"""The curvature of several outputs against the dense Hessian, coupled by a softmax and not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from mlflow_relabel_audit.curvature import find_stationary_point, load_hessian, save_hessian
from mlflow_relabel_audit.curvature.choose import choose_kind, factor
from mlflow_relabel_audit.curvature.reuse import fingerprint
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.likelihood import Coupled, Likelihood, Separate
from mlflow_relabel_audit.rows import Rows
from tests.flips.fitting import fitted_classes

OUTPUTS = 3


def case(likelihood: Likelihood, sparse: bool, intercept: bool, free: bool) -> tuple[Rows, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 7)) * (rng.random((60, 7)) < 0.6)
    rows = Rows(sp.csr_matrix(X) if sparse else X, np.zeros(60), np.ones(60), intercept=intercept, outputs=OUTPUTS)
    probability = likelihood.probability(1.5 * rng.standard_normal(60 * OUTPUTS))
    diagonal = likelihood.curvature(probability, np.repeat(rng.random(60) + 0.1, OUTPUTS))
    penalty = np.tile(np.append(np.full(7, 0.3), [0.0 if free else 0.6] * intercept), OUTPUTS)
    return rows, diagonal, penalty


def dense(
    rows: Rows, likelihood: Likelihood, diagonal: np.ndarray, penalty: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The Hessian, and the rows of every output in its coordinates, shape (n M, p)."""
    flat = np.kron(np.ones((1, 1)), rows.columns(np.arange(rows.n)).T)
    design = np.stack([np.kron(np.eye(OUTPUTS)[m], row) for row in flat for m in range(OUTPUTS)])
    return design.T @ likelihood.product(diagonal[:, None], design) + np.diag(penalty), design


@pytest.mark.parametrize("likelihood", [Separate(OUTPUTS), Coupled(OUTPUTS)], ids=repr)
@pytest.mark.parametrize("kind", ["primal", "dual", "cg"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("intercept", "free"), [(True, True), (True, False), (False, False)])
def test_solve_norms_and_updates(likelihood: Likelihood, kind: str, sparse: bool, intercept: bool, free: bool) -> None:
    rows, diagonal, penalty = case(likelihood, sparse, intercept, free)
    if likelihood.coupled and kind == "dual":
        with pytest.raises(RequestError, match="got 'dual'"):
            factor(rows, diagonal, penalty, kind, coupled=True)
        return
    hessian, design = dense(rows, likelihood, diagonal, penalty)
    curvature = factor(rows, diagonal, penalty, kind, coupled=likelihood.coupled)
    assert curvature.kind == kind
    right = np.random.default_rng(1).standard_normal((OUTPUTS, rows.coordinates, 4))
    if likelihood.coupled:  # what is asked of it: differences of outputs
        right -= right.mean(axis=0)
    right = right.reshape(rows.p, 4)
    wanted = np.linalg.pinv(hessian, hermitian=True) @ right
    assert curvature.solve(right) == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert curvature.solve(right[:, 0]) == pytest.approx(wanted[:, 0], rel=1e-6, abs=1e-9)
    by_row = design.reshape(rows.n, OUTPUTS, -1)
    inverse = np.linalg.pinv(hessian, hermitian=True)
    if likelihood.coupled:
        pairs = [by_row[:, a] - by_row[:, b] for a in range(OUTPUTS) for b in range(a)]
        exact = np.sqrt(np.max([np.einsum("ij,jk,ik->i", pair, inverse, pair) for pair in pairs], axis=0))
        exact = np.repeat(exact, OUTPUTS)
    else:
        exact = np.sqrt(np.einsum("ij,jk,ik->i", design, inverse, design))
    found = curvature.row_norms(rows)
    assert np.all(found >= exact * (1.0 - 1e-9))
    if kind != "cg":
        assert found == pytest.approx(exact, rel=1e-6)
    moved = diagonal.copy()
    index = np.array([4, 5, 30, 31, 32])
    moved[index] *= [0.5, 2.0, 3.0, 0.1, 1.5]
    updated = curvature.updated(rows, penalty, moved, index, moved[index] - diagonal[index])
    other, _ = dense(rows, likelihood, moved, penalty)
    wanted = np.linalg.pinv(other, hermitian=True) @ right
    assert updated.solve(right) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("likelihood", [Separate(OUTPUTS), Coupled(OUTPUTS)], ids=repr)
@pytest.mark.parametrize("kind", ["primal", "cg"])
def test_stored_and_loaded(likelihood: Likelihood, kind: str, tmp_path: Path) -> None:
    model = fitted_classes(likelihood, kind=kind)
    print_of = fingerprint(model.problem, model.rows)
    save_hessian(model.point, tmp_path, print_of)
    found = load_hessian(tmp_path, print_of, model.problem, model.rows)
    assert found is not None
    again = find_stationary_point(model.problem, model.rows, start=found[0], curvature=found[1])
    assert again.curvature is found[1]
    right = model.targets(np.array([[1.0, -1.0, 0.5, 2.0]]), 0, 2)
    assert again.curvature.solve(right) == pytest.approx(model.point.curvature.solve(right), rel=1e-12)


def test_a_large_softmax_is_not_factored() -> None:
    tall = Rows(sp.random(3000, 9000, 1e-3, format="csr"), np.zeros(3000), np.ones(3000), intercept=True, outputs=20)
    assert choose_kind(tall, np.ones(tall.p), coupled=True) == "cg"
    small = Rows(np.zeros((3000, 20)), np.zeros(3000), np.ones(3000), intercept=True, outputs=3)
    assert choose_kind(small, np.ones(small.p), coupled=True) == "primal"
