import numpy as np
import pandas as pd
import pytest

from mlflow_relabel_audit.analyses.groups.grouping import (
    MISSING,
    align,
    attributes_of,
    classes_of,
    row_set_masks,
)
from mlflow_relabel_audit.errors import RequestError


def test_missing_values_are_a_group():
    table, _ = align(pd.DataFrame({"a": [1.0, np.nan, 2.0], "b": ["x", None, pd.NA]}), None, "groups")
    assert table["a"].tolist() == ["1", MISSING, "2"]
    assert table["b"].tolist() == ["x", MISSING, MISSING]


def test_rows_are_matched_by_id():
    groups = pd.DataFrame({"g": ["x", "y", "z"]}, index=["c", "a", "b"])
    table, _ = align(groups, pd.Index(["a", "b"]), "groups")
    assert table["g"].tolist() == ["y", "z"]


def test_rows_without_ids_are_matched_by_position():
    for given in (
        ["x", "y"],
        pd.DataFrame({"g": ["x", "y"]}),
        {"g": ["x", "y"]},
        pd.Series(["x", "y"], name="g"),
    ):
        table, index = align(given, pd.Index(["p", "q"]), "groups")
        assert table.iloc[:, 0].tolist() == ["x", "y"]
        assert index.tolist() == ["p", "q"]


@pytest.mark.parametrize(
    ("groups", "ids", "message"),
    [
        (pd.DataFrame({"g": [1, 2]}, index=["a", "a"]), ["a"], "'a' occurs twice"),
        (pd.DataFrame({"g": [1, 2]}, index=["a", "b"]), ["a", "c"], "2 rows name 1 of the 2 row ids"),
        (["x"], ["a", "b"], "1 rows name 0 of the 2"),
        (pd.DataFrame(index=[0, 1]), [0, 1], "2 rows and 0 columns"),
    ],
)
def test_rows_that_do_not_match(groups, ids, message):
    with pytest.raises(RequestError, match=message):
        align(groups, pd.Index(ids), "groups")


def test_crossings_and_order():
    train = pd.DataFrame({"a": list("xxy"), "b": list("pqp"), "c": list("sss")})
    found = attributes_of(train, train.iloc[:1], 25)
    assert [a.name for a in found] == ["a", "b", "c", "a × b", "a × c", "b × c", "a × b × c"]
    assert found[0].levels == ("x", "y")
    assert found[3].levels == ("x × p", "x × q", "y × p")
    assert found[0].train.tolist() == [0, 0, 1]
    assert found[0].evaluation.tolist() == [0]


def test_small_groups_beyond_the_limit_are_pooled():
    train = pd.DataFrame({"a": [f"g{i}" for i in range(1000) for _ in range(1 + (i < 3))]})
    found = attributes_of(train, pd.DataFrame({"a": ["g999", "unseen", "g0"]}), 4)[0]
    assert found.levels == ("g0", "g1", "g2", "(other: 998 groups)")
    assert found.evaluation.tolist() == [3, 3, 0]
    assert found.pooled == 998
    assert np.bincount(found.train).tolist() == [2, 2, 2, 997]


def test_columns_must_agree():
    with pytest.raises(RequestError, match=r"\['b'\] beside groups_train's \['a'\]"):
        attributes_of(pd.DataFrame({"a": ["x"]}), pd.DataFrame({"b": ["x"]}), 25)


def test_classes_are_read_off_the_margins():
    table = pd.DataFrame({"margin": [1.0, -1.0], "predicted": ["good", "bad"]})
    assert classes_of(table, ["bad", "good"], None) == ("bad", "good")
    assert classes_of(table.iloc[:1], ["bad", "good"], None) == ("bad", "good")
    assert classes_of(table.iloc[1:], ["bad", "good"], None) == ("bad", "good")
    with pytest.raises(RequestError, match="odd"):
        classes_of(table, ["bad", "odd"], None)
    with pytest.raises(RequestError, match="missing values"):
        classes_of(table, ["bad", None], None)
    with pytest.raises(RequestError, match="classes="):
        classes_of(table.assign(predicted="bad"), ["bad", "good"], None)


def test_row_sets_as_masks_and_ids():
    ids = pd.Index(["a", "b", "c"])
    masks = row_set_masks({"m": [True, False, True], "i": ["b"], "s": pd.Series([True], index=["c"])}, ids)
    assert [m.tolist() for m in masks.values()] == [
        [True, False, True],
        [False, True, False],
        [False, False, True],
    ]
    with pytest.raises(RequestError, match="2 rows beside 3"):
        row_set_masks({"m": [True, False]}, ids)
    with pytest.raises(RequestError, match="first: 'z'"):
        row_set_masks({"m": ["z"]}, ids)
