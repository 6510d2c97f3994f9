"""``mlflow-relabel relabel``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mlflow_relabel_audit.cli.audit import show_tracking_uri
from mlflow_relabel_audit.cli.options import chosen_model, data_options, model_options

if TYPE_CHECKING:
    from mlflow_relabel_audit.corrected import CorrectedModel

CHANGES_SHOWN = 10


@click.command("relabel")
@model_options
@click.option(
    "--suspects",
    metavar="URI",
    required=True,
    help="Reviewed suspects.csv: train_id, and new_label (else suggested_label) to give; "
    "of a column reviewed only yes counts, with yes in a column keep the label stays.",
)
@data_options
@click.option(
    "--output-data", metavar="FILE", type=click.Path(dir_okay=False), help="Write the corrected training rows, parquet."
)
@click.option("--no-log", is_flag=True, help="Compare only; log no corrected model.")
def command(run_id: str | None, model_uri: str | None, tracking_uri: str | None, no_log: bool, **options: Any) -> None:
    """Fit the same pipeline on reviewed labels, log it as a child run, and compare it with the first.

    The rows are checked to be the model's own. Accuracy and log-loss are those on the evaluation rows, whose
    labels are taken as they are. To audit the corrected model, pass the file of --output-data as its rows.

    \b
    mlflow-relabel relabel --run-id ID --suspects reviewed.csv --train-data train.parquet --target label \\
        --eval-data test.parquet
    """  # noqa: D301  click's mark for text that is not to be wrapped
    run_id, model_uri = chosen_model(run_id, model_uri)
    show_tracking_uri(tracking_uri)

    from mlflow_relabel_audit.corrected import relabel

    show(relabel(run_id, model_uri, log=not no_log, tracking_uri=tracking_uri, **options))


def show(result: CorrectedModel) -> None:
    """Print what was changed, and both models' figures."""
    from mlflow_relabel_audit.cli import tables

    click.echo(tables.pairs({"Run": result.run_id, "Model": result.model_uri}))
    for message in result.messages:
        click.echo(message)
    count = len(result.changes)
    click.echo(f"\n{count:,} {'label' if count == 1 else 'labels'} changed")
    click.echo(tables.table(result.changes.head(CHANGES_SHOWN)))
    if count > CHANGES_SHOWN:
        click.echo(f"  and {count - CHANGES_SHOWN:,} more")
    if result.loss_change is not None:
        before, after = result.before, result.after
        change, low, high = result.loss_change
        verdict = "within chance" if low <= 0 <= high else "lower" if high < 0 else "higher"
        click.echo(
            f"\nOn {result.n_eval:,} evaluation rows, before and after:\n"
            f"  accuracy  {before['accuracy']:.1%}  {after['accuracy']:.1%}\n"
            f"  log-loss  {before['log_loss']:.4f}  {after['log_loss']:.4f}\n"
            f"Change of the log-loss {change:+.4f} (95 % interval {low:+.4f} to {high:+.4f}): {verdict}."
        )
    if result.child_run_id is not None:
        click.echo(f"\nCorrected model  {result.corrected_uri}, child run {result.child_run_id}")
