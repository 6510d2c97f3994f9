"""More than two classes, from the Auditor to the pages in MLflow; scikit-learn's own refits as the witness."""

from __future__ import annotations

import json

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_relabel_audit import Auditor, RequestError, UnsupportedModelError, autolog
from mlflow_relabel_audit.analyses.robustness import confidence, summarise
from mlflow_relabel_audit.cli import main
from mlflow_relabel_audit.comparison import compare_runs
from tests.reports.page import Page

TOPICS = {
    "health": ["doctor", "patient", "drug", "trial", "heart", "diet", "clinic", "sleep"],
    "money": ["bank", "market", "share", "profit", "rate", "loan", "price", "stock"],
    "sport": ["goal", "match", "team", "coach", "league", "score", "win", "season"],
    "travel": ["flight", "hotel", "beach", "train", "guide", "island", "ticket", "museum"],
}


def headlines(count: int) -> tuple[list[str], np.ndarray]:
    """Texts of four topics that borrow words from one another."""
    rng = np.random.default_rng(0)
    topics = rng.choice(list(TOPICS), count)
    others = rng.choice(list(TOPICS), count)
    texts = [
        " ".join([*rng.choice(TOPICS[own], 4), *rng.choice(TOPICS[other], 2), "the"])
        for own, other in zip(topics, others, strict=True)
    ]
    return texts, topics


def exact(**options):
    return LogisticRegression(solver="newton-cg", tol=1e-10, max_iter=1000, **options)


def of_features(load, last):
    X, y = load(return_X_y=True)
    return make_pipeline(StandardScaler(), last).fit(X[::2], y[::2]), X[::2], y[::2], X[1::9], y[1::9]


def of_text(last):
    texts, topics = headlines(230)
    model = make_pipeline(TfidfVectorizer(), last).fit(texts[:200], topics[:200])
    return model, texts[:200], topics[:200], texts[200:215], topics[200:215]


CASES = {
    "iris": lambda: of_features(load_iris, exact()),
    "wine": lambda: of_features(load_wine, exact(C=0.3)),
    "wine, balanced": lambda: of_features(load_wine, exact(class_weight="balanced", C=0.3)),
    "iris, one against the rest": lambda: of_features(load_iris, OneVsRestClassifier(exact(C=0.5))),
    "text": lambda: of_text(exact(C=5)),
    "text, one against the rest": lambda: of_text(OneVsRestClassifier(exact(C=5))),
}


@pytest.fixture(params=list(CASES), scope="module")
def case(request):
    model, X, y, X_new, y_new = CASES[request.param]()
    return Auditor(model, X, y), model, X, y, X_new, y_new


def refit(model, X, y, changes: pd.DataFrame):
    """The model's last step fitted again on its own features, as the audit defines a refit, with labels changed."""
    labels = y.copy()
    labels[changes["train_id"].to_numpy()] = changes["new_label"].to_numpy()
    return clone(model[-1]).fit(model[:-1].transform(X), labels)


def said(model, refitted, row) -> object:
    return refitted.predict(model[:-1].transform(row))[0]


def one(X, i):
    return X[i : i + 1]


def check_robustness(auditor, model, X, y, X_new, y_new):
    """Refits of the model itself at k and k - 1 of every prediction."""
    result = auditor.robustness(X_new, y_new)
    assert (result.predictions["predicted"] == model.predict(X_new)).all()
    np.testing.assert_allclose(result.predictions["probability"], model.predict_proba(X_new).max(axis=1), atol=1e-6)
    assert (result.predictions["status"] == "verified").all()
    assert (result.predictions["k_lower"] <= result.predictions["k"]).all()
    assert result.predictions["k_paper"].isna().all()
    for i, row in result.predictions.iterrows():
        changes = result.flip_sets[result.flip_sets["row_id"] == row["row_id"]]
        assert changes["train_id"].is_unique
        assert (changes["train_label"] != changes["new_label"]).all()
        assert said(model, refit(model, X, y, changes), one(X_new, i)) == row["flips_to"] != row["predicted"]
        assert said(model, refit(model, X, y, changes[:-1]), one(X_new, i)) == row["predicted"]


