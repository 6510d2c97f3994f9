import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlflow_relabel_audit.analyses.compare import compare
from mlflow_relabel_audit.errors import RequestError


def run(k, predicted=None, label=None, ids=None, **columns):
    k = list(k)
    frame = pd.DataFrame({"row_id": range(len(k)) if ids is None else ids})
    frame["predicted"] = [1] * len(k) if predicted is None else predicted
    if label is not None:
        frame["label"] = label
    frame["k"] = pd.array(k, dtype="Int64")
    known = [v for v in k if v is not None]
    return frame.assign(**columns), {"k_median": float(np.median(known))} if known else {}


def test_by_hand():
    a = run([4, 6, 9, 2], ["y", "y", "n", "n"], ["y", "y", "n", "y"], ids=["p", "q", "r", "s"])
    b = run([3, 3, 9, 8, 7], ["y", "n", "n", "y", "y"], ["n", "y", "y", "n", "y"], ids=["t", "p", "q", "r", "s"])
    found = compare({"first": a, "second": b})
    assert found.shared["row_id"].tolist() == ["p", "q", "r", "s"]
    assert found.shared["k_first"].tolist() == [4, 6, 9, 2]
    assert found.shared["k_second"].tolist() == [3, 9, 8, 7]
    assert found.shared["predicted_second"].tolist() == ["n", "n", "y", "y"]
    assert found.shared["agree"].tolist() == [False, False, False, False]
    row = found.pairs.iloc[0]
    assert [row["n"], row["more_a"], row["more_b"], row["ties"]] == [4, 2, 2, 0]
    assert row["k_ratio"] == pytest.approx((9 / 8 + 6 / 9) / 2)
    assert row["sign_p"] == 1.0
    assert row["k_median_a"] == 5
    assert row["k_median_b"] == 7.5
    assert [row["disagree"], row["n_shared"], row["n_labelled"]] == [4, 4, 4]
    assert [row["only_a_right"], row["only_b_right"]] == [3, 1]
    assert row["accuracy_p"] == pytest.approx(stats.binomtest(1, 4).pvalue)
    assert found.metrics.loc["k_median"].tolist() == [5, 7]
    assert found.summary == {"shared_rows": 4, "agree_share": 0, "k_median_first": 5, "k_median_second": 7.5}
    assert [f.code for f in found.findings] == ["C001", "C002", "C003"]
    assert "1 of 5 in second" in found.findings[2].message


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=60))
def test_swapping_the_runs_turns_every_figure(rows):
    a, b = run([r[0] for r in rows]), run([r[1] for r in rows])
    one, two = (compare(pair).pairs.iloc[0] for pair in ({"a": a, "b": b}, {"b": b, "a": a}))
    assert [one["more_a"], one["more_b"], one["ties"]] == [two["more_b"], two["more_a"], two["ties"]]
    assert one["more_a"] + one["more_b"] + one["ties"] == one["n"] == len(rows)
    for name in ("sign_p", "wilcoxon_p"):
        assert one[name] == pytest.approx(two[name])
    assert one["k_ratio_low"] == pytest.approx(1 / two["k_ratio_high"])
    assert one["k_ratio_low"] <= one["k_ratio"] <= one["k_ratio_high"]
    assert 0 <= one["sign_p"] <= one["p_adjusted"] <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_of_rows_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    a, b = run(rng.integers(1, 99, 30)), run(rng.integers(1, 99, 30), rng.integers(0, 2, 30))
    one = compare({"a": a, "b": b})
    two = compare({"a": a, "b": (b[0].sample(frac=1.0, random_state=1), b[1])})
    pd.testing.assert_frame_equal(one.shared, two.shared)
    pd.testing.assert_frame_equal(one.pairs, two.pairs)


def test_a_run_against_itself():
    found = compare({"a": run([3, 4, 5], label=[1, 0, 1]), "b": run([3, 4, 5], label=[1, 0, 1])})
    row = found.pairs.iloc[0]
    assert [row["ties"], row["k_ratio"], row["sign_p"], row["wilcoxon_p"], row["disagree"]] == [3, 1, 1, 1, 0]
    assert "about equally robust" in found.findings[0].message
    assert [f.code for f in found.findings] == ["C001"]


