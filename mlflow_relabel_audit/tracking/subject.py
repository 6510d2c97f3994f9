"""A logged model with its rows, proved to belong together, ready to be analysed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_relabel_audit.auditor import Auditor
from mlflow_relabel_audit.curvature.stationary import WARN_GAP
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.rows import Progress
from mlflow_relabel_audit.tracking.columns import TableRows
from mlflow_relabel_audit.tracking.credentials import redact
from mlflow_relabel_audit.tracking.data import read_evaluation, read_training
from mlflow_relabel_audit.tracking.model import load_model
from mlflow_relabel_audit.tracking.options import DataOptions
from mlflow_relabel_audit.tracking.resolve import ResolvedModel
from mlflow_relabel_audit.tracking.store import Store
from mlflow_relabel_audit.tracking.stored import HESSIAN, fetch_hessian

TRAINING_SAMPLE = 1000
"""Training rows audited where there is no evaluation data and no ``max_predictions``."""


@dataclass(frozen=True)
class Subject:
    """A model with its rows, ready to be analysed.

    Attributes
    ----------
    store : Store
    resolved : ResolvedModel
    training, evaluation : TableRows
    auditor : Auditor
    on_training_rows : bool
        whether the training rows are evaluated, for want of others.
    messages : tuple of str
        what the reader should know.
    """

    store: Store
    resolved: ResolvedModel
    training: TableRows
    evaluation: TableRows
    auditor: Auditor
    on_training_rows: bool
    messages: tuple[str, ...]

    def sampled(self, limit: int | None) -> Subject:
        """At most ``limit`` evaluation rows, drawn with a fixed seed and kept in their order."""
        if limit is not None and limit < 1:
            raise RequestError(f"max_predictions: got {limit}; pass a positive number")
        if limit is None and self.on_training_rows:
            limit = TRAINING_SAMPLE
        total = len(self.evaluation)
        if limit is None or total <= limit:
            return self
        index = np.sort(np.random.default_rng(0).choice(total, size=limit, replace=False))
        kind = "training" if self.on_training_rows else "evaluation"
        said = f"audited a random sample of {limit:,} of the {total:,} {kind} rows (fixed seed)"
        return replace(self, evaluation=self.evaluation.take(index), messages=(*self.messages, said))

    def facts(self) -> dict[str, Any]:
        """What was audited, for machines."""
        resolved, rows = self.resolved, self.auditor.rows
        return {
            "run_id": resolved.run_id,
            "model_id": resolved.model_id,
            "model_uri": redact(resolved.model_uri),
            "train_source": self.training.source,
            "eval_source": self.evaluation.source,
            "n_train": rows.n,
            "n_eval": len(self.evaluation),
            "n_features": rows.features_in,
            "classes": list(map(str, self.auditor.problem.classes)),
            "threshold": self.auditor.problem.threshold,
            "fingerprint": self.auditor.fingerprint,
            "package_version": version("mlflow-relabel-audit"),
        }


def prepare(
    store: Store,
    resolved: ResolvedModel,
    data: DataOptions,
    folder: Path,
    threshold: float | None,
    output_dir: Path | None,
    memory_limit: int | str | None = None,
    dask: str | None = None,
    progress: Progress | None = None,
) -> Subject:
    """Load the model, read the rows, prove that they belong together, factor or fetch the Hessian."""
    for name in ("model", "rows", "earlier", "files"):
        (folder / name).mkdir()
    in_parts = memory_limit is not None or dask is not None
    model = load_model(store, resolved, folder / "model")
    training = read_training(store, resolved, model, data.columns, folder / "rows", data.train_data, in_parts=in_parts)
    evaluation, on_training = read_evaluation(
        store, resolved, model, data.columns, folder / "rows", training, data.eval_data
    )
    earlier = fetch_hessian(store, resolved.run_id, folder / "earlier") if resolved.run_id else None
    if earlier is None and output_dir is not None and all((output_dir / name).is_file() for name in HESSIAN):
        earlier = output_dir
    with caught_warnings() as caught:
        auditor = Auditor(
            model.estimator,
            training.X,
            training.y,
            sample_weight=training.weight,
            threshold=0.5 if threshold is None else threshold,
            row_ids=training.row_ids,
            hessian=earlier,
            memory_limit=memory_limit,
            dask=dask,
            progress=progress,
        )
    said = [*model.messages, *training.messages, *evaluation.messages, *caught]
    if auditor.hessian_cached:
        said.append("reused the Hessian stored by an earlier audit of this model and data")
    gap = auditor.stationarity.relative_gap
    if gap > WARN_GAP:
        said.append(
            f"the logged coefficients stop {gap:.1e} of the objective short of its "
            "minimum and were moved there for the audit; fit with a smaller tol or more iterations"
        )
    messages = tuple(dict.fromkeys(said))
    return Subject(store, resolved, training, evaluation, auditor, on_training, messages)


@contextmanager
def caught_warnings() -> Iterator[list[str]]:
    """Collect the analyses' own warnings as messages; let those of other packages through."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield said
    for item in caught:
        if item.category is UserWarning:
            said.append(" ".join(str(item.message).split()))
        else:
            warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
