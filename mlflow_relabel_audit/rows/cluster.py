"""Rows on the workers of a Dask cluster: blocks are read where they stay, steps go to them.

All scheduling is Dask's. A block is the result of a task that reads and transforms its rows, so the scheduler makes
it again where its worker is lost; a pass is one task per block and a tree of sums, whose small result alone comes
back.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlflow_relabel_audit.errors import RelabelAuditError, RequestError, StoreError
from mlflow_relabel_audit.rows.block import RowBlock, settled
from mlflow_relabel_audit.rows.memory import as_features
from mlflow_relabel_audit.rows.store import FAN_IN, Call, Join, Step, block_bounds, join_all

PATIENCE = 30
"""Seconds to wait for a scheduler, and for its first worker."""
PLACED = 12
"""Vectors beside the rows of which the workers keep their parts between passes."""

Transform = Callable[[Any], Any]


class ClusterStore:
    """Blocks that are futures.

    Parameters
    ----------
    client : distributed.Client, or address
        ``"tcp://host:port"`` of a scheduler, or ``"local"`` for workers on this machine.
    source : ParquetSource, or rows in this process
        read by the workers themselves, or sent to them in parts.
    transform : callable
        from rows as the model's fit took them to features.
    features, sparse, dtype
        what the transform gives.
    intercept : bool

    Raises
    ------
    StoreError
        No scheduler or worker answers, or the workers cannot read the rows.
    """

    local = False
    room: int | None = None

    def __init__(self, client: Any, source: Any, transform: Transform, like: Any, intercept: bool) -> None:
        self.client = connect(client)
        sample = as_features(like)
        self.intercept = intercept
        self.sparse, self.dtype = bool(sp.issparse(sample)), sample.dtype
        n = len(source) if hasattr(source, "read") else source.shape[0]
        self.shape: tuple[int, int] = (n, sample.shape[1])
        self.bounds: Sequence[tuple[int, int]] = block_bounds(n, sample.shape[1], self.sparse)
        self._placed: OrderedDict[bytes, list[Any]] = OrderedDict()
        with _failing():
            self._blocks = self._load(source, transform)
        self.nnz = n * sample.shape[1]
        if self.sparse:
            self.nnz = int(sum(self.map(_stored, ((i, ()) for i in range(len(self.bounds))), (), ())))

    def _load(self, source: Any, transform: Transform) -> list[Any]:
        submit = self.client.submit
        if not hasattr(source, "read"):
            rows = source.iloc if hasattr(source, "iloc") else source
            return [
                submit(_made, transform, rows[start:stop], self.shape[1], start, self.intercept, pure=False)
                for start, stop in self.bounds
            ]
        blocks = []
        for span in source.spans(self.bounds):  # blocks of one row group are read together
            read = submit(_read, source, transform, span, self.shape[1], self.intercept, pure=False)
            blocks += [submit(_item, read, number, pure=False) for number in range(len(span))]
        return blocks

    # -- steps -----------------------------------------------------------------------------------------------

    def map(self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...]) -> Iterator[Any]:
        """Run the step where each block is, and bring the results here in order."""
        with _failing():
            futures = self._submit(step, calls, along, arguments)
            futures.reverse()
            while futures:
                yield futures.pop().result()

    def reduce(
        self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...], join: Join
    ) -> tuple[Any, ...] | None:
        """Run the step where each block is, join the results there, and bring the last one here."""
        with _failing():
            level = self._submit(step, calls, along, arguments)
            while len(level) > 1:
                level = [
                    self.client.submit(join_all, level[first : first + FAN_IN], join, pure=False)
                    for first in range(0, len(level), FAN_IN)
                ]
            return level[0].result() if level else None

    def _submit(self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...]) -> list[Any]:
        asked = list(calls)
        if not asked:
            return []
        numbers = [number for number, _ in asked]
        parts = [[part[number] for number in numbers] for part in map(self._parts, along)]
        # the coefficients go out once, as the result of a task of their own that all blocks of the pass depend on
        shared = self.client.submit(_same, arguments, pure=False)
        found: list[Any] = self.client.map(
            _run,
            [shared] * len(numbers),
            [self._blocks[number] for number in numbers],
            [own for _, own in asked],
            *parts,
            step=step,
            pure=False,
            key=f"{getattr(step, '__name__', 'step').lstrip('_')}",
        )
        return found

    def _parts(self, values: Any) -> list[Any]:
        """What goes with each block of an array along the rows; vectors stay with the workers for the next pass."""
        slices = [values[start:stop] for start, stop in self.bounds]
        if values.ndim > 1:
            return slices
        key = hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16).digest()
        if key not in self._placed:
            self._placed[key] = self.client.map(_same, slices, pure=False, key="beside")
            if len(self._placed) > PLACED:
                self._placed.popitem(last=False)
        self._placed.move_to_end(key)
        return self._placed[key]


def connect(address: Any) -> Any:
    """A client of the scheduler at an address, or of workers on this machine for ``"local"``.

    Raises
    ------
    RequestError
        Dask is not installed.
    StoreError
        Nothing answers.
    """
    try:
        import distributed
    except ImportError as error:
        raise RequestError("dask: not installed; run pip install 'mlflow-relabel-audit[dask]'") from error
    if isinstance(address, distributed.Client):
        return address
    try:
        if address == "local":
            client: Any = distributed.Client(processes=True, threads_per_worker=1, dashboard_address=None)
        else:
            client = distributed.Client(address, timeout=PATIENCE)
        client.wait_for_workers(1, timeout=PATIENCE)
    except (OSError, TimeoutError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise StoreError(
            f"dask {address}: no scheduler with workers answers ({detail}); start `dask scheduler` and `dask worker`, "
            "or pass local"
        ) from error
    weakref.finalize(client, _close, weakref.ref(client))
    return client


def _close(client: Any) -> None:
    if client() is not None:
        client().close()


@contextmanager
def _failing() -> Iterator[None]:
    """Name what went wrong on the cluster."""
    from distributed import CancelledError, KilledWorker

    try:
        yield
    except RelabelAuditError:
        raise
    except KilledWorker as error:
        raise StoreError(
            f"dask: a task was given up after its workers died ({error.last_worker.address} last), as they do when "
            "they run out of memory; give workers more memory or use more of them"
        ) from error
    except MemoryError as error:
        raise StoreError("dask: a worker ran out of memory; give workers more memory or use more of them") from error
    except (CancelledError, OSError, TimeoutError, ImportError) as error:
        detail = " ".join(str(error).split())
        raise StoreError(
            f"dask: the cluster failed ({type(error).__name__}: {detail}); see that the scheduler runs and its workers "
            "have this package in the same version"
        ) from error


# what runs on workers


def _run(arguments: tuple[Any, ...], block: RowBlock, own: tuple[Any, ...], *slices: Any, step: Step) -> Any:
    return step(block, *own, *map(settled, slices), *map(settled, arguments))


def _made(transform: Transform, rows: Any, width: int, start: int, intercept: bool) -> RowBlock:
    features = as_features(transform(settled(rows)))
    if features.shape[1] != width:
        raise StoreError(
            f"training rows: the block from row {start} on has {features.shape[1]} features, the first has {width}; "
            "write the rows again with the same columns throughout"
        )
    return RowBlock(features, intercept)


def _read(
    source: Any, transform: Transform, span: list[tuple[int, int]], width: int, intercept: bool
) -> list[RowBlock]:
    first, last = span[0][0], span[-1][1]
    rows = source.read(first, last)
    places = rows.iloc if hasattr(rows, "iloc") else rows
    return [_made(transform, places[start - first : stop - first], width, start, intercept) for start, stop in span]


def _item(blocks: list[RowBlock], number: int) -> RowBlock:
    return blocks[number]


def _same(part: Any) -> Any:
    return part


def _stored(block: RowBlock) -> int:
    return int(block.features.nnz)
