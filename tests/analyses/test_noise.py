import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from mlflow_relabel_audit.analyses.noise.audit import flag, noise_audit
from mlflow_relabel_audit.curvature import find_stationary_point
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.problem import read_problem
from mlflow_relabel_audit.rows import Rows

COLUMNS = ["train_id", "label", "suggested_label", "score", "probability_out_of_sample", "flip_set_count"]


def simulated(seed=0, n=2000, features=6, rates=(0.0, 0.0), names=(0, 1), strength=2.0):
    """Features, given labels, which are wrong, and evaluation features and clean 0/1 labels."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=features)
    X = rng.normal(size=(n + 800, features))
    true = (rng.random(n + 800) < 1 / (1 + np.exp(-strength * X @ theta))).astype(int)
    wrong = rng.random(n) < np.where(true[:n] == 1, rates[1], rates[0])
    given = np.where(wrong, 1 - true[:n], true[:n])
    return X[:n], np.asarray(names)[given], wrong, X[n:], true[n:]


def state(X, y, **options):
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000, **options).fit(X, y)
    problem = read_problem(model)
    rows = Rows(X, problem.encode(y), np.ones(len(y)), intercept=problem.intercept)
    return problem, rows, find_stationary_point(problem, rows)


def codes(result):
    return [finding.code for finding in result.findings]


def test_frames_and_summary():
    X, y, _, _, _ = simulated(rates=(0.15, 0.15), names=("ham", "spam"))
    ids = [f"row{i}" for i in range(len(y))]
    counts = np.arange(len(y)) % 7
    result = noise_audit(*state(X, y), row_ids=ids, flip_counts=counts)
    scores, suspects = result.scores, result.suspects
    assert list(scores.columns) == COLUMNS
    assert list(suspects.columns) == [*COLUMNS, "level"]
    assert scores["train_id"].tolist() == ids
    assert scores["label"].tolist() == y.tolist()
    assert scores["flip_set_count"].dtype == pd.Int64Dtype()
    assert scores["flip_set_count"].tolist() == counts.tolist()
    assert scores["score"].between(0, 1).all()
    assert suspects["score"].is_monotonic_decreasing
    assert (suspects["suggested_label"] != suspects["label"]).all()
    assert set(suspects["level"]) <= {"sure", "check"}
    assert (suspects["score"] > 0.5).equals(suspects["level"] == "sure")
    kept = scores[~scores["train_id"].isin(suspects["train_id"])]
    assert (kept["suggested_label"] == kept["label"]).all()
    estimate, low, high = result.noise_rate
    assert low <= estimate <= high
    assert result.summary == {
        "noise_rate": estimate,
        "noise_rate_low": low,
        "noise_rate_high": high,
        "suspect_count": len(suspects),
    }


def test_without_flip_sets_the_count_is_missing():
    X, y, _, _, _ = simulated(n=300)
    result = noise_audit(*state(X, y))
    assert result.scores["flip_set_count"].isna().all()
    assert result.scores["train_id"].tolist() == list(range(300))


@pytest.mark.parametrize("seed", range(3))
def test_a_clean_set_yields_hardly_a_suspect(seed):
    X, y, _, X_eval, y_eval = simulated(seed)
    for extra in ((), (X_eval, y_eval)):
        result = noise_audit(*state(X, y), *extra)
        assert len(result.suspects) <= 0.01 * len(y)
        assert "N001" in codes(result)
        assert result.noise_rate[1] < 0.01


@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.0, 0.2), (0.25, 0.25)])
def test_noise_is_found_and_its_rate_is_inside_the_interval(rates):
    X, y, wrong, X_eval, y_eval = simulated(1, rates=rates)
    result = noise_audit(*state(X, y), X_eval, y_eval)
    assert result.noise_rate[1] <= wrong.mean() <= result.noise_rate[2]
    assert "N002" in codes(result)
    assert ("N004" in codes(result)) == (rates[0] != rates[1])
    flagged = result.suspects["train_id"].to_numpy()
    assert wrong[flagged].mean() > 0.4
    assert average_precision_score(wrong, result.scores["score"]) > 3 * wrong.mean() * 0.7


def test_the_dirty_class_is_learnt_where_the_margin_alone_knows_nothing_of_it():
    X, y, wrong, _, _ = simulated(2, n=4000, rates=(0.0, 0.25), strength=0.7)
    result = noise_audit(*state(X, y))
    margin = result.evidence.out.margin
    symmetric = average_precision_score(wrong, np.where(y == 1, -margin, margin))
    assert average_precision_score(wrong, result.scores["score"]) > symmetric + 0.1
    assert (result.suspects["label"] == 0).mean() > 0.95


def test_shuffling_the_rows_shuffles_the_scores():
    X, y, _, _, _ = simulated(rates=(0.1, 0.2), n=600)
    shuffle = np.random.default_rng(3).permutation(len(y))
    one, other = noise_audit(*state(X, y)), noise_audit(*state(X[shuffle], y[shuffle]))
    np.testing.assert_allclose(other.scores["score"], one.scores["score"].to_numpy()[shuffle], atol=1e-4)


def test_sparse_equals_dense():
    X, y, _, X_eval, y_eval = simulated(rates=(0.1, 0.1), n=600)
    X = X * (np.abs(X) > 0.5)
    dense = noise_audit(*state(X, y), X_eval, y_eval)
    sparse = noise_audit(*state(sp.csr_matrix(X), y), sp.csr_matrix(X_eval), y_eval)
    np.testing.assert_allclose(sparse.scores["score"], dense.scores["score"], atol=1e-4)
    np.testing.assert_allclose(sparse.noise_rate, dense.noise_rate, atol=1e-3)


def test_the_same_seed_gives_the_same_result():
    X, y, _, _, _ = simulated(rates=(0.1, 0.1), n=400)
    one, other = noise_audit(*state(X, y), seed=4), noise_audit(*state(X, y), seed=4)
    pd.testing.assert_frame_equal(one.scores, other.scores)


def test_a_class_with_too_few_rows_is_not_judged():
    X, y, _, _, _ = simulated(n=300)
    y = np.where(np.arange(300) < 5, 1, 0)
    result = noise_audit(*state(X, y))
    assert codes(result) == ["N000"]
    assert not result.findings[0].applicable
    assert "1 of 2 classes have 10 training rows" in result.findings[0].message
    assert result.scores["score"].isna().all()
    assert result.suspects.empty
    assert list(result.suspects.columns) == [*COLUMNS, "level"]
    assert np.isnan(result.noise_rate[0])
    assert "noise_rate" not in result.summary


def test_more_features_than_rows_is_said():
    X, y, _, _, _ = simulated(n=120, features=200)
    assert "N006" in codes(noise_audit(*state(X, y)))


@pytest.mark.parametrize("seed", range(3))
def test_crowded_clean_data_yield_no_more_suspects_than_a_verdict_of_no_noise_has_room_for(seed):
    X, y, _, _, _ = simulated(seed, n=500, features=80, strength=0.25)
    result = noise_audit(*state(X, y))
    assert result.noise_rate[1] < 0.01
    assert len(result.suspects) <= 5
    assert set(result.suspects["level"]) <= {"sure"}


def test_an_interval_from_none_to_much_is_not_called_clean():
    X, y, _, _, _ = simulated(n=500, features=80, strength=0.25)
    result = noise_audit(*state(X, y))
    assert result.noise_rate[2] > 0.1
    assert result.findings[0].code == "N001"
    assert "No evidence of label noise, nor against it" in result.findings[0].message


def test_a_forest_is_heard_where_the_model_has_the_wrong_form():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1500, 4))
    truth = ((X[:, 0] * X[:, 1] > 0) ^ (rng.random(1500) < 0.03)).astype(int)
    wrong = rng.random(1500) < 0.1
    result = noise_audit(*state(X, np.where(wrong, 1 - truth, truth)))
    assert "N008" in codes(result)
    assert result.evidence.others[0] == "random forest"
    assert average_precision_score(wrong, result.scores["score"]) > 0.6  # the linear model knows nothing: 0.1


def test_a_form_that_fits_needs_no_other_learner():
    X, y, _, _, _ = simulated(rates=(0.1, 0.1), n=1500)
    assert "N008" not in codes(noise_audit(*state(X, y)))


def test_evaluation_rows_are_learned_from():
    """A region of which 45 % is labelled wrongly is believed by the training rows, and not by clean ones."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(1200, 5)) + np.where(rng.random(1200) < 0.3, 4.0, 0.0)[:, None]
    truth = (X[:, 0] + 0.3 * rng.normal(size=1200) > 1).astype(int)
    wrong = (X[:, 1] > 2.5) & (rng.random(1200) < 0.45)
    given = np.where(wrong, 1 - truth, truth)
    train = np.arange(1200) < 600
    setting = state(X[train], given[train])
    alone, both = noise_audit(*setting), noise_audit(*setting, X[~train], truth[~train])
    assert len(both.evidence.out.margin) == 1200
    gain = [average_precision_score(wrong[train], found.scores["score"]) for found in (alone, both)]
    assert gain[1] > gain[0] + 0.02
    heard = {name for stack in both.evidence.stacks for name in stack.heard}
    assert heard & {"linear model of evaluation rows", "random forest of evaluation rows"}
    few = noise_audit(*setting, X[~train][:15], truth[~train][:15])
    assert not any("of evaluation rows" in name for stack in few.evidence.stacks for name in stack.heard)


