"""Steps in several threads: the same answers in the same order, no more ahead than that takes, nothing left behind."""

from __future__ import annotations

import _thread
import contextvars
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from mlflow_relabel_audit import Auditor
from mlflow_relabel_audit.rows import Rows, memory, store, threads
from mlflow_relabel_audit.rows.steps import picks_rows
from mlflow_relabel_audit.rows.threads import at_once

RNG = np.random.default_rng(11)
FEATURES = sp.random(2000, 30, 0.2, format="csr", random_state=11)
PATIENCE = 30.0
"""Seconds after which a step that waits for another one gives up."""


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 128 rows that are large enough for threads."""
    monkeypatch.setattr(store, "SPARSE_ROWS", 128)
    monkeypatch.setattr(memory, "LEAST_ENTRIES", 0)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch, blocks: None) -> None:
    monkeypatch.setattr(memory, "available", lambda: 3)


def rows(features: Any = FEATURES) -> Rows:
    n = features.shape[0]
    return Rows(features, (np.arange(n) % 3 == 0).astype(float), np.ones(n), intercept=True)


def thread_of(block: Any, *_: Any) -> str:
    return threading.current_thread().name


@picks_rows
def thread_of_picks(block: Any, index: Any) -> str:
    return threading.current_thread().name


def names(some: Rows) -> set[str]:
    return {name.rsplit("_", 1)[0] for name in some.blocks(thread_of)}


def left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rows")]


# -- where they are used -----------------------------------------------------------------------------------------


def test_sparse_blocks_run_in_threads(three: None) -> None:
    assert names(rows()) == {"MainThread", "rows"}
    assert not left()


def test_dense_rows_are_left_to_blas(three: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK_BYTES", 8 * 30 * 128)
    dense = rows(FEATURES.toarray())
    assert len(dense.store.bounds) > 3
    assert names(dense) == {"MainThread"}


def test_small_tables_stay_in_one(three: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LEAST_ENTRIES", FEATURES.nnz + 1)
    assert names(rows()) == {"MainThread"}
    monkeypatch.setattr(memory, "LEAST_ENTRIES", 0)
    assert names(rows(FEATURES[:128])) == {"MainThread"}
    assert names(rows(FEATURES[:180])) == {"MainThread"}  # two blocks, one of them hardly half


def test_single_rows_are_picked_in_one(three: None) -> None:
    some = rows()
    each = some.split(np.arange(0, 2000, 50))
    assert set(some.store.map(thread_of_picks, some._calls(each), (), ())) == {"MainThread"}


def test_as_many_threads_as_blas_would_use(blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cpu_count", lambda: 64)
    for count in (1, 2):
        with threadpool_limits(count, "blas"):
            assert threads.available() == count
            assert names(rows()) == {"MainThread", "rows"} if count == 2 else {"MainThread"}
    monkeypatch.setattr(threads, "cpu_count", lambda: 1)
    with threadpool_limits(2, "blas"):
        assert threads.available() == 1


# -- what comes of it --------------------------------------------------------------------------------------------


def reductions(some: Rows) -> list[Any]:
    theta, residual = np.sin(np.arange(some.p * 5.0)).reshape(-1, 5), np.cos(np.arange(some.n * 4.0)).reshape(-1, 4)
    return [
        some.margins(theta), some.pull(residual), some.gram(np.abs(residual[:, 0])), some.square_norms(),
        some.column_squares(residual[:, 1]), some.forms(theta, np.eye(5)), some.digests(),
    ]  # fmt: skip


def audited(some: Any, labels: Any) -> list[Any]:
    model = LogisticRegression(C=1.0).fit(some, labels)
    found = Auditor(model, some, labels).robustness(some[:24])
    return [found.predictions.to_json(double_precision=15), found.flip_sets.to_json(double_precision=15)]


def test_nothing_changes(blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = (FEATURES @ RNG.standard_normal(30) + RNG.logistic(size=2000) > 0).astype(int)
    answers = []
    for count in (1, 3):
        monkeypatch.setattr(memory, "available", lambda count=count: count)
        answers.append([*reductions(rows()), *audited(FEATURES, labels)])
    for one, three in zip(*answers, strict=True):
        assert one.tobytes() == three.tobytes() if isinstance(one, np.ndarray) else one == three


def test_results_come_in_order() -> None:
    second = threading.Event()

    def step(number: int) -> int:
        if number == 0:
            assert second.wait(PATIENCE)
        if number == 1:
            second.set()
        return number

    assert list(at_once(step, ((i,) for i in range(20)), 2)) == list(range(20))


def test_calls_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def calls() -> Iterator[tuple[int]]:
        for i in range(100):
            taken.append(i)
            yield (i,)

    results = at_once(lambda i: i, calls(), 3)
    assert not taken
    for i in range(50):
        assert next(results) == i
        assert len(taken) <= i + 1 + 4
    results.close()
    assert len(taken) <= 54
    assert not left()


def test_calls_are_made_in_the_thread_that_asks() -> None:
    def calls() -> Iterator[tuple[str]]:
        for _ in range(5):
            yield (threading.current_thread().name,)

    assert set(at_once(lambda name: name, calls(), 2)) == {"MainThread"}


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["a step of a helper", "a step of its own", "the calls", "what asks"])
def test_an_exception_ends_it(kind: type[BaseException], where: str) -> None:
    done: list[int] = []
    failing = {"a step of a helper": 4, "a step of its own": 5}.get(where)

    def step(number: int) -> None:
        if number == failing:
            assert (threading.current_thread().name == "MainThread") == (where == "a step of its own")
            raise kind("stop")
        done.append(number)

    def calls() -> Iterator[tuple[int]]:
        for number in range(100):
            if where == "the calls" and number == 3:
                raise kind("stop")
            yield (number,)

    def run() -> None:
        for number, _ in enumerate(at_once(step, calls(), 2)):
            if where == "what asks" and number == 3:
                raise kind("stop")

    with pytest.raises(kind, match="stop"):
        run()
    assert len(done) < 10
    assert not left()


def test_results_before_an_exception_come_first() -> None:
    def step(number: int) -> int:
        if number in (5, 6):
            raise ValueError(f"number {number}")
        return number

    results = at_once(step, ((i,) for i in range(20)), 2)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="number 5"):
        next(results)


def test_an_interrupt_while_steps_run() -> None:
    begun = threading.Event()

    def step(number: int) -> int:
        if not number:
            begun.set()
        return sum(range(10**5))

    def interrupt() -> None:
        assert begun.wait(PATIENCE)
        _thread.interrupt_main()

    def run() -> None:
        for _ in at_once(step, ((i,) for i in range(10**6)), 2):
            pass

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        run()
    other.join()
    end = time.monotonic() + PATIENCE
    while left() and time.monotonic() < end:  # a thread that was just being started ends by itself
        time.sleep(0.01)
    assert not left()


def test_steps_run_as_in_the_caller_s_own_context() -> None:
    mark = contextvars.ContextVar("mark", default="none")
    mark.set("mine")
    seen = list(at_once(lambda _: (mark.get(), np.geterr()["over"]), ((i,) for i in range(4)), 2))
    assert seen == [("mine", "warn")] * 4
    large = np.full(1000, 1e200)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        list(at_once(lambda _: large * large, ((i,) for i in range(4)), 2))
    with np.errstate(over="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(at_once(lambda _: large * large, ((i,) for i in range(4)), 2))) == 4
