"""The contest page: what the script adds up, what is proved, and the rows beside each other."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from mlflow_relabel_audit.reports import render_contest
from mlflow_relabel_audit.reports.similar import reader
from tests.reports.page import Page
from tests.reports.samples import CONTEXT, contest_result, feature_rows, text_rows, with_context


def test_what_is_added_up_gives_the_probability_now_and_the_cumulative_one():
    result = contest_result(threshold=0.25)
    data = Page(render_contest(result, CONTEXT)).islands["review-data"]
    assert data["offset"] == pytest.approx(math.log(0.25 / 0.75))
    assert np.allclose(data["influence"], result.flip_set["influence"], rtol=1e-3)
    total = data["margin"] + sum(data["influence"])
    assert total == pytest.approx(result.flip_set["cumulative_margin"].iloc[-1], abs=2e-3)
    whole = data["margin"] + data["scale"] * sum(data["influence"])
    assert whole == pytest.approx(result.margin_after, abs=2e-3), "scaled to the refit"
    assert data["after"] == result.probability_after
    assert data["positive"] is False


def test_an_unverified_set_promises_no_refit():
    result = contest_result(status="unverified", k=6, probability_after=None, margin_after=None)
    page = Page(render_contest(result, CONTEXT))
    assert page.islands["review-data"]["after"] is None
    assert page.islands["review-data"]["scale"] == 1
    assert "No refit confirms it" in page.text
    assert "if about 6 of the 426" in page.text


@pytest.mark.parametrize(
    ("k", "k_lower", "said"),
    [
        (6, 4, "No 3 labels can change this decision, whichever are chosen: that is proved."),
        (6, 2, "No single label can change this decision, whichever is chosen: that is proved."),
        (6, 6, "No smaller set of labels can change this decision: that is proved."),
        (6, 1, "Smaller sets are not ruled out by proof; none was found."),
        (6, None, "sure. \n"),
    ],
)
def test_the_certificate_is_said_in_words(k, k_lower, said):
    assert said in Page(render_contest(contest_result(k, k_lower=k_lower), CONTEXT)).text


def test_removal_stands_beside_relabelling():
    words = Page(render_contest(contest_result(), CONTEXT)).text
    assert "Changing labels or leaving rows out" in words
    assert "15" in words
    none = contest_result()
    none.removal.k, none.removal.found, none.removal.probability_after = None, False, None
    assert "none found" in Page(render_contest(none, CONTEXT)).text
    alone = Page(render_contest(contest_result(removal=False), CONTEXT)).text
    assert "leaving rows out" not in alone


def test_shared_words_are_marked_and_stop_words_are_not():
    row = pd.Series({"text": "Win the free PHONE now, it is the best thing you will ever see today"})
    others = pd.DataFrame({"text": ["a free phone is the answer to everything they ever told you about it"]})
    ((name, parts),) = reader(row, others, 500).show(others.iloc[0])["texts"]
    assert name == "text"
    assert parts[1::2] == ["free", "phone"]
    assert "".join(parts) == others.iloc[0, 0]


def test_near_values_and_equal_categories_are_marked_first():
    row = pd.Series({"age": 40.0, "income": 10.0, "town": "Ulm", "gap": np.nan})
    others = pd.DataFrame({"age": [41, 70.0], "income": [90.0, 10], "town": ["Ulm", "Bonn"], "gap": [1.0, np.nan]})
    shown = reader(row, others, 500).show(others.iloc[0])["values"]
    assert {cell[0]: cell[3] for cell in shown} == {"age": 1, "town": 1, "income": 0, "gap": 0}
    assert [cell[3] for cell in shown] == [1, 1, 0, 0]


def test_rows_are_shown_with_include_rows_only():
    rows = {"train_rows": feature_rows(range(426)), "eval_rows": feature_rows(range(1000, 1143))}
    shown = Page(render_contest(contest_result(), with_context(include_rows=True, **rows)))
    assert len(shown.islands["review-data"]["rows"]) == 6
    assert "mean radius" in shown.text
    hidden = Page(render_contest(contest_result(), with_context(**rows)))
    assert hidden.islands["review-data"]["rows"] == []
    assert "mean radius" not in hidden.text


def test_rows_that_are_not_at_hand_are_left_out():
    context = with_context(include_rows=True, train_rows=text_rows(range(20)), eval_rows=text_rows([1042]))
    shown = Page(render_contest(contest_result(), context)).islands["review-data"]["rows"]
    assert [row is None for row in shown] == [False, False, True, True, True, True]
    elsewhere = with_context(include_rows=True, train_rows=text_rows(range(20)), eval_rows=text_rows([7]))
    assert Page(render_contest(contest_result(), elsewhere)).islands["review-data"]["rows"] == []
