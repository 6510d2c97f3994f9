"""The table of all flip sets, in parts: in memory while it is small, beyond that as Parquet files.

Twenty thousand predictions of a large model rest on tens of millions of labels; whoever reads them part by part never
holds more than one.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_relabel_audit.errors import StoreError
from mlflow_relabel_audit.likelihood import IntArray

HELD_BYTES = 2**26
"""Bytes of the parts that are kept in memory; beyond that all of them are files."""


@dataclass(eq=False)
class _Part:
    """Some predictions' sets: a frame, a file, or both."""

    rows: int
    frame: pd.DataFrame | None = None
    file: Path | None = None


class FlipTable:
    """Flip sets in the order of their predictions; no prediction's set is in two parts.

    Columns: row_id, rank (from 1), train_id, train_label, new_label, influence; a row per label.
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._held = 0
        self._folder: Path | None = None

    @classmethod
    def of(cls, frame: pd.DataFrame) -> FlipTable:
        """A table of one part."""
        table = cls()
        table.add(frame)
        return table

    def __len__(self) -> int:
        return sum(part.rows for part in self._parts)

    def add(self, frame: pd.DataFrame, file: Path | None = None) -> None:
        """Append the sets of the next predictions, which are in a file as well where one is named.

        Raises
        ------
        StoreError
            They do not fit in memory, and a file system failed.
        """
        self._parts.append(_Part(len(frame), frame, file))
        self._held += int(frame.memory_usage(index=False, deep=False).sum())
        if self._held > HELD_BYTES:
            self._write()

    def add_file(self, file: Path) -> None:
        """Append the sets in a file; OSError or ValueError where it cannot be read."""
        self._parts.append(_Part(int(pq.read_metadata(file).num_rows), None, file))

    def parts(self) -> Iterator[pd.DataFrame]:
        """Yield the parts in order; one without rows where there are no others."""
        some = [part for part in self._parts if part.rows] or self._parts[:1]
        for part in some:
            yield _read(part.file) if part.frame is None else part.frame  # type: ignore[arg-type]

    def frame(self) -> pd.DataFrame:
        """All parts as one frame."""
        return pd.concat(self.parts(), ignore_index=True)

    def counts(self, train_ids: Any) -> IntArray:
        """In how many sets each training row stands, shape (n,), in the order of their ids."""
        index = pd.Index(train_ids)
        out = np.zeros(len(index), dtype=np.int64)
        for part in self.parts():
            place = index.get_indexer(pd.Index(part["train_id"]))
            out += np.bincount(place[place >= 0], minlength=len(out))
        return out

    def keep(self, *, move: bool) -> None:
        """Take what is in files of others into files of its own, moved or copied."""
        for part in self._parts:
            if part.frame is None and part.file is not None and part.file.parent != self._folder:
                with _failing():
                    part.file = Path((shutil.move if move else shutil.copy)(part.file, self._place(part)))
            elif part.frame is not None:
                part.file = None

    def _write(self) -> None:
        for part in self._parts:
            if part.frame is not None and part.file is None:
                file = self._place(part)
                try:
                    with _failing():
                        part.frame.to_parquet(file, index=False)
                except (pa.ArrowInvalid, pa.ArrowTypeError):  # ids of mixed types stay in memory
                    file.unlink(missing_ok=True)
                    continue
                part.file = file
            part.frame = None
        self._held = 0

    def _place(self, part: _Part) -> Path:
        if self._folder is None:
            with _failing():
                self._folder = Path(tempfile.mkdtemp(prefix="relabel-sets-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder / f"{self._parts.index(part):06}.parquet"


def _read(file: Path) -> pd.DataFrame:
    with _failing():
        return pd.read_parquet(file)


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"flip sets: a file failed ({error.strerror or error}); free space or point TMPDIR to another disk"
        ) from error
