"""An audit that was interrupted goes on where it stopped, and only where the question is the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from mlflow_relabel_audit import Auditor
from mlflow_relabel_audit.errors import StoreError
from mlflow_relabel_audit.flips.order import influence as order

RNG = np.random.default_rng(5)
X = RNG.standard_normal((200, 3))
Y = np.where(X @ [1.0, -1.0, 0.5] + RNG.logistic(size=200) > 0, "yes", "no")
ASKED = RNG.standard_normal((40, 3))
IDS = [f"case {i}" for i in range(40)]


@pytest.fixture
def auditor(monkeypatch: pytest.MonkeyPatch) -> Auditor:
    monkeypatch.setattr(order, "block_width", lambda *_: 7)
    return Auditor(LogisticRegression().fit(X, Y), X, Y, row_ids=[f"row {i}" for i in range(200)])


def interrupted(auditor: Auditor, folder: Path, **options: Any) -> None:
    def stop(done: int, total: int, stage: str) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        auditor.robustness(ASKED, Y[:40], row_ids=IDS, checkpoint=folder, progress=stop, **options)


def test_goes_on_where_it_stopped(auditor: Auditor, tmp_path: Path) -> None:
    folder = tmp_path / "unfinished"
    interrupted(auditor, folder)
    assert len(list(folder.glob("*.parquet"))) == 4
    assert folder.stat().st_mode & 0o777 == 0o700
    seen: list[int] = []
    found = auditor.robustness(
        ASKED, Y[:40], row_ids=IDS, checkpoint=folder, progress=lambda done, total, stage: seen.append(done)
    )
    assert seen[:2] == [7, 14]
    assert not folder.exists()
    wanted = auditor.robustness(ASKED, Y[:40], row_ids=IDS)
    pd.testing.assert_frame_equal(found.predictions, wanted.predictions, check_exact=True)
    pd.testing.assert_frame_equal(found.flip_sets, wanted.flip_sets, check_exact=True)


def _killed(folder: Path) -> None:
    """Audit in blocks of seven, and die without a word after the third of them."""
    order.block_width = lambda *_: 7

    def die(done: int, total: int, stage: str) -> None:
        if done > 20:
            os.kill(os.getpid(), signal.SIGKILL)

    auditor = Auditor(LogisticRegression().fit(X, Y), X, Y, row_ids=[f"row {i}" for i in range(200)])
    auditor.robustness(ASKED, Y[:40], row_ids=IDS, checkpoint=folder, progress=die)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_goes_on_where_it_was_killed(auditor: Auditor, tmp_path: Path) -> None:
    folder = tmp_path / "unfinished"
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    parts = len(list(folder.glob("flip_sets-*.parquet")))
    assert parts == 2
    seen: list[int] = []
    found = auditor.robustness(
        ASKED, Y[:40], row_ids=IDS, checkpoint=folder, progress=lambda done, total, stage: seen.append(done)
    )
    assert seen[:2] == [7, 14]
    wanted = auditor.robustness(ASKED, Y[:40], row_ids=IDS)
    pd.testing.assert_frame_equal(found.predictions, wanted.predictions, check_exact=True)
    pd.testing.assert_frame_equal(found.flip_sets, wanted.flip_sets, check_exact=True)


@pytest.mark.parametrize("changed", [{"certify": False}, {"search": "adaptive"}])
def test_another_question_begins_anew(auditor: Auditor, tmp_path: Path, changed: dict[str, Any]) -> None:
    interrupted(auditor, tmp_path / "part")
    seen: list[int] = []
    auditor.robustness(
        ASKED, Y[:40], row_ids=IDS, checkpoint=tmp_path / "part",
        progress=lambda done, total, stage: seen.append(done), **changed,
    )  # fmt: skip
    assert seen[0] < 7


def test_a_part_cut_short_is_done_again(auditor: Auditor, tmp_path: Path) -> None:
    folder = tmp_path / "part"
    interrupted(auditor, folder)
    last = sorted(folder.glob("flip_sets-*"))[-1]
    last.write_bytes(last.read_bytes()[:20])
    found = auditor.robustness(ASKED, row_ids=IDS, checkpoint=folder)
    assert found.predictions["row_id"].tolist() == IDS


def test_a_folder_that_cannot_be_made(auditor: Auditor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        auditor.robustness(ASKED, checkpoint=tmp_path / "file" / "part")
