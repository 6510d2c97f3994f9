import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from mlflow_relabel_audit.analyses.bias import CAUTIONS, BiasResult, bias_audit
from mlflow_relabel_audit.analyses.groups.grouping import ALL
from mlflow_relabel_audit.auditor import Auditor
from mlflow_relabel_audit.errors import RequestError

CASE = {"min_group": 2, "permutations": 99}


def predictions(margin, label=None, k=None, names=(0, 1), ids=None):
    margin = np.asarray(margin, dtype=float)
    frame = pd.DataFrame(
        {
            "row_id": np.arange(len(margin)) if ids is None else ids,
            "predicted": np.asarray(names)[(margin > 0).astype(int)],
            "probability": 1 / (1 + np.exp(-margin)),
            "margin": margin,
            "k": pd.array([3] * len(margin) if k is None else k, dtype="Int64"),
            "status": "verified",
        }
    )
    if label is not None:
        frame["label"] = label
    return frame


def flip_sets(sets, ids=None):
    rows = [(t if ids is None else ids[t], i) for t, members in enumerate(sets) for i in members]
    return pd.DataFrame(rows, columns=["row_id", "train_id"])


def random_case(seed, predicted=60, train=80):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, train)
    table = predictions(rng.normal(size=predicted), rng.integers(0, 2, predicted), rng.integers(1, 9, predicted))
    sets = flip_sets([rng.choice(train, 5, replace=False) for _ in range(predicted)])
    groups = pd.DataFrame({"sex": rng.choice(["f", "m", None], train), "old": rng.random(train) < 0.5})
    groups_eval = pd.DataFrame({"sex": rng.choice(["f", "m"], predicted), "old": rng.random(predicted) < 0.5})
    return table, sets, groups, groups_eval, y


