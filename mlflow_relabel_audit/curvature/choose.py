"""Which form of the curvature is cheapest for these rows."""

from __future__ import annotations

from mlflow_relabel_audit.curvature.base import Curvature
from mlflow_relabel_audit.curvature.conjugate import ConjugateCurvature
from mlflow_relabel_audit.curvature.dual import DualCurvature
from mlflow_relabel_audit.curvature.primal import PrimalCurvature
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.problem import FloatArray
from mlflow_relabel_audit.rows import Rows

FORMS: dict[str, type[PrimalCurvature] | type[DualCurvature] | type[ConjugateCurvature]] = {
    "primal": PrimalCurvature,
    "dual": DualCurvature,
    "cg": ConjugateCurvature,
}
MAX_FACTOR_BYTES = 4 * 2**30
SOLVES = 4000.0  # right sides in a typical audit: 1,000 predictions, a few directions each
CG_ITERATIONS = 150.0
SPARSE_FLOP = 10.0  # a stored entry of a sparse product costs about ten flops of a dense one


def choose_kind(rows: Rows, penalty: FloatArray) -> str:
    """Name the form with the least estimated work over a typical audit.

    A dense product counts one per multiply-add, a sparse one ten; a factor must fit in 4 GiB.
    """
    n, p = float(rows.n), float(rows.p)
    touch = rows.nnz * (SPARSE_FLOP if rows.sparse else 1.0)
    fill = touch * rows.nnz / max(n, 1.0)
    cost = {"cg": SOLVES * CG_ITERATIONS * 2.0 * touch}
    if 8.0 * p * p <= MAX_FACTOR_BYTES:
        cost["primal"] = fill + p**3 / 3.0 + SOLVES * p * p
    if 8.0 * n * n <= MAX_FACTOR_BYTES and (penalty[: rows.features_in] > 0).all():
        cost["dual"] = touch * n + n**3 / 3.0 + SOLVES * (n * n + 2.0 * touch)
    return min(cost, key=lambda kind: (cost[kind], kind != "primal"))


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
    if kind not in FORMS:
        raise RequestError(f"curvature: got {kind!r}; pass one of {sorted(FORMS)}")
    return FORMS[kind].factor(rows, diagonal, penalty)
