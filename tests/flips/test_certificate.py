"""The certificate: against every set of small problems, and by its properties."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_relabel_audit.curvature import find_stationary_point
from mlflow_relabel_audit.flips.certificate import localisation, prospect
from mlflow_relabel_audit.flips.certificate.bound import Certificate
from mlflow_relabel_audit.flips.order.influence import estimate
from mlflow_relabel_audit.flips.order.response import respond, response_scale
from mlflow_relabel_audit.flips.relabelling import RelabelEffect
from mlflow_relabel_audit.flips.search.prefix import VerifiedSearch
from mlflow_relabel_audit.problem import ClassWeight
from mlflow_relabel_audit.rows import Rows
from tests.flips import exhaustive
from tests.flips.fitting import Fitted, fitted

CASES = int(os.environ.get("RELABEL_EXHAUSTIVE_CASES", "0"))


def view(model: Fitted, X: np.ndarray, dtype: type = np.float64) -> tuple[np.ndarray, ...]:
    """What `lower_bounds` takes, for raw rows X."""
    targets = np.ascontiguousarray(np.array([model.row(x) for x in X]).T)
    margin = model.point.theta @ targets - model.problem.cut
    direction = model.point.curvature.solve(targets)
    toward = np.where(margin > 0, -1.0, 1.0)
    response = model.rows.margins(direction * toward).T
    unit = 2.0**-24 if dtype is np.float32 else 2.0**-50
    rounding = (np.abs(response) / np.sqrt(model.rows.square_norms())).max(axis=1, initial=0.0) * unit
    return margin, response.T.astype(dtype), rounding, np.sqrt(np.einsum("pb,pb->b", targets, direction))


def bounds(model: Fitted, X: np.ndarray, **options: object) -> np.ndarray:
    prepared = Certificate.prepare(model.problem, model.rows, model.point, **options)
    return prepared.lower_bounds(*view(model, X))


def hold(tally: exhaustive.Tally) -> None:
    assert not tally.violations, "\n".join(tally.violations[:10])


class TestEverySet:
    """No set of up to five rows breaks any bound, each refitted exactly."""

    def test_no_bound_is_broken(self) -> None:
        tally = exhaustive.run(0, 60)
        hold(tally)
        assert tally.cases == 60
        assert tally.unattained > 0  # sets without a minimiser are seen, and never covered by a level
        # the bounds are reached, so that a smaller one would be caught
        assert all(tally.worst[name] > 0.999 for name in ("move of a row", "energy", "move of the margin"))
        assert tally.ratio_sum / tally.certified > 0.75

    @pytest.mark.slow
    def test_no_bound_is_broken_in_many(self) -> None:
        hold(exhaustive.run(10_000, CASES or 120))

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("largest_change", lambda whole: lambda *a: 0.5 * whole(*a)),
            ("energy", lambda whole: lambda *a: replace(whole(*a), charge=0.9 * whole(*a).charge)),
            ("knapsack", lambda whole: lambda *a: 0.0),
        ],
    )
    def test_a_weaker_term_is_caught(self, name: str, change: object, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(localisation, name, change(getattr(localisation, name)))
        assert exhaustive.run(0, 60).violations

    def test_a_missing_remainder_is_caught(self, monkeypatch: pytest.MonkeyPatch) -> None:
        survey = prospect.Prospects.survey
        without = lambda *a: replace(survey(*a), tau=0.0 * survey(*a).tau, rest=0.0 * survey(*a).tau)  # noqa: E731
        monkeypatch.setattr(prospect.Prospects, "survey", without)
        assert exhaustive.run(0, 20).violations


class TestPieces:
    def test_kappa_lies_in_its_range(self) -> None:
        rng = np.random.default_rng(0)
        z, rho = rng.uniform(-8, 8, 5000), 10.0 ** rng.uniform(-3, 1.2, 5000)
        delta = rho * rng.uniform(-1, 1, 5000)
        p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-z - delta))
        kappa = (q - p - p * (1 - p) * delta) / (delta * (q - p))
        low, high = localisation.kappa_range(p, rho)
        fine = np.abs(delta) > 1e-3  # below, the quotient of differences has no digits
        assert np.all(kappa[fine] >= low[fine] - 1e-7)
        assert np.all(kappa[fine] <= high[fine] + 1e-7)
        assert np.all(low >= -p)
        assert np.all(high <= 1 - p)

    def test_changes_and_secants_bound_every_move(self) -> None:
        rng = np.random.default_rng(1)
        z, rho, s = rng.uniform(-8, 8, 5000), rng.uniform(0.01, 9, 5000), rng.uniform(0, 3, 5000)
        state = localisation.RowState(z, 1 / (1 + np.exp(-z)), s, s, s, (1.0, 1.0), np.ones(5000), 0.0)
        most, least = localisation.largest_change(s, z, rho), localisation.least_secant(state, rho)
        for share in (-1.0, -0.7, -0.2, 0.1, 0.6, 1.0):
            delta = share * rho
            change = s * delta * (1 / (1 + np.exp(-z - delta)) - 1 / (1 + np.exp(-z)))
            assert np.all(change <= most * (1 + 1e-9) + 1e-15)
            assert np.all(change >= least * delta**2 * (1 - 1e-9) - 1e-15)

    def test_knapsack_is_an_upper_bound_and_nearly_the_optimum(self) -> None:
        rng = np.random.default_rng(2)
        for budget in (0.0, 0.3, 5.0, 1e3):
            worth, limit = rng.uniform(0, 1, 300), rng.uniform(0, 0.1, 300)
            order = np.argsort(-worth)
            filled = np.diff(np.minimum(np.cumsum(limit[order]), budget), prepend=0.0)
            best = float(filled @ worth[order])
            got = localisation.knapsack(worth, limit, budget)
            assert best <= got <= best * 1.01 + 1e-12

    def test_the_largest_are_found_whatever_the_floor(self) -> None:
        rng = np.random.default_rng(3)
        values = np.round(rng.standard_normal(5000), 3)
        best = np.sort(values)[::-1]
        for floor in (-np.inf, -10.0, 0.0, best[39], best[60]):
            for k in (1, 17, 40):
                got = prospect._largest(values, k, floor)
                assert np.array_equal(values[got], best[:k])

    def test_a_survey_is_never_below_the_sum(self) -> None:
        """The remainder at every edge: at least what one prediction's rows add up to, and hardly more."""
        _, response, rounding, norms = view(MODEL, POINTS[:1])
        last = np.array([len(PREPARED.levels) - 1])
        survey = PREPARED.prospects(response, rounding, norms).survey(np.array([0]), last)
        (rows,), p = PREPARED.levels[-1].rows.parts, MODEL.point.probability
        error = rounding[0] * np.sqrt(MODEL.rows.square_norms()) * np.maximum(p, 1 - p)
        worth = np.maximum(-rows.low * response[:, 0], -rows.high * response[:, 0]) + error
        for tau, rest in zip(survey.tau[0, 1:], survey.rest[0, 1:], strict=True):
            exact = np.maximum(worth - tau, 0.0) @ rows.change
            assert exact <= rest <= exact * 1.001 + 1e-6
        assert np.isinf(survey.rest[0, 0])