def biased(seed, share=0.9, tag_is_feature=True, n=800, n_eval=400):
    """A random tag; ``share`` of tag X's positive training rows are written as negatives."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n + n_eval, 4))
    tag = np.where(rng.random(n + n_eval) < 0.4, "X", "Y")
    true = (rng.random(n + n_eval) < 1 / (1 + np.exp(-x @ [1.0, -1.0, 0.5, 0.0]))).astype(int)
    X = np.column_stack([x, tag == "X"]) if tag_is_feature else x
    pool = np.flatnonzero((true[:n] == 1) & (tag[:n] == "X"))
    changed = np.zeros(n, dtype=bool)
    changed[rng.choice(pool, round(share * len(pool)), replace=False)] = True
    y = np.where(changed, 0, true[:n])
    model = LogisticRegression(C=10.0, tol=1e-8, max_iter=1000).fit(X[:n], y)
    return model, X[:n], y, X[n:], true[n:], tag[:n], tag[n:], changed


def test_composition_by_hand():
    """Four predictions, six training rows; every figure of a slice worked out on paper."""
    table = predictions([1.0, 2.0, -1.0, -2.0], ["bad", "bad", "bad", "good"], names=("bad", "good"))
    sets = flip_sets([[0, 1], [0, 2, 3, 4], [5], [4, 5]])
    train = pd.DataFrame({"g": ["x", "x", "x", "y", "y", "y"]})
    labels = ["good", "good", "bad", "good", "bad", "bad"]
    found = bias_audit(table, sets, train, pd.DataFrame({"g": ["x", "x", "y", "y"]}), labels, **CASE)
    rows = found.groups.set_index(["eval_group", "outcome", "train_group", "train_label"])
    row = rows.loc[("x", "misclassified", "x", "(all)")]
    assert row["n_predictions"] == 2
    assert row["n_train"] == 3
    assert row["n_flip"] == 3
    assert row["share"] == pytest.approx((1 + 1 / 2) / 2)
    assert row["share_pooled"] == pytest.approx(4 / 6)
    assert row["base_rate"] == pytest.approx(1 / 2)
    assert row["lift"] == pytest.approx(1.5)
    # Two of the three 'good' rows are x, and one of the three 'bad' ones.
    good = (1 + 2 / 4) / 2
    assert row["expected_given_label"] == pytest.approx(good * 2 / 3 + (1 - good) * 1 / 3)
    assert row["lift_given_label"] == pytest.approx(0.75 / (good * 2 / 3 + (1 - good) / 3))
    assert rows.loc[("x", "misclassified", "(all)", "good"), "share"] == pytest.approx(good)
    assert rows.loc[("x", "misclassified", "y", "(all)"), "status"] == "ok"
    assert rows.loc[("x", "misclassified", "y", "good"), "status"] == "too small"
    assert np.isnan(rows.loc[("x", "misclassified", "y", "good"), "share"])
    small = found.groups[(found.groups["eval_group"] == "y") & (found.groups["outcome"] == "misclassified")]
    assert small["n_predictions"].tolist() == [1]
    assert small["status"].tolist() == ["too small"]
    assert found.drivers.loc[found.drivers["eval_group"] == "x", "train_id"].tolist()[0] == 0
    assert found.drivers.loc[found.drivers["eval_group"] == "x", "n_sets"].tolist()[0] == 2


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_laws(seed):
    table, sets, groups, groups_eval, y = random_case(seed)
    found = bias_audit(table, sets, groups, groups_eval, y, seed=1, **CASE)
    ok = found.groups[found.groups["status"] == "ok"]
    assert ok["lift"].to_numpy() == pytest.approx(ok["share"] / ok["base_rate"])
    assert (ok["lift_low"] <= ok["lift"] + 1e-9).all()
    assert (ok["lift_high"] >= ok["lift"] - 1e-9).all()
    assert (ok["p_adjusted"].dropna() >= ok["p_value"].dropna() - 1e-12).all()
    cells = ["attribute", "eval_group", "outcome"]
    whole = ok[(ok["train_label"] == "(all)") & (ok["train_group"] != "(all)")]
    complete = whole.groupby(cells).filter(lambda g: g["n_train"].sum() == len(y))
    assert len(complete)
    for name in ("share", "share_pooled", "base_rate", "expected_given_label"):
        assert complete.groupby(cells)[name].sum().to_numpy() == pytest.approx(1.0)
    parts = ok[ok["train_label"].isin(["0", "1"])].groupby([*cells, "train_group"])["share"]
    both = parts.sum()[parts.count() == 2]
    single = whole.set_index([*cells, "train_group"])["share"]
    joint = both.index.intersection(single.index)
    assert len(joint)
    assert both[joint].to_numpy() == pytest.approx(single[joint].to_numpy())
    assert all(np.isfinite(v) for v in found.summary.values())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_and_names_do_not_matter(seed):
    """Rows shuffled, ids renamed, memberships twice: the same figures but for the dealt p-values."""
    table, sets, groups, groups_eval, y = random_case(seed)
    rng = np.random.default_rng(seed)
    first = bias_audit(table, sets, groups, groups_eval, y, **CASE)
    names, rows = np.array([f"t{i}" for i in range(len(y))]), np.array([f"r{i}" for i in range(len(table))])
    turn = rng.permutation(len(y))
    again = bias_audit(
        table.assign(row_id=rows).sample(frac=1.0, random_state=1),
        pd.concat([sets, sets.iloc[:77]]).assign(
            row_id=lambda f: rows[f["row_id"]], train_id=lambda f: names[f["train_id"]]
        ),
        groups.set_axis(names).iloc[turn],
        groups_eval.set_axis(rows),
        pd.Series(y, index=names),
        **CASE,
    )
    random = ["p_value", "p_adjusted"]
    keys = ["attribute", "eval_group", "outcome", "train_group", "train_label"]
    one, two = (f.groups.drop(columns=random).sort_values(keys).reset_index(drop=True) for f in (first, again))
    pd.testing.assert_frame_equal(one, two)
    pd.testing.assert_frame_equal(first.by_group_k, again.by_group_k)
    assert first.summary == pytest.approx(again.summary)


def test_missing_values_crossings_and_dtypes():
    table, sets, groups, groups_eval, y = random_case(1)
    found = bias_audit(table, sets, groups, groups_eval, y, **CASE)
    assert set(found.groups["attribute"]) == {"sex", "old", "sex × old"}
    sex = found.groups[found.groups["attribute"] == "sex"]
    assert set(sex["train_group"]) == {"f", "m", "(missing)", "(all)"}
    assert "(missing)" not in set(sex["eval_group"])
    assert "f × True" in set(found.by_group_k["group"])
    for name in ("n_predictions", "n_train", "n_flip"):
        assert found.groups[name].dtype == np.int64
    again = bias_audit(table, sets, groups, groups_eval, y, **CASE)
    pd.testing.assert_frame_equal(found.groups, again.groups)


def test_figures_agree_with_fairlearn():
    fairlearn = pytest.importorskip("fairlearn.metrics")
    from sklearn.metrics import accuracy_score

    table, sets, groups, groups_eval, y = random_case(4, predicted=400)
    found = bias_audit(table, sets, groups, groups_eval, y, **CASE).by_group_k
    metrics = {
        "accuracy": accuracy_score,
        "selection_rate": fairlearn.selection_rate,
        "false_positive_rate": fairlearn.false_positive_rate,
        "false_negative_rate": fairlearn.false_negative_rate,
        "n": fairlearn.count,
    }
    for attribute in ("sex", "old"):
        frame = fairlearn.MetricFrame(
            metrics=metrics,
            y_true=table["label"],
            y_pred=table["predicted"],
            sensitive_features=groups_eval[attribute].astype(str),
        )
        ours = found[found["attribute"] == attribute].set_index("group")
        assert set(ours.index) - set(frame.by_group.index) <= {"(missing)"}
        for name in metrics:
            theirs = frame.by_group[name]
            assert ours.loc[theirs.index, name].to_numpy() == pytest.approx(theirs.to_numpy())
            assert found[name].iloc[0] == pytest.approx(frame.overall[name])


def test_k_by_group():
    table = predictions([1.0] * 40 + [-1.0] * 40, [0] * 80, [2] * 40 + [20] * 39 + [None])
    table.loc[79, "status"] = "not_flippable"
    sets = flip_sets([[0, 1]] * 80)
    groups_eval = pd.DataFrame({"g": ["a"] * 40 + ["b"] * 40})
    found = bias_audit(table, sets, pd.DataFrame({"g": ["a", "b", "b"]}), groups_eval, [0, 1, 1], permutations=99)
    by = found.by_group_k.set_index("group")
    assert by.loc["a", ["k_median", "k_median_low", "k_median_high", "n_k"]].tolist() == [2, 2, 2, 40]
    assert by.loc["b", "k_median"] == 20
    assert by.loc["b", "n_k"] == 40  # what nothing flips counts as more than any k
    assert by.loc["a", "k_ratio"] == pytest.approx(0.1)
    (line,) = [f for f in found.findings if f.code == "B004"]
    assert line.level == "info"
    assert "g a: decisions rest on fewer labels" in line.message
    assert "n 40" in line.message
    unverified = table.assign(k=pd.array([None] * 80, dtype="Int64"), k_estimate=7, status="unverified")
    by = bias_audit(unverified, sets, ["a", "b", "b"], None, [0, 1, 1], permutations=99).by_group_k
    assert by["k_median"].tolist() == [7]
    assert by["k_source"].tolist() == ["k_estimate"]


def test_tiny_groups_are_no_findings():
    rng = np.random.default_rng(0)
    table = predictions([5.0] * 29 + [-3.0] * 100, [0] * 29 + [0] * 100)
    sets = flip_sets([rng.choice(200, 3) for _ in range(129)])
    groups_eval = ["tiny"] * 29 + ["large"] * 100
    found = bias_audit(
        table, sets, ["tiny"] * 50 + ["large"] * 150, groups_eval, rng.integers(0, 2, 200), permutations=99
    )
    tiny = found.by_group_k[found.by_group_k["group"] == "tiny"].iloc[0]
    assert tiny["status"] == "too small"
    assert tiny["n"] == 29
    assert np.isnan(tiny["excess"])
    assert "tiny (29)" in next(f for f in found.findings if f.code == "B005").message
    assert "bias_max_lift" not in found.summary
    assert found.summary["bias_alarms"] == 0


def test_without_evaluation_labels_or_groups():
    table, sets, groups, groups_eval, y = random_case(2)
    for frame in (table.drop(columns="label"), table.assign(label=pd.array([None] * 60, dtype="Int64"))):
        found = bias_audit(frame, sets, groups, groups_eval, y, **CASE)
        assert set(found.groups["outcome"]) == {"all", "predicted_positive", "predicted_negative"}
        (line,) = [f for f in found.findings if f.code == "B001"]
        assert not line.applicable
        assert "have a label" in line.message
        assert found.by_group_k["accuracy"].isna().all()
    found = bias_audit(table, sets, groups, None, y, **CASE)
    assert set(found.groups["eval_group"]) == {"(all)"}
    assert not next(f for f in found.findings if f.code == "B001").applicable


def test_labels_known_for_some():
    table, sets, groups, groups_eval, y = random_case(6)
    labels = pd.array(table["label"], dtype="Int64")
    labels[:40] = pd.NA
    found = bias_audit(table.assign(label=labels), sets, groups, groups_eval, y, **CASE)
    row = found.by_group_k.iloc[0]
    part = table.iloc[40:]
    assert row["n"] == 60
    assert row["n_labelled"] == 20
    assert row["accuracy"] == pytest.approx((part["label"] == part["predicted"]).mean())


def test_no_flip_sets_at_all():
    table, sets, groups, groups_eval, y = random_case(3)
    found = bias_audit(table, sets.iloc[:0], groups, groups_eval, y, **CASE)
    assert set(found.groups["status"]) == {"too small"}
    assert len(found.drivers) == 0
    assert len(found.row_sets) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"flip_sets": pd.DataFrame({"row_id": [0], "train_id": [80]})},
            "first: 80.* 80 ids of groups_train",
        ),
        ({"flip_sets": pd.DataFrame({"row_id": [60], "train_id": [0]})}, "first: 60.* 60 ids of predictions"),
        ({"flip_sets": pd.DataFrame({"row_id": [60]})}, "no column 'train_id'"),
        ({"train_labels": [0, 1]}, r"shape \(2,\) beside 80 rows"),
        ({"train_labels": None}, "got none"),
        ({"train_labels": pd.Series([0, 1], index=["a", "b"])}, "2 rows name 0 of the 80"),
        ({"groups_eval": ["a"]}, "1 rows name 1 of the 60|1 rows name 0 of the 60"),
        ({"alpha": 1.5}, "alpha: got 1.5"),
        ({"min_group": 1}, "pass at least 2"),
        ({"permutations": 10}, "10 cannot give a p-value of 0.05; pass 19"),
        ({"predictions": predictions([])}, "0 rows"),
        ({"predictions": predictions([1.0, -1.0], ids=[3, 3])}, "row_id 3 occurs twice"),
        ({"predictions": predictions(np.ones(60), [7] * 60)}, r"60 labels \(first: 7\)"),
    ],
)
def test_errors_state_both_numbers(change, message):
    table, sets, groups, groups_eval, y = random_case(0)
    given_ = {
        "predictions": table,
        "flip_sets": sets,
        "groups_train": groups,
        "groups_eval": groups_eval,
        "train_labels": y,
        **CASE,
    }
    with pytest.raises(RequestError, match=message):
        bias_audit(**{**given_, **change})


def test_class_weights_are_taken_off_the_probabilities():
    """Weights of 1:9 add log 9 to the log odds; without them the group's probabilities are right."""
    rng = np.random.default_rng(0)
    margin = rng.normal(-1.5, 1, 4000)
    label = (rng.random(4000) < 1 / (1 + np.exp(-margin))).astype(int)
    table = predictions(margin + np.log(9), label)
    groups = rng.choice(["a", "b"], 4000)
    arguments = (table, flip_sets([[0]] * 4000), ["a", "b"] * 2000, groups, [0, 1] * 2000)
    plain = bias_audit(*arguments, permutations=19).by_group_k
    shifted = bias_audit(*arguments, permutations=19, log_odds_shift=float(np.log(9))).by_group_k
    assert (plain["excess_p_adjusted"] < 1e-6).all()
    assert (shifted["excess_p_adjusted"] > 0.05).all()
    expected = 1 / (1 + np.exp(-margin))
    assert shifted["predicted_rate"].iloc[0] == pytest.approx(expected.mean())