def test_k_flips_and_one_less_does_not(case):
    check_robustness(*case)


def test_k_flips_and_one_less_does_not_among_ten_digits():
    X, y = load_digits(return_X_y=True)
    model = make_pipeline(StandardScaler(), exact(C=0.003)).fit(X[:600], y[:600])
    check_robustness(Auditor(model, X[:600], y[:600]), model, X[:600], y[:600], X[600:606], y[600:606])


def test_the_wanted_class_leads_with_k_and_not_with_one_less(case):
    auditor, model, X, y, X_new, _ = case
    for i in range(3):
        predicted = model.predict(one(X_new, i))[0]
        for want in model.classes_[model.classes_ != predicted]:
            found = auditor.contest(one(X_new, i), want=want)
            assert (found.predicted, found.wanted, found.status) == (predicted, want, "verified")
            assert not found.any_change
            assert found.k_lower <= found.k == len(found.flip_set)
            refitted = refit(model, X, y, found.flip_set)
            assert said(model, refitted, one(X_new, i)) == want
            after = refitted.predict_proba(model[:-1].transform(one(X_new, i)))[0]
            np.testing.assert_allclose(found.by_class_after, after, atol=1e-5)
            assert said(model, refit(model, X, y, found.flip_set[:-1]), one(X_new, i)) != want


def test_without_a_wish_a_contest_says_what_the_refit_predicts(case):
    auditor, model, X, y, X_new, _ = case
    k = auditor.robustness(X_new[:3]).predictions["k"]
    for i in range(3):
        found = auditor.contest(one(X_new, i))
        assert found.any_change
        assert found.removal is None
        assert found.k == k[i]
        assert said(model, refit(model, X, y, found.flip_set), one(X_new, i)) == found.wanted
        assert max(found.by_class_after) == found.by_class_after[found.classes.index(found.wanted)]


def test_what_is_no_class_or_predicted_already_is_refused(case):
    auditor, model, _, _, X_new, _ = case
    with pytest.raises(RequestError, match="want: got 'nothing'; pass one of the model's classes"):
        auditor.contest(one(X_new, 0), want="nothing")
    with pytest.raises(RequestError, match="predicted already"):
        auditor.contest(one(X_new, 0), want=model.predict(one(X_new, 0))[0])


def test_of_two_classes_the_wanted_one_is_the_other():
    X, y = load_iris(return_X_y=True)
    X, y = X[50:], y[50:]
    auditor = Auditor(exact().fit(X, y), X, y)
    plain, wanted = auditor.contest(X[0]), auditor.contest(X[0], want=2)
    pd.testing.assert_frame_equal(plain.flip_set, wanted.flip_set)
    assert (plain.k, plain.wanted, wanted.any_change) == (wanted.k, 2, True)
    with pytest.raises(RequestError, match="predicted already"):
        auditor.contest(X[0], want=1)


def test_what_is_defined_for_two_classes_is_refused(case):
    auditor, model, X, y, X_new, _ = case
    with pytest.raises(UnsupportedModelError, match=r"removal: got a model of \d classes"):
        auditor.removal(X_new[:1])
    with pytest.raises(UnsupportedModelError, match="pass 'ip-relabel' or 'random'"):
        auditor.rank(one(X_new, 0), "rif")
    with pytest.raises(RequestError, match=r"threshold: got 0\.3"):
        Auditor(model, X, y, threshold=0.3)


def test_the_ranking_begins_like_the_set_against_the_next_class(case):
    auditor, model, _, _, X_new, _ = case
    next_in_line = model.classes_[np.argsort(-model.decision_function(one(X_new, 0))[0])[1]]
    found = auditor.contest(one(X_new, 0), want=next_in_line)
    ranking = auditor.rank(one(X_new, 0))
    strongest = found.flip_set.iloc[0]
    assert ranking.scores.max() == pytest.approx(-strongest["influence"], rel=1e-5)
    assert ranking.scores[int(strongest["train_id"])] == pytest.approx(ranking.scores.max(), rel=1e-5)


