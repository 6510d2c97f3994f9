"""Rows picked once: the same sums as the blocks', without asking them again."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from mlflow_relabel_audit.rows import Rows, Spool, picked, steps, store
from mlflow_relabel_audit.rows.spill import SpilledStore

RNG = np.random.default_rng(8)
DENSE = RNG.standard_normal((500, 4)) * (RNG.random((500, 4)) < 0.6)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("limit", [2**20, 40 * 8 * 5, 0], ids=["all", "some", "none"])
def test_moves_are_those_of_the_blocks(sparse: bool, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK_BYTES", 8 * 64 * 4)
    monkeypatch.setattr(store, "SPARSE_ROWS", 70)
    monkeypatch.setattr(picked, "PICKED_BYTES", limit)
    spool = Spool()
    spool.add(sp.csr_matrix(DENSE) if sparse else DENSE)
    labels = np.zeros(500), np.ones(500)
    direct = Rows(sp.csr_matrix(DENSE) if sparse else DENSE, *labels, intercept=True)
    rows = Rows(spool.store(True, 2**20), *labels, intercept=True)
    asked: list[str] = []
    run = SpilledStore.map

    def watched(self: SpilledStore, step: store.Step, *arguments: object) -> object:
        asked.append(step.__name__)
        return run(self, step, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SpilledStore, "map", watched)
    draws = [(RNG.integers(0, 500, size), size) for size in (20, 3, 30, 200)]
    draws.append(draws[0])
    for index, size in draws:
        column, amount = RNG.integers(0, 3, size), RNG.standard_normal(size)
        found, wanted = (each.spread(index, column, amount, 3) for each in (rows, direct))
        assert np.array_equal(found, wanted)
    if limit == 2**20:
        assert asked == [steps.take.__name__] * 4  # the fifth move is of rows that are here
    if not limit:
        assert asked == [steps.spread.__name__] * 5
    assert np.array_equal(rows.spread(np.zeros(0, dtype=int), np.zeros(0, dtype=int), np.zeros(0), 2), np.zeros((5, 2)))