def test_certain_but_small_differences_are_no_alarm():
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 1, 20_000)
    rate = 1 / (1 + np.exp(-margin))
    groups = np.repeat(["a", "b"], 10_000)
    table = predictions(margin, (rng.random(20_000) < rate - 0.03 * (groups == "a")).astype(int))
    sets = flip_sets(rng.integers(0, 10_000, (20_000, 3)) + np.where(groups == "a", 0, 10_000)[:, None])
    found = bias_audit(table, sets, groups, groups, np.tile([0, 1], 10_000), permutations=19)
    gap = found.by_group_k.set_index("group").loc["a"]
    assert gap["excess_p_adjusted"] < 1e-3
    assert -0.05 < gap["excess"] < -0.02
    cell = found.groups.set_index(["eval_group", "outcome", "train_group", "train_label"])
    assert cell.loc[("a", "false_positive", "a", "1"), "p_adjusted"] <= 0.05
    assert cell.loc[("a", "false_positive", "a", "1"), "lift"] > 1.25
    assert found.summary["bias_alarms"] == 0


def test_cautions_are_sentences():
    assert len(CAUTIONS) >= 5
    assert all(c.endswith(".") and c[0].isupper() and '"' not in c for c in CAUTIONS)


def audited(case, **options) -> BiasResult:
    model, X, y, X_eval, y_eval, tag, tag_eval, changed = case
    auditor = Auditor(model, X, y)
    return auditor.bias(
        pd.DataFrame({"tag": tag}),
        X_eval,
        y_eval,
        pd.DataFrame({"tag": tag_eval}),
        result=auditor.robustness(X_eval, y_eval, verify=False, certify=False),
        row_sets={"changed": changed},
        **options,
    )


