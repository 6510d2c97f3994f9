"""Tables the page's script draws: compact JSON, every text already made visible and cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow_relabel_audit.reports import text

ROW_LIMIT = 10_000
"""Rows a page embeds; what is above it is in the files beside the page, and the page says so."""


@dataclass(frozen=True)
class Column:
    """One column of a drawn table.

    ``kind`` is ``text``, ``word`` (few distinct texts), ``count``, ``probability``, ``ratio`` or
    ``percent``; ``hint`` is the header's tooltip.
    """

    label: str
    kind: str
    values: Sequence[Any]
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """A drawn table: columns of equal length, how it is sorted at first, and rows' further facts.

    ``sort`` is a column's position; one past the last keeps the rows as given.
    """

    columns: Sequence[Column]
    sort: int = 0
    descending: bool = False
    details: Sequence[Any] = ()
    detail_labels: Sequence[str] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def payload(self) -> dict[str, Any]:
        """Return what the script reads: columns with their values, missing figures as null."""
        return {
            "columns": [_column(c) for c in self.columns],
            "sort": [self.sort, -1 if self.descending else 1],
            "details": list(self.details),
            "detailLabels": list(self.detail_labels),
            **self.extra,
        }


def _column(column: Column) -> dict[str, Any]:
    base: dict[str, Any] = {"label": column.label, "kind": column.kind}
    if column.hint:
        base["hint"] = column.hint
    if column.kind == "word":
        words: dict[str, int] = {}
        shown = (text.visible(v) for v in column.values)
        base["values"] = [words.setdefault(w, len(words)) for w in shown]
        base["words"] = list(words)
    elif column.kind == "text":
        base["values"] = [text.visible(v) for v in column.values]
    else:
        base["values"] = [figure(v) for v in column.values]
    return base


def figure(value: Any) -> float | int | None:
    """Return a number with four significant digits, an int where it is whole, None where it is missing."""
    if not text.is_finite(value):
        return None
    value = float(value)
    if value.is_integer() and abs(value) < 1e15:
        return int(value)
    digits = float(f"{value:.4g}")
    if 0 < value < 1 and digits == 1:
        return float(f"{value:.7f}")
    return digits


def texts(values: Iterable[Any], limit: int = text.CELL_LIMIT) -> list[str]:
    """Return each value as visible text."""
    return [text.visible(v, limit) for v in values]
