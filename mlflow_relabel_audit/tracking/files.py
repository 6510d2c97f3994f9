"""An audit's files before they are kept: written to a folder, named, and where a reader will find them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_relabel_audit.analyses.flip_table import FlipTable
from mlflow_relabel_audit.tracking.outputs import Artifact, Metric, Output
from mlflow_relabel_audit.tracking.resolve import ResolvedModel
from mlflow_relabel_audit.tracking.store import FOLDER, Store

TABLE_BYTES = 2_000_000
"""Largest predictions.json: MLflow's pages show it as a table up to about this size."""


def text_file(folder: Path, path: str, content: str) -> Artifact:
    """Write one text file (UTF-8) below ``folder``."""
    file = _place(folder, path)
    file.write_text(content, encoding="utf-8")
    return Artifact(path, file)


def parquet_file(folder: Path, path: str, table: pd.DataFrame | FlipTable) -> Artifact:
    """Write one table below ``folder``, part by part; a column of mixed types, which parquet does not hold, as text."""
    file = _place(folder, path)
    parts = table.parts if isinstance(table, FlipTable) else partial(iter, [table])
    mixed: set[str] = set()
    for part in parts():
        mixed |= {str(name) for name in part if pd.api.types.infer_dtype(part[name]).startswith("mixed")}
    writer: Any = None
    for part in parts():
        schema = None if writer is None else writer.schema
        arrow = pa.Table.from_pandas(part.astype(dict.fromkeys(mixed, str)), schema=schema, preserve_index=False)
        writer = writer or pq.ParquetWriter(file, arrow.schema)
        writer.write_table(arrow)
    writer.close()
    return Artifact(path, file)


def table_json(predictions: pd.DataFrame, limit: int = TABLE_BYTES) -> str:
    """The predictions as MLflow shows tables, ``{"columns": [...], "data": [...]}``.

    Where they would pass ``limit`` bytes, only the most fragile are kept.
    """
    frame = predictions
    while True:
        text = frame.to_json(orient="split", index=False, double_precision=6, default_handler=str)
        size = len(text.encode())
        if size <= limit or not len(frame):
            return str(text)
        order = predictions["k"].fillna(predictions["k_estimate"]).reset_index(drop=True).sort_values()
        frame = predictions.iloc[order.index[: int(len(frame) * limit / size * 0.95)]]


def artifacts(outputs: Iterable[Output]) -> list[Artifact]:
    """The files among what the stages yielded."""
    return [item for item in outputs if isinstance(item, Artifact)]


def metrics(outputs: Iterable[Output]) -> dict[str, float]:
    """The finite metrics among what the stages yielded, by name."""
    found = (item for item in outputs if isinstance(item, Metric))
    return {item.name: float(item.value) for item in found if math.isfinite(item.value)}


def file_name(row_id: Any) -> str:
    """A row's id as a file name; where letters had to be replaced, a digest tells such ids apart."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(row_id)).strip(".-")[:80]
    if name == str(row_id):
        return name
    return f"{name or 'row'}-{sha256(str(row_id).encode()).hexdigest()[:8]}"


def location(store: Store, resolved: ResolvedModel, path: str, *, output_dir: Path | None, logged: bool) -> str:
    """Where a reader finds the page ``path``."""
    if not logged:
        return str(output_dir / path) if output_dir is not None else "not kept"
    run_id = resolved.run_id
    if store.shown_uri.startswith("http"):
        page = f"#/experiments/{resolved.experiment_id}/runs/{run_id}/artifacts/{FOLDER}/{path}"
        return f"{store.shown_uri.rstrip('/')}/{page}"
    return f"{FOLDER}/{path} of run {run_id} (mlflow ui --backend-store-uri {store.shown_uri})"


def _place(folder: Path, path: str) -> Path:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
