"""Text from the data, made visible; figures, made readable."""

from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_relabel_audit.reports import text
from mlflow_relabel_audit.reports.tables import Column, Table, figure


def test_examples_in_the_docstrings_hold():
    result = doctest.testmod(text)
    assert result.attempted >= 4
    assert result.failed == 0


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("zero\u200bwidth", "zero⟨U+200B⟩width"),
        ("\ufeffmark", "⟨U+FEFF⟩mark"),
        ("nul\x00", "nul⟨U+0000⟩"),
        ("lone \ud800", "lone ⟨U+D800⟩"),
        ("filler \u3164", "filler ⟨U+3164⟩"),
        ("tag \U000e0041", "tag ⟨U+E0041⟩"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("العربية عادية 日本語 😀", "العربية عادية 日本語 😀"),
        (3.0, "3"),
        (0.25, "0.25"),
        (None, "–"),
        (float("nan"), "–"),
        (pd.NA, "–"),
        (np.int64(7), "7"),
        (True, "True"),
    ],
)
def test_every_character_can_be_seen(given, shown):
    assert text.visible(given) == shown


@given(st.text(max_size=300))
def test_what_is_shown_encodes_and_hides_nothing(value):
    shown = text.visible(value)
    shown.encode("utf-8")
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert "<" not in text.bdi(value).removeprefix("<bdi>").removesuffix("</bdi>")


@given(st.recursive(st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists))
def test_an_island_is_read_back_whole_and_holds_no_markup(value):
    island = str(text.island(value))
    assert not set("<>&\u2028\u2029") & set(island)
    assert json.loads(island) == value


@given(st.floats(min_value=0, max_value=1))
def test_a_probability_is_never_rounded_to_certainty(p):
    shown = text.probability(p)
    assert (shown in ("0.000", "1.000")) == (p in (0, 1))


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, pd.NA, "many"])
@pytest.mark.parametrize("shown", [text.number, text.count, text.percent, text.probability, text.short])
def test_a_missing_figure_is_a_dash(value, shown):
    assert shown(value) == text.MISSING
    assert figure(value) is None


def test_figures_keep_four_digits_and_stay_below_one():
    assert figure(0.123456) == 0.1235
    assert figure(0.99999876) == 0.9999988
    assert figure(1234567) == 1234567
    assert text.short(-1234.5) == "−1,234"
    assert text.number(-0.5) == "−0.50"


def test_a_table_holds_words_once_and_missing_as_null():
    table = Table([Column("Label", "word", ["no", "yes", "no"]), Column("k", "count", [1, None, math.nan])])
    words, k = table.payload()["columns"]
    assert words["words"] == ["no", "yes"]
    assert words["values"] == [0, 1, 0]
    assert k["values"] == [1, None, None]
