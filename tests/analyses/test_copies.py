import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from mlflow_relabel_audit.analyses.noise import learners
from mlflow_relabel_audit.analyses.noise.audit import noise_audit
from mlflow_relabel_audit.analyses.noise.copies import STRENGTHS, _platt, copies, pool_copies
from mlflow_relabel_audit.analyses.noise.two_classes import label_evidence
from mlflow_relabel_audit.curvature import find_stationary_point
from mlflow_relabel_audit.problem import read_problem
from mlflow_relabel_audit.rows import Rows, joined


def rows_of(X, y, weight=None):
    return Rows(X, np.asarray(y, dtype=float), np.ones(len(y)) if weight is None else weight, intercept=True)


def drawn(seed=0, distinct=60, n=600, agree=0.95):
    """Rows drawn from a few distinct ones, each with a label of its own that the features do not explain."""
    rng = np.random.default_rng(seed)
    kinds = rng.normal(size=(distinct, 4))
    own = rng.random(distinct) < 0.5
    which = rng.integers(0, distinct, n)
    y = np.where(rng.random(n) < agree, own[which], ~own[which]).astype(float)
    return kinds[which], y, which


@pytest.mark.parametrize("sparse", [False, True])
def test_copies_are_found_wherever_they_stand(sparse):
    X, _, _ = drawn(n=3000)
    X = np.where(np.abs(X) > 0.5, X * 1e6, 0.0)
    parts = [sp.csr_matrix(part) if sparse else part for part in (X[:2000], X[2000:])]
    number = copies(joined(*(rows_of(part, np.zeros(part.shape[0])) for part in parts)))
    _, want = np.unique(X, axis=0, return_inverse=True)
    pairs = set(zip(number.tolist(), want.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(number)) == want.max() + 1


def test_rows_that_nearly_agree_are_not_copies():
    X = np.ones((3, 2))
    X[1, 0] += 1e-6
    number = copies(rows_of(X, np.zeros(3)))
    assert number[0] == number[2] != number[1]


def test_the_pooled_odds_are_those_of_counts_and_a_beta_prior():
    X, y, which = drawn()
    margin = y + np.random.default_rng(1).normal(size=len(y))
    pooled = pool_copies(rows_of(X, y), margin)
    shift, slope = _platt(margin, y)
    assert pooled.strength in STRENGTHS
    assert pooled.repeated == len(y)
    for i in (0, 17, 599):
        others = (which == which[i]) & (np.arange(len(y)) != i)
        p = 1 / (1 + np.exp(-shift - slope * margin[i]))
        want = (pooled.strength * p + y[others].sum()) / (pooled.strength + others.sum())
        assert 1 / (1 + np.exp(-pooled.margin[i])) == pytest.approx(want)


def test_certain_margins_leave_finite_odds():
    X, y, _ = drawn()
    pooled = pool_copies(rows_of(X, y), 1e4 * (y - 0.5))
    assert np.isfinite(pooled.margin).all()
    mixed = pool_copies(rows_of(X, y), np.where(np.arange(len(y)) % 7 == 0, 1e5, 0.0) * (y - 0.5))
    assert np.isfinite(mixed.margin).all()


def test_a_row_does_not_hear_its_own_label():
    X, y, _ = drawn()
    margin = np.zeros(len(y))
    turned = y.copy()
    turned[5] = 1 - turned[5]
    one, other = (pool_copies(rows_of(X, labels), margin) for labels in (y, turned))
    assert one.strength == other.strength
    assert other.margin[5] == pytest.approx(one.margin[5], abs=0.05)  # but for the calibration of all
    assert abs(other.margin - one.margin).max() > 0.05


def test_rows_of_weight_zero_have_no_say():
    X, y, _ = drawn()
    silent = np.arange(len(y)) >= 300
    weight = np.where(silent, 0.0, 1.0)
    margin = np.zeros(len(y))
    one = pool_copies(rows_of(X, y, weight), margin)
    other = pool_copies(rows_of(X, np.where(silent, 1 - y, y), weight), margin)
    assert one.strength < np.inf
    np.testing.assert_allclose(one.margin, other.margin)


def test_copies_that_agree_no_more_than_the_model_expects_change_nothing():
    rng = np.random.default_rng(3)
    X = rng.integers(0, 3, size=(800, 2)).astype(float)
    margin = X @ np.array([1.0, -1.0])
    y = (rng.random(800) < 1 / (1 + np.exp(-margin))).astype(float)
    pooled = pool_copies(rows_of(X, y), margin)
    assert pooled.strength >= 30
    alone = pool_copies(rows_of(rng.normal(size=(800, 2)), y), margin)
    assert alone.strength == np.inf
    assert alone.repeated == 0
    assert alone.margin is margin


def test_wrong_labels_among_copies_are_found_though_the_model_is_blind():
    X, y, _ = drawn(seed=4, distinct=300, n=1500, agree=1.0)
    wrong = np.random.default_rng(5).random(len(y)) < 0.1
    given = np.where(wrong, 1 - y, y)
    model = LogisticRegression(C=1.0, tol=1e-8).fit(X, given)
    problem = read_problem(model)
    rows = Rows(X, problem.encode(given), np.ones(len(y)), intercept=True)
    result = noise_audit(problem, rows, find_stationary_point(problem, rows))
    assert average_precision_score(wrong, result.scores["score"]) > 0.6
    margin = result.evidence.out.margin
    assert average_precision_score(wrong, np.where(given == 1, -margin, margin)) < 0.4


def test_rows_without_a_say_do_not_choose_the_strength():
    """Copies that are wrong together in the rows that are judged for nothing, and right in those that count."""
    X, y, _ = drawn()
    counts = np.arange(len(y)) >= 300
    margin = np.zeros(len(y))
    one = pool_copies(rows_of(X, y), margin, counts.astype(float))
    assert one.strength < np.inf
    assert pool_copies(rows_of(X, y), margin, np.zeros(len(y))).strength == np.inf


def test_copies_have_a_voice_and_not_the_last_word(monkeypatch):
    """Where copies are wrong together in one place, the audited kind of model still has its say."""
    monkeypatch.setattr(learners, "TABLE_BYTES", 0)
    rng = np.random.default_rng(7)
    X = rng.integers(0, 5, size=(1500, 3)) - 2.0  # sparse, not to be made dense, and below 0: no other learner is asked
    truth = (X[:, 0] + 0.5 * rng.normal(size=1500) > -0.5).astype(float)
    wrong = (X[:, 0] == 2) & (X[:, 1] == 2) & (rng.random(1500) < 0.45)
    given = np.where(wrong, 1 - truth, truth)
    problem = read_problem(LogisticRegression(C=1.0, tol=1e-8).fit(X, given))
    rows = Rows(sp.csr_matrix(X), problem.encode(given), np.ones(1500), intercept=True)
    evidence = label_evidence(problem, rows, find_stationary_point(problem, rows))
    pooled = pool_copies(rows, evidence.out.margin)
    assert pooled.strength < np.inf
    assert evidence.others == ()
    believed = average_precision_score(wrong, np.where(given == 1, -pooled.margin, pooled.margin))
    assert average_precision_score(wrong, evidence.wrong) > believed + 0.05
