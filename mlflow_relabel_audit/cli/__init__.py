"""The command ``mlflow-relabel``: parse, call, print.

Each command is one module of this package, listed in `COMMANDS`; it is imported when it is used, so that
``--help`` answers at once.
"""

from __future__ import annotations

from importlib import import_module

import click

from mlflow_relabel_audit import __version__
from mlflow_relabel_audit.cli.console import quiet, say_error
from mlflow_relabel_audit.errors import RelabelAuditError

COMMANDS = {
    "audit": "How many labels, and which, each prediction rests on; reports go to the run.",
    "compare": "Audited runs side by side: which is more robust, and where they disagree.",
    "contest": "One decision: the labels it rests on, and what each of them moves.",
    "gate": "A registered version held against rules on its audit: verdict, exit status, alias.",
    "relabel": "Fit the same pipeline on reviewed labels, as a child run; both models compared.",
    "demo": "Train a model, log it to MLflow, audit it; needs nothing.",
}
INTERRUPTED = 130


class _Commands(click.Group):
    """Imports a command when it is named, and turns the package's errors into one line and an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            with quiet():
                return super().invoke(ctx)
        except RelabelAuditError as error:
            say_error(error)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            # click would exit with 1, which is a failed gate's status.
            click.echo("\nInterrupted; nothing more is written.", err=True)
            ctx.exit(INTERRUPTED)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mlflow-relabel")
def main() -> None:
    """Tell how many training labels, and which, would have to differ for a prediction to flip.

    For a scikit-learn logistic regression, or a pipeline that ends in one, logged to MLflow. Where a command
    needs a tracking server it looks where MLflow itself would: --tracking-uri, then MLFLOW_TRACKING_URI, then
    sqlite:///mlflow.db in the working directory.

    Exit status: 0 done, 1 a gate failed, 2 the request or its data is wrong, 3 a server or store failed.
    """
