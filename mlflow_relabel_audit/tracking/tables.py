"""Read a table of rows from wherever MLflow can reach it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.rows import ParquetSource
from mlflow_relabel_audit.tracking.credentials import one_line, redact
from mlflow_relabel_audit.tracking.store import Store, failures

_CSV = (".csv", ".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zst")
_PARQUET = (".parquet", ".pq")
_CSV_ROWS = 2**16


def read_table(store: Store, uri: str, directory: Path, what: str) -> pd.DataFrame:
    """Read parquet or csv from a local path or any URI that MLflow downloads.

    Parameters
    ----------
    uri : str
        A path, ``file://``, ``http(s)://``, ``runs:/``, ``models:/``, ``mlflow-artifacts:/``, ``s3://``, ...
    directory : Path
        Where downloads go.
    what : str
        Names the table in messages, for example ``training data``.

    Raises
    ------
    RequestError
        Missing, unreadable, neither parquet nor csv, or without rows.
    StoreError
        The store that holds it failed.
    """
    path = _local(store, uri, directory, what)
    shown = f"{what} {redact(uri)}"
    name = path.name.lower()
    try:
        if name.endswith(_CSV):
            frame = pd.read_csv(path)
        elif name.endswith(_PARQUET) or path.is_dir() or _looks_like_parquet(path):
            frame = pd.read_parquet(path)
        else:
            raise RequestError(f"{shown}: neither .parquet nor .csv; convert it to one of the two")
    except pd.errors.EmptyDataError as error:
        raise RequestError(f"{shown}: the file is empty; pass a table with a header and rows") from error
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"{shown}: cannot be read ({one_line(error)}); write it again as parquet or csv") from error
    if any(level is not None for level in frame.index.names):
        frame = frame.reset_index()  # a named index is a column to whoever saved the frame
    if frame.empty:
        raise RequestError(f"{shown}: got {len(frame)} rows and {frame.shape[1]} columns; pass a table with rows")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()].unique().tolist()
        raise RequestError(f"{shown}: column names appear twice ({some(twice)}); rename or drop one of each")
    frame.columns = frame.columns.map(str)
    return frame


def open_table(store: Store, uri: str, directory: Path, what: str) -> ParquetSource:
    """The same table, to be read a part at a time; csv is rewritten as Parquet in ``directory`` first.

    Raises
    ------
    RequestError
        As `read_table`.
    StoreError
        The store that holds it failed, or its files have different columns.
    """
    path = _local(store, uri, directory, what)
    shown = f"{what} {redact(uri)}"
    if path.name.lower().endswith(_CSV):
        path = _as_parquet(path, directory / f"{path.name}.parquet", shown)
    elif not (path.is_dir() or _looks_like_parquet(path)):
        raise RequestError(f"{shown}: neither .parquet nor .csv; convert it to one of the two")
    source = ParquetSource(path, what)
    if not len(source):
        raise RequestError(f"{shown}: got 0 rows and {len(source.columns)} columns; pass a table with rows")
    if twice := sorted({name for name in source.columns if source.columns.count(name) > 1}):
        raise RequestError(f"{shown}: column names appear twice ({some(twice)}); rename or drop one of each")
    return source


def _as_parquet(path: Path, target: Path, shown: str) -> Path:
    """Rewrite csv as Parquet part by part, each column in the one type that holds all of its values."""
    try:
        kinds: dict[str, Any] = {}
        for part in pd.read_csv(path, chunksize=_CSV_ROWS):
            for name, kind in part.dtypes.items():
                known = kinds.setdefault(str(name), kind)
                if known != kind:
                    numbers = pd.api.types.is_numeric_dtype(known) and pd.api.types.is_numeric_dtype(kind)
                    kinds[str(name)] = np.dtype(np.float64) if numbers else np.dtype(object)
        writer: Any = None
        for part in pd.read_csv(path, chunksize=_CSV_ROWS, dtype=kinds):
            table = pa.Table.from_pandas(part, preserve_index=False, schema=None if writer is None else writer.schema)
            writer = writer or pq.ParquetWriter(target, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
    except Exception as error:
        raise RequestError(f"{shown}: cannot be read ({one_line(error)}); write it again as parquet or csv") from error
    return target


def _local(store: Store, uri: str, directory: Path, what: str) -> Path:
    parts = urlparse(uri)
    # "c:\data" has a scheme of one letter
    if len(parts.scheme) <= 1 or parts.scheme == "file":
        path = Path(unquote(parts.path) if parts.scheme == "file" else uri).expanduser()
        if not path.exists():
            raise RequestError(f"{what} {redact(uri)}: no such file; check the path (working directory {Path.cwd()})")
        return path
    if parts.scheme in ("http", "https"):
        from mlflow.data.http_dataset_source import HTTPDatasetSource

        shown = redact(uri)
        with failures(f"{what} {shown}", missing=f"{what} {shown}: not found; check the address"):
            source: Any = HTTPDatasetSource
            return Path(source(uri).load(str(directory)))
    return store.fetch_uri(uri, directory, what)


def _looks_like_parquet(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def some(values: Iterable[object], limit: int = 8) -> str:
    """The first few values, and how many more there are."""
    values = list(values)
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(str(value) for value in values[:limit]) + more
