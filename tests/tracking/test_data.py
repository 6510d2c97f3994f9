"""Where rows come from, in order, and what a table turns into for each kind of model."""

from __future__ import annotations

import http.server
import threading
from functools import partial

import mlflow
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_relabel_audit.errors import RequestError, StoreError
from mlflow_relabel_audit.tracking import (
    Columns,
    LoadedModel,
    ResolvedModel,
    read_evaluation,
    read_training,
    resolve,
    snapshot,
)
from mlflow_relabel_audit.tracking.columns import from_table
from mlflow_relabel_audit.tracking.tables import read_table
from tests.tracking.logged import FRAME, log_models

# MLflow has two names for one local source, and says so to whoever logs a path.
pytestmark = pytest.mark.filterwarnings("ignore:The specified dataset source can be interpreted:UserWarning")

LABEL = Columns("label")
NOWHERE = ResolvedModel(None, None, "models:/m-0", "model", "nowhere")


def loaded(estimator, names=None) -> LoadedModel:
    return LoadedModel(estimator, names, ())


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return loaded(LogisticRegression().fit(FRAME[["a", "b"]], FRAME["label"]))


def table(frame, model, columns=LABEL, *, training=True):
    return from_table(frame, model, columns, what="training data", source="here", training=training)


# Tables


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.parquet", "rows.pq", "rows", "folder"])
def test_files_that_can_be_read(store, tmp_path, name):
    path = tmp_path / name
    if ".csv" in name:
        FRAME.to_csv(path, index=False)
    elif name == "folder":
        path.mkdir()
        FRAME[:30].to_parquet(path / "0.parquet")
        FRAME[30:].to_parquet(path / "1.parquet")
    else:
        FRAME.to_parquet(path)
    for uri in (str(path), path.as_uri()):
        pd.testing.assert_frame_equal(read_table(store, uri, tmp_path, "rows"), FRAME, check_names=False)


def test_named_index_is_a_column(store, tmp_path):
    FRAME.rename_axis("id").to_parquet(tmp_path / "rows.parquet")
    assert "id" in read_table(store, str(tmp_path / "rows.parquet"), tmp_path, "rows")


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "rows.csv", "the file is empty"),
        (b"a,b\n", "rows.csv", "got 0 rows and 2 columns"),
        (b"PAR1 not really", "rows.parquet", "cannot be read"),
        (b"{}", "rows.json", "neither .parquet nor .csv"),
    ],
)
def test_files_that_cannot(store, tmp_path, content, name, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=message) as caught:
        read_table(store, str(tmp_path / name), tmp_path, "training data")
    assert "\n" not in str(caught.value)


def test_two_columns_of_one_name(store, tmp_path):
    pd.concat([FRAME, FRAME[["a"]].rename(columns={"a": 7}), FRAME[["a"]].rename(columns={"a": 7})], axis=1)
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    frame = read_table(store, str(tmp_path / "rows.csv"), tmp_path, "rows")
    assert list(frame) == ["a", "b"]


def test_over_http(store, tmp_path):
    FRAME.to_csv(tmp_path / "rows.csv", index=False)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        (tmp_path / "to").mkdir()
        assert len(read_table(store, f"{address}/rows.csv", tmp_path / "to", "rows")) == len(FRAME)
        with pytest.raises(RequestError, match="not found; check the address"):
            read_table(store, f"{address}/none.csv", tmp_path / "to", "rows")
        server.shutdown()


@pytest.mark.server
def test_through_the_server(server_store, tmp_path):
    FRAME.to_parquet(tmp_path / "rows.parquet")
    with mlflow.start_run() as run:
        mlflow.log_artifact(str(tmp_path / "rows.parquet"), "data")
    run_id = run.info.run_id
    for uri in (f"runs:/{run_id}/data/rows.parquet", f"{run.info.artifact_uri}/data/rows.parquet"):
        assert len(read_table(server_store, uri, tmp_path, "rows")) == len(FRAME)
    for uri in (f"runs:/{run_id}/data/none.parquet", f"runs:/{'0' * 32}/rows.parquet"):
        with pytest.raises(RequestError, match="there is no such artifact; check the path"):
            read_table(server_store, uri, tmp_path, "rows")


def test_a_store_whose_package_is_missing(store, tmp_path):
    with pytest.raises((RequestError, StoreError), match=r"rows s3://bucket/rows.csv: ") as caught:
        read_table(store, "s3://bucket/rows.csv", tmp_path, "rows")
    assert "\n" not in str(caught.value)


# What becomes of a table


def test_columns_by_the_models_names(model):
    rows = table(FRAME[["label", "b", "a"]].assign(extra=1.0), model)
    assert list(rows.X) == ["a", "b"]
    assert rows.row_ids.tolist() == list(range(60))
    assert rows.frame().index.tolist() == list(range(60))


