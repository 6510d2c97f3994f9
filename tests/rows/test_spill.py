"""Rows on disk: the same answers as in memory, within the limit, and errors that name what failed."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_relabel_audit import Auditor
from mlflow_relabel_audit.analyses.robustness import RobustnessResult
from mlflow_relabel_audit.errors import RequestError, StoreError
from mlflow_relabel_audit.flips.search import prefix as search
from mlflow_relabel_audit.rows import ParquetSource, RowBlock, Rows, Spool, spill, store

RNG = np.random.default_rng(3)


def table(n: int = 400) -> pd.DataFrame:
    """Numbers, a category and text, with a label that depends on all three."""
    words = np.array(["good", "fine", "bad", "poor", "film", "plot", "scene", "actor", "long", "short"])
    picked = RNG.integers(0, len(words), (n, 6))
    frame = pd.DataFrame(
        {
            "size": RNG.standard_normal(n),
            "age": RNG.exponential(2.0, n),
            "town": RNG.choice(["Ulm", "Bonn", "Kiel"], n),
            "text": [" ".join(row) for row in words[picked]],
        }
    )
    score = frame["size"] + (frame["town"] == "Kiel") + 0.8 * (picked < 2).sum(axis=1) - 0.8 * (picked == 2).sum(axis=1)
    frame["label"] = (score + RNG.logistic(size=n) > 0.8).map({True: "yes", False: "no"})
    return frame


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK_BYTES", 8 * 64 * 4)
    monkeypatch.setattr(store, "SPARSE_ROWS", 70)


def model(kind: str, frame: pd.DataFrame) -> tuple[Any, Any]:
    """A fitted pipeline and the rows its fit took."""
    if kind == "text":
        return make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(frame["text"], frame["label"]), frame["text"]
    parts = make_column_transformer((StandardScaler(), ["size", "age"]), (OneHotEncoder(), ["town"]))
    X = frame.drop(columns=["label", "text"])
    return make_pipeline(parts, LogisticRegression(C=0.5, class_weight=kind)).fit(X, frame["label"]), X


def same(found: RobustnessResult, wanted: RobustnessResult) -> None:
    """Exactly the same counts, statuses and sets; floats to rounding, as blocks of predictions may be narrower."""
    for one, two in ((found.predictions, wanted.predictions), (found.flip_sets, wanted.flip_sets)):
        floats = [name for name in two if two[name].dtype == np.float64]
        pd.testing.assert_frame_equal(one.drop(columns=floats), two.drop(columns=floats), check_exact=True)
        pd.testing.assert_frame_equal(one[floats], two[floats], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "anew"])
@pytest.mark.parametrize("kind", ["text", None, "balanced"], ids=["text", "table", "balanced"])
def test_same_answers_as_in_memory(
    kind: Any, keep: bool, tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "keeps", lambda rows, width: keep)
    frame, test = table(), table(24)
    estimator, X = model(kind, frame)
    folder = tmp_path / "rows"
    folder.mkdir()
    for part in range(3):
        frame.iloc[part * 150 : (part + 1) * 150].to_parquet(folder / f"{part}.parquet", row_group_size=64)
    inside = Auditor(estimator, X, frame["label"])
    outside = Auditor.from_parquet(
        estimator,
        folder,
        "label",
        text="text" if kind == "text" else None,
        memory_limit="1MB" if kind == "text" else "24kB",
    )
    assert len(outside.rows.store.bounds) > 5
    assert len(outside.rows.store._pinned) < len(outside.rows.store.bounds) or kind == "text"  # type: ignore[attr-defined]
    assert outside.fingerprint == inside.fingerprint
    asked = test["text"] if kind == "text" else test.drop(columns=["label", "text"])
    found, wanted = (auditor.robustness(asked, test["label"], search="adaptive") for auditor in (outside, inside))
    same(found, wanted)
    assert (found.predictions["status"] == "verified").sum() > 20


@pytest.mark.parametrize("sparse", [False, True])
def test_reads_back_what_was_written(sparse: bool, small_blocks: None) -> None:
    dense = (RNG.standard_normal((500, 4)) * (RNG.random((500, 4)) < 0.5)).astype(np.float32)
    whole: Any = sp.csr_matrix(dense) if sparse else dense
    spool = Spool()
    for start in range(0, 500, 130):
        spool.add(whole[start : start + 130])
    kept = Rows(spool.store(True, 2**14), np.zeros(500), np.ones(500), intercept=True)
    direct = Rows(whole, np.zeros(500), np.ones(500), intercept=True)
    assert 0 < len(kept.store._pinned) < len(kept.store.bounds)  # type: ignore[attr-defined]
    theta = RNG.standard_normal((5, 3))
    assert np.array_equal(kept.margins(theta), direct.margins(theta))
    assert np.array_equal(kept.gram(np.arange(500.0)), direct.gram(np.arange(500.0)))
    assert kept.digests() == direct.digests()
    for index in ([499, 3, 3, 250], range(0, 500, 2)):
        one, two = kept.take(np.array(index)), direct.take(np.array(index))
        assert np.array_equal(one.toarray() if sparse else one, two.toarray() if sparse else two)
    folder = kept.store._path  # type: ignore[attr-defined]
    assert folder.stat().st_mode & 0o777 == 0o700
    del kept, spool
    assert not folder.exists()


@pytest.mark.parametrize("sparse", [False, True])
def test_many_rows_a_few_at_a_time(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single rows are read alone while they are few, also where a step asks for them in many parts."""
    dense = RNG.standard_normal((640, 4)) * (RNG.random((640, 4)) < 0.3)  # some rows hold nothing
    spool = Spool()
    spool.add(sp.csr_matrix(dense) if sparse else dense)
    block = spill.PickedBlock(spool.store(True, 2**20), 0)
    alone: list[int] = []
    pick = spill.SpilledStore.pick

    def watched(self: spill.SpilledStore, start: int, index: np.ndarray) -> Any:
        alone.extend(index)
        return pick(self, start, index)

    monkeypatch.setattr(spill.SpilledStore, "pick", watched)
    for index in np.split(RNG.integers(0, 640, 400), 50):
        found = block.take(index)
        assert np.array_equal(found.toarray() if sparse else found, np.column_stack([dense[index], np.ones(8)]))
    assert 0 < len(alone) < 640 / spill.FEW


