import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.naive_bayes import MultinomialNB

from mlflow_relabel_audit.analyses import second_opinion as module
from mlflow_relabel_audit.analyses.foldout import FOLDS, deal_folds
from mlflow_relabel_audit.analyses.second_opinion import naive_bayes, second_opinion, stacked
from mlflow_relabel_audit.rows import Rows, joined


def counted(seed=0, n=400, words=50, lowest=0):
    """Counts whose first words tell the label."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.5).astype(float)
    rate = np.full((n, words), 0.1)
    rate[:, :5] += 0.4 * y[:, None]
    X = rng.poisson(rate).astype(float)
    X[0, 0] = max(X[0, 0], 1) if lowest == 0 else lowest
    return Rows(sp.csr_matrix(X), y, np.ones(n), intercept=True)


def test_naive_bayes_is_scikit_learns_on_the_other_folds():
    rows, trust = counted(), np.random.default_rng(1).random(400)
    found = naive_bayes(rows, trust, seed=3)
    fold, X = deal_folds(rows, 3), rows.features
    for k in range(FOLDS):
        here = fold == k
        model = MultinomialNB(alpha=1.0, fit_prior=False).fit(X[~here], rows.y[~here], sample_weight=trust[~here])
        logs = model.predict_log_proba(X[here])
        np.testing.assert_allclose(found[here], logs[:, 1] - logs[:, 0])


def test_who_is_asked():
    trust = np.ones(400)
    assert second_opinion(counted(), trust)[0] == "naive Bayes"
    assert second_opinion(counted(lowest=-1.0), trust) is None
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.5).astype(float)
    few, many = (Rows(rng.normal(size=(400, p)), y, trust, intercept=True) for p in (3, 201))
    assert second_opinion(few, trust)[0] == "random forest"
    assert second_opinion(many, trust) is None
    both = joined(few, few)
    learner, log_odds = second_opinion(both, np.ones(800))
    assert learner == "random forest"
    assert log_odds.shape == (800,)


def test_the_forest_does_not_see_the_row():
    rng = np.random.default_rng(0)
    y = (rng.random(500) < 0.5).astype(float)
    rows = Rows(rng.normal(size=(500, 3)), y, np.ones(500), intercept=True)
    _, log_odds = second_opinion(rows, np.ones(500))
    assert abs(np.corrcoef(log_odds, y)[0, 1]) < 0.15
    np.testing.assert_array_equal(second_opinion(rows, np.ones(500))[1], log_odds)


def test_huge_features_and_huge_tables_are_taken(monkeypatch):
    monkeypatch.setattr(module, "TREE_ROWS", 100)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 3)) * np.array([1e300, 1.0, 1e-300])
    y = (X[:, 1] > 0).astype(float)
    _, log_odds = second_opinion(Rows(X, y, np.ones(500), intercept=True), np.ones(500))
    assert np.isfinite(log_odds).all()
    assert np.corrcoef(log_odds, y)[0, 1] > 0.7


@pytest.mark.parametrize("helps", [False, True])
def test_an_opinion_is_heard_where_it_predicts_labels(helps):
    rng = np.random.default_rng(2)
    hidden, margin = rng.normal(size=2000), rng.normal(size=2000)
    y = (rng.random(2000) < 1 / (1 + np.exp(-2 * margin - 2 * hidden))).astype(float)
    opinion = hidden if helps else rng.normal(size=2000)
    found = stacked(margin, ("random forest", opinion), y, np.ones(2000))
    assert found.learner == ("random forest" if helps else None)
    if helps:
        assert found.loss < found.loss_alone - 0.1
        np.testing.assert_allclose(found.margin, 2 * margin + 2 * hidden, atol=1.0)
    else:
        assert found.margin is margin


def test_rows_without_trust_have_no_say():
    rng = np.random.default_rng(3)
    margin, opinion = rng.normal(size=1000), rng.normal(size=1000)
    y = (opinion + margin > 0).astype(float)
    trust = (np.arange(1000) < 500).astype(float)
    turned = np.where(trust > 0, y, 1 - y)
    one, other = (stacked(margin, ("naive Bayes", opinion), labels, trust) for labels in (y, turned))
    np.testing.assert_allclose(one.margin, other.margin)
    assert stacked(margin, None, y, trust).margin is margin
