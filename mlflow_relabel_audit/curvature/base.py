"""What every form of the curvature can do."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.linalg import LinAlgError, cholesky, lapack

from mlflow_relabel_audit.errors import SingularHessianError
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import Rows

MAX_CONDITION = 1e14
"""Reciprocal of the smallest relative pivot that float64 still tells from zero."""
SAFE_CONDITION = 1e8
"""Condition up to which products with the inverse stand for solves."""


class Curvature(Protocol):
    """The Hessian ``H = X' diag(d) X + R``, ready to be solved with.

    Attributes
    ----------
    kind : str
        ``"primal"``, ``"dual"`` or ``"cg"``.
    condition : float
        estimate of H's condition number (1-norm for primal; of the factored matrix for dual; of the
        preconditioned H for cg).
    p : int
        order of H.
    order : int
        order of the dense matrix that is held, 0 where there is none.
    """

    condition: float
    p: int
    order: int

    @property
    def kind(self) -> str:
        """See above."""
        ...

    @property
    def sparse_quick(self) -> bool:
        """Whether right sides with few entries other than zero are solved for in much less time."""
        ...

    def solve(self, right: FloatArray) -> FloatArray:
        """``H^-1 right`` in float64, shape (p,) or (p, B)."""
        ...

    def updated(
        self, rows: Rows, penalty: FloatArray, diagonal: FloatArray, index: IntArray, change: FloatArray
    ) -> Curvature:
        """The curvature for weights ``diagonal``, which differ from the present ones by ``change`` at ``index``.

        Raises
        ------
        SingularHessianError
            It cannot be inverted.
        """
        ...

    def row_norms(self, rows: Rows) -> FloatArray:
        """``h_i = ||x_i||_{H^-1}`` of every row, or an upper bound of it (cg), shape (n,)."""
        ...

    def arrays(self) -> dict[str, FloatArray]:
        """What has to be stored to restore this curvature (see `storage`)."""
        ...


def singular(detail: str) -> SingularHessianError:
    """Build the error for a Hessian that cannot be inverted."""
    return SingularHessianError(
        f"Hessian: singular ({detail}), so a label's influence is not defined; remove constant or duplicated "
        "columns, or fit with an l2 penalty (a finite C)"
    )


def cholesky_factor(matrix: FloatArray) -> tuple[FloatArray, float]:
    """Lower factor and condition number (1-norm, estimated) of a symmetric matrix, which is overwritten.

    Raises
    ------
    SingularHessianError
        It is singular to working precision.
    """
    norm = float(np.abs(matrix).sum(axis=0).max(initial=0.0))
    try:
        # turned, as the routine works by columns: it then needs no copy
        lower = cholesky(matrix.T, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError as error:
        raise singular(f"its Cholesky factorisation broke down: {error}") from error
    reciprocal, _ = lapack.dpocon(lower, norm, uplo="L")
    condition = 1.0 / reciprocal if reciprocal > 0 else np.inf
    if not condition < MAX_CONDITION:
        raise singular(f"condition number {condition:.1e}")
    return lower, float(condition)


def solved_row_norms(curvature: Curvature, rows: Rows, index: IntArray, length: int = 256) -> FloatArray:
    """Norms of the rows at ``index`` by solving with blocks of them; for forms that have nothing quicker."""
    out = np.empty(len(index))
    for start in range(0, len(index), length):
        some = slice(start, start + length)
        columns = rows.columns(index[some])
        out[some] = np.einsum("ij,ij->j", columns, curvature.solve(columns))
    return np.sqrt(np.maximum(out, 0.0))
