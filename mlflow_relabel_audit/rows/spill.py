"""Rows on disk: transformed once, written to a scratch folder as plain arrays, read back block by block.

The folder is private (mode 0700) and goes with the store, at the latest when the process ends. As many of the
first blocks as fit half the memory limit stay in memory; the others pass through two buffers, one of which is
filled while the other is worked on. The other half is for what is held beside the rows.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import scipy.sparse as sp

from mlflow_relabel_audit.errors import RequestError, StoreError
from mlflow_relabel_audit.problem import IntArray
from mlflow_relabel_audit.rows.block import RowBlock
from mlflow_relabel_audit.rows.memory import as_features
from mlflow_relabel_audit.rows.store import Call, Kept, LocalStore, Step, block_bounds

FEW = 16
"""A step that picks less than one in so many of a block's rows has only those read: a row takes 2 us, a block 10 ms."""
BUFFERS = 2


class Scratch:
    """A private folder (mode 0700) that goes with this object, at the latest when the process ends."""

    def __init__(self, parent: str | os.PathLike[str] | None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="relabel-rows-", dir=parent))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Spool:
    """Writes chunks of features one after the other, and hands them over as a store."""

    def __init__(self, scratch: str | os.PathLike[str] | None = None) -> None:
        self._folder = Scratch(scratch)
        self._path = self._folder.path
        self._n, self._sparse = 0, False
        self._dtype: Any = None
        self._width: int | None = None
        self._pointers: list[Any] = [np.zeros(1, dtype=np.int64)]

    def add(self, features: Any) -> None:
        """Append a chunk, an ndarray or CSR matrix.

        Raises
        ------
        StoreError
            It has other columns than the chunks before it, or cannot be written.
        """
        chunk = as_features(features)
        if self._width is None:
            self._dtype, self._width, self._sparse = chunk.dtype, chunk.shape[1], bool(sp.issparse(chunk))
        if chunk.shape[1] != self._width:
            raise StoreError(
                f"training rows: the block from row {self._n} on has {chunk.shape[1]} features, those before it "
                f"{self._width}; write the rows again with the same columns throughout"
            )
        self._n += chunk.shape[0]
        if self._sparse:
            chunk = sp.csr_matrix(chunk)
            self._pointers.append(self._pointers[-1][-1] + chunk.indptr[1:].astype(np.int64))
            self._append("data", chunk.data.astype(self._dtype, copy=False))
            self._append("indices", chunk.indices.astype(np.int32, copy=False))
        else:
            dense = chunk.toarray() if sp.issparse(chunk) else chunk
            self._append("features", dense.astype(self._dtype, copy=False))

    def store(self, intercept: bool, memory_limit: int) -> SpilledStore:
        """All that was added, readable block by block within ``memory_limit`` bytes."""
        if self._width is None:
            raise RequestError("training rows: got none; pass the rows the model was trained on")
        shape = (self._n, self._width)
        pointers = np.concatenate(self._pointers) if self._sparse else None
        return SpilledStore(self._folder, shape, self._dtype, pointers, intercept, memory_limit)

    def _append(self, name: str, values: Any) -> None:
        with _failing(self._path), (self._path / name).open("ab") as file:
            np.ascontiguousarray(values).tofile(file)


