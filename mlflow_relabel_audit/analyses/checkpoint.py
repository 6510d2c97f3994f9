"""Results written as they come, so that an audit that was interrupted goes on where it stopped.

A folder holds numbered parts, each a Parquet file of predictions and one of their flip sets, in the order of the
evaluation rows, and the key of what was asked. A part counts once both its files have their names.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_relabel_audit.analyses.flip_table import FlipTable
from mlflow_relabel_audit.errors import StoreError

KEY = "asked.json"


class Checkpoint:
    """Finished parts of one question in a folder; those of another question are dropped.

    Parameters
    ----------
    folder : Path
        created where it is not there, private to its user.
    question : iterable
        what decides the results: fingerprints, options, ids, arrays.

    Raises
    ------
    StoreError
        The folder cannot be used.
    """

    def __init__(self, folder: Path, question: Iterable[Any]) -> None:
        self.folder = folder
        digest = hashlib.sha256()
        for item in question:
            digest.update(np.ascontiguousarray(item).data if _numeric(item) else repr(_plain(item)).encode())
        key = {"sha256": digest.hexdigest()}
        try:
            known = folder / KEY
            if not known.is_file() or json.loads(known.read_text(encoding="utf-8")) != key:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(mode=0o700, parents=True)
                known.write_text(json.dumps(key), encoding="utf-8")
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def finished(self, sets: FlipTable) -> Iterator[pd.DataFrame]:
        """Yield the predictions of the parts that are done, in order, and name their flip sets to ``sets``.

        An unreadable part ends the list.
        """
        number = 0
        while True:
            predictions, file = self._paths(number)
            try:
                part = pd.read_parquet(predictions)
                sets.add_file(file)
            except (OSError, ValueError):
                return
            yield part
            number += 1

    def add(self, number: int, predictions: pd.DataFrame, sets: pd.DataFrame) -> Path:
        """Write the next part; returns the file of its sets.

        Raises
        ------
        StoreError
            The file system failed; the parts before are still there.
        """
        try:
            paths = self._paths(number)
            for path, table in zip(paths, (predictions, sets), strict=True):
                fresh = path.with_suffix(".new")
                table.to_parquet(fresh, index=False)
                fresh.replace(path)
        except OSError as error:
            raise self._failed(error) from error
        return paths[1]

    def drop(self) -> None:
        """Remove the folder: the results are kept elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"predictions-{number:06}.parquet", self.folder / f"flip_sets-{number:06}.parquet"

    def _failed(self, error: Exception) -> StoreError:
        return StoreError(
            f"checkpoint {self.folder}: cannot be written ({error}); free some space or pass another --output-dir"
        )


def _numeric(item: Any) -> bool:
    return isinstance(item, np.ndarray) and item.dtype.kind in "fiub"


def _plain(item: Any) -> Any:
    return item.tolist() if isinstance(item, np.ndarray) else item
