import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from mlflow_relabel_audit import Auditor

NAMES = np.array(["high", "low", "mid"])


def world(share=0.0, n=1500, seed=0, names=NAMES, **options):
    """Rows of three classes and two groups; a share of group b's `high` is written as `low` in training."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4))
    group = np.where(rng.random(n) < 0.35, "b", "a")
    X = np.column_stack([X, group == "b", X * (group == "b")[:, None]])
    y = (1.2 * X[:, :4] @ rng.normal(size=(4, 3)) + rng.gumbel(size=(n, 3))).argmax(axis=1)
    train = np.arange(n) < 1000
    given = np.where(train & (group == "b") & (y == 0) & (rng.random(n) < share), 1, y)
    model = LogisticRegression(tol=1e-8, max_iter=2000, **options).fit(X[train], names[given[train]])
    auditor = Auditor(model, X[train], names[given[train]])
    result = auditor.robustness(X[~train], names[y[~train]], verify=False, certify=False)
    groups = [pd.Series(group[part], name="g") for part in (train, ~train)]
    return auditor, X[~train], names[y[~train]], groups, result


def audited(*setting, permutations=199, **options):
    auditor, X, y, (of_train, of_eval), result = setting
    return auditor.bias(of_train, X, y, of_eval, result=result, permutations=permutations, **options)


def test_labels_changed_for_one_group_are_named():
    found = audited(*world(0.6))
    alarms = [finding for finding in found.findings if finding.code == "B001" and finding.applicable]
    assert any("g b" in f.message and "b rows labelled low" in f.message and "missed high" in f.message for f in alarms)
    assert {"all", "misclassified", "predicted low", "missed high", "wrongly low"} <= set(found.groups["outcome"])
    assert found.summary["bias_alarms"] >= 1
    assert found.summary["bias_max_excess"] > 0.05


@pytest.mark.parametrize("options", [{}, {"class_weight": "balanced"}], ids=["plain", "balanced"])
def test_right_labels_raise_no_alarm(options):
    found = audited(*world(0.0, **options))
    assert found.summary["bias_alarms"] == 0
    everyone = found.by_class[found.by_class["group"] == "(all)"]
    assert everyone["excess"].abs().max() < 0.06  # balanced weights are taken off the probabilities
    assert everyone["predicted_rate"].sum() == pytest.approx(1.0)
    assert len(found.by_class) == 9


def test_figures_of_each_class_agree_with_fairlearn():
    fairlearn = pytest.importorskip("fairlearn.metrics")
    setting = world(0.3)
    found, predictions = audited(*setting, permutations=39), setting[-1].predictions
    group = setting[3][1].to_numpy()
    rates = {
        "selection_rate": fairlearn.selection_rate,
        "false_positive_rate": fairlearn.false_positive_rate,
        "false_negative_rate": fairlearn.false_negative_rate,
    }
    for name in NAMES:
        frame = fairlearn.MetricFrame(
            metrics=rates,
            y_true=(predictions["label"] == name).astype(int),
            y_pred=(predictions["predicted"] == name).astype(int),
            sensitive_features=group,
        )
        for level in ("a", "b"):
            row = found.by_class[(found.by_class["class"] == name) & (found.by_class["group"] == level)].iloc[0]
            for rate in rates:
                assert row[rate] == pytest.approx(frame.by_group.loc[level, rate])
    overall = found.by_group_k.set_index("group")
    right = (predictions["label"] == predictions["predicted"]).to_numpy(dtype=float)
    assert overall.loc["a", "accuracy"] == pytest.approx(right[group == "a"].mean())
    assert overall[["selection_rate", "excess", "false_positive_rate"]].isna().all().all()


def test_without_labels_nothing_is_said_of_errors():
    auditor, X, _, (of_train, of_eval), result = world()
    result.predictions["label"] = pd.NA
    found = auditor.bias(of_train, X, None, of_eval, result=result, permutations=39)
    assert "misclassified" not in set(found.groups["outcome"])
    assert not found.findings[0].applicable
    assert "bias_max_excess" not in found.summary


def test_numbered_classes_and_no_probabilities():
    from mlflow_relabel_audit.analyses.bias import bias_audit

    auditor, _, _, (of_train, of_eval), result = world(names=np.array([7, 8, 9]))
    labels = np.asarray(auditor.problem.classes)[auditor.rows.y.astype(int)]
    found = bias_audit(result.predictions, result.flip_sets, of_train, of_eval, labels, permutations=39)
    assert found.by_class["class"].unique().tolist() == [7, 8, 9]
    assert found.by_class["excess"].isna().all()
    assert set(found.groups["train_label"]) == {"(all)", "7", "8", "9"}