class SpilledStore(LocalStore):
    """Blocks read from the arrays of a `Spool`."""

    def __init__(
        self, folder: Scratch, shape: tuple[int, int], dtype: Any, pointers: Any, intercept: bool, memory_limit: int
    ) -> None:
        self._folder, self._path, self._pointers = folder, folder.path, pointers
        self.shape, self.dtype, self.intercept = shape, np.dtype(dtype), intercept
        self.sparse = pointers is not None
        self.nnz = int(pointers[-1]) if self.sparse else shape[0] * shape[1]
        self.bounds: Sequence[tuple[int, int]] = block_bounds(shape[0], shape[1], self.sparse)
        self.room = memory_limit // 2
        largest = max(self._bytes(start, stop) for start, stop in self.bounds)
        if BUFFERS * largest > self.room:
            raise RequestError(
                f"memory limit: got {memory_limit / 2**20:.0f} MiB; the blocks of these rows take up to "
                f"{largest / 2**20:.0f} MiB and two of them a quarter each, so pass at least "
                f"{2 * BUFFERS * largest / 2**20:.0f} MiB"
            )
        self._largest = largest
        spare, self._pinned = self.room - BUFFERS * largest, {}
        for number, (start, stop) in enumerate(self.bounds):
            spare -= self._bytes(start, stop)
            if spare < 0:
                break
            self._pinned[number] = self._read(start, stop, None)
        self._made = {number: RowBlock(features, intercept) for number, features in self._pinned.items()}
        self._buffers: list[Any] = [None] * BUFFERS

    def _bytes(self, start: int, stop: int) -> int:
        if self.sparse:
            return int(self._pointers[stop] - self._pointers[start]) * (self.dtype.itemsize + 4) + 8 * (stop - start)
        return (stop - start) * self.shape[1] * self.dtype.itemsize

    # -- reading ---------------------------------------------------------------------------------------------

    def _read(self, start: int, stop: int, buffer: Any) -> Any:
        """Rows ``start:stop`` as an ndarray or CSR matrix, in the buffer's memory where one is given."""
        memory = np.empty(self._bytes(start, stop), dtype=np.uint8) if buffer is None else buffer
        if not self.sparse:
            size = (stop - start) * self.shape[1] * self.dtype.itemsize
            self._fill("features", np.array([start * self.shape[1] * self.dtype.itemsize]), size, memory[:size])
            return memory[:size].view(self.dtype).reshape(stop - start, self.shape[1])
        first, last = int(self._pointers[start]), int(self._pointers[stop])
        size = (last - first) * self.dtype.itemsize
        data, indices = memory[:size], memory[size : size + 4 * (last - first)]
        self._fill("data", np.array([first * self.dtype.itemsize]), data.nbytes, data)
        self._fill("indices", np.array([4 * first]), indices.nbytes, indices)
        pointers = (self._pointers[start : stop + 1] - first).astype(np.int32)
        parts = (data.view(self.dtype), indices.view(np.int32), pointers)
        return sp.csr_matrix(parts, shape=(stop - start, self.shape[1]), copy=False)

    def _fill(self, name: str, offsets: IntArray, sizes: Any, memory: Any) -> None:
        """Read so many bytes from each offset, one after the other into the memory of an array."""
        view, done = memoryview(memory).cast("B") if memory.size else memoryview(bytearray()), 0
        with _failing(self._path), (self._path / name).open("rb", buffering=0) as file:
            for offset, size in zip(offsets.tolist(), np.broadcast_to(sizes, offsets.shape).tolist(), strict=True):
                file.seek(offset)
                end = done + size
                while done < end:
                    count = file.readinto(view[done:end])
                    if not count:
                        raise OSError(f"{name} ends too early")
                    done += count

    def pick(self, start: int, index: IntArray) -> Any:
        """Rows ``start + index`` alone, each read once."""
        rows, place = np.unique(start + index, return_inverse=True)
        if not self.sparse:
            dense = np.empty((len(rows), self.shape[1]), dtype=self.dtype)
            self._fill("features", rows * dense.strides[0], dense.strides[0], dense)
            return dense[place]
        first = self._pointers[rows]
        counts = self._pointers[rows + 1] - first
        pointers = np.append(0, np.cumsum(counts))
        data, indices = np.empty(pointers[-1], dtype=self.dtype), np.empty(pointers[-1], dtype=np.int32)
        for name, values in (("data", data), ("indices", indices)):
            self._fill(name, first * values.itemsize, counts * values.itemsize, values)
        return sp.csr_matrix((data, indices, pointers), shape=(len(rows), self.shape[1]), copy=False)[place]

    def _buffered(self, number: int, turn: int) -> Any:
        if self._buffers[turn] is None:
            self._buffers[turn] = np.empty(self._largest, dtype=np.uint8)
        return self._read(*self.bounds[number], self._buffers[turn])

    def block(self, number: int) -> RowBlock:
        """One block, of which no more is read than it is asked for, unless it is in memory."""
        return self._made.get(number) or PickedBlock(self, number)

    def blocks(self, calls: Iterable[Call], step: Step) -> Iterator[tuple[int, tuple[Any, ...], RowBlock]]:
        """Yield the calls with their blocks, the next one being read meanwhile."""
        if getattr(step, "picks_rows", False):
            yield from super().blocks(calls, step)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="read-rows") as reader:
            ahead: tuple[int, tuple[Any, ...], Future[Any] | None] | None = None
            turn = 0
            for number, own in calls:
                read = None
                if number not in self._pinned:
                    read = reader.submit(self._buffered, number, turn)
                    turn = (turn + 1) % BUFFERS
                if ahead is not None:
                    yield self._ready(*ahead)
                ahead = number, own, read
            if ahead is not None:
                yield self._ready(*ahead)

    def _ready(
        self, number: int, own: tuple[Any, ...], read: Future[Any] | None
    ) -> tuple[int, tuple[Any, ...], RowBlock]:
        return number, own, self._made[number] if read is None else RowBlock(read.result(), self.intercept)

    # -- steps -----------------------------------------------------------------------------------------------

    def keep(self, step: Step, calls: Iterable[Call], along: Sequence[Any], arguments: tuple[Any, ...]) -> Kept:
        """Run the step on every block and write the results beside the rows."""
        with _failing(self._path):
            kept = SpilledKept(self._folder)
            with kept.path.open("wb") as file:
                for result in self.map(step, calls, along, arguments):
                    kept.parts.append(written(result, file))
        return kept