def test_injected_bias_is_found_and_traced():
    """The paper's experiment in small: the changed rows fill the sets of tag X's errors, not of tag Y's."""
    found = audited(biased(0))
    (alarm,) = [f for f in found.findings if f.code == "B001"]
    assert alarm.level == "critical"
    assert "tag X: the model expects 1 too rarely" in alarm.message
    assert "rest on X rows labelled 0" in alarm.message
    (named,) = [f for f in found.findings if f.code == "B003"]
    assert "named rows changed" in named.message
    of_errors = found.row_sets[(found.row_sets["outcome"] == "misclassified") & (found.row_sets["eval_group"] == ALL)]
    assert found.summary["bias_share_changed"] == of_errors["share"].item()
    assert found.summary["bias_lift_changed"] == of_errors["lift"].item()
    shares = found.row_sets[found.row_sets["outcome"] == "misclassified"].set_index("eval_group")["share"]
    base = found.row_sets["base_rate"].dropna().iloc[0]
    assert shares["X"] > 1.5 * base > base > shares["Y"]
    assert found.summary["bias_alarms"] == 2


def test_lift_alone_is_no_alarm():
    """The tag is a feature, no label was changed: own rows fill the sets beyond chance, and that is all."""
    found = audited(biased(0, share=0.0))
    row = found.groups.set_index(["eval_group", "outcome", "train_group", "train_label"]).loc[
        ("X", "misclassified", "X", "(all)")
    ]
    assert row["lift"] > 1.25
    assert row["p_adjusted"] < 0.05
    assert found.summary["bias_alarms"] == 0
    assert [f.level for f in found.findings] == ["info"] * len(found.findings)


