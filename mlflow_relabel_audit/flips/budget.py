"""How much the passes of flip sets may hold beside the rows.

A share of what is held anyway, the design matrix and the factor: memory then grows with the problem and not beyond
it. Small problems get a least amount, below which numpy's calls cost more than what they compute. Sizes of blocks
decide neither orders nor sets (`order.ranking`, `refit`), so neither does the budget.
"""

from __future__ import annotations

import numpy as np

from mlflow_relabel_audit.rows import Rows

LEAST = 2**22
MOST = 2**28
INFLUENCES = 0.3
"""Share of the float32 influences of one block of predictions."""
REFITS = 0.3
"""Share of what is kept of each row and column between the passes of refits."""


def beside(rows: Rows, share: float, order: int = 0, least: int = LEAST) -> int:
    """Bytes that may be held beside the rows for one purpose.

    Parameters
    ----------
    rows : Rows
    share : float
        of the stored entries and a factor of ``order``; at most a quarter of the room that a memory limit leaves.
    order : int
        of the dense matrix that the curvature holds.
    least : int
        given whatever the share, as far as there is room.
    """
    entry = np.dtype(rows.store.dtype).itemsize + (4 if rows.sparse else 0)
    held = entry * rows.nnz + 8 * order**2
    size = int(np.clip(share * held, least, MOST))
    return size if rows.store.room is None else min(size, rows.store.room // 4)
