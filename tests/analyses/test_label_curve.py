import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlflow_relabel_audit.analyses.noise.label_curve import LabelCurve, fit_label_curve, weighted_quantile
from mlflow_relabel_audit.analyses.noise.two_classes import noise_rate


def drawn(rate0, rate1, n=6000, seed=0, slope=1.0, shift=0.0):
    """Margins, true labels and given labels of the very model the curve assumes."""
    rng = np.random.default_rng(seed)
    margin = 2.0 * rng.normal(size=n)
    true = (rng.random(n) < 1 / (1 + np.exp(-(shift + slope * margin)))).astype(float)
    wrong = rng.random(n) < np.where(true > 0.5, rate1, rate0)
    return margin, true, np.where(wrong, 1 - true, true)


@pytest.mark.parametrize(("rate0", "rate1"), [(0.1, 0.1), (0.02, 0.25), (0.25, 0.02)])
def test_the_rates_are_recovered(rate0, rate1):
    margin, true, label = drawn(rate0, rate1, n=20000, slope=1.5, shift=0.5)
    curve = fit_label_curve(margin, label)
    assert curve.weight @ curve.rate0 == pytest.approx(rate0, abs=0.04)
    assert curve.weight @ curve.rate1 == pytest.approx(rate1, abs=0.04)
    estimate, low, high = noise_rate(curve, margin, label)
    assert low <= np.mean(label != true) <= high
    assert estimate == pytest.approx(np.mean(label != true), abs=0.02)


def test_given_labels_are_expected_as_often_as_they_come():
    margin, _, label = drawn(0.02, 0.25, n=20000, slope=1.5)
    given = fit_label_curve(margin, label).probability_given(margin)
    for low, high in ((-9.0, -3.0), (-1.0, 1.0), (3.0, 9.0)):
        here = (margin > low) & (margin < high)
        assert given[here].mean() == pytest.approx(label[here].mean(), abs=0.03)
    assert given[margin.argmax()] < 0.85  # a quarter of the certain ones is written as 0


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**20),
    st.sampled_from([(0.0, 0.0), (0.1, 0.1), (0.0, 0.3), (0.3, 0.3)]),
    st.integers(60, 3000),
)
def test_within_a_class_the_score_rises_with_the_margin_against_the_label(seed, rates, n):
    margin, _, label = drawn(*rates, n=n, seed=seed)
    score = fit_label_curve(margin, label).probability_wrong(margin, label)
    assert np.all((score >= 0) & (score <= 1))
    for value, sign in ((1.0, -1.0), (0.0, 1.0)):
        rows = label == value
        against = np.argsort(sign * margin[rows], kind="stable")
        assert np.all(np.diff(score[rows][against]) >= -1e-12)


def test_scores_are_probabilities():
    margin, true, label = drawn(0.15, 0.15, n=20000)
    score = fit_label_curve(margin, label).probability_wrong(margin, label)
    for low, high in ((0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        inside = (score > low) & (score <= high)
        assert np.mean((label != true)[inside]) == pytest.approx(score[inside].mean(), abs=0.08)


def test_swapping_the_classes_swaps_the_rates_and_keeps_the_scores():
    margin, _, label = drawn(0.05, 0.2)
    one, other = fit_label_curve(margin, label), fit_label_curve(-margin, 1 - label)
    assert one.weight @ one.rate0 == pytest.approx(other.weight @ other.rate1, rel=1e-3)
    np.testing.assert_allclose(
        one.probability_wrong(margin, label), other.probability_wrong(-margin, 1 - label), atol=1e-3
    )


def test_the_scale_of_the_margin_is_taken_up_by_the_slope():
    margin, _, label = drawn(0.1, 0.1)
    one = fit_label_curve(margin, label).probability_wrong(margin, label)
    other = fit_label_curve(1.5 * margin, label).probability_wrong(1.5 * margin, label)
    np.testing.assert_allclose(one, other, atol=0.02)


def test_clean_rows_narrow_the_rates():
    margin, _, label = drawn(0.2, 0.2, n=3000)
    clean_margin, clean_label, _ = drawn(0.0, 0.0, n=2000, seed=1)
    spreads = []
    for extra in ((), (clean_margin, clean_label)):
        _, low, high = noise_rate(fit_label_curve(margin, label, *extra), margin, label)
        assert low <= 0.2 <= high
        spreads.append(high - low)
    assert spreads[1] < 0.7 * spreads[0]


def test_many_margins_are_interpolated_without_loss():
    margin, _, label = drawn(0.1, 0.1, n=9000)
    curve = fit_label_curve(margin, label)
    every = curve.probability_wrong(margin, label)
    some = np.arange(0, 9000, 10)
    np.testing.assert_allclose(every[some], curve.probability_wrong(margin[some], label[some]), atol=1e-3)


def test_separable_and_constant_margins_do_not_break_the_fit():
    label = np.repeat([0.0, 1.0], 200)
    for margin in (np.where(label > 0.5, 30.0, -30.0), np.zeros(400)):
        score = fit_label_curve(margin, label).probability_wrong(margin, label)
        assert np.all((score >= 0) & (score <= 1))


def test_a_mean_of_certainties_does_not_round_beyond_one():
    margin, label = np.array([-900.0, 900.0]), np.array([1.0, 0.0])
    for seed in range(100):
        weight = np.random.default_rng(seed).random(50)
        rate, ones = np.full(50, 0.1), np.ones(50)
        curve = LabelCurve(rate, rate, 0 * ones, ones, weight / weight.sum(), weight / weight.sum())
        assert curve.probability_wrong(margin, label).max() <= 1.0


def test_weighted_quantile():
    value, weight = np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0])
    assert weighted_quantile(value, weight, 0.1) == 1.0
    assert weighted_quantile(value, weight, 0.5) == 2.0
    assert weighted_quantile(value, weight, 1.0) == 3.0


@pytest.mark.slow
def test_the_interval_covers():
    covered = total = 0
    for seed in range(40):
        for rates in ((0.05, 0.05), (0.15, 0.15), (0.0, 0.15), (0.25, 0.25)):
            margin, true, label = drawn(*rates, n=3000, seed=seed)
            _, low, high = noise_rate(fit_label_curve(margin, label), margin, label)
            covered += low <= np.mean(label != true) <= high
            total += 1
    assert covered / total >= 0.93


@pytest.mark.parametrize("told", [False, True])
def test_only_rows_that_are_certain_of_a_class_tell_its_rate(told):
    """Margins that never are certain of class 1 look like wrong labels of it: without them the classes are alike."""
    one = np.ones(1)
    curve = LabelCurve(0.001 * one, 0.4 * one, 0.0 * one, one, one, one)
    rng = np.random.default_rng(5)
    margin = rng.uniform(-4.0, 2.0, size=1000)
    if told:
        margin[:50] = 4.0
    label = (rng.random(1000) < 0.5).astype(float)
    wrong = stats.rankdata(curve.probability_wrong(margin, label))
    against = stats.rankdata(np.where(label > 0.5, -margin, margin))
    assert abs(wrong - against).max() > 300
    np.testing.assert_allclose(curve.places(margin, label), wrong if told else against)
    np.testing.assert_allclose(curve.places(margin, label, told=True), wrong)  # as evaluation rows do
