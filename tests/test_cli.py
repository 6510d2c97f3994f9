"""The command line: exit statuses, one-line errors, what is printed where, real audits through it."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import select
import subprocess
import sys
import warnings
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from mlflow_relabel_audit import __version__
from mlflow_relabel_audit.cli import COMMANDS, main, tables
from mlflow_relabel_audit.cli.console import progress_bar, quiet
from mlflow_relabel_audit.errors import GateFailedError, RequestError, StoreError

NOWHERE = "http://127.0.0.1:9"
TRAIN = """
import sys
import mlflow, pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
X = X.iloc[:, :6]
frame = X.assign(label=y)
frame[:400].to_parquet("train.parquet")
frame[400:].to_parquet("test.parquet")
frame[:400].drop(columns="label").to_parquet("no_target.parquet")
frame[:400].assign(label=y[:400].sample(frac=1, random_state=0).to_numpy()).to_parquet("shuffled.parquet")
model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X[:400], y[:400])
with mlflow.start_run() as run:
    mlflow.sklearn.log_model(model, name="model")
with mlflow.start_run() as empty:
    pass
print(run.info.run_id, empty.info.run_id)
"""


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {**kept, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", **extra}


def relabel(*words: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """``mlflow-relabel`` as another process, its output in pipes."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from mlflow_relabel_audit.cli import main; main(prog_name='mlflow-relabel')",
            *words,
        ],
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A directory with a logged run, its rows, and a run without a model."""
    folder = tmp_path_factory.mktemp("logged")
    done = subprocess.run(
        [sys.executable, "-c", TRAIN],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    run_id, empty = done.stdout.split()[-2:]
    return folder, run_id, empty


# Without a model


def test_help_names_every_command_without_loading_any():
    code = (
        "import sys\nfrom mlflow_relabel_audit.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'numpy', 'pandas', 'mlflow', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_version():
    assert CliRunner().invoke(main, ["--version"]).output.strip().endswith(__version__)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_helps(name):
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: main {name} [OPTIONS]")
    assert "\\b" not in result.output  # click's mark, where it is not taken for one


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-command"],
        ["audit", "--no-such-option"],
        ["audit", "--run-id", "a", "--threshold", "1.5"],
        ["audit", "--run-id", "a", "--max-predictions", "0"],
        ["contest", "--run-id", "a"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_2(words):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["audit"], "which model: got none; give --run-id"),
        (["audit", "--row-set", "ids.csv"], "--row-set: got 'ids.csv'; write NAME=FILE"),
        (["audit", "--row-set", "a=x", "--row-set", "a=y"], "--row-set: got 'a' twice"),
        (
            ["audit", "--run-id", "a", "--model-uri", "models:/b/1"],
            "got both --run-id a and --model-uri models:/b/1",
        ),
        (["audit", "--run-id", "a", "--no-log"], "--no-log: nothing would be kept"),
    ],
)
def test_requests_that_make_no_sense(words, message):
    result = CliRunner(env={"MLFLOW_RUN_ID": None}).invoke(main, words)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (GateFailedError("a:\n b"), 1),
        (RequestError("a:\n b"), 2),
        (StoreError("a:\n b"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_status_by_error(error, status, monkeypatch):
    from mlflow_relabel_audit.cli import audit

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(audit, "chosen_model", fails)
    result = CliRunner().invoke(main, ["audit"])
    assert result.exit_code == status
    assert "Traceback" not in result.output
    if status != 130:
        assert result.stderr == "Error: a: b\n"


# The terminal


def test_warnings_are_lines_and_said_once(capsys):
    with quiet():
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn("the rows\nare few", UserWarning, stacklevel=1)
        warnings.warn("for the authors of libraries", FutureWarning, stacklevel=1)
        warnings.warn_explicit("of MLflow's own making", UserWarning, mlflow.__file__, 1)
    assert capsys.readouterr().err == "Warning: the rows are few\n"


@pytest.mark.parametrize(("level", "shown"), [(None, False), ("INFO", True)])
def test_information_lines_are_left_out_unless_asked_for(level, shown, monkeypatch, caplog):
    if level is None:
        monkeypatch.delenv("MLFLOW_LOGGING_LEVEL", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", level)
    logger = logging.getLogger("a.library.migration")
    caplog.set_level(logging.INFO, logger.name)
    with quiet():
        logger.info("Running upgrade")
        logger.warning("look here")
    assert ("Running upgrade" in caplog.text) is shown
    assert "look here" in caplog.text
    assert logging.root.manager.disable == logging.NOTSET


def test_no_progress_in_a_pipe():
    stream = io.StringIO()
    with progress_bar(stream) as progress:
        assert progress is None
    assert stream.getvalue() == ""


def test_progress_on_a_terminal_shows_each_stage():
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        with progress_bar(stream) as progress:
            assert progress is not None
            for stage in ("estimate", "verify"):
                for done in range(0, 101, 50):
                    progress(done, 100, stage)
        stream.flush()
        text = ""
        while not text.endswith("\n") or text.count("100%") < 2:  # a busy machine hands it over in pieces
            assert select.select([controller], [], [], 20)[0], text
            text += os.read(controller, 1 << 16).decode()
    os.close(controller)
    assert "estimate" in text
    assert "verify" in text
    assert text.count("100%") == 2
    assert text.endswith("\n")


# What is printed


def predictions() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "row_id": ["c", "b", "a\x1b[31m", "d" * 80],
            "label": [0, 1, 0, 1],
            "predicted": [0, 1, 1, 1],
            "probability": [0.2, 0.9, 0.51, 0.99],
            "k_estimate": pd.array([4, 9, 1, 60], dtype="Int64"),
            "k": pd.array([5, 9, 1, None], dtype="Int64"),
            "k_lower": pd.array([3, 4, 1, 7], dtype="Int64"),
            "k_paper": pd.array([6, 20, 1, None], dtype="Int64"),
            "fraction": [0.05, 0.09, 0.01, np.nan],
        }
    )


def test_fragile_predictions_come_in_order_of_k():
    lines = tables.fragile(predictions()).splitlines()
    assert [line.split()[0] for line in lines] == ["row_id", "a", "c", "b"]
    assert "1.0%" in lines[1]
    assert len({len(line) for line in lines}) == 1
    assert len(tables.fragile(predictions(), count=1).splitlines()) == 2


def test_fragile_predictions_without_verification_come_in_order_of_the_estimate():
    unverified = predictions().assign(k=pd.array([pd.NA] * 4, dtype="Int64"))
    lines = tables.fragile(unverified).splitlines()
    assert "k_estimate" in lines[0]
    assert lines[-1].split()[0] == "d" * 31 + "…"
    assert "-" in lines[-1].split()
    assert tables.fragile(unverified.assign(k_estimate=unverified["k"])) == ""


def test_metrics_are_written_in_words():
    lines = tables.metrics({"k_median": 1234.5, "below_2pct_share": 0.375, "unheard_of": 1.0}).splitlines()
    assert lines == [
        "  1,234.5  labels to change before a prediction flips (k), median",
        "    37.5%  predictions that fewer than 2 % of the labels flip",
    ]


# Real audits


@pytest.mark.slow
def test_an_audit_prints_and_writes(logged):
    folder, run_id, _ = logged
    words = ("--train-data", "train.parquet", "--target", "label", "--eval-data", "test.parquet")
    first = relabel("audit", *words, "--output-dir", "out", cwd=folder, MLFLOW_RUN_ID=run_id)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert first.stdout.startswith(("Tracking URI  sqlite:///", "Tracking URI  file:///"))  # as MLflow's version has it
    assert run_id in first.stdout
    assert "169 predictions audited" in first.stdout
    assert "Most fragile predictions" in first.stdout
    assert "%|" not in first.stdout
    assert json.loads((folder / "out" / "manifest.json").read_text())["artifacts"]["robustness.html"]

    second = relabel("audit", "--run-id", run_id, *words, cwd=folder)
    assert second.returncode == 0, second.stderr
    assert "reuse" in second.stdout


@pytest.mark.slow
def test_wrong_requests_are_one_line_with_the_remedy(logged, monkeypatch):
    folder, run_id, empty = logged
    monkeypatch.chdir(folder)
    data = ("--train-data", "train.parquet", "--target", "label")
    wrong = {
        ("--run-id", "0" * 32, *data): "0" * 32,
        ("--run-id", empty, *data): "model",
        ("--run-id", run_id, "--train-data", "train.parquet", "--target", "lable"): "lable",
        ("--run-id", run_id, "--train-data", "no_target.parquet", "--target", "label"): "label",
        ("--run-id", run_id, "--train-data", "missing.parquet", "--target", "label"): "missing.parquet",
        ("--run-id", run_id, "--train-data", "shuffled.parquet", "--target", "label"): "train",
        ("--run-id", run_id): "--train-data",
        ("--run-id", run_id, *data, "--eval-data", "test.parquet", "--id-column", "nobody"): "nobody",
    }
    for words, named in wrong.items():
        done = CliRunner().invoke(main, ["audit", "--tracking-uri", "sqlite:///mlflow.db", *words])
        assert done.exit_code == 2, (words, done.output, done.exception)
        assert done.stderr.startswith("Error: "), (words, done.stderr)
        assert done.stderr.count("\n") == 1, done.stderr
        assert named in done.stderr


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_exits_3(logged, monkeypatch):
    folder, run_id, _ = logged
    monkeypatch.chdir(folder)
    monkeypatch.setattr("mlflow_relabel_audit.rows.cluster.PATIENCE", 0.5)
    words = ["audit", "--tracking-uri", "sqlite:///mlflow.db", "--run-id", run_id, "--dask", "tcp://127.0.0.1:1"]
    done = CliRunner().invoke(main, [*words, "--train-data", "train.parquet", "--target", "label"])
    assert done.exit_code == 3
    assert "dask tcp://127.0.0.1:1: no scheduler with workers answers" in done.output


@pytest.mark.slow
def test_a_server_that_is_not_there_exits_3_and_keeps_the_password(tmp_path):
    uri = NOWHERE.replace("//", "//user:hunter2@")
    done = relabel("audit", "--run-id", "0" * 32, "--tracking-uri", uri, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.stdout + done.stderr
    assert "127.0.0.1:9" in done.stdout


@pytest.mark.slow
def test_contest_prints_the_labels(logged, monkeypatch):
    folder, run_id, _ = logged
    data = ("--train-data", "train.parquet", "--target", "label", "--eval-data", "test.parquet")
    done = relabel("contest", "--run-id", run_id, "--row", "3", *data, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Row 3: " in done.stdout
    assert "labels flip it together" in done.stdout
    monkeypatch.chdir(folder)
    words = ("contest", "--tracking-uri", "sqlite:///mlflow.db", "--run-id", run_id, "--row", "nobody")
    unknown = CliRunner().invoke(main, [*words, *data])
    assert unknown.exit_code == 2
    assert "nobody" in unknown.stderr
    assert unknown.stderr.count("\n") == 1
