"""What two rows have in common, for a reader who compares a training row with the decision it moves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from mlflow_relabel_audit.reports import text

_WORD = re.compile(r"\w+", re.UNICODE)
_TEXT_LENGTH = 40
_NEAR = 0.25
_VALUE_LIMIT = 80


@dataclass(frozen=True)
class Reader:
    """Shows training rows beside one decision's row.

    Parameters
    ----------
    row : Series
        The decision's row.
    texts, values : tuple
        Its columns of running text, and the others.
    spread : Series
        Standard deviation of the numeric columns over the rows the page shows.
    words : frozenset of str
        Words of the row's text, lower case, without the commonest.
    features : int
        Most columns shown of one row.
    characters : int
        Most characters of a text shown.
    """

    row: pd.Series[Any]
    texts: tuple[Any, ...]
    values: tuple[Any, ...]
    spread: pd.Series[Any]
    words: frozenset[str]
    features: int
    characters: int

    def show(self, other: pd.Series[Any]) -> dict[str, Any]:
        """Return one row: texts as parts (every second one shared), values with a mark where near."""
        shown: dict[str, Any] = {}
        if self.texts:
            shown["texts"] = [
                [text.visible(name), self._parts(text.visible(other[name], self.characters))] for name in self.texts
            ]
        if self.values:
            cells = [(self._distance(name, other[name]), name) for name in self.values]
            cells.sort(key=lambda cell: cell[0])
            shown["values"] = [
                [
                    text.visible(name),
                    text.visible(other[name], _VALUE_LIMIT),
                    text.visible(self.row[name], _VALUE_LIMIT),
                    int(distance <= _NEAR),
                ]
                for distance, name in cells[: self.features]
            ]
        return shown

    def own(self) -> dict[str, Any]:
        """Return the decision's own row: texts and values in the data's order, cut only where very long."""
        return {
            "texts": [(name, text.visible(self.row[name], text.TEXT_LIMIT)) for name in self.texts],
            "values": [(name, self.row[name]) for name in self.values[:_OWN_VALUES]],
            "more": max(0, len(self.values) - _OWN_VALUES),
        }

    def _parts(self, words: str) -> list[str]:
        parts, end = [], 0
        for match in _WORD.finditer(words):
            if match[0].lower() in self.words:
                parts += [words[end : match.start()], match[0]]
                end = match.end()
        return [*parts, words[end:]]

    def _distance(self, name: Any, value: Any) -> float:
        own = self.row[name]
        if name in self.spread.index:
            if not (text.is_finite(value) and text.is_finite(own)):
                return 3.0
            scale = float(self.spread[name])
            return abs(float(value) - float(own)) / scale if scale > 0 else 0.0
        return 0.0 if str(value) == str(own) else 2.0


_OWN_VALUES = 60


def reader(row: pd.Series[Any], others: pd.DataFrame, characters: int, features: int = 8) -> Reader:
    """Return a reader for ``row``; ``others`` are the training rows the page shows."""
    numeric = [c for c in others.columns if pd.api.types.is_numeric_dtype(others[c].dtype)]
    shared = [c for c in others.columns if c in row.index]
    texts = tuple(c for c in shared if c not in numeric and _is_text(row[c], others[c]))
    words = {w.lower() for c in texts for w in _WORD.findall(str(row[c])[: text.TEXT_LIMIT])}
    return Reader(
        row=row,
        texts=texts,
        values=tuple(c for c in shared if c not in texts),
        spread=others[numeric].astype(float).std(ddof=0).replace(np.nan, 0.0),
        words=frozenset(w for w in words if len(w) > 1 and w not in ENGLISH_STOP_WORDS),
        features=features,
        characters=characters,
    )


def _is_text(value: Any, column: pd.Series[Any]) -> bool:
    sample = [str(v) for v in (value, *column.head(20)) if isinstance(v, str)]
    return bool(sample) and max(map(len, sample)) > _TEXT_LENGTH
