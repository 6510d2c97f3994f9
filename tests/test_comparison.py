"""Stored audits compared on a real store: what is read, matched, written and refused."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

from mlflow_relabel_audit import audit
from mlflow_relabel_audit.cli import main
from mlflow_relabel_audit.comparison import compare_runs
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.tracking import Store, read_manifest
from tests.tracking.logged import log_models

FEATURES = ["a", "b"]


def frame(n: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, n))
    label = (a + 0.5 * random.normal(size=n) > 0).astype(int)
    return pd.DataFrame({"a": a, "b": b, "label": label, "person": [f"p{at}" for at in range(n)]})


def logged(folder: Path, n: int, name: str) -> tuple[str, dict[str, str]]:
    """A run with a model fitted on n rows, and how to audit it."""
    rows = frame(n, seed=0)
    rows.to_parquet(folder / f"train{n}.parquet")
    run_id, _ = log_models(model=LogisticRegression().fit(rows[FEATURES], rows["label"]), example=rows[FEATURES])
    mlflow.MlflowClient().set_tag(run_id, "mlflow.runName", name)
    return run_id, {"train_data": str(folder / f"train{n}.parquet"), "target": "label"}


@pytest.fixture
def two(store, tmp_path) -> tuple[Store, str, str, Path]:
    """Audits of a model that few rows made and of one that many did, on the same evaluation rows."""
    test = str(tmp_path / "test.parquet")
    frame(40, seed=1).to_parquet(test)
    ids = []
    for n, name in ((40, "few"), (400, "many")):
        run_id, data = logged(tmp_path, n, name)
        audit(run_id, eval_data=test, id_column="person", **data)
        ids.append(run_id)
    return (store, *ids, tmp_path)


def test_the_model_of_more_rows_is_more_robust(two):
    store, few, many, folder = two
    before = store.run(few)
    outcome = compare_runs([few, many], output_dir=folder / "out")
    assert outcome.names == {few: "few", many: "many"}
    assert outcome.messages == ()
    assert outcome.logged

    stored = {run_id: pd.read_parquet(download(run_id, "predictions.parquet")) for run_id in (few, many)}
    shared = outcome.result.shared
    assert list(shared["row_id"]) == list(stored[few]["row_id"])
    for run_id, name in outcome.names.items():
        pd.testing.assert_series_equal(shared[f"k_{name}"], stored[run_id]["k"], check_names=False)
    assert any("many is more robust than few" in finding.message for finding in outcome.result.findings)

    path = f"compare/{many[:12]}.html"
    page = download(few, path).read_text()
    assert "many</bdi> is more robust than" in page.replace("\n", "")
    assert (folder / "out" / "compare.html").read_text() == page
    assert outcome.report_location.startswith(f"relabel_audit/{path} of run {few}")
    manifest = read_manifest(store, few, folder)
    assert manifest.matches(path, download(few, path))
    assert {"predictions.parquet", "summary.json"} <= set(manifest.artifacts)
    after = store.run(few)
    assert (after.info.status, after.info.end_time) == (before.info.status, before.info.end_time)
    assert not [path for path in store.files(many) if path.startswith("compare")]

    compare_runs([few, many])
    assert [path for path in store.files(few) if path.startswith("compare/")] == [path]


def download(run_id: str, path: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=f"relabel_audit/{path}"))


def test_runs_of_one_name_are_told_apart_and_other_data_and_thresholds_are_said(two):
    store, few, many, folder = two
    store.client.set_tag(many, "mlflow.runName", "few")
    other = str(folder / "copy.parquet")
    frame(40, seed=1)[10:].to_parquet(other)
    data = {"train_data": str(folder / "train400.parquet"), "target": "label", "id_column": "person"}
    audit(many, eval_data=other, threshold=0.4, **data)
    outcome = compare_runs([few, many], log=False)
    assert list(outcome.names.values()) == [f"few ({few[:12]})", f"few ({many[:12]})"]
    assert len(outcome.result.shared) == 30
    assert any("different evaluation data" in message for message in outcome.messages)
    assert any("different thresholds" in message for message in outcome.messages)
    assert (outcome.logged, outcome.report_location) == (False, "not kept")


def test_refused(two):
    store, few, many, folder = two
    bare, _ = logged(folder, 40, "bare")
    wrong = {
        (few,): r"got 1 run\(s\)",
        (few, many, few): f"run {few} is named twice",
        (few, "0" * 32): "not found",
        (few, bare): f"run {bare}: holds no whole audit; audit it with",
    }
    for ids, message in wrong.items():
        with pytest.raises(RequestError, match=message):
            compare_runs(ids)
    place = store.run(many).info.artifact_uri.removeprefix("file://")
    frame(40, seed=1).to_parquet(Path(place, "relabel_audit", "predictions.parquet"))
    with pytest.raises(RequestError, match="holds no whole audit"):
        compare_runs([few, many])
    assert not [path for path in store.files(few) if path.startswith("compare")]


def test_the_command(two):
    _, few, many, folder = two
    done = CliRunner().invoke(main, ["compare", few, many, "--no-log", "--output-dir", str(folder / "out")])
    assert done.exit_code == 0, done.output
    assert "many is more robust than few: " in done.stdout
    assert "40 shared predictions" in done.stdout
    assert str(folder / "out" / "compare.html") in done.stdout
    alone = CliRunner().invoke(main, ["compare", few])
    assert alone.exit_code == 2
    assert alone.stderr == "Error: compare: got 1 run(s); pass at least two audited runs\n"
