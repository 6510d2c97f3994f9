"""Conjugate gradients with the Hessian's diagonal, for sparse rows where neither factor fits."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mlflow_relabel_audit.curvature.base import MAX_CONDITION, singular
from mlflow_relabel_audit.problem import FloatArray, IntArray
from mlflow_relabel_audit.rows import Rows

TOLERANCE = 1e-11
MAX_ITERATIONS = 3000


class ConjugateCurvature:
    """H by its products ``X' (d * (X v)) + R v``; nothing of order p x p or n x n is formed."""

    kind: ClassVar[str] = "cg"
    order: int = 0
    sparse_quick: ClassVar[bool] = False

    def __init__(self, rows: Rows, diagonal: FloatArray, penalty: FloatArray, condition: float = np.nan) -> None:
        self.p = rows.p
        self.condition = condition
        self._rows = rows
        self._diagonal = diagonal
        self._penalty = penalty
        self._jacobi = self._column_squares() + penalty
        if np.any(self._jacobi <= 0):
            raise singular("a column is zero and has no penalty")

    @classmethod
    def factor(cls, rows: Rows, diagonal: FloatArray, penalty: FloatArray) -> ConjugateCurvature:
        """Prepare the preconditioner, and estimate the condition by a short Lanczos run.

        Raises
        ------
        SingularHessianError
            The preconditioned H is singular to working precision.
        """
        curvature = cls(rows, diagonal, penalty)
        curvature.condition = curvature._lanczos_condition()
        if not curvature.condition < MAX_CONDITION:
            raise singular(f"condition number {curvature.condition:.1e}")
        return curvature

    def _column_squares(self) -> FloatArray:
        """Diagonal of H without R, shape (p,)."""
        return self._rows.column_squares(self._diagonal)

    def product(self, right: FloatArray) -> FloatArray:
        """``H right``, shape (p, B)."""
        return np.asarray(self._rows.normal(self._diagonal, right) + self._penalty[:, None] * right)

    def solve(self, right: FloatArray) -> FloatArray:
        """``H^-1 right``, shape (p,) or (p, B), to a relative residual of 1e-11.

        Raises
        ------
        SingularHessianError
            The residual does not fall.
        """
        target = right.reshape(self.p, -1)
        out = np.zeros(target.shape)
        inverse = 1.0 / self._jacobi[:, None]
        size = np.sqrt(np.einsum("ij,ij->j", target, inverse * target))
        active = np.flatnonzero(size > 0)
        residual = target[:, active].copy()
        solution = np.zeros(residual.shape)
        conditioned = inverse * residual
        direction = conditioned.copy()
        rho = np.einsum("ij,ij->j", residual, conditioned)
        for _ in range(MAX_ITERATIONS):
            if not active.size:
                return out.reshape(right.shape)
            image = self.product(direction)
            step = rho / np.einsum("ij,ij->j", direction, image)
            solution += step * direction
            residual -= step * image
            conditioned = inverse * residual
            previous, rho = rho, np.einsum("ij,ij->j", residual, conditioned)
            direction = conditioned + (rho / previous) * direction
            done = np.sqrt(rho) <= TOLERANCE * size[active]
            if done.any():
                out[:, active[done]] = solution[:, done]
                keep = ~done
                active, rho = active[keep], rho[keep]
                solution, residual, direction = solution[:, keep], residual[:, keep], direction[:, keep]
        raise singular(f"conjugate gradients did not converge in {MAX_ITERATIONS} iterations")

    def updated(
        self, rows: Rows, penalty: FloatArray, diagonal: FloatArray, index: IntArray, change: FloatArray
    ) -> ConjugateCurvature:
        """Products with other weights; nothing of the present state helps."""
        return ConjugateCurvature(rows, diagonal, penalty)

    def row_norms(self, rows: Rows) -> FloatArray:
        """Upper bounds of ``||x_i||_{H^-1}``, shape (n,).

        Centring a free intercept, ``h_i^2 <= 1/sum(d) + ||f_i - mean||^2 / min R`` with the d-weighted mean;
        with every column penalised, ``h_i^2 <= sum_j x_ij^2 / R_j``.
        """
        free = self._penalty == 0
        if not free.any():
            scale = 1.0 / self._penalty.min()
            return np.sqrt(rows.square_norms() * scale)
        if free[:-1].any():
            return np.full(rows.n, np.inf)
        total = self._diagonal.sum()
        mean = rows.pull(self._diagonal)[:-1] / total
        centred = rows.square_norms() - 1.0 - 2.0 * rows.margins(np.append(mean, 0.0)) + mean @ mean
        return np.sqrt(1.0 / total + np.maximum(centred, 0.0) / self._penalty[:-1].min(initial=np.inf))

    def arrays(self) -> dict[str, FloatArray]:
        """The weights d of the products, shape (n,)."""
        return {"diagonal": self._diagonal}

    def _lanczos_condition(self, steps: int = 40) -> float:
        """Ratio of the extreme Ritz values of the preconditioned H."""
        rng = np.random.default_rng(0)
        root = np.sqrt(self._jacobi)
        vector = rng.standard_normal(self.p)
        vector /= np.linalg.norm(vector)
        before, beta = np.zeros(self.p), 0.0
        alphas: list[float] = []
        betas: list[float] = []
        for _ in range(min(steps, self.p)):
            image = self.product((vector / root)[:, None])[:, 0] / root - beta * before
            alpha = float(vector @ image)
            image -= alpha * vector
            alphas.append(alpha)
            beta = float(np.linalg.norm(image))
            if beta < 1e-12:
                break
            betas.append(beta)
            before, vector = vector, image / beta
        off = betas[: len(alphas) - 1]
        ritz = np.linalg.eigvalsh(np.diag(alphas) + np.diag(off, 1) + np.diag(off, -1))
        return float(ritz[-1] / ritz[0]) if ritz[0] > 0 else np.inf
