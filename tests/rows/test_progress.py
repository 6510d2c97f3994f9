"""What is told while rows are read and while passes last, and that an interrupt leaves nothing running."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_relabel_audit import Auditor
from mlflow_relabel_audit.errors import StoreError
from mlflow_relabel_audit.flips.search import prefix as search
from mlflow_relabel_audit.rows import ClusterStore, ParquetSource, Rows, progress
from tests.rows.test_cluster import client
from tests.rows.test_spill import model, small_blocks, table

distributed = pytest.importorskip("distributed")

__all__ = ["client", "small_blocks"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")

Heard = list[tuple[int, int, str]]


def hear(heard: Heard) -> Callable[[int, int, str], None]:
    return lambda done, total, stage: heard.append((done, total, stage))


def stages(heard: Heard) -> list[str]:
    return list(dict.fromkeys(stage for _, _, stage in heard))


def check_passes(heard: Heard) -> None:
    """Counts rise within a pass, and every pass ends."""
    counts = [(done, total) for done, total, stage in heard if stage == progress.PASS]
    assert counts[-1][0] == counts[-1][1]
    assert all(0 <= done <= total for done, total in counts)
    assert all(after[0] >= before[0] or before[0] == before[1] for before, after in pairwise(counts))


def test_nothing_is_told_of_what_is_soon_over(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: Heard = []
    telling = progress.Telling(hear(heard), 3)
    telling.tell(1)
    telling.end()
    assert not heard
    monkeypatch.setattr(progress, "LASTING", 0.0)
    telling = progress.Telling(hear(heard), 3)
    telling.tell(1)
    telling.end()
    assert heard == [(1, 3, progress.PASS), (3, 3, progress.PASS)]
    telling.tell(3)
    telling.end()
    assert len(heard) == 3  # the end is told once


def test_calls_are_the_same_where_nobody_listens() -> None:
    calls = iter([(0, ())])
    assert progress.told(calls, None, 1) is calls


@pytest.mark.parametrize("kind", ["text", None], ids=["text", "table"])
@pytest.mark.parametrize("where", ["disk", "cluster"])
def test_reading_and_passes_are_told(
    where: str, kind: Any, client: Any, tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LASTING", 0.0)
    monkeypatch.setattr(search, "keeps", lambda rows, width: False)
    frame, test = table(), table(6)
    estimator, _ = model(kind, frame)
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=90)
    scale: dict[str, Any] = {"dask": client} if where == "cluster" else {"memory_limit": "1MiB"}
    first: Heard = []
    text = "text" if kind == "text" else None
    auditor = Auditor.from_parquet(estimator, tmp_path, "label", text=text, **scale, progress=hear(first))
    assert stages(first) == [progress.READING, progress.PASS]
    read = [(done, total) for done, total, stage in first if stage == progress.READING]
    assert read[0][0] == 0
    assert read[-1][0] == read[-1][1]
    assert len(read) > (5 if where == "cluster" else 2)
    assert read == sorted(read)
    check_passes(first)

    asked, own = test["text"] if text else test.drop(columns=["label", "text"]), first[:]
    heard: Heard = []
    auditor.robustness(asked, test["label"], progress=hear(heard))
    assert first == own  # a method's own callback takes its place
    assert set(stages(heard)) == {progress.PASS, "flip sets"}
    sets = [(done, total) for done, total, stage in heard if stage == "flip sets"]
    assert sets[0] == (0, 6)
    assert sets[-1] == (6, 6)
    check_passes(heard)
    auditor.rows.square_norms()
    assert len(first) > len(own)  # and gives it back


def test_a_pass_on_a_cluster_is_told_while_it_lasts(
    client: Any, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    X = np.ones((512, 4))
    heard: Heard = []
    store = ClusterStore(client, X, _plain, X[:2], True, hear(heard))
    rows = Rows(store, np.zeros(512), np.ones(512), intercept=True)
    heard.clear()
    monkeypatch.setattr(progress, "LASTING", 60.0)
    rows.square_norms()
    assert not heard
    monkeypatch.setattr(progress, "LASTING", 0.1)
    rows.reduce(_nap, join=("sum",))
    assert (heard[0], heard[-1]) == ((0, 4, progress.PASS), (4, 4, progress.PASS))
    check_passes(heard)
    heard.clear()
    rows.collect(_fill, out=np.empty(512))
    assert heard[0] == (0, 4, progress.PASS)
    check_passes(heard)


def test_a_client_that_is_not_the_default(client: Any, small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LASTING", 0.0)
    monkeypatch.setattr("distributed.client._global_clients", {})
    X = np.random.default_rng(0).standard_normal((300, 4))
    heard: Heard = []
    with distributed.Client(client.scheduler.address, set_as_default=False) as own:
        rows = Rows(ClusterStore(own, X, _plain, X[:2], True, hear(heard)), np.zeros(300), np.ones(300), intercept=True)
        assert np.allclose(rows.square_norms(), (X**2).sum(axis=1) + 1)
    assert stages(heard) == [progress.READING, progress.PASS]


def test_a_read_that_fails_ends_the_waiting(client: Any, tmp_path: Path) -> None:
    frame = table(60)
    for name in "ab":
        frame.to_parquet(tmp_path / f"{name}.parquet")
    source = ParquetSource(tmp_path).select(["size", "age"], array=True)
    head = source.read(0, 2)
    (tmp_path / "b.parquet").unlink()
    heard: Heard = []
    store = ClusterStore(client, source, _plain, head, True, hear(heard))
    assert heard[0][0] == 0
    assert heard[-1][0] < heard[-1][1]
    with pytest.raises(StoreError, match=r"b\.parquet"):
        Rows(store, np.zeros(120), np.ones(120), intercept=True).square_norms()


def test_an_interrupt_while_rows_are_read(client: Any, tmp_path: Path, small_blocks: None) -> None:
    X = np.ones((2000, 4))

    def interrupt(done: int, total: int, stage: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    marks, connected = tmp_path / "marks", client.scheduler_comm.comm
    with pytest.raises(KeyboardInterrupt) as caught:  # it holds on to the frames, as a notebook does
        ClusterStore(client, X, partial(_marked, str(marks)), X[:2], True, interrupt)
    _idle(client, "block")
    assert 3 <= marks.stat().st_size < 16  # of 32 blocks
    assert caught.value is not None
    assert client.submit(_plain, 3).result() == 3
    assert client.scheduler_comm.comm is connected


def test_a_part_that_is_not_asked_for_any_more_ends_with_its_block(
    client: Any, tmp_path: Path, small_blocks: None
) -> None:
    X = np.ones((2000, 4))
    rows = Rows(ClusterStore(client, X, _plain, X[:2], True), np.zeros(2000), np.ones(2000), intercept=True)
    rows.square_norms()
    marks = tmp_path / "marks"
    with _interrupted_after(0.7), pytest.raises(KeyboardInterrupt):
        rows.reduce(_mark, str(marks), join=("sum",))
    _idle(client, "mark-")
    done = marks.stat().st_size
    assert 1 <= done <= 8  # of 32 blocks, 8 a part
    time.sleep(1.0)
    assert marks.stat().st_size == done
    assert rows.reduce(_mark, str(marks), join=("sum",)) == (2000.0,)


class _interrupted_after:  # noqa: N801  read as a phrase
    """SIGINT to this process after some seconds, whatever a shell said of it."""

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.join()
        signal.signal(signal.SIGINT, self._before)


def _idle(client: Any, name: str) -> None:
    """Wait until no such task is left with the scheduler and none runs on a worker."""

    def left() -> Iterator[str]:
        yield from (key for key in map(str, list(client.cluster.scheduler.tasks)) if key.startswith(name))
        for running in client.run(_running).values():
            yield from (key for key in running if key.startswith(name))

    for _ in range(300):
        if not list(left()):
            return
        time.sleep(0.05)
    raise AssertionError(list(left()))


def _running(dask_worker: Any) -> list[str]:
    return [str(key) for key in dask_worker.active_threads.values()]


def _plain(rows: Any) -> Any:
    return rows


def _marked(path: str, rows: Any) -> Any:
    time.sleep(0.25)
    with Path(path).open("ab") as file:
        file.write(b".")
    return rows


def _nap(block: Any) -> tuple[float]:
    time.sleep(0.25)
    return (float(block.rows),)


def _fill(block: Any, part: Any) -> None:
    time.sleep(0.25)
    part[...] = 1.0


def _mark(block: Any, path: str) -> tuple[float]:
    return (float(len(_marked(path, range(block.rows)))),)
