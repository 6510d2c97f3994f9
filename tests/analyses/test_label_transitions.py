import numpy as np
import pytest
from scipy.optimize import check_grad

from mlflow_relabel_audit.analyses.noise import label_transitions
from mlflow_relabel_audit.analyses.noise.label_transitions import fit_label_transitions


def simulated(transition, n=3000, seed=0, sharpness=2.0):
    """Log-probabilities, given labels, right labels."""
    rng = np.random.default_rng(seed)
    classes = len(transition)
    logits = sharpness * rng.normal(size=(n, classes))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    chance = np.cumsum(np.asarray(transition)[truth], axis=1)
    given = (rng.random(n)[:, None] > chance).sum(axis=1)
    return log_p, given.astype(float), truth


LEANING = np.array([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.02, 0.03, 0.95]])


def test_the_gradient_is_that_of_the_penalised_likelihood():
    log_p, given, _ = simulated(LEANING, n=60)
    parts = [label_transitions._Labelled.of(log_p, given), label_transitions._Labelled.of(log_p[:20], given[:20])]
    at = 0.5 * np.random.default_rng(1).normal(size=13)
    call = label_transitions._penalised
    assert check_grad(lambda v: call(v, parts, 0.1, 3)[0], lambda v: call(v, parts, 0.1, 3)[1], at) < 1e-4


def test_transitions_that_made_the_labels_are_found():
    log_p, given, truth = simulated(LEANING, n=6000)
    fit = fit_label_transitions(log_p, given, log_p[:2000], truth[:2000].astype(float))
    mean = np.tensordot(fit.weight, fit.transition, axes=1)
    assert np.abs(mean - LEANING).max() < 0.05
    assert fit.transition.sum(axis=2) == pytest.approx(1.0)
    wrong = 1 - fit.true_class(log_p, given)[np.arange(6000), given.astype(int)]
    assert wrong.mean() == pytest.approx((truth != given).mean(), abs=0.01)
    decile = wrong > 0.8
    assert (truth != given)[decile].mean() == pytest.approx(wrong[decile].mean(), abs=0.1)


def test_right_labels_imply_hardly_a_wrong_one():
    log_p, given, _ = simulated(np.eye(4))
    fit = fit_label_transitions(log_p, given)
    share = fit.mean_wrong(log_p, given)
    known = np.isfinite(share)
    assert fit.weight[known] @ share[known] < 0.02


def test_overconfidence_and_a_shift_are_undone():
    log_p, given, _ = simulated(np.eye(3))
    shift = np.array([0.0, 0.6, -0.6])
    fit = fit_label_transitions(3 * log_p + shift, given, 3 * log_p + shift, given)
    slope = fit.weight @ fit.slope
    assert slope == pytest.approx(1 / 3, abs=0.05)
    found = fit.weight @ fit.shift
    assert found - found.mean() == pytest.approx(-shift / 3, abs=0.15)
