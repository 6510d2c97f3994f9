"""Whole audits of logged models through a real server: what they leave, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

from mlflow_relabel_audit import audit
from mlflow_relabel_audit.audit import contest
from mlflow_relabel_audit.errors import DataMismatchError, RequestError, UnsupportedModelError
from mlflow_relabel_audit.flips.order import influence as order
from mlflow_relabel_audit.tracking import Store, read_manifest, read_summary
from tests.tracking.logged import log_models
from tests.versions import elastic

pytestmark = pytest.mark.server

SMALL = 8
FILES = {
    "flip_sets.parquet",
    "hessian.json",
    "hessian.npz",
    "manifest.json",
    "noise.html",
    "predictions.json",
    "predictions.parquet",
    "robustness.html",
    "summary.json",
    "summary.md",
    "suspects.csv",
}


def fit(pipeline, frame: pd.DataFrame, features, **kwargs):
    return pipeline.fit(frame[features], frame["label"], **kwargs)


@pytest.fixture(scope="module")
def cancer(tmp_path_factory):
    """Breast cancer rows with ids, as parquet and csv, and what to fit on them."""
    folder = tmp_path_factory.mktemp("cancer")
    features, y = load_breast_cancer(return_X_y=True, as_frame=True)
    features = features.iloc[:, :SMALL]
    frame = features.assign(label=y, patient=[f"p{i:03d}" for i in range(len(y))])
    train, test = frame[:400], frame[400:]
    train.to_parquet(folder / "train.parquet", index=False)
    test.to_parquet(folder / "test.parquet", index=False)
    train.to_csv(folder / "train.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)
    model = fit(make_pipeline(StandardScaler(), LogisticRegression()), train, list(features))
    return folder, train, test, list(features), model


@pytest.fixture
def logged(server_store, cancer):
    folder, train, _, features, model = cancer
    run_id, _ = log_models(model=model, example=train[features])
    return server_store, run_id, folder


def ask(run_id: str, folder: Path, **changed):
    asked = {
        "train_data": str(folder / "train.parquet"),
        "target": "label",
        "eval_data": str(folder / "test.parquet"),
        "id_column": "patient",
        "max_predictions": 20,
    }
    return audit(run_id, **{**asked, **changed})


def untouched(store: Store, run_id: str) -> bool:
    run = store.client.get_run(run_id)
    ours = [tag for tag in run.data.tags if tag.startswith("relabel_audit") or tag == "mlflow.note.content"]
    return not (ours or run.data.metrics or store.files(run_id))


def test_audit_of_a_scaled_regression(logged, tmp_path):
    store, run_id, folder = logged
    before = store.run(run_id)
    result = ask(run_id, folder)

    assert (result.run_id, result.logged, result.hessian_cached) == (run_id, True, False)
    assert result.summary["verified_share"] == 1
    assert len(result.predictions) == 20
    assert set(result.predictions["row_id"]) <= {f"p{i:03d}" for i in range(400, 569)}
    assert set(result.flip_sets["train_id"]) <= {f"p{i:03d}" for i in range(400)}
    assert "audited a random sample of 20 of the 169 evaluation rows (fixed seed)" in result.messages
    page = f"{store.shown_uri}/#/experiments/0/runs/{run_id}/artifacts/relabel_audit/robustness.html"
    assert result.report_location == page

    assert set(store.files(run_id)) == FILES
    manifest = read_manifest(store, run_id, tmp_path)
    assert set(manifest.artifacts) == FILES - {"manifest.json"} == set(result.artifacts)
    for path in manifest.artifacts:
        assert manifest.matches(path, store.fetch(run_id, f"relabel_audit/{path}", tmp_path)), path
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "relabel_audit/predictions.parquet"), result.predictions)
    table = json.loads((tmp_path / "relabel_audit/predictions.json").read_text())
    assert table["columns"] == list(result.predictions)
    assert len(table["data"]) == 20
    assert read_summary(store, run_id, tmp_path)["metrics"] == result.summary

    run = store.run(run_id)
    assert (run.info.status, run.info.end_time) == (before.info.status, before.info.end_time)
    assert run.data.metrics == {f"relabel_audit/{name}": value for name, value in result.summary.items()}
    assert run.data.tags["relabel_audit.status"] == "complete"
    links = [line for line in run.data.tags["mlflow.note.content"].splitlines() if line.startswith("* ")]
    assert any("robustness.html" in line for line in links)
    assert len(set(links)) == len(links)
    model = store.client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert {item.key for item in model.metrics} == set(run.data.metrics)
    assert model.tags["relabel_audit.verdict"] == run.data.tags["relabel_audit.verdict"]


def test_second_audit_reuses_the_hessian_and_replaces(logged):
    store, run_id, folder = logged
    first, second = ask(run_id, folder), ask(run_id, folder)
    assert second.hessian_cached
    assert any("reused the Hessian" in message for message in second.messages)
    pd.testing.assert_frame_equal(first.predictions, second.predictions)
    assert set(store.files(run_id)) == FILES
    assert len(store.client.get_metric_history(run_id, "relabel_audit/k_median")) == 1
    # another threshold leaves the Hessian as it is; other rows do not
    assert ask(run_id, folder, threshold=0.3).hessian_cached


def test_csv_positions_and_no_evaluation_data(logged):
    _, run_id, folder = logged
    result = ask(
        run_id,
        folder,
        train_data=str(folder / "train.csv"),
        id_column=None,
        eval_data=None,
        max_predictions=5,
    )
    assert any("predictions on the training rows are audited" in message for message in result.messages)
    assert set(result.predictions["row_id"]) <= set(range(400))
    assert result.predictions["correct"].notna().all()


@pytest.mark.parametrize("name", ["train.parquet", "train.csv"])
def test_rows_read_in_parts_give_the_same(logged, name):
    _, run_id, folder = logged
    asked = {"train_data": str(folder / name), "eval_data": None, "max_predictions": 6}
    whole, parts = ask(run_id, folder, **asked), ask(run_id, folder, memory_limit="64MiB", **asked)
    pd.testing.assert_frame_equal(parts.predictions, whole.predictions)
    pd.testing.assert_frame_equal(parts.flip_sets, whole.flip_sets)
    assert parts.hessian_cached
    with pytest.raises(RequestError, match="no target column 'lable'"):
        ask(run_id, folder, memory_limit="64MiB", target="lable")
    with pytest.raises(RequestError, match="memory limit: got 'lots'"):
        ask(run_id, folder, memory_limit="lots")


def test_an_interrupted_audit_goes_on(logged, tmp_path, monkeypatch):
    _, run_id, folder = logged
    monkeypatch.setattr(order, "block_width", lambda *_: 4)

    def stop(done, total, stage):
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(run_id, folder, output_dir=tmp_path / "out", log=False, progress=stop)
    assert len(list((tmp_path / ".out.unfinished").glob("predictions-*"))) == 2
    seen = []
    result = ask(
        run_id, folder, output_dir=tmp_path / "out", log=False, progress=lambda done, total, stage: seen.append(done)
    )
    assert seen[:2] == [4, 8]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(result.predictions) == 20


def test_column_transformer_with_categories(server_store, tmp_path):
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "income": random.normal(size=300),
            "age": random.integers(18, 80, 300),
            "job": random.choice(["clerk", "cook", "smith"], 300),
            "weight": random.exponential(size=300) ** 3,
        }
    )
    noisy = frame["income"] + (frame["job"] == "cook") + random.normal(size=300)
    frame["label"] = np.where(noisy > 0.3, "yes", "no")
    frame.to_parquet(tmp_path / "train.parquet")
    columns = ColumnTransformer([("numbers", StandardScaler(), ["income", "age"]), ("kinds", OneHotEncoder(), ["job"])])
    features = ["income", "age", "job"]
    model = make_pipeline(columns, LogisticRegression())
    fit(model, frame, features, logisticregression__sample_weight=frame["weight"])
    with mlflow.start_run() as run:
        mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"])
    result = audit(
        run.info.run_id,
        train_data=str(tmp_path / "train.parquet"),
        target="label",
        weight_column="weight",
        max_predictions=8,
    )
    assert result.summary["verified_share"] == 1
    assert set(result.flip_sets["train_label"]) <= {"yes", "no"}
    with pytest.raises(DataMismatchError):  # the weights belong to the model
        audit(run.info.run_id, train_data=str(tmp_path / "train.parquet"), target="label")


def test_text(server_store, tmp_path):
    random = np.random.default_rng(0)
    words = np.array(["good", "fine", "great", "bad", "poor", "awful", "film", "plot", "scene", "end"])
    texts = [" ".join(random.choice(words, 6)) for _ in range(200)]
    positive = [sum(word in text for word in words[:3]) > sum(word in text for word in words[3:6]) for text in texts]
    frame = pd.DataFrame({"text": texts, "label": np.array(positive, dtype=int), "id": range(1000, 1200)})
    frame.to_csv(tmp_path / "train.csv", index=False)
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(frame["text"], frame["label"])
    run_id, _ = log_models(model=model, example=frame["text"])
    rows = {"train_data": str(tmp_path / "train.csv"), "target": "label", "id_column": "id"}
    result = audit(run_id, **rows, max_predictions=8)
    assert result.summary["verified_share"] == 1
    assert result.predictions["row_id"].between(1000, 1199).all()

    # the texts themselves stay here, unless asked for
    def shown(path: str) -> bool:
        page = server_store.fetch(run_id, f"relabel_audit/{path}", tmp_path).read_text()
        return any(text in page for text in texts)

    assert not any(shown(path) for path in FILES if not path.endswith((".npz", ".parquet")))
    outcome = contest(run_id, row=str(result.predictions["row_id"][0]), **rows, include_rows=True)
    assert shown(outcome.artifacts[0])
    # a contest belongs to the audit of the same model and data, and stays when it is repeated
    again = audit(run_id, **rows, max_predictions=8)
    assert outcome.artifacts[0] in again.artifacts
    assert outcome.artifacts[0] in server_store.files(run_id)


def test_groups_and_noise_curve(server_store, cancer, tmp_path):
    _, train, test, features, model = cancer
    run_id, _ = log_models(model=model, example=train[features])
    for name, frame in (("train", train), ("test", test)):
        ward = np.where(frame["mean area"] > 500, "east", "west")
        frame.assign(ward=ward).to_parquet(tmp_path / f"{name}.parquet", index=False)
    train["patient"][:50].to_frame("who").to_csv(tmp_path / "first.csv", index=False)
    sets = {"first.50": str(tmp_path / "first.csv")}
    result = ask(
        run_id,
        tmp_path,
        groups=("ward",),
        noise_curve=True,
        max_predictions=60,
        row_sets=sets,
        output_dir=tmp_path / "kept",
    )
    page, summary = ((tmp_path / "kept" / name).read_text() for name in ("bias.html", "summary.md"))
    assert "first.50" in page
    assert "average k" in summary  # of the noise curve
    assert "evaluation loss" in summary  # of the correction
    assert {"bias.html", "noise.html", "noise_curve.csv"} <= set(result.artifacts)
    assert set(result.artifacts) | {"manifest.json"} == set(server_store.files(run_id))
    plain = ask(run_id, tmp_path, max_predictions=60)
    assert set(plain.artifacts) | {"manifest.json"} == set(server_store.files(run_id)) == FILES


def test_output_directory_alone(logged, tmp_path):
    store, run_id, folder = logged
    where = tmp_path / "kept"
    result = ask(run_id, folder, output_dir=where, log=False)
    assert {path.name for path in where.iterdir()} == FILES
    assert result.report_location == str(where / "robustness.html")
    assert untouched(store, run_id)
    again = ask(run_id, folder, output_dir=where, log=False)
    assert again.hessian_cached
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    (where / "manifest.json").unlink()
    with pytest.raises(RequestError, match="holds files that are not an audit's; pass a new or empty directory"):
        ask(run_id, folder, output_dir=where, log=False)


def test_failed_run_keeps_its_status(logged):
    store, run_id, folder = logged
    store.client.set_terminated(run_id, "FAILED", end_time=1_700_000_000_000)
    ask(run_id, folder, max_predictions=2)
    info = store.run(run_id).info
    assert (info.status, info.end_time) == ("FAILED", 1_700_000_000_000)


def test_row_sets_that_do_not_fit(logged, tmp_path):
    store, run_id, folder = logged
    (tmp_path / "ids.csv").write_text("train_id\np001\nnobody\n")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for sets, groups, message in (
        ({"x": "ids.csv"}, (), "row sets: got no groups"),
        ({"x": "ids.csv"}, ("mean area",), r"row set x: 1 of 2 ids are not among the training rows \(nobody\)"),
        ({"x": "other.csv"}, ("mean area",), "row set x: got columns a, b; pass a table with a column train_id"),
        ({"x y": "ids.csv"}, ("mean area",), "row set x y: name a set with letters"),
    ):
        with pytest.raises(RequestError, match=message):
            ask(run_id, folder, groups=groups, row_sets={name: str(tmp_path / file) for name, file in sets.items()})
    assert untouched(store, run_id)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_data": "nowhere.parquet"}, r"training data nowhere.parquet: no such file; check the path"),
        ({"train_data": None}, "the run names no training dataset; pass the rows with --train-data"),
        ({"target": None}, "name the column of labels with --target; its columns are mean radius"),
        ({"target": "malignant"}, "no target column 'malignant'; its columns are mean radius"),
        ({"id_column": "name"}, "no id column 'name'; its columns are"),
        ({"weight_column": "w"}, "no weight column 'w'; its columns are"),
        ({"groups": ("sex",)}, "no group column 'sex'; its columns are"),
        ({"threshold": 1.0}, "threshold: got 1.0; pass a probability strictly between 0 and 1"),
        ({"search": "best"}, "search: got 'best'; pass 'prefix' or 'adaptive'"),
        ({"max_predictions": 0}, "max_predictions: got 0; pass a positive number"),
        ({"model_name": "other"}, r"has no model named 'other'; it has model \(m-"),
    ],
    ids=lambda value: next(iter(value.items())).__repr__() if isinstance(value, dict) else "",
)
def test_wrong_requests_leave_the_run_untouched(logged, changed, message):
    store, run_id, folder = logged
    with pytest.raises(RequestError, match=message) as caught:
        ask(run_id, folder, **changed)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert untouched(store, run_id)


def _shuffled(frame):
    return frame.assign(label=frame["label"].sample(frac=1, random_state=0).to_numpy())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_shuffled, "training data: on these rows the logged coefficients leave"),
        (lambda frame: frame.iloc[:200], "training data: on these rows the logged coefficients leave"),
        (lambda frame: frame.assign(label=1), "holds one class only"),
        (lambda frame: frame.assign(label=frame["label"].where(frame.index != 7)), "1 of 400 labels"),
        (lambda frame: frame.assign(label=frame["label"] + 1), "beside the model's classes"),
        (
            lambda frame: frame.drop(columns="mean area"),
            r"1 of the model's 8 features are missing \(mean area\)",
        ),
        (
            lambda frame: frame.assign(**{"mean area": frame["mean area"].where(frame.index > 2)}),
            r"3 rows have missing features \(mean area\) and the model takes none",
        ),
        (lambda frame: frame.assign(patient="p1"), "ids in 'patient' are not unique"),
        (lambda frame: frame.assign(patient=frame["patient"].where(frame.index > 0)), "1 ids in 'patient'"),
        (lambda frame: frame.assign(**{"mean area": "large"}), "the model does not take these rows"),
        (lambda frame: frame.iloc[:0], "got 0 rows"),
    ],
    ids=[
        "shuffled",
        "fewer",
        "one_class",
        "nan_label",
        "unknown_label",
        "no_feature",
        "nan",
        "twice",
        "no_id",
        "text",
        "empty",
    ],
)
def test_wrong_rows_leave_the_run_untouched(logged, cancer, tmp_path, spoil, message):
    store, run_id, folder = logged
    spoil(cancer[1].copy()).to_parquet(tmp_path / "spoilt.parquet", index=False)
    with pytest.raises(RequestError, match=message) as caught:
        ask(run_id, folder, train_data=str(tmp_path / "spoilt.parquet"))
    assert "\n" not in str(caught.value)
    assert untouched(store, run_id)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LogisticRegression(solver="liblinear", **elastic(1)), "got penalty 'l1'"),
        (LinearSVC(), "got LinearSVC; this audit takes a fitted LogisticRegression"),
    ],
    ids=["l1", "LinearSVC"],
)
def test_models_that_cannot_be_audited(server_store, cancer, model, message):
    folder, train, _, features, _ = cancer
    run_id, _ = log_models(model=fit(make_pipeline(StandardScaler(), model), train, features), example=train[features])
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        ask(run_id, folder)
    assert "\n" not in str(caught.value)
    assert untouched(server_store, run_id)


def test_deleted_run_is_refused(logged):
    store, run_id, folder = logged
    store.client.delete_run(run_id)
    with pytest.raises(RequestError, match="it is deleted; restore it first"):
        ask(run_id, folder)
    assert not store.files(run_id)


def test_contest(logged, tmp_path):
    store, run_id, folder = logged
    rows = {
        "train_data": str(folder / "train.parquet"),
        "target": "label",
        "eval_data": str(folder / "test.parquet"),
        "id_column": "patient",
    }
    outcome = contest(run_id, row="p450", **rows, output_dir=tmp_path / "kept")
    assert outcome.result.row_id == "p450"
    assert outcome.result.k == len(outcome.result.flip_set)
    assert set(store.files(run_id)) == {"contest/p450.html", "manifest.json"}
    assert (tmp_path / "kept" / "contest" / "p450.html").is_file()
    assert store.run(run_id).data.tags.get("relabel_audit.status") is None
    with pytest.raises(RequestError, match="has no row of that id; its ids begin with p400, p401"):
        contest(run_id, row="p001", **rows)
