"""What every page must be: whole, small, silent towards the network, and safe whatever the data holds."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from mlflow_relabel_audit.reports import (
    render_bias,
    render_compare,
    render_contest,
    render_noise,
    render_robustness,
    suspects_for_review,
)
from mlflow_relabel_audit.reports.environment import environment
from tests.reports.hostile import (
    CANARY,
    HOSTILE,
    hostile_bias,
    hostile_compare,
    hostile_contest,
    hostile_context,
    hostile_noise,
    hostile_robustness,
)
from tests.reports.page import Page
from tests.reports.samples import (
    CONTEXT,
    bias_result,
    bias_result_of_classes,
    compare_result,
    contest_result,
    correction_result,
    curve_result,
    feature_rows,
    noise_result,
    robustness_result,
    text_rows,
    thousand_groups,
    with_context,
)

WITH_ROWS = with_context(
    include_rows=True, train_rows=feature_rows(range(426)), eval_rows=feature_rows(range(1000, 1143))
)
WITH_TEXT = with_context(include_rows=True, train_rows=text_rows(range(426)), eval_rows=text_rows(range(1000, 1143)))
UNVERIFIED = robustness_result()
UNVERIFIED.predictions[["k", "status"]] = None, "unverified"
UNLABELLED = robustness_result()
UNLABELLED.predictions[["label", "correct"]] = None

SEVERAL = with_context(class_names=("low", "mid", "high"))

PAGES = {
    "robustness": lambda: render_robustness(robustness_result(), CONTEXT),
    "robustness of 1,000": lambda: render_robustness(robustness_result(1000, 6920), CONTEXT),
    "robustness of one row": lambda: render_robustness(robustness_result(1), CONTEXT),
    "robustness of two rows": lambda: render_robustness(robustness_result(2), CONTEXT),
    "robustness of none": lambda: render_robustness(robustness_result(0), CONTEXT),
    "robustness without any k": lambda: render_robustness(robustness_result(missing=1.0), CONTEXT),
    "robustness with some k": lambda: render_robustness(robustness_result(missing=0.3), CONTEXT),
    "robustness unverified": lambda: render_robustness(UNVERIFIED, CONTEXT),
    "robustness unlabelled": lambda: render_robustness(UNLABELLED, CONTEXT),
    "contest": lambda: render_contest(contest_result(), CONTEXT),
    "contest of one label": lambda: render_contest(contest_result(1), CONTEXT),
    "contest of no flip": lambda: render_contest(contest_result(0, removal=False), CONTEXT),
    "contest of 8,000 labels": lambda: render_contest(contest_result(8000), WITH_TEXT),
    "contest with features": lambda: render_contest(contest_result(), WITH_ROWS),
    "contest with text": lambda: render_contest(contest_result(), WITH_TEXT),
    "contest unverified": lambda: render_contest(
        contest_result(k=6, status="unverified", margin_after=None, probability_after=None), CONTEXT
    ),
    "noise": lambda: render_noise(noise_result(), CONTEXT),
    "noise with rows": lambda: render_noise(noise_result(), WITH_ROWS),
    "noise without suspects": lambda: render_noise(noise_result(n_suspects=0), CONTEXT),
    "noise of one suspect": lambda: render_noise(noise_result(n_suspects=1), CONTEXT),
    "noise with curve": lambda: render_noise(noise_result(), CONTEXT, curve_result(), correction_result()),
    "bias": lambda: render_bias(bias_result(), CONTEXT),
    "noise of several classes": lambda: render_noise(noise_result(), SEVERAL, curve_result(), correction_result()),
    "bias of several classes": lambda: render_bias(bias_result_of_classes(), SEVERAL),
    "bias without evaluation groups": lambda: render_bias(bias_result(eval_groups=False), CONTEXT),
    "bias of a few rows": lambda: render_bias(bias_result(12), CONTEXT),
    "bias of a thousand groups": lambda: render_bias(thousand_groups(), CONTEXT),
    "compare": lambda: render_compare(compare_result(), CONTEXT),
    "compare of four": lambda: render_compare(compare_result(runs=4), CONTEXT),
    "compare of one row": lambda: render_compare(compare_result(1), CONTEXT),
}
HOSTILE_PAGES = {
    "robustness": lambda: render_robustness(hostile_robustness(), hostile_context()),
    "contest": lambda: render_contest(hostile_contest(), hostile_context()),
    "noise": lambda: render_noise(hostile_noise(), hostile_context()),
    "bias": lambda: render_bias(hostile_bias(), hostile_context()),
    "compare": lambda: render_compare(hostile_compare(), hostile_context()),
}


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    return {name: make() for name, make in PAGES.items()}


@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole_small_and_silent(rendered, name):
    html = rendered[name]
    page = Page(html)
    assert len(html.encode()) < 1_000_000
    assert html.lstrip().startswith("<!doctype html>")
    assert ("html", {"lang": "en"}) in page.tags
    assert ("meta", {"charset": "utf-8"}) in page.tags
    assert not re.findall(r"https?:|//[a-z]|url\((?!#)|@import", html.replace(CONTEXT.tracking_uri, ""))
    tags = Counter(tag for tag, _ in page.tags)
    assert not {"a", "img", "iframe", "form", "link", "object", "base"} & set(tags)
    attributes = {name for _, attributes in page.tags for name in attributes}
    assert not {"href", "src", "action", "target"} & attributes
    assert not [name for name in attributes if name.startswith("on")]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", PAGES)
def test_no_section_is_empty(rendered, name):
    page = Page(rendered[name])
    assert page.sections
    for section in page.sections:
        assert section.heading.strip()
        assert section.content > 0, section.heading
    assert not re.search(r"\bnan\b|None\b(?! (?:is|flips))|<NA>|Undefined", page.text), "a missing figure is a dash"


@pytest.mark.parametrize("name", HOSTILE_PAGES)
def test_hostile_text_is_text(name):
    html = HOSTILE_PAGES[name]()
    page = Page(html)
    assert len(html.encode()) < 1_000_000
    html.encode("utf-8", errors="strict")
    plain = Page(PAGES[name]())
    known = {tag for tag, _ in plain.tags} | {"h3", "p", "bdi", "mark", "ul", "li"}
    assert {tag for tag, _ in page.tags} <= known
    attributes = {attribute for _, given in page.tags for attribute in given}
    assert not [a for a in attributes if a.startswith("on") or a in ("href", "src")]
    scripts = [given for tag, given in page.tags if tag == "script"]
    assert len(scripts) == len(page.islands) + 1, "the data adds no script"
    assert CANARY in page.text
    assert "{{ 1234567*9 }}{% raw %}" in page.text
    assert "11111103" not in html
    for character in "\u202e\u2066\u200b\ufeff\x00\u2028\ud800":
        assert character not in html
    assert "⟨U+202E⟩" in html
    assert "(1,000,0" in html, "a long text is cut with a note"


def test_without_include_rows_no_row_is_shown():
    rows = text_rows(range(2000))
    rows["text"] = "secret words of a person"
    context = with_context(include_rows=False, train_rows=rows, eval_rows=rows)
    for html in (
        render_contest(contest_result(), context),
        render_noise(noise_result(), context),
        render_robustness(robustness_result(), context),
    ):
        assert "secret" not in html


def test_an_annotator_gets_the_rows_where_asked_and_no_formula():
    result = noise_result()
    rows = text_rows(range(2000))
    rows["text"] = "=1+1"
    rows["score"] = "theirs"
    without = suspects_for_review(result, with_context(include_rows=False, train_rows=rows))
    assert without is result.suspects
    table = suspects_for_review(result, with_context(include_rows=True, train_rows=rows))
    assert list(table.columns[: len(without.columns)]) == list(without.columns)
    assert table["score"].tolist() == without["score"].tolist()
    known = table["train_id"].isin(rows.index)
    assert known.any()
    assert set(table.loc[known, "text"]) == {"'=1+1"}
    assert set(table.loc[known, "row_score"]) == {"theirs"}


def test_templates_escape_and_know_their_names():
    env = environment()
    assert env.autoescape is True
    assert env.undefined.__name__ == "StrictUndefined"
    assert env.from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"


def test_pages_are_reproducible():
    assert PAGES["robustness"]() == PAGES["robustness"]()


def test_hostile_list_covers_what_it_names():
    assert len(HOSTILE[-1]) == 1_000_000


def test_bias_of_several_classes_is_told_class_by_class():
    page = render_bias(bias_result_of_classes(), SEVERAL)
    assert "Class by class" in page
    assert "pairs of group and class" in page
    assert "clinic north: the model expects low too rarely" in page
    assert "Class by class" not in PAGES["bias"]()


def test_noise_of_several_classes_names_no_positive_class():
    page = PAGES["noise of several classes"]()
    assert "The likeliest of the other classes." in page
    assert "The other label." not in page
    assert "positive class" not in page
