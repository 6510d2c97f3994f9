"""One decision contested, against scikit-learn refits with the labels changed and with the rows removed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pandas as pd
import pytest

from mlflow_relabel_audit.analyses.contest import ContestResult, contest, shared_features
from mlflow_relabel_audit.analyses.decision import Decision, refitted
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.flips.rankings import rank
from mlflow_relabel_audit.flips.relabelling import Relabelling
from mlflow_relabel_audit.flips.search.flip_set import NOT_FLIPPABLE, UNVERIFIED, VERIFIED, FlipSet
from mlflow_relabel_audit.likelihood import sigmoid
from tests.flips.fitting import Fitted, fitted

GRID = [
    {},
    {"sparse": True, "weighted": True},
    {"fit_intercept": False},
    {"class_weight": {0: 1.0, 1: 3.0}},
    {"class_weight": "balanced"},
    {"threshold": 0.3},
    {"kind": "dual"},
]
X0 = np.array([0.4, -0.3, 0.2, 0.5])


def relabelled(model: Fitted, index: np.ndarray) -> np.ndarray:
    y = model.y.copy()
    y[index] = 1 - y[index]
    return y


def smallest_prefix(model: Fitted, x: np.ndarray) -> FlipSet:
    """The smallest prefix of the influence order whose scikit-learn refit flips the prediction."""
    ranking = rank(model.problem, model.rows, model.point, model.row(x))
    start = float(model.row(x) @ model.point.theta) - model.problem.cut
    for k in range(1, len(model.y)):
        after = model.margin(x, y=relabelled(model, ranking.order[:k]))
        if (after > 0) != (start > 0):
            return FlipSet(
                Relabelling.of_two(model.rows.y, ranking.order[:k]), ranking.scores[ranking.order[:k]], VERIFIED, after
            )
    raise AssertionError("no prefix flips")


def contested(model: Fitted, x: np.ndarray = X0, **options) -> ContestResult:
    flip = options.pop("flip", None) or smallest_prefix(model, x)
    return contest(model.problem, model.rows, model.point, model.row(x), flip=flip, **options)


@pytest.mark.parametrize("options", GRID, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "plain")
def test_the_set_relabelled_and_the_rows_removed_both_flip_a_refit(options):
    model = fitted(**options)
    result = contested(model, k_lower=2, k_paper=pd.NA, k_estimate=0)
    positive = result.margin > 0
    assert result.predicted == float(positive)
    assert result.probability == pytest.approx(model.refit().predict_proba(X0[None])[0, 1], abs=1e-6)
    index = result.flip_set["train_id"].to_numpy()
    after = model.margin(X0, y=relabelled(model, index))
    assert result.k == len(index)
    assert result.margin_after == pytest.approx(after, abs=2e-6)
    assert (result.margin_after > 0) != positive
    assert result.probability_after == pytest.approx(sigmoid(np.array(after + model.problem.cut)), abs=1e-6)
    assert (result.k_lower, result.k_paper, result.k_estimate) == (2, None, None)
    removed = result.removal
    assert removed.found
    assert removed.k == len(removed.removal_set)
    gone = removed.removal_set["train_id"].to_numpy()
    assert removed.margin_after == pytest.approx(model.margin(X0, without=gone), abs=3e-6)
    assert (removed.margin_after > 0) != positive


def test_the_table_adds_up_to_the_estimate():
    model = fitted()
    result = contested(model)
    table = result.flip_set
    columns = ["rank", "train_id", "train_label", "new_label", "influence"]
    assert list(table.columns) == [*columns, "cumulative_margin", "cumulative_probability"]
    assert table["rank"].tolist() == list(range(1, result.k + 1))
    np.testing.assert_allclose(table["cumulative_margin"], result.margin + table["influence"].cumsum(), rtol=1e-12)
    np.testing.assert_allclose(table["cumulative_probability"], sigmoid(table["cumulative_margin"].to_numpy()))
    assert np.all(np.diff(np.abs(table["influence"])) <= 1e-12)
    assert np.all(np.sign(table["influence"]) == -np.sign(result.margin))
    scores = rank(model.problem, model.rows, model.point, model.row(X0)).scores
    np.testing.assert_allclose(np.abs(table["influence"]), scores[table["train_id"]], rtol=1e-9)
    assert np.array_equal(table["train_label"], model.y[table["train_id"]])
    assert np.array_equal(table["new_label"], 1 - model.y[table["train_id"]])
    with pytest.raises(FrozenInstanceError):
        result.k = 3


def test_ids_and_string_labels_are_the_users():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 4))
    y = (X[:, 0] + rng.standard_normal(60) > 0).astype(float)
    model = fitted(X=X, y=y)
    named = replace(model.problem, classes=("ham", "spam"))
    flip = smallest_prefix(model, X0)
    ids = np.array([f"mail-{i}" for i in range(60)])
    result = contest(
        named, model.rows, model.point, model.row(X0), flip=flip, train_ids=ids, row_id="case 7", label="ham"
    )
    assert (result.row_id, result.label, result.classes, result.n_train) == (
        "case 7",
        "ham",
        ("ham", "spam"),
        60,
    )
    assert result.predicted in ("ham", "spam")
    assert result.flip_set["train_id"].tolist() == [f"mail-{i}" for i in flip.index]
    assert set(result.flip_set["train_label"]) <= {"ham", "spam"}
    assert np.all(result.flip_set["train_label"] != result.flip_set["new_label"])
    assert set(result.removal.removal_set["train_id"]) <= set(ids)


def test_without_a_set_there_is_still_a_result():
    model = fitted()
    nothing = FlipSet.empty(NOT_FLIPPABLE)
    result = contested(model, flip=nothing, removal=False)
    assert (result.k, result.margin_after, result.probability_after, result.removal) == (
        None,
        None,
        None,
        None,
    )
    assert result.status == NOT_FLIPPABLE
    assert len(result.flip_set) == 0
    assert result.flip_set["influence"].dtype == np.float64


def test_k_counts_only_what_was_verified():
    model = fitted()
    flip = replace(smallest_prefix(model, X0), status=UNVERIFIED)
    result = contested(model, flip=flip, removal=False)
    assert result.k is None
    assert len(result.flip_set) == len(flip.index)


def test_a_removal_out_of_bounds_is_not_found():
    model = fitted()
    side = contested(model, X0 * 4, max_removed=1).removal
    assert not side.found
    assert side.k is None
    assert side.margin_after is None
    assert len(side.removal_set) == 0


def test_a_margin_that_cannot_be_proved_is_none():
    model = fitted()
    # a row on the decision boundary, with nothing relabelled: no sign can be proved
    weights = model.point.theta[:4]
    x = X0 - weights * float(model.row(X0) @ model.point.theta) / float(weights @ weights)
    decision = Decision.on(model.problem, model.point.theta, model.row(x))
    assert refitted(model.problem, model.rows, model.point, decision, Relabelling.none()) is None


def test_requests_that_do_not_fit_say_why():
    model = fitted()
    flip = FlipSet.empty(NOT_FLIPPABLE)
    with pytest.raises(RequestError, match=r"shape \(4,\) for a model of 5"):
        contest(model.problem, model.rows, model.point, X0, flip=flip)
    with pytest.raises(RequestError, match="got 3 training ids for 150"):
        contest(model.problem, model.rows, model.point, model.row(X0), flip=flip, train_ids=[1, 2, 3])


@pytest.mark.parametrize("sparse", [False, True])
def test_shared_features_are_the_parts_of_the_pull(sparse):
    model = fitted(sparse=sparse)
    x = np.array([1.0, 0.0, -0.5, 2.0])
    names = ["a", "b", "c", "d"]
    index = np.arange(12)
    part = model.rows.take(index)
    u = model.point.curvature.solve(model.row(x))
    dense = part.toarray() if sparse else part
    for features, row in zip(shared_features(model.point, model.row(x), part, names), dense, strict=True):
        pulls = u * row
        sign = 1.0 if pulls.sum() >= 0 else -1.0
        expected = {n: sign * v for n, v in zip(names, pulls[:4], strict=True) if sign * v > 0}
        assert {f.name for f in features} == set(expected)
        assert [f.name for f in features] == sorted(expected, key=lambda n: -expected[n])
        for f in features:
            assert f.share == pytest.approx(expected[f.name] / np.abs(pulls[:4]).sum())
            assert f.shared == (f.name != "b")
    top = shared_features(model.point, model.row(x), part, names, top=1)
    assert max(len(features) for features in top) == 1
    with pytest.raises(RequestError, match="got 2 names"):
        shared_features(model.point, model.row(x), part, ["a", "b"])
