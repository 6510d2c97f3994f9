"""One fit's audit: the stages and the writer of the audit by run id, on a model and rows that are at hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from mlflow_relabel_audit import tracking
from mlflow_relabel_audit.analyses.flip_table import FlipTable
from mlflow_relabel_audit.analyses.robustness import RobustnessResult, summarise
from mlflow_relabel_audit.auditor import Auditor
from mlflow_relabel_audit.autolog.capture import Capture
from mlflow_relabel_audit.autolog.settings import Settings
from mlflow_relabel_audit.errors import RelabelAuditError, RequestError
from mlflow_relabel_audit.stages import (
    find_noise,
    hessian_stage,
    manifest_of,
    noise_stage,
    report_context,
    robustness_stage,
    summary_stage,
)
from mlflow_relabel_audit.tracking import Metric, Output, Store, Subject, TableRows, snapshot
from mlflow_relabel_audit.tracking.store import failures

PREDICTIONS_SHARE = 0.6
"""Of the time that is left when predictions begin; the rest is for the noise audit, the reports and the upload."""
_FIRST_BLOCK, _LARGEST_BLOCK = 8, 64


class TimeBudgetError(RelabelAuditError):
    """The time allowed was over before there was anything to report."""


def audit_fit(
    estimator: Any,
    capture: Capture,
    *,
    run_id: str,
    model_id: str,
    tracking_uri: str,
    settings: Settings,
    end: float,
    given_up: Callable[[], bool],
) -> None:
    """Audit a model that was logged a moment ago and write the result to its run.

    Parameters
    ----------
    estimator : Any
        the fitted estimator.
    capture : Capture
        what its fit took.
    end : float
        of the time allowed, on the clock of ``time.monotonic``.
    given_up : callable
        returns True once nobody waits any more: then nothing is written.

    Raises
    ------
    RelabelAuditError
        The model or its rows cannot be audited, the time was too short, or the store failed.
    """
    began = time.monotonic()
    with tracking.workspace() as folder:
        store = Store.connect(tracking_uri)
        resolved = tracking.resolve(store, model_uri=f"models:/{model_id}")
        claim = tracking.begin(store, resolved)
        try:
            if settings.log_training_data:
                _store_rows(store, run_id, model_id, capture, folder / "data")
            with tracking.caught_warnings() as caught:
                subject = _subject(store, resolved, estimator, capture, settings)
                robust, subject = _robustness(subject, end)
                noise = find_noise(subject, robust) if time.monotonic() < end else None
            if noise is None:
                caught.append("the noise audit was left out: the time budget was spent")
            context = report_context(subject, False, caught)
            files = folder / "files"
            outputs: list[Output] = [*robustness_stage(robust, context, files)]
            if noise is not None:
                outputs += noise_stage(noise, None, None, context, files)
            outputs += hessian_stage(subject, files)
            outputs.append(Metric("seconds", time.monotonic() - began))
            outputs += summary_stage(subject, robust, (noise,), context, outputs, files)
            manifest = manifest_of(subject, claim, outputs)
            if given_up():
                raise TimeBudgetError("the time budget was spent before the audit could be written")
            tracking.publish(store, claim, outputs, manifest=manifest)
        except BaseException as error:
            tracking.abandon(store, claim, error)
            raise


def _subject(
    store: Store, resolved: tracking.ResolvedModel, estimator: Any, capture: Capture, settings: Settings
) -> Subject:
    training = table_rows(capture.X, capture.y, "training data", "the rows given to fit", capture.sample_weight)
    said = []
    if settings.eval_data is None:
        evaluation = training
        said.append("no evaluation data given to autolog: the predictions on the training rows are audited")
    else:
        evaluation = table_rows(*settings.eval_data, "evaluation data", "the rows given to autolog")
    auditor = Auditor(estimator, training.X, training.y, sample_weight=training.weight, threshold=settings.threshold)
    on_training = settings.eval_data is None
    subject = Subject(store, resolved, training, evaluation, auditor, on_training, tuple(said))
    return subject.sampled(settings.max_predictions)


def table_rows(X: Any, y: Any, what: str, source: str, weight: Any = None) -> TableRows:
    """Rows in a form that can be indexed; row ids are positions."""
    if sp.issparse(X):
        X = sp.csr_matrix(X)
    elif not isinstance(X, (pd.DataFrame, pd.Series)):
        X = np.asarray(X)
    labels = None if y is None else np.ravel(np.asarray(y))
    if np.ndim(X) == 0 or (labels is not None and X.shape[0] != len(labels)):
        count = "no" if labels is None else len(labels)
        raise RequestError(
            f"{what}: got rows of shape {np.shape(X)} and {count} labels; pass arrays, frames or lists, one label "
            "per row"
        )
    weights = None if weight is None else np.asarray(weight, dtype=np.float64)
    return TableRows(X, labels, np.arange(X.shape[0]), source, weights)


def _robustness(subject: Subject, end: float) -> tuple[RobustnessResult, Subject]:
    """Flip sets of as many predictions as there is time for, drawn in random order, and the subject cut to them."""
    began = time.monotonic()
    stop = began + PREDICTIONS_SHARE * (end - began)
    rows, total = subject.evaluation, len(subject.evaluation)
    order = np.random.default_rng(0).permutation(total)
    found: list[RobustnessResult] = []
    done, size = 0, _FIRST_BLOCK
    while done < total and time.monotonic() < stop:
        block = rows.take(np.sort(order[done : done + size]))
        found.append(subject.auditor.robustness(block.X, block.y, row_ids=block.row_ids))
        done += len(block)
        per_row = (time.monotonic() - began) / done
        size = int(np.clip((stop - time.monotonic()) / 4 / per_row, 1, _LARGEST_BLOCK))
    if not found:
        raise TimeBudgetError("time_budget: it was spent before the first prediction; pass more seconds")
    kept = np.sort(order[:done])
    predictions = pd.concat([part.predictions for part in found], ignore_index=True)
    position = predictions["row_id"].argsort(kind="stable")
    predictions = predictions.iloc[position].reset_index(drop=True)
    sets = [part.flip_sets for part in found if len(part.sets)] or [found[0].flip_sets]
    flip_sets = pd.concat(sets, ignore_index=True).sort_values(["row_id", "rank"], ignore_index=True)
    stopped = done < total
    messages = subject.messages
    if stopped:
        messages = (*messages, f"the time budget was spent after {done:,} of {total:,} predictions, drawn at random")
    result = RobustnessResult(predictions, FlipTable.of(flip_sets), summarise(predictions), stopped=stopped)
    return result, replace(subject, evaluation=rows.take(kept), messages=messages)


def _store_rows(store: Store, run_id: str, model_id: str, capture: Capture, folder: Path) -> None:
    """Keep the training rows in the run, their description last."""
    rows = table_rows(capture.X, capture.y, "training data", "the rows given to fit", capture.sample_weight)
    files = snapshot.save(folder, rows.X, rows.y, model_id=model_id, sample_weight=rows.weight)
    with failures(f"storing the training rows in run {run_id}"):
        for file in files:
            store.client.log_artifact(run_id, str(file), snapshot.DATA_FOLDER)
