"""What is read off a fitted estimator, and what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from mlflow_relabel_audit.errors import RequestError, UnsupportedModelError
from mlflow_relabel_audit.likelihood import Coupled, Separate
from mlflow_relabel_audit.problem import as_matrix, read_problem, supervised_steps, unwrap
from tests.versions import elastic

X, Y = load_breast_cancer(return_X_y=True)
X = StandardScaler().fit_transform(X)[:, :5]


def test_penalty_of_the_intercept_follows_the_solver() -> None:
    free = read_problem(LogisticRegression(C=0.5).fit(X, Y))
    penalised = read_problem(LogisticRegression(C=0.5, solver="liblinear", intercept_scaling=2.0).fit(X, Y))
    bare = read_problem(LogisticRegression(C=0.5, fit_intercept=False).fit(X, Y))
    assert free.penalty.tolist() == [2.0] * 5 + [0.0]
    assert penalised.penalty.tolist() == [2.0] * 5 + [0.5]
    assert bare.penalty.tolist() == [2.0] * 5
    assert (free.intercept, bare.intercept) == (True, False)


def test_no_penalty_is_a_zero_penalty() -> None:
    problem = read_problem(LogisticRegression(C=np.inf).fit(X, Y))
    assert problem.penalty.tolist() == [0.0] * 6


def test_cut_is_the_logit_of_the_threshold() -> None:
    assert read_problem(LogisticRegression().fit(X, Y), threshold=0.25).cut == pytest.approx(-np.log(3.0))
    with pytest.raises(RequestError, match="strictly between 0 and 1"):
        read_problem(LogisticRegression().fit(X, Y), threshold=1.0)


def test_labels_of_any_kind_are_encoded() -> None:
    names = np.where(Y == 1, "yes", "no")
    problem = read_problem(LogisticRegression().fit(X, names))
    assert problem.classes == ("no", "yes")
    assert np.array_equal(problem.encode(names), Y)
    with pytest.raises(RequestError, match=r"\['maybe'\] beside the model's classes \['no', 'yes'\]"):
        problem.encode(["maybe", "yes"])
    with pytest.raises(RequestError, match="1 of 2 are missing"):
        problem.encode([None, "yes"])


def test_class_weights() -> None:
    fixed = read_problem(LogisticRegression(class_weight={0: 2.0}).fit(X, Y)).class_weight
    assert fixed.at(3.0, 10.0).tolist() == [2.0, 1.0]
    balanced = read_problem(LogisticRegression(class_weight="balanced").fit(X, Y)).class_weight
    assert balanced.at(4.0, 10.0) == pytest.approx([10 / 12, 10 / 8])


def test_wrappers_are_unwrapped() -> None:
    inner = LogisticRegression()
    search = GridSearchCV(make_pipeline(StandardScaler(), inner), {"logisticregression__C": [0.1, 1.0]}, cv=2)
    final, transformer = unwrap(search.fit(X, Y))
    assert isinstance(final, LogisticRegression)
    assert transformer is not None
    assert unwrap(make_pipeline("passthrough", inner).fit(X, Y))[1] is None


def test_cross_validated_regularisation_is_the_chosen_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = LogisticRegressionCV(Cs=[0.03, 0.3], cv=3).fit(X, Y)
    assert read_problem(model).penalty[0] == pytest.approx(1.0 / np.ravel(model.C_)[0])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (RidgeClassifier(), "got RidgeClassifier; this audit takes"),
        (LogisticRegression(**elastic(1.0), solver="saga", max_iter=5000), "penalty 'l1'"),
        (LogisticRegression(**elastic(0.5), solver="saga", max_iter=5000), "penalty 'elasticnet'"),
    ],
)
def test_unsupported_models_are_refused_with_a_remedy(model: object, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, Y)  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedModelError, match=message):
        read_problem(model)


def test_unfitted_models_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="not fitted"):
        read_problem(LogisticRegression())


def test_several_classes_have_an_output_each() -> None:
    X, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(X, np.array(["a", "b", "c"])[y])
    problem = read_problem(model)
    assert problem.likelihood == Coupled(3)
    assert problem.classes == ("a", "b", "c")
    assert problem.theta.reshape(3, 5)[:, :4] == pytest.approx(model.coef_)
    assert problem.theta.reshape(3, 5)[:, 4] == pytest.approx(model.intercept_)
    assert problem.penalty.reshape(3, 5).tolist() == [[1.0] * 4 + [0.0]] * 3
    assert problem.encode(["c", "a"]).tolist() == [2.0, 0.0]
    scores = model.decision_function(X[:7])
    assert pytest.approx(model.predict_proba(X[:7])) == problem.probabilities(scores.T).T
    with pytest.raises(RequestError, match="3 classes, whose largest output decides"):
        read_problem(model, threshold=0.3)


def test_one_class_against_the_rest() -> None:
    X, y = load_iris(return_X_y=True)
    model = OneVsRestClassifier(LogisticRegression(solver="liblinear", class_weight={1: 2.0}, C=0.5)).fit(X, y)
    problem = read_problem(model)
    assert problem.likelihood == Separate(3)
    assert problem.class_weight.fixed == (1.0, 2.0)
    assert problem.penalty.tolist() == [2.0] * 15
    scores = np.stack([each.decision_function(X[:7]) for each in model.estimators_])
    assert pytest.approx(model.predict_proba(X[:7])) == problem.probabilities(scores).T
    two = OneVsRestClassifier(LogisticRegression()).fit(X[:100], y[:100])
    assert read_problem(two).likelihood == Separate(1)
    with pytest.raises(UnsupportedModelError, match="OneVsRestClassifier of SVC"):
        read_problem(OneVsRestClassifier(SVC()).fit(X, y))
    with pytest.raises(UnsupportedModelError, match="several labels per row"):
        read_problem(OneVsRestClassifier(LogisticRegression(max_iter=1000)).fit(X, 1 - np.eye(3, dtype=int)[y]))


def test_steps_fitted_on_labels_are_named() -> None:
    model = make_pipeline(StandardScaler(), SelectKBest(k=2), LogisticRegression()).fit(X, Y)
    assert supervised_steps(model[:-1]) == ["selectkbest (SelectKBest)"]
    assert supervised_steps(model[:1]) == []


def test_features_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(RequestError, match="not numeric"):
        as_matrix([["a", "b"]])
    with pytest.raises(RequestError, match="1 value"):
        as_matrix([[1.0, np.nan]])
    with pytest.raises(RequestError, match="1 dimension"):
        as_matrix([1.0, 2.0])


def test_sparse_rows_come_in_one_form_and_the_callers_stay_as_they_are() -> None:
    given = sp.csr_matrix((np.array([1.0, 2.0]), np.array([3, 1]), np.array([0, 2])), shape=(1, 4))
    matrix = as_matrix(given)
    assert matrix.indices.tolist() == [1, 3]
    assert matrix.data.tolist() == [2.0, 1.0]
    assert given.indices.tolist() == [3, 1]
