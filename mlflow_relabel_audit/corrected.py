"""Reviewed labels applied: the same pipeline, fitted on the corrected labels, as a child run of the audited one."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from mlflow_relabel_audit.tracking import FOLDER, Columns, ResolvedModel, Store, TableRows
from mlflow_relabel_audit.tracking.store import failures
from mlflow_relabel_audit.tracking.tables import read_table, some

CHANGES = "relabelled.csv"
"""Artifact of the child run under ``relabel_audit/``: train_id, label, new_label of each change."""

_YES = {"yes", "y", "true", "t", "1", "x"}
_NO = {"no", "n", "false", "f", "0", ""}


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
    train_data: str | None = None,
    target: str | None = None,
    eval_data: str | None = None,
    id_column: str | None = None,
    weight_column: str | None = None,
    output_data: str | Path | None = None,
    log: bool = True,
    tracking_uri: str | None = None,
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
    columns = Columns(target, id_column, weight_column)
    if output_data is not None and (train_data is None or target is None):
        raise RequestError("output data: needs the table it corrects; pass --train-data FILE --target COLUMN too")
    with tracking.quiet(), tempfile.TemporaryDirectory(prefix="relabel-audit-") as temporary:
        folders = {name: Path(temporary) / name for name in ("model", "rows", "earlier", "reviewed", "files")}
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
        training = tracking.read_training(store, resolved, model, columns, folders["rows"], train_data)
        evaluation, on_training = tracking.read_evaluation(
            store, resolved, model, columns, folders["rows"], training, eval_data
        )
        said = [*training.messages, *evaluation.messages]
        reviewed = _read_review(store, suspects, folders["reviewed"])
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
            _write_table(store, str(train_data), str(target), labels, folders["rows"], Path(output_data))
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


# -- what was decided ----------------------------------------------------------------------------------------


def _read_review(store: Store, suspects: str, folder: Path) -> pd.DataFrame:
    reviewed = read_table(store, suspects, folder, "suspects")
    file = Path(suspects).expanduser()
    if "train_id" in reviewed and file.is_file() and ".csv" in file.suffixes:
        # As text: the id 007 of a parquet table is not the number 7.
        reviewed["train_id"] = pd.read_csv(file, usecols=["train_id"], dtype=str)["train_id"]
    return reviewed


def read_changes(reviewed: pd.DataFrame, training: TableRows, classes: Any, messages: list[str]) -> pd.DataFrame:
    """The rows whose label a review changes: position, train_id, label, new_label.

    Raises
    ------
    RequestError
        Columns, ids or labels that do not fit the training rows, or no change at all.
    """
    column = next((name for name in ("new_label", "suggested_label") if name in reviewed), None)
    if "train_id" not in reviewed or column is None:
        raise RequestError(
            f"suspects: need train_id and new_label (or suggested_label), got {some(reviewed.columns)}; "
            "review a copy of the audit's suspects.csv"
        )
    ids = reviewed["train_id"]
    if ids.duplicated().any():
        twice = ids[ids.duplicated()].unique().tolist()
        raise RequestError(f"suspects: train ids occur twice ({some(twice, 5)}); decide each row once")
    positions = _matched(ids, training.row_ids)
    if unknown := [value for value, at in zip(ids, positions, strict=True) if at < 0]:
        raise RequestError(
            f"suspects: {len(unknown)} of {len(ids)} train ids are not among the training rows ({some(unknown, 5)}); "
            f"those are named {some(training.row_ids, 3)}; pass the --id-column the audit had"
        )
    old = np.asarray(training.y)[positions]
    if "label" in reviewed:
        known = np.asarray(classes)[_labels(reviewed["label"], classes, "label")]
        if (wrong := np.flatnonzero(known != old)).size:
            at = int(wrong[0])
            raise RequestError(
                f"suspects: {wrong.size} rows have another label than the training rows (train id {ids.iloc[at]}: "
                f"{known[at]} against {old[at]}); this is a review of other data or other row ids"
            )
    given = reviewed[column].notna().to_numpy() & _approved(reviewed)
    given &= reviewed[column].astype(str).str.strip().ne("").to_numpy()
    reviewed, positions, old = reviewed[given], positions[given], old[given]
    new = np.asarray(classes)[_labels(reviewed[column], classes, column)]
    differs = new != old
    if not differs.any():
        raise RequestError(
            f"suspects: none of the {len(ids)} rows changes a label; fill {column}, and where there is a column "
            "reviewed put yes in it"
        )
    if column == "suggested_label" and not {"reviewed", "keep"} & set(reviewed.columns):
        messages.append(
            "the suspects have no column new_label, reviewed or keep: every suggested label was taken as it stands"
        )
    return pd.DataFrame(
        {
            "position": positions[differs],
            "train_id": np.asarray(training.row_ids)[positions[differs]],
            "label": old[differs],
            "new_label": new[differs],
        }
    )


def corrected_labels(training: TableRows, changes: pd.DataFrame) -> Any:
    """All training labels with the changes applied, shape (n,).

    Raises
    ------
    RequestError
        One class would be left without rows.
    """
    labels = np.array(training.y, copy=True)
    labels[changes["position"].to_numpy()] = changes["new_label"].to_numpy()
    if len(pd.unique(labels)) < 2:
        raise RequestError(
            f"suspects: after the {len(changes)} changes every row is {labels[0]}; two classes are needed, review them"
        )
    return labels


def _approved(reviewed: pd.DataFrame) -> Any:
    """Rows whose new label the reviewer lets through, bool."""
    approved = np.ones(len(reviewed), dtype=bool)
    for name, wanted in (("reviewed", True), ("keep", False)):
        if name not in reviewed:
            continue
        words = reviewed[name].astype(object).where(reviewed[name].notna(), "").map(_word)
        if odd := sorted(set(words) - _YES - _NO):
            raise RequestError(f"suspects: column {name} holds {some(odd, 5)}; write yes or no")
        approved &= words.isin(_YES).to_numpy() == wanted
    return approved


def _word(value: object) -> str:
    """A cell as csv readers vary it: 1, 1.0, True, ' Yes '."""
    return str(value).strip().lower().removesuffix(".0")


def _labels(values: pd.Series, classes: Any, column: str) -> Any:
    """Index into ``classes`` of each label."""
    at = _matched(values, classes)
    if (at < 0).any():
        unknown = pd.unique(values[at < 0]).tolist()
        raise RequestError(
            f"suspects: {column} holds {some(unknown, 5)}; the model's classes are {some(classes)}, use those"
        )
    return at


def _matched(values: pd.Series, known: Any) -> Any:
    """Position of each value in ``known``, by value, else by text (csv turns '7' into 7 or 7.0); -1 for none."""
    exact = {value: at for at, value in enumerate(known)}
    by_text = {str(value): at for at, value in enumerate(known)}

    def find(value: Any) -> int:
        found = exact.get(value, by_text.get(str(value).strip()))
        return by_text.get(str(value).strip().removesuffix(".0"), -1) if found is None else found

    return np.array([find(value) for value in values], dtype=np.int64)


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
    of_truth = probability[np.arange(len(truth)), _matched(pd.Series(truth), estimator.classes_)]
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
