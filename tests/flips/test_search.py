"""Every verified k is confirmed by scikit-learn refits, and refuted at k - 1."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.preprocessing import StandardScaler

from mlflow_relabel_audit import Auditor
from mlflow_relabel_audit.analyses.robustness import RobustnessResult
from mlflow_relabel_audit.errors import RelabelAuditError
from mlflow_relabel_audit.flips.order.influence import estimate
from mlflow_relabel_audit.flips.refit.exact import exact_margin
from mlflow_relabel_audit.flips.refit.simultaneous import RefitBlock
from mlflow_relabel_audit.flips.relabelling import RelabelEffect, Relabelling
from mlflow_relabel_audit.flips.search.prefix import VerifiedSearch
from tests.flips.fitting import Fitted, fitted

X, Y = load_breast_cancer(return_X_y=True)
X = StandardScaler().fit_transform(X)
NOISY = Y ^ (np.random.default_rng(0).random(len(Y)) < 0.1)


def tight(model: object) -> LogisticRegression:
    """The same estimator, unfitted, at tight tolerance; a searched C stays what it was."""
    if isinstance(model, LogisticRegressionCV):
        return LogisticRegression(C=float(np.ravel(model.C_)[0]), tol=1e-11, max_iter=100_000)
    return clone(model).set_params(tol=1e-11, max_iter=100_000)  # type: ignore[no-any-return]


def confirm(
    result: RobustnessResult, model: object, train: Any, y: np.ndarray, rows: Any, sample: int,
    weight: np.ndarray | None = None, threshold: float = 0.5,
) -> int:  # fmt: skip
    """Refit scikit-learn's estimator at k and at k - 1 of each order; returns how many rows were confirmed."""
    cut = np.log(threshold / (1 - threshold))
    classes = np.unique(y)
    checked = 0
    for t in np.random.default_rng(0).permutation(rows.shape[0])[:sample]:
        prediction = result.predictions.iloc[t]
        if prediction["status"] != "verified":
            continue
        members = result.flip_sets.query("row_id == @t")["train_id"].to_numpy()
        assert len(members) == prediction["k"]
        for size, flips in ((len(members), True), (len(members) - 1, False)):
            labels = y.copy()
            chosen = members[:size]
            labels[chosen] = np.where(y[chosen] == classes[0], classes[1], classes[0])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                refit = tight(model).fit(train, labels, sample_weight=weight)
            after = float(refit.decision_function(rows[t : t + 1])[0]) - cut
            assert ((after > 0) != (prediction["margin"] > 0)) == flips, (t, size, after)
        checked += 1
    return checked


