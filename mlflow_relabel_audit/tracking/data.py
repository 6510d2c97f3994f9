"""Where training and evaluation rows come from, in order of trust.

Training rows: the ``--train-data`` flag; a snapshot that the training hook stored in the run; the run's
dataset inputs whose source can be read again. Evaluation rows: the flag, the run's dataset inputs, or the
training rows themselves. Whether the rows are the model's own is proved later, by the auditor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.data
import pandas as pd
from mlflow.entities import DatasetInput

from mlflow_relabel_audit.errors import RelabelAuditError, RequestError, StoreError
from mlflow_relabel_audit.tracking import snapshot
from mlflow_relabel_audit.tracking.columns import Columns, TableRows, from_source, from_table
from mlflow_relabel_audit.tracking.credentials import one_line, redact
from mlflow_relabel_audit.tracking.model import LoadedModel
from mlflow_relabel_audit.tracking.resolve import ResolvedModel
from mlflow_relabel_audit.tracking.store import Store
from mlflow_relabel_audit.tracking.tables import open_table, read_table

_TRAIN = ("train", "training")
_EVALUATION = ("test", "testing", "eval", "evaluation", "validation", "valid", "val", "holdout")


def read_training(
    store: Store,
    resolved: ResolvedModel,
    model: LoadedModel,
    columns: Columns,
    directory: Path,
    train_data: str | None = None,
    *,
    in_parts: bool = False,
) -> TableRows:
    """The rows the model is said to be trained on; ``in_parts``, their features are left where they are for now.

    Raises
    ------
    RequestError
        No source names them, or what was named cannot be used; says what to pass.
    """
    what = "training data"
    if train_data is not None:
        if in_parts:
            opened = open_table(store, train_data, directory, what)
            return from_source(opened, model, columns, what=what, shown=redact(train_data))
        frame = read_table(store, train_data, directory, what)
        return from_table(frame, model, columns, what=what, source=redact(train_data), training=True)
    if resolved.run_id is not None:
        stored = snapshot.read(store, resolved.run_id, resolved.model_id, directory)
        if stored is not None:
            return _with_groups(stored, columns)
    found, reasons = _from_inputs(store, resolved, model, columns, directory, _TRAIN, training=True)
    if found is not None:
        return found
    why = "; ".join(reasons) if reasons else "the run names no training dataset"
    raise RequestError(f"{what}: {why}; pass the rows with --train-data FILE --target COLUMN")


def _with_groups(stored: TableRows, columns: Columns) -> TableRows:
    """Stored rows are those of the fit alone, so groups have to be among the features."""
    if not columns.groups:
        return stored
    known = set(stored.X.columns) if isinstance(stored.X, pd.DataFrame) else set()
    missing = [name for name in columns.groups if name not in known]
    if missing:
        raise RequestError(
            f"{stored.source}: no group column {missing[0]!r} among the features; pass the rows with it by "
            "--train-data FILE --target COLUMN"
        )
    return replace(stored, groups=stored.X[list(columns.groups)])


def read_evaluation(
    store: Store,
    resolved: ResolvedModel,
    model: LoadedModel,
    columns: Columns,
    directory: Path,
    training: TableRows,
    eval_data: str | None = None,
) -> tuple[TableRows, bool]:
    """The rows to audit, and whether they are the training rows for want of others."""
    what = "evaluation data"
    if eval_data is not None:
        frame = read_table(store, eval_data, directory, what)
        return from_table(frame, model, columns, what=what, source=redact(eval_data), training=False), False
    found, reasons = _from_inputs(store, resolved, model, columns, directory, _EVALUATION, training=False)
    if found is not None:
        return found, False
    messages = (*reasons, "no evaluation data given: the predictions on the training rows are audited")
    return replace(training, messages=messages), True


def _from_inputs(
    store: Store,
    resolved: ResolvedModel,
    model: LoadedModel,
    columns: Columns,
    directory: Path,
    contexts: Sequence[str],
    *,
    training: bool,
) -> tuple[TableRows | None, list[str]]:
    """The first of the run's dataset inputs that can be read again, and why the others cannot."""
    reasons: list[str] = []
    inputs = resolved.run.inputs.dataset_inputs if resolved.run is not None and resolved.run.inputs else []
    for item in inputs:
        context = next((tag.value for tag in item.tags if tag.key == "mlflow.data.context"), "")
        if context.lower() not in contexts:
            continue
        name, digest = str(item.dataset.name), str(item.dataset.digest)
        try:
            uri = _source_uri(item, directory)
            frame = read_table(store, uri, directory, f"dataset {name!r}")
        except RelabelAuditError as error:
            reasons.append(str(error))
            continue
        what = "training data" if training else "evaluation data"
        rows = from_table(
            frame,
            model,
            columns,
            what=f"{what} (the run's dataset {name!r})",
            source=f"dataset {name} of the run ({redact(uri)})",
            training=training,
            dataset=(name, digest),
        )
        return rows, reasons
    return None, reasons


def _source_uri(item: DatasetInput, directory: Path) -> str:
    """A path or URI that holds the dataset's rows."""
    name, kind = item.dataset.name, item.dataset.source_type
    if kind == "code":
        raise RequestError(
            f"dataset {name!r} was logged without a source (autolog does so: MLflow's "
            "CodeDatasetSource records the "
            "script, not the rows), so it cannot be read again"
        )
    try:
        source: Any = mlflow.data.get_source(item)
        uri = getattr(source, "uri", None) or getattr(source, "url", None)
        loaded = str(uri) if uri else source.load(str(directory))
    except Exception as error:
        raise StoreError(f"dataset {name!r} ({kind} source): cannot be read again ({one_line(error)})") from error
    if not isinstance(loaded, str):
        raise RequestError(f"dataset {name!r} ({kind} source): holds a {type(loaded).__name__}, not parquet or csv")
    return loaded
