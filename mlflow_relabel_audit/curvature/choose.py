"""Which form of the curvature is cheapest for these rows."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from mlflow_relabel_audit.curvature.base import Curvature
from mlflow_relabel_audit.curvature.conjugate import ConjugateCurvature
from mlflow_relabel_audit.curvature.dual import DualCurvature
from mlflow_relabel_audit.curvature.elimination import SPARSE_FLOP, Elimination
from mlflow_relabel_audit.curvature.primal import MAX_INVERTED, PrimalCurvature
from mlflow_relabel_audit.curvature.sparse import SparsePrimalCurvature
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.problem import FloatArray
from mlflow_relabel_audit.rows import Rows

Form = PrimalCurvature | SparsePrimalCurvature | DualCurvature | ConjugateCurvature
MAX_FACTOR_BYTES = 4 * 2**30
MAX_FILL = 5e7
"""Products of pairs of stored entries up to which H is formed to see what elimination leaves of it."""
SOLVES = 4000.0  # right sides in a typical audit: 1,000 predictions, a few directions each
CG_ITERATIONS = 150.0


def choose_kind(rows: Rows, penalty: FloatArray) -> str:
    """Name the form with the least estimated work over a typical audit.

    A multiply-add of a dense product counts one, of a sparse one twenty; a factor must fit in 4 GiB.
    """
    n, p = float(rows.n), float(rows.p)
    touch = rows.nnz * (SPARSE_FLOP if rows.sparse else 1.0)
    fill = touch * rows.nnz / max(n, 1.0)
    cost = {"cg": SOLVES * CG_ITERATIONS * 2.0 * touch}
    order, beside = p, 0.0
    if _eliminates(rows) and rows.nnz * rows.nnz / max(n, 1.0) <= MAX_FILL:
        elimination, _ = Elimination.of(rows.sparse_gram(np.ones(rows.n)) + sp.diags(penalty + 1.0, format="csr"))
        order, beside = float(elimination.left), 2.0 * SPARSE_FLOP * elimination.entries
    if 8.0 * order * order <= MAX_FACTOR_BYTES:
        cost["primal"] = fill + order**3 + SOLVES * (order * order + beside)
    if 8.0 * n * n <= MAX_FACTOR_BYTES and (penalty[: rows.features_in] > 0).all():
        cost["dual"] = touch * n + n**3 / 3.0 + SOLVES * (n * n + 2.0 * touch)
    return min(cost, key=lambda kind: (cost[kind], kind != "primal"))


def _eliminates(rows: Rows) -> bool:
    """Whether columns are eliminated before H is factored: where rows are sparse and a whole factor would be large."""
    return rows.sparse and rows.p > MAX_INVERTED


def factor(rows: Rows, diagonal: FloatArray, penalty: FloatArray, kind: str | None = None) -> Curvature:
    """Factor ``X' diag(diagonal) X + diag(penalty)`` in the cheapest form, or in the one named.

    Parameters
    ----------
    rows : Rows
        n rows of p coordinates.
    diagonal : ndarray of shape (n,)
        curvature weights d_i, non-negative.
    penalty : ndarray of shape (p,)
        diagonal of R.
    kind : {"primal", "dual", "cg"}, optional
        force a form.

    Raises
    ------
    SingularHessianError
        H cannot be inverted.
    RequestError
        ``kind`` is not a form.
    """
    kind = kind or choose_kind(rows, penalty)
    forms: dict[str, type[Form]] = {
        "primal": SparsePrimalCurvature if _eliminates(rows) else PrimalCurvature,
        "dual": DualCurvature,
        "cg": ConjugateCurvature,
    }
    if kind not in forms:
        raise RequestError(f"curvature: got {kind!r}; pass one of {sorted(forms)}")
    return forms[kind].factor(rows, diagonal, penalty)