def test_a_model_fitted_on_arrays():
    fitted = LogisticRegression().fit(FRAME[["a", "b"]].to_numpy(), FRAME["label"])
    rows = table(FRAME, loaded(fitted))
    assert isinstance(rows.X, np.ndarray)
    assert rows.X.shape == (60, 2)
    by_signature = table(FRAME.assign(extra=1)[["extra", "b", "a", "label"]], loaded(fitted, ("a", "b")))
    np.testing.assert_array_equal(by_signature.X, rows.X)
    with pytest.raises(RequestError, match=r"takes 2 features and has no names for them, the table has 3"):
        table(FRAME.assign(extra=1), loaded(fitted))
    named = Columns("label", "extra")
    assert table(FRAME.assign(extra=range(60)), loaded(fitted), named).X.shape == (60, 2)


def test_text_is_one_column():
    frame = pd.DataFrame({"text": ["good film", "bad film"] * 5, "label": [1, 0] * 5, "n": range(10)})
    fitted = loaded(make_pipeline(CountVectorizer(), LogisticRegression()).fit(frame["text"], frame["label"]))
    assert table(frame, fitted).X.tolist() == frame["text"].tolist()
    two = frame.assign(title="x")
    with pytest.raises(RequestError, match=r"one column of text, the table has 2 .*\(text, title\); keep one"):
        table(two, fitted)
    signed = LoadedModel(fitted.estimator, ("text",), ())
    assert table(two, signed).X.name == "text"
    with pytest.raises(RequestError, match="1 texts in 'text' are missing"):
        table(frame.assign(text=frame["text"].where(frame.index > 0)), fitted)


def test_missing_values_are_the_models_to_take(model):
    holed = FRAME.assign(a=FRAME["a"].where(FRAME.index > 3))
    with pytest.raises(RequestError, match=r"4 rows have missing features \(a\) and the model takes none"):
        table(holed, model)
    imputing = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression())
    assert len(table(holed, loaded(imputing.fit(holed[["a", "b"]], holed["label"])))) == 60


@pytest.mark.parametrize(
    ("classes", "read"),
    [
        (["0", "1"], [0, 1]),
        ([0, 1], [0.0, 1.0]),
        ([False, True], ["False", "True"]),
        (["no", "yes"], ["no", "yes"]),
    ],
)
def test_labels_are_the_models_own(classes, read):
    fitted = LogisticRegression().fit(FRAME[["a", "b"]], np.array(classes)[FRAME["label"]])
    frame = FRAME.assign(label=np.array(read)[FRAME["label"]])
    labels = table(frame, loaded(fitted)).y
    assert (labels == np.array(classes)[FRAME["label"]]).all()


def test_ids_weights_and_groups(model):
    columns = Columns("label", "id", "w", ("sex",))
    frame = FRAME.assign(id=[f"r{i}" for i in range(60)], w=2.0, sex="f")
    rows = table(frame, model, columns)
    assert rows.row_ids[3] == "r3"
    assert rows.weight.sum() == 120
    assert list(rows.groups) == ["sex"]
    part = rows.take(np.array([5, 3]))
    assert (part.row_ids.tolist(), part.y.tolist()) == (["r5", "r3"], FRAME["label"][[5, 3]].tolist())
    assert part.frame().loc["r3", "a"] == FRAME["a"][3]
    assert rows.row("r3").row_ids.tolist() == ["r3"]
    assert table(FRAME, model).row("3").row_ids.tolist() == [3]
    with pytest.raises(RequestError, match="1 weights in 'w' are missing, infinite or negative"):
        table(frame.assign(w=[-1.0] + [1.0] * 59), model, columns)


def test_evaluation_rows_may_lack_everything_but_features(model):
    rows = table(FRAME[["a", "b"]], model, Columns("label", "id", "w", ("sex",)), training=False)
    assert rows.y is None
    assert len(rows.messages) == 2


# The order of sources


@pytest.fixture
def logged_input(store, tmp_path):
    """A run with a model, and a function that logs a dataset input."""
    run_id, _ = log_models(model=LogisticRegression().fit(FRAME[["a", "b"]], FRAME["label"]))

    def log(name, context, path=None):
        from mlflow.data.pandas_dataset import PandasDataset, from_pandas

        frame = FRAME
        if path is not None:
            frame.to_parquet(path)
        dataset: PandasDataset = from_pandas(frame, source=None if path is None else str(path), name=name)
        with mlflow.start_run(run_id=run_id):
            mlflow.log_input(dataset, context=context)

    return store, run_id, log


def training(store, run_id, model, tmp_path, columns=LABEL, **kwargs):
    return read_training(store, resolve(store, run_id=run_id), model, columns, tmp_path, **kwargs)


@pytest.mark.parametrize("context", ["train", "training"])
def test_dataset_input(logged_input, model, tmp_path, context):
    store, run_id, log = logged_input
    log("autologged", "train")
    with pytest.raises(RequestError, match=r"'autologged' was logged without a source .*CodeDatasetSource.*--train"):
        training(store, run_id, model, tmp_path)
    log("rows", context, tmp_path / "rows.parquet")
    rows = training(store, run_id, model, tmp_path)
    assert rows.source.startswith("dataset rows of the run (")
    assert rows.dataset[0] == "rows"
    with pytest.raises(RequestError, match=r"\(the run's dataset 'rows'\): name the column of labels with --target"):
        training(store, run_id, model, tmp_path, Columns())
    (tmp_path / "rows.parquet").unlink()
    with pytest.raises(RequestError, match=r"no such file.*; pass the rows with --train-data"):
        training(store, run_id, model, tmp_path)


