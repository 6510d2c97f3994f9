"""The audit of the rows that MLflow evaluates, against the training rows that the configuration names."""

from __future__ import annotations

import difflib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Metric as RunMetric
from mlflow.models.evaluation.artifacts import ParquetEvaluationArtifact
from mlflow.models.evaluation.base import EvaluationResult

from mlflow_relabel_audit import reports, tracking
from mlflow_relabel_audit.analyses.robustness import RobustnessResult
from mlflow_relabel_audit.auditor import Auditor
from mlflow_relabel_audit.autolog.compose import table_rows
from mlflow_relabel_audit.errors import RequestError, UnsupportedModelError
from mlflow_relabel_audit.stages import report_context
from mlflow_relabel_audit.tracking import Columns, LoadedModel, ResolvedModel, Store, Subject, TableRows
from mlflow_relabel_audit.tracking.store import failures

NAME = "relabel_audit"
FOLDER = f"{tracking.FOLDER}/evaluation"
"""Artifact folder of the evaluation's run."""
OPTIONS = ("train_data", "target", "weight_column", "threshold", "max_predictions", "verify", "search")
"""Keys of the configuration."""


def audit_evaluation(
    model: Any, dataset: Any, run_id: str, model_id: str | None, config: dict[str, Any]
) -> EvaluationResult:
    """Audit the evaluated rows and keep the report in the evaluation's run.

    Parameters
    ----------
    model : mlflow.pyfunc.PyFuncModel
    dataset : mlflow.models.evaluation.base.EvaluationDataset
    run_id : str
        of the evaluation.
    model_id : str or None
        the LoggedModel; without one the metrics are logged here, otherwise by MLflow.
    config : dict
        see `RelabelEvaluator`.

    Raises
    ------
    RelabelAuditError
        The configuration, the model or the rows are wrong, or the store failed.
    """
    _check_names(config)
    with tracking.workspace() as folder:
        return _evaluate(model, dataset, run_id, model_id, config, folder)


def _evaluate(
    model: Any, dataset: Any, run_id: str, model_id: str | None, config: dict[str, Any], folder: Path
) -> EvaluationResult:
    began = time.monotonic()
    estimator = _estimator(model)
    store = Store.connect()
    subject = _subject(store, estimator, dataset, model_id, config, folder)
    subject = subject.sampled(config.get("max_predictions"))
    rows = subject.evaluation
    with tracking.caught_warnings() as caught:
        result = subject.auditor.robustness(
            rows.X,
            rows.y,
            verify=config.get("verify", True),
            search=config.get("search", "prefix"),
            row_ids=rows.row_ids,
        )
    context = report_context(subject, False, caught)
    page = tracking.text_file(folder, "robustness.html", reports.render_robustness(result, context))
    table = tracking.parquet_file(folder, "predictions.parquet", result.predictions)
    with failures(f"writing the audit to run {run_id}"):
        for item in (page, table):
            store.client.log_artifact(run_id, str(item.file), FOLDER)
    metrics = _metrics(result, time.monotonic() - began)
    if model_id is None:  # otherwise MLflow logs what is returned, linked to the model and the dataset
        now = int(time.time() * 1000)
        link = {"dataset_name": str(dataset.name), "dataset_digest": str(dataset.digest)}
        values = [RunMetric(key, value, now, 0, run_id=run_id, **link) for key, value in metrics.items()]
        with failures(f"logging the metrics of run {run_id}"):
            store.client.log_batch(run_id, metrics=values, synchronous=True)
    uri = f"runs:/{run_id}/{FOLDER}/predictions.parquet"
    artifact = ParquetEvaluationArtifact(uri, result.predictions)  # type: ignore[no-untyped-call]
    found = {f"{NAME}_predictions": artifact}
    return EvaluationResult(metrics=metrics, artifacts=found, run_id=run_id)  # type: ignore[no-untyped-call]


def _metrics(result: RobustnessResult, seconds: float) -> dict[str, float]:
    values = {**result.summary, "seconds": seconds}
    return {f"{tracking.FOLDER}/{name}": float(value) for name, value in values.items() if math.isfinite(value)}


def _check_names(config: dict[str, Any]) -> None:
    for name in config:
        if name not in OPTIONS:
            close = difflib.get_close_matches(str(name), OPTIONS, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise RequestError(f"evaluator_config: got {name!r}; {hint}it takes {', '.join(OPTIONS)}")


def _estimator(model: Any) -> Any:
    raw = getattr(model, "get_raw_model", None)
    if raw is None:
        raise UnsupportedModelError(
            f"model: got {type(model).__name__}; pass the URI of a scikit-learn model logged with "
            "mlflow.sklearn.log_model"
        )
    return raw()


def _subject(
    store: Store, estimator: Any, dataset: Any, model_id: str | None, config: dict[str, Any], folder: Path
) -> Subject:
    if model_id is None:
        resolved = ResolvedModel(None, None, "not a logged model", "model", "")
    else:
        resolved = tracking.resolve(store, model_uri=f"models:/{model_id}")
    training = _training(store, resolved, estimator, config, folder)
    name = f"dataset {dataset.name}" if dataset.name else "the evaluated dataset"
    evaluation = table_rows(_features(estimator, dataset.features_data), dataset.labels_data, "evaluation data", name)
    with tracking.caught_warnings() as caught:
        auditor = Auditor(
            estimator,
            training.X,
            training.y,
            sample_weight=training.weight,
            threshold=config.get("threshold", 0.5),
            row_ids=training.row_ids,
        )
    messages = tuple(dict.fromkeys([*training.messages, *caught]))
    return Subject(store, resolved, training, evaluation, auditor, False, messages)


def _training(store: Store, resolved: ResolvedModel, estimator: Any, config: dict[str, Any], folder: Path) -> TableRows:
    given = config.get("train_data")
    if isinstance(given, tuple):
        if len(given) not in (2, 3):
            raise RequestError(f"train_data: got a tuple of {len(given)}; pass (X, y) or (X, y, sample_weight)")
        return table_rows(given[0], given[1], "training data", "the rows given to the evaluator", *given[2:])
    if given is not None and not isinstance(given, (str, Path)):
        raise RequestError(f"train_data: got {type(given).__name__}; pass a tuple (X, y), or a path or URI")
    names = getattr(estimator, "feature_names_in_", None)
    model = LoadedModel(estimator, None if names is None else tuple(map(str, names)), ())
    columns = Columns(target=config.get("target"), weight=config.get("weight_column"))
    place = folder / "rows"
    place.mkdir()
    path = None if given is None else str(given)
    return tracking.read_training(store, resolved, model, columns, place, path)


def _features(estimator: Any, values: Any) -> Any:
    """The evaluated rows as the model's fit took them: MLflow makes tables of arrays and of texts."""
    if not isinstance(values, pd.DataFrame) or hasattr(estimator, "feature_names_in_"):
        return values
    if values.shape[1] == 1 and not pd.api.types.is_numeric_dtype(values.iloc[:, 0]):
        return values.iloc[:, 0]
    return np.asarray(values)
