import numpy as np
import scipy.sparse as sp
from sklearn.naive_bayes import MultinomialNB

from mlflow_relabel_audit.analyses.noise import learners as module
from mlflow_relabel_audit.analyses.noise.foldout import FOLDS, deal_folds
from mlflow_relabel_audit.analyses.noise.learners import naive_bayes, other_learners
from mlflow_relabel_audit.rows import Rows, joined


def counted(seed=0, n=400, words=250, lowest=0):
    """Counts whose first words tell the label."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.5).astype(float)
    rate = np.full((n, words), 0.1)
    rate[:, :5] += 0.4 * y[:, None]
    X = rng.poisson(rate).astype(float)
    X[0, 0] = max(X[0, 0], 1) if lowest == 0 else lowest
    return Rows(sp.csr_matrix(X), y, np.ones(n), intercept=True)


def unrelated(seed=0, n=500, features=3):
    """Labels that no feature tells."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.5).astype(float)
    return Rows(rng.normal(size=(n, features)), y, np.ones(n), intercept=True)


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
    trust, tables = np.ones(400), ["boosted stumps", "random forest", "boosted trees"]
    assert list(other_learners(counted(), trust)) == ["naive Bayes"]
    assert other_learners(counted(lowest=-1.0), trust) == {}
    few, many = (unrelated(n=400, features=p) for p in (3, 201))
    assert list(other_learners(few, trust)) == tables
    assert list(other_learners(few, trust, right=True)) == ["random forest"]
    assert other_learners(many, trust) == {}
    sparse = Rows(sp.csr_matrix(few.features), few.y, np.ones(400), intercept=True)
    for name, voice in other_learners(sparse, trust).items():  # encoded categories are a table, too
        np.testing.assert_array_equal(voice, other_learners(few, trust)[name])
    found = other_learners(joined(few, few), np.ones(800))
    assert list(found) == tables
    assert all(voice.shape == (800,) for voice in found.values())


def test_a_large_sparse_table_is_not_made_dense(monkeypatch):
    rows = Rows(sp.csr_matrix(np.abs(unrelated().features)), unrelated().y, np.ones(500), intercept=True)
    assert next(iter(other_learners(rows, np.ones(500)))) == "boosted stumps"
    monkeypatch.setattr(module, "TABLE_BYTES", 4 * 500 * 3 - 1)
    assert list(other_learners(rows, np.ones(500))) == ["naive Bayes"]


def test_trees_do_not_see_the_row():
    rows = unrelated()
    found, again = (other_learners(rows, np.ones(500)) for _ in range(2))
    for name, voice in found.items():
        assert abs(np.corrcoef(voice, rows.y)[0, 1]) < 0.15
        np.testing.assert_array_equal(again[name], voice)


def test_rows_without_trust_teach_no_learner_and_are_judged():
    rng = np.random.default_rng(4)
    X = rng.normal(size=(900, 3))
    y = (X[:, 0] * X[:, 1] > 0).astype(float)
    trust = (np.arange(900) >= 300).astype(float)
    fold = deal_folds(Rows(X, y, np.ones(900), intercept=True), 0)
    table = X.astype(np.float32)
    turned = np.where(trust > 0, y, 1.0 - y)
    for learn in (
        lambda labels: module.forest(table, labels, trust, 5),
        lambda labels: module.boosted(table, labels, trust, fold, module.KINDS["boosted trees"]),
    ):
        one, other = learn(y), learn(turned)
        np.testing.assert_array_equal(one, other)
        assert np.mean((one > 0) == (y > 0.5)) > 0.8


def test_huge_features_and_huge_tables_are_taken(monkeypatch):
    monkeypatch.setattr(module, "TREE_ROWS", 100)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 3)) * np.array([1e300, 1.0, 1e-300])
    y = (X[:, 1] > 0).astype(float)
    found = other_learners(Rows(X, y, np.ones(500), intercept=True), np.ones(500))
    for voice in found.values():
        assert np.isfinite(voice).all()
        assert np.corrcoef(voice, y)[0, 1] > 0.7


def test_stumps_add_up_features_one_by_one():
    """They bend with one feature, and know nothing of two that tell the label only together."""
    rng = np.random.default_rng(5)
    X = rng.normal(size=(1500, 2))
    one, two = (X[:, 0] ** 2 > 0.5).astype(float), (X[:, 0] * X[:, 1] > 0).astype(float)
    for y, lowest, highest in ((one, 0.95, 1.0), (two, 0.4, 0.62)):
        found = other_learners(Rows(X, y, np.ones(1500), intercept=True), np.ones(1500))["boosted stumps"]
        assert lowest < np.mean((found > 0) == (y > 0.5)) <= highest
