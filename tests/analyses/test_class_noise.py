import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_wine, make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from mlflow_relabel_audit import Auditor
from mlflow_relabel_audit.analyses.noise.audit import noise_audit
from mlflow_relabel_audit.analyses.noise.correction import correction
from mlflow_relabel_audit.analyses.noise.injected import noise_curve
from mlflow_relabel_audit.errors import RequestError

NAMES = np.array(["ash", "birch", "cedar"])
MODELS = {
    "softmax": LogisticRegression(),
    "balanced": LogisticRegression(class_weight="balanced"),
    "one against the rest": OneVsRestClassifier(LogisticRegression()),
}


def wine(rate, seed=0, step=None):
    """Training rows with wrong labels, evaluation rows with right ones; which are wrong, and what is right."""
    X, y = load_wine(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    train, held = order[:120], order[120:]
    wrong = rng.random(120) < rate
    given = (y[train] + np.where(wrong, step or rng.integers(1, 3, size=120), 0)) % 3
    return X[train], NAMES[given], X[held], NAMES[y[held]], wrong, NAMES[y[train]]


def codes(result):
    return [finding.code for finding in result.findings]


@pytest.mark.parametrize("name", MODELS)
def test_wrong_labels_are_found_and_the_right_class_suggested(name):
    X, y, X_eval, y_eval, wrong, truth = wine(0.2)
    auditor = Auditor(MODELS[name].fit(X, y), X, y)
    for extra in ((), (X_eval, y_eval)):
        result = auditor.noise(*extra)
        assert average_precision_score(wrong, result.scores["score"]) > 0.95
        suspects = result.suspects
        assert (suspects["suggested_label"] != suspects["label"]).all()
        assert (suspects["suggested_label"].to_numpy() == truth[suspects["train_id"]]).mean() > 0.9
        kept = result.scores[~result.scores["train_id"].isin(suspects["train_id"])]
        assert (kept["suggested_label"] == kept["label"]).all()
        assert ("N005" in codes(result)) == (not extra)
    estimate, low, high = result.noise_rate
    assert low <= wrong.mean() <= high
    assert estimate == pytest.approx(wrong.mean(), abs=0.05)
    assert codes(result)[0] == "N002"


def test_right_labels_are_left_alone():
    X, y, X_eval, y_eval, _, _ = wine(0.0)
    auditor = Auditor(LogisticRegression().fit(X, y), X, y)
    for extra in ((), (X_eval, y_eval)):
        result = auditor.noise(*extra)
        assert result.suspects.empty
        assert codes(result)[0] == "N001"
        assert result.noise_rate[0] < 0.01
    gain = auditor.correction(result, X_eval, y_eval).table.set_index("action").loc["relabel"]
    assert gain["loss_change"] <= 0.005


def test_a_lean_between_two_classes_is_named():
    X, truth = make_blobs(900, centers=3, n_features=4, cluster_std=3.0, random_state=1)
    truth = NAMES[truth]
    wrong = (truth == "ash") & (np.random.default_rng(0).random(900) < 0.4) & (np.arange(900) < 600)
    y = np.where(wrong, "cedar", truth)
    result = Auditor(LogisticRegression().fit(X[:600], y[:600]), X[:600], y[:600]).noise(X[600:], y[600:])
    lean = next(finding for finding in result.findings if finding.code == "N004")
    assert "say cedar where ash is right" in lean.message


def test_relabelling_to_the_suggested_class_is_a_refit_with_it():
    X, y, X_eval, y_eval, _, _ = wine(0.3)
    auditor = Auditor(LogisticRegression().fit(X, y), X, y)
    noise = auditor.noise()
    table = auditor.correction(noise, X_eval, y_eval).table.set_index("action")
    assert table.loc["relabel", "loss_change_high"] < 0
    assert table.loc["relabel", "accuracy_change"] > 0
    with pytest.raises(RequestError, match="evaluation rows"):
        correction(auditor.problem, auditor.rows, auditor.point, X_eval, auditor.problem.encode(y_eval)[1:])


def test_injected_noise_draws_from_every_class():
    X, y, X_eval, y_eval, _, _ = wine(0.0)
    auditor = Auditor(LogisticRegression().fit(X, y), X, y)
    features, truth = auditor.evaluation_rows(X_eval).features, auditor.problem.encode(y_eval)
    state = auditor.problem, auditor.rows, auditor.point, features, truth
    table = noise_curve(*state, levels=(0.0, 0.9), draws=2, predictions=len(y_eval)).table
    estimates = auditor.robustness(X_eval, verify=False).predictions["k_estimate"]
    assert table["k_mean"][0] == pytest.approx(float(estimates.mean()))
    assert table["accuracy"][0] == np.mean(LogisticRegression().fit(X, y).predict(X_eval) == y_eval)
    assert table["accuracy"][1] < table["accuracy"][0]
    other = noise_curve(*state, levels=(0.9,), draws=1, kind="inverted").table
    assert other["accuracy"][0] < 0.4


def test_rare_classes_are_not_judged():
    X, y, _, _, _, _ = wine(0.1)
    keep = (y != "cedar") | (np.cumsum(y == "cedar") <= 6)
    result = Auditor(LogisticRegression().fit(X[keep], y[keep]), X[keep], y[keep]).noise()
    rare = result.scores["label"] == "cedar"
    assert result.scores["score"].isna().equals(rare)
    assert not (result.suspects["label"] == "cedar").any()
    assert "N009" in codes(result)
    keep = (y == "ash") | ((y != "ash") & (np.cumsum(y != "ash") <= 9))
    none = Auditor(LogisticRegression().fit(X[keep], y[keep]), X[keep], y[keep]).noise()
    assert codes(none) == ["N000"]
    assert not none.findings[0].applicable
    assert none.suspects.empty
    assert none.scores["score"].isna().all()


def test_rows_that_do_not_fit_are_refused():
    X, y, X_eval, y_eval, _, _ = wine(0.1)
    auditor = Auditor(LogisticRegression().fit(X, y), X, y)
    state = auditor.problem, auditor.rows, auditor.point
    with pytest.raises(RequestError, match="pass both"):
        noise_audit(*state, X_eval)
    with pytest.raises(RequestError, match="one label per row"):
        noise_audit(*state, X_eval, np.zeros(3))
    with pytest.raises(RequestError, match="encode"):
        noise_audit(*state, X_eval, np.full(len(y_eval), 7.0))


def test_flip_set_counts_stand_beside_the_scores():
    X, y, X_eval, _, _, _ = wine(0.2)
    auditor = Auditor(LogisticRegression().fit(X, y), X, y)
    sets = auditor.robustness(X_eval[:10], verify=False, certify=False).flip_sets
    counts = auditor.noise(flip_sets=sets).scores.set_index("train_id")["flip_set_count"]
    pd.testing.assert_series_equal(
        counts[counts > 0].sort_index(),
        sets["train_id"].value_counts().sort_index(),
        check_names=False,
        check_dtype=False,
    )
