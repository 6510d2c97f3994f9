"""The tasks of a cluster's passes: what runs on the workers that hold the rows (see `cluster`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlflow_relabel_audit.rows.allocation import keep_freed_memory
from mlflow_relabel_audit.rows.block import RowBlock, settled
from mlflow_relabel_audit.rows.memory import Transform, made
from mlflow_relabel_audit.rows.store import Call, Join, Step, joined_nodes, places


def run_step(
    arguments: tuple[Any, ...],
    blocks: list[RowBlock],
    asked: list[Call],
    run: range,
    lengths: list[int],
    *beside: Any,
    step: Step,
    join: Join | None,
) -> Any:
    """Run a step on some blocks of a part: a list of what it returns, joined (`joined_nodes`) where that is asked."""
    keep_freed_memory()
    ends = np.cumsum(lengths)
    arguments = tuple(map(settled, arguments))
    results = []
    for number, own in asked:
        _go_on()
        place = number - run.start
        within = slice(ends[place] - lengths[place], ends[place])
        along = (values[place] if isinstance(values, list) else settled(values[within]) for values in beside)
        results.append(step(blocks[place], *own, *along, *arguments))
    if join is None:
        return results
    return joined_nodes([(number, result) for (number, _), result in zip(asked, results, strict=True)], run, join)


def _go_on() -> None:
    """End a task that is no longer asked for: Dask ends none that has begun, and a part has many blocks.

    Raises
    ------
    distributed.Reschedule
        It was cancelled. Should the scheduler want it again meanwhile, it runs again.
    """
    from distributed import Reschedule, get_worker

    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    if task is None or task.state == "cancelled":
        raise Reschedule


def joined(parts: list[list[tuple[int, tuple[Any, ...]]]], run: range, join: Join) -> list[tuple[int, Any]]:
    """Join what parts that follow one another returned."""
    return joined_nodes([item for part in parts for item in part], run, join)


def block(transform: Transform, rows: Any, width: int, start: int, intercept: bool) -> RowBlock:
    """A block of rows that came with the task."""
    return made(transform, settled(rows), width, start, intercept)


def read(source: Any, transform: Transform, span: list[tuple[int, int]], width: int, intercept: bool) -> list[RowBlock]:
    """The blocks of a span, whose rows are read together."""
    first, last = span[0][0], span[-1][1]
    rows = places(source.read(first, last))
    blocks = []
    for start, stop in span:
        _go_on()
        blocks.append(block(transform, rows[start - first : stop - first], width, start, intercept))
    return blocks


def item(blocks: list[RowBlock], number: int) -> RowBlock:
    """One block of those that were read together."""
    return blocks[number]


def same(part: Any) -> Any:
    """What came with the task, left with the worker."""
    return part


def stored(block: RowBlock) -> int:
    """Stored entries of a sparse block."""
    return int(block.features.nnz)
