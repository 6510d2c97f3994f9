"""The environment's switch, in processes of their own: it works in any order of imports, and costs nothing when off."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mlflow_relabel_audit.provider import EnvironmentSwitch, switched_on

TRAIN = """
import json, os
{imports}
model = make_pipeline(StandardScaler(), LogisticRegression())
mlflow.set_experiment("switch")
with mlflow.start_run() as run:
    X, y = load_iris(return_X_y=True)
    model.fit(X[:100], y[:100])
    mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"],
                             serialization_format="cloudpickle")
tags = mlflow.get_run(run.info.run_id).data.tags
print("RESULT", json.dumps([tags.get("relabel_audit.status"), len(mlflow.search_runs())]))
"""
SKLEARN = """
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
"""


def run(code, folder, database, **environment):
    (folder / "mlflow.db").write_bytes(database.read_bytes())
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**kept, **settings, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("imports", "value", "status"),
    [
        ("import mlflow" + SKLEARN, "1", "complete"),
        (SKLEARN + "import mlflow", "true", "complete"),
        ("import mlflow" + SKLEARN, "0", None),
        (
            "import mlflow, mlflow_relabel_audit\nmlflow_relabel_audit.autolog(disable=True)" + SKLEARN,
            "1",
            None,
        ),
    ],
    ids=["mlflow first", "sklearn first", "off", "refused"],
)
def test_the_variable_alone_switches_the_hook_on(imports, value, status, tmp_path, empty_database):
    found = run(TRAIN.format(imports=imports), tmp_path, empty_database, MLFLOW_RELABEL_AUDIT=value)
    assert found == [status, 1]


def test_off_it_imports_nothing_and_takes_no_time(tmp_path, empty_database):
    code = """
import json, sys, time, importlib.metadata, mlflow
(entry,) = [each for each in importlib.metadata.entry_points(group="mlflow.run_context_provider")
            if each.name == "relabel_audit"]
ours = [name for name in sys.modules if name.startswith("mlflow_relabel_audit")]
for name in ours:
    del sys.modules[name]
before = set(sys.modules)
began = time.perf_counter()
entry.load()()
seconds = time.perf_counter() - began
print("RESULT", json.dumps([sorted(ours), sorted(set(sys.modules) - before), seconds]))
"""
    loaded, imported, seconds = run(code, tmp_path, empty_database)
    switch = ["mlflow_relabel_audit", "mlflow_relabel_audit.provider"]
    assert imported == switch
    assert loaded == sorted([*switch, "mlflow_relabel_audit.dataset_source"])
    assert seconds < 0.1  # a few milliseconds on a machine that has nothing else to do


def test_nothing_that_goes_wrong_gets_out(monkeypatch):
    monkeypatch.setenv("MLFLOW_RELABEL_AUDIT", "1")
    monkeypatch.setitem(sys.modules, "mlflow.utils.import_hooks", None)  # as an MLflow without it
    switch = EnvironmentSwitch()
    assert not switch.in_context()
    assert switch.tags() == {}


@pytest.mark.parametrize(("value", "on"), [("1", True), ("True", True), (" on ", True), ("0", False), ("", False)])
def test_values_of_the_variable(value, on, monkeypatch):
    monkeypatch.setenv("MLFLOW_RELABEL_AUDIT", value)
    assert switched_on() is on