def test_only_a_probable_class_is_a_confident_one():
    frame = pd.DataFrame(
        {
            "probability": [0.05, 0.95],
            "k": pd.array([1, 1], "Int64"),
            "k_lower": pd.array([1, 1], "Int64"),
            "fraction": [0.001, 0.001],
            "status": "verified",
            "correct": pd.array([True, True], "boolean"),
            "flips_to": ["a", "b"],
        }
    )
    assert confidence(frame).tolist() == [0.05, 0.95]
    assert summarise(frame)["confident_fragile_share"] == 0.5
    assert summarise(frame.drop(columns="flips_to"))["confident_fragile_share"] == 1.0


@pytest.fixture
def run(store, tmp_path):
    """A logged text model of four topics with its rows on disk."""
    texts, topics = headlines(160)
    frame = pd.DataFrame({"text": texts, "topic": topics})
    frame[:130].to_parquet(tmp_path / "train.parquet", index=False)
    frame[130:].to_parquet(tmp_path / "test.parquet", index=False)
    ids = []
    for last in (LogisticRegression(C=5), OneVsRestClassifier(LogisticRegression(C=5))):
        model = make_pipeline(TfidfVectorizer(), last).fit(texts[:130], topics[:130])
        with mlflow.start_run() as run:
            mlflow.sklearn.log_model(
                model, name="model", pip_requirements=["scikit-learn"], serialization_format="cloudpickle"
            )
        ids.append(run.info.run_id)
    return store, ids, tmp_path


def command(store, *words) -> str:
    done = CliRunner().invoke(main, [*map(str, words), "--tracking-uri", store.tracking_uri], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_runs_of_several_classes_end_to_end(run):
    store, ids, folder = run
    rows = ["--train-data", folder / "train.parquet", "--target", "topic", "--eval-data", folder / "test.parquet"]
    for run_id in ids:
        printed = command(store, "audit", "--run-id", run_id, *rows)
        assert "flips_to" in printed
        assert "k_paper" not in printed
    page = Page(store.fetch(ids[0], "relabel_audit/robustness.html", folder).read_text(encoding="utf-8"))
    assert "the most probable of 4 classes: health, money, sport, travel" in " ".join(page.text.split())
    assert "What they would turn into" in page.text
    predictions = pd.read_parquet(store.fetch(ids[0], "relabel_audit/predictions.parquet", folder))
    assert set(predictions["flips_to"]) <= set(TOPICS)
    summary = json.loads(store.fetch(ids[0], "relabel_audit/summary.json", folder).read_text(encoding="utf-8"))
    assert summary["classes"] == list(TOPICS)
    assert "the most probable of health" in store.fetch(ids[0], "relabel_audit/summary.md", folder).read_text()

    want = next(topic for topic in TOPICS if topic != predictions["predicted"][2])
    printed = command(store, "contest", "--run-id", ids[0], "--row", "2", "--want", want, *rows)
    assert f"labels make it {want} together (verified by refitting)" in printed
    shown = Page(store.fetch(ids[0], f"relabel_audit/contest/2-to-{want}.html", folder).read_text(encoding="utf-8"))
    assert f"it would be {want} if" in shown.text
    assert "defined by the one margin of two classes, and this model has 4" in shown.text
    assert shown.islands["review-data"]["several"] is True

    outcome = compare_runs(ids, tracking_uri=store.tracking_uri)
    assert len(outcome.result.shared) == 30


@pytest.mark.filterwarnings("ignore:.*y_pred.*:FutureWarning")
def test_the_hook_sees_one_against_the_rest(store, tmp_path):
    X, y = load_iris(return_X_y=True)
    autolog(max_predictions=5)
    try:
        with mlflow.start_run() as run:
            model = OneVsRestClassifier(LogisticRegression()).fit(X, y)
            mlflow.sklearn.log_model(
                model, name="model", pip_requirements=["scikit-learn"], serialization_format="cloudpickle"
            )
    finally:
        autolog(disable=True)
    found = pd.read_parquet(store.fetch(run.info.run_id, "relabel_audit/predictions.parquet", tmp_path))
    assert (found["status"] == "verified").all()
    assert set(found["flips_to"]) <= {0, 1, 2}