def pair(_: RowBlock, values: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """What a step may leave: arrays in tuples, in either order."""
    turned = np.asfortranarray(np.outer(values, [1.0, 2.0]).astype(np.float32))
    return np.ascontiguousarray(turned.T), (turned, values.astype(np.int64))


def total(_: RowBlock, kept: Any, values: np.ndarray) -> tuple[float]:
    wide, (tall, whole) = kept
    assert (wide.flags.c_contiguous, tall.flags.f_contiguous) == (True, True)
    assert np.array_equal(wide, tall.T)
    assert np.array_equal(whole, values)
    return (float(tall[:, 1].sum()),)


def test_what_a_step_leaves_is_on_disk_while_it_is_held(small_blocks: None) -> None:
    spool = Spool()
    spool.add(np.ones((500, 4)))
    rows = Rows(spool.store(True, 2**14), np.zeros(500), np.ones(500), intercept=True)
    values = np.arange(500.0)
    kept = rows.keep(pair, along=(values,))
    folder = rows.store._path  # type: ignore[attr-defined]
    (file,) = folder.glob("kept-*")
    assert file.stat().st_size == 500 * (8 + 8 + 8)
    assert not any(isinstance(part, np.ndarray) for part in kept.parts)
    assert rows.reduce(total, along=(kept, values), join=("sum",)) == (2.0 * values.sum(),)
    with file.open("r+b") as held:
        held.truncate(100)
    with pytest.raises(StoreError, match="ends too early"):
        rows.reduce(total, along=(kept, values), join=("sum",))
    del kept
    assert not file.exists()


def test_no_room_for_what_a_step_leaves(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    spool = Spool()
    spool.add(np.ones((500, 4)))
    rows = Rows(spool.store(True, 2**14), np.zeros(500), np.ones(500), intercept=True)
    monkeypatch.setattr(spill, "written", full)
    with pytest.raises(StoreError, match="No space left on device; free space or point TMPDIR"):
        rows.keep(pair, along=(np.arange(500.0),))
    assert not list(rows.store._path.glob("kept-*"))  # type: ignore[attr-defined]


def test_no_more_is_held_than_the_limit(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    spool = Spool()
    spool.add(np.ones((4000, 4)))
    limit = 2**15
    kept = spool.store(True, limit)
    read = spill.SpilledStore._buffered

    def watched(self: spill.SpilledStore, number: int, turn: int) -> Any:
        found = read(self, number, turn)
        held.append(sum(buffer.nbytes for buffer in self._buffers if buffer is not None))
        return found

    monkeypatch.setattr(spill.SpilledStore, "_buffered", watched)
    Rows(kept, np.zeros(4000), np.ones(4000), intercept=True).margins(np.ones(5))
    pinned = sum(block.nbytes for block in kept._pinned.values())
    assert held
    assert pinned + max(held) <= limit // 2
    with pytest.raises(RequestError, match="pass at least"):
        spool.store(True, 2**10)


def test_a_block_with_other_columns() -> None:
    spool = Spool()
    spool.add(np.ones((3, 4)))
    with pytest.raises(StoreError, match="from row 3 on has 5 features"):
        spool.add(np.ones((3, 5)))


def test_a_file_with_other_columns(tmp_path: Path) -> None:
    frame = table(20)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.drop(columns="age").to_parquet(tmp_path / "b.parquet")
    with pytest.raises(StoreError, match=r"b\.parquet: has no column 'age'"):
        ParquetSource(tmp_path)


def test_a_file_that_vanishes(tmp_path: Path) -> None:
    frame = table(60)
    for name in "ab":
        frame.to_parquet(tmp_path / f"{name}.parquet")
    estimator, _ = model("text", frame)
    source = ParquetSource(tmp_path)
    (tmp_path / "b.parquet").unlink()
    labels = np.tile(frame["label"], 2)
    with pytest.raises(StoreError, match="cannot be read"):
        Auditor(estimator, source.series("text"), labels, memory_limit="1MB")


def test_scratch_that_is_gone(small_blocks: None) -> None:
    spool = Spool()
    spool.add(np.ones((4000, 4)))
    kept = spool.store(True, 2**15)
    (kept._path / "features").unlink()
    with pytest.raises(StoreError, match="scratch folder"):
        Rows(kept, np.zeros(4000), np.ones(4000), intercept=True).margins(np.ones(5))