def first_order(model, X, y, X_eval, y_eval):
    """Predictions and flip sets of the influence order alone: fast enough for hundreds of models."""
    A, B = np.column_stack([X, np.ones(len(X))]), np.column_stack([X_eval, np.ones(len(X_eval))])
    theta = np.append(model.coef_[0], model.intercept_)
    p = 1 / (1 + np.exp(-A @ theta))
    H = (A * (p * (1 - p))[:, None]).T @ A + np.diag([*[1 / model.C] * X.shape[1], 0.0])
    margin = B @ theta
    gain = -np.sign(margin)[:, None] * (np.linalg.solve(H, B.T).T @ A.T) * (1 - 2 * y)
    order = np.argsort(-gain, axis=1)
    k = (np.cumsum(np.take_along_axis(gain, order, axis=1), axis=1) <= np.abs(margin)[:, None]).sum(axis=1) + 1
    k = np.minimum(k, len(y))
    return predictions(margin, y_eval, k), flip_sets([order[t, : k[t]] for t in range(len(k))])


def simulate(seed, share, tag_is_feature, skewed=False):
    model, X, y, X_eval, y_eval, tag, tag_eval, _ = biased(seed, share, tag_is_feature, n=500, n_eval=250)
    table, sets = first_order(model, X, y, X_eval, y_eval)
    if skewed:  # a group that goes with a feature, as sex goes with occupation
        rng = np.random.default_rng(seed)
        tag = np.where(X[:, 0] + rng.normal(size=len(X)) > 0.3, "X", "Y")
        tag_eval = np.where(X_eval[:, 0] + rng.normal(size=len(X_eval)) > 0.3, "X", "Y")
    return bias_audit(table, sets, {"tag": tag}, {"tag": tag_eval}, y, permutations=99, seed=seed)


