"""What a review of suspects says about which labels, and the reviews that do not fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mlflow_relabel_audit.errors import RequestError
from mlflow_relabel_audit.review import corrected_labels, read_changes
from mlflow_relabel_audit.tracking import TableRows

CLASSES = ("bad", "good")
ROWS = TableRows(
    X=pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0]}),
    y=np.array(["bad", "bad", "good", "good"]),
    row_ids=np.array(["07", "08", "09", "10"]),
    source="the rows",
)


def review(**columns) -> pd.DataFrame:
    return pd.DataFrame({"train_id": ["08", "10"], **columns})


def test_new_labels_count_where_they_differ():
    changes = read_changes(review(new_label=["good", "good"], suggested_label=["bad", "bad"]), ROWS, CLASSES, [])
    assert changes.to_dict("list") == {
        "position": [1],
        "train_id": ["08"],
        "label": ["bad"],
        "new_label": ["good"],
    }
    assert corrected_labels(ROWS, changes).tolist() == ["bad", "good", "good", "good"]
    assert ROWS.y.tolist() == ["bad", "bad", "good", "good"]


@pytest.mark.parametrize(
    ("columns", "changed"),
    [
        ({}, ["08", "10"]),
        ({"reviewed": ["yes", "no"]}, ["08"]),
        ({"reviewed": [1.0, None]}, ["08"]),
        ({"reviewed": [False, True]}, ["10"]),
        ({"keep": ["", " Yes "]}, ["08"]),
        ({"reviewed": ["x", "x"], "keep": [1, 0]}, ["10"]),
        ({"new_label": ["good", None]}, ["08"]),
        ({"new_label": [" ", "bad"]}, ["10"]),
    ],
    ids=str,
)
def test_a_review_decides(columns, changed):
    messages: list[str] = []
    found = read_changes(review(suggested_label=["good", "bad"], **columns), ROWS, CLASSES, messages)
    assert found["train_id"].tolist() == changed
    assert bool(messages) == (not columns)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (review(), "need train_id and new_label"),
        (pd.DataFrame({"id": ["08"], "new_label": ["good"]}), "need train_id and new_label"),
        (pd.DataFrame({"train_id": ["08", "11"], "new_label": ["good"] * 2}), r"1 of 2 train ids .* \(11\)"),
        (pd.DataFrame({"train_id": ["08", "08"], "new_label": CLASSES}), r"twice \(08\)"),
        (review(new_label=["good", "great"]), "new_label holds great; the model's classes are bad, good"),
        (review(new_label=["bad", "good"]), "none of the 2 rows changes a label"),
        (review(suggested_label=["good", "bad"], reviewed=["", ""]), "none of the 2 rows changes a label"),
        (
            review(suggested_label=["good", "bad"], reviewed=["yes", "perhaps"]),
            "reviewed holds perhaps; write yes or no",
        ),
        (review(new_label=["good", "bad"], label=["bad", "bad"]), r"1 rows have another label .* 10: bad against good"),
    ],
)
def test_reviews_that_do_not_fit(frame, message):
    with pytest.raises(RequestError, match=message):
        read_changes(frame, ROWS, CLASSES, [])


def test_numbers_that_csv_made_other_numbers():
    numbered = TableRows(X=None, y=np.array([0, 1, 1]), row_ids=np.array([5, 6, 7]), source="the rows")
    for ids, labels in (([5, 7], [1.0, np.nan]), (["5", "7"], ["1", None]), ([5.0, 7.0], [True, None])):
        frame = pd.DataFrame({"train_id": ids, "new_label": labels})
        assert read_changes(frame, numbered, np.array([0, 1]), [])["train_id"].tolist() == [5]


def test_one_class_left():
    frame = pd.DataFrame({"train_id": ["07", "08"], "new_label": ["good", "good"]})
    with pytest.raises(RequestError, match="every row is good"):
        corrected_labels(ROWS, read_changes(frame, ROWS, CLASSES, []))


def test_a_review_that_empties_one_of_several_classes_is_refused():
    rows = TableRows(X=ROWS.X, y=np.array(["bad", "fair", "good", "good"]), row_ids=ROWS.row_ids, source="the rows")
    changes = read_changes(review(new_label=["bad", "bad"]), rows, ("bad", "fair", "good"), [])
    assert changes["new_label"].tolist() == ["bad", "bad"]
    with pytest.raises(RequestError, match="no row is fair"):
        corrected_labels(rows, changes)
