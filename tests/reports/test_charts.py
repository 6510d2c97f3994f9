"""Charts: one small SVG element each, in the page's colours and fonts, read out by a screen reader."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from mlflow_relabel_audit.reports import pictures
from tests.reports.samples import curve_result

K = np.random.default_rng(0).lognormal(3, 1, 500).round() + 1
CHARTS = {
    "distribution": lambda: pictures.k_distribution(K, 2000, False),
    "distribution of few": lambda: pictures.k_distribution(np.array([1.0, 2.0]), 10, False),
    "distribution of equals": lambda: pictures.k_distribution(np.full(9, 400.0), 100_000, True),
    "distribution, narrow": lambda: pictures.k_distribution(np.arange(100.0, 300.0), 5000, False),
    "confidence": lambda: pictures.k_against_confidence(np.linspace(0.5, 1, 500), K, 2000),
    "confidence of few": lambda: pictures.k_against_confidence(np.array([0.5, 1.0]), np.ones(2), 10),
    "path": lambda: pictures.label_path(np.linspace(0.99, 0.45, 30), 0.48, 0.5, ("no", "yes")),
    "path up": lambda: pictures.label_path(np.array([1e-12, 0.3]), np.nan, 0.25, ("$no", "$yes$")),
    "yield": lambda: pictures.review_yield(np.linspace(1, 0, 300), 50),
    "k by k": lambda: pictures.k_against_k(K, K[::-1].copy(), K > 40, ("$a_1$", "<b>")),
    "injected noise": lambda: pictures.injected_noise(curve_result().table),
}


@pytest.mark.parametrize("name", CHARTS)
def test_chart_is_small_themed_and_described(name):
    chart = CHARTS[name]()
    svg = ET.fromstring(chart.svg)
    assert svg.get("role") == "img"
    title, desc = svg[0], svg[1]
    assert (title.tag, desc.tag) == ("title", "desc")
    assert svg.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
    assert title.text
    assert desc.text
    assert "nan" not in desc.text
    assert chart.caption.endswith(".")
    assert len(chart.svg) < 30_000
    assert not re.search(r"http|xmlns|metadata|DejaVu|font-family|<script|<style", chart.svg)
    colours = set(re.findall(r"(?:fill|stroke): ?([^;\"]+)", chart.svg))
    assert colours <= {"none", *re.findall(r"var\(--[a-z-]+\)|url\(#[^)]+\)", chart.svg)}, "a colour of its own"
    ids = re.findall(r'id="([^"]+)"', chart.svg)
    assert len(ids) == len(set(ids))
    assert all(f"#{i}" in chart.svg for i in ids if i not in (title.get("id"), desc.get("id")))


def test_text_from_the_data_is_text():
    svg = ET.fromstring(CHARTS["k by k"]().svg)
    words = [node.text for node in svg.iter("text")]
    assert "k of $a_1$" in words
    assert "k of <b>" in words


def test_many_points_stay_small():
    rng = np.random.default_rng(0)
    k = rng.lognormal(4, 1.5, 50_000).round() + 1
    chart = pictures.k_against_confidence(rng.uniform(0.5, 1, 50_000), k, 100_000)
    assert len(chart.svg) < 400_000


def test_charts_ignore_and_keep_the_users_settings():
    plain = CHARTS["distribution"]().svg
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert CHARTS["distribution"]().svg == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_the_bars_count_every_prediction_once():
    for k, n_train in ((K, 2000), (np.full(9, 400.0), 100_000), (np.arange(100.0, 300.0), 5000)):
        edges, _ = pictures._k_edges(k, np.ceil(0.02 * n_train) - 0.5)
        assert np.histogram(k, edges)[0].sum() == len(k)
        few = np.ceil(0.02 * n_train) - 0.5
        assert few in edges or few < edges[0] or few > edges[-1]
