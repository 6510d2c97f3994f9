"""Reviewed labels applied: the same pipeline, fitted on the corrected labels, as a child run of the audited one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import sklearn
from mlflow.entities import Metric as RunMetric
from mlflow.models import Model
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.autologging_utils import disable_autologging
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from mlflow_relabel_audit import __version__, tracking
from mlflow_relabel_audit.auditor import Auditor
from mlflow_relabel_audit.errors import RequestError, StoreError
from mlflow_relabel_audit.review import corrected_labels, matched, read_changes, read_review
from mlflow_relabel_audit.tracking import FOLDER, DataKeywords, DataOptions, ResolvedModel, Store, TableRows
from mlflow_relabel_audit.tracking.store import failures
from mlflow_relabel_audit.tracking.tables import read_table

if TYPE_CHECKING:
    from typing_extensions import Unpack

CHANGES = "relabelled.csv"
"""Artifact of the child run under ``relabel_audit/``: train_id, label, new_label of each change."""


@dataclass(frozen=True)
class CorrectedModel:
    """A model fitted anew on corrected labels, beside the one it corrects.

    Attributes
    ----------
    run_id, child_run_id : str or None
        the audited run; the run that holds the corrected model (None where nothing was logged).
    model_uri, corrected_uri : str or None
        the two logged models.
    tracking_uri : str
        without credentials.
    estimator : Any
        the corrected model.
    changes : DataFrame
        train_id, label, new_label of every training row whose label was changed.
    before, after : dict
        ``accuracy`` and ``log_loss`` (mean, nats) on the evaluation rows; empty without labelled ones.
    loss_change : tuple of three floats or None
        mean change of the log-loss per row, with the ends of its 95 % interval (paired, normal).
    n_eval : int
        evaluation rows measured on.
    messages : tuple of str
        what the reader should know.
    """

    run_id: str | None
    child_run_id: str | None
    model_uri: str
    corrected_uri: str | None
    tracking_uri: str
    estimator: Any = field(repr=False)
    changes: pd.DataFrame = field(repr=False)
    before: dict[str, float]
    after: dict[str, float]
    loss_change: tuple[float, float, float] | None
    n_eval: int
    messages: tuple[str, ...]


def relabel(
    run_id: str | None = None,
    model_uri: str | None = None,
    *,
    suspects: str,
    model_name: str | None = None,
    output_data: str | Path | None = None,
    log: bool = True,
    tracking_uri: str | None = None,
    **data: Unpack[DataKeywords],
) -> CorrectedModel:
    """Apply reviewed labels, fit the same pipeline on them, and log it as a child run.

    Parameters
    ----------
    suspects : str
        csv or parquet, a path or any URI that MLflow downloads: suspects.csv of an audit, reviewed. Column
        ``train_id`` names rows by the ids of the audit; ``new_label`` where there is one, else
        ``suggested_label``, holds the label to give (empty: leave it). A column ``reviewed`` lets only rows
        with yes through, a column ``keep`` with yes leaves the label as it is.
    output_data : path, optional
        Also write the training table with the corrected labels there, as parquet: the rows with which to
        audit the corrected model. Needs ``train_data``.
    log : bool
        Log the corrected model; without, only compare.

    The others are those of `audit`.

    Raises
    ------
    RequestError
        Unknown train ids or labels, nothing to change, or rows that are not the model's; nothing was written.
    StoreError
        A server or file system failed.
    """
    rows = DataOptions(**data)
    if output_data is not None and (rows.train_data is None or rows.target is None):
        raise RequestError("output data: needs the table it corrects; pass --train-data FILE --target COLUMN too")
    with tracking.workspace() as temporary:
        folders = {name: temporary / name for name in ("model", "rows", "earlier", "reviewed", "files")}
        for folder in folders.values():
            folder.mkdir()
        store = Store.connect(tracking_uri)
        resolved = tracking.resolve(store, run_id=run_id, model_uri=model_uri, model_name=model_name)
        if log and resolved.run_id is None:
            raise RequestError(
                f"model {tracking.redact(resolved.model_uri)}: was logged outside a run, so there is none to add a "
                "child to; compare only, with --no-log"
            )
        model = tracking.load_model(store, resolved, folders["model"])
        training = tracking.read_training(store, resolved, model, rows.columns, folders["rows"], rows.train_data)
        evaluation, on_training = tracking.read_evaluation(
            store, resolved, model, rows.columns, folders["rows"], training, rows.eval_data
        )
        said = [*training.messages, *evaluation.messages]
        reviewed = read_review(store, suspects, folders["reviewed"])
        changes = read_changes(reviewed, training, model.estimator.classes_, said)
        with tracking.caught_warnings() as caught:
            # Proves that the rows are the model's: else the labels would be given to other rows.
            earlier = tracking.fetch_hessian(store, resolved.run_id, folders["earlier"]) if resolved.run_id else None
            Auditor(model.estimator, training.X, training.y, sample_weight=training.weight, hessian=earlier)
        labels = corrected_labels(training, changes)
        estimator = fit_again(model.estimator, training, labels, said)
        said += caught
        measured = None if on_training or evaluation.y is None else evaluation
        if measured is None:
            said.append("no labelled evaluation rows, so the two models are not compared; pass --eval-data FILE")
        before, after, change = _compare(model.estimator, estimator, measured)
        child, uri = None, None
        if log:
            listed = folders["files"] / CHANGES
            changes.drop(columns="position").to_csv(listed, index=False)
            description = Model.load(str(_model_folder(folders["model"])))
            requirements = _requirements(_model_folder(folders["model"]))
            metrics = {"labels_changed": float(len(changes)), **after}
            metrics |= {f"{name}_before": value for name, value in before.items()}
            child, uri = _log(store, resolved, estimator, description, requirements, metrics, listed)
        if output_data is not None:
            _write_table(store, str(rows.train_data), str(rows.target), labels, folders["rows"], Path(output_data))
        return CorrectedModel(
            run_id=resolved.run_id,
            child_run_id=child,
            model_uri=tracking.redact(resolved.model_uri),
            corrected_uri=uri,
            tracking_uri=store.shown_uri,
            estimator=estimator,
            changes=changes.drop(columns="position"),
            before=before,
            after=after,
            loss_change=change,
            n_eval=0 if measured is None else len(measured),
            messages=tuple(dict.fromkeys(said)),
        )


# -- the model -----------------------------------------------------------------------------------------------


def fit_again(estimator: Any, training: TableRows, labels: Any, messages: list[str]) -> Any:
    """A clone of the pipeline (of a search its best one) fitted on other labels, weights as before."""
    while hasattr(estimator, "best_estimator_"):
        estimator = estimator.best_estimator_
    fresh, weight = clone(estimator), {}
    if training.weight is not None:
        step = f"{fresh.steps[-1][0]}__" if isinstance(fresh, Pipeline) else ""
        weight = {f"{step}sample_weight": training.weight}
    with warnings.catch_warnings(record=True) as caught, disable_autologging():
        warnings.simplefilter("always")
        fresh.fit(training.X, labels, **weight)
    messages += [f"fitting on the corrected labels: {' '.join(str(item.message).split())}" for item in caught]
    return fresh


def _compare(
    old: Any, new: Any, rows: TableRows | None
) -> tuple[dict[str, float], dict[str, float], tuple[float, float, float] | None]:
    """Accuracy and mean log-loss of both, and the change of the loss with its interval."""
    if rows is None:
        return {}, {}, None
    (before, old_loss), (after, new_loss) = _measure(old, rows), _measure(new, rows)
    change = new_loss - old_loss
    mean = float(change.mean())
    spread = 1.96 * float(change.std(ddof=1)) / np.sqrt(len(change)) if len(change) > 1 else np.inf
    return before, after, (mean, mean - spread, mean + spread)


def _measure(estimator: Any, rows: TableRows) -> tuple[dict[str, float], Any]:
    truth = np.asarray(rows.y)
    probability = np.asarray(estimator.predict_proba(rows.X), dtype=np.float64)
    of_truth = probability[np.arange(len(truth)), matched(pd.Series(truth), estimator.classes_)]
    loss = -np.log(np.clip(of_truth, np.finfo(np.float64).tiny, 1.0))
    accuracy = float(np.mean(np.asarray(estimator.predict(rows.X)) == truth))
    return {"accuracy": accuracy, "log_loss": float(loss.mean())}, loss


# -- the child run -------------------------------------------------------------------------------------------


def _log(
    store: Store,
    resolved: ResolvedModel,
    estimator: Any,
    description: Model,
    requirements: list[str],
    metrics: Mapping[str, float],
    changes: Path,
) -> tuple[str, str]:
    """Log the corrected model in a new child run; returns the run's id and the model's URI."""
    parent, flavor = resolved.run, description.flavors["sklearn"]
    if parent is None:
        raise StoreError(f"model {resolved.model_uri}: has no run to add a child to")
    what = f"logging the corrected model beside run {resolved.run_id}"
    tags = {
        "mlflow.parentRunId": str(resolved.run_id),
        f"{FOLDER}.version": __version__,
        f"{FOLDER}.relabelled_from": tracking.redact(resolved.model_uri),
    }
    # Stored as the first one was: what that user can load, this one can be loaded by.
    stored = {key: flavor[key] for key in ("serialization_format", "skops_trusted_types") if flavor.get(key)}
    with failures(what), _current(store):
        run = store.client.create_run(
            str(resolved.experiment_id), run_name=f"{parent.info.run_name} relabelled", tags=resolve_tags(tags)
        )
        child = str(run.info.run_id)
        with mlflow.start_run(run_id=child, nested=True):
            info = mlflow.sklearn.log_model(
                estimator,
                name=resolved.model_name,
                signature=description.signature,
                pip_requirements=requirements,
                **stored,
            )
            store.client.log_artifact(child, str(changes), FOLDER)
            now = run.info.start_time
            values = [
                RunMetric(f"{FOLDER}/{name}", value, now, 0, model_id=info.model_id, run_id=child)
                for name, value in metrics.items()
                if np.isfinite(value)
            ]
            store.client.log_batch(child, metrics=values, synchronous=True)
    return child, str(info.model_uri)


@contextmanager
def _current(store: Store) -> Iterator[None]:
    """MLflow's own tracking URI set to the store, for what logs to nowhere else."""
    before = mlflow.get_tracking_uri()
    if before == store.tracking_uri:
        yield
        return
    mlflow.set_tracking_uri(store.tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def _model_folder(directory: Path) -> Path:
    """Where the model was downloaded to."""
    return next(directory.rglob("MLmodel")).parent


def _requirements(folder: Path) -> list[str]:
    """The model's own requirements, with the scikit-learn that fitted it now."""
    ours = f"scikit-learn=={sklearn.__version__}"
    file = folder / "requirements.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    others = [line for line in lines if line.strip() and not re.match(r"(scikit-learn|mlflow)\b(?!-)", line)]
    return [*others, ours]


def _write_table(store: Store, train_data: str, target: str, labels: Any, folder: Path, place: Path) -> None:
    """The training table with its labels corrected, parquet."""
    frame = read_table(store, train_data, folder, "training data")
    try:
        frame.assign(**{target: labels}).to_parquet(place.expanduser(), index=False)
    except OSError as error:
        raise StoreError(
            f"output data {place}: cannot be written ({error.strerror}); the model is logged, "
            "pass another path with --no-log to write the table alone"
        ) from error
