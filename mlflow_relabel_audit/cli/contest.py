"""``mlflow-relabel contest``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mlflow_relabel_audit.cli.audit import show_tracking_uri
from mlflow_relabel_audit.cli.options import (
    chosen_model,
    data_options,
    keeps_something,
    model_options,
    output_options,
)

if TYPE_CHECKING:
    from mlflow_relabel_audit.audit import ContestOutcome

LABELS_SHOWN = 20


@click.command("contest")
@model_options
@click.option("--row", metavar="ROW_ID", required=True, help="Id of the row whose prediction is contested.")
@click.option(
    "--want", metavar="CLASS", help="Class that the prediction is to become.  [default: whichever takes fewest labels]"
)
@data_options
@click.option("--no-removal", is_flag=True, help="Leave out how many rows removal would take (two classes only).")
@output_options
def command(
    run_id: str | None,
    model_uri: str | None,
    tracking_uri: str | None,
    no_removal: bool,
    output_dir: str | None,
    no_log: bool,
    **options: Any,
) -> None:
    """Show which labels one decision rests on, and what changing each of them moves.

    \b
    mlflow-relabel contest --run-id ID --row 17 --train-data train.parquet --target label \\
        --eval-data test.parquet
    """  # noqa: D301  click's mark for text that is not to be wrapped
    run_id, model_uri = chosen_model(run_id, model_uri)
    keeps_something(output_dir, no_log)
    show_tracking_uri(tracking_uri)

    from mlflow_relabel_audit.audit import contest

    outcome = contest(
        run_id,
        model_uri,
        removal=not no_removal,
        output_dir=output_dir,
        log=not no_log,
        tracking_uri=tracking_uri,
        **options,
    )
    show(outcome)


def show(outcome: ContestOutcome) -> None:
    """Print one contested decision."""
    from mlflow_relabel_audit.cli import tables

    result = outcome.result
    click.echo(tables.pairs({"Run": outcome.run_id, "Model": outcome.model_uri}))
    for message in outcome.messages:
        click.echo(message)
    click.echo(f"\nRow {result.row_id}: {result.predicted}, probability {result.probability:.3f}")
    several = len(result.classes) > 2
    if not len(result.flip_set):
        turns = f"makes it {result.wanted}" if several else "flips it"
        click.echo(f"No set of labels was found whose change {turns}.")
    else:
        count, after = len(result.flip_set), result.probability_after
        verified = "verified by refitting" if result.status == "verified" else result.status
        flip = f"make it {result.wanted}" if several else "flip it"
        click.echo(f"{count:,} of {result.n_train:,} labels {flip} together ({verified}):")
        click.echo(tables.table(result.flip_set.head(LABELS_SHOWN)))
        if count > LABELS_SHOWN:
            click.echo(f"  and {count - LABELS_SHOWN:,} more")
        if after is not None:
            whose = f" of {result.predicted}" if several else ""
            click.echo(f"Probability{whose} once they are changed: {after:.3f}")
    if result.k_lower is not None and result.k_lower > 1:
        fewer = result.k_lower - 1
        none = "single label" if fewer == 1 else f"{fewer:,} labels"
        does = "flip it" if result.any_change else f"make it {result.wanted}"
        click.echo(f"No {none} can {does}, whichever chosen: certified.")
    if result.removal is not None and result.removal.found:
        click.echo(f"Removing training rows instead takes {result.removal.k:,}.")
    click.echo(f"\nReport  {outcome.report_location}")