LIMIT = 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blind", "feature", "skewed"])
def test_false_alarms_over_200_seeds(kind):
    """No label changed: alarms, and excess errors beyond chance, come no more often than the level allows.

    ``blind``: the model does not see the tag, so groups are exchangeable, the permutation test holds its
    level and the lift's interval covers 1. ``feature`` and ``skewed``: similar rows lean on each other, and
    lifts differ from 1 as they should.
    """
    alarms, rejected, excesses, covered = [], [], [], []
    for seed in range(200):
        found = simulate(seed, 0.0, kind == "feature", kind == "skewed")
        alarms.append(found.summary["bias_alarms"] > 0)
        rejected.append((found.groups["p_adjusted"] < 0.05).any())
        excesses.append((found.by_group_k["excess_p_adjusted"] < 0.05).any())
        whole = found.groups[(found.groups["train_group"] == "X") & (found.groups["train_label"] == "(all)")]
        whole = whole[whole["status"] == "ok"]
        covered.append(((whole["lift_low"] <= 1) & (whole["lift_high"] >= 1)).mean())
    assert np.mean(alarms) <= LIMIT
    assert np.mean(excesses) <= LIMIT
    if kind == "blind":
        assert 0.005 <= np.mean(rejected) <= LIMIT
        assert np.mean(covered) == pytest.approx(0.95, abs=0.03)
    else:
        assert np.mean(rejected) > 0.9  # why a lift by itself is no alarm


@pytest.mark.slow
def test_power():
    """90 % of tag X's positives written as negatives: found, on the right group and label, nearly always."""
    hits, wrong = 0, 0
    for seed in range(40):
        messages = [f.message for f in simulate(seed, 0.9, True).findings if f.level != "info"]
        hits += any("tag X" in m and "rest on X rows labelled 0" in m for m in messages)
        wrong += any(m.startswith("tag Y") for m in messages)
    assert hits >= 38
    assert wrong <= 40 * 0.05 + 3 * np.sqrt(40 * 0.05 * 0.95)
