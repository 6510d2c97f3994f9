"""The exact training rows, kept in the run by the training hook where its user asked for that.

Opt-in (``log_training_data=True``), because rows may be sensitive. Under ``relabel_audit/data/``: features
as ``X.parquet`` (frames, text, dense arrays) or ``X.npz`` (CSR), ``rows.parquet`` with label, weight and row
id, and ``data.json`` last, with the SHA-256 of each. Nothing is pickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from mlflow_relabel_audit.errors import StoreError
from mlflow_relabel_audit.tracking.columns import TableRows
from mlflow_relabel_audit.tracking.manifest import sha256
from mlflow_relabel_audit.tracking.store import FOLDER, Store

DATA_FOLDER = f"{FOLDER}/data"
_FORMAT = 1


def save(
    directory: Path,
    X: Any,
    y: Any,
    *,
    model_id: str | None,
    sample_weight: Any = None,
    row_ids: Any = None,
) -> list[Path]:
    """Write the rows into ``directory``; the returned files are to be logged in that order, data.json last.

    Parameters
    ----------
    X : DataFrame, Series, array of shape (n, features) or sparse matrix
    y : array of shape (n,)
    model_id : str or None
        The LoggedModel these rows trained.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if sp.issparse(X):
        kind, features = "csr", directory / "X.npz"
        sp.save_npz(features, sp.csr_matrix(X))
    else:
        features = directory / "X.parquet"
        kind = "frame" if isinstance(X, pd.DataFrame) else "text" if np.ndim(X) == 1 else "array"
        frame = X if kind == "frame" else pd.DataFrame(np.asarray(X))
        names = [str(name) for name in frame.columns]
        if kind == "text":
            names = [str(getattr(X, "name", None) or "text")]
        frame.set_axis(names, axis=1).to_parquet(features, index=False)
    rows = pd.DataFrame({"label": np.asarray(y)})
    if sample_weight is not None:
        rows["weight"] = np.asarray(sample_weight, dtype=np.float64)
    rows["row_id"] = np.arange(len(rows)) if row_ids is None else np.asarray(row_ids)
    rows.to_parquet(directory / "rows.parquet", index=False)
    facts = {
        "format": _FORMAT,
        "kind": kind,
        "model_id": model_id,
        "sha256": {path.name: sha256(path) for path in (features, directory / "rows.parquet")},
    }
    (directory / "data.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    return [features, directory / "rows.parquet", directory / "data.json"]


def read(store: Store, run_id: str, model_id: str | None, directory: Path) -> TableRows | None:
    """The rows stored with a run; None where there are none, or they are another model's.

    Raises
    ------
    StoreError
        They are there but damaged.
    """
    folder = directory / "snapshot"
    folder.mkdir(exist_ok=True)
    described = store.fetch(run_id, f"{DATA_FOLDER}/data.json", folder)
    if described is None:
        return None
    facts = json.loads(described.read_text())
    if facts["format"] != _FORMAT or (model_id is not None and facts["model_id"] not in (None, model_id)):
        return None
    files: dict[str, Path] = {}
    for name, expected in facts["sha256"].items():
        file = store.fetch(run_id, f"{DATA_FOLDER}/{name}", folder)
        if file is None or sha256(file) != expected:
            raise StoreError(
                f"training data {DATA_FOLDER}/{name} of run {run_id}: missing or not what was stored; "
                "pass the rows with --train-data FILE --target COLUMN"
            )
        files[name] = file
    X: Any
    if facts["kind"] == "csr":
        X = sp.csr_matrix(sp.load_npz(files["X.npz"]))
    else:
        frame = pd.read_parquet(files["X.parquet"])
        X = {"frame": frame, "text": frame.iloc[:, 0], "array": None}[facts["kind"]]
        X = frame.to_numpy() if X is None else X
    rows = pd.read_parquet(files["rows.parquet"])
    weight = rows["weight"].to_numpy() if "weight" in rows else None
    source = "the training rows stored with the run"
    return TableRows(X, rows["label"].to_numpy(), rows["row_id"].to_numpy(), source, weight)
