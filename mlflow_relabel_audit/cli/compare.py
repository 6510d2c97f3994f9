"""``mlflow-relabel compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlflow_relabel_audit.cli.audit import show_tracking_uri
from mlflow_relabel_audit.cli.options import tracking_option

if TYPE_CHECKING:
    from mlflow_relabel_audit.comparison import ComparisonOutcome

PAIRS_SHOWN = 12


@click.command("compare")
@click.argument("run_ids", metavar="RUN_ID RUN_ID...", nargs=-1, required=True)
@click.option(
    "--output-dir", metavar="DIR", type=click.Path(file_okay=False), help="Keep compare.html in this directory too."
)
@click.option("--no-log", is_flag=True, help="Write nothing to the first run.")
@tracking_option
def command(run_ids: tuple[str, ...], output_dir: str | None, no_log: bool, tracking_uri: str | None) -> None:
    """Compare the audits stored with two or more runs, on the evaluation rows they share.

    Rows are matched by id; audit the runs on the same evaluation data, with --id-column where it has one.
    Nothing is computed anew. The page goes to the first run, under relabel_audit/compare/, until that run is
    audited again.

    \b
    mlflow-relabel compare 2f9c1b 81d0aa
    """  # noqa: D301  click's mark for text that is not to be wrapped
    show_tracking_uri(tracking_uri)

    from mlflow_relabel_audit.comparison import compare_runs

    show(compare_runs(run_ids, output_dir=output_dir, log=not no_log, tracking_uri=tracking_uri))


def show(outcome: ComparisonOutcome) -> None:
    """Print who is more robust, and each pair's figures."""
    from mlflow_relabel_audit.cli import tables

    for run_id, name in outcome.names.items():
        click.echo(tables.pairs({"Run": f"{run_id}  {name}"}))
    for message in outcome.messages:
        click.echo(message)
    result = outcome.result
    click.echo(f"\n{len(result.shared):,} shared predictions, {result.summary['agree_share']:.1%} decided alike")
    for finding in result.findings:
        click.echo(f"  {' '.join(finding.message.split())}")
    columns = ["run_a", "run_b", "n", "k_median_a", "k_median_b", "k_ratio", "more_a", "more_b", "ties"]
    click.echo(f"\n{tables.table(result.pairs[columns].head(PAIRS_SHOWN))}")
    if outcome.report_location != "not kept":
        click.echo(f"\nReport  {outcome.report_location}")
