"""Which form of the curvature is cheapest for these rows."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from mlflow_relabel_audit.curvature.base import Curvature
from mlflow_relabel_audit.curvature.conjugate import ConjugateCurvature
from mlflow_relabel_audit.curvature.coupled import CoupledConjugate, CoupledCurvature
from mlflow_relabel_audit.curvature.dual import DualCurvature
from mlflow_relabel_audit.curvature.elimination import SPARSE_FLOP, Elimination
from mlflow_relabel_audit.curvature.primal import MAX_INVERTED, PrimalCurvature
from mlflow_relabel_audit.curvature.separate import SeparateCurvature
from mlflow_relabel_audit.curvature.sparse import SparsePrimalCurvature
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.problem import FloatArray
from mlflow_relabel_audit.rows import Rows

Form = PrimalCurvature | SparsePrimalCurvature | DualCurvature | ConjugateCurvature | CoupledConjugate
MAX_FACTOR_BYTES = 4 * 2**30
MAX_FILL = 5e7
"""Products of pairs of stored entries up to which H is formed to see what elimination leaves of it."""
SOLVES = 4000.0  # right sides in a typical audit: 1,000 predictions, a few directions each
CG_ITERATIONS = 150.0


def choose_kind(rows: Rows, penalty: FloatArray, *, coupled: bool = False) -> str:
    """Name the form with the least estimated work over a typical audit.

    A multiply-add of a dense product counts one, of a sparse one twenty; a factor must fit in 4 GiB. Outputs that are
    not ``coupled`` are factored one by one.
    """
    outputs = rows.outputs if coupled else 1
    n, p = float(rows.n), float(outputs * rows.coordinates)
    touch = rows.nnz * (SPARSE_FLOP if rows.sparse else 1.0)
    fill = touch * rows.nnz / max(n, 1.0) * outputs * (outputs + 1) / 2
    touch *= outputs
    cost = {"cg": SOLVES * CG_ITERATIONS * 2.0 * touch}
    order, beside = p, 0.0
    if not coupled and _eliminates(rows) and rows.nnz * rows.nnz / max(n, 1.0) <= MAX_FILL:
        shifted = sp.diags(penalty[: rows.coordinates] + 1.0, format="csr")
        elimination, _ = Elimination.of(rows.sparse_gram(np.ones(rows.n)) + shifted)
        order, beside = float(elimination.left), 2.0 * SPARSE_FLOP * elimination.entries
    if 8.0 * order * order <= MAX_FACTOR_BYTES:
        cost["primal"] = fill + order**3 + SOLVES * (order * order + beside)
    if not coupled and 8.0 * n * n <= MAX_FACTOR_BYTES and (penalty[: rows.features_in] > 0).all():
        cost["dual"] = touch * n + n**3 / 3.0 + SOLVES * (n * n + 2.0 * touch)
    return min(cost, key=lambda kind: (cost[kind], kind != "primal"))


def _eliminates(rows: Rows) -> bool:
    """Whether columns are eliminated before H is factored: where rows are sparse and a whole factor would be large."""
    return rows.sparse and rows.coordinates > MAX_INVERTED


def factor(
    rows: Rows, diagonal: FloatArray, penalty: FloatArray, kind: str | None = None, *, coupled: bool = False
) -> Curvature:
    """Factor ``X' W X + diag(penalty)`` in the cheapest form, or in the one named.

    Parameters
    ----------
    rows : Rows
        n rows, whose M outputs have p coordinates.
    diagonal : ndarray of shape (n M,)
        curvature weights c of every row and output, non-negative.
    penalty : ndarray of shape (p,)
        diagonal of R.
    kind : {"primal", "dual", "cg"}, optional
        force a form.
    coupled : bool
        whether a softmax couples the outputs (`likelihood`); W is diagonal otherwise.

    Raises
    ------
    SingularHessianError
        H cannot be inverted.
    RequestError
        ``kind`` is not a form.
    """
    kind = kind or choose_kind(rows, penalty, coupled=coupled)
    forms: dict[str, type[Form]] = {"primal": CoupledCurvature, "cg": CoupledConjugate}
    if not coupled:
        forms = {
            "primal": SparsePrimalCurvature if _eliminates(rows) else PrimalCurvature,
            "dual": DualCurvature,
            "cg": ConjugateCurvature,
        }
    if kind not in forms:
        raise RequestError(f"curvature: got {kind!r}; pass one of {sorted(forms)}")
    if coupled or rows.outputs == 1:
        return forms[kind].factor(rows, diagonal, penalty)
    single, outputs = rows.of_one_output(), rows.outputs
    by_output = penalty.reshape(outputs, -1)
    return SeparateCurvature(
        [forms[kind].factor(single, np.ascontiguousarray(diagonal[m::outputs]), by_output[m]) for m in range(outputs)]
    )
