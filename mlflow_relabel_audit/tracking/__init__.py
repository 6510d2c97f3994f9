"""The only layer that knows MLflow: resolve a run, read its data, write the audit back.

Everything here takes explicit run and model ids and an explicit `Store`; no run is ever made active, so a
finished or failed run keeps its status and its end time.
"""

from __future__ import annotations

from mlflow_relabel_audit.tracking.columns import Columns, TableRows
from mlflow_relabel_audit.tracking.credentials import redact
from mlflow_relabel_audit.tracking.data import read_evaluation, read_training
from mlflow_relabel_audit.tracking.files import (
    artifacts,
    file_name,
    location,
    metrics,
    parquet_file,
    table_json,
    text_file,
)
from mlflow_relabel_audit.tracking.local import add_file, check_directory, unfinished, workspace, write_directory
from mlflow_relabel_audit.tracking.manifest import Manifest, listing
from mlflow_relabel_audit.tracking.model import LoadedModel, load_model
from mlflow_relabel_audit.tracking.options import DataKeywords, DataOptions
from mlflow_relabel_audit.tracking.outputs import Artifact, Metric, Note, Output, Tag
from mlflow_relabel_audit.tracking.resolve import ResolvedModel, resolve
from mlflow_relabel_audit.tracking.store import FOLDER, PermissionDeniedError, Store, quiet
from mlflow_relabel_audit.tracking.stored import (
    HESSIAN,
    fetch_hessian,
    read_artifact,
    read_manifest,
    read_summary,
)
from mlflow_relabel_audit.tracking.subject import Subject, caught_warnings, prepare
from mlflow_relabel_audit.tracking.write import (
    Claim,
    abandon,
    add_artifact,
    begin,
    begin_unless_refused,
    publish,
)

__all__ = [
    "FOLDER",
    "HESSIAN",
    "Artifact",
    "Claim",
    "Columns",
    "DataKeywords",
    "DataOptions",
    "LoadedModel",
    "Manifest",
    "Metric",
    "Note",
    "Output",
    "PermissionDeniedError",
    "ResolvedModel",
    "Store",
    "Subject",
    "TableRows",
    "Tag",
    "abandon",
    "add_artifact",
    "add_file",
    "artifacts",
    "begin",
    "begin_unless_refused",
    "caught_warnings",
    "check_directory",
    "fetch_hessian",
    "file_name",
    "listing",
    "load_model",
    "location",
    "metrics",
    "parquet_file",
    "prepare",
    "publish",
    "quiet",
    "read_artifact",
    "read_evaluation",
    "read_manifest",
    "read_summary",
    "read_training",
    "redact",
    "resolve",
    "table_json",
    "text_file",
    "unfinished",
    "workspace",
    "write_directory",
]
