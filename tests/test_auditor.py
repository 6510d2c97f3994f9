"""The Auditor alone: what it takes, what it gives, what it refuses."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler, TargetEncoder

import mlflow_relabel_audit.auditor
from mlflow_relabel_audit import Auditor, inputs
from mlflow_relabel_audit.errors import RequestError, UnsupportedModelError
from mlflow_relabel_audit.flips.rankings import METHODS, rank

FRAME, Y = load_breast_cancer(return_X_y=True, as_frame=True)
COLUMNS = [
    "row_id", "label", "predicted", "probability", "margin", "k_paper", "k_estimate", "k", "k_lower", "fraction",
    "status", "correct",
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> object:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.05)).fit(FRAME[:300], Y[:300])


@pytest.fixture(scope="module")
def auditor(model: object) -> Auditor:
    return Auditor(model, FRAME[:300], Y[:300])


def test_the_docstring_runs() -> None:
    assert doctest.testmod(mlflow_relabel_audit.auditor).failed == 0


def test_frames_have_the_contract_columns(auditor: Auditor) -> None:
    result = auditor.robustness(FRAME[300:330], Y[300:330])
    assert result.predictions.columns.tolist() == COLUMNS
    assert result.flip_sets.columns.tolist() == [
        "row_id",
        "rank",
        "train_id",
        "train_label",
        "new_label",
        "influence",
    ]
    frame = result.predictions
    assert frame["row_id"].tolist() == list(range(30))
    assert frame["correct"].equals((frame["label"] == frame["predicted"]).astype("boolean"))
    assert (frame["k_lower"] <= frame["k"]).all()
    assert (frame["k_lower"] >= 1).all()
    assert frame["fraction"].to_numpy() == pytest.approx(frame["k"].to_numpy(dtype=float) / 300)
    sizes = result.flip_sets.groupby("row_id").size().reindex(frame["row_id"]).to_numpy()
    assert np.array_equal(sizes, frame["k"].to_numpy(dtype=int))
    labels = Y[:300].to_numpy()
    assert np.array_equal(result.flip_sets["train_label"], labels[result.flip_sets["train_id"]])
    assert all(np.isfinite(value) for value in result.summary.values())


def test_no_rows_no_labels_no_verification(auditor: Auditor) -> None:
    empty = auditor.robustness(FRAME[:0])
    assert empty.predictions.columns.tolist() == COLUMNS
    assert (len(empty.predictions), len(empty.flip_sets), empty.summary) == (0, 0, {})
    quick = auditor.robustness(FRAME[300:310], verify=False, certify=False)
    assert (quick.predictions["status"] == "unverified").all()
    assert quick.predictions["k"].isna().all()
    assert quick.predictions["label"].isna().all()
    assert quick.predictions["k_lower"].isna().all()
    assert len(quick.flip_sets) == quick.predictions["k_estimate"].sum()


def test_ids_and_partly_known_labels_are_carried(model: object) -> None:
    names = [f"train-{i}" for i in range(300)]
    auditor = Auditor(model, FRAME[:300], Y[:300], row_ids=names)
    labels = Y[300:303].astype(object).to_numpy().copy()
    labels[1] = None
    result = auditor.robustness(FRAME[300:303], labels, row_ids=["a", "b", "c"])
    assert result.predictions["row_id"].tolist() == ["a", "b", "c"]
    assert result.predictions["correct"].isna().tolist() == [False, True, False]
    assert set(result.flip_sets["train_id"]) <= set(names)


def test_text_and_mixed_tables() -> None:
    rng = np.random.default_rng(0)
    words = np.array(["good", "fine", "great", "bad", "poor", "awful", "film", "plot"])
    texts = [" ".join(rng.choice(words, 6)) for _ in range(200)]
    y = np.array([sum(w in t for w in words[:3]) > sum(w in t for w in words[3:6]) for t in texts])
    text_model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, y)
    auditor = Auditor(text_model, pd.Series(texts), y)
    assert auditor.rows.sparse
    assert (auditor.robustness(texts[:10], certify=False).predictions["status"] == "verified").all()
    assert auditor.contest("good film bad plot").k is not None

    table = pd.DataFrame({"colour": rng.choice(["red", "blue"], 200), "size": rng.standard_normal(200)})
    labels = np.where((table["size"] + (table["colour"] == "red") + rng.standard_normal(200)) > 0, "buy", "leave")
    columns = ColumnTransformer([("cat", OneHotEncoder(), ["colour"]), ("num", StandardScaler(), ["size"])])
    mixed = make_pipeline(columns, LogisticRegression()).fit(table, labels)
    result = Auditor(mixed, table, labels).robustness(table[:10], labels[:10])
    assert (result.predictions["status"] == "verified").all()
    one = Auditor(mixed, table, labels).contest(table.iloc[3], label=labels[3])
    assert one.k == result.predictions["k"][3]
    assert (one.margin_after > 0) != (one.margin > 0)  # type: ignore[operator]


def test_supervised_preprocessing_is_warned_of() -> None:
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"town": rng.choice(list("abcdef"), 300)})
    y = (rng.random(300) < 0.5).astype(int)
    pipe = make_pipeline(TargetEncoder(), LogisticRegression())
    pipe.fit(table, y)
    transformed = pipe[:-1].transform(table)
    pipe[-1].fit(transformed, y)  # the encoder cross-fits while it trains
    with pytest.warns(UserWarning, match="targetencoder"):
        Auditor(pipe, table, y)


def test_the_hessian_is_reused(auditor: Auditor, model: object, tmp_path: Path) -> None:
    auditor.save_hessian(tmp_path)
    again = Auditor(model, FRAME[:300], Y[:300], hessian=tmp_path)
    assert (auditor.hessian_cached, again.hessian_cached) == (False, True)
    assert again.fingerprint == auditor.fingerprint
    first, second = (a.robustness(FRAME[300:320], certify=False).predictions for a in (auditor, again))
    pd.testing.assert_frame_equal(first, second)
    (tmp_path / "hessian.npz").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="computed again"):
        assert not Auditor(model, FRAME[:300], Y[:300], hessian=tmp_path).hessian_cached


def test_fingerprints_tell_data_apart(auditor: Auditor, model: object) -> None:
    moved = FRAME[:300].copy()
    moved.iloc[0, 0] *= 1 + 1e-12
    assert Auditor(model, moved, Y[:300]).fingerprint != auditor.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X_train": FRAME[:299]}, "got 300 labels for 299 rows"),
        ({"y_train": np.zeros(300)}, "300 labels of one class"),
        ({"X_train": FRAME[:300] * np.nan}, "NaN"),
        ({"X_train": FRAME.iloc[:300, :29]}, "refused them"),
        ({"y_train": np.full(300, np.nan)}, "300 of 300 are missing"),
        ({"sample_weight": np.full(300, -1.0)}, "negative"),
        ({"sample_weight": np.ones(5)}, "one per row"),
        ({"row_ids": ["a"] * 300}, "row ids repeat"),
        ({"row_ids": ["a"]}, "got 1 row ids for 300 rows"),
        ({"threshold": 0.0}, "threshold"),
    ],
)
def test_bad_input_is_named(model: object, change: dict[str, object], message: str) -> None:
    arguments = {"X_train": FRAME[:300], "y_train": Y[:300], **change}
    with pytest.raises(RequestError, match=message):
        Auditor(model, **arguments)  # type: ignore[arg-type]


def test_bad_evaluation_rows_are_named(auditor: Auditor) -> None:
    with pytest.raises(RequestError, match="got 2 labels for 3 rows"):
        auditor.robustness(FRAME[:3], [0, 1])
    with pytest.raises(RequestError, match="pass 'prefix' or 'adaptive'"):
        auditor.robustness(FRAME[:3], search="magic")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="refused them"):
        auditor.robustness(FRAME.iloc[:3, :4])


def test_other_entries(auditor: Auditor) -> None:
    assert sorted(auditor.rank(FRAME[300:301], method="random").order) == list(range(300))
    fitted = auditor.fitted
    row = auditor.evaluation_rows(FRAME[300:301]).take(np.arange(1))[0]
    for method in METHODS:
        alone = rank(fitted.problem, fitted.rows, fitted.point, row, method=method)
        assert auditor.rank(FRAME[300:301], method).order.tolist() == alone.order.tolist(), method
    removed = auditor.removal(FRAME[300:303])
    assert removed["row_id"].tolist() == [0, 1, 2]
    noise = auditor.noise(FRAME[300:], Y[300:])
    assert len(noise.scores) == 300
    groups = np.where(np.arange(300) % 2, "odd", "even")
    bias = auditor.bias(groups, FRAME[300:], Y[300:], np.where(np.arange(269) % 2, "odd", "even"))
    assert "bias_max_lift" in bias.summary or bias.findings


def test_sparse_rows_stay_sparse() -> None:
    matrix = sp.random(400, 3000, 0.01, format="csr", random_state=0)
    y = np.random.default_rng(0).integers(0, 2, 400)
    model = LogisticRegression(C=0.1).fit(matrix, y)
    auditor = Auditor(model, matrix, y)
    assert sp.issparse(auditor.rows.features)
    assert auditor.curvature.kind == "dual"
    assert (auditor.robustness(matrix[:5], certify=False).predictions["status"] == "verified").all()


def test_the_gram_certificate_is_on_request() -> None:
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal((4200, 12))
    labels = (matrix[:, 0] + rng.standard_normal(4200) > 0).astype(int)
    wide = Auditor(LogisticRegression(C=1e-3).fit(matrix, labels), matrix, labels)
    default = wide.robustness(matrix[:20]).predictions
    tight = wide.robustness(matrix[:20], certify="gram").predictions
    assert (tight["k_lower"] >= default["k_lower"]).all()
    assert (tight["k_lower"] <= tight["k"]).all()
    assert tight["k_lower"].sum() > default["k_lower"].sum()
    with pytest.raises(RequestError, match="certify: got 'exact'; pass True, False or 'gram'"):
        wide.robustness(matrix[:2], certify="exact")  # type: ignore[arg-type]


def test_balanced_class_weights_and_sample_weights_before_scikit_learn_1_7(monkeypatch):
    """It balanced the numbers of rows, so the objective is another one; equal weights are the same in both."""
    monkeypatch.setattr(inputs, "_BALANCES_COUNTS", True)
    X, y = load_breast_cancer(return_X_y=True)
    X, weight = X[:, :2], np.linspace(0.5, 2, len(y))
    model = LogisticRegression(class_weight="balanced", tol=1e-8, max_iter=1000).fit(X, y)
    with pytest.raises(UnsupportedModelError, match="upgrade it and fit again, or pass class_weight as numbers"):
        Auditor(model, X, y, sample_weight=weight)
    Auditor(model, X, y, sample_weight=np.ones(len(y)))
