"""The demo, as a new user runs it: one command in an empty directory."""

from __future__ import annotations

import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from mlflow_relabel_audit import demo


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {**kept, **extra}


def script(*words: str, cwd: Path, **extra: str) -> str:
    code = "from mlflow_relabel_audit.cli import main; main(prog_name='mlflow-relabel')"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
def test_demo_from_nothing_to_a_report(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # A run id that belongs to other work must not be continued.
    out = script("demo", cwd=tmp_path, MLFLOW_RUN_ID="0" * 32)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, so that the bar of a minute holds whatever else the machine does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60

    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlruns", "relabel-demo"]
    assert "relabel-demo/train.parquet" in out
    for said in ("accuracy", "median", "Most fragile predictions", " ui --backend-store-uri sqlite:///"):
        assert said in out
    run_id = re.search(r"/runs/([0-9a-f]{32})/artifacts/relabel_audit/robustness.html", out).group(1)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run(run_id)
    assert run.data.tags["relabel_audit.status"] == "complete"
    assert run.data.metrics["relabel_audit/verified_share"] == 1
    assert run.data.metrics["relabel_audit/k_median"] >= 1
    assert {"relabel_audit/robustness.html", "relabel_audit/manifest.json"} <= {
        item.path for item in client.list_artifacts(run_id, "relabel_audit")
    }

    # The line it prints for a second audit works, and finds the Hessian.
    again = next(line for line in out.splitlines() if f"audit --run-id {run_id}" in line)
    assert "reuse" in script(*shlex.split(again)[1:], cwd=tmp_path)


@pytest.mark.slow
def test_training_logs_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = mlflow.get_tracking_uri()
    uri = f"sqlite:///{tmp_path}/elsewhere.db"
    try:
        logged = demo.train(tmp_path, uri)
    finally:
        mlflow.set_tracking_uri(before)
    run = mlflow.MlflowClient(uri).get_run(logged.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy"] == logged.accuracy > 0.95
    assert len(run.outputs.model_outputs) == 1
    train, held_out = pd.read_parquet(logged.train_data), pd.read_parquet(logged.eval_data)
    assert list(train) == list(held_out)
    assert {demo.TARGET, demo.ROW_ID} <= set(train)
    assert sorted([*train[demo.ROW_ID], *held_out[demo.ROW_ID]]) == list(range(569))
    assert len(train) == 426
