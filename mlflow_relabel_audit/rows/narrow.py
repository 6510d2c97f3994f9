"""What lies in each column of a table of many rows and few columns, which numpy's own reductions go through row by row.

Several times as fast as those for up to some dozens of columns, and the same to the bit.
"""

from __future__ import annotations

import numpy as np

from mlflow_relabel_audit.problem import FloatArray

LINE = 512
"""Values that are compared at once."""


def sums(table: FloatArray) -> FloatArray:
    """``table.sum(axis=0)``, shape (n, B) to (B,)."""
    if table.flags.f_contiguous or table.shape[1] == 1:  # a column is then added in pairs, and quickly
        return np.asarray(table.sum(axis=0))
    return np.asarray(np.einsum("ij->j", table))


def least(table: FloatArray) -> FloatArray:
    """``table.min(axis=0)``, shape (n, B) to (B,)."""
    return _extreme(np.minimum, table)


def largest(table: FloatArray) -> FloatArray:
    """``table.max(axis=0)``, shape (n, B) to (B,)."""
    return _extreme(np.maximum, table)


def _extreme(of_two: np.ufunc, table: FloatArray) -> FloatArray:
    n, width = table.shape
    side_by_side = LINE // max(width, 1)
    folded = n - n % max(side_by_side, 1)
    if side_by_side > 1 and folded:
        lines = of_two.reduce(table[:folded].reshape(-1, side_by_side * width), axis=0)
        table = np.concatenate([lines.reshape(side_by_side, width), table[folded:]])
    return np.asarray(of_two.reduce(table, axis=0))
