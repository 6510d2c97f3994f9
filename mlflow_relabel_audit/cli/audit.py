"""``mlflow-relabel audit``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mlflow_relabel_audit.cli.console import progress_bar
from mlflow_relabel_audit.cli.options import (
    chosen_model,
    data_options,
    keeps_something,
    model_options,
    named_files,
    output_options,
    scale_options,
    scope_options,
)

if TYPE_CHECKING:
    from mlflow_relabel_audit.audit import AuditResult


@click.command("audit")
@model_options
@data_options
@scope_options(threshold="0.5")
@click.option(
    "--search",
    type=click.Choice(["prefix", "adaptive"]),
    default="prefix",
    show_default=True,
    help="prefix: shortest prefix of the influence order that flips; adaptive: then try to shrink it.",
)
@click.option(
    "--row-set",
    "row_sets",
    metavar="NAME=FILE",
    multiple=True,
    callback=named_files,
    help="Training ids (column train_id) whose share in the sets of each --group is shown; several times.",
)
@click.option("--noise-curve", is_flag=True, help="Also inject label noise, refit, and follow k and accuracy.")
@click.option("--no-verify", is_flag=True, help="Leave k at its estimate; nothing is refitted.")
@scale_options
@output_options
def command(
    run_id: str | None,
    model_uri: str | None,
    tracking_uri: str | None,
    output_dir: str | None,
    no_log: bool,
    no_verify: bool,
    **options: Any,
) -> None:
    """Count the labels each prediction rests on, and log the reports to the run.

    The training data must be the rows the model was fitted on; that is checked. A second audit of the same
    model and data reuses the stored Hessian.

    \b
    mlflow-relabel audit --run-id ID --train-data train.parquet --target label \\
        --eval-data test.parquet
    """  # noqa: D301  click's mark for text that is not to be wrapped
    run_id, model_uri = chosen_model(run_id, model_uri)
    keeps_something(output_dir, no_log)
    show_tracking_uri(tracking_uri)

    from mlflow_relabel_audit.audit import audit

    with progress_bar() as progress:
        result = audit(
            run_id,
            model_uri,
            verify=not no_verify,
            output_dir=output_dir,
            log=not no_log,
            tracking_uri=tracking_uri,
            progress=progress,
            **options,
        )
    show(result)
    click.echo(f"\nReport  {result.report_location}")


def show_tracking_uri(tracking_uri: str | None) -> None:
    """Print where MLflow is looked for, before anything fails there: a wrong directory is an empty store."""
    from mlflow_relabel_audit.cli import tables
    from mlflow_relabel_audit.tracking import Store

    click.echo(tables.pairs({"Tracking URI": Store.connect(tracking_uri).shown_uri}))


def show(result: AuditResult) -> None:
    """Print an audit's outcome."""
    from mlflow_relabel_audit.cli import tables

    click.echo(tables.pairs({"Run": result.run_id, "Model": result.model_uri}))
    for message in result.messages:
        click.echo(message)
    click.echo(f"\n{len(result.predictions):,} predictions audited")
    click.echo(tables.metrics(result.summary))
    if found := tables.fragile(result.predictions):
        click.echo(f"\nMost fragile predictions\n{found}")