def test_flags():
    wrong = np.concatenate([np.full(10, 0.9), np.full(10, 0.45), np.full(500, 0.001)])
    sure, flagged = flag(wrong)
    assert sure.sum() == 10
    assert flagged.sum() == 20
    vague = np.concatenate([[0.6], np.full(500, 0.3)])
    sure, flagged = flag(vague)
    assert flagged.sum() == sure.sum() == 1


@pytest.mark.parametrize(
    ("extra", "options", "message"),
    [
        ((np.zeros((3, 6)),), {}, "features without labels"),
        ((np.zeros((3, 6)), np.zeros(4)), {}, r"\(3, 6\) and 4 labels"),
        ((np.zeros((3, 6)), np.full(3, 2.0)), {}, "other than 0 and 1"),
        ((), {"row_ids": [1, 2]}, "row_ids: got 2 values for 300"),
        ((), {"flip_counts": [1, 2]}, "flip_counts: got 2 values for 300"),
    ],
)
def test_requests_that_do_not_fit(extra, options, message):
    X, y, _, _, _ = simulated(n=300)
    with pytest.raises(RequestError, match=message):
        noise_audit(*state(X, y), *extra, **options)


@pytest.mark.slow
def test_the_interval_covers_the_rate_of_simulated_sets():
    covered = []
    for seed in range(12):
        rates = [(0.05, 0.05), (0.15, 0.15), (0.0, 0.2)][seed % 3]
        X, y, wrong, X_eval, y_eval = simulated(seed, rates=rates)
        setting = state(X, y)
        for extra in ((), (X_eval, y_eval)):
            _, low, high = noise_audit(*setting, *extra).noise_rate
            covered.append(low <= wrong.mean() <= high)
    assert np.mean(covered) >= 0.85