@pytest.mark.server
def test_dataset_inputs_that_are_artifacts(server_store, model, tmp_path):
    """What MLflow itself refuses as a dataset's source is read again through the server that holds it."""
    FRAME.to_parquet(tmp_path / "rows.parquet")
    run_id, _ = log_models(model=LogisticRegression().fit(FRAME[["a", "b"]], FRAME["label"]))
    server_store.client.log_artifact(run_id, str(tmp_path / "rows.parquet"), "data")
    root = server_store.run(run_id).info.artifact_uri
    assert root.startswith("mlflow-artifacts:/")
    for uri, context in ((f"runs:/{run_id}/data/rows.parquet", "train"), (f"{root}/data/rows.parquet", "test")):
        dataset = mlflow.data.from_pandas(FRAME, source=uri, name=f"rows to {context}", targets="label")
        with mlflow.start_run(run_id=run_id):
            mlflow.log_input(dataset, context=context)
    rows = training(server_store, run_id, model, tmp_path)
    assert rows.source == f"dataset rows to train of the run (runs:/{run_id}/data/rows.parquet)"
    pd.testing.assert_frame_equal(rows.X, FRAME[["a", "b"]])
    resolved = resolve(server_store, run_id=run_id)
    found, on_training = read_evaluation(server_store, resolved, model, LABEL, tmp_path, rows)
    assert (found.dataset[0], len(found), on_training) == ("rows to test", len(FRAME), False)
    kept = {item.dataset.name: item for item in server_store.run(run_id).inputs.dataset_inputs}
    path = mlflow.data.get_source(kept["rows to train"]).load(str(tmp_path / "loaded"))
    pd.testing.assert_frame_equal(pd.read_parquet(path), FRAME)


def test_flag_before_snapshot_before_inputs(logged_input, model, tmp_path):
    store, run_id, log = logged_input
    log("rows", "train", tmp_path / "rows.parquet")
    files = snapshot.save(tmp_path / "kept", FRAME[["a", "b"]], FRAME["label"], model_id=None)
    for file in files:
        store.client.log_artifact(run_id, str(file), snapshot.DATA_FOLDER)
    assert training(store, run_id, model, tmp_path).source == "the training rows stored with the run"
    FRAME[:50].to_csv(tmp_path / "given.csv", index=False)
    assert len(training(store, run_id, model, tmp_path, train_data=str(tmp_path / "given.csv"))) == 50


@pytest.mark.parametrize(
    "X",
    [FRAME[["a", "b"]], FRAME["a"].map(str), FRAME[["a", "b"]].to_numpy(), sp.csr_matrix(FRAME[["a", "b"]])],
    ids=["frame", "text", "array", "csr"],
)
def test_snapshot_gives_back_what_was_fitted(store, tmp_path, X):
    run_id, _ = log_models()
    ids = [f"r{i}" for i in range(60)]
    weights = np.arange(60.0)
    labels = np.array(["no", "yes"])[FRAME["label"]]
    for file in snapshot.save(tmp_path / "kept", X, labels, model_id="m-1", sample_weight=weights, row_ids=ids):
        store.client.log_artifact(run_id, str(file), snapshot.DATA_FOLDER)
    rows = snapshot.read(store, run_id, "m-1", tmp_path)
    assert type(rows.X) is type(X)
    same = (rows.X != X).nnz == 0 if sp.issparse(X) else (np.asarray(rows.X) == np.asarray(X)).all()
    assert same
    assert (rows.y == labels).all()
    assert (rows.weight == weights).all()
    assert list(rows.row_ids) == ids
    assert snapshot.read(store, run_id, "m-2", tmp_path) is None
    (tmp_path / "kept" / "rows.parquet").write_bytes(b"broken")
    store.client.log_artifact(run_id, str(tmp_path / "kept" / "rows.parquet"), snapshot.DATA_FOLDER)
    with pytest.raises(StoreError, match="missing or not what was stored; pass the rows with --train-data"):
        snapshot.read(store, run_id, "m-1", tmp_path)


def test_evaluation_rows(logged_input, model, tmp_path):
    store, run_id, log = logged_input
    rows = table(FRAME, model)

    def read(**kwargs):
        resolved = resolve(store, run_id=run_id)
        return read_evaluation(store, resolved, model, LABEL, tmp_path, rows, **kwargs)

    found, on_training = read()
    assert on_training
    assert found.messages == ("no evaluation data given: the predictions on the training rows are audited",)
    log("held out", "test", tmp_path / "test.parquet")
    found, on_training = read()
    assert (found.dataset[0], on_training) == ("held out", False)
    FRAME[:7].to_csv(tmp_path / "seven.csv", index=False)
    assert len(read(eval_data=str(tmp_path / "seven.csv"))[0]) == 7


def test_no_source_at_all(store, model, tmp_path):
    with pytest.raises(RequestError, match=r"names no training dataset; pass the rows with --train-data FILE"):
        read_training(store, NOWHERE, model, LABEL, tmp_path)
