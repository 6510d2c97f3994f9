import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mlflow_relabel_audit.analyses.noise.injected import LEVELS, _labels, _refitted, noise_curve
from mlflow_relabel_audit.curvature import find_stationary_point
from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.problem import read_problem
from mlflow_relabel_audit.rows import Rows


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)
    theta = rng.normal(size=5)
    X = rng.normal(size=(1500, 5))
    y = (rng.random(1500) < 1 / (1 + np.exp(-2 * X @ theta))).astype(int)
    model = LogisticRegression(C=1.0, tol=1e-8).fit(X[:1000], y[:1000])
    problem = read_problem(model)
    rows = Rows(X[:1000], y[:1000], np.ones(1000), intercept=True)
    return problem, rows, find_stationary_point(problem, rows), X[1000:], y[1000:]


def test_k_falls_long_before_accuracy_does(setting):
    result = noise_curve(*setting, draws=3, predictions=100)
    table = result.table
    assert table["noise"].tolist() == list(LEVELS)
    assert table["k_mean"].iloc[4] < 0.75 * table["k_mean"].iloc[0]
    assert table["accuracy"].iloc[4] > 0.97 * table["accuracy"].iloc[0]
    for name, mean in (("k", "k_mean"), ("accuracy", "accuracy")):
        assert (table[f"{name}_low"] <= table[mean]).all()
        assert (table[mean] <= table[f"{name}_high"]).all()
    assert table["found_share"].between(0, 1).all()
    assert (result.draws, result.predictions, result.labelled) == (3, 100, 500)
    assert result.findings[0].code == "N010"


def test_without_noise_the_table_holds_the_model_itself(setting):
    _, _, point, X_eval, y_eval = setting
    table = noise_curve(*setting, levels=(0.0,), draws=2).table
    hit = ((X_eval @ point.theta[:-1] + point.theta[-1]) > 0) == y_eval
    assert table["accuracy"][0] == pytest.approx(hit.mean())


def test_inverted_labels_turn_the_model_around(setting):
    table = noise_curve(*setting, levels=(0.0, 0.5, 0.9), draws=2, predictions=50, kind="inverted").table
    assert table["accuracy"][2] < 0.5
    assert table["k_mean"][1] < table["k_mean"][2] < table["k_mean"][0]


def test_a_noisy_refit_is_the_one_scikit_learn_finds(setting):
    problem, rows, point, _, _ = setting
    rng = np.random.default_rng(1)
    labels = _labels(rows, rng.permutation(rows.n), (rng.random(rows.n) < 0.5).astype(float), 0.6)
    _, here = _refitted(problem, rows, point, "primal", labels)
    model = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(rows.features, labels)
    np.testing.assert_allclose(here.theta[:-1], model.coef_[0], atol=1e-4)


def test_labels_are_optional_and_the_rows_stay_as_they_are(setting):
    problem, rows, point, X_eval, _ = setting
    before = rows.y.copy()
    calls = []
    result = noise_curve(
        problem,
        rows,
        point,
        X_eval,
        levels=(0.0, 0.3),
        draws=1,
        progress=lambda done, fits: calls.append((done, fits)),
    )
    assert result.table["accuracy"].isna().all()
    assert result.labelled == 0
    np.testing.assert_array_equal(rows.y, before)
    assert calls == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kind": "loud"}, "'loud'"), ({"levels": (0.5, 1.0)}, "below 1"), ({"levels": ()}, "levels")],
)
def test_requests_that_do_not_fit(setting, options, message):
    with pytest.raises(RequestError, match=message):
        noise_curve(*setting, **options)
    with pytest.raises(RequestError, match="500 evaluation rows and 3 labels"):
        noise_curve(*setting[:4], np.zeros(3))
