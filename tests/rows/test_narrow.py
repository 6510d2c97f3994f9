"""Columns of narrow tables: numpy's own answers, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_relabel_audit.rows import narrow

RNG = np.random.default_rng(5)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 7), (63, 8), (64, 8), (1000, 1), (1000, 3), (7001, 8), (300, 512), (9, 700)]
)
@pytest.mark.parametrize("kind", ["rows in order", "columns in order", "some columns", "float32"])
def test_as_numpy_reduces(shape: tuple[int, int], kind: str) -> None:
    n, width = shape
    table = RNG.standard_normal((n, 2 * width)) * 10.0 ** RNG.integers(-9, 9, (n, 2 * width))
    table = table[:, ::2] if kind == "some columns" else table[:, :width].copy()
    if kind == "columns in order":
        table = np.asfortranarray(table)
    if kind == "float32":
        table = table.astype(np.float32)
    assert narrow.sums(table).tobytes() == table.sum(axis=0).tobytes()
    assert narrow.least(table).tobytes() == table.min(axis=0).tobytes()
    assert narrow.largest(table).tobytes() == table.max(axis=0).tobytes()


def test_what_is_no_number_stays() -> None:
    table = RNG.standard_normal((2000, 4))
    table[1234, 1] = np.nan
    assert (
        np.isnan(narrow.least(table)).tolist()
        == np.isnan(narrow.largest(table)).tolist()
        == [False, True] + [False] * 2
    )
