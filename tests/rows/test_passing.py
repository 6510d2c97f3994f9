"""Evaluation rows that pass by give what rows at once give, and no more than a block of them is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_relabel_audit import Auditor
from mlflow_relabel_audit.errors import RequestError, StoreError
from mlflow_relabel_audit.rows import ParquetSource, PassingStore, Rows, passing
from tests.rows.test_spill import model, same, small_blocks, table

__all__ = ["small_blocks"]


@pytest.mark.parametrize("kind", ["text", None])
@pytest.mark.parametrize("form", ["frame", "parquet"])
def test_same_as_at_once(
    kind: Any, form: str, tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passing, "PASSING_BYTES", 1)
    frame, test = table(), table(150)
    estimator, X = model(kind, frame)
    asked = test["text"] if kind == "text" else test.drop(columns=["label", "text"])
    wanted = Auditor(estimator, X, frame["label"]).robustness(asked, test["label"])
    auditor = Auditor(estimator, X, frame["label"], memory_limit="1MB")
    made: list[int] = []
    block = PassingStore.block

    def watched(self: PassingStore, number: int) -> Any:
        found = block(self, number)
        made.append(found.rows)
        return found

    monkeypatch.setattr(PassingStore, "block", watched)
    if form == "parquet":
        test.to_parquet(tmp_path / "test.parquet", row_group_size=50)
        source = ParquetSource(tmp_path / "test.parquet")
        asked = source.series("text") if kind == "text" else source.select(list(asked.columns))
    found = auditor.robustness(asked, test["label"], checkpoint=tmp_path / "part")
    same(found, wanted)
    assert max(made) == 64
    assert sum(made) >= 2 * 150


def test_other_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "PASSING_BYTES", 1)
    rows = np.ones((100, 3))
    with pytest.raises(StoreError, match="rows 64 to 100: got 2 features, the first rows have 3"):
        Rows(
            PassingStore(rows, lambda some: some[:, : 3 if len(some) > 40 else 2], rows[:2], True),
            np.zeros(100), np.ones(100), intercept=True,
        ).margins(np.ones(4))  # fmt: skip


def test_too_few_features(small_blocks: None) -> None:
    frame = table()
    estimator, X = model(None, frame)
    auditor = Auditor(estimator, X, frame["label"], memory_limit="1MB")
    with pytest.raises(RequestError):
        auditor.robustness(pd.DataFrame({"size": [1.0], "age": [2.0]}))
