"""``mlflow-relabel gate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mlflow_relabel_audit.cli.audit import show_tracking_uri
from mlflow_relabel_audit.cli.console import progress_bar
from mlflow_relabel_audit.cli.options import data_options, scope_options, tracking_option

if TYPE_CHECKING:
    from mlflow_relabel_audit.gate import GateResult


@click.command("gate")
@click.option(
    "--model-uri", metavar="URI", required=True, help="The version to judge: models:/NAME/3 or models:/NAME@ALIAS."
)
@click.option("--require", metavar="RULE", multiple=True, help="'METRIC OP NUMBER', OP of >= <= > < ==; repeatable.")
@click.option(
    "--policy",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help='Further rules, TOML: [require] and lines like k_median = ">= 20".',
)
@click.option("--promote", metavar="ALIAS", help="Point this alias to the version, if it passes.")
@click.option("--again", is_flag=True, help="Audit even where an audit of this model is stored.")
@click.option("--no-tag", is_flag=True, help="Do not tag the version with the verdict.")
@data_options
@scope_options(threshold="the stored audit's, else 0.5")
@tracking_option
def command(model_uri: str, tracking_uri: str | None, no_tag: bool, **options: Any) -> None:
    """Judge a registered model by its audit: exit 0 if every rule holds, 1 if one does not.

    The audit stored with the model's run is read. Where there is none the model is audited first, which is
    what the data options are for. The version is tagged relabel_audit.verdict = pass or fail; an alias moves
    only with --promote, and only on pass. A figure that is missing fails its rule.

    \b
    mlflow-relabel gate --model-uri models:/loan@candidate --require "k_median >= 20" \\
        --require "confident_fragile_share <= 0.05" --promote champion
    """  # noqa: D301  click's mark for text that is not to be wrapped
    show_tracking_uri(tracking_uri)

    from mlflow_relabel_audit.gate import gate

    with progress_bar() as progress:
        result = gate(model_uri, tag=not no_tag, tracking_uri=tracking_uri, progress=progress, **options)
    show(result)
    result.raise_for_failure()


def show(result: GateResult) -> None:
    """Print a gate's decision: a line for each rule."""
    import pandas as pd

    from mlflow_relabel_audit.cli import tables

    click.echo(tables.pairs({"Run": result.run_id, "Model": f"{result.name} version {result.version}"}))
    click.echo("Audited now:" if result.audited else "Read from the audit stored with the run:")
    for message in result.messages:
        click.echo(f"  {message}")
    rows = [
        {
            "rule": str(check.rule),
            "value": "none" if check.value is None else f"{check.value:g}",
            "verdict": "pass" if check.passed else "fail",
        }
        for check in result.checks
    ]
    click.echo(f"\n{tables.table(pd.DataFrame(rows))}")
    if result.promoted is not None:
        click.echo(f"\nAlias {result.promoted} of {result.name} now points to version {result.version}.")
    if result.passed:
        click.echo(f"\nPass: {result.name} version {result.version} meets every rule.")
