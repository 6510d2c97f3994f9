import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from mlflow_relabel_audit.analyses.noise.audit import noise_audit
from mlflow_relabel_audit.analyses.noise.region import disputed_region
from tests.analyses.test_noise import codes, simulated, state


def table(noise, seed=0, n=2000):
    """A linear truth of five features, labels wrong in one region or everywhere, and which are."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 5))
    probability = 1 / (1 + np.exp(-3 * X[:, 0]))
    truth = (rng.random(n) < probability).astype(float)
    inside = (X[:, 1] > 0.4) & (X[:, 2] > 0.4)
    rate = {"region": np.where(inside, 0.4, 0.0), "uniform": np.full(n, 0.1), "none": np.zeros(n)}[noise]
    wrong = rng.random(n) < rate
    return X, np.where(wrong, 1 - truth, truth), wrong, probability, inside


def sought(X, y, given, weight=None, learnt=0.0):
    odds = np.log(given) - np.log1p(-given)
    against = np.where(y > 0.5, -odds, odds)
    return disputed_region(X, given, against, y, np.ones(len(y)) if weight is None else weight, learnt), against


@pytest.mark.parametrize("seed", range(3))
def test_a_region_of_wrong_labels_is_found_and_its_wrong_labels_with_it(seed):
    X, y, wrong, given, inside = table("region", seed)
    found, against = sought(X, y, given)
    assert found.say > 0.5
    assert found.disagreeing > found.expected + 0.1
    assert average_precision_score(wrong, found.place) > average_precision_score(wrong, against) + 0.1
    assert inside[np.argsort(-found.place)[:50]].mean() > 0.8


@pytest.mark.parametrize("noise", ["uniform", "none"])
@pytest.mark.parametrize("seed", range(3))
def test_labels_that_are_wrong_everywhere_or_nowhere_make_no_region(noise, seed):
    X, y, _, given, _ = table(noise, seed)
    if noise == "uniform":
        given = 0.1 + 0.8 * given
    found, _ = sought(X, y, given)
    assert found is None or found.say < 0.5


def test_where_the_less_likely_label_is_the_usual_one_the_form_is_at_fault():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 4))
    turned = (X[:, 1] > 0.3) & (X[:, 2] > 0.3)
    y = ((X[:, 0] > 0) ^ turned).astype(float)
    given = np.where(X[:, 0] > 0, 0.85, 0.15)
    assert sought(X, y, given)[0] is None
    half = np.where(rng.random(2000) < 0.55, y, (X[:, 0] > 0).astype(float))  # as often right as wrong: disputed
    assert sought(X, half, given)[0] is not None


def test_where_learners_gain_more_than_the_excess_the_form_is_at_fault():
    X, y, _, given, _ = table("region")
    found = {learnt: sought(X, y, given, learnt=learnt)[0] for learnt in (0.0, 0.01, 0.2)}
    assert found[0.0].say == found[0.01].say > 0.5
    assert found[0.2] is None


def test_rows_of_weight_zero_teach_no_region():
    X, y, _, given, _ = table("region")
    weight = (np.arange(2000) % 4 > 0).astype(float)
    one, other = (sought(X, labels, given, weight)[0] for labels in (y, np.where(weight > 0, y, 1 - y)))
    assert (one.say, one.disagreeing, one.expected) == (other.say, other.disagreeing, other.expected)


def test_the_audit_looks_for_a_region_where_no_evaluation_rows_tell():
    X, y, wrong, _, _ = table("region", 3, 3000)
    clean, truth, _, _, _ = table("none", 4, 400)
    setting = state(X, y.astype(int))
    found, told = noise_audit(*setting), noise_audit(*setting, clean, truth)
    assert found.evidence.region.say > 0.5
    assert "N011" in codes(found)
    assert average_precision_score(wrong, found.scores["score"]) > 0.6
    assert told.evidence.region is None
    X, y, _, _, _ = simulated(rates=(0.1, 0.1), n=1500)
    assert "N011" not in codes(noise_audit(*state(X, y)))
