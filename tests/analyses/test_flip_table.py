"""Flip sets that pass through files are those that stay in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from mlflow_relabel_audit import Auditor
from mlflow_relabel_audit.analyses import flip_table
from mlflow_relabel_audit.analyses.flip_table import FlipTable
from mlflow_relabel_audit.errors import StoreError
from mlflow_relabel_audit.flips.order import influence as order
from mlflow_relabel_audit.tracking.files import parquet_file

RNG = np.random.default_rng(5)
X = RNG.standard_normal((200, 3))
Y = np.where(X @ [1.0, -1.0, 0.5] + RNG.logistic(size=200) > 0, "yes", "no")
ASKED = RNG.standard_normal((40, 3))
IDS = [f"row {i}" for i in range(200)]


@pytest.fixture
def auditor(monkeypatch: pytest.MonkeyPatch) -> Auditor:
    monkeypatch.setattr(order, "block_width", lambda *_: 7)
    return Auditor(LogisticRegression().fit(X, Y), X, Y, row_ids=IDS)


@pytest.mark.parametrize("kept", [None, "part"])
def test_sets_in_files(kept: str | None, auditor: Auditor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = auditor.robustness(ASKED)
    monkeypatch.setattr(flip_table, "HELD_BYTES", 0)
    found = auditor.robustness(ASKED, checkpoint=None if kept is None else tmp_path / kept)
    assert not (tmp_path / "part").exists()
    assert all(part.frame is None for part in found.sets._parts)
    assert len(found.sets) == len(wanted.flip_sets) > 0
    assert len(list(found.sets.parts())) == 6
    pd.testing.assert_frame_equal(found.flip_sets, wanted.flip_sets, check_exact=True)
    written = parquet_file(tmp_path, "flip_sets.parquet", found.sets)
    pd.testing.assert_frame_equal(pd.read_parquet(written.file), wanted.flip_sets, check_exact=True)
    counts = wanted.flip_sets["train_id"].value_counts().reindex(IDS, fill_value=0)
    assert found.sets.counts(IDS).tolist() == counts.tolist()
    folder = found.sets._folder
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700
    del found
    assert not folder.exists()


def test_ids_that_no_file_holds_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flip_table, "HELD_BYTES", 0)
    frame = pd.DataFrame({"row_id": [1, "a"], "rank": [1, 1]})
    table = FlipTable.of(frame)
    pd.testing.assert_frame_equal(table.frame(), frame)


def test_a_file_that_vanished(auditor: Auditor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flip_table, "HELD_BYTES", 0)
    found = auditor.robustness(ASKED)
    next(iter(found.sets._folder.glob("*"))).unlink()  # type: ignore[union-attr]
    with pytest.raises(StoreError, match="flip sets: a file failed"):
        found.sets.frame()
