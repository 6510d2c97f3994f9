"""The pages in a real browser, inside the Artifacts tab of a real MLflow server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from mlflow_relabel_audit.reports import (
    render_bias,
    render_compare,
    render_contest,
    render_noise,
    render_robustness,
)
from tests.browser import Browser
from tests.reports.hostile import (
    hostile_bias,
    hostile_compare,
    hostile_contest,
    hostile_context,
    hostile_noise,
    hostile_robustness,
)
from tests.reports.samples import (
    CONTEXT,
    bias_result,
    compare_result,
    contest_result,
    correction_result,
    curve_result,
    feature_rows,
    noise_result,
    robustness_result,
    text_rows,
    with_context,
)

pytestmark = [pytest.mark.browser, pytest.mark.server]

WITH_ROWS = with_context(
    include_rows=True, train_rows=feature_rows(range(426)), eval_rows=feature_rows(range(1000, 1143))
)
WITH_TEXT = with_context(include_rows=True, train_rows=text_rows(range(426)), eval_rows=text_rows(range(1000, 1143)))
PAGES: dict[str, Callable[[], str]] = {
    "robustness": lambda: render_robustness(robustness_result(1000, 6920), with_context(n_train=6920)),
    "contest": lambda: render_contest(contest_result(), WITH_ROWS),
    "contest-text": lambda: render_contest(contest_result(23), WITH_TEXT),
    "noise": lambda: render_noise(noise_result(), WITH_ROWS, curve_result(), correction_result()),
    "bias": lambda: render_bias(bias_result(), CONTEXT),
    "compare": lambda: render_compare(compare_result(), CONTEXT),
}
HOSTILE_PAGES: dict[str, Callable[[], str]] = {
    "hostile-robustness": lambda: render_robustness(hostile_robustness(), hostile_context()),
    "hostile-contest": lambda: render_contest(hostile_contest(), hostile_context()),
    "hostile-noise": lambda: render_noise(hostile_noise(), hostile_context()),
    "hostile-bias": lambda: render_bias(hostile_bias(), hostile_context()),
    "hostile-compare": lambda: render_compare(hostile_compare(), hostile_context()),
}
CONTROL = "<!doctype html><main><script>window.relabelCanary=1</script></main>"
WIDTHS = (514, 780, 1282)


@dataclass
class Reports:
    """A browser, and a run whose artifacts are the pages."""

    browser: Browser
    server: str
    experiment_id: str
    run_id: str

    def open(self, name: str) -> Browser:
        self.browser.scheme("light")
        self.browser.resize(1280, 800)
        self.browser.errors()
        path = f"relabel_audit/{name}.html"
        self.browser.open_artifact(self.server, self.experiment_id, self.run_id, path)
        return self.browser


@pytest.fixture(scope="module")
def reports(mlflow_server, tmp_path_factory) -> Iterator[Reports]:
    from mlflow import MlflowClient

    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        client = MlflowClient(mlflow_server.url)
        experiment = client.create_experiment("report pages")
        run_id = client.create_run(experiment).info.run_id
        for name, make in {**PAGES, **HOSTILE_PAGES, "control": lambda: CONTROL}.items():
            client.log_text(run_id, make(), f"relabel_audit/{name}.html")
        yield Reports(browser, mlflow_server.url, experiment, run_id)
    finally:
        browser.close()


@pytest.mark.parametrize("name", PAGES)
def test_page_fits_every_width_in_light_and_dark(reports, name):
    browser = reports.open(name)
    for width in WIDTHS:
        browser.frame_width(width)
        overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.run(overflow) <= 0, f"{name} scrolls sideways at {width}"
        backgrounds = set()
        for scheme in ("light", "dark"):
            browser.scheme(scheme)
            browser.screenshot(f"{name}-{width}-{scheme}")
            backgrounds.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
        assert len(backgrounds) == 2
    assert browser.errors() == []


@pytest.mark.parametrize("name", PAGES)
def test_page_has_no_serious_accessibility_violation(reports, name):
    browser = reports.open(name)
    browser.frame_width(514)
    for scheme in ("light", "dark"):
        browser.scheme(scheme)
        assert browser.axe() == [], scheme


def test_the_table_is_sorted_searched_and_paged(reports):
    browser = reports.open("robustness")
    table = "#predictions tbody"
    column = f"{table} tr:not(.detail) td:nth-child(%d), {table} tr:not(.detail) th:nth-child(%d)"
    headers = browser.texts("#predictions thead th")
    at = headers.index("k") + 1

    def values() -> list[str]:
        return browser.texts(column % (at, at))

    shown = [int(v.replace(",", "")) for v in values()]
    assert len(shown) == 25
    assert shown == sorted(shown)
    browser.click(browser.find(f"#predictions thead th:nth-child({at}) button"))
    turned = [int(v.replace(",", "")) for v in values()]
    assert turned == sorted(turned, reverse=True)
    assert turned[0] > shown[-1]
    assert browser.run(f"return document.querySelector('#predictions th:nth-child({at})').ariaSort") == "descending"

    count = "#predictions .count"
    assert browser.texts(count) == ["1–25 of 1,000"]
    browser.click(browser.find("#predictions .pager button:nth-child(2)"))
    assert browser.texts(count) == ["26–50 of 1,000"]

    search = browser.find("#predictions input[type=search]")
    search.send_keys("1042")
    assert browser.texts(count) == ["1–1 of 1 found, 1,000 in all"]
    browser.click(browser.find(f"{table} .more"))
    assert "strongest first" in browser.find(f"{table} tr.detail").text
    search.send_keys(" no such row")
    assert browser.texts(f"{table} td") == ["No row matches."]
    assert browser.errors() == []


def test_sections_are_reached_by_buttons(reports):
    browser = reports.open("robustness")
    headings = browser.texts("main section h2")
    assert browser.texts("nav button") == headings
    browser.button("Every prediction").click()
    place = "return document.getElementById('predictions').getBoundingClientRect().top"
    browser.until(lambda: abs(browser.run(place)) < 60, "the section at the top")
    assert browser.find("main") is not None, "the page is still there"


def test_ticking_labels_adds_their_effects(reports):
    browser = reports.open("contest")
    says = "#review [role=status]"
    assert browser.texts(says)[0].startswith("Nothing ticked.")
    boxes = browser.all("#review input[type=checkbox]")
    assert len(boxes) == 6
    browser.click(boxes[0])
    assert "It stands. 1 of 6 labels: probability of benign becomes about 0.812" in browser.texts(says)[0]
    browser.click(boxes[5])
    assert "2 of 6" in browser.texts(says)[0]
    browser.click(boxes[5])
    for box in boxes[1:5]:
        browser.click(box)
    assert browser.texts(says)[0].startswith("It stands. 5 of 6 labels")
    browser.click(boxes[5])
    said = browser.texts(says)[0]
    assert said.startswith("It flips. 6 of 6 labels: probability of benign becomes 0.485")
    assert said.endswith("that is malignant by the refitted model.")
    browser.screenshot("contest-ticked")
    assert browser.errors() == []


def test_labels_are_paged_and_ticks_are_kept(reports):
    browser = reports.open("contest-text")
    assert len(browser.all("#review input")) == 10
    browser.click(browser.all("#review input")[0])
    browser.click(browser.button("Next"))
    assert browser.texts("#review .count") == ["page 2 of 3"]
    assert not browser.all("#review input:checked")
    browser.click(browser.button("Previous"))
    assert len(browser.all("#review input:checked")) == 1
    assert browser.all("#review mark")
    browser.click(browser.button("Tick all"))
    assert browser.texts("#review [role=status]")[0].startswith("It flips. 23 of 23 labels")


def test_the_canary_would_fire(reports):
    browser = reports.open("control")
    assert browser.run("return window.relabelCanary") == 1


@pytest.mark.parametrize("name", HOSTILE_PAGES)
def test_hostile_text_stays_text(reports, name):
    browser = reports.open(name)
    for action in (
        "document.querySelectorAll('main .more, main thead button, #review input').forEach(e => e.click())",
        "document.querySelectorAll('main *').forEach(e => e.dispatchEvent(new Event('mouseover')))",
    ):
        browser.run(action)
    assert browser.run("return window.relabelCanary === undefined")
    assert not browser.all("main img, main a, main iframe, main script[src], main [onload], main [onmouseover]")
    browser.frame_width(514)
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.run(overflow) <= 0
    browser.screenshot(f"{name}-514-light")
    assert browser.errors() == []


def test_context_of_the_samples_is_what_the_pages_name(reports):
    browser = reports.open("robustness")
    assert CONTEXT.model_name in browser.texts(".eyebrow")[0]