class SpilledKept(Kept):
    """Results in a file of the scratch folder, which goes with this object."""

    def __init__(self, folder: Scratch) -> None:
        super().__init__([])
        self._folder = folder
        handle, name = tempfile.mkstemp(prefix="kept-", dir=folder.path)
        os.close(handle)
        self.path = Path(name)
        weakref.finalize(self, self.path.unlink, missing_ok=True)

    def part(self, number: int) -> Any:
        """That of one block, read."""
        with _failing(self._folder.path), self.path.open("rb") as file:
            return read_back(self.parts[number], file)


@dataclass(frozen=True)
class Place:
    """Where an array lies in a file."""

    offset: int
    shape: tuple[int, ...]
    dtype: Any
    order: Literal["C", "F"]


def _each(work: Callable[[Any], Any], value: Any) -> Any:
    """What work makes of an array, or a tuple of the same kind with what it makes of each array in it."""
    if not isinstance(value, tuple):
        return work(value)
    parts = [_each(work, part) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def written(value: Any, file: BinaryIO) -> Any:
    """Write an array, or those of a tuple, to the end of a file; the same with a `Place` for each array."""

    def write(array: Any) -> Place:
        turned = array.flags.f_contiguous and not array.flags.c_contiguous
        place = Place(file.tell(), array.shape, array.dtype, "F" if turned else "C")
        np.ascontiguousarray(array.T if turned else array).tofile(file)
        return place

    return _each(write, value)


def read_back(value: Any, file: BinaryIO) -> Any:
    """What was `written`."""

    def read(place: Place) -> Any:
        file.seek(place.offset)
        found = np.fromfile(file, place.dtype, math.prod(place.shape))
        if found.size != math.prod(place.shape):
            raise OSError(f"{file.name} ends too early")
        return found.reshape(place.shape, order=place.order)

    return _each(read, value)


class PickedBlock(RowBlock):
    """A block of which a step takes single rows: only those are read where they are few."""

    def __init__(self, store: SpilledStore, number: int) -> None:
        super().__init__(None, store.intercept)
        self._store, self._bounds = store, store.bounds[number]
        self._picked = 0

    @property
    def features(self) -> Any:
        """The whole block, read when first asked for."""
        if self._features is None:
            self._features = self._store._read(*self._bounds, None)
        return self._features

    @property
    def rows(self) -> int:
        """How many."""
        return self._bounds[1] - self._bounds[0]

    @property
    def sparse(self) -> bool:
        """Whether they are CSR."""
        return self._store.sparse

    @property
    def p(self) -> int:
        """Coordinates, the one included."""
        return self._store.shape[1] + int(self.intercept)

    def take(self, index: IntArray) -> Any:
        """Rows at ``index``, as of any block."""
        self._picked += len(index)  # a step takes many a few at a time
        if self._features is None and FEW * self._picked < self.rows:
            return self._with_ones(self._store.pick(self._bounds[0], index))
        return super().take(index)


@contextmanager
def _failing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"scratch folder {path}: {error.strerror or error}; free space or point TMPDIR to another disk"
        ) from error