class TestAgainstTheSearch:
    """Never above the verified k of the prefix search, on problems too large for enumeration."""

    @pytest.mark.parametrize("gram", [False, True])
    @pytest.mark.parametrize(
        "options",
        [
            {"C": 0.01},
            {"C": 10.0},
            {"C": 0.1, "weighted": True, "threshold": 0.3},
            {"C": 0.05, "class_weight": {0: 1.0, 1: 2.5}},
            {"C": 0.1, "sparse": True},
            {"C": 0.01, "kind": "cg", "sparse": True},
            {"C": 0.5, "kind": "dual"},
            {"C": np.inf},
        ],
        ids=str,
    )
    def test_never_above_the_verified_k(self, options: dict, gram: bool) -> None:
        model = fitted(n=400, p=6, seed=3, **options)
        X = np.random.default_rng(5).standard_normal((40, 6))
        features = sp.csr_matrix(X) if model.rows.sparse else X
        evaluation = Rows(features, np.zeros(40), np.ones(40), intercept=model.rows.intercept)
        effect = RelabelEffect.at(model.problem, model.rows, model.point)
        norms = model.point.curvature.row_norms(model.rows)
        prepared = Certificate.prepare(model.problem, model.rows, model.point, gram=gram, row_norms=norms)
        searcher = VerifiedSearch(model.problem, model.rows, model.point, effect, norms)
        (block,) = estimate(model.rows, model.point, effect, evaluation, model.problem)
        error = response_scale(model.rows, block.direction)
        h = np.sqrt(np.einsum("pb,pb->b", block.targets, block.direction))
        response = respond(model.rows, block.direction * block.toward, np.empty((40, 400), dtype=np.float32))
        lower = prepared.lower_bounds(block.margin, response[:, 0].T, error, h)
        found = [f.k for f in searcher.run(block) if f.status == "verified"]
        assert len(found) == 40
        assert np.all(lower <= found)
        assert np.any(lower > 1)

    def test_the_gram_form_is_tighter(self) -> None:
        model = fitted(n=500, p=20, C=0.02, seed=1)
        X = np.random.default_rng(6).standard_normal((60, 20))
        plain, gram = bounds(model, X, gram=False), bounds(model, X, gram=True)
        assert np.all(gram >= plain)
        assert gram.mean() > 1.1 * plain.mean()

    def test_rows_in_blocks_give_the_same_sums(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from mlflow_relabel_audit.flips.certificate import gram

        model = fitted(n=150, p=5, C=0.05)
        X = np.random.default_rng(7).standard_normal((20, 5))
        whole = bounds(model, X, gram=True)
        monkeypatch.setattr(gram, "BLOCK_BYTES", 8 * 150 * 7)
        assert np.array_equal(bounds(model, X, gram=True), whole)


MODEL = fitted(n=250, p=4, C=0.05, seed=2)
PREPARED = Certificate.prepare(MODEL.problem, MODEL.rows, MODEL.point)
POINTS = np.random.default_rng(8).standard_normal((30, 4))


class TestProperties:
    @settings(deadline=None, max_examples=30)
    @given(st.floats(1.0, 5.0), st.integers(0, len(POINTS) - 1))
    def test_a_larger_margin_never_needs_fewer_labels(self, factor: float, t: int) -> None:
        margin, response, rounding, norms = view(MODEL, POINTS[t : t + 1])
        near = PREPARED.lower_bounds(margin, response, rounding, norms)
        far = PREPARED.lower_bounds(margin * factor, response, rounding, norms)
        assert far[0] >= near[0]

    @settings(deadline=None, max_examples=15)
    @given(st.integers(0, 10_000), st.floats(0.01, 100.0))
    def test_scaling_weights_and_penalty_together_changes_nothing(self, seed: int, factor: float) -> None:
        model = fitted(n=60, p=3, C=0.3, seed=seed)
        scaled = replace(
            model,
            problem=replace(model.problem, penalty=model.problem.penalty * factor, theta=model.point.theta),
            rows=Rows(model.X, model.y, model.weight * factor, intercept=model.rows.intercept),
        )
        scaled = replace(scaled, point=find_stationary_point(scaled.problem, scaled.rows))
        before, after = bounds(model, POINTS[:, :3]), bounds(scaled, POINTS[:, :3])
        # rounding may decide a bound that lies on a margin, so one in a hundred may differ by one
        assert np.max(np.abs(before - after)) <= 1
        assert np.mean(before != after) <= 0.1

    @settings(deadline=None, max_examples=15)
    @given(st.integers(0, 10_000))
    def test_weight_two_asks_no_more_labels_than_two_copies(self, seed: int) -> None:
        """Two copies of every row allow what their one row of weight two does, with twice the labels at most."""
        model = fitted(n=50, p=3, C=0.1, seed=seed)
        copies = fitted(X=np.vstack([model.X] * 2), y=np.tile(model.y, 2), C=0.1)
        heavy = replace(
            model,
            problem=copies.problem,
            rows=Rows(model.X, model.y, np.full(50, 2.0), intercept=True),
        )
        heavy = replace(heavy, point=find_stationary_point(heavy.problem, heavy.rows))
        single, double = bounds(heavy, POINTS[:, :3], gram=False), bounds(copies, POINTS[:, :3], gram=False)
        assert np.all(double >= single - 1)  # the grids of boxes differ
        assert double.mean() >= single.mean()

    @settings(deadline=None, max_examples=20)
    @given(st.floats(0.0, 0.5))
    def test_a_wider_error_never_raises_the_bound(self, error: float) -> None:
        margin, response, rounding, norms = view(MODEL, POINTS)
        exact = PREPARED.lower_bounds(margin, response, rounding, norms)
        assert np.all(PREPARED.lower_bounds(margin, response, rounding + error, norms) <= exact)

    def test_the_level_cap_only_caps(self) -> None:
        margin, response, rounding, norms = view(MODEL, POINTS)
        capped = Certificate.prepare(MODEL.problem, MODEL.rows, MODEL.point, max_level=3)
        free = PREPARED.lower_bounds(margin, response, rounding, norms)
        got = capped.lower_bounds(margin, response, rounding, norms)
        assert np.array_equal(got, np.minimum(free, 4))

    def test_float32_costs_next_to_nothing(self) -> None:
        margin, response, rounding, norms = view(MODEL, POINTS)
        wide = PREPARED.lower_bounds(margin, response, rounding, norms)
        narrow = PREPARED.lower_bounds(*view(MODEL, POINTS, np.float32))
        assert np.all(narrow <= wide)
        assert np.mean(narrow < wide) <= 0.1


class TestWhereNothingIsCertified:
    def ones(self, prepared: Certificate, model: Fitted) -> None:
        assert prepared.levels == ()
        got = prepared.lower_bounds(*view(model, POINTS[:5, : model.X.shape[1]]))
        assert got.dtype == np.int64
        assert np.array_equal(got, np.ones(5))

    def test_balanced_class_weights(self) -> None:
        model = fitted(n=80, C=0.1, class_weight="balanced")
        self.ones(Certificate.prepare(model.problem, model.rows, model.point), model)

    def test_a_gradient_that_has_not_vanished(self) -> None:
        model = fitted(n=80, C=0.1)
        rough = replace(model.point, stationarity=replace(model.point.stationarity, residual=0.2))
        self.ones(Certificate.prepare(model.problem, model.rows, rough), model)

    def test_norms_that_are_not_finite(self) -> None:
        model = fitted(n=80, C=0.1)
        norms = np.full(80, np.inf)
        self.ones(Certificate.prepare(model.problem, model.rows, model.point, row_norms=norms), model)

    def test_a_margin_of_zero(self) -> None:
        _, response, rounding, norms = view(MODEL, POINTS)
        assert np.all(PREPARED.lower_bounds(np.zeros(30), response, rounding, norms) == 1)

    def test_no_predictions(self) -> None:
        assert PREPARED.lower_bounds(np.zeros(0), np.zeros((250, 0)), np.zeros(0), np.zeros(0)).shape == (0,)

    def test_two_rows(self) -> None:
        model = fitted(X=np.array([[-1.0], [1.0]]), y=np.array([0.0, 1.0]), C=1.0, fit_intercept=False)
        assert np.all(bounds(model, np.array([[0.5], [2.0]])) >= 1)

    def test_rows_without_weight(self) -> None:
        model = fitted(n=60, p=3, C=0.1)
        weight = np.where(np.arange(60) < 20, 1e-300, 1.0)
        weight[:5] = 0.0
        rows = Rows(model.X, model.y, weight, intercept=True)
        point = find_stationary_point(replace(model.problem, theta=_minimiser(model, weight)), rows)
        light = replace(model, rows=rows, point=point)
        assert np.all(bounds(light, POINTS[:, :3]) >= 1)
        assert np.any(bounds(light, POINTS[:, :3]) > 1)


def test_unequal_class_weights_are_certified() -> None:
    model = fitted(n=300, p=4, C=0.05, class_weight={0: 1.0, 1: 2.0})
    assert model.problem.class_weight == ClassWeight(fixed=(1.0, 2.0))
    assert np.any(bounds(model, POINTS) > 2)


def _minimiser(model: Fitted, weight: np.ndarray) -> np.ndarray:
    X = np.hstack([model.X, np.ones((len(model.X), 1))])
    theta, _ = exhaustive.minimise(X, model.y[None], weight[None], model.problem.penalty, model.point.theta)
    return theta[0]
