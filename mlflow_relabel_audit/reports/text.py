"""Words and figures as a page shows them; text from the data is never trusted.

Autoescaping keeps markup in the data from being markup. What it does not stop are characters that have no
shape of their own (bidi overrides, zero-width spaces, controls), which reorder or hide their neighbours.
`visible` writes those as their code points, and the `bdi` filter isolates what is left.
"""

from __future__ import annotations

import json
import math
import unicodedata
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

MISSING = "\N{EN DASH}"
"""Stands where there is no figure."""

CELL_LIMIT = 120
"""Characters of a row id or a label that a table cell shows."""

TEXT_LIMIT = 2_000
"""Characters of a row's text that a page shows."""

_SHAPELESS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BLANK_LETTERS = {0x115F, 0x1160, 0x2800, 0x3164, 0xFFA0}
_MARK_RUN = 4


def visible(value: object, limit: int = CELL_LIMIT) -> str:
    r"""Return ``value`` as text in which every character can be seen, cut to ``limit`` characters.

    Examples
    --------
    >>> visible("ab\u202ecd")
    'ab⟨U+202E⟩cd'
    >>> visible("x" * 50, limit=10)
    'xxxxxxxxxx… (50 characters)'
    """
    text = value if isinstance(value, str) else _plain(value)
    shown: list[str] = []
    marks = 0
    for character in text[:limit]:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        hidden = (category in _SHAPELESS and character not in "\n\t") or ord(character) in _BLANK_LETTERS
        if hidden or marks > _MARK_RUN:
            shown.append(f"⟨U+{ord(character):04X}⟩")
        else:
            shown.append(character)
    if len(text) > limit:
        shown.append(f"… ({len(text):,} characters)")
    return "".join(shown)


def _plain(value: object) -> str:
    """Return a scalar as people write it: 1.0 from a float column of whole numbers is 1."""
    if value is None or value is pd.NA or value is pd.NaT:
        return MISSING
    if isinstance(value, (float, np.floating)):
        if math.isnan(value):
            return MISSING
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    return str(value)


def bdi(value: object, limit: int = CELL_LIMIT) -> Markup:
    """Return ``value`` escaped, every character visible, isolated from the text's direction around it."""
    return Markup("<bdi>{}</bdi>").format(visible(value, limit))


def number(value: Any, digits: int = 2) -> str:
    """Return a figure with thousands separated, or a dash where it is missing or not finite."""
    if not is_finite(value):
        return MISSING
    value = float(value)
    text = f"{value:,.0f}" if value.is_integer() and digits <= 2 else f"{value:,.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def short(value: Any) -> str:
    """Return a figure with four significant digits, whatever its size."""
    if not is_finite(value):
        return MISSING
    value = float(value)
    text = f"{value:,.0f}" if abs(value) >= 1000 or value.is_integer() else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def count(value: Any) -> str:
    """Return a whole number with thousands separated; a median between two counts keeps its half."""
    if not is_finite(value):
        return MISSING
    value = float(value)
    return f"{value:,.0f}" if value.is_integer() else f"{value:,.1f}"


def percent(value: Any) -> str:
    """Return a fraction of one as a percentage with the digits it deserves.

    Examples
    --------
    >>> [percent(v).split()[0] for v in (0, 0.0004, 0.0234, 0.314, 0.996, 1)]
    ['0', '0.04', '2.3', '31', '99.6', '100']
    """
    if not is_finite(value):
        return MISSING
    share = 100 * float(value)
    size = abs(share)
    if size == 0 or size == 100:
        digits = 0
    elif size < 1:
        digits = 2
    else:
        digits = 1 if size < 10 or size > 99 else 0
    text = f"{share:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "\N{MINUS SIGN}") + "\N{NO-BREAK SPACE}%"


def probability(value: Any) -> str:
    """Return a probability to three digits, never rounded to 0 or 1 unless it is."""
    if not is_finite(value):
        return MISSING
    value = float(value)
    if 0 < value < 0.0005:
        return "<0.001"
    if 0.9995 <= value < 1:
        return ">0.999"
    return f"{value:.3f}"


def plural(value: Any, one: str, many: str | None = None) -> str:
    """Return a count with its noun.

    Examples
    --------
    >>> plural(1, "label"), plural(1200, "label")
    ('1 label', '1,200 labels')
    """
    noun = one if is_finite(value) and float(value) == 1 else many or one + "s"
    return f"{count(value)} {noun}"


def as_float(value: Any) -> float:
    """Return a figure as a float, NaN where it is missing or not finite."""
    return float(value) if is_finite(value) else math.nan


def is_finite(value: Any) -> bool:
    """Say whether ``value`` is a number that can be shown."""
    if value is None or value is pd.NA:
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def island(data: object) -> Markup:
    """Return ``data`` as compact JSON that is safe inside a script element.

    No ``<``, ``>`` or ``&`` is left in it, so it can neither close the element nor open a comment.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
