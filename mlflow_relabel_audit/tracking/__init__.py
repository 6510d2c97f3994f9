"""The only layer that knows MLflow: resolve a run, read its data, write the audit back.

Everything here takes explicit run and model ids and an explicit `Store`; no run is ever made active, so a
finished or failed run keeps its status and its end time.
"""

from __future__ import annotations

from mlflow_relabel_audit.tracking.columns import Columns, TableRows
from mlflow_relabel_audit.tracking.data import read_evaluation, read_training
from mlflow_relabel_audit.tracking.local import add_file, check_directory, write_directory
from mlflow_relabel_audit.tracking.manifest import Manifest, listing
from mlflow_relabel_audit.tracking.model import LoadedModel, load_model
from mlflow_relabel_audit.tracking.outputs import Artifact, Metric, Note, Output, Tag
from mlflow_relabel_audit.tracking.resolve import ResolvedModel, resolve
from mlflow_relabel_audit.tracking.store import FOLDER, PermissionDeniedError, Store, quiet
from mlflow_relabel_audit.tracking.stored import fetch_hessian, read_artifact, read_manifest, read_summary
from mlflow_relabel_audit.tracking.write import Claim, abandon, add_artifact, begin, publish

__all__ = [
    "FOLDER",
    "Artifact",
    "Claim",
    "Columns",
    "LoadedModel",
    "Manifest",
    "Metric",
    "Note",
    "Output",
    "PermissionDeniedError",
    "ResolvedModel",
    "Store",
    "TableRows",
    "Tag",
    "abandon",
    "add_artifact",
    "add_file",
    "begin",
    "check_directory",
    "fetch_hessian",
    "listing",
    "load_model",
    "publish",
    "quiet",
    "read_artifact",
    "read_evaluation",
    "read_manifest",
    "read_summary",
    "read_training",
    "resolve",
    "write_directory",
]