def test_who_is_more_robust():
    rng = np.random.default_rng(0)
    k = rng.integers(10, 100, 200)
    found = compare({"a": run(k), "b": run(2 * k)})
    assert found.findings[0].message.startswith("b is more robust than a: it needs more labels in 200 rows")
    assert "n 200" in found.findings[0].message
    # Many rows make a small difference certain, which does not make it one that matters.
    slightly = compare({"a": run(50 * k), "b": run(50 * k + 1)}).findings[0].message
    assert "about equally robust" in slightly


def test_wilcoxon_against_scipy():
    rng = np.random.default_rng(2)
    a, b = rng.integers(1, 60, 80), rng.integers(1, 60, 80)
    row = compare({"a": run(a), "b": run(b)}).pairs.iloc[0]
    logs = np.round(np.log(a / b), 12)
    assert row["wilcoxon_p"] == pytest.approx(stats.wilcoxon(logs[logs != 0]).pvalue)
    assert row["sign_p"] == pytest.approx(stats.binomtest(int((a > b).sum()), int((a != b).sum())).pvalue)


def test_level_of_the_sign_test():
    """Two models of the same robustness are told apart in at most 5 % of comparisons."""
    rng = np.random.default_rng(0)
    told = [compare({"a": run(rng.integers(1, 99, 40)), "b": run(rng.integers(1, 99, 40))}) for _ in range(200)]
    assert np.mean(["is more robust" in c.findings[0].message for c in told]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_rows_that_nothing_flips_or_nobody_verified():
    a = run([5, None, None, 7], status=["verified", "not_flippable", "not_flippable", "unverified"])
    b = run([5, 5, None, None], status=["verified", "verified", "not_flippable", "unverified"])
    found = compare({"a": a, "b": b})
    row = found.pairs.iloc[0]
    assert [row["n"], row["more_a"], row["more_b"], row["ties"]] == [3, 1, 0, 2]
    assert found.shared["k_a"].isna().tolist() == [False, True, True, False]
    none = compare({"a": run([5, 6]), "b": run([None, None])})
    assert not none.findings[0].applicable
    assert none.pairs["n"].tolist() == [0]
    estimate = run([None, None], k_estimate=[4, 5])[0]
    mixed = compare({"a": run([5, 6]), "b": (estimate, {})})
    assert mixed.pairs["n"].tolist() == [2]
    assert [f.code for f in mixed.findings] == ["C001", "C004"]


def test_labels_from_whichever_run_knows_them():
    some = pd.array([1, None, None], dtype="Int64")
    other = pd.array([None, 0, None], dtype="Int64")
    found = compare({"a": run([1, 2, 3], label=some), "b": run([1, 2, 3], label=other), "c": run([1, 2, 3])})
    assert found.shared["label"].tolist() == [1, 0, None]
    assert found.pairs["n_labelled"].tolist() == [2, 2, 2]
    assert len(found.pairs) == 3
    assert found.pairs["accuracy_a"].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"a": run([1])}, r"got 1 run"),
        ({"a": run([1, 2], ids=["x", "y"]), "b": run([1])}, r"a has 2 \(first: 'x'\), b has 1 \(first: 0\)"),
        ({"a": run([1, 2], ids=["x", "x"]), "b": run([1])}, "'x' occurs twice among 2"),
        (
            {"a": run([1, 2], label=[0, 1]), "b": run([1, 2], label=[0, 0])},
            "1 of 2 shared rows.* row 1 is 1 in a and 0 in b",
        ),
        ({"a": (pd.DataFrame({"row_id": [1]}), {}), "b": run([1])}, "run a: .*no column 'predicted'"),
    ],
)
def test_errors(results, message):
    with pytest.raises(RequestError, match=message):
        compare(results)
