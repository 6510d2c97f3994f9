"""A model trained, logged and audited on data that ships with scikit-learn.

What it does is what a user would do: plain scikit-learn, plain MLflow, then `audit` by the run's id. Nothing
is prepared for the audit beyond keeping the training rows in a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_relabel_audit.audit import audit

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_relabel_audit.audit import AuditResult

EXPERIMENT = "relabel-demo"
FOLDER = "relabel-demo"
TARGET = "malignant"
ROW_ID = "row"


@dataclass(frozen=True)
class Logged:
    """What the training half of the demo leaves behind.

    Parameters
    ----------
    run_id, experiment_id : str
        Of the run that holds the model.
    train_data, eval_data : Path
        Parquet files: 30 features (float64), `TARGET` (0 or 1) and `ROW_ID`, the row of scikit-learn's table.
    accuracy : float
        On the evaluation rows.
    """

    run_id: str
    experiment_id: str
    train_data: Path
    eval_data: Path
    accuracy: float


def train(directory: Path, tracking_uri: str | None = None) -> Logged:
    """Fit a scaled logistic regression to the breast cancer data and log it to MLflow.

    Parameters
    ----------
    directory : Path
        Gets the training and evaluation rows as parquet, in a folder of their own.
    tracking_uri : str, optional
        By default where MLflow itself would log: ``sqlite:///mlflow.db`` here, or ``MLFLOW_TRACKING_URI``.
    """
    features, benign = load_breast_cancer(return_X_y=True, as_frame=True)
    frame = features.assign(**{TARGET: 1 - benign, ROW_ID: features.index})
    train_rows, eval_rows = train_test_split(frame, test_size=0.25, random_state=0, stratify=frame[TARGET])

    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    train_data, eval_data = folder / "train.parquet", folder / "test.parquet"
    train_rows.to_parquet(train_data, index=False)
    eval_rows.to_parquet(eval_data, index=False)

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(train_rows[features.columns], train_rows[TARGET])
    accuracy = float(model.score(eval_rows[features.columns], eval_rows[TARGET]))
    run_id, experiment_id = _log(model, train_rows[features.columns], accuracy, tracking_uri)
    return Logged(run_id, experiment_id, train_data, eval_data, accuracy)


def _log(model: Pipeline, X: pd.DataFrame, accuracy: float, tracking_uri: str | None) -> tuple[str, str]:
    if tracking_uri is not None:
        mlflow.set_tracking_uri(tracking_uri)
    experiment_id = mlflow.set_experiment(EXPERIMENT).experiment_id
    # Created first: start_run() alone would go on with a run named by MLFLOW_RUN_ID.
    run_id = mlflow.MlflowClient().create_run(experiment_id, run_name="demo").info.run_id
    with mlflow.start_run(run_id=run_id):
        mlflow.log_params({"C": model[-1].C, "rows": len(X)})
        mlflow.log_metric("accuracy", accuracy)
        signature = mlflow.models.infer_signature(X, model.predict(X))
        mlflow.sklearn.log_model(model, name="model", signature=signature)
    return run_id, experiment_id


def audit_run(
    logged: Logged, tracking_uri: str | None = None, progress: Callable[[int, int, str], None] | None = None
) -> AuditResult:
    """Audit the logged run by its id, as anyone would audit theirs."""
    return audit(
        run_id=logged.run_id,
        train_data=str(logged.train_data),
        target=TARGET,
        eval_data=str(logged.eval_data),
        id_column=ROW_ID,
        tracking_uri=tracking_uri,
        progress=progress,
    )
