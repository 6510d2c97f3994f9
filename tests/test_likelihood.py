"""Laws of the two likelihoods: derivatives, the curvature's order, what proofs ask of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_relabel_audit.likelihood import ClassWeight, Coupled, Likelihood, Separate

LIKELIHOODS = [Separate(), Separate(3), Coupled(3), Coupled(5)]


def matrix(likelihood: Likelihood, c: np.ndarray) -> np.ndarray:
    """W(c) of one row, column by column."""
    return likelihood.product(c[:, None], np.eye(likelihood.outputs))


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.1, 8.0))
def test_derivatives_of_the_loss(likelihood: Likelihood, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    outputs, step = likelihood.outputs, 1e-5
    z, y = spread * rng.standard_normal(outputs), np.array([float(rng.integers(likelihood.classes))])

    def loss(at: np.ndarray) -> float:
        return float(likelihood.loss(at, y).sum())

    def slope(at: np.ndarray) -> np.ndarray:
        return likelihood.probability(at) - likelihood.targets(y)

    c = likelihood.curvature(likelihood.probability(z), np.ones(outputs), z)
    for axis in np.eye(outputs):
        assert (loss(z + step * axis) - loss(z - step * axis)) / (2 * step) == pytest.approx(slope(z) @ axis, abs=1e-8)
        turned = (slope(z + step * axis) - slope(z - step * axis)) / (2 * step)
        assert turned == pytest.approx(likelihood.product(c[:, None], axis[:, None])[:, 0], abs=1e-8)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), level=st.floats(0.05, 1.0))
def test_the_curvature_is_monotone_homogeneous_and_bounded_where_it_falls_short(
    likelihood: Likelihood, seed: int, level: float
) -> None:
    rng = np.random.default_rng(seed)
    outputs = likelihood.outputs
    c, other = 10.0 ** rng.uniform(-4, 1, outputs), 10.0 ** rng.uniform(-4, 1, outputs)
    assert matrix(likelihood, 3.0 * c) == pytest.approx(3.0 * matrix(likelihood, c))
    kappa = (c / other).min()
    least = np.linalg.eigvalsh(matrix(likelihood, c) - kappa * matrix(likelihood, other)).min()
    assert least >= -1e-12 * max(other.max(), c.max())
    short = np.maximum(level * other - c, 0.0).sum()
    for v in rng.standard_normal((20, outputs)):
        reach = np.ptp(v) if likelihood.coupled else np.abs(v).max()
        here, there = (float(v @ matrix(likelihood, weights) @ v) for weights in (c, other))
        assert here >= level * there - short * reach**2 - 1e-12
    away = likelihood.difference(c[:, None], other[:, None], np.eye(outputs))
    assert away == pytest.approx(matrix(likelihood, c) - matrix(likelihood, other))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_norm_of_what_sums_to_zero(seed: int) -> None:
    """Step 3 of the sign proof: ``v' W(c)^+ v = sum v^2 / c`` under a softmax."""
    rng = np.random.default_rng(seed)
    c, v = rng.uniform(0.01, 1.0, 4), rng.standard_normal(4)
    v -= v.mean()
    assert v @ np.linalg.pinv(matrix(Coupled(4), c)) @ v == pytest.approx(float(np.sum(v**2 / c)), rel=1e-8)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_weights_follow_the_labels(likelihood: Likelihood) -> None:
    y = np.array([0.0, 1.0, 1.0, float(likelihood.classes - 1)])
    base, outputs = np.array([1.0, 2.0, 0.5, 1.0]), likelihood.outputs
    values = tuple(np.arange(1.0, (likelihood.classes if likelihood.coupled else 2) + 1.0))
    counts = likelihood.counts(base, y)
    assert counts.sum() == pytest.approx(base @ y if outputs == 1 else base.sum())
    by_class = likelihood.class_weights(ClassWeight(values), counts, base.sum())[..., None]
    found = likelihood.weights(base, by_class, y).reshape(4, outputs)
    expected = (
        np.asarray(values)[y.astype(int), None] if likelihood.coupled else 1.0 + likelihood.targets(y).reshape(4, -1)
    )
    assert found == pytest.approx(np.broadcast_to(base[:, None] * expected, found.shape))
    single = likelihood.cell_weights(base, by_class, y, np.zeros(4, dtype=int))
    assert single == pytest.approx(found)
    balanced = likelihood.class_weights(ClassWeight(values, balanced=True), counts, base.sum())
    sums = (base[:, None] * likelihood.targets(y).reshape(4, -1)).sum(axis=0)
    ones = balanced[:, 0] if likelihood.coupled else balanced[1]
    share = likelihood.classes if likelihood.coupled else 2
    present = sums > 0
    assert (ones[present] * sums[present]) == pytest.approx(base.sum() / share)


def test_probabilities_far_out_stay_finite() -> None:
    z = np.array([800.0, -800.0, 0.0])
    for likelihood in (Separate(3), Coupled(3)):
        assert np.isfinite(likelihood.probability(z)).all()
        assert np.isfinite(likelihood.loss(z, np.array([1.0]))).all()
