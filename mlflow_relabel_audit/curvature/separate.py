"""The curvature of outputs that do not touch one another: a block of its own for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from mlflow_relabel_audit.curvature.base import Curvature
from mlflow_relabel_audit.likelihood import FloatArray, IntArray
from mlflow_relabel_audit.rows import Rows


class SeparateCurvature:
    """``H`` of M blocks, each in a form of its own; see `factor`."""

    sparse_quick: ClassVar[bool] = False

    def __init__(self, parts: Sequence[Curvature]) -> None:
        self.parts = list(parts)
        self.kind = self.parts[0].kind
        self.condition = max(part.condition for part in self.parts)
        self.p = sum(part.p for part in self.parts)
        self.order = max(part.order for part in self.parts)

    def solve(self, right: FloatArray) -> FloatArray:
        """``H^-1 right``, shape (p,) or (p, B)."""
        columns = right.reshape(len(self.parts), self.parts[0].p, -1)
        solved = [part.solve(column) for part, column in zip(self.parts, columns, strict=True)]
        return np.concatenate(solved).reshape(right.shape)

    def updated(
        self, rows: Rows, penalty: FloatArray, diagonal: FloatArray, index: IntArray, change: FloatArray
    ) -> SeparateCurvature:
        """Every block with its own weights, shape (n M,), which differ by ``change`` at ``index``."""
        single, count = rows.of_one_output(), len(self.parts)
        row, output = np.divmod(index, count)
        parts = []
        for m, part in enumerate(self.parts):
            mine = output == m
            weights = np.ascontiguousarray(diagonal[m::count])
            parts.append(part.updated(single, _part(penalty, m, count), weights, row[mine], change[mine]))
        return SeparateCurvature(parts)

    def row_norms(self, rows: Rows) -> FloatArray:
        """``||x_i||`` under each block's inverse, shape (n M,)."""
        single = rows.of_one_output()
        return np.stack([part.row_norms(single) for part in self.parts], axis=1).ravel()

    def arrays(self) -> dict[str, FloatArray]:
        """What each block stores, its name preceded by the number of the block."""
        return {f"{m}_{name}": value for m, part in enumerate(self.parts) for name, value in part.arrays().items()}


def _part(values: FloatArray, m: int, count: int) -> FloatArray:
    """Output m's share of a vector of coefficients."""
    return np.ascontiguousarray(values.reshape(count, -1)[m])
