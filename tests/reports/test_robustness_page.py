"""The robustness page: its verdict, and what it says of each prediction."""

from __future__ import annotations

import pandas as pd
import pytest

from mlflow_relabel_audit.reports import render_robustness, verdict_sentence
from mlflow_relabel_audit.reports.robustness import read, verdict
from tests.reports.page import Page
from tests.reports.samples import CONTEXT, robustness_result, with_context


def of(k, n_train=400, **columns):
    result = robustness_result(len(k), n_train)
    result.predictions["k"] = pd.array(k, dtype="Int64")
    for name, values in columns.items():
        result.predictions[name] = values
    return result


def test_the_verdict_is_a_sentence_with_the_median():
    result = of([2, 4, 6, 8, 90])
    assert verdict_sentence(result, with_context(n_train=400)) == (
        "Half of the predictions would flip if 6 or fewer of the 400 training labels "
        "(1.5\N{NO-BREAK SPACE}%) had been different."
    )


@pytest.mark.parametrize(
    ("k", "word"), [([1, 2, 3, 90], "Fragile"), ([1] + [90] * 8, "Fragile in places"), ([90] * 20, "Sturdy")]
)
def test_the_level_follows_the_share_under_two_percent(k, word):
    context = with_context(n_train=400)
    assert verdict(read(of(k).predictions, context), context).word == word


def test_exactly_two_percent_is_not_fewer():
    context = with_context(n_train=400)
    assert read(of([8, 8, 8]).predictions, context).few_share == 0
    assert read(of([7, 8, 8]).predictions, context).few_share == pytest.approx(1 / 3)


def test_predictions_that_nothing_flips_are_told_apart():
    context = with_context(n_train=400)
    sentence = verdict_sentence(of([3, None, None, 5]), context)
    assert sentence.startswith("Of the 2 predictions that changed labels can flip, half would")
    none = verdict_sentence(of([None, None]), context)
    assert none == "No set of training labels was found that flips any of the 2 predictions."


def test_estimates_are_called_estimates():
    result = of([None, None, None], k_estimate=[4, 5, 6], status="unverified")
    html = render_robustness(result, with_context(n_train=400))
    assert "if about 5 or fewer of the 400" in Page(html).text
    assert "An estimate where the status says" in html


def test_figures_agree_with_the_metrics():
    analyses = pytest.importorskip("mlflow_relabel_audit.analyses.robustness")
    result = robustness_result(300)
    metrics = analyses.summarise(result.predictions)
    reading = read(result.predictions, CONTEXT)
    assert reading.median == metrics["k_median"]
    assert reading.few_share == pytest.approx(metrics["below_2pct_share"])
    assert reading.corner_share == pytest.approx(metrics["confident_fragile_share"])


def test_the_table_holds_every_prediction_and_the_head_of_its_flip_set():
    result = robustness_result(60)
    page = Page(render_robustness(result, CONTEXT))
    table = page.islands["predictions-data"]
    columns = {c["label"]: c for c in table["columns"]}
    assert sorted(columns["Row"]["values"], key=int) == [str(i) for i in range(1000, 1060)]
    k = columns["k"]["values"]
    assert k == sorted(k)
    first = columns["Row"]["values"][0]
    ids = result.flip_sets.query("row_id == @first" if isinstance(first, int) else f"row_id == {first}")
    wanted = ", ".join(str(i) for i in ids.sort_values("rank")["train_id"].head(8))
    assert table["details"][0][2].startswith(wanted)
    assert "Status" not in columns, "a column that says the same of every row is left out"


def test_the_page_names_what_was_audited():
    words = Page(render_robustness(robustness_result(), with_context(messages=("a note",)))).text
    for part in (CONTEXT.model_uri, CONTEXT.train_source, "426 rows, 30 features", "143 rows", "a note"):
        assert part in words


def test_a_long_table_is_cut_and_says_so(monkeypatch):
    from mlflow_relabel_audit.reports import robustness

    monkeypatch.setattr(robustness, "ROW_LIMIT", 50)
    page = Page(render_robustness(robustness_result(80), CONTEXT))
    assert len(page.islands["predictions-data"]["columns"][0]["values"]) == 50
    assert "The 50 most fragile of 80" in page.text
