"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from mlflow_relabel_audit.errors import RequestError

Command = TypeVar("Command", bound=Callable[..., Any])


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def tracking_option(command: Command) -> Command:
    """``--tracking-uri``."""
    return click.option(
        "--tracking-uri",
        metavar="URI",
        help="Tracking server or database.  [default: MLFLOW_TRACKING_URI, else as MLflow itself]",
    )(command)


def model_options(command: Command) -> Command:
    """Which model: ``--run-id`` or ``--model-uri``, ``--model-name``, ``--tracking-uri``."""
    return _all(
        click.option(
            "--run-id",
            metavar="ID",
            envvar="MLFLOW_RUN_ID",
            help="Run that logged the model.  [env var: MLFLOW_RUN_ID]",
        ),
        click.option(
            "--model-uri",
            metavar="URI",
            help="Model instead of a run: models:/NAME/3, models:/NAME@ALIAS, models:/m-...",
        ),
        click.option("--model-name", metavar="NAME", help="Which model, where the run logged several."),
        tracking_option,
    )(command)


def data_options(command: Command) -> Command:
    """Which rows: ``--train-data``, ``--target``, ``--eval-data``, ``--id-column``, ``--weight-column``."""
    return _all(
        click.option(
            "--train-data",
            metavar="URI",
            help="Training rows, parquet or csv: a path, runs:/, mlflow-artifacts:/, s3://, ...  "
            "[default: what the run's dataset inputs point to]",
        ),
        click.option("--target", metavar="COL", help="Column that holds the label."),
        click.option(
            "--eval-data",
            metavar="URI",
            help="Rows whose predictions are audited.  "
            "[default: the run's evaluation dataset, else a sample of the training rows]",
        ),
        click.option("--id-column", metavar="COL", help="Column that names a row.  [default: its position]"),
        click.option("--weight-column", metavar="COL", help="Column of sample weights the model was fitted with."),
    )(command)


def scope_options(threshold: str) -> Callable[[Command], Command]:
    """What is audited of the rows: ``--group``, ``--threshold`` (with its default in words), ``--max-predictions``."""
    return _all(
        click.option(
            "--group",
            "groups",
            metavar="COL",
            multiple=True,
            help="Column of groups whose labels and errors to compare; may be given several times.",
        ),
        click.option(
            "--threshold",
            metavar="T",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            help=f"Probability from which the second of two classes is predicted.  [default: {threshold}]",
        ),
        click.option(
            "--max-predictions", metavar="N", type=click.IntRange(min=1), help="Audit a sample of N evaluation rows."
        ),
    )


def output_options(command: Command) -> Command:
    """Where results go: ``--include-rows``, ``--output-dir``, ``--no-log``."""
    return _all(
        click.option("--include-rows", is_flag=True, help="Show the rows themselves (text, features) in reports."),
        click.option(
            "--output-dir",
            metavar="DIR",
            type=click.Path(file_okay=False),
            help="Keep the reports and tables in this directory too.",
        ),
        click.option("--no-log", is_flag=True, help="Write nothing to the run; needs --output-dir."),
    )(command)


def scale_options(command: Command) -> Command:
    """Where training rows are kept and worked on: ``--memory-limit``, ``--dask``."""
    return _all(
        click.option(
            "--memory-limit",
            metavar="SIZE",
            help="Most that training rows may occupy at once, as 1GiB; they are kept on disk.  [default: no limit]",
        ),
        click.option(
            "--dask",
            metavar="ADDRESS",
            help="Work on a Dask cluster: tcp://HOST:PORT of its scheduler, or local.",
        ),
    )(command)


def named_files(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Values ``NAME=FILE`` as a mapping.

    Raises
    ------
    RequestError
        A value of another form, or a name given twice.
    """
    files: dict[str, str] = {}
    for value in values:
        name, found, file = value.partition("=")
        if not (name and found and file):
            raise RequestError(f"{parameter.opts[0]}: got {value!r}; write NAME=FILE, as biased=biased_ids.csv")
        if name in files:
            raise RequestError(f"{parameter.opts[0]}: got {name!r} twice; give each set a name of its own")
        files[name] = file
    return files


def chosen_model(run_id: str | None, model_uri: str | None) -> tuple[str | None, str | None]:
    """``(run_id, model_uri)``, one of them None.

    A model named on the command line stands above a run id found in the environment.

    Raises
    ------
    RequestError
        Neither, or both on the command line.
    """
    if run_id and model_uri:
        if click.get_current_context().get_parameter_source("run_id") is ParameterSource.ENVIRONMENT:
            return None, model_uri
        raise RequestError(f"which model: got both --run-id {run_id} and --model-uri {model_uri}; give one of them")
    if not run_id and not model_uri:
        raise RequestError("which model: got none; give --run-id ID (or set MLFLOW_RUN_ID), or --model-uri URI")
    return run_id or None, model_uri or None


def keeps_something(output_dir: str | None, no_log: bool) -> None:
    """Refuse ``--no-log`` without ``--output-dir``, which would compute and throw away.

    Raises
    ------
    RequestError
        As said.
    """
    if no_log and not output_dir:
        raise RequestError("--no-log: nothing would be kept; say with --output-dir DIR where results go")
