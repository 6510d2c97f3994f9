"""``mlflow-relabel demo``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_relabel_audit.cli.audit import show, show_tracking_uri
from mlflow_relabel_audit.cli.console import progress_bar
from mlflow_relabel_audit.cli.options import tracking_option

if TYPE_CHECKING:
    from mlflow_relabel_audit.demo import Logged

REPORT = "relabel_audit/robustness.html"


@click.command("demo")
@tracking_option
def command(tracking_uri: str | None) -> None:
    """Train a model on scikit-learn's breast cancer data, log it to MLflow, and audit it.

    Without MLFLOW_TRACKING_URI or --tracking-uri everything stays in the working directory: mlflow.db,
    mlruns/ and relabel-demo/.
    """
    show_tracking_uri(tracking_uri)

    from mlflow_relabel_audit import demo

    here = Path.cwd()
    logged = demo.train(here, tracking_uri)
    click.echo(
        f"Trained StandardScaler + LogisticRegression on scikit-learn's breast cancer data: "
        f"accuracy {logged.accuracy:.1%} on rows held out.\n"
        f"Wrote its rows to {logged.train_data.relative_to(here)} and {logged.eval_data.relative_to(here)}."
    )
    with progress_bar() as progress:
        result = demo.audit_run(logged, tracking_uri, progress)
    show(result)
    click.echo(_next(logged, result.tracking_uri))


def _next(logged: Logged, tracking_uri: str) -> str:
    """What to do next: see the report, and audit once more."""
    page = f"/#/experiments/{logged.experiment_id}/runs/{logged.run_id}/artifacts/{REPORT}"
    if tracking_uri.startswith(("http://", "https://")):
        see = f"See the report:\n  {tracking_uri.rstrip('/')}{page}"
    else:
        see = (
            "See the report: start MLflow's pages with\n"
            f"  {_beside('mlflow')} ui --backend-store-uri {tracking_uri}\n"
            f"and open\n  http://127.0.0.1:5000{page}"
        )
    clicks = " > ".join(("experiment relabel-demo", "run demo", "Artifacts", *REPORT.split("/")))
    again = (
        f"{_beside('mlflow-relabel')} audit --run-id {logged.run_id} --train-data relabel-demo/train.parquet "
        "--target malignant --id-column row --eval-data relabel-demo/test.parquet"
    )
    return f"\n{see}\n(or click: {clicks})\n\nAudit it again, now with the stored Hessian:\n  {again}"


def _beside(name: str) -> str:
    """How to call a script of this environment: by name where that finds it, else by its path."""
    script = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not script.exists() or (found and Path(found).resolve() == script.resolve()):
        return name
    try:
        return str(script.relative_to(Path.cwd()))
    except ValueError:
        return str(script)