VARIANTS = {
    "lbfgs": LogisticRegression(C=0.1),
    "newton-cg": LogisticRegression(C=0.1, solver="newton-cg"),
    "newton-cholesky": LogisticRegression(C=0.1, solver="newton-cholesky"),
    "sag": LogisticRegression(C=0.02, solver="sag", max_iter=20_000),
    "saga": LogisticRegression(C=0.02, solver="saga", max_iter=20_000),
    "liblinear": LogisticRegression(C=0.1, solver="liblinear", intercept_scaling=2.0),
    "no intercept": LogisticRegression(C=0.1, fit_intercept=False),
    "class weights": LogisticRegression(C=0.1, class_weight={0: 3.0, 1: 1.0}),
    "balanced": LogisticRegression(C=0.1, class_weight="balanced"),
    "strong": LogisticRegression(C=1e-3),
    "weak": LogisticRegression(C=10.0),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_every_variant_is_confirmed_by_its_own_refits(name: str, weighted: bool) -> None:
    weight = np.random.default_rng(1).uniform(0.5, 2.0, 300) if weighted else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = VARIANTS[name].fit(X[:300], NOISY[:300], sample_weight=weight)
    result = Auditor(model, X[:300], NOISY[:300], weight).robustness(X[300:340], certify=False)
    assert (result.predictions["status"] == "verified").all()
    sample = 3 if name in ("sag", "saga") else 8
    assert confirm(result, model, X[:300], NOISY[:300], X[300:340], sample, weight) == sample


def test_unpenalised_named_labels_and_a_threshold() -> None:
    train, labels = X[:300, :4], np.where(NOISY[:300] == 1, "good", "bad")
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(train, labels)
    result = Auditor(model, train, labels, threshold=0.7).robustness(X[300:340, :4], certify=False)
    assert confirm(result, model, train, labels, X[300:340, :4], 10, threshold=0.7) == 10
    assert set(result.flip_sets["new_label"]) == {"good", "bad"}


def test_cross_validated_regularisation() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = LogisticRegressionCV(Cs=[0.01, 0.1], cv=3).fit(X[:300], NOISY[:300])
    result = Auditor(model, X[:300], NOISY[:300]).robustness(X[300:320], certify=False)
    assert confirm(result, model, X[:300], NOISY[:300], X[300:320], 5) == 5


@pytest.mark.slow
def test_breast_cancer_whole() -> None:
    """Confident predictions (margins to 12) of a nearly separable set: every k confirmed."""
    model = LogisticRegression().fit(X[:400], Y[:400])
    result = Auditor(model, X[:400], Y[:400]).robustness(X[400:], Y[400:], certify=False)
    assert result.summary["flippable_share"] == 1.0
    assert confirm(result, model, X[:400], Y[:400], X[400:], 169) == 169
    found = result.predictions.dropna(subset=["k_paper"])
    assert found["k"].mean() <= found["k_paper"].mean()


def test_dense_sparse_and_float32_agree() -> None:
    import scipy.sparse as sp

    train = np.round(X[:300], 2) * (np.abs(X[:300]) > 0.5)
    rows = np.round(X[300:340], 2)
    model = LogisticRegression(C=0.1, tol=1e-10, max_iter=5000).fit(train, NOISY[:300])
    dense = Auditor(model, train, NOISY[:300]).robustness(rows, certify=False).predictions
    sparse = (
        Auditor(model, sp.csr_matrix(train), NOISY[:300]).robustness(sp.csr_matrix(rows), certify=False).predictions
    )
    assert dense["k"].equals(sparse["k"])
    for kind in ("primal", "dual", "cg"):
        forced = Auditor(model, train, NOISY[:300], curvature=kind).robustness(rows, certify=False).predictions
        assert dense["k"].equals(forced["k"]), kind


def test_adaptive_sets_are_never_larger_and_confirmed() -> None:
    model = LogisticRegression().fit(X[:300], NOISY[:300])
    auditor = Auditor(model, X[:300], NOISY[:300])
    prefix = auditor.robustness(X[300:340], certify=False)
    adaptive = auditor.robustness(X[300:340], certify=False, search="adaptive")
    assert (adaptive.predictions["k"] <= prefix.predictions["k"]).all()
    assert adaptive.predictions["k"].sum() < prefix.predictions["k"].sum()
    assert confirm(adaptive, model, X[:300], NOISY[:300], X[300:340], 12) == 12


def test_what_cannot_flip_is_said() -> None:
    """One feature, no intercept: relabelling every row only turns the weight, and a row at zero never moves."""
    train = np.linspace(0.5, 2.0, 30)[:, None]
    labels = np.r_[np.zeros(3), np.ones(27)]
    model = LogisticRegression(fit_intercept=False, tol=1e-10).fit(train, labels)
    result = Auditor(model, train, labels, threshold=0.2).robustness(np.array([[1e-9]]), certify=False)
    assert result.predictions["status"].tolist() == ["not_flippable"]
    assert result.predictions["k"].isna().all()
    assert result.summary["flippable_share"] == 0.0


def _exact(model: Fitted, relabelled: Relabelling, x: np.ndarray) -> float:
    return exact_margin(model.problem, model.rows, model.point, relabelled, model.point.theta, x)[0]


@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 2.0, 1: 0.5}])
@pytest.mark.parametrize("far", [1.0, 4.0])
def test_proved_intervals_hold_the_exact_margin(class_weight: object, far: float) -> None:
    """The theorem, not only its use: after every iteration the refitted margin lies within the stated error."""
    model = fitted(n=200, p=6, C=1.0, class_weight=class_weight, noise=1.0)
    rng = np.random.default_rng(3)
    evaluation = model.evaluation(far * rng.standard_normal((12, 6)))
    effect = RelabelEffect.at(model.problem, model.rows, model.point)
    (block,) = estimate(model.rows, model.point, effect, evaluation, model.problem)
    state = RefitBlock(model.problem, model.rows, model.point, effect, model.point.curvature.row_norms(model.rows), 12)
    sets = [Relabelling.of_two(model.rows.y, rng.choice(200, size, replace=False)) for size in rng.integers(1, 40, 12)]
    slots = np.arange(12)
    state.load(slots, block.targets, block.direction, np.abs(model.rows.margins(block.direction)).T * 1.0001)
    state.relabel(slots, sets)
    exact = np.array([_exact(model, sets[t], block.targets[:, t]) for t in range(12)])
    tightest = []
    for step in range(8):
        state.condition(slots)
        estimated, error = state.prove()
        assert np.all(np.abs(estimated - exact) <= error)
        tightest.append(float(np.median(error)))
        state.descend()
        if step in (1, 4):  # judged without a solve, by how far the relabelled rows can have moved the gradient
            fewer = [part.first(len(part) - 1) for part in sets]
            state.condition(slots)
            state.relabel(slots, fewer)
            estimated, error = state.prove()
            nearby = np.array([_exact(model, part, block.targets[:, t]) for t, part in enumerate(fewer)])
            assert np.all(np.abs(estimated - nearby) <= error)
            state.relabel(slots, sets)
        if step == 2:  # own references, one that follows few rows and ones that follow most
            for t in range(0, 12, 2):
                state.refresh(t, 20 if t == 0 else 150)
    assert tightest[-1] < 1e-3


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 30),
    p=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    light=st.booleans(),
    duplicated=st.booleans(),
    intercept=st.booleans(),
)
def test_odd_numbers_give_an_answer_or_a_named_error(
    n: int, p: int, seed: int, scale: float, light: bool, duplicated: bool, intercept: bool
) -> None:
    rng = np.random.default_rng(seed)
    train = scale * rng.standard_normal((n, p))
    if duplicated:
        train[:, -1] = 1.0
        train[n // 2 :] = train[: n - n // 2]
    labels = (rng.random(n) < 0.5).astype(int)
    labels[:2] = (0, 1)
    weight = np.where(rng.random(n) < 0.3, 1e-300, 1.0) if light else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(fit_intercept=intercept, tol=1e-10, max_iter=2000).fit(
            train, labels, sample_weight=weight
        )
    rows = scale * rng.standard_normal((5, p))
    try:
        result = Auditor(model, train, labels, weight).robustness(rows, certify=False)
    except RelabelAuditError:
        return
    frame = result.predictions
    assert frame["status"].isin(["verified", "unverified", "not_flippable"]).all()
    verified = frame["status"] == "verified"
    assert frame.loc[verified, "k"].between(1, n).all()
    assert frame.loc[~verified, "k"].isna().all()


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_a_set_depends_on_its_prediction_alone(class_weight):
    model = LogisticRegression(C=0.05, class_weight=class_weight, tol=1e-10, max_iter=10_000).fit(X[:400], NOISY[:400])
    auditor = Auditor(model, X[:400], NOISY[:400], sample_weight=None, threshold=0.4)
    model_parts = auditor.fitted
    evaluation = auditor.evaluation_rows(X[400:])

    def sets(width: int) -> list[list[int]]:
        search = VerifiedSearch(
            auditor.problem, auditor.rows, auditor.point, model_parts.effect, model_parts.row_norms, width=width
        )
        blocks = estimate(auditor.rows, auditor.point, model_parts.effect, evaluation, auditor.problem, 2 * width)
        return [found.index.tolist() for block in blocks for found in search.run(block)]

    together = sets(64)
    assert sets(7) == together
    assert sets(1) == together


def test_forms_of_the_curvature_find_the_same_sets_in_wide_sparse_rows() -> None:
    rng = np.random.default_rng(6)
    words = sp.csr_matrix((rng.random((400, 1200)) < 0.01).astype(float))
    labels = (words[:, :30].sum(axis=1).A1 + rng.standard_normal(400) > 0.3).astype(int)
    model = LogisticRegression(C=0.05, tol=1e-10, max_iter=10_000).fit(words[:360], labels[:360])
    found = [
        Auditor(model, words[:360], labels[:360], curvature=kind).robustness(words[360:], certify=False)
        for kind in ("primal", "dual", "cg")
    ]
    assert (found[0].predictions["status"] == "verified").all()
    for other in found[1:]:
        assert other.predictions["k"].tolist() == found[0].predictions["k"].tolist()
        assert other.flip_sets["train_id"].tolist() == found[0].flip_sets["train_id"].tolist()
    assert confirm(found[0], model, words[:360], labels[:360], words[360:], sample=12) == 12
