"""Rows of a Parquet file, or of a folder of them, read a part at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from mlflow_relabel_audit.errors import RelabelAuditError, RequestError, StoreError
from mlflow_relabel_audit.problem import IntArray

CHUNK_BYTES = 2**24
"""Stored bytes of rows that are read at once."""


class ParquetSource:
    """Rows as a model's fit took them, in Parquet files that all have the same columns.

    Parameters
    ----------
    path : str or Path
        a file, a folder of files (hive-partitioned or not), or whatever address `pyarrow.dataset` reads.
    what : str
        names the rows in messages.

    Raises
    ------
    StoreError
        The files cannot be read, or one lacks columns that another has.
    """

    def __init__(self, path: Any, what: str = "training data") -> None:
        self.path, self.what = str(path), what
        self._dataset: Any = None
        self._files: list[str] | None = None
        self._names: list[str] | None = None
        self._form = "frame"
        dataset = self._open()
        stored = [name for name in dataset.schema.names if not name.startswith("__index_level_")]
        self.columns: tuple[str, ...] = tuple(stored)
        counts: list[int] = []
        stored_bytes = 0
        with self._failing():
            for fragment in dataset.get_fragments():
                _same_columns(fragment, dataset.schema, what)
                for group in fragment.row_groups:
                    counts.append(group.num_rows)
                    stored_bytes += group.total_byte_size
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.n = int(self._starts[-1])
        self._row_bytes = max(1, stored_bytes // max(self.n, 1))

    def __len__(self) -> int:
        return self.n

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dataset": None}  # opened again where it arrives

    def series(self, name: str) -> ParquetSource:
        """The same rows as series of one column, of text for example."""
        other = self.select([name])
        other._form = "series"
        return other

    def select(self, names: Sequence[str], *, array: bool = False) -> ParquetSource:
        """The same rows with these columns alone, as frames or as arrays.

        Raises
        ------
        RequestError
            There is no such column.
        """
        for name in names:
            if name not in self.columns:
                raise RequestError(f"{self.what}: no column {name!r}; its columns are {', '.join(self.columns[:8])}")
        other = copy.copy(self)
        other._names, other._form = list(names), "array" if array else "frame"
        return other

    def chunks(self, most: int | None = None) -> Iterator[Any]:
        """Yield all rows in order, at most ``most`` at a time and about 16 MiB as they are stored."""
        length = max(1, min(CHUNK_BYTES // self._row_bytes, most or self.n or 1))
        with self._failing():
            for fragment in self._open().get_fragments():
                for part in fragment.split_by_row_group():
                    for batch in part.to_batches(batch_size=length, **self._reading()):
                        if batch.num_rows:
                            yield self._shaped(pa.Table.from_batches([batch]))

    def read(self, start: int, stop: int) -> Any:
        """Rows ``start:stop``; only the row groups that hold them are read."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, max(stop, start + 1), side="left"))
        tables = [self._group(group) for group in range(first, min(last, len(self._starts) - 1))]
        whole = pa.concat_tables(tables).slice(start - int(self._starts[first]), stop - start)
        return self._shaped(whole)

    def spans(self, bounds: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """Yield runs of blocks that begin in the same row group, to be read together."""
        run: list[tuple[int, int]] = []
        held = -1
        for start, stop in bounds:
            group = int(np.searchsorted(self._starts, start, side="right")) - 1
            if run and group != held:
                yield run
                run = []
            run.append((start, stop))
            held = group
        yield run

    def __getitem__(self, index: IntArray) -> Any:
        """Rows at these positions, in that order."""
        index = np.asarray(index)
        order = np.argsort(index, kind="stable")
        groups = np.searchsorted(self._starts, index[order], side="right") - 1
        parts = [
            self._group(int(group)).take(index[order][groups == group] - self._starts[group])
            for group in np.unique(groups)
        ]
        return self._shaped(pa.concat_tables(parts).take(np.argsort(order, kind="stable")))

    def frame(self) -> Any:
        """All rows at once."""
        with self._failing():
            return self._shaped(self._open().to_table(columns=self._reading()["columns"]))

    # -- reading ---------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        if self._dataset is None:
            with self._failing():
                self._dataset = ds.dataset(self.path, format="parquet", partitioning="hive")
                files = list(self._dataset.files)
            if self._files is not None and (gone := sorted(set(self._files) - set(files))):
                raise StoreError(f"{self.what} {gone[0]}: cannot be read (it was there before); put it back")
            self._files = self._files or files
        return self._dataset

    def _reading(self) -> dict[str, Any]:
        dataset = self._open()
        return {"columns": self._names, "schema": dataset.schema} if self._names else {"columns": None}

    def _group(self, number: int) -> Any:
        with self._failing():
            for fragment in self._open().get_fragments():
                if number < fragment.num_row_groups:
                    part = fragment.subset(row_group_ids=[number])
                    return part.to_table(columns=self._names, schema=self._open().schema)
                number -= fragment.num_row_groups
        raise StoreError(f"{self.what} {self.path}: has fewer rows than a moment ago; keep the files as they are")

    def _shaped(self, table: Any) -> Any:
        frame = table.to_pandas()
        if any(level is not None for level in frame.index.names):
            frame = frame.reset_index()
        frame = frame.reset_index(drop=True)
        frame.columns = frame.columns.map(str)
        if self._names is not None:
            frame = frame[self._names]
        if self._form == "series":
            return frame[self._names[0] if self._names else frame.columns[0]]
        return frame.to_numpy() if self._form == "array" else frame

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except RelabelAuditError:
            raise
        except (OSError, pa.ArrowException) as error:
            detail = " ".join(str(error).split())
            raise StoreError(
                f"{self.what} {self.path}: cannot be read ({detail}); check that every file is there, also where "
                "workers look for it"
            ) from error


def _same_columns(fragment: Any, schema: Any, what: str) -> None:
    """Refuse a file that lacks columns: they would silently be read as missing values."""
    held = fragment.physical_schema
    by_folder = set(ds.get_partition_keys(fragment.partition_expression))
    lacking = [name for name in schema.names if name not in held.names and name not in by_folder]
    if lacking:
        raise StoreError(
            f"{what} {fragment.path}: has no column {', '.join(map(repr, lacking[:5]))}, which the files before it "
            "have; write all files with the same columns"
        )
