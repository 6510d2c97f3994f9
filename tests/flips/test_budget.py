"""What may be held beside the rows follows from what is held anyway."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from mlflow_relabel_audit.flips import budget
from mlflow_relabel_audit.flips.order.influence import FEW_BLOCK, block_width
from mlflow_relabel_audit.flips.refit.rows import Kept
from mlflow_relabel_audit.flips.relabelling import RelabelEffect
from mlflow_relabel_audit.flips.search.prefix import MAX_WIDTH, VerifiedSearch
from mlflow_relabel_audit.rows import Rows
from tests.flips.fitting import fitted


def rows_of(features: object, n: int) -> Rows:
    return Rows(features, np.zeros(n), np.ones(n), intercept=True)


def test_a_share_of_the_matrix_and_the_factor() -> None:
    rows = rows_of(np.zeros((20_000, 200)), 20_000)
    assert budget.beside(rows, 0.25) == 0.25 * 8 * 20_000 * 200
    assert budget.beside(rows, 0.25, order=1_000) == 0.25 * (8 * 20_000 * 200 + 8 * 1_000**2)
    narrow = rows_of(np.zeros((20_000, 200), dtype=np.float32), 20_000)
    assert budget.beside(narrow, 0.5) == 0.5 * 4 * 20_000 * 200
    few = rows_of(sp.csr_matrix(np.eye(50)), 50)
    assert budget.beside(few, 0.25) == budget.LEAST
    assert budget.beside(few, 0.5, order=2**16) == budget.MOST


def test_no_more_than_a_quarter_of_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(np.zeros((20_000, 200)), 20_000)
    monkeypatch.setattr(rows.store, "room", 2**20)
    assert budget.beside(rows, 0.25) == 2**18


def test_widths_keep_to_it() -> None:
    rows = rows_of(np.zeros((20_000, 200)), 20_000)
    assert 4 * rows.n * block_width(rows) <= budget.beside(rows, budget.INFLUENCES)
    assert block_width(rows, 2_000) > block_width(rows)
    small = fitted(n=400)
    effect = RelabelEffect.at(small.problem, small.rows, small.point)
    norms = small.point.curvature.row_norms(small.rows)
    assert VerifiedSearch(small.problem, small.rows, small.point, effect, norms).width == MAX_WIDTH


def test_rows_of_few_entries_share_a_pass_all_the_same() -> None:
    n = 200_000
    thin = rows_of(sp.csr_matrix((np.ones(n), np.zeros(n, dtype=int), np.arange(n + 1)), shape=(n, 3)), n)
    assert block_width(thin) == FEW_BLOCK
    assert 4 * n * FEW_BLOCK > budget.beside(thin, budget.INFLUENCES)


def test_columns_are_dropped_within_the_memory_that_is_held() -> None:
    """No second table beside the first, and the first is let go once half of it is not needed."""
    kept = Kept.empty(5_000, 8, np.float32)
    rng = np.random.default_rng(0)
    for table in (kept.z, kept.image, kept.response):
        table[:] = rng.standard_normal(table.shape)
    before = kept.columns(np.arange(8))
    held = kept.z
    kept.narrow(np.array([0, 2, 3, 4, 7]))
    assert np.shares_memory(kept.z, held)
    kept.narrow(np.array([0, 1, 2, 4]))
    assert not np.shares_memory(kept.z, held)
    for name in ("z", "image", "response"):
        left = getattr(kept, name)
        assert left.flags.c_contiguous
        np.testing.assert_array_equal(left, getattr(before, name)[:, [0, 2, 3, 7]])
