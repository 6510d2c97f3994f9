"""Rows on the workers of a Dask cluster: blocks are read where they stay, steps go to them.

All scheduling is Dask's. A part, some blocks that follow one another, is the result of tasks that read and transform
their rows, so the scheduler makes it again where its worker is lost; a pass is one task per part and a tree of sums,
whose small result alone comes back.
"""

from __future__ import annotations

import uuid
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlflow_relabel_audit.errors import RelabelAuditError, RequestError, StoreError
from mlflow_relabel_audit.rows import tasks
from mlflow_relabel_audit.rows.memory import Transform, as_features
from mlflow_relabel_audit.rows.progress import READING, Progress, Telling
from mlflow_relabel_audit.rows.shelf import SHELF_BYTES
from mlflow_relabel_audit.rows.store import Call, Fold, Join, Kept, Step, block_bounds, places, runs

PATIENCE = 30
"""Seconds to wait for a scheduler, and for its first worker."""
PLACED = 12
"""Vectors beside the rows of which the workers keep their parts between passes."""
PARTS = 2
"""Parts a thread of the cluster; a part is one task of a pass, and a task takes the scheduler 2 ms."""
FAN_IN = 16
"""Parts whose results are joined by one task; those of no more than so many are joined by this process."""
SENT_BYTES = 2**21
"""Coefficients that go out with every part's task, of all parts together; larger ones are a task of their own."""
UNINTERRUPTED = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""What workers on this machine run first: a terminal's Ctrl-C reaches them too, and is this process's to answer."""


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
    progress : callable, optional
        told of the tasks that read the rows, for which the constructor then waits, and of passes that last.

    Raises
    ------
    StoreError
        No scheduler or worker answers, or the workers cannot read the rows.
    """

    local = False
    room: int | None = None

    def __init__(
        self,
        client: Any,
        source: Any,
        transform: Transform,
        like: Any,
        intercept: bool,
        progress: Progress | None = None,
    ) -> None:
        self.client = connect(client)
        sample = as_features(like)
        self.intercept, self.progress = intercept, progress
        self.sparse, self.dtype = bool(sp.issparse(sample)), sample.dtype
        n = len(source) if hasattr(source, "read") else source.shape[0]
        self.shape: tuple[int, int] = (n, sample.shape[1])
        self.bounds: Sequence[tuple[int, int]] = block_bounds(n, sample.shape[1], self.sparse)
        self._placed: OrderedDict[int, tuple[Any, int, list[Any]]] = OrderedDict()
        threads = sum(self.client.nthreads().values())
        self.beside = SHELF_BYTES * len(self.client.nthreads())
        self._runs = runs(len(self.bounds), PARTS * threads)
        self._ends = [run.stop for run in self._runs]
        with _failing(), _sending():
            self._parts, reading = self._load(source, transform)
        if progress is not None:
            self._tell_reading(reading)
        reading.clear()  # what was read is held by its part alone
        self.nnz = n * sample.shape[1]
        if self.sparse:
            self.nnz = int(sum(self.map(tasks.stored, ((i, ()) for i in range(len(self.bounds))), (), ())))

    def _load(self, source: Any, transform: Transform) -> tuple[list[Any], set[Any]]:
        submit = self.client.submit
        reading, blocks = set(), []
        if not hasattr(source, "read"):
            for start, stop in self.bounds:
                some = places(source)[start:stop]
                blocks.append(submit(tasks.block, transform, some, self.shape[1], start, self.intercept, pure=False))
            reading.update(blocks)
        else:
            for span in source.spans(self.bounds):  # blocks of one row group are read together
                read = submit(tasks.read, source, transform, span, self.shape[1], self.intercept, pure=False)
                reading.add(read)
                blocks += [submit(tasks.item, read, number, pure=False) for number in range(len(span))]
        parts = [submit(tasks.same, [blocks[number] for number in run], key=_key("rows")) for run in self._runs]
        return parts, reading.union(parts)

    def _tell_reading(self, reading: set[Any]) -> None:
        """Tell how many of the tasks that read the rows are done; what fails is raised by the first pass."""
        from distributed import as_completed

        telling = Telling(self.progress, len(reading), READING, lasting=0.0)
        telling.tell(0)
        with _failing(reading):
            for done, task in enumerate(as_completed(list(reading), loop=self.client.loop), 1):
                if task.status != "finished":
                    return
                telling.tell(done)
                reading.remove(task)  # rows that went on into a part elsewhere are not held where they were read
        telling.end()

    # -- steps -----------------------------------------------------------------------------------------------

    def map(self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...]) -> Iterator[Any]:
        """Run the step where each block is, and bring the results here in order."""
        futures = [future for _, future in self._submit(step, calls, along, arguments, None)]
        at_once = (
            len(futures) if getattr(step, "picks_rows", False) else 1
        )  # single rows are few, and a trip costs 5 ms
        telling = Telling(self.progress, len(futures))
        with _failing(futures):
            while futures:
                found = self._bring(futures[:at_once], futures, telling)
                del futures[:at_once]
                for part in found:
                    yield from part
        telling.end()

    def reduce(
        self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...], join: Join
    ) -> tuple[Any, ...] | None:
        """Run the step where each block is, join the results there, and bring the last ones here."""
        level = self._submit(step, calls, along, arguments, join)
        futures = [future for _, future in level]
        with _failing(futures):
            while len(level) > FAN_IN:
                groups = [level[first : first + FAN_IN] for first in range(0, len(level), FAN_IN)]
                level = []
                for group in groups:
                    run = range(group[0][0].start, group[-1][0].stop)
                    several = [future for _, future in group]
                    level.append((run, self.client.submit(tasks.joined, several, run, join, key=_key("join"))))
                futures += [future for _, future in level]
            telling = Telling(self.progress, len(futures))
            found = self._bring([future for _, future in level], futures, telling)
        telling.end()
        folding = Fold(join)
        for number, partial in (item for part in found for item in part):
            folding.add(number, partial)
        return folding.result()

    def keep(self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...]) -> Kept:
        """Run the step where each block is, and leave the results there; made again, by Dask, where they are lost."""
        return Kept([future for _, future in self._submit(step, calls, along, arguments, None)])

    def _bring(self, wanted: Sequence[Any], asked: Sequence[Any], telling: Telling) -> list[Any]:
        """Results of some of a pass's tasks; once it lasts, how many of all that are asked are done is told."""
        from distributed import TimeoutError as LateError

        if telling.silence:
            with suppress(LateError):
                return list(self.client.sync(_gathered, self.client, wanted, telling.silence))
        self._watch(wanted, asked, telling)
        return list(self.client.gather(wanted))

    def _watch(self, wanted: Sequence[Any], asked: Sequence[Any], telling: Telling) -> None:
        """Wait for some tasks of a pass that lasts, or for one that fails; tell how many of it are done.

        The client is told by the scheduler, and asked here. `distributed.progress` listens to the scheduler too, but
        prints its bar itself, to the standard output and from another thread, and for each pass anew.
        """
        from distributed import as_completed

        while True:
            pending = [future for future in asked if not future.done()]
            telling.tell(telling.total - len(pending))
            failed = any(future.status not in ("pending", "finished") for future in asked)
            if failed or all(future.done() for future in wanted):
                return
            next(as_completed(pending[:FAN_IN], loop=self.client.loop))

    def _submit(
        self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...], join: Join | None
    ) -> list[tuple[range, Any]]:
        """One task per part that was asked: the part's blocks and its future."""
        asked: dict[int, list[Call]] = {}
        for number, own in calls:
            asked.setdefault(bisect_right(self._ends, number), []).append((number, own))
        if not asked:
            return []
        lengths = [[self.bounds[number][1] - self.bounds[number][0] for number in self._runs[part]] for part in asked]
        shared: Any = arguments
        with _failing(), _sending():
            beside = [[placed[part] for part in asked] for placed in map(self._beside, along)]
            if len(asked) * sum(getattr(value, "nbytes", 64) for value in arguments) > SENT_BYTES:
                shared = self.client.submit(tasks.same, arguments, key=_key("coefficients"))
            futures = self.client.map(
                tasks.run_step,
                [shared] * len(asked),
                [self._parts[part] for part in asked],
                list(asked.values()),
                [self._runs[part] for part in asked],
                lengths,
                *beside,
                step=step,
                join=join,
                pure=False,
                key=f"{getattr(step, '__name__', 'step').lstrip('_')}",
            )
        return [(self._runs[part], future) for part, future in zip(asked, futures, strict=True)]

    def _beside(self, values: Any) -> list[Any]:
        """What goes with each part of an array along the rows; vectors stay with the workers for the next pass."""
        if isinstance(values, Kept):
            return values.parts
        slices = [values[self.bounds[run[0]][0] : self.bounds[run[-1]][1]] for run in self._runs]
        if values.ndim > 1:
            return slices
        seen = int(np.bitwise_xor.reduce(np.ascontiguousarray(values).view(np.uint32)))
        kept = self._placed.get(id(values))
        if kept is None or kept[1] != seen:  # the array itself is kept, so that no other gets its id
            kept = values, seen, self.client.map(tasks.same, slices, pure=False, key="beside")
            self._placed[id(values)] = kept
            if len(self._placed) > PLACED:
                self._placed.popitem(last=False)
        self._placed.move_to_end(id(values))
        return kept[2]


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
            client: Any = distributed.Client(
                processes=True, threads_per_worker=1, dashboard_address=None, preload=[UNINTERRUPTED]
            )
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


async def _gathered(client: Any, futures: Sequence[Any], timeout: float) -> Any:
    """Results of futures that are all done within some seconds, in one trip to the client's event loop.

    Raises
    ------
    TimeoutError
        They are not.
    """
    from distributed import wait

    with client.as_current():
        await wait(futures, timeout=timeout)
    return await client.gather(futures)


def _key(name: str) -> str:
    """A task's name of its own; the dashboard shows what is before the dash."""
    return f"{name}-{uuid.uuid4().hex}"


def _close(client: Any) -> None:
    if client() is not None:
        client().close()


def _sending() -> AbstractContextManager[Any]:
    """Data goes out with the tasks, so that Dask can make them again where a worker is lost; it would warn of that."""
    import dask

    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"})


@contextmanager
def _failing(futures: Collection[Any] = ()) -> Iterator[None]:
    """Name what went wrong on the cluster; what was asked there is not gone on with."""
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
    except BaseException:
        # Not Client.cancel: the scheduler drops a client that cancels a task on which others, not its own, depend.
        for future in futures:
            future.release()
        raise
